"""A model in the bucket: a manifest that lists its files with hashes, and the files, each under its own hash.

    models/files/{key}/manifest.json          models/files/{key}/{sha256}

A file's object never changes, and the manifest is written last: whoever reads meanwhile has all of the old model or all of the new one.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from invokeai_saas.errors import SaasError
from invokeai_saas.storage.keys import check_key, check_name
from invokeai_saas.storage.port import PIECE_BYTES

PREFIX = "models/files/"
MANIFEST_NAME = "manifest.json"
VERSION = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


class BadManifest(SaasError):
    """A manifest that nobody of ours wrote."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file of a model: its path inside of the model's folder ('' where the model is one file), its hash, its size."""

    path: str
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path).parts
        if self.path and (self.path.startswith("/") or "\\" in self.path or "\0" in self.path or ".." in parts):
            raise BadManifest(f"expected a path inside of the model's folder, got {self.path[:80]!r}")
        if not _SHA256.fullmatch(self.sha256) or self.bytes < 0:
            raise BadManifest(f"expected a SHA-256 and a size for {self.path[:80]!r}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """All files of a model. One file with an empty path is the model itself, else the model is a folder."""

    key: str
    files: tuple[ModelFile, ...]

    def __post_init__(self) -> None:
        check_name(self.key)
        paths = [file.path for file in self.files]
        if not paths or len(set(paths)) != len(paths) or ("" in paths and len(paths) > 1):
            raise BadManifest(f"expected one file, or several with a path each, for model {self.key}")

    @property
    def total_bytes(self) -> int:
        """Of all files."""
        return sum(file.bytes for file in self.files)

    def object_of(self, file: ModelFile) -> str:
        """The key of the file's object."""
        return check_key(f"{PREFIX}{self.key}/{file.sha256}")

    def as_json(self) -> bytes:
        """What is stored."""
        return json.dumps({"version": VERSION, "key": self.key, "files": [asdict(file) for file in self.files]}, indent=1).encode()

    @staticmethod
    def of_json(text: bytes) -> "Manifest":
        """What as_json() made; raises BadManifest for anything else."""
        try:
            found = json.loads(text)
            if found["version"] != VERSION:
                raise BadManifest(f"expected a manifest of version {VERSION}, got {found['version']}")
            files = tuple(ModelFile(str(file["path"]), str(file["sha256"]), int(file["bytes"])) for file in found["files"])
            return Manifest(str(found["key"]), files)
        except (KeyError, TypeError, ValueError) as error:
            raise BadManifest(f"expected a manifest of a model, got something else ({type(error).__name__})") from error


def manifest_key(key: str) -> str:
    """Where the manifest of model `key` lies."""
    return check_key(f"{PREFIX}{check_name(key)}/{MANIFEST_NAME}")


def read_folder(key: str, path: Path) -> Manifest:
    """The manifest of a model on this disk: one file, or a folder without its hidden files. Reads all of it."""
    if path.is_file():
        return Manifest(key, (ModelFile("", sha256_of(path), path.stat().st_size),))
    files = [ModelFile(each.relative_to(path).as_posix(), sha256_of(each), each.stat().st_size) for each in files_under(path)]
    return Manifest(key, tuple(files))


def files_under(path: Path) -> Iterator[Path]:
    """The files of a model's folder that belong to it: not what version control and downloads left."""
    for each in sorted(path.rglob("*")):
        if each.is_file() and not any(part.startswith(".") for part in each.relative_to(path).parts):
            yield each


def sha256_of(path: Path) -> str:
    """Of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()
