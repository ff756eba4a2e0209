"""Claim: decoding a clip needs no more memory for 121 frames than for 17.

Decodes random latents through a tiny AutoencoderKL and writes the MP4, each length in a process of its own, and compares how far the
resident memory grew above what it was with the model and the latents loaded. `--hoard` keeps every decoded frame, as a list
would: the same bound must then fail, or it measures nothing. `--vae plain` takes a VAE without weights instead, for a quick look.

    python benchmarks/decode_memory.py [--size 512] [--vae tiny|plain] [--hoard]
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHORT, LONG = 17, 121
BOUND_MIB = 16.0


def main() -> int:
    arguments = _arguments()
    if arguments.case:
        print(f"grown_mib {_grown_mib(arguments.case, arguments):.2f}")
        return 0
    grown = {frames: _in_own_process(frames) for frames in (SHORT, LONG)}
    difference = grown[LONG] - grown[SHORT]
    what = "hoarding decode" if arguments.hoard else "decode"
    print(
        f"{what} at {arguments.size}x{arguments.size}: {LONG} frames grow by {grown[LONG]:.1f} MiB, {SHORT} by {grown[SHORT]:.1f};"
        f" difference {difference:.1f} MiB (bound {BOUND_MIB:.0f}), ratio {grown[LONG] / max(grown[SHORT], 0.1):.2f}"
    )
    return 0 if difference <= BOUND_MIB else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512, help="width and height in pixels")
    parser.add_argument("--vae", choices=("tiny", "plain"), default="tiny", help="AutoencoderKL, or one without weights")
    parser.add_argument("--hoard", action="store_true", help="keep every frame: must exceed the bound")
    parser.add_argument("--case", type=int, help="measure this number of frames in this process and print the growth")
    return parser.parse_args()


def _in_own_process(frames: int) -> float:
    command = [sys.executable, __file__, *sys.argv[1:], "--case", str(frames)]
    # More threads keep more arenas and scratch buffers, by chance more in one run than in the other; and glibc, left alone,
    # learns to keep large freed blocks, by chance tens of MiB of them.
    fixed = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    environment = {**os.environ, **fixed, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(output.split("grown_mib")[1])


def _grown_mib(frames: int, settings: argparse.Namespace) -> float:
    import torch

    from invokeai_video_nodes.pipelines.decode import decode_frames
    from invokeai_video_nodes.pipelines.mp4 import write_mp4

    torch.set_num_threads(1)
    vae, size = _vae(settings.vae), settings.size
    latents = torch.randn(1, 16, frames, size // 8, size // 8, generator=torch.Generator().manual_seed(0))
    gc.collect()
    with tempfile.TemporaryDirectory() as folder, _PeakMemory() as memory:
        decoded = decode_frames(vae, latents)
        if settings.hoard:
            decoded = iter(list(decoded))
        write_mp4(decoded, Path(folder) / "clip.mp4", fps=8, width=size, height=size, preset="ultrafast")
    return memory.grown_mib


def _vae(kind: str) -> object:
    if kind == "plain":
        from colour_patches import PlainVae

        return PlainVae()
    from tiny_models import tiny_vae

    return tiny_vae()


class _PeakMemory:
    """How far this process's resident memory rose above its value at the start, in MiB, as the Linux kernel notes it."""

    def __enter__(self) -> _PeakMemory:
        # "5" forgets the highest value so far; sampling would miss short peaks.
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._kib("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.grown_mib = (self._kib("VmHWM") - self._before) / 1024

    def _kib(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    sys.exit(main())
