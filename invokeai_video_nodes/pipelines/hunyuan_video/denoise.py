"""HunyuanVideo: noise + prompt features -> clean latents, step for step as diffusers' pipelines do it.

Three ways of taking a start picture, told by the checkpoint's config:
    latent_concat  the model reads 33 channels, [latents, start frame then zeros, mask]; its first latent frame is dropped
    token_replace  latent frame 0 is the start frame in every step
    1.5            65 channels, [latents, start frame then zeros, mask]; zeros throughout for text to video
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..attention import Attention, attention
from ..errors import BadInput, Canceled, Stop
from ..guidance import guide, is_guided
from ..sampling import HeldFrame, KeptRegion, OnStep, sample, steps_of
from ..shapes import check_latents
from ..step_cache import StepCache
from .conditioning import Features, PromptFeatures, PromptFeatures15, check_features, moved

CONCAT, REPLACE = "latent_concat", "token_replace"
# How much of the start frame image to video mixes into the noise: float32, as diffusers has it.
_NOISE_SHARE = 0.999

# Latents as the scheduler holds them, its timestep [1] and the one that it goes to [1] -> velocity of the latents' shape.
Call = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def denoise(
    transformer: Any,
    *,
    latents: torch.Tensor,
    positive: Features,
    negative: Features | None = None,
    true_cfg_scale: float = 1.0,
    guidance_scale: float = 6.0,
    scheduler: Any,
    start_frame: torch.Tensor | None = None,
    picture: torch.Tensor | None = None,
    kept: KeptRegion | None = None,
    cache: StepCache | None = None,
    attention_by: Attention = "sdpa",
    on_step: OnStep | None = None,
    stop: Stop | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the denoised latents [1, C, T, h, w] float32; with latent_concat still with the frame that is dropped.

    Args:
        transformer: a HunyuanVideoTransformer3DModel or HunyuanVideo15Transformer3DModel.
        latents: [1, C, T, h, w] float32 at the noise level of the scheduler's first timestep; from `first_latents` where a
        start frame is given. positive, negative: of the transformer's generation. `guidance_scale` is the embedded one, read
        by distilled checkpoints of the first generation; `true_cfg_scale` > 1 with a negative prompt runs the model twice.
        scheduler: from `schedules.flow_match_scheduler`, used up. start_frame: scaled latent [1, C, 1, h, w], for
        checkpoints of image to video. picture: SigLIP's features [1, n, d] of it (1.5). kept: what a mask keeps of a clip.
        cache: skips steps that are nearly the step before, and counts them. attention_by: the kernel, see `attention`.
        dtype: of the model's input where the transformer's own is its storage format; None: the transformer's.

    Raises BadInput before any weight is used, and Canceled within one model call of `stop()` answering True.
    """
    check_denoise_input(transformer.config, latents=latents, features=[positive, negative], start_frame=start_frame, picture=picture)
    device, dtype = latents.device, dtype or transformer.dtype
    start = None if start_frame is None else start_frame.to(device=device, dtype=torch.float32)
    make = _call_15 if _is_15(transformer.config) else _call
    options = {"start": start, "picture": picture, "guidance_scale": guidance_scale, "latents": latents, "dtype": dtype}
    conditional = make(transformer, moved(positive, device=device, dtype=dtype), **options)
    unconditional = None
    if is_guided(true_cfg_scale, None if negative is None else negative.tokens) and negative is not None:
        unconditional = make(transformer, moved(negative, device=device, dtype=dtype), **options)

    cache = cache or StepCache()

    def velocity(latents: torch.Tensor, *, timestep: torch.Tensor, step: int, total: int) -> torch.Tensor:
        later = scheduler.timesteps[scheduler.timesteps < timestep]
        following = later[0] if len(later) else torch.zeros(())
        now, then = (value.expand(1).to(device=device, dtype=latents.dtype) for value in (timestep, following))
        prediction = cache.call("positive", lambda: conditional(latents, now, then))
        if unconditional is None:
            return prediction
        if stop is not None and stop():
            raise Canceled
        return guide(prediction, cache.call("negative", lambda: unconditional(latents, now, then)), true_cfg_scale)

    held = None
    if start is not None and condition_of(transformer.config) == REPLACE:
        held = HeldFrame(clean=start, noise=torch.zeros_like(start), steps=steps_of(scheduler))
    with torch.no_grad(), cache.on(transformer), attention(transformer, attention_by):
        return sample(velocity, latents=latents.float(), scheduler=scheduler, held=held, kept=kept, on_step=on_step, stop=stop)


def first_latents(noise: torch.Tensor, start_frame: torch.Tensor) -> torch.Tensor:
    """Noise [1, C, T, h, w] with a thousandth of the start frame [1, C, 1, h, w] in every frame (first generation)."""
    share = torch.tensor([_NOISE_SHARE])
    return noise * share + start_frame.repeat(1, 1, noise.shape[2], 1, 1) * (1 - share)


def condition_of(config: Any) -> str | None:
    """How this transformer takes a start picture: latent_concat, token_replace, or None for text to video."""
    if _is_15(config):
        return CONCAT if config["task_type"] == "i2v" else None
    condition: str | None = config["image_condition_type"]
    return condition


def latent_channels_of(config: Any) -> int:
    """Channels of the latents; a transformer that concatenates its start frame reads more."""
    channels: int = config["in_channels"]
    return (channels - 1) // 2 if _is_15(config) or condition_of(config) == CONCAT else channels


def extra_frames(condition: str | None, *, generation: str) -> int:
    """Frames that are sampled and decoded, then dropped from the clip's beginning; `generation` "1.0" or "1.5"."""
    return 4 if condition == CONCAT and generation == "1.0" else 0


def with_extra(latent_shape: tuple[int, ...], extra: int) -> tuple[int, ...]:
    """The shape [1, C, T, h, w] of a clip with `extra` more frames at its beginning, a multiple of 4."""
    batch, channels, frames, height, width = latent_shape
    return batch, channels, frames + extra // 4, height, width


def check_denoise_input(config: Any, *, latents: torch.Tensor, features: list[Any], start_frame: Any, picture: Any) -> None:
    """Raise BadInput unless a transformer of this config can take these tensors; reads shapes only."""
    check_latents(latents, channels=latent_channels_of(config))
    condition = condition_of(config)
    if condition is None and start_frame is not None:
        raise BadInput.expected("start image", "none, because this model makes video from text", "an image")
    if condition is not None and start_frame is None:
        raise BadInput.expected("start image", "an image, because this model continues one", "none")
    if start_frame is not None:
        expected = (1, latents.shape[1], 1, *latents.shape[3:])
        if tuple(start_frame.shape) != expected:
            raise BadInput.expected("start frame", list(expected), list(start_frame.shape))
    if _is_15(config) and (picture is None) != (start_frame is None):
        raise BadInput.expected("picture features", "SigLIP's features beside the start frame", "one without the other")
    for size, name in zip(latents.shape[3:], ("latent height", "latent width"), strict=True):
        if size % config["patch_size"]:
            nearest = max(size - size % config["patch_size"], config["patch_size"])
            raise BadInput.expected(name, f"divisible by the patch size {config['patch_size']}", size, nearest)
    for given in features:
        if given is not None:
            check_features(given, generation="1.5" if _is_15(config) else "1.0", width=config["text_embed_dim"])


def _is_15(config: Any) -> bool:
    return "image_embed_dim" in config


def _call(
    transformer: Any,
    features: PromptFeatures,
    *,
    start: torch.Tensor | None,
    picture: torch.Tensor | None,
    guidance_scale: float,
    latents: torch.Tensor,
    dtype: torch.dtype,
) -> Call:
    guidance = None
    if transformer.config.guidance_embeds:
        guidance = torch.tensor([guidance_scale], dtype=dtype, device=latents.device) * 1000.0
    beside = _beside(start, latents) if condition_of(transformer.config) == CONCAT else None

    def call(x: torch.Tensor, timestep: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        seen = x if beside is None else torch.cat([x, beside], dim=1)
        prediction: torch.Tensor = transformer(
            hidden_states=seen.to(dtype),
            timestep=timestep,
            encoder_hidden_states=features.tokens,
            encoder_attention_mask=features.mask,
            pooled_projections=features.pooled,
            guidance=guidance,
            return_dict=False,
        )[0]
        return prediction

    return call


def _call_15(
    transformer: Any,
    features: PromptFeatures15,
    *,
    start: torch.Tensor | None,
    picture: torch.Tensor | None,
    guidance_scale: float,
    latents: torch.Tensor,
    dtype: torch.dtype,
) -> Call:
    beside = _beside(start, latents).to(dtype)
    if picture is None:
        picture = torch.zeros(1, _PICTURE_TOKENS, transformer.config.image_embed_dim)
    picture = picture.to(device=latents.device, dtype=dtype)
    # Distilled to few steps: it reads where a step ends too. diffusers' text-to-video pipeline never says it.
    mean_flow = transformer.config.use_meanflow and condition_of(transformer.config) == CONCAT

    def call(x: torch.Tensor, timestep: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        prediction: torch.Tensor = transformer(
            hidden_states=torch.cat([x.to(dtype), beside], dim=1),
            image_embeds=picture,
            timestep=timestep.to(dtype),
            encoder_hidden_states=features.tokens,
            encoder_attention_mask=features.mask,
            encoder_hidden_states_2=features.glyphs,
            encoder_attention_mask_2=features.glyph_mask,
            timestep_r=following if mean_flow else None,
            return_dict=False,
        )[0]
        return prediction

    return call


_PICTURE_TOKENS = 729  # SigLIP's; zeros stand for no picture


def _beside(start: torch.Tensor | None, latents: torch.Tensor) -> torch.Tensor:
    """Start frame and mask as further channels [1, C + 1, T, h, w]; zeros after frame 0, or throughout without a start."""
    _, channels, frames, height, width = latents.shape
    beside = torch.zeros(1, channels + 1, frames, height, width, device=latents.device)
    if start is not None:
        beside[:, :-1, :1] = start
        beside[:, -1:, :1] = 1.0
    return beside
