"""Gallery files -> the person's folder, whole or not at all, never over a file that was there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from invokeai_video_nodes.pipelines.errors import BadInput, OutputError


def check_out_folder(folder: Path) -> Path:
    """The folder, made if need be; BadInput when it cannot be written. Called before anything expensive."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput.expected("--out", "a folder that can be made", f"{folder} ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise BadInput.expected("--out", "a folder that can be written to", str(folder))
    return folder.resolve()


def copy_result(source: Path, folder: Path, stem: str) -> Path:
    """Copy `source` into `folder` as STEM.ext, or STEM-2.ext and so on where that name is taken.

    The copy appears under its name only when it is complete. OutputError when the disk does not take it.
    """
    partial = folder / f".{stem}{source.suffix}.{os.getpid()}.part"
    try:
        shutil.copyfile(source, partial)
        target = _free_name(folder, stem, source.suffix)
        os.replace(partial, target)
    except OSError as error:
        raise OutputError(f"expected to write {stem}{source.suffix} into {folder}, got: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def _free_name(folder: Path, stem: str, suffix: str) -> Path:
    number = 1
    while True:
        target = folder / (f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}")
        if not target.exists():
            return target
        number += 1
