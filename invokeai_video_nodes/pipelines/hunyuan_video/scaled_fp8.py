"""Weights in fp8 with their scales, as repackaged files store them -> weights in the dtype that the model computes with.

    blocks.0.linear.weight         float8_e4m3fn, [rows, columns]
    blocks.0.linear.weight_scale   a number, or one for each row; scale_weight in other files
    blocks.0.linear.scale_input    for kernels that compute in fp8: not used, as are comfy_quant and the mark scaled_fp8
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from ..errors import BadInput

_SCALES = (".weight_scale", ".scale_weight")
_UNUSED = (".scale_input", ".input_scale", ".comfy_quant")
_MARK = "scaled_fp8"


def is_weight(name: str) -> bool:
    """Whether a key of a file is a weight, and not something that fp8 files keep beside them."""
    return not name.endswith((*_SCALES, *_UNUSED)) and name.rpartition(".")[2] != _MARK


def check_scales(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise BadInput for a scale without its weight, or one that is neither a number nor one for each row of it."""
    for name, shape in shapes.items():
        weight = _weight_of(name)
        if weight is None:
            continue
        if weight not in shapes:
            raise BadInput.expected(name, f"a weight {weight} that it scales", "none")
        if math.prod(shape) not in (1, shapes[weight][0]):
            expected = f"one number, or one for each of the {shapes[weight][0]} rows (scales of blocks are not supported)"
            raise BadInput.expected(name, expected, list(shape))


def opened(weights: dict[str, torch.Tensor], *, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], int]:
    """The weights in `dtype`, scaled, and how many of them were fp8; takes them out of `weights` one by one to save memory."""
    check_scales({name: tuple(value.shape) for name, value in weights.items()})
    scales = {weight: weights.pop(name) for name in list(weights) if (weight := _weight_of(name)) is not None}
    found: dict[str, torch.Tensor] = {}
    fp8 = 0
    for name in [name for name in weights if is_weight(name)]:
        value = weights.pop(name)
        fp8 += value.dtype.itemsize == 1
        if name in scales:
            scale = scales[name].float()
            value = value.float() * scale.reshape(-1, *[1] * (value.ndim - 1) if scale.numel() > 1 else ())
        found[name] = value.to(dtype)
    return found, fp8


def _weight_of(name: str) -> str | None:
    ending = next((ending for ending in _SCALES if name.endswith(ending)), None)
    return None if ending is None else name.removesuffix(ending) + ".weight"
