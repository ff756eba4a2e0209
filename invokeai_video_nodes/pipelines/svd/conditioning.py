"""Stable Video Diffusion: a start picture -> what the UNet is told about it, as diffusers' pipeline computes it.

    picture [1, 3, H, W] in 0..1 -> blurred, 224x224 -> CLIP's image embedding [1, 1, d]
    picture in -1..1 + augmentation * noise          -> VAE latent [1, C, 1, h, w], not scaled
    fps - 1, motion bucket, augmentation             -> added time ids [1, 3]

Both noises, the picture's and the clip's, come from one seeded CPU generator, in that order.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..decode import vae_dtype
from ..errors import BadInput, Stop
from ..shapes import FRAME_RULES, ClipShape
from ..stopping import cancelable

LATENT_CHANNELS = 4
MAX_MOTION_BUCKET = 255
MAX_AUGMENTATION = 10.0
CLIP_SIDE = 224  # pixels
_NO_PICTURE = ("start image", "an image, because this model continues one", "none")


@dataclass(frozen=True)
class Motion:
    """How the clip moves; values that exist are valid (BadInput otherwise)."""

    fps: int = 7
    """Frames per second that the motion is meant for; the model was trained on 5 to 30."""
    motion_bucket_id: int = 127
    """0 to 255: 0 hardly moves, 255 moves most."""
    noise_aug_strength: float = 0.02
    """Noise on the picture, in its own range of -1..1: the more, the freer the clip is to leave the picture."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.fps) and self.fps >= 1):
            raise BadInput.expected("fps", "1 or more", self.fps, 1)
        if not 0 <= self.motion_bucket_id <= MAX_MOTION_BUCKET:
            bucket = 0 if self.motion_bucket_id < 0 else MAX_MOTION_BUCKET
            raise BadInput.expected("motion_bucket_id", f"0 to {MAX_MOTION_BUCKET}", self.motion_bucket_id, bucket)
        if not 0.0 <= self.noise_aug_strength <= MAX_AUGMENTATION:
            nearest = MAX_AUGMENTATION if self.noise_aug_strength > MAX_AUGMENTATION else 0.0
            raise BadInput.expected("noise_aug_strength", f"0.0 to {MAX_AUGMENTATION}", self.noise_aug_strength, nearest)

    def time_ids(self) -> torch.Tensor:
        """[1, 3] float32. The model was trained with fps - 1 in the first place."""
        return torch.tensor([[self.fps - 1, self.motion_bucket_id, self.noise_aug_strength]], dtype=torch.float32)


@dataclass(frozen=True)
class Noise:
    """What a seed gives: float32, on the CPU."""

    picture: torch.Tensor
    """[1, 3, H, W]"""
    latents: torch.Tensor
    """[1, C, F, h, w]"""


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told about the start picture and the motion."""

    embedding: torch.Tensor
    """[1, 1, d], CLIP's; zeros stand for no picture."""
    start: torch.Tensor
    """[1, C, 1, h, w], the noised picture's latent, without the VAE's scaling."""
    time_ids: torch.Tensor
    """[1, 3]"""


def draw_noise(clip: ClipShape, seed: int) -> Noise:
    """The noise of the picture, then that of the clip, in diffusers' order: its latents have frames before channels."""
    generator = torch.Generator("cpu").manual_seed(seed)
    _, channels, frames, height, width = clip.latent_shape
    picture = torch.randn(1, 3, clip.height, clip.width, generator=generator)
    latents = torch.randn(1, frames, channels, height, width, generator=generator)
    return Noise(picture=picture, latents=latents.transpose(1, 2))


def condition(
    picture: Image.Image | None,
    motion: Motion,
    *,
    noise: torch.Tensor,
    image_encoder: Any,
    image_processor: Any,
    vae: Any,
    stop: Stop | None = None,
) -> Conditioning:
    """Encode an RGB `picture` of the clip's size with both models; the result is float32 on the CPU.

    `noise` is `Noise.picture`. Raises BadInput before a weight is used where there is no picture, where its sides are off
    the grid, or differ from the noise's; Canceled within either model where `stop()` answers True.
    """
    pixels = picture_pixels(picture)
    if pixels.shape != noise.shape:
        expected, got = (f"{shape[3]}x{shape[2]}" for shape in (noise.shape, pixels.shape))
        raise BadInput.expected("start image", f"the clip's size {expected}", got)
    embedding = embed_picture(pixels, image_encoder=image_encoder, image_processor=image_processor, stop=stop)
    start = encode_picture(pixels, vae=vae, noise=noise, noise_aug_strength=motion.noise_aug_strength, stop=stop)
    return Conditioning(embedding=embedding, start=start, time_ids=motion.time_ids())


def picture_pixels(picture: Image.Image | None) -> torch.Tensor:
    """An image -> [1, 3, H, W] float32 in 0..1. Raises BadInput for none, and for sides off the family's grid."""
    if picture is None:
        raise BadInput.expected(*_NO_PICTURE)
    rule = FRAME_RULES["svd"]
    rule.check_size("image height", picture.height)
    rule.check_size("image width", picture.width)
    array = np.asarray(picture.convert("RGB")).astype(np.float32) / 255.0
    # Not made contiguous: convolutions add up in another order then, and the last bits would not be diffusers' any more.
    return torch.from_numpy(array[None]).permute(0, 3, 1, 2)


def embed_picture(
    pixels: torch.Tensor, *, image_encoder: Any, image_processor: Any, device: torch.device | None = None, stop: Stop | None = None
) -> torch.Tensor:
    """Pixels [1, 3, H, W] in 0..1 -> CLIP's embedding [1, 1, d], float32 on the CPU.

    Computed on `device` (None: where the model's first weight is). Raises Canceled before a layer where `stop()` answers True.
    """
    parameter = next(image_encoder.parameters())
    small = (resize_smoothly(pixels * 2.0 - 1.0, CLIP_SIDE) + 1.0) / 2.0
    seen = image_processor(
        images=small, do_normalize=True, do_center_crop=False, do_resize=False, do_rescale=False, return_tensors="pt"
    ).pixel_values
    seen = seen.to(device=device or parameter.device, dtype=parameter.dtype)
    with torch.no_grad(), cancelable(image_encoder.vision_model.encoder.layers, stop):
        embedding: torch.Tensor = image_encoder(seen).image_embeds
    return embedding.unsqueeze(1).float().cpu()


def encode_picture(
    pixels: torch.Tensor,
    *,
    vae: Any,
    noise: torch.Tensor,
    noise_aug_strength: float,
    device: torch.device | None = None,
    stop: Stop | None = None,
) -> torch.Tensor:
    """Pixels [1, 3, H, W] in 0..1, noised -> latent [1, C, 1, h, w], float32 on the CPU. The distribution's mean is taken.

    Computed on `device` (None: where the VAE's first weight is). Raises Canceled before a level where `stop()` answers True.
    """
    noised = (2.0 * pixels - 1.0) + noise_aug_strength * noise
    device = device or next(vae.parameters()).device
    encoder, quant_conv, dtype = _encoder(vae, device)
    with torch.no_grad(), cancelable([*encoder.down_blocks, encoder.mid_block], stop):
        moments = quant_conv(encoder(noised.to(device=device, dtype=dtype)))
    mean: torch.Tensor = moments.chunk(2, dim=1)[0]
    return mean.unsqueeze(2).float().cpu()


def resize_smoothly(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """[1, 3, H, W] -> [1, 3, side, side]: blurred by as much as it shrinks, then bicubic, as SVD was trained.

    The blur is a Gaussian of sigma (factor - 1) / 2 over about 4 sigma, edges mirrored, rows after columns.
    """
    channels = pixels.shape[1]
    sigmas = [max((size / side - 1.0) / 2.0, 0.001) for size in pixels.shape[-2:]]
    rows, columns = (_gaussian(sigma, dtype=pixels.dtype) for sigma in sigmas)
    across = columns.reshape(1, 1, 1, -1).expand(channels, 1, 1, -1)
    down = rows.reshape(1, 1, -1, 1).expand(channels, 1, -1, 1)
    padded = torch.nn.functional.pad(pixels, (len(columns) // 2, len(columns) // 2, 0, 0), mode="reflect")
    blurred = torch.nn.functional.conv2d(padded, across, groups=channels)
    padded = torch.nn.functional.pad(blurred, (0, 0, len(rows) // 2, len(rows) // 2), mode="reflect")
    blurred = torch.nn.functional.conv2d(padded, down, groups=channels)
    return torch.nn.functional.interpolate(blurred, size=(side, side), mode="bicubic", align_corners=True)


def _gaussian(sigma: float, *, dtype: torch.dtype) -> torch.Tensor:
    taps = int(max(4.0 * sigma, 3)) | 1  # odd, so that the picture does not move by half a pixel
    x = torch.arange(taps, dtype=dtype) - taps // 2
    weights = torch.exp(-x.pow(2.0) / (2 * torch.tensor(sigma, dtype=dtype).pow(2.0)))
    return weights / weights.sum()


def _encoder(vae: Any, device: torch.device) -> tuple[Any, Any, torch.dtype]:
    """The VAE's two layers from pixels to moments, and their dtype.

    Some VAEs overflow in float16 and say so in their config. A float32 copy of the encoder (a third of the VAE) encodes then:
    the VAE itself may be another run's too, and stays as it is.
    """
    encoder, quant_conv, dtype = vae.encoder, vae.quant_conv, vae_dtype(vae)
    if dtype == torch.float16 and vae.config.force_upcast:
        dtype = torch.float32
        encoder, quant_conv = (copy.deepcopy(layer).to(device=device, dtype=dtype) for layer in (encoder, quant_conv))
    return encoder, quant_conv, dtype
