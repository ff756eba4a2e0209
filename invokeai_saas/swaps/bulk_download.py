"""InvokeAI's zip files of pictures, per user: FOLDER/<digest of the user>/<name>.zip, where nobody else's request looks.

The folder is shared by the processes of one host. A zip is whole or not there, fetched once (InvokeAI's route deletes it after that),
and gone an hour after it was made.
"""

import hashlib
import shutil
import time
from pathlib import Path
from zipfile import ZipFile

from invokeai.app.services.bulk_download.bulk_download_common import BulkDownloadTargetException
from invokeai.app.services.bulk_download.bulk_download_default import BulkDownloadService
from invokeai.app.services.images.images_common import ImageDTO
from invokeai.app.services.invoker import Invoker

from invokeai_saas.db import tenancy
from invokeai_saas.storage.errors import BadName
from invokeai_saas.storage.keys import check_name

EXPIRES_SECONDS = 3600.0
MAX_PER_USER = 5
# Leaves room for the id and the suffix in a name of 200 bytes, four to a character.
MAX_BOARD_NAME = 38


class TenantBulkDownloads(BulkDownloadService):
    """Upstream's service on a folder of the caller's own. `folder` is ours alone: what is too old in it is removed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Upstream's own memory of owners: of this process, and never read here.
        self._download_owners: dict[str, str] = {}

    def start(self, invoker: Invoker) -> None:
        """Remember the services, and remove what an earlier process left."""
        super().start(invoker)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._remove_expired()

    def stop(self, *args: object, **kwargs: object) -> None:
        """Zips outlive a restart, for their hour."""

    def handler(
        self, image_names: list[str] | None, board_id: str | None, bulk_download_item_id: str | None, user_id: str = "system"
    ) -> None:
        """Make a zip for `user_id`, as that user: what they may not see is not in it."""
        self._remove_expired()
        with tenancy.as_user(user_id):
            super().handler(image_names, board_id, bulk_download_item_id, user_id)
        self._download_owners.clear()

    def get_owner(self, bulk_download_item_name: str) -> str | None:
        """The caller, or nobody: there is no telling whose a name is."""
        return tenancy.current().user_id if self._find(bulk_download_item_name) is not None else None

    def get_path(self, bulk_download_item_name: str) -> str:
        """The caller's own zip; raises BulkDownloadTargetException for what is foreign, expired or was never there."""
        path = self._find(bulk_download_item_name)
        if path is None:
            raise BulkDownloadTargetException
        return str(path)

    def delete(self, bulk_download_item_name: str) -> None:
        """Remove the caller's own zip; somebody else may have been faster."""
        path = self._find(bulk_download_item_name)
        if path is not None:
            path.unlink(missing_ok=True)

    def forget(self, user_id: str) -> None:
        """Remove all zips of a user whose account is erased."""
        shutil.rmtree(self._folder_of(user_id), ignore_errors=True)

    def _create_zip_file(self, image_dtos: list[ImageDTO], bulk_download_item_id: str) -> str:
        folder, name = self._own_folder(), check_name(f"{bulk_download_item_id}.zip")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        growing = folder / f"{name}.part"
        try:
            with ZipFile(growing, "w") as archive:
                for image in image_dtos:
                    archive.write(
                        self._invoker.services.images.get_path(image.image_name), f"{image.image_category.value}/{image.image_name}"
                    )
            growing.replace(folder / name)
        finally:
            growing.unlink(missing_ok=True)
        for old in sorted(folder.glob("*.zip"), key=_made_at)[:-MAX_PER_USER]:
            old.unlink(missing_ok=True)
        return name

    def _get_clean_board_name(self, board_id: str) -> str:
        return str(super()._get_clean_board_name(board_id))[:MAX_BOARD_NAME]

    def _find(self, name: str) -> Path | None:
        try:
            path = self._own_folder() / check_name(name)
        except BadName:
            return None
        is_good = path.suffix == ".zip" and path.is_file() and not path.is_symlink()
        return path if is_good and _made_at(path) > time.time() - EXPIRES_SECONDS else None

    def _own_folder(self) -> Path:
        return self._folder_of(tenancy.current().user_id or "")

    def _folder_of(self, user_id: str) -> Path:
        return self._folder / hashlib.sha256(user_id.encode()).hexdigest()[:32]

    def _remove_expired(self) -> None:
        for file in self._folder.glob("*/*"):
            if _made_at(file) <= time.time() - EXPIRES_SECONDS:
                file.unlink(missing_ok=True)


def _made_at(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0
