"""What an AnimateDiff denoise node is given -> what the core takes: prompts, windows, motion scale, the clip to start from.

Nothing here loads a model, so everything here can refuse.
"""

import math
from collections.abc import Sequence
from logging import Logger
from typing import TypeAlias

import numpy as np
import torch
from invokeai.app.invocations.fields import ConditioningField, ImageField, LatentsField
from invokeai.app.services.shared.invocation_context import InvocationContext
from invokeai.backend.stable_diffusion.diffusion.conditioning_data import BasicConditioningInfo, ConditioningFieldData

from invokeai_video_nodes.nodes.animatediff_fields import (
    AnimateDiffFreeInitField,
    AnimateDiffPromptScheduleField,
    AnimateDiffWindowsField,
)
from invokeai_video_nodes.nodes.clip_latents import load_clip
from invokeai_video_nodes.pipelines.animatediff.conditioning import equally_long
from invokeai_video_nodes.pipelines.animatediff.denoise import Clip
from invokeai_video_nodes.pipelines.animatediff.free_init import FreeInit
from invokeai_video_nodes.pipelines.animatediff.free_noise import FreeNoise
from invokeai_video_nodes.pipelines.animatediff.unet import MotionScale
from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.masks import latent_mask
from invokeai_video_nodes.pipelines.prompt_schedule import ScheduledPrompt, blend_embeddings, frame_blends
from invokeai_video_nodes.pipelines.shapes import ClipShape
from invokeai_video_nodes.pipelines.windows import ContextWindows, FreeNoiseKind, free_noise

Conditioning: TypeAlias = ConditioningField | list[ConditioningField]
# What the public modules were trained on, whatever they have positions for.
TRAINED_FRAMES = 16
Windows = ContextWindows | FreeNoise
_NOISE: dict[str, FreeNoiseKind] = {"random": "random", "shuffled": "shuffle_context", "repeated": "repeat_context"}


def prompts_of(
    context: InvocationContext,
    *,
    positive: Conditioning | None,
    negative: Conditioning | None,
    schedule: AnimateDiffPromptScheduleField | None,
    num_frames: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Positive embeddings [1 or F, tokens, 768] and negative ones of as many tokens; raises BadInput for what cannot be one prompt."""
    if (positive is None) == (schedule is None):
        got = "both" if schedule else "neither"
        raise BadInput.expected("positive prompt", "either a positive conditioning or a prompt schedule", got)
    if schedule is not None:
        shown = _travel(context, schedule, num_frames=num_frames)
    elif positive is not None:
        shown = _embeddings(context, positive, "positive_conditioning")
    return (shown, None) if negative is None else equally_long(shown, _embeddings(context, negative, "negative_conditioning"))


def _embeddings(context: InvocationContext, given: Conditioning, what: str) -> torch.Tensor:
    """[1, tokens, 768]; several conditionings stand one behind the other, as InvokeAI's own denoise has them."""
    fields = given if isinstance(given, list) else [given]
    if not fields:
        raise BadInput.expected(what, "at least one conditioning", "an empty collection")
    if any(field.mask is not None for field in fields):
        raise BadInput.expected(what, "a prompt for the whole picture", "one with a region mask", "the prompt without its mask")
    return torch.cat([_stored(context, field.conditioning_name, what) for field in fields], dim=1)


def _stored(context: InvocationContext, name: str, what: str) -> torch.Tensor:
    stored = context.conditioning.load(name)
    first = stored.conditionings[0] if isinstance(stored, ConditioningFieldData) else stored
    # By its exact class: SDXL's is a child of it.
    if type(first) is not BasicConditioningInfo:
        raise BadInput.expected(what, "a prompt of Stable Diffusion 1.5's prompt node", type(first).__name__)
    return first.embeds


def _travel(context: InvocationContext, schedule: AnimateDiffPromptScheduleField, *, num_frames: int) -> torch.Tensor:
    """[F, tokens, 768]: each frame's mix of the scheduled prompts."""
    if schedule.num_frames != num_frames:
        expected = f"a schedule for {num_frames} frames, as this node has"
        raise BadInput.expected("prompt schedule", expected, f"one for {schedule.num_frames}", num_frames)
    prompts = [_stored(context, name, "prompt schedule") for name in schedule.conditioning_names]
    length = math.lcm(*(prompt.shape[1] for prompt in prompts))
    # Repeated, not padded, for the reason that `equally_long` gives.
    embeddings = torch.cat([prompt.repeat(1, length // prompt.shape[1], 1) for prompt in prompts])
    scheduled = [ScheduledPrompt(frame=frame, prompt="") for frame in schedule.frames]
    return blend_embeddings(embeddings, frame_blends(scheduled, num_frames=num_frames, loop=schedule.loop))


def windows_of(
    field: AnimateDiffWindowsField | None, *, num_frames: int, limit: int, loop: bool, logger: Logger
) -> Windows | None:
    """How the clip is cut, None where it is made whole; raises BadInput for a loop that the windows cannot close."""
    trained = min(TRAINED_FRAMES, limit)
    if field is None and num_frames <= limit and not loop:
        return None
    if field is None:
        settings: Windows = ContextWindows(length=trained, overlap=trained // 2, kind="looped" if loop else "standard")
        logger.info(
            f"{num_frames} frames are made in {settings.kind} windows of {trained} frames that share {trained // 2}; "
            f"the motion module sees {limit} at once."
        )
    else:
        settings = window_settings(field, trained=trained)
        settings.check_limit(limit)
    if loop:
        _check_loop(settings, num_frames=num_frames)
    return settings


def window_settings(field: AnimateDiffWindowsField, *, trained: int = TRAINED_FRAMES) -> Windows:
    """The core's settings; raises BadInput for those that cannot be."""
    length = field.length or trained
    windows = ContextWindows(
        length=length,
        overlap=field.overlap,
        stride=field.stride,
        kind="standard" if field.kind == "free_noise" else field.kind,
        weights=field.weights,
    )
    if field.kind == "looped" and field.overlap == 0:
        expected = "1 or more with the kind looped, because the windows over the end close the loop"
        raise BadInput.expected("window overlap", expected, 0, length // 2)
    if field.kind != "free_noise":
        return windows
    if field.stride != 1:
        raise BadInput.expected("window stride", "1 with the kind free_noise", field.stride, 1)
    if field.weights == "linear":
        raise BadInput.expected("window weights", "pyramid or flat with the kind free_noise", "linear", "pyramid")
    return FreeNoise(length=length, stride=length - field.overlap, weights=field.weights, kind=_NOISE[field.noise])


def _check_loop(settings: Windows, *, num_frames: int) -> None:
    if isinstance(settings, FreeNoise) or settings.kind != "looped":
        kind = "free_noise" if isinstance(settings, FreeNoise) else settings.kind
        raise BadInput.expected("context windows of a loop", "the kind looped", f"the kind {kind}", "looped")
    if not settings.are_needed(num_frames):
        frames = f"num_frames {settings.length * 3 // 2} ({settings.length + 1} at least)"
        nearest = f"{frames}, or Context Windows of length {max(num_frames - 1, 2)}"
        expected = f"a clip longer than one window of {settings.length} frames, because windows over the end close the loop"
        raise BadInput.expected("loop", expected, f"{num_frames} frames", nearest)


def noise_of(
    shape: ClipShape, *, generator: torch.Generator, windows: Windows | None, field: AnimateDiffWindowsField | None
) -> torch.Tensor:
    """Noise [1, 4, F, h, w] float32 from the CPU generator; beyond the first window as the windows' settings say."""
    noise = torch.randn(shape.latent_shape, generator=generator, dtype=torch.float32)
    if isinstance(windows, FreeNoise):
        return windows.noise(noise, generator=generator)
    if windows is None or field is None:
        return noise
    stride = windows.length - windows.overlap
    return free_noise(noise, length=windows.length, stride=stride, kind=_NOISE[field.noise], generator=generator)


def free_init_settings(field: AnimateDiffFreeInitField) -> FreeInit:
    """The core's settings; raises BadInput for those that cannot be."""
    return FreeInit(**field.model_dump())


def clip_of(
    context: InvocationContext, latents: LatentsField | None, *, shape: ClipShape, strength: float, mask: ImageField | None
) -> Clip | None:
    """The clip to start from, on the CPU; raises BadInput where it has another size or length, or where there is none to change."""
    if latents is None:
        if strength != 1.0:
            raise BadInput.expected("strength", "1.0, because no clip comes in", strength, 1.0)
        if mask is not None:
            raise BadInput.expected("mask", "a clip in Latents that it keeps a part of", "none")
        return None
    given, _ = load_clip(context, latents)
    shape.check_clip(given)
    change = None if mask is None else _mask(context, mask, shape=shape)
    return Clip(latents=given.float(), strength=strength, change=change)


def motion_of(
    context: InvocationContext, scale: float | Sequence[float], mask: ImageField | None, *, shape: ClipShape
) -> MotionScale:
    """One number, one per frame, or where there is a mask a tensor [1 or F, h, w] of both multiplied."""
    numbers: MotionScale = [float(value) for value in scale] if isinstance(scale, Sequence) else float(scale)
    if mask is None:
        return numbers
    factor = torch.tensor(numbers).reshape(-1, 1, 1)
    if len(factor) not in (1, shape.num_frames):
        raise BadInput.expected("motion_scale list", f"{shape.num_frames} numbers, one per frame", f"a list of {len(factor)}")
    return factor * _mask(context, mask, shape=shape, what="motion_mask")[0, 0]


def _mask(context: InvocationContext, mask: ImageField, *, shape: ClipShape, what: str = "mask") -> torch.Tensor:
    """[1, 1, 1, h, w] in 0..1."""
    pixels = np.asarray(context.images.get_pil(mask.image_name).convert("L"))
    if pixels.shape != (shape.height, shape.width):
        size = f"{shape.width}x{shape.height}"
        raise BadInput.expected(what, f"{size} pixels, as the clip has", f"{pixels.shape[1]}x{pixels.shape[0]}", size)
    return latent_mask(pixels, height=shape.height, width=shape.width, cell=shape.rule.spatial_factor)
