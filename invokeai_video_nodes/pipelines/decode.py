"""Latents -> 8-bit frames through a 2D VAE, one frame at a time: nothing holds more than one decoded frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .errors import BadInput, Canceled, Stop
from .shapes import check_latents

OnFrame = Callable[[int, int], None]


@dataclass(frozen=True)
class LatentScale:
    """Latents as the denoiser sees them = (VAE latents - shift) * factor."""

    factor: float
    shift: float


def decode_frames(
    vae: Any,
    latents: torch.Tensor,
    *,
    stop: Stop | None = None,
    on_frame: OnFrame | None = None,
    device: torch.device | None = None,
) -> Iterator[np.ndarray]:
    """Yield the frames of `latents` [1, C, F, h, w] as uint8 [8h, 8w, 3] RGB arrays.

    Takes diffusers' AutoencoderKL (scaling and shift from its config) or InvokeAI's FLUX AutoEncoder (scales by
    itself). Each frame moves to `device` (None: stays) and to the VAE's dtype. Values are rounded to 8 bits, not cut.
    `on_frame(i, total)` is told after each frame has been decoded and before it is yielded. Raises BadInput at once,
    before any decoding, where the channels differ, and Canceled between frames where `stop()` answers True.
    """
    check_latents(latents)
    channels = latent_channels(vae)
    if latents.shape[1] != channels:
        raise BadInput.expected("VAE: latent channels", f"{latents.shape[1]} as the latents have", channels, latents.shape[1])
    return _decode_each(vae, latents, stop=stop, on_frame=on_frame, device=device)


def decode_frame(vae: Any, latent: torch.Tensor) -> np.ndarray:
    """One latent [1, C, h, w] on the VAE's device -> uint8 [8h, 8w, 3] RGB."""
    scale = latent_scale(vae)
    with torch.no_grad():
        latent = latent.to(vae_dtype(vae))
        if scale is None:
            pixels = vae.decode(latent)
        else:
            pixels = vae.decode(latent / scale.factor + scale.shift, return_dict=False)[0]
        return to_uint8(pixels[0])


def to_uint8(pixels: torch.Tensor) -> np.ndarray:
    """Pixels [3, H, W] in -1..1 (clamped) -> uint8 [H, W, 3], rounded."""
    frame = (pixels.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    array: np.ndarray = frame.permute(1, 2, 0).contiguous().cpu().numpy()
    return array


def latent_scale(vae: Any) -> LatentScale | None:
    """The scaling that the caller has to undo, or None for FLUX's AutoEncoder, which does so itself."""
    config = getattr(vae, "config", None)
    factor = getattr(config, "scaling_factor", None)
    return None if factor is None else LatentScale(float(factor), float(getattr(config, "shift_factor", None) or 0.0))


def latent_channels(vae: Any) -> int:
    """Channels of the latents that this VAE decodes."""
    channels = getattr(getattr(vae, "config", None), "latent_channels", None)
    return int(vae.decoder.conv_in.in_channels if channels is None else channels)


def vae_dtype(vae: Any) -> torch.dtype:
    """The dtype that the VAE computes in."""
    dtype: torch.dtype = next(vae.parameters()).dtype
    return dtype


def _decode_each(
    vae: Any, latents: torch.Tensor, *, stop: Stop | None, on_frame: OnFrame | None, device: torch.device | None
) -> Iterator[np.ndarray]:
    total = latents.shape[2]
    for index in range(total):
        if stop is not None and stop():
            raise Canceled
        # No name for the frame here: a suspended generator would keep it alive beside the next one.
        yield _told(decode_frame(vae, latents[:, :, index].to(device or latents.device)), on_frame, index + 1, total)


def _told(frame: np.ndarray, on_frame: OnFrame | None, index: int, total: int) -> np.ndarray:
    if on_frame is not None:
        on_frame(index, total)
    return frame
