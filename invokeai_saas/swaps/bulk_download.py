"""InvokeAI's zip files of pictures, in the store under zips/USER/, where nobody else's request looks and every web process does.

A zip is whole or not there, fetched once (InvokeAI's route deletes it after that), and gone an hour after it was made.
"""

import logging
import tempfile
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zipfile import ZipFile

from invokeai.app.services.bulk_download.bulk_download_common import BulkDownloadTargetException
from invokeai.app.services.bulk_download.bulk_download_default import BulkDownloadService
from invokeai.app.services.images.images_common import ImageDTO

from invokeai_saas.db import tenancy
from invokeai_saas.storage.errors import BadName, StorageRefused, StorageUnavailable
from invokeai_saas.storage.keys import ZIPS, zip_key, zips_of
from invokeai_saas.storage.port import Found, ObjectStore

EXPIRES = timedelta(hours=1)
MAX_PER_USER = 5
# Leaves room for the id and the suffix in a name of 200 bytes, four to a character.
MAX_BOARD_NAME = 38
logger = logging.getLogger(__name__)


class TenantBulkDownloads(BulkDownloadService):
    """Upstream's service on the caller's own zips in `store`."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        # Upstream's own memory of owners: of this process, and never read here.
        self._download_owners: dict[str, str] = {}

    def stop(self, *args: object, **kwargs: object) -> None:
        """Zips outlive a restart, for their hour."""

    def handler(
        self, image_names: list[str] | None, board_id: str | None, bulk_download_item_id: str | None, user_id: str = "system"
    ) -> None:
        """Make a zip for `user_id`, as that user: what they may not see is not in it."""
        self._remove(ZIPS, lambda found: [each for each in found if not _is_fresh(each)])
        with tenancy.as_user(user_id):
            super().handler(image_names, board_id, bulk_download_item_id, user_id)
        self._remove(zips_of(user_id), lambda found: sorted(found, key=_made_at)[:-MAX_PER_USER])
        self._download_owners.clear()

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
        """Remove the caller's own zip; somebody else may have been faster."""
        key = self._find(bulk_download_item_name)
        if key is not None:
            self._store.delete([key])

    def forget(self, user_id: str) -> None:
        """Remove all zips of a user whose account is erased."""
        self._remove(zips_of(user_id), lambda found: found)

    def _create_zip_file(self, image_dtos: list[ImageDTO], bulk_download_item_id: str) -> str:
        name = f"{bulk_download_item_id}.zip"
        key = zip_key(tenancy.current().user_id or "", name)
        with tempfile.TemporaryDirectory() as folder:
            growing = Path(folder) / "pictures.zip"
            with ZipFile(growing, "w") as archive:
                for image in image_dtos:
                    archive.write(
                        self._invoker.services.images.get_path(image.image_name), f"{image.image_category.value}/{image.image_name}"
                    )
            self._store.put_file(key, growing, "application/zip")
        return name

    def _get_clean_board_name(self, board_id: str) -> str:
        return str(super()._get_clean_board_name(board_id))[:MAX_BOARD_NAME]

    def _find(self, name: str) -> str | None:
        try:
            key = zip_key(tenancy.current().user_id or "", name)
        except BadName:
            return None
        return key if any(found.key == key and _is_fresh(found) for found in self._store.list(key)) else None

    def _remove(self, prefix: str, choose: Callable[[Iterable[Found]], Iterable[Found]]) -> None:
        """A store that does not answer is no failure: what is expired is not served, and goes with the next."""
        try:
            self._store.delete([found.key for found in choose(self._store.list(prefix))])
        except (StorageUnavailable, StorageRefused) as error:
            logger.warning("zips of pictures are left to the next: %s", error)


def _is_fresh(found: Found) -> bool:
    return _made_at(found) > datetime.now(UTC) - EXPIRES


def _made_at(found: Found) -> datetime:
    return found.changed_at
