"""What the three services of small pictures (workflows, style presets, models) share: one replaceable WebP of 256 pixels per row."""

from pathlib import Path

from invokeai.app.util.thumbnails import make_thumbnail
from PIL import Image
from PIL.Image import Image as PILImageType

from invokeai_saas.storage.errors import ObjectMissing
from invokeai_saas.storage.files import Files
from invokeai_saas.storage.keys import Kind, ObjectName, check_name
from invokeai_saas.swaps.image_files import as_webp

PICTURE_PIXELS = 256


class Pictures:
    """Pictures of one kind, by the id of their row. Raises ObjectMissing for what is missing or not the caller's."""

    def __init__(self, files: Files, kind: Kind) -> None:
        self._files, self._kind = files, kind

    def save(self, row_id: str, image: PILImageType) -> None:
        """Store or replace; a failed upload leaves the picture that was there."""
        self._files.save(self._kind, row_id, {"file": as_webp(make_thumbnail(image, PICTURE_PIXELS))})

    def open(self, row_id: str) -> PILImageType:
        """The picture, decoded lazily."""
        return Image.open(self.path(row_id))

    def path(self, row_id: str) -> Path:
        """A local file, to read."""
        return self._files.path(ObjectName(self._kind, row_id))

    def exists(self, row_id: str) -> bool:
        """Whether there is one that the caller may read."""
        return self._files.locate(ObjectName(self._kind, row_id)) is not None

    def delete(self, row_id: str) -> None:
        """Remove the picture, of a row that stays or of one that is gone already."""
        if not self._files.row_exists(self._kind, check_name(row_id)):
            self._files.purge(self._kind, [row_id])
        elif not self._files.discard(self._kind, row_id):
            raise ObjectMissing(f"no picture of {self._kind} {row_id}")
