"""Scheduler names and a motion module's noise schedule -> a fresh diffusers scheduler; what suits which module.

The names are InvokeAI's. Its er_sde is not among them: that scheduler is no class of diffusers.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

from ..errors import BadInput

# What the public motion modules were trained with, and the settings of diffusers' and AnimateDiff's own examples.
PUBLIC_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "steps_offset": 1,
    "timestep_spacing": "linspace",
    "skip_prk_steps": True,
}

_KARRAS = {"use_karras_sigmas": True}
# Name -> diffusers' class and its settings; *_k: with the noise levels of Karras et al. 2022 (https://arxiv.org/abs/2206.00364).
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "deis_k": ("DEISMultistepScheduler", _KARRAS),
    "lms": ("LMSDiscreteScheduler", {}),
    "lms_k": ("LMSDiscreteScheduler", _KARRAS),
    "pndm": ("PNDMScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "heun_k": ("HeunDiscreteScheduler", _KARRAS),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_k": ("EulerDiscreteScheduler", _KARRAS),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "kdpm_2": ("KDPM2DiscreteScheduler", {}),
    "kdpm_2_k": ("KDPM2DiscreteScheduler", _KARRAS),
    "kdpm_2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "kdpm_2_a_k": ("KDPM2AncestralDiscreteScheduler", _KARRAS),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", {"solver_order": 2}),
    "dpmpp_2s_k": ("DPMSolverSinglestepScheduler", {"solver_order": 2, **_KARRAS}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"solver_order": 2}),
    "dpmpp_2m_k": ("DPMSolverMultistepScheduler", {"solver_order": 2, **_KARRAS}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2m_sde_k": ("DPMSolverMultistepScheduler", {"solver_order": 2, "algorithm_type": "sde-dpmsolver++", **_KARRAS}),
    "dpmpp_3m": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "dpmpp_3m_k": ("DPMSolverMultistepScheduler", {"solver_order": 3, **_KARRAS}),
    "dpmpp_sde": ("DPMSolverSDEScheduler", {"noise_sampler_seed": 0}),
    "dpmpp_sde_k": ("DPMSolverSDEScheduler", {"noise_sampler_seed": 0, **_KARRAS}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "unipc_k": ("UniPCMultistepScheduler", _KARRAS),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}


def check_name(name: str) -> None:
    """Raise BadInput unless a scheduler of this name runs here."""
    if name not in SCHEDULERS:
        raise BadInput.expected("scheduler", f"one of {', '.join(SCHEDULERS)}", repr(name), "ddim")


@dataclass(frozen=True)
class Preset:
    """What suits one version of the motion module."""

    scheduler: str
    steps: int
    guidance_scale: float
    beta_schedule: str = "linear"

    def __post_init__(self) -> None:
        check_name(self.scheduler)


PRESETS: dict[str, Preset] = {
    "v1": Preset(scheduler="ddim", steps=25, guidance_scale=7.5),
    "v2": Preset(scheduler="ddim", steps=25, guidance_scale=7.5),
    "v3": Preset(scheduler="ddim", steps=25, guidance_scale=7.5),
    "animatelcm": Preset(scheduler="lcm", steps=6, guidance_scale=2.0),
}


def make_scheduler(name: str, *, beta_schedule: str = "linear", config: Mapping[str, Any] | None = None, seed: int = 0) -> Any:
    """Return a new scheduler. `config` is the main model's own (its prediction_type counts), `beta_schedule` the module's.

    `seed` is for dpmpp_sde, which draws its noise by itself.
    """
    check_name(name)
    class_name, settings = SCHEDULERS[name]
    if "noise_sampler_seed" in settings:
        settings = settings | {"noise_sampler_seed": seed}
    scheduler_class = getattr(diffusers, class_name)
    known = inspect.signature(scheduler_class).parameters
    merged = PUBLIC_SCHEDULE | dict(config or {}) | {"beta_schedule": beta_schedule, "clip_sample": False, "trained_betas": None} | settings
    return scheduler_class(**{key: value for key, value in merged.items() if key in known})


def set_steps(scheduler: Any, *, steps: int, strength: float = 1.0, device: torch.device | None = None) -> torch.Tensor:
    """Set `steps` on the scheduler; return the timesteps that run at `strength`: the last floor(steps * strength) of them.

    Raises BadInput for a strength that leaves none, and for more steps than a few-step scheduler was distilled from.
    """
    if steps < 1:
        raise BadInput.expected("steps", "1 or more", steps, 1)
    most = scheduler.config.get("original_inference_steps")
    if most is not None and steps > most:
        raise BadInput.expected("steps", f"at most {most} with this scheduler", steps, most)
    if not 0.0 < strength <= 1.0:
        raise BadInput.expected("strength", "more than 0.0 and at most 1.0", strength, 1.0 if strength > 1.0 else f"{1 / steps:g}")
    # 0.29 * 100 is step 29 although it is 28.999... in binary.
    kept = math.floor(steps * strength + 1e-6)
    if kept < 1:
        raise BadInput.expected("strength", f"at least one of the {steps} steps", strength, f"{1 / steps:.4g}")
    scheduler.set_timesteps(steps, device=device)
    timesteps: torch.Tensor = scheduler.timesteps[(steps - kept) * scheduler.order :]
    return timesteps
