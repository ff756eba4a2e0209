"""Settings -> a fresh flow-matching scheduler with its timesteps set, as diffusers' ZImagePipeline sets them.

One sigma grid for all three samplers: the checkpoint's own (its shift, or the resolution-dependent one where its config
says so), or the `shift` that overrides it. The frame count never enters. Schedulers hold state, so every run gets a new
one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FlowMatchLCMScheduler

from .errors import BadInput

SchedulerName = Literal["euler", "heun", "lcm"]

# The public Z-Image release's scheduler_config.json.
PUBLIC_Z_IMAGE: dict[str, Any] = {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": False}

# Below it the first noise level is no number in float32; above it all steps but the last are at nearly the same level.
MIN_SHIFT, MAX_SHIFT = 0.01, 100.0

# Steps are counted on a grid of 1/steps: 0.29 * 100 must be step 29 although it is 28.999... in binary.
_GRID_TOLERANCE = 1e-6


def flow_match_scheduler(
    name: SchedulerName,
    *,
    steps: int,
    image_tokens: int,
    config: Mapping[str, Any] | None = None,
    shift: float | None = None,
    denoising_start: float = 0.0,
    denoising_end: float = 1.0,
) -> Any:
    """Return a new diffusers scheduler at its beginning.

    `config` is the checkpoint's scheduler config (None: the public Z-Image one), `image_tokens` = height/16 * width/16.
    `denoising_start`/`denoising_end` keep that part of the steps. Raises BadInput for settings that leave no step.
    """
    if name not in get_args(SchedulerName):
        raise BadInput.expected("scheduler", f"one of {', '.join(get_args(SchedulerName))}", repr(name), "euler")
    if steps < 1:
        raise BadInput.expected("steps", "1 or more", steps, 1)
    settings = dict(PUBLIC_Z_IMAGE if config is None else config)
    if shift is not None:
        if not MIN_SHIFT <= shift <= MAX_SHIFT:
            nearest = MIN_SHIFT if shift < MIN_SHIFT else MAX_SHIFT
            raise BadInput.expected("shift", f"{MIN_SHIFT:g} to {MAX_SHIFT:g}", shift, f"{nearest:g}")
        settings.update(shift=shift, use_dynamic_shifting=False)

    euler = FlowMatchEulerDiscreteScheduler.from_config(settings)
    mu = resolution_shift(image_tokens, settings) if euler.config.use_dynamic_shifting else None
    euler.set_timesteps(sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1], mu=mu)
    first, last = _kept_steps(steps, denoising_start, denoising_end)
    sigmas, timesteps = euler.sigmas[first : last + 1], euler.timesteps[first:last]

    scheduler = euler if name == "euler" else _other_sampler(name, euler)
    if name == "heun":
        # Heun evaluates the model twice per step, except in the last one.
        timesteps = torch.cat([timesteps[:1], timesteps[1:].repeat_interleave(2)])
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    scheduler.sigmas, scheduler.timesteps = sigmas, timesteps
    scheduler.num_inference_steps = last - first
    scheduler.set_begin_index(0)
    return scheduler


def resolution_shift(image_tokens: int, config: Mapping[str, Any]) -> float:
    """mu of a resolution-dependent schedule: linear in the tokens of one frame (FLUX, diffusers' `calculate_shift`)."""
    base_tokens, max_tokens = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base_shift, max_shift = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (max_shift - base_shift) / (max_tokens - base_tokens)
    return float(image_tokens * slope + base_shift - slope * base_tokens)


def _kept_steps(steps: int, start: float, end: float) -> tuple[int, int]:
    """Fractions of the schedule -> the half-open range of steps that run."""
    for name, value in (("denoising_start", start), ("denoising_end", end)):
        if not 0.0 <= value <= 1.0:
            raise BadInput.expected(name, "0.0 to 1.0", value, min(max(value, 0.0), 1.0))
    first, last = (math.floor(fraction * steps + _GRID_TOLERANCE) for fraction in (start, end))
    if last <= first:
        expected = f"a part of the schedule with at least one of its {steps} steps"
        nearest = f"{min(first, steps - 1) / steps:g} to {min(first + 1, steps) / steps:g}"
        raise BadInput.expected("denoising_start to denoising_end", expected, f"{start:g} to {end:g}", nearest)
    return first, last


def _other_sampler(name: SchedulerName, euler: Any) -> Any:
    # Their own grids differ from the checkpoint's (Heun shifts twice), so only the class is theirs; shift 1 changes
    # nothing.
    cls = FlowMatchHeunDiscreteScheduler if name == "heun" else FlowMatchLCMScheduler
    scheduler = cls(num_train_timesteps=euler.config.num_train_timesteps, shift=1.0)
    if name == "heun":
        scheduler.prev_derivative = scheduler.dt = scheduler.sample = None
    return scheduler
