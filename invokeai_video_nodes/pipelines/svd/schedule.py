"""Steps -> a fresh Euler scheduler (Karras et al. 2022, https://arxiv.org/abs/2206.00364) as SVD's checkpoint has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import EulerDiscreteScheduler

from ..errors import BadInput

# The public releases' scheduler_config.json.
PUBLIC_SVD: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "interpolation_type": "linear",
    "sigma_min": 0.002,
    "sigma_max": 700.0,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}
_CLASS = "EulerDiscreteScheduler"


def svd_scheduler(*, steps: int, config: Mapping[str, Any] | None = None) -> Any:
    """Return a new EulerDiscreteScheduler at its beginning; `config` is the checkpoint's (None: the public one).

    Raises BadInput for less than one step, and for a scheduler of another class or that predicts something else than v.
    """
    if steps < 1:
        raise BadInput.expected("steps", "1 or more", steps, 1)
    settings = dict(PUBLIC_SVD if config is None else config)
    name = settings.get("_class_name", _CLASS)
    if name != _CLASS:
        raise BadInput.expected("scheduler", f"{_CLASS}, which this model was trained for", name, _CLASS)
    if settings.get("prediction_type") != "v_prediction":
        raise BadInput.expected("scheduler: prediction_type", "v_prediction", settings.get("prediction_type"), "v_prediction")
    scheduler = EulerDiscreteScheduler.from_config(settings)
    scheduler.set_timesteps(steps)
    return scheduler
