"""8-bit frames -> latents through a 2D VAE, one frame at a time: nothing holds more than one frame of pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from .decode import latent_scale, vae_dtype
from .errors import BadInput, Canceled, Stop


def encode_pixels(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """One picture [1, 3, H, W] in -1..1 on the VAE's device -> its scaled latent [1, C, H/8, W/8], float32.

    Takes diffusers' AutoencoderKL or InvokeAI's FLUX AutoEncoder. The distribution's mean is taken, not a sample: one
    picture gives one latent.
    """
    scale = latent_scale(vae)
    with torch.no_grad():
        pixels = pixels.to(vae_dtype(vae))
        if scale is None:
            latent: torch.Tensor = vae.encode(pixels, sample=False)
        else:
            latent = (vae.encode(pixels).latent_dist.mode() - scale.shift) * scale.factor
    return latent.float()


def encode_frames(
    vae: Any,
    frames: Iterable[np.ndarray],
    *,
    total: int,
    stop: Stop | None = None,
    on_frame: Callable[[int, int], None] | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Encode `total` uint8 [H, W, 3] RGB frames into latents [1, C, F, h, w], float32 on the CPU.

    `on_frame(i, total)` is told after each. Raises BadInput where the frames are fewer, and Canceled between frames where
    `stop()` answers True.
    """
    latents: list[torch.Tensor] = []
    for frame in frames:
        if stop is not None and stop():
            raise Canceled
        pixels = torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].float() / 127.5 - 1.0
        latents.append(encode_pixels(vae, pixels if device is None else pixels.to(device)).cpu())
        if on_frame is not None:
            on_frame(len(latents), total)
    if len(latents) != total:
        raise BadInput.expected("frames", f"{total} that can be read", len(latents))
    return torch.stack(latents, dim=2)
