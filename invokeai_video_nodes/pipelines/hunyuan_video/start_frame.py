"""An image -> the latent of a clip's first frame."""

from __future__ import annotations

from typing import Any

import torch

from ..decode import vae_dtype
from ..errors import BadInput
from ..shapes import FRAME_RULES


def encode_start_frame(vae: Any, image: torch.Tensor) -> torch.Tensor:
    """Encode one image [1, 3, H, W] in -1..1 to a scaled latent [1, C, 1, h, w], float32, with a HunyuanVideo VAE.

    The distribution's mean is taken, not a sample: one image gives one latent. Raises BadInput for sizes off the grid of 16.
    """
    if image.ndim != 4 or image.shape[:2] != (1, 3):
        raise BadInput.expected("image", "[1, 3, height, width]", list(image.shape))
    rule = FRAME_RULES["hunyuan-video"]
    rule.check_size("image height", image.shape[2])
    rule.check_size("image width", image.shape[3])
    with torch.no_grad():
        latent: torch.Tensor = vae.encode(image.unsqueeze(2).to(vae_dtype(vae))).latent_dist.mode()
    return latent.float() * vae.config.scaling_factor
