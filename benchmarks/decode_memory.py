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
import threading
import time
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
    # More threads keep more arenas and scratch buffers, by chance more in one run than in the other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
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
    """How far this process's resident memory rose above its value at the start, in MiB, sampled every 20 ms."""

    def __enter__(self) -> _PeakMemory:
        import psutil

        self._process = psutil.Process()
        self._before = self._peak = self._process.memory_info().rss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def grown_mib(self) -> float:
        return (self._peak - self._before) / 2**20

    def _watch(self) -> None:
        while not self._done.is_set():
            self._peak = max(self._peak, self._process.memory_info().rss)
            time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
