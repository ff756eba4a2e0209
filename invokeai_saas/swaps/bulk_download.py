"""InvokeAI's zip files of pictures, in the store under zips/USER/, where nobody else's request looks and every web process does.

A zip is whole or not there, can be fetched for an hour after it was made, and is gone soon after that.
"""

import logging
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zipfile import ZipFile

from invokeai.app.services.board_records.board_records_common import BoardRecordNotFoundException
from invokeai.app.services.bulk_download.bulk_download_common import (
    BulkDownloadException,
    BulkDownloadParametersException,
    BulkDownloadTargetException,
)
from invokeai.app.services.bulk_download.bulk_download_default import BulkDownloadService
from invokeai.app.services.images.images_common import ImageDTO

from invokeai_saas.db import tenancy
from invokeai_saas.errors import SaasError
from invokeai_saas.storage.errors import BadName, StorageRefused, StorageUnavailable
from invokeai_saas.storage.keys import ZIPS, is_zip, zip_key, zips_of
from invokeai_saas.storage.port import Found, ObjectStore

EXPIRES = timedelta(hours=1)
MAX_PER_USER = 5
# Of pictures in one zip: it lies on this machine while it grows, and once more where it is fetched.
MOST_GIGABYTES = 4
# Leaves room for the id and the suffix in a name of 200 bytes, four to a character.
MAX_BOARD_NAME = 38
logger = logging.getLogger(__name__)


class OneZipAtATime(SaasError, BulkDownloadException):
    """A user's second zip while the first is made: refused in the request, or told as upstream's own errors are."""

    status = 409

    def __init__(self) -> None:
        super().__init__("expected one zip at a time, got a second one while the first is made")


class NoSuchBoard(SaasError):
    """A board that is foreign or was never there."""

    status = 404

    def __init__(self) -> None:
        super().__init__("Board not found")


class TenantBulkDownloads(BulkDownloadService):
    """Upstream's service on the caller's own zips in `store`."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._making: set[str] = set()
        self._lock = threading.Lock()
        # Upstream's own memory of owners: of this process, and never read here.
        self._download_owners: dict[str, str] = {}

    def stop(self, *args: object, **kwargs: object) -> None:
        """Zips outlive a restart, for their hour."""

    def handler(
        self, image_names: list[str] | None, board_id: str | None, bulk_download_item_id: str | None, user_id: str = "system"
    ) -> None:
        """Make a zip for `user_id`, as that user: what they may not see is not in it. Each picture is in it once."""
        with tenancy.as_user(user_id):
            super().handler(list(dict.fromkeys(image_names or ())), board_id, bulk_download_item_id, user_id)
        self._download_owners.clear()

    def generate_item_id(self, board_id: str | None) -> str:
        """As upstream, inside the request: raises NoSuchBoard and OneZipAtATime, which whoever hears no events could not know of."""
        self._demand_none_is_made(tenancy.current().user_id or "")
        try:
            return str(super().generate_item_id(board_id))
        except BoardRecordNotFoundException:
            raise NoSuchBoard from None

    def get_owner(self, bulk_download_item_name: str) -> str | None:
        """The caller, or nobody: there is no telling whose a name is."""
        return tenancy.current().user_id if self._find(bulk_download_item_name) is not None else None

    def get_path(self, bulk_download_item_name: str) -> str:
        """The caller's own zip, on this machine; raises BulkDownloadTargetException for what is foreign, expired or was never there."""
        key = self._find(bulk_download_item_name)
        if key is None:
            raise BulkDownloadTargetException
        return str(self._store.local_path(key))

    def delete(self, bulk_download_item_name: str) -> None:
        """InvokeAI's route asks for it after every answer, one that nobody received included: a zip stays for its hour."""

    def forget(self, user_id: str) -> None:
        """Remove all zips of a user whose account is erased."""
        _remove(self._store, zips_of(user_id), lambda found: found)

    def _create_zip_file(self, image_dtos: list[ImageDTO], bulk_download_item_id: str) -> str:
        name, user_id = f"{bulk_download_item_id}.zip", tenancy.current().user_id or ""
        with self._one_at_a_time(user_id), tempfile.TemporaryDirectory() as folder:
            growing = Path(folder) / "pictures.zip"
            with ZipFile(growing, "w") as archive:
                for image in image_dtos:
                    path = self._invoker.services.images.get_path(image.image_name)
                    archive.write(path, f"{image.image_category.value}/{image.image_name}")
                    if growing.stat().st_size > MOST_GIGABYTES << 30:
                        raise BulkDownloadParametersException(f"expected at most {MOST_GIGABYTES} GB of pictures in one zip, got more")
            _remove(self._store, zips_of(user_id), lambda found: sorted(found, key=_made_at)[: 1 - MAX_PER_USER])
            self._store.put_file(zip_key(user_id, name), growing, "application/zip")
        return name

    @contextmanager
    def _one_at_a_time(self, user_id: str) -> Iterator[None]:
        """Whoever asks for a second one would fill the disk that all share."""
        with self._lock:
            self._demand_none_is_made(user_id)
            self._making.add(user_id)
        try:
            yield
        finally:
            with self._lock:
                self._making.discard(user_id)

    def _demand_none_is_made(self, user_id: str) -> None:
        if user_id in self._making:
            raise OneZipAtATime

    def _get_clean_board_name(self, board_id: str) -> str:
        return str(super()._get_clean_board_name(board_id))[:MAX_BOARD_NAME]

    def _find(self, name: str) -> str | None:
        try:
            key = zip_key(tenancy.current().user_id or "", name)
        except BadName:
            return None
        return key if any(found.key == key and _is_fresh(found) for found in self._store.list(key)) else None


def forget_expired(store: ObjectStore) -> None:
    """Remove everybody's zips whose hour is over."""
    _remove(store, ZIPS, lambda found: [each for each in found if not _is_fresh(each)])


def _remove(store: ObjectStore, prefix: str, choose: Callable[[Iterable[Found]], Iterable[Found]]) -> None:
    """A store that does not answer is no failure: what is expired is not served, and goes the next time."""
    try:
        store.delete([found.key for found in choose(store.list(prefix)) if is_zip(found.key)])
    except (StorageUnavailable, StorageRefused) as error:
        logger.warning("zips of pictures are left to the next time: %s", error)


def _is_fresh(found: Found) -> bool:
    return _made_at(found) > datetime.now(UTC) - EXPIRES


def _made_at(found: Found) -> datetime:
    return found.changed_at
