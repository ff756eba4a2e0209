"""`python -m training.tiny_video_vae.train`: a real clip in, a tiny AutoencoderKLHunyuanVideo out that rebuilds it at 30 dB.

Crops of the clip, slow and fast, go through encoder and decoder; L1 + MSE, with a little noise on the latents so that neighbouring
codes mean neighbouring pictures. Fixed seed, counted steps. The weights are rounded to fp16, the precision in which they are saved.
The last line says the reconstruction of the whole clip; below 30 dB the script exits 1.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import nn
from torch.nn import functional

from invokeai_video_nodes.pipelines.frames import read_frames
from invokeai_video_nodes.pipelines.vae3d import TilePlan, decode_video, encode_video
from training.toy_model.optimizer import build_optimizers, descend
from training.toy_model.train_vae import learning_rate

ROOT = Path(__file__).resolve().parents[2]
CLIP = ROOT / "tests" / "data" / "clips" / "bunny_soft.mp4"
BATCH = 2  # a batch of one takes torch's slow convolution, several times slower
LATENT_NOISE = 0.02  # the largest share of the latents' spread
BOUND_DB = 30.0


@dataclass(frozen=True)
class Phase:
    """`steps` steps on pieces of `frames` frames of at most `side` x `side` pixels; `rate` of either optimizer at its peak."""

    steps: int
    frames: int
    side: int
    rate: float


PHASES = (Phase(350, frames=5, side=64, rate=2.0e-3), Phase(400, frames=9, side=192, rate=1.5e-3))
FASTEST = 7  # every 7th frame: what stands still in consecutive frames teaches nothing of time


def new_vae() -> AutoencoderKLHunyuanVideo:
    """The untrained VAE: the real class with every real kind of layer, half a million parameters.

    Residual branches start at zero. Before the last norm of encoder and decoder, every other channel is lifted by 1 and the rest
    lowered: the norm then divides by a spread that hardly depends on the picture, and brightness gets through.
    """
    torch.manual_seed(1)
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=16, block_out_channels=(16, 16, 24, 24), layers_per_block=1, norm_num_groups=4, scaling_factor=1.0
    )
    for name, module in vae.named_modules():
        if name.endswith(("conv2.conv", "to_out.0")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv3d):
            nn.init.orthogonal_(module.weight)
            nn.init.zeros_(module.bias)
    for half, last in ((vae.encoder, vae.encoder.down_blocks[2].downsamplers[0]), (vae.decoder, vae.decoder.up_blocks[2].upsamplers[0])):
        bias = last.conv.conv.bias
        bias.data = torch.ones_like(bias) - 2 * (torch.arange(len(bias)) % 2)
        nn.init.ones_(half.conv_norm_out.bias)
    return vae


def load_clip(path: Path = CLIP, *, frames: int | None = None) -> np.ndarray:
    """The first `frames` frames of a video (None: all), uint8 [F, H, W, 3]."""
    return np.stack(list(islice(read_frames(path), frames)))


def train(clip: np.ndarray, *, phases: Sequence[Phase] = PHASES, log: Callable[[str], None] = print) -> AutoencoderKLHunyuanVideo:
    """Train on `clip`, uint8 [F, H, W, 3]; the result is in eval mode, its latents scaled to a spread of 1.

    First small crops, for most of what there is to learn; then the whole picture over more frames, because the norms' spread and the
    attention follow the size, and the past reaches further than one latent frame.
    """
    vae = new_vae()
    for seed, phase in enumerate(phases):
        _descend_for(vae, clip, phase, seed=3 + seed, log=log)
    return _finished(vae, clip)


def _descend_for(vae: AutoencoderKLHunyuanVideo, clip: np.ndarray, phase: Phase, *, seed: int, log: Callable[[str], None]) -> None:
    hidden = ("down_blocks.", "mid_block.", "up_blocks.")
    optimizers = build_optimizers(vae, hidden_names=hidden, muon_lr=phase.rate, adam_lr=phase.rate)
    chooser, noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    begin, errors = time.time(), []
    for step in range(phase.steps):
        pixels = _crops(clip, chooser, phase)
        latents = vae.encode(pixels).latent_dist.mean
        spread = LATENT_NOISE * latents.detach().std() * torch.rand((), generator=noise)
        decoded = vae.decode(latents + spread * torch.randn(latents.shape, generator=noise)).sample
        error = functional.mse_loss(decoded, pixels)
        loss = functional.l1_loss(decoded, pixels) + error + 1e-5 * latents.square().mean()
        descend(vae, loss, optimizers, [learning_rate(step, phase.steps, peak=phase.rate, warm_up=20)] * 2)
        errors.append(error.item())
        if step % 50 == 49:
            seconds = (time.time() - begin) / len(errors)
            decibels = -10 * math.log10(np.mean(errors[-50:]) / 4)
            log(f"{phase.frames} frames, {step + 1}/{phase.steps}: {decibels:.1f} dB on crops ({seconds:.2f} s/step)")


def _crops(clip: np.ndarray, chooser: np.random.Generator, phase: Phase) -> torch.Tensor:
    """BATCH random pieces of the clip at random speeds, [B, 3, F, H, W] in -1..1, no larger than the clip."""
    frames, height, width = (min(most, size) for most, size in zip((phase.frames, phase.side, phase.side), clip.shape, strict=False))
    pieces = []
    for _ in range(BATCH):
        speed = int(chooser.integers(1, min(FASTEST, (len(clip) - 1) // (frames - 1)) + 1))
        spans = ((frames - 1) * speed + 1, height, width)
        first, top, left = (int(chooser.integers(whole - span + 1)) for whole, span in zip(clip.shape, spans, strict=False))
        pieces.append(clip[first : first + spans[0] : speed, top : top + height, left : left + width])
    return torch.from_numpy(np.stack(pieces)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


@torch.no_grad()
def _finished(vae: AutoencoderKLHunyuanVideo, clip: np.ndarray) -> AutoencoderKLHunyuanVideo:
    vae = vae.eval().requires_grad_(False)
    latents = vae.encode(_crops(clip, np.random.default_rng(4), PHASES[0])).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1.0 / float(latents.std()), 5))
    for parameter in vae.parameters():
        parameter.data = parameter.data.half().float()
    return vae


def reconstruction(vae: AutoencoderKLHunyuanVideo, clip: np.ndarray) -> np.ndarray:
    """`clip` through encoder and decoder, whole in space and in tiles of 17 frames; both are uint8 [4n+1, H, W, 3]."""
    plan = TilePlan(frames=4, height=clip.shape[1] // 8, width=clip.shape[2] // 8, margin=0)
    latents = encode_video(vae, iter(clip), num_frames=len(clip), plan=plan)
    return np.stack(list(decode_video(vae, latents, plan=plan)))


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Decibels between two uint8 arrays of one shape; infinite where they are equal."""
    error = float(np.mean((one.astype(np.float32) - other.astype(np.float32)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "data" / "tiny_video_vae")
    parser.add_argument("--clip", type=Path, default=CLIP, help="a video to learn, at least 64x64 and 9 frames")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clip = load_clip(arguments.clip)
    vae = train(clip, log=lambda line: print(line, flush=True))
    vae.half().save_pretrained(arguments.out)
    found = psnr(clip, reconstruction(vae.float(), clip))
    print(f"{arguments.out}: {found:.2f} dB over {len(clip)} frames (bound {BOUND_DB:.0f})")
    return 0 if found >= BOUND_DB else 1


if __name__ == "__main__":
    sys.exit(main())
