"""What a store of objects must do. Two adapters: disk.py, s3.py. Keys come from keys.py and are checked again here and there.

Errors, whatever lies behind: ObjectMissing, StorageUnavailable (may be tried again), StorageRefused (an operator has to look), BadName.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

# What chunks() holds in memory.
PIECE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Found:
    """An object of a listing."""

    key: str
    bytes: int
    changed_at: datetime


class ObjectStore(ABC):
    """Whole objects by key. Safe to use from many threads. A put is atomic: nobody ever reads half an object."""

    @abstractmethod
    def check(self) -> None:
        """Asked at start: raises BadSettings, naming the variable, when the store cannot be used."""

    @abstractmethod
    def put(self, key: str, data: bytes, content_type: str) -> None:
        """Store a small object, replacing one of the same key."""

    @abstractmethod
    def put_file(self, key: str, source: Path, content_type: str, *, keep: bool = False) -> None:
        """Store a file of any size with bounded memory. `source` is consumed on success (unless `keep`) and untouched on failure."""

    @abstractmethod
    def local_path(self, key: str) -> Path:
        """A file with the object's bytes on this machine, to read and not to change; raises ObjectMissing."""

    @abstractmethod
    def chunks(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        """The object's bytes from `start` on, a bounded piece at a time; raises ObjectMissing, and whatever happens on the way."""

    @abstractmethod
    def size(self, key: str) -> int | None:
        """The object's bytes, None when there is none."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; missing ones are fine. May have removed some of them when it raises."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[Found]:
        """All objects whose key starts with `prefix`."""

    @abstractmethod
    def signed_url(self, key: str, *, user_id: str, seconds: int) -> str:
        """An address that reads the object until it expires. The caller has checked that the user may: see Files.signed_url()."""
