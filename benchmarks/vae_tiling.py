"""Claim: decoding in tiles shows no seams, and is no worse than diffusers' own tiling at equal tiles and equal overlap.

A tiny AutoencoderKLHunyuanVideo that was trained on real footage (`python -m training.tiny_video_vae.train`) encodes a real clip;
the latents are decoded whole, in our tiles, and by diffusers in tiles of the same size. What is printed and judged:

- dB of either tiling against the whole decode: ours at most 0.1 dB below;
- frames: as many as the clip has, from all three;
- seams: what tiling adds changes from one frame, row or column to the next at most 3 times as much as on either side of it;
- the spectrum of what tiling adds to each frame's mean luma: no line at the tiles' period, in levels of 255;
- processor time of our stream in temporal tiles over the whole decode, in turns: at most 1.10.

`--hard-cuts` decodes our tiles without overlap, which must fail.

    python benchmarks/vae_tiling.py [--clip VIDEO] [--vae FOLDER] [--frames 65] [--turns 3] [--hard-cuts]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402

from invokeai_video_nodes.pipelines.vae3d import TilePlan, decode_video, encode_video  # noqa: E402
from training.tiny_video_vae.train import CLIP, load_clip, psnr  # noqa: E402

VAE = ROOT / "tests" / "data" / "tiny_video_vae"
TILE_FRAMES, TILE_CELLS, MARGIN = 4, 8, 2  # latent frames, latent cells
LUMA = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)  # BT.709
PERIOD = 4 * (TILE_FRAMES - 1)  # frames by which tiles advance
BOUND_DB, BOUND_SEAM, BOUND_LEVELS, BOUND_TIME = -0.1, 3.0, 0.25, 1.10


def main() -> int:
    arguments = _arguments()
    torch.set_num_threads(1)
    vae = _load(arguments.vae)
    clip = load_clip(arguments.clip, frames=arguments.frames)
    cells = TilePlan(frames=8, height=clip.shape[1] // 8, width=clip.shape[2] // 8)
    latents = encode_video(vae, iter(clip), num_frames=len(clip), plan=cells)
    whole = _diffusers(vae, latents, tiled=False)
    ours = np.stack(list(decode_video(vae, latents, plan=_plan(arguments.hard_cuts))))
    passed = _judge_pictures(clip, whole, ours, _diffusers(vae, latents, tiled=True))
    passed &= _judge_seams(whole, ours)
    passed &= _judge_luma(whole, ours)
    if arguments.turns:
        passed &= _judge_time(vae, latents, arguments.turns)
    return 0 if passed else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip", type=Path, default=CLIP, help="a video whose sides are multiples of 8")
    parser.add_argument("--vae", type=Path, default=VAE)
    parser.add_argument("--frames", type=int, default=65, help="4n+1")
    parser.add_argument("--turns", type=int, default=3, help="how often either decode is timed; 0: not at all")
    parser.add_argument("--hard-cuts", action="store_true", help="tiles without overlap: must fail")
    return parser.parse_args()


def _load(folder: Path) -> Any:
    from diffusers import AutoencoderKLHunyuanVideo

    return AutoencoderKLHunyuanVideo.from_pretrained(folder, local_files_only=True).float().eval().requires_grad_(False)


def _plan(hard_cuts: bool) -> TilePlan:
    overlap, margin = (0, 0) if hard_cuts else (1, MARGIN)
    return TilePlan(frames=TILE_FRAMES, height=TILE_CELLS, width=TILE_CELLS, overlap=overlap, margin=margin)


def _diffusers(vae: Any, latents: torch.Tensor, *, tiled: bool) -> np.ndarray:
    """diffusers' decode of the same latents, uint8 [F, H, W, 3]."""
    vae.use_framewise_decoding = tiled
    if tiled:
        size, stride = 8 * TILE_CELLS, 8 * (TILE_CELLS - MARGIN)
        vae.enable_tiling(size, size, 4 * TILE_FRAMES, stride, stride, PERIOD)
    try:
        with torch.no_grad():
            pixels = vae.decode(latents / vae.config.scaling_factor).sample[0]
    finally:
        vae.disable_tiling()
    return (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()


def _judge_pictures(clip: np.ndarray, whole: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> bool:
    difference = psnr(ours, whole) - psnr(theirs, whole)
    print(
        f"tiled against whole: ours {psnr(ours, whole):.2f} dB, diffusers {psnr(theirs, whole):.2f} dB, difference {difference:+.2f} dB"
        f" (bound {BOUND_DB}); against the clip: whole {psnr(whole, clip):.2f}, ours {psnr(ours, clip):.2f},"
        f" diffusers {psnr(theirs, clip):.2f} dB; frames {len(clip)} {len(whole)} {len(ours)} {len(theirs)}"
    )
    return difference >= BOUND_DB and len(clip) == len(whole) == len(ours) == len(theirs)


def _judge_seams(whole: np.ndarray, ours: np.ndarray) -> bool:
    added = (ours.astype(np.float32) - whole) @ LUMA
    seams = [largest_seam(added, axis) for axis in range(3)]
    print("seams: largest step over those beside it, in time {:.2f}, down {:.2f}, across {:.2f} (bound {})".format(*seams, BOUND_SEAM))
    return max(seams) <= BOUND_SEAM


def largest_seam(added: np.ndarray, axis: int) -> float:
    """The largest mean step from one slice of `added` to the next, over the mean of the steps before and after it.

    `added` is [F, H, W]; smooth changes give little more than 1, a cut many times that.
    """
    steps = np.abs(np.diff(added, axis=axis)).mean(axis=tuple({0, 1, 2} - {axis}))
    return float(np.max(2 * steps[1:-1] / (steps[:-2] + steps[2:])))


def _judge_luma(whole: np.ndarray, ours: np.ndarray) -> bool:
    line = tile_line(mean_luma(ours) - mean_luma(whole))
    print(f"mean luma: line at the tiles' period of {PERIOD} frames {line:.3f} levels of 255 (bound {BOUND_LEVELS})")
    return line <= BOUND_LEVELS


def mean_luma(frames: np.ndarray) -> np.ndarray:
    """BT.709 luma of each frame's mean colour, in levels of 255."""
    return frames.reshape(len(frames), -1, 3).mean(axis=1) @ LUMA


def tile_line(added: np.ndarray) -> float:
    """How far the harmonics of the tiles' period rise above their neighbours in the spectrum of `added`, as an amplitude.

    A whole number of periods is looked at, so that each harmonic is one line of the spectrum; the root of the sum of their powers
    less as many times the power of a line between them.
    """
    periods = len(added) // PERIOD
    spectrum = 2 * np.abs(np.fft.rfft(added[len(added) - periods * PERIOD :])) / (periods * PERIOD)
    harmonics = np.arange(1, PERIOD // 2 + 1) * periods
    between = np.setdiff1d(np.arange(periods // 2, len(spectrum)), harmonics)
    above = np.sum(spectrum[harmonics] ** 2) - len(harmonics) * np.median(spectrum[between] ** 2)
    return float(np.sqrt(max(above, 0.0)))


def _judge_time(vae: Any, latents: torch.Tensor, turns: int) -> bool:
    """Both fit here, so time is what tiles cost: those that are chosen by themselves, against all in one.

    The clip there and back, 129 frames of 65, so that there are several tiles.
    """
    from invokeai_video_nodes.pipelines.vae3d import plan_for

    latents = torch.cat([latents, latents.flip(2)[:, :, 1:]], dim=2)
    streaming = plan_for(vae, tuple(latents.shape), free_bytes=2**50)
    one = TilePlan(frames=latents.shape[2], height=latents.shape[3], width=latents.shape[4])
    ratios = [_seconds(vae, latents, streaming) / _seconds(vae, latents, one) for _ in range(turns)]
    ratio = statistics.median(ratios)
    frames = 4 * latents.shape[2] - 3
    print(f"time of streaming {frames} frames in tiles of {4 * streaming.frames} over whole: ratio {ratio:.3f} (bound {BOUND_TIME:.2f})")
    return ratio <= BOUND_TIME


def _seconds(vae: Any, latents: torch.Tensor, plan: TilePlan) -> float:
    begin = time.process_time()
    for _ in decode_video(vae, latents, plan=plan):
        pass
    return time.process_time() - begin


if __name__ == "__main__":
    sys.exit(main())
