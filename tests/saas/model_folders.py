"""Two models on a disk, a store that can be told to misbehave, and a worker's folder for them."""

import hashlib
import os
from pathlib import Path
from typing import Any

from invokeai_saas.storage.errors import StorageUnavailable
from invokeai_saas.workers.model_files import ModelFiles
from invokeai_saas.workers.model_store import Record

FOLDER, FILE = Record("folder-key", "A folder", "folder-key"), Record("file-key", "A file", "file-key/model.safetensors")
PATHS = {FOLDER.key: FOLDER.path, FILE.key: FILE.path}
SIZE = 3_000_000


def install_models(tmp_path: Path) -> Path:
    """A models folder with a model that is a folder and one that is a file."""
    models = tmp_path / "installed"
    (models / "folder-key" / "unet").mkdir(parents=True)
    (models / "folder-key" / "model_index.json").write_text("{}")
    (models / "folder-key" / "unet" / "weights.safetensors").write_bytes(os.urandom(SIZE))
    # Equal files are one object.
    (models / "folder-key" / "copy.json").write_text("{}")
    (models / "folder-key" / ".gitattributes").write_text("not part of it")
    (models / "file-key").mkdir()
    (models / "file-key" / "model.safetensors").write_bytes(os.urandom(SIZE))
    return models


def files_of(store: Any, tmp_path: Path, **settings: Any) -> ModelFiles:
    """A worker's folder beside the installed one."""
    return ModelFiles(store, tmp_path / "worker", **({"records": lambda: PATHS, "reserve_bytes": 0, "retry_seconds": ()} | settings))


def tree(folder: Path) -> dict[str, str]:
    """The hash of every file that is not hidden, by its path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


class Counting:
    """A store whose reads are counted, and which breaks off, or gives other bytes, when told."""

    def __init__(self, store):
        self._store, self.starts, self.break_after, self.spoil = store, [], None, 0

    def __getattr__(self, name):
        return getattr(self._store, name)

    def chunks(self, key, *, start=0):
        if key.endswith("manifest.json"):
            yield from self._store.chunks(key)
            return
        self.starts.append((key.rpartition("/")[2], start))
        for number, piece in enumerate(_small(self._store.chunks(key, start=start))):
            if self.break_after is not None and number >= self.break_after:
                self.break_after = None
                raise StorageUnavailable("broken off")
            if self.spoil > 0 and number == 0:
                self.spoil -= 1
                piece = bytes([piece[0] ^ 1]) + piece[1:]
            yield piece


def _small(pieces):
    for piece in pieces:
        for start in range(0, len(piece), 500_000):
            yield piece[start : start + 500_000]
