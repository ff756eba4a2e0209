"""Claim: a long clip of AnimateDiff needs hardly more memory than one window of it.

Denoises 128 frames in context windows of 16 and compares how far the resident memory grew above what it was with the models and the
noise loaded: no more than 1.2 times what 16 frames take. `--without-windows` gives the model all 128 frames at once: the same bound
must then fail, or it measures nothing. Each length runs in a process of its own.

    python benchmarks/animatediff_memory.py [--size 256] [--frames 128] [--without-windows]
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from typing import Any

from _peak_memory import PeakMemory, in_own_process

SHORT, LONG = 16, 128
OVERLAP = 8
BOUND = 1.2


def main() -> int:
    arguments = _arguments()
    if arguments.case:
        print(f"grown_mib {_grown_mib(arguments):.2f}")
        return 0
    short, long = (in_own_process(str(frames)) for frames in (SHORT, arguments.frames))
    how = "at once" if arguments.without_windows else f"in windows of {SHORT}"
    print(
        f"denoise at {arguments.size}x{arguments.size}: {arguments.frames} frames {how} grow by {long:.1f} MiB, {SHORT} by {short:.1f};"
        f" ratio {long / short:.3f} (bound {BOUND})"
    )
    return 0 if long <= BOUND * short else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="width and height in pixels")
    parser.add_argument("--frames", type=int, default=LONG, help="of the long clip")
    parser.add_argument("--without-windows", action="store_true", help="all frames in one call: must exceed the bound")
    parser.add_argument("--case", type=int, help="measure this number of frames in this process and print the growth")
    return parser.parse_args()


def _grown_mib(arguments: argparse.Namespace) -> float:
    """How far one denoise of `arguments.case` frames raises this process's memory; two steps show what every step takes."""
    import torch

    torch.set_num_threads(1)
    run = _prepared(arguments.case, arguments)
    gc.collect()
    with PeakMemory() as memory:
        run()
    return memory.grown_mib


def _prepared(frames: int, arguments: argparse.Namespace) -> Callable[[], Any]:
    """Models, prompts and noise, loaded; the call denoises. The model has been called once, so its kernels' scratch is there."""
    from functools import partial

    import torch
    from tiny_animatediff import tiny_adapter, tiny_prompts, tiny_unet

    from invokeai_video_nodes.pipelines.animatediff.denoise import denoise
    from invokeai_video_nodes.pipelines.animatediff.presets import make_scheduler
    from invokeai_video_nodes.pipelines.animatediff.unet import motion_unet
    from invokeai_video_nodes.pipelines.windows import ContextWindows, predict_in_windows

    cells = arguments.size // 8
    unet, adapter = tiny_unet(), tiny_adapter(max_frames=LONG)
    positive, negative = tiny_prompts()
    noise = torch.randn(1, 4, frames, cells, cells, generator=torch.Generator().manual_seed(0))
    settings = ContextWindows(length=SHORT, overlap=OVERLAP)
    windows = None if arguments.without_windows else partial(predict_in_windows, settings=settings)

    def run(noise: torch.Tensor = noise, steps: int = 2) -> torch.Tensor:
        with motion_unet(unet, adapter) as model:
            told = {"positive": positive, "negative": negative, "scheduler": make_scheduler("ddim"), "steps": steps, "windows": windows}
            return denoise(model, noise=noise, **told)

    run(noise[:, :, :2, :8, :8], steps=1)
    return run


if __name__ == "__main__":
    sys.exit(main())
