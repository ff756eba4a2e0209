"""A black and white picture -> how much of each latent cell is made anew."""

from __future__ import annotations

import numpy as np
import torch

from .errors import BadInput


def latent_mask(mask: np.ndarray, *, height: int, width: int, cell: int) -> torch.Tensor:
    """uint8 [height, width], white (255) made anew and black kept -> float32 [1, 1, 1, height/cell, width/cell] in 0..1.

    `cell` pixels of each side share one latent cell, which takes their mean. Raises BadInput for a mask of another size.
    """
    if mask.shape != (height, width):
        got = f"{mask.shape[1]}x{mask.shape[0]}" if mask.ndim == 2 else f"an array of shape {list(mask.shape)}"
        raise BadInput.expected("mask", f"{width}x{height} pixels, as the clip has", got, f"{width}x{height}")
    # A copy, because torch wants memory that it could write to and a picture's is read-only.
    pixels = torch.from_numpy(np.array(mask, order="C")).float()[None, None] / 255.0
    return torch.nn.functional.avg_pool2d(pixels, cell)[:, :, None]
