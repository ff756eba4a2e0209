"""Gallery files -> the person's folder, whole or not at all, never over a file that was there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from invokeai_video_nodes.pipelines.errors import BadInput, OutputError


@contextmanager
def out_folder(folder: Path | None) -> Iterator[Path | None]:
    """The folder, made before anything expensive; a new one goes again where nothing came to lie in it.

    BadInput when it cannot be made or written. None (results stay in the gallery) stays None.
    """
    if folder is None:
        yield None
        return
    is_new = not folder.exists()
    path = _writable(folder)
    try:
        yield path
    finally:
        if is_new and not any(path.iterdir()):
            path.rmdir()


def _writable(folder: Path) -> Path:
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
