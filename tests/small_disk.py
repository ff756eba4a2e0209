"""A file system of a few KiB, to see what a full disk does."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, *, kib: int) -> Iterator[None]:
    """`kib` KiB at `folder`, which has the same folders in it meanwhile and none of its files."""
    inside = [path.relative_to(folder) for path in folder.rglob("*") if path.is_dir()]
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs rights that this machine does not give")
    try:
        for path in inside:
            (folder / path).mkdir(parents=True, exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
