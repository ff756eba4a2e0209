"""Stable Video Diffusion: noise + a picture's conditioning -> clean latents, step for step as diffusers' pipeline does it.

The UNet reads [1, F, 2C, h, w]: the latents, and beside every frame the start picture's latent. Guidance grows from the first
frame, which has the picture to hold on to, to the last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from ..errors import BadInput, Canceled, NotFinite, Stop
from ..sampling import OnStep
from ..shapes import FRAME_RULES, FrameRule, check_latents
from ..stopping import cancelable
from .conditioning import Conditioning

# Latents as the scheduler scales them [1, F, C, h, w] and the timestep -> v of the latents' shape, float32.
Call = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def denoise(
    unet: Any,
    *,
    noise: torch.Tensor,
    conditioning: Conditioning,
    scheduler: Any,
    min_guidance_scale: float = 1.0,
    max_guidance_scale: float = 3.0,
    on_step: OnStep | None = None,
    stop: Stop | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the denoised latents [1, C, F, h, w], float32.

    Args:
        unet: a UNetSpatioTemporalConditionModel.
        noise: [1, C, F, h, w] standard Gaussian, float32, on the device to compute on; from `draw_noise`.
        scheduler: from `schedule.svd_scheduler`, used up.
        min_guidance_scale, max_guidance_scale: of the first and the last frame, even steps between; 1 and 1 is no guidance, and
        halves the work.
        dtype: of the model's input where the UNet's own is its storage format; None: the UNet's.

    Raises BadInput before any weight is used, Canceled within a block of the UNet of `stop()` answering True, and NotFinite after
    the first step whose latents are not all numbers.
    """
    check_denoise_input(unet.config, noise=noise, conditioning=conditioning)
    guidance = guidance_ramp(min_guidance_scale, max_guidance_scale, noise.shape[2])
    call = _call(unet, conditioning, guidance=guidance, noise=noise, dtype=dtype or unet.dtype)
    latents = noise.float().transpose(1, 2).contiguous() * scheduler.init_noise_sigma
    total = len(scheduler.timesteps)
    with torch.no_grad(), cancelable(_blocks(unet), stop):
        for step, timestep in enumerate(scheduler.timesteps, 1):
            if stop is not None and stop():
                raise Canceled
            v = call(scheduler.scale_model_input(latents, timestep), timestep)
            latents, x0 = scheduler.step(v, timestep, latents, return_dict=False)
            _check_finite(latents, step=step, total=total)
            if on_step is not None:
                on_step(step, total, x0.transpose(1, 2), latents.transpose(1, 2))
    return latents.transpose(1, 2).contiguous()


def guidance_ramp(first: float, last: float, num_frames: int) -> torch.Tensor | None:
    """Guidance per frame [1, F, 1, 1, 1], or None where no frame is guided. Raises BadInput below 1."""
    for name, value in (("min_guidance_scale", first), ("max_guidance_scale", last)):
        if not 1.0 <= value < float("inf"):
            raise BadInput.expected(name, "1.0 or more", value, 1.0)
    if max(first, last) == 1.0:
        return None
    return torch.linspace(first, last, num_frames).reshape(1, -1, 1, 1, 1)


def frame_rule(config: Any) -> FrameRule:
    """The family's rule with the frame count that this checkpoint was trained on: 14, or 25 for XT."""
    return dataclasses.replace(FRAME_RULES["svd"], trained_frames=(int(config["num_frames"]),))


def check_denoise_input(config: Any, *, noise: torch.Tensor, conditioning: Conditioning) -> None:
    """Raise BadInput unless a UNet of this config can take these tensors; reads shapes only."""
    channels = config["out_channels"]
    if config["in_channels"] != 2 * channels:
        raise BadInput.expected("UNet: in_channels", f"{2 * channels}, latents and start picture", config["in_channels"])
    check_latents(noise, channels=channels, what="noise")
    rule = FRAME_RULES["svd"]
    rule.check_frames(noise.shape[2])
    for size, name in zip(noise.shape[3:], ("height", "width"), strict=True):
        rule.check_size(name, size * rule.spatial_factor)
    expected = (1, channels, 1, *noise.shape[3:])
    if tuple(conditioning.start.shape) != expected:
        raise BadInput.expected("start frame", list(expected), list(conditioning.start.shape))
    width = config["cross_attention_dim"]
    if tuple(conditioning.embedding.shape) != (1, 1, width):
        raise BadInput.expected("picture embedding", f"{[1, 1, width]}, as this UNet reads", list(conditioning.embedding.shape))
    ids = config["projection_class_embeddings_input_dim"] // config["addition_time_embed_dim"]
    if tuple(conditioning.time_ids.shape) != (1, ids):
        raise BadInput.expected("added time ids", f"{[1, ids]}, as this UNet reads", list(conditioning.time_ids.shape))


def _call(
    unet: Any, conditioning: Conditioning, *, guidance: torch.Tensor | None, noise: torch.Tensor, dtype: torch.dtype
) -> Call:
    device, frames = noise.device, noise.shape[2]
    embedding, start, time_ids = (
        tensor.to(device=device, dtype=dtype) for tensor in (conditioning.embedding, conditioning.start, conditioning.time_ids)
    )
    beside = start.transpose(1, 2).repeat(1, frames, 1, 1, 1)
    if guidance is not None:
        # Without a picture first, with it second, in one call: as diffusers has it, to the last bit.
        guidance = guidance.to(device)
        embedding, beside = (torch.cat([torch.zeros_like(tensor), tensor]) for tensor in (embedding, beside))
        time_ids = torch.cat([time_ids, time_ids])

    def call(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        seen = latents if guidance is None else torch.cat([latents, latents])
        prediction: torch.Tensor = unet(
            torch.cat([seen.to(dtype), beside], dim=2),
            timestep,
            encoder_hidden_states=embedding,
            added_time_ids=time_ids,
            return_dict=False,
        )[0].float()
        if guidance is None:
            return prediction
        without, with_picture = prediction.chunk(2)
        return without + guidance * (with_picture - without)

    return call


def _blocks(unet: Any) -> list[Any]:
    return [*unet.down_blocks, unet.mid_block, *unet.up_blocks]


def _check_finite(latents: torch.Tensor, *, step: int, total: int) -> None:
    if not bool(torch.isfinite(latents).all()):
        raise NotFinite(
            f"denoising: expected numbers after step {step} of {total}, got inf or nan. The clip would be black, so nothing is "
            "kept. Try it with a lower guidance; if that does not help, the model's file is damaged."
        )
