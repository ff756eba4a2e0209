"""Models of the bucket on a worker's own disk: fetched when a job needs them, checked, and thrown out again when the disk gets full.

    hold(jobs's graph) ─► here already? ─► one fetch per machine: room? ─► parts, resumed where they were ─► hashes ─► renamed into place
                                                          └ the least recently used ones that no job holds go

Folder: `<models>/<path of the record>` as InvokeAI wants it, and beside it `.fetched/`: a manifest for each model that we brought (its age
is its last use), parts on their way, locks. What lies in the models folder without such a manifest is the operator's own and stays.
Everything that goes wrong is a ModelUnavailable: the worker's fault and not the job's. Imports no InvokeAI.
"""

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from invokeai_saas.errors import SaasError
from invokeai_saas.storage.errors import ObjectMissing, StorageRefused, StorageUnavailable
from invokeai_saas.storage.port import ObjectStore
from invokeai_saas.workers.manifest import BadManifest, Manifest, ModelFile, manifest_key, sha256_of

FETCHED = ".fetched"
# What stays free on the disk, and how long a fetch waits for room that running jobs hold.
RESERVE_BYTES = 1024**3
WAIT_FOR_ROOM_SECONDS = 600.0
WAIT_FOR_STORE_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)
_LOOK_SECONDS = 0.2
logger = logging.getLogger(__name__)


class ModelUnavailable(SaasError):
    """This worker cannot have the model now; another one may. Never the job's fault."""

    status = 503


class ModelMissing(ModelUnavailable):
    """Neither on this machine nor in the bucket."""


class ModelCorrupt(ModelUnavailable):
    """The bytes are not those that were pushed or installed."""


class NoRoom(ModelUnavailable):
    """The disk, or SAAS_MODEL_CACHE_GB, has no room for it."""


class ModelFiles:
    """One machine's models. `limit_bytes` bounds what was fetched; None: as much as the disk takes."""

    def __init__(
        self,
        store: ObjectStore,
        models: Path,
        *,
        records: Callable[[], Mapping[str, str]],
        limit_bytes: int | None = None,
        reserve_bytes: int = RESERVE_BYTES,
        room_seconds: float = WAIT_FOR_ROOM_SECONDS,
        retry_seconds: tuple[float, ...] = WAIT_FOR_STORE_SECONDS,
    ) -> None:
        """`records`: the path of every installed model by its key, as InvokeAI stores it."""
        self._store, self._models, self._records = store, models.absolute(), records
        self._own = self._models / FETCHED
        self._limit_bytes, self._reserve_bytes = limit_bytes, reserve_bytes
        self._room_seconds, self._retry_seconds = room_seconds, retry_seconds
        self._own.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def hold(self, graph: str, *, stop: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Every model that `graph` (a session's JSON) names is here, and stays for as long as this is held; raises ModelUnavailable."""
        with ExitStack() as stack:
            for key, path in self._records().items():
                if f'"{key}"' in graph:
                    stack.enter_context(self._held(key))
                    self.ensure(key, path, stop=stop)
            yield

    def ensure(self, key: str, path: str, *, stop: Callable[[], bool] = lambda: False) -> Path:
        """The model of this record as a file or folder of this machine, fetched if it has to be; raises ModelUnavailable."""
        target = self.target(key, path)
        if self._is_here(key, target):
            return target
        with self._held(key), self._machine(stop):
            # Somebody else may have fetched it while this one waited.
            if not self._is_here(key, target):
                self._fetch(self._manifest(key), target, stop)
        return target

    def target(self, key: str, path: str) -> Path:
        """Where a record's model lies here. One that was installed in place, elsewhere, gets a place of its own."""
        if not Path(path).is_absolute() or Path(path).is_relative_to(self._models):
            return self._models / path
        return Path(path) if Path(path).exists() else self._own / "in_place" / key / Path(path).name

    def repair(self, key: str, path: str, *, stop: Callable[[], bool] = lambda: False) -> bool:
        """Whether a fetched model had other bytes than it should and was fetched again: what to ask when one does not load."""
        target, manifest = self.target(key, path), self._marker(key)
        if manifest is None or not target.exists():
            return False
        broken = [file for file in manifest.files if not _same(_place(target, file), file)]
        if not broken:
            return False
        logger.error("model %s has other bytes than were pushed (%s): fetching it again", key, broken[0].path or target.name)
        with self._machine(stop):
            self._throw_out(key, target)
        self.ensure(key, path, stop=stop)
        return True

    def fetched(self) -> dict[str, int]:
        """Bytes of every model that was fetched, the least recently used first."""
        found = []
        for marker in self._own.glob("*.json"):
            with suppress(FileNotFoundError, BadManifest):
                found.append((marker.stat().st_mtime, marker.stem, Manifest.of_json(marker.read_bytes()).total_bytes))
        return {key: size for _used_at, key, size in sorted(found)}

    def _is_here(self, key: str, target: Path) -> bool:
        manifest = self._marker(key)
        if manifest is None:
            return target.exists()
        if not all(_has_size(_place(target, file), file.bytes) for file in manifest.files):
            return False
        with suppress(OSError):
            os.utime(self._marker_path(key))
        return True

    def _manifest(self, key: str) -> Manifest:
        try:
            return Manifest.of_json(b"".join(self._store.chunks(manifest_key(key))))
        except ObjectMissing:
            raise ModelMissing(f"model {key} is neither on this machine nor in the bucket: invokeai-saas models push {key}") from None
        except BadManifest as error:
            raise ModelCorrupt(f"model {key} in the bucket: {error}") from error
        except (StorageUnavailable, StorageRefused) as error:
            raise ModelUnavailable(f"model {key} could not be fetched: {error}") from error

    def _fetch(self, manifest: Manifest, target: Path, stop: Callable[[], bool]) -> None:
        began, parts = time.monotonic(), self._own / "parts" / manifest.key
        parts.mkdir(parents=True, exist_ok=True)
        there = sum(part.stat().st_size for part in parts.iterdir() if part.is_file())
        self._make_room(manifest, max(0, manifest.total_bytes - there), stop)
        try:
            for file in manifest.files:
                self._fetch_file(manifest, file, parts / file.sha256, stop)
            self._settle(manifest, parts, target)
        except OSError as error:
            if isinstance(error, SaasError):
                raise
            raise NoRoom(f"model {manifest.key} could not be written: {error.strerror or error}") from error
        seconds = time.monotonic() - began
        logger.info("fetched model %s: %.2f GB in %.0f s", manifest.key, manifest.total_bytes / 1e9, seconds)

    def _fetch_file(self, manifest: Manifest, file: ModelFile, part: Path, stop: Callable[[], bool]) -> None:
        """The bytes that are missing, then the hash of all; bytes that are wrong are fetched once more from the start."""
        for again in (True, False):
            digest = self._download(manifest.object_of(file), part, file.bytes, stop)
            if digest == file.sha256 and part.stat().st_size == file.bytes:
                return
            part.unlink(missing_ok=True)
            if again:
                logger.warning("model %s: %s came with other bytes than were pushed; once more", manifest.key, file.path or "its file")
        raise ModelCorrupt(f"model {manifest.key} in the bucket is damaged ({file.path or 'its file'}): push it again")

    def _download(self, key: str, part: Path, size: int, stop: Callable[[], bool]) -> str:
        if part.exists() and part.stat().st_size > size:
            part.unlink()
        digest, waits = hashlib.sha256(), iter(self._retry_seconds)
        with part.open("ab+") as into:
            into.seek(0)
            while piece := into.read(1024 * 1024):
                digest.update(piece)
            while True:
                try:
                    self._stream(key, into, digest, stop)
                    os.fsync(into.fileno())
                    return digest.hexdigest()
                except ObjectMissing as error:
                    raise ModelMissing(f"the bucket lost {key}: push the model again") from error
                except (StorageUnavailable, StorageRefused) as error:
                    wait = next(waits, None)
                    if wait is None or isinstance(error, StorageRefused) or stop():
                        raise ModelUnavailable(f"the model could not be fetched: {error}") from error
                    time.sleep(wait)

    def _stream(self, key: str, into: IO[bytes], digest: Any, stop: Callable[[], bool]) -> None:
        for piece in self._store.chunks(key, start=into.tell()):
            into.write(piece)
            digest.update(piece)
            if stop():
                into.flush()
                raise ModelUnavailable("the fetch of a model was stopped; what came stays for the next time")
        into.flush()

    def _settle(self, manifest: Manifest, parts: Path, target: Path) -> None:
        """All files into place with one rename. The note comes first: a model without one would count as the operator's own."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            self._discard(target)
        note = self._own / f".{manifest.key}.new"
        note.write_bytes(manifest.as_json())
        os.replace(note, self._marker_path(manifest.key))
        if manifest.files[0].path == "":
            os.replace(parts / manifest.files[0].sha256, target)
        else:
            tree = parts / "tree"
            shutil.rmtree(tree, ignore_errors=True)
            for file in manifest.files:
                place = tree / file.path
                place.parent.mkdir(parents=True, exist_ok=True)
                _link(parts / file.sha256, place)
            os.replace(tree, target)
        shutil.rmtree(parts, ignore_errors=True)

    def _make_room(self, manifest: Manifest, missing: int, stop: Callable[[], bool]) -> None:
        """Throw out what nobody used for longest until `manifest` fits; waits for running jobs where only they stand in the way."""
        if self._limit_bytes is not None and manifest.total_bytes > self._limit_bytes:
            wanted, limit = manifest.total_bytes / 1e9, self._limit_bytes / 1e9
            raise NoRoom(f"model {manifest.key} has {wanted:.1f} GB, SAAS_MODEL_CACHE_GB allows {limit:.1f} GB for all")
        deadline = time.monotonic() + self._room_seconds
        while not self._fits(manifest, missing):
            if self._throw_out_oldest(manifest.key):
                continue
            free = shutil.disk_usage(self._models).free
            if time.monotonic() >= deadline or stop() or not self.fetched().keys() - {manifest.key}:
                raise NoRoom(
                    f"model {manifest.key} needs {missing / 1e9:.1f} GB, the disk of the models folder has {free / 1e9:.1f} GB free, "
                    f"{self._reserve_bytes / 1e9:.1f} GB of it kept, and running jobs hold the other fetched models"
                )
            time.sleep(_LOOK_SECONDS)

    def _fits(self, manifest: Manifest, missing: int) -> bool:
        if shutil.disk_usage(self._models).free < missing + self._reserve_bytes:
            return False
        others = sum(size for key, size in self.fetched().items() if key != manifest.key)
        return self._limit_bytes is None or others + manifest.total_bytes <= self._limit_bytes

    def _throw_out_oldest(self, wanted: str) -> bool:
        for left in (self._own / "parts").glob("*"):
            # One fetch at a time: nobody is writing these.
            if left.name != wanted:
                logger.info("throwing out what was fetched of model %s and never came to its end", left.name)
                _remove(left)
                return True
        records = self._records()
        for key, size in self.fetched().items():
            if key == wanted:
                continue
            with self._lock(f"{key}.held", fcntl.LOCK_EX | fcntl.LOCK_NB) as free:
                if free:
                    logger.info("throwing out model %s (%.2f GB), which nobody used for longest", key, size / 1e9)
                    # A record that is gone leaves its files in the folder of its key.
                    self._throw_out(key, self.target(key, records.get(key, key)))
                    return True
        return False

    def _throw_out(self, key: str, target: Path) -> None:
        """Out of sight first, then the note, then the bytes: whoever dies in between leaves nothing that counts as a model."""
        aside = self._discard(target, keep=True)
        self._marker_path(key).unlink(missing_ok=True)
        if aside is not None:
            _remove(aside)
        with suppress(OSError):
            target.parent.rmdir()

    def _discard(self, target: Path, *, keep: bool = False) -> Path | None:
        trash = self._own / "trash"
        trash.mkdir(exist_ok=True)
        for left in trash.iterdir():
            _remove(left)
        aside = trash / f"{target.name}.{time.time_ns()}"
        try:
            os.replace(target, aside)
        except FileNotFoundError:
            return None
        if not keep:
            _remove(aside)
        return aside

    def _marker_path(self, key: str) -> Path:
        return self._own / f"{key}.json"

    def _marker(self, key: str) -> Manifest | None:
        try:
            return Manifest.of_json(self._marker_path(key).read_bytes())
        except FileNotFoundError:
            return None
        except BadManifest:
            logger.warning("the note on model %s cannot be read: it counts as not fetched", key)
            return None

    @contextmanager
    def _held(self, key: str) -> Iterator[None]:
        """The model stays: many may hold it, in many processes."""
        with self._lock(f"{key}.held", fcntl.LOCK_SH):
            yield

    @contextmanager
    def _machine(self, stop: Callable[[], bool]) -> Iterator[None]:
        """One fetch at a time on this machine; raises ModelUnavailable when the one who waits is to stop."""
        while True:
            with self._lock("fetching", fcntl.LOCK_EX | fcntl.LOCK_NB) as mine:
                if mine:
                    yield
                    return
            if stop():
                raise ModelUnavailable("the wait for another fetch was stopped")
            time.sleep(_LOOK_SECONDS)

    @contextmanager
    def _lock(self, name: str, how: int) -> Iterator[bool]:
        """A file lock: it falls with the process, however it dies."""
        with (self._own / f"{name}.lock").open("w") as file:
            try:
                fcntl.flock(file, how)
            except BlockingIOError:
                yield False
                return
            yield True


def _place(target: Path, file: ModelFile) -> Path:
    return target / file.path if file.path else target


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _same(path: Path, file: ModelFile) -> bool:
    try:
        return _has_size(path, file.bytes) and sha256_of(path) == file.sha256
    except OSError:
        return False


def _link(source: Path, target: Path) -> None:
    """Equal files share an object, so that the part stays where it is."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        shutil.copyfile(source, target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
