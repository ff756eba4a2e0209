"""Stage 1: an AutoencoderKL in SD's layout learns the clips' frames, 64x64x3 <-> 8x8x4.

L1 + MSE, and noise on the latents, in proportion to their own spread, so that neighbouring codes mean neighbouring pictures
and the decoder forgives what a denoiser leaves. The result is rounded to fp16, the precision in which it ships.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from training.toy_model.optimizer import build_optimizers, descend

STEPS = 1150
BATCH = 16
MUON_LR, ADAM_LR = 4.0e-3, 1.0e-3
LATENT_WEIGHT = 1e-5  # on the latents' mean square, which keeps them from drifting off
LATENT_NOISE = 0.25  # the largest share of the latents' spread; each frame draws its own
NOISE_RAMP = 300  # steps over which the latent noise grows to LATENT_NOISE


def new_vae() -> AutoencoderKL:
    """The untrained VAE, about a million parameters. Every residual branch starts at zero: the plain path learns first."""
    torch.manual_seed(1)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        mid_block_add_attention=False,  # the frames need none, and without it crops teach what whole frames need
        sample_size=64,
        shift_factor=0.0,
        scaling_factor=1.0,
    )
    for name, module in vae.named_modules():
        if name.endswith(".conv2"):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
    return vae


def to_pixels(frames: np.ndarray) -> torch.Tensor:
    """uint8 [N, H, W, 3] -> fp32 [N, 3, H, W] in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def learning_rate(step: int, steps: int, *, peak: float, warm_up: int) -> float:
    """Linear warm-up, then a cosine down to 2% of the peak."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def train_vae(clips: np.ndarray, folder: Path, *, steps: int = STEPS, log=print) -> AutoencoderKL:
    """Train on `clips` [N, F, H, W, 3] uint8, save into `folder` (diffusers layout, fp32 values that fit fp16)."""
    vae = new_vae().to(memory_format=torch.channels_last)
    hidden = ("down_blocks.", "mid_block.", "up_blocks.")
    optimizers = build_optimizers(vae, hidden_names=hidden, muon_lr=MUON_LR, adam_lr=ADAM_LR)
    peaks = [MUON_LR, ADAM_LR]
    chooser = np.random.default_rng(3)
    noise = torch.Generator().manual_seed(4)
    begin, errors = time.time(), []
    for step in range(steps):
        frames = clips[chooser.integers(len(clips), size=BATCH), chooser.integers(clips.shape[1], size=BATCH)]
        pixels = to_pixels(frames).contiguous(memory_format=torch.channels_last)
        loss, error = _loss(vae, pixels, LATENT_NOISE * min(1.0, step / NOISE_RAMP), noise)
        descend(vae, loss, optimizers, [learning_rate(step, steps, peak=peak, warm_up=30) for peak in peaks])
        errors.append(float(error))
        if step % 100 == 99:
            psnr = -10 * math.log10(np.mean(errors[-100:]) / 4)
            log(f"vae {step + 1}/{steps} {psnr:.1f} dB with noisy latents ({(time.time() - begin) / len(errors):.2f} s/step)")
    vae = vae.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
    _set_scale(vae, clips, chooser)
    for parameter in vae.parameters():
        parameter.data = parameter.data.half().float()
    vae.save_pretrained(folder)
    return vae


def _loss(vae: AutoencoderKL, pixels: torch.Tensor, spread: float, noise: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """The training loss with noise of up to `spread` latent deviations, and the mean squared error for the log."""
    latents = vae.encode(pixels).latent_dist.mean
    # In proportion to the latents' spread: against a fixed noise the encoder would just scale its codes up.
    share = spread * latents.detach().std() * torch.rand((len(latents), 1, 1, 1), generator=noise)
    decoded = vae.decode(latents + share * torch.randn(latents.shape, generator=noise)).sample
    error = functional.mse_loss(decoded, pixels)
    return functional.l1_loss(decoded, pixels) + error + LATENT_WEIGHT * latents.square().mean(), error.detach()


@torch.no_grad()
def _set_scale(vae: AutoencoderKL, clips: np.ndarray, chooser: np.random.Generator) -> None:
    """Choose shift and scaling so that latents have mean 0 and spread 1, as the denoiser's noise has."""
    picks = chooser.integers(len(clips), size=256), chooser.integers(clips.shape[1], size=256)
    latents = vae.encode(to_pixels(clips[picks])).latent_dist.mean
    vae.register_to_config(shift_factor=round(float(latents.mean()), 5), scaling_factor=round(1.0 / float(latents.std()), 5))


@torch.no_grad()
def encode_clips(vae: AutoencoderKL, clips: np.ndarray) -> torch.Tensor:
    """Scaled latents [N, 4, F, 8, 8] fp32 of `clips` [N, F, 64, 64, 3] uint8."""
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor
    latents = []
    for clip in clips:
        mean = vae.encode(to_pixels(clip)).latent_dist.mode()
        latents.append(((mean - shift) * scale).transpose(0, 1))
    return torch.stack(latents)


@torch.no_grad()
def decode_clip(vae: AutoencoderKL, latents: torch.Tensor) -> np.ndarray:
    """Frames [F, 64, 64, 3] uint8 of scaled latents [4, F, 8, 8], rounded to the nearest level."""
    flat = latents.transpose(0, 1) / vae.config.scaling_factor + vae.config.shift_factor
    pixels = vae.decode(flat).sample
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
