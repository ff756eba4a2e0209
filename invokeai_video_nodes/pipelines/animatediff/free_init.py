"""FreeInit (https://arxiv.org/abs/2312.07537): denoise again from the slow, coarse part of the result and fresh fine noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from einops import rearrange
from torch import fft

from ..errors import BadInput

Filter = Literal["butterworth", "gaussian", "ideal"]

_AXES = (-3, -2, -1)  # frames, height, width


@dataclass(frozen=True)
class FreeInit:
    """How often, and what counts as slow and coarse; the defaults are diffusers'."""

    iterations: int = 3
    fast: bool = False
    """Coarse to fine: the first iterations take fewer steps."""
    method: Filter = "butterworth"
    order: int = 4
    """Of the Butterworth filter: the higher, the sharper."""
    spatial_stop: float = 0.25
    temporal_stop: float = 0.25
    """Frequencies below these are kept: more than 0 to 1."""

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise BadInput.expected("FreeInit: iterations", "1 or more", self.iterations, 1)
        if self.method not in get_args(Filter):
            raise BadInput.expected("FreeInit: filter", f"one of {', '.join(get_args(Filter))}", repr(self.method), "butterworth")
        if self.order < 1:
            raise BadInput.expected("FreeInit: order", "1 or more", self.order, 1)
        for name, value in (("spatial", self.spatial_stop), ("temporal", self.temporal_stop)):
            if not 0.0 < value <= 1.0:
                raise BadInput.expected(f"FreeInit: {name} stop frequency", "more than 0.0 to 1.0", value, 1.0 if value > 1.0 else 0.25)

    def check_scheduler(self, scheduler: Any, *, name: str = "") -> None:
        """Raise BadInput unless the scheduler keeps latents at unit variance, as the mixing of frequencies supposes."""
        if hasattr(scheduler, "sigmas"):
            raise BadInput.expected("scheduler with FreeInit", "ddim, ddpm, pndm, lcm or tcd", name or type(scheduler).__name__, "ddim")

    def steps(self, iteration: int, steps: int) -> int:
        """Steps of this iteration, which counts from 0."""
        return max(1, int(steps / self.iterations * (iteration + 1))) if self.fast else steps

    def noise_again(self, latents: torch.Tensor, *, noise: torch.Tensor, scheduler: Any, generator: torch.Generator | None) -> torch.Tensor:
        """The result [1, C, F, h, w] at full noise, with its high frequencies from fresh noise of `generator` (on the CPU)."""
        last = torch.tensor([scheduler.config.num_train_timesteps - 1], device=latents.device)
        noised = scheduler.add_noise(latents, noise, last).float()
        fresh = torch.randn(latents.shape, generator=generator).to(latents.device)
        low = self.low_pass(latents.shape[2], latents.shape[3], latents.shape[4]).to(latents.device)
        mixed = _spectrum(noised) * low + _spectrum(fresh) * (1 - low)
        return fft.ifftn(fft.ifftshift(mixed, dim=_AXES), dim=_AXES).real.to(latents.dtype)

    def low_pass(self, frames: int, height: int, width: int) -> torch.Tensor:
        """What is kept of each frequency, 0 to 1, [frames, height, width] with zero frequency in the middle, float32."""
        t, h, w = (2 * np.arange(count) / count - 1 for count in (frames, height, width))
        t = self.spatial_stop / self.temporal_stop * t
        squared = rearrange(t**2, "t -> t 1 1") + rearrange(h**2, "h -> h 1") + w**2
        if self.method == "butterworth":
            kept = 1 / (1 + (squared / self.spatial_stop**2) ** self.order)
        elif self.method == "gaussian":
            kept = np.exp(-1 / (2 * self.spatial_stop**2) * squared)
        else:
            # As diffusers and FreeInit have it: a squared distance against twice a frequency.
            kept = (squared <= self.spatial_stop * 2).astype(np.float64)
        return torch.from_numpy(kept).float()


def _spectrum(clip: torch.Tensor) -> torch.Tensor:
    return fft.fftshift(fft.fftn(clip, dim=_AXES), dim=_AXES)
