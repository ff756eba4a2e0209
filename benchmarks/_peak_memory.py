"""What the memory benchmarks share: each case in a process of its own, and how far its resident memory grew."""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# (frames, arguments) -> what decodes that many, with model and latents loaded already
Prepare = Callable[[int, argparse.Namespace], Callable[[], Iterator[Any]]]


def compare_lengths(
    about: str, prepare: Prepare, *, lengths: tuple[int, int], size: int, bound_mib: Callable[[int], float], what: str
) -> int:
    """Print how much more the second length grows than the first; 0 where that is within `bound_mib(size)`, else 1."""
    arguments = _arguments(about, size)
    if arguments.case:
        print(f"grown_mib {_grown_mib(prepare, arguments):.2f}")
        return 0
    short, long = (in_own_process(str(frames)) for frames in lengths)
    bound = bound_mib(arguments.size)
    print(
        f"{'hoarding ' if arguments.hoard else ''}{what} at {arguments.size}x{arguments.size}: {lengths[1]} frames grow by {long:.1f} MiB,"
        f" {lengths[0]} by {short:.1f}; difference {long - short:.1f} MiB (bound {bound:.1f})"
    )
    return 0 if long - short <= bound else 1


def _arguments(about: str, size: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--size", type=int, default=size, help="width and height in pixels")
    parser.add_argument("--vae", choices=("tiny", "plain"), default="tiny", help="the real class at toy size, or one without weights")
    parser.add_argument("--hoard", action="store_true", help="keep every frame: must exceed the bound")
    parser.add_argument("--case", type=int, help="measure this number of frames in this process and print the growth")
    return parser.parse_args()


def in_own_process(case: str) -> float:
    """MiB that a process of its own says it grew by: this script once more, with `--case`."""
    command = [sys.executable, *sys.argv, "--case", case]
    # More threads keep more arenas and scratch buffers, by chance more in one run than in the other; and what glibc takes from its heap
    # leaves holes there, by chance a third of what is measured. Blocks from here on are mapped, and given back when they are freed.
    fixed = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(64 << 10)}
    environment = {**os.environ, **fixed, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(output.split("grown_mib")[1])


def _grown_mib(prepare: Prepare, arguments: argparse.Namespace) -> float:
    import torch

    from invokeai_video_nodes.pipelines.mp4 import write_mp4

    torch.set_num_threads(1)
    decode, size = prepare(arguments.case, arguments), arguments.size
    gc.collect()
    with tempfile.TemporaryDirectory() as folder, PeakMemory() as memory:
        frames = decode()
        if arguments.hoard:
            frames = iter(list(frames))
        write_mp4(frames, Path(folder) / "clip.mp4", fps=24, width=size, height=size, preset="ultrafast")
    return memory.grown_mib


class PeakMemory:
    """How far this process's resident memory rose above its value at the start, in MiB, as the Linux kernel notes it."""

    def __enter__(self) -> PeakMemory:
        # "5" forgets the highest value so far; sampling would miss short peaks.
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._kib("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.grown_mib = (self._kib("VmHWM") - self._before) / 1024

    def _kib(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
