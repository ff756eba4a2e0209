"""A key and a way to fetch it in, a local file out: a folder of downloads, bounded in bytes, least recently used goes first.

Files appear by rename, so that a reader never sees half of one; several processes may share the folder, under a lock on a file in it.
A file that was handed out within `keep_seconds` stays although the cache is full, because its reader may not have opened it yet; past
twice the bound it goes too.
"""

import fcntl
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from invokeai_saas.storage.errors import StorageUnavailable

_PARTIAL = ".part"
# What a killed process left of a download.
_PARTIAL_LIFE_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    bytes: int
    used_at: float


class LocalCache:
    """Files by key under `folder`; their modification time is when they were last handed out."""

    def __init__(self, folder: Path, *, max_bytes: int, keep_seconds: float = 120.0, now: Callable[[], float] = time.time) -> None:
        self._folder, self._max_bytes, self._keep_seconds, self._now = folder.absolute(), max_bytes, keep_seconds, now
        self._lock = threading.Lock()
        self._fetching: dict[Path, tuple[threading.Lock, int]] = {}
        self._folder.mkdir(parents=True, exist_ok=True)

    def path_of(self, key: str, fetch: Callable[[Path], None]) -> Path:
        """The local file of `key`; `fetch(path)` downloads it once, however many ask. What `fetch` raises goes to the caller."""
        path = self._path(key)
        if self._touch(path):
            return path
        with self._one_at_a_time(path):
            if not self._touch(path):
                self._download(path, fetch)
        return path

    def forget(self, key: str) -> None:
        """Remove a file whose object is gone."""
        self._path(key).unlink(missing_ok=True)

    def bytes(self) -> int:
        """What the finished files take."""
        return sum(entry.bytes for entry in self._entries())

    def _download(self, path: Path, fetch: Callable[[Path], None]) -> None:
        descriptor, name = tempfile.mkstemp(dir=self._folder, suffix=_PARTIAL)
        os.close(descriptor)
        arriving = Path(name)
        try:
            fetch(arriving)
            os.utime(arriving, (self._now(), self._now()))
            path.parent.mkdir(exist_ok=True)
            with self._locked(fcntl.LOCK_EX):
                self._make_room(arriving.stat().st_size)
                os.replace(arriving, path)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not arriving.exists():
                raise StorageUnavailable("the folder of downloads was emptied from outside") from error
            raise
        finally:
            arriving.unlink(missing_ok=True)

    def _make_room(self, incoming: int) -> None:
        """Remove least recently used files until `incoming` more bytes fit."""
        entries = sorted(self._entries(), key=lambda entry: entry.used_at)
        total, recent = sum(entry.bytes for entry in entries) + incoming, self._now() - self._keep_seconds
        for entry in entries:
            if total <= self._max_bytes or (entry.used_at > recent and total <= 2 * self._max_bytes):
                break
            entry.path.unlink(missing_ok=True)
            total -= entry.bytes
        self._drop_stale_partials()

    def _drop_stale_partials(self) -> None:
        for partial in self._folder.glob(f"*{_PARTIAL}"):
            with suppress(OSError):
                if partial.stat().st_mtime < time.time() - _PARTIAL_LIFE_SECONDS:
                    partial.unlink()

    def _entries(self) -> Iterator[_Entry]:
        for path in self._folder.glob("??/*"):
            with suppress(FileNotFoundError):  # forgotten meanwhile
                status = path.stat()
                yield _Entry(path, status.st_size, status.st_mtime)

    def _touch(self, path: Path) -> bool:
        """Mark the file as just handed out; False when there is none."""
        try:
            # Without the lock, an eviction that looked before this moment would still take the file.
            with self._locked(fcntl.LOCK_SH):
                os.utime(path, (self._now(), self._now()))
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        with (self._folder / ".lock").open("ab") as file:
            fcntl.flock(file, how)
            yield

    @contextmanager
    def _one_at_a_time(self, path: Path) -> Iterator[None]:
        with self._lock:
            lock, waiting = self._fetching.get(path, (threading.Lock(), 0))
            self._fetching[path] = lock, waiting + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                waiting = self._fetching[path][1] - 1
                if waiting:
                    self._fetching[path] = lock, waiting
                else:
                    del self._fetching[path]

    def _path(self, key: str) -> Path:
        digest = hashlib.sha256(key.encode()).hexdigest()
        # The extension is kept: decoders look at it.
        return self._folder / digest[:2] / (digest + os.path.splitext(key)[1][:10])
