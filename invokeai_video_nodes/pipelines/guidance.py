"""Classifier-free guidance (Ho & Salimans 2022, https://arxiv.org/abs/2207.12598), in InvokeAI's convention.

`negative + g * (positive - negative)`: g = 1 is no guidance. diffusers' Z-Image counts from the positive side, so its
scale is g - 1.
"""

from __future__ import annotations

import torch

from .errors import BadInput


def is_guided(guidance_scale: float, negative: torch.Tensor | None) -> bool:
    """Whether a second model call per step is needed. Raises BadInput for a scale below 1."""
    if guidance_scale < 1.0:
        raise BadInput.expected("guidance_scale", "1.0 or more", guidance_scale, 1.0)
    return guidance_scale > 1.0 and negative is not None


def guide(positive: torch.Tensor, negative: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """Two predictions of one shape -> the guided one."""
    return negative + guidance_scale * (positive - negative)
