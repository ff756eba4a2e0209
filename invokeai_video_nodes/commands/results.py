"""Gallery files -> the person's folder, whole or not at all, never over a file that was there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from invokeai_video_nodes.pipelines.errors import BadInput, OutputError
from invokeai_video_nodes.pipelines.mp4 import H265_SUFFIX


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


def copy_result(source: Path, folder: Path, stem: str) -> list[Path]:
    """Copy `source` into `folder` as STEM.ext, or STEM-2.ext and so on where that name is taken, and its H.265 file beside it.

    A copy appears under its name only when it is complete. OutputError when the disk does not take it.
    """
    beside = source.with_suffix(H265_SUFFIX)
    sources = {source.suffix: source} | ({H265_SUFFIX: beside} if beside.is_file() else {})
    stem = _free_stem(folder, stem, list(sources))
    return [_copied(path, folder, f"{stem}{suffix}") for suffix, path in sources.items()]


def _copied(source: Path, folder: Path, name: str) -> Path:
    partial = folder / f".{name}.{os.getpid()}.part"
    try:
        shutil.copyfile(source, partial)
        os.replace(partial, folder / name)
    except OSError as error:
        raise OutputError(f"expected to write {name} into {folder}, got: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return folder / name


def _free_stem(folder: Path, stem: str, suffixes: Sequence[str]) -> str:
    number = 1
    while True:
        numbered = stem if number == 1 else f"{stem}-{number}"
        if not any((folder / f"{numbered}{suffix}").exists() for suffix in suffixes):
            return numbered
        number += 1
