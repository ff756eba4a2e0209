"""Z-Image Video: noise + caption features -> clean latents, through a ZImageTransformer2DModel.

Step for step what diffusers' ZImagePipeline does, with a time axis: latents stay float32, the model input takes the
transformer's dtype, and the prediction (x0 - noise) is negated before the scheduler sees it.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from ..errors import BadInput, Canceled, Stop
from ..guidance import guide, is_guided
from ..sampling import HeldFrame, OnStep, sample, steps_of
from ..shapes import check_f_patch_size, check_latents

PATCH_SIZE = 2
# The transformer pads captions to this many tokens.
_CAPTION_MULTIPLE = 32


class Predict(Protocol):
    """One transformer call: `x` [C, F, h, w] in the model's dtype, `t` [1] (0 = noise, 1 = clean), `caption` [n, d].

    Returns the raw prediction x0 - noise, [C, F, h, w]. Replace it to put control or regional prompts around the call;
    `step` counts from 0.
    """

    def __call__(
        self, *, x: torch.Tensor, t: torch.Tensor, caption: torch.Tensor, step: int, total: int
    ) -> torch.Tensor: ...


def denoise(
    transformer: Any,
    *,
    latents: torch.Tensor,
    positive: torch.Tensor,
    negative: torch.Tensor | None = None,
    guidance_scale: float = 1.0,
    scheduler: Any,
    f_patch_size: int,
    generator: torch.Generator | None = None,
    start_frame: torch.Tensor | None = None,
    motion_strength: float = 0.7,
    predict: Predict | None = None,
    on_step: OnStep | None = None,
    stop: Stop | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the denoised latents, [1, C, F, h, w] float32 on the device of `latents`.

    Args:
        transformer: a ZImageTransformer2DModel that has layers for `f_patch_size`.
        latents: [1, C, F, h, w] float32 at the noise level of the scheduler's first timestep (pure noise at the start).
        positive, negative: caption features [tokens, d]. Guidance is on where `guidance_scale` > 1 and a negative is
        given. scheduler: from `schedules.flow_match_scheduler`; it is used up. generator: for lcm, which adds noise in
        every step. start_frame: [1, C, 1, h, w]; frame 0 is held at it, see `sampling.HeldFrame` for `motion_strength`.
        predict: replaces the plain transformer call. dtype: of the model's input where the transformer's own is its
        storage format (quantized); None: the transformer's.

    Raises BadInput before any weight is used, and Canceled within one model call of `stop()` answering True.
    """
    check_denoise_input(transformer.config, latents=latents, captions=[positive, negative], f_patch_size=f_patch_size)
    guided = is_guided(guidance_scale, negative)
    device, dtype = latents.device, dtype or transformer.dtype
    positive = positive.to(device=device, dtype=dtype)
    negative = negative.to(device=device, dtype=dtype) if guided and negative is not None else None
    predict = predict or transformer_call(transformer, f_patch_size=f_patch_size)

    scale = scheduler.config.num_train_timesteps

    def velocity(latents: torch.Tensor, *, timestep: torch.Tensor, step: int, total: int) -> torch.Tensor:
        x, t = latents[0].to(dtype), ((scale - timestep) / scale).expand(1).to(device)
        prediction = predict(x=x, t=t, caption=positive, step=step, total=total).float()
        if negative is not None:
            if stop is not None and stop():
                raise Canceled
            unguided = predict(x=x, t=t, caption=negative, step=step, total=total).float()
            prediction = guide(prediction, unguided, guidance_scale)
        return -prediction.unsqueeze(0)

    held = None
    if start_frame is not None:
        held = _held_frame(start_frame, latents=latents, scheduler=scheduler, motion_strength=motion_strength)
    with torch.no_grad():
        return sample(
            velocity,
            latents=latents.float(),
            scheduler=scheduler,
            generator=generator,
            held=held,
            on_step=on_step,
            stop=stop,
        )


def transformer_call(transformer: Any, *, f_patch_size: int) -> Predict:
    """The plain call of the transformer, as `Predict`."""

    def predict(*, x: torch.Tensor, t: torch.Tensor, caption: torch.Tensor, step: int, total: int) -> torch.Tensor:
        # Positional, and without `return_dict`: InvokeAI's regional prompting swaps in a forward that knows no more.
        output = transformer([x], t, [caption], patch_size=PATCH_SIZE, f_patch_size=f_patch_size)
        prediction: torch.Tensor = output[0][0]
        return prediction

    return predict


def check_denoise_input(
    config: Any, *, latents: torch.Tensor, captions: list[torch.Tensor | None], f_patch_size: int
) -> None:
    """Raise BadInput unless a transformer of this config can take these tensors; reads shapes only."""
    check_f_patch_size(f_patch_size, tuple(config["all_f_patch_size"]))
    check_latents(latents, channels=config["in_channels"])
    _, _, frames, height, width = latents.shape
    if frames % f_patch_size:
        lower = max(frames // f_patch_size, 1) * f_patch_size
        nearest = min((lower, lower + f_patch_size), key=lambda count: (abs(count - frames), count))
        raise BadInput.expected("num_frames", f"divisible by f_patch_size {f_patch_size}", frames, nearest)
    for name, size in (("latent height", height), ("latent width", width)):
        if size % PATCH_SIZE:
            raise BadInput.expected(name, f"divisible by the patch size {PATCH_SIZE}", size, size - size % PATCH_SIZE)
    given = [caption for caption in captions if caption is not None]
    for caption in given:
        if caption.ndim != 2 or caption.shape[1] != config["cap_feat_dim"]:
            expected = f"[tokens, {config['cap_feat_dim']}], the width of this transformer's text encoder"
            raise BadInput.expected("caption features", expected, list(caption.shape))
    _check_positions(config, latents=latents, captions=given, f_patch_size=f_patch_size)


def _check_positions(config: Any, *, latents: torch.Tensor, captions: list[torch.Tensor], f_patch_size: int) -> None:
    # Caption and frames share the first axis of the position tables: padded caption + 1 + frames / f_patch_size.
    _, _, frames, height, width = latents.shape
    frame_table, height_table, width_table = config["axes_lens"]
    caption_tokens = max((-(-len(caption) // _CAPTION_MULTIPLE) * _CAPTION_MULTIPLE for caption in captions), default=0)
    room = frame_table - caption_tokens - 1
    if frames // f_patch_size > room:
        expected = (
            f"at most {room * f_patch_size} beside a caption of {caption_tokens} tokens (position table of the model)"
        )
        raise BadInput.expected("num_frames", expected, frames, max(room, 0) * f_patch_size)
    for name, size, table in (("latent height", height, height_table), ("latent width", width, width_table)):
        if size // PATCH_SIZE > table:
            expected = f"at most {table * PATCH_SIZE} (position table of the model)"
            raise BadInput.expected(name, expected, size, table * PATCH_SIZE)


def _held_frame(
    start_frame: torch.Tensor, *, latents: torch.Tensor, scheduler: Any, motion_strength: float
) -> HeldFrame:
    expected = (1, latents.shape[1], 1, *latents.shape[3:])
    if tuple(start_frame.shape) != expected:
        raise BadInput.expected("start_frame", list(expected), list(start_frame.shape))
    return HeldFrame.build(
        clean=start_frame.to(device=latents.device, dtype=torch.float32),
        latents=latents.float(),
        sigma=float(scheduler.sigmas[0]),
        strength=motion_strength,
        total=steps_of(scheduler),
    )
