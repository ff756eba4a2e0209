"""The sampling loop of flow models: noise and a velocity function in, latents out; one step at a time, cancelable.

x_sigma = (1 - sigma) * x0 + sigma * noise, velocity v = noise - x0 (rectified flow, https://arxiv.org/abs/2209.03003),
so x0 = x - sigma * v at any time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from .errors import BadInput, Canceled, NotFinite, Stop


class Velocity(Protocol):
    """Latents [1, C, F, h, w] at the scheduler's `timestep` -> velocity of the same shape, float32. `step` counts from 0."""

    def __call__(self, latents: torch.Tensor, *, timestep: torch.Tensor, step: int, total: int) -> torch.Tensor: ...


class OnStep(Protocol):
    """Told after every step: 1-based `step` of `total`, the estimate of the clean latents, and the latents."""

    def __call__(self, step: int, total: int, x0_estimate: torch.Tensor, latents: torch.Tensor) -> None: ...


@dataclass(frozen=True)
class HeldFrame:
    """Frame 0 kept at its clean latent for the first `steps`, then released into the running denoise."""

    clean: torch.Tensor
    """[1, C, 1, h, w]"""
    noise: torch.Tensor
    """[1, C, 1, h, w]; what the frame is mixed with when it is released."""
    steps: int

    @classmethod
    def build(cls, *, clean: torch.Tensor, latents: torch.Tensor, sigma: float, strength: float, total: int) -> HeldFrame:
        """Motion strength 0 holds in all `total` steps, 1 in the first only, linear between.

        `latents` are at noise level `sigma`; at 1 their frame 0 is the noise, below it the noise is what remains of it.
        """
        if not 0.0 <= strength <= 1.0:
            raise BadInput.expected("motion_strength", "0.0 to 1.0", strength, min(max(strength, 0.0), 1.0))
        noise = (latents[:, :, :1] - (1.0 - sigma) * clean) / sigma
        return cls(clean=clean, noise=noise, steps=max(1, round((1.0 - strength) * total)))

    def placed(self, latents: torch.Tensor, *, step: int) -> torch.Tensor:
        """The latents that the model sees in 0-based `step`."""
        return torch.cat([self.clean, latents[:, :, 1:]], dim=2) if step < self.steps else latents

    def released(self, latents: torch.Tensor, *, step: int, total: int, sigma_next: torch.Tensor) -> torch.Tensor:
        """The latents after 0-based `step`: frame 0 exact if it is never released, else noised to the next level."""
        if step + 1 != self.steps:
            return latents
        frame = self.clean if self.steps == total else (1.0 - sigma_next) * self.clean + sigma_next * self.noise
        return torch.cat([frame, latents[:, :, 1:]], dim=2)


@dataclass(frozen=True)
class KeptRegion:
    """What a mask keeps of a clip: after each step it is put back at the level of noise that the step has reached."""

    clean: torch.Tensor
    """[1, C, F, h, w]"""
    noise: torch.Tensor
    """[1, C, F, h, w]"""
    change: torch.Tensor
    """[1, 1, F or 1, h, w] in 0..1: 1 is made anew, 0 is kept."""

    def put_back(self, latents: torch.Tensor, *, sigma: torch.Tensor) -> torch.Tensor:
        """The latents with the kept part at noise level `sigma`."""
        return self.change * latents + (1.0 - self.change) * noised(self.clean, noise=self.noise, sigma=sigma)


def sample(
    velocity: Velocity,
    *,
    latents: torch.Tensor,
    scheduler: Any,
    generator: torch.Generator | None = None,
    held: HeldFrame | None = None,
    kept: KeptRegion | None = None,
    on_step: OnStep | None = None,
    stop: Stop | None = None,
) -> torch.Tensor:
    """Run `scheduler` from its first timestep to its last and return the latents, float32.

    `generator` feeds samplers that add noise (lcm). `stop` is asked before every model call; True raises Canceled. Raises
    NotFinite after the first step whose latents are not all numbers.
    """
    total, scale = steps_of(scheduler), scheduler.config.num_train_timesteps
    step = 0
    for index, timestep in enumerate(scheduler.timesteps):
        if stop is not None and stop():
            raise Canceled
        seen = latents if held is None else held.placed(latents, step=step)
        v = velocity(seen, timestep=timestep, step=step, total=total)
        latents = scheduler.step(v, timestep, seen, return_dict=False, generator=generator)[0]
        is_half_step = getattr(scheduler, "dt", None) is not None and index + 1 < len(scheduler.timesteps)
        if is_half_step:
            continue
        if held is not None:
            latents = held.released(latents, step=step, total=total, sigma_next=scheduler.sigmas[index + 1])
        if kept is not None:
            latents = kept.put_back(latents, sigma=scheduler.sigmas[index + 1])
        step += 1
        _check_finite(latents, step=step, total=total)
        if on_step is not None:
            on_step(step, total, seen - timestep / scale * v, latents)
    return latents


def _check_finite(latents: torch.Tensor, *, step: int, total: int) -> None:
    if not bool(torch.isfinite(latents).all()):
        raise NotFinite(
            f"denoising: expected numbers after step {step} of {total}, got inf or nan. The clip would be black, so nothing is kept. "
            "Try it without LoRAs and with a lower guidance or shift; if that does not help, the model's file is damaged."
        )


def noised(clean: torch.Tensor, *, noise: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
    """Clean latents at noise level `sigma`: 0 = clean, 1 = the noise alone."""
    return (1.0 - sigma) * clean + sigma * noise


def steps_of(scheduler: Any) -> int:
    """Steps as the user counts them: Heun's two evaluations are one step."""
    return len(scheduler.timesteps) // 2 + 1 if hasattr(scheduler, "state_in_first_order") else len(scheduler.timesteps)
