"""InvokeAI's pictures of style presets over storage/. Those of the presets that upstream ships stay files of its package."""

from pathlib import Path

from invokeai.app.services.invoker import Invoker
from invokeai.app.services.style_preset_images import style_preset_images_disk
from invokeai.app.services.style_preset_images.style_preset_images_base import StylePresetImageFileStorageBase
from invokeai.app.services.style_preset_images.style_preset_images_common import (
    StylePresetImageFileDeleteException,
    StylePresetImageFileNotFoundException,
    StylePresetImageFileSaveException,
)
from invokeai.app.services.style_preset_records.style_preset_records_common import PresetType
from invokeai.app.util.misc import uuid_string
from PIL import Image
from PIL.Image import Image as PILImageType

from invokeai_saas.storage.errors import BadName, ObjectMissing
from invokeai_saas.storage.files import Files
from invokeai_saas.swaps.pictures import Pictures

_SHIPPED = Path(style_preset_images_disk.__file__).parent / "default_style_preset_images"


class StoredStylePresetImages(StylePresetImageFileStorageBase):
    """A picture per preset; a preset that the caller may not see has none."""

    def __init__(self, files: Files) -> None:
        self._pictures = Pictures(files, "style_preset")

    def start(self, invoker: Invoker) -> None:
        """Keeps the records at hand."""
        self._invoker = invoker

    def get(self, style_preset_id: str) -> PILImageType:
        """The picture."""
        return Image.open(self.get_path(style_preset_id))

    def get_path(self, style_preset_id: str) -> Path:
        """A local file, to read."""
        if (shipped := self._shipped(style_preset_id)) is not None:
            return shipped
        try:
            return self._pictures.path(style_preset_id)
        except (BadName, ObjectMissing) as error:
            raise StylePresetImageFileNotFoundException(str(error)) from error

    def get_url(self, style_preset_id: str) -> str | None:
        """The route's address, None without a picture. The random query keeps browsers from showing a replaced one."""
        shipped = self._shipped(style_preset_id)
        if not (self._pictures.exists(style_preset_id) if shipped is None else shipped.exists()):
            return None
        url: str = self._invoker.services.urls.get_style_preset_image_url(style_preset_id)
        return f"{url}?{uuid_string()}"

    def save(self, style_preset_id: str, image: PILImageType) -> None:
        """Store or replace the picture of the caller's own preset."""
        try:
            self._pictures.save(style_preset_id, image)
        except Exception as error:
            raise StylePresetImageFileSaveException(f"Style preset image not saved: {error}") from error

    def delete(self, style_preset_id: str) -> None:
        """Remove the picture."""
        try:
            self._pictures.delete(style_preset_id)
        except (BadName, ObjectMissing) as error:
            raise StylePresetImageFileNotFoundException(str(error)) from error
        except Exception as error:
            raise StylePresetImageFileDeleteException(f"Style preset image not deleted: {error}") from error

    def _shipped(self, style_preset_id: str) -> Path | None:
        preset = self._invoker.services.style_preset_records.get(style_preset_id)
        # The name of a default is upstream's own.
        return _SHIPPED / f"{preset.name}.png" if preset.type is PresetType.Default else None
