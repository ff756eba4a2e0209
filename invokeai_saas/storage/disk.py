"""The store on a local folder: `objects/<key>`, written beside and moved into place. For one host, and for trying things out."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from invokeai_saas.errors import BadSettings, SaasError
from invokeai_saas.storage.errors import ObjectMissing, StorageUnavailable
from invokeai_saas.storage.keys import check_key
from invokeai_saas.storage.port import PIECE_BYTES, Found, ObjectStore
from invokeai_saas.storage.signing import Signer

URL_BASE = "/api/v1/stored"
_NOT_SYNCABLE = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)


class DiskStore(ObjectStore):
    """Objects under `root`, addresses signed by `signer`."""

    def __init__(self, root: Path, signer: Signer) -> None:
        self._root = root.absolute()
        self._objects, self._incoming = self._root / "objects", self._root / "incoming"
        self.signer = signer

    def check(self) -> None:
        """Make the folders, and write and remove a file."""
        try:
            for folder in (self._objects, self._incoming):
                folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._incoming) as probe:
                probe.write(b"probe")
        except OSError as error:
            raise BadSettings(f"SAAS_DATA_DIR: expected a folder that can be written to, got: {error.strerror}") from None
        self._drop_old_incoming()

    def put(self, key: str, data: bytes, content_type: str) -> None:
        """See ObjectStore. The content type is the file's name's; nothing keeps it."""
        with _translated(key, missing=StorageUnavailable), self._arriving() as arriving:
            with arriving.open("wb") as file:
                file.write(data)
            self._settle(arriving, key)

    def put_file(self, key: str, source: Path, content_type: str, *, keep: bool = False) -> None:
        """See ObjectStore. A rename where it can be, else a copy."""
        with _translated(key, missing=StorageUnavailable):
            with suppress(OSError):
                if not keep and source.stat().st_dev == self._incoming.stat().st_dev:
                    self._settle(source, key)
                    return
            with self._arriving() as arriving:
                shutil.copyfile(source, arriving)
                self._settle(arriving, key)
            if not keep:
                source.unlink(missing_ok=True)

    def local_path(self, key: str) -> Path:
        """The object's own file."""
        path = self._path(key)
        with _translated(key):
            if not path.is_file():
                raise FileNotFoundError(key)
        return path

    def chunks(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        """See ObjectStore."""
        with _translated(key), self._path(key).open("rb") as file:
            file.seek(start)
            while piece := file.read(PIECE_BYTES):
                yield piece

    def size(self, key: str) -> int | None:
        """See ObjectStore."""
        try:
            with _translated(key):
                return self._path(key).stat().st_size
        except ObjectMissing:
            return None

    def delete(self, keys: Iterable[str]) -> None:
        """See ObjectStore."""
        folders = set()
        for key in keys:
            path = self._path(key)
            with _translated(key):
                path.unlink(missing_ok=True)
            folders.add(path.parent)
        for folder in folders:
            _sync_folder(folder)

    def list(self, prefix: str) -> Iterator[Found]:
        """See ObjectStore."""
        for path in sorted(self._objects.joinpath(*prefix.split("/")[:-1]).rglob("*")):
            key = path.relative_to(self._objects).as_posix()
            # One that was listed may be gone by now.
            with suppress(FileNotFoundError):
                if key.startswith(prefix) and path.is_file():
                    status = path.stat()
                    yield Found(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))

    def signed_url(self, key: str, *, user_id: str, seconds: int) -> str:
        """See ObjectStore: relative to the server, for this user only."""
        return self.signer.url(URL_BASE, key, user_id=user_id, seconds=seconds)

    def _path(self, key: str) -> Path:
        path = self._objects.joinpath(*check_key(key).split("/"))
        # check_key() lets nothing climb; a link that somebody laid inside would.
        if not path.resolve().is_relative_to(self._objects.resolve()):
            raise ObjectMissing(f"no object {key}")
        return path

    @contextmanager
    def _arriving(self) -> Iterator[Path]:
        descriptor, name = tempfile.mkstemp(dir=self._incoming)
        os.close(descriptor)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def _settle(self, arriving: Path, key: str) -> None:
        target = self._path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        _sync_file(arriving)
        os.replace(arriving, target)
        _sync_folder(target.parent)

    def _drop_old_incoming(self, *, older_than_seconds: float = 24 * 3600) -> None:
        limit = datetime.now().timestamp() - older_than_seconds
        for path in self._incoming.iterdir():
            with suppress(OSError):
                if path.stat().st_mtime < limit:
                    path.unlink()


@contextmanager
def _translated(key: str, *, missing: type[SaasError] = ObjectMissing) -> Iterator[None]:
    """OSError in, the port's errors out, `missing` for a path that is not there; the message holds no path of the server."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        if isinstance(error, ObjectMissing):
            raise
        raise missing(f"no object {key}, or no folder for it") from error
    except OSError as error:
        raise StorageUnavailable(f"the disk does not answer as expected for {key}: {error.strerror}") from error


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """The rename or removal itself survives a power loss, where the file system can promise it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SYNCABLE:
            raise StorageUnavailable(f"the disk does not sync: {error.strerror}") from error
    finally:
        os.close(descriptor)
