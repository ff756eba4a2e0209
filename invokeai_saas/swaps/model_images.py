"""InvokeAI's covers of models over storage/. Models are one installation for all, and so are their covers: read by anybody, saved by
routes that are for administrators and by the installer, which works for no user."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from invokeai.app.services.invoker import Invoker
from invokeai.app.services.model_images.model_images_base import ModelImageFileStorageBase
from invokeai.app.services.model_images.model_images_common import (
    ModelImageFileDeleteException,
    ModelImageFileNotFoundException,
    ModelImageFileSaveException,
)
from invokeai.app.util.misc import uuid_string
from PIL import Image
from PIL.Image import Image as PILImageType

from invokeai_saas.db import tenancy
from invokeai_saas.storage.errors import BadName, ObjectMissing
from invokeai_saas.storage.files import Files
from invokeai_saas.storage.keys import check_name
from invokeai_saas.swaps.pictures import Pictures


class StoredModelImages(ModelImageFileStorageBase):
    """A picture per model."""

    def __init__(self, files: Files, folder: Path) -> None:
        """`folder` names the path of a cover that is not there yet; nothing is written to it."""
        self._pictures, self._folder = Pictures(files, "model"), folder

    def start(self, invoker: Invoker) -> None:
        """Keeps the addresses at hand."""
        self._invoker = invoker

    def get(self, model_key: str) -> PILImageType:
        """The picture."""
        path = self.get_path(model_key)
        if not path.is_file():
            raise ModelImageFileNotFoundException
        return Image.open(path)

    def get_path(self, model_key: str) -> Path:
        """A local file, to read; without a cover one that does not exist, as upstream asks before the first save. Raises for bad keys."""
        with _for_everybody():
            try:
                return self._pictures.path(model_key)
            except BadName as error:
                raise ModelImageFileNotFoundException(str(error)) from error
            except ObjectMissing:
                return self._folder / f"{check_name(model_key)}.webp"

    def get_url(self, model_key: str) -> str | None:
        """The route's address, None without a cover or for a bad key: one model must not fail the whole list."""
        with _for_everybody():
            try:
                if not self._pictures.exists(model_key):
                    return None
            except BadName:
                return None
        url: str = self._invoker.services.urls.get_model_image_url(model_key)
        return f"{url}?{uuid_string()}"

    def save(self, image: PILImageType, model_key: str) -> None:
        """Store or replace the cover."""
        try:
            with _for_everybody():
                self._pictures.save(model_key, image)
        except Exception as error:
            raise ModelImageFileSaveException(f"Model image not saved: {error}") from error

    def delete(self, model_key: str) -> None:
        """Remove the cover."""
        try:
            with _for_everybody():
                self._pictures.delete(model_key)
        except (BadName, ObjectMissing) as error:
            # The route answers 404 by the cause.
            raise ModelImageFileDeleteException(str(error)) from ModelImageFileNotFoundException(str(error))
        except Exception as error:
            raise ModelImageFileDeleteException(f"Model image not deleted: {error}") from error


@contextmanager
def _for_everybody() -> Iterator[None]:
    with tenancy.as_system("covers of models are everybody's"):
        yield
