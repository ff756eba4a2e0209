"""An image -> the first frame of a clip: its latent, and latents that start from it."""

from __future__ import annotations

from typing import Any

import torch

from ..encode import encode_pixels
from ..errors import BadInput
from ..shapes import FRAME_RULES, check_latents, seeded_noise


def encode_frame(vae: Any, image: torch.Tensor) -> torch.Tensor:
    """Encode one image [1, 3, H, W] in -1..1 to a scaled latent [1, C, 1, H/8, W/8], float32.

    Takes diffusers' AutoencoderKL or InvokeAI's FLUX AutoEncoder. The distribution's mean is taken, not a sample: one
    image gives one latent. Raises BadInput for sizes off the grid of 16.
    """
    if image.ndim != 4 or image.shape[:2] != (1, 3):
        raise BadInput.expected("image", "[1, 3, height, width]", list(image.shape))
    rule = FRAME_RULES["z-image-video"]
    rule.check_size("image height", image.shape[2])
    rule.check_size("image width", image.shape[3])
    return encode_pixels(vae, image).unsqueeze(2)


def noised_start(frame_latent: torch.Tensor, *, num_frames: int, noise_strength: float, seed: int) -> torch.Tensor:
    """Latents [1, C, F, h, w] of a clip that starts at `frame_latent` [1, C, 1, h, w]; float32 on its device.

    All frames are seeded noise; frame 0 is (1 - noise_strength) * frame + noise_strength * noise. 1.0 is pure noise.
    """
    check_latents(frame_latent, what="frame_latent")
    if frame_latent.shape[2] != 1:
        raise BadInput.expected("frame_latent: frames", 1, frame_latent.shape[2], 1)
    FRAME_RULES["z-image-video"].check_frames(num_frames)
    if not 0.0 <= noise_strength <= 1.0:
        raise BadInput.expected("noise_strength", "0.0 to 1.0", noise_strength, min(max(noise_strength, 0.0), 1.0))
    _, channels, _, height, width = frame_latent.shape
    latents = seeded_noise((1, channels, num_frames, height, width), seed).to(frame_latent.device)
    latents[:, :, :1] = (1.0 - noise_strength) * frame_latent.float() + noise_strength * latents[:, :, :1]
    return latents
