"""InvokeAI's image files over storage/: a PNG with its metadata and a WebP thumbnail per image, found by name through the database.

A delete needs no journal of this class: the row's own trigger marks the objects in the transaction that deletes the row (0005_storage.sql).
"""

import io
import zlib
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from invokeai.app.services.image_files import image_files_disk
from invokeai.app.services.image_files.image_files_base import ImageFileStorageBase
from invokeai.app.services.image_files.image_files_common import (
    ImageFileDeleteException,
    ImageFileNotFoundException,
    ImageFileSaveException,
)
from invokeai.app.services.invoker import Invoker
from invokeai.app.util.thumbnails import make_thumbnail
from PIL import Image, PngImagePlugin
from PIL.Image import Image as PILImageType

from invokeai_saas.errors import SaasError
from invokeai_saas.storage.errors import ObjectMissing
from invokeai_saas.storage.files import Files
from invokeai_saas.storage.keys import ObjectName, check_name, check_subfolder

DECODED_IMAGES = 10


@dataclass(frozen=True, slots=True)
class Doomed:
    """A delete token: the names whose objects go once their rows are gone."""

    names: tuple[str, ...]


class StoredImageFiles(ImageFileStorageBase):
    """Upstream's image file service; who may read is the database's answer, at every call."""

    def __init__(self, files: Files, folder: Path) -> None:
        """`folder` is what upstream is told as root; only its image moves, which are off, would look there."""
        self._files, self._folder = files, folder
        self._decoded: OrderedDict[str, PILImageType] = OrderedDict()
        self._lock = Lock()

    def start(self, invoker: Invoker) -> None:
        """Upstream recovers its deletes here; ours are recovered by storage/recovery.py."""
        self._invoker = invoker

    def get(self, image_name: str, image_subfolder: str = "") -> PILImageType:
        """The decoded image. Shared between callers, as upstream's: copy before changing it."""
        check_subfolder(image_subfolder)
        stored = self._files.locate(ObjectName("image", image_name))
        if stored is None:
            raise ImageFileNotFoundException
        with self._lock:
            if stored.key in self._decoded:
                self._decoded.move_to_end(stored.key)
                return self._decoded[stored.key]
        image = Image.open(self.get_path(image_name))
        # Decoded here: a lazy image read by two threads at once breaks.
        image.load()
        self._remember(stored.key, image)
        return image

    def get_path(self, image_name: str, thumbnail: bool = False, image_subfolder: str = "") -> Path:
        """A local file of the image, to read."""
        check_subfolder(image_subfolder)
        try:
            return self._files.path(ObjectName("image", image_name, "thumbnail" if thumbnail else "file"))
        except ObjectMissing as error:
            raise ImageFileNotFoundException(str(error)) from error

    @property
    def image_root(self) -> Path:
        """See __init__."""
        return self._folder

    @property
    def thumbnail_root(self) -> Path:
        """See __init__."""
        return self._folder / "thumbnails"

    def evict_cache_paths(self, paths: list[Path]) -> None:
        """Nothing is cached by path."""

    def validate_path(self, path: str) -> bool:
        """Whether a path of get_path() is there."""
        return Path(path).exists()

    def save(
        self,
        image: PILImageType,
        image_name: str,
        metadata: str | None = None,
        workflow: str | None = None,
        graph: str | None = None,
        thumbnail_size: int = 256,
        image_subfolder: str = "",
    ) -> None:
        """Store the PNG and its thumbnail, both or neither; the row must be there. As upstream, `image.info` becomes the metadata."""
        try:
            check_subfolder(image_subfolder)
            _read(image)
            # First: the palette's transparency lies in image.info.
            thumbnail = as_webp(make_thumbnail(image, thumbnail_size))
            texts = {"invokeai_metadata": metadata, "invokeai_workflow": workflow, "invokeai_graph": graph}
            image.info = {name: text for name, text in texts.items() if text is not None}
            png = _as_png(image, self._invoker.services.configuration.pil_compress_level)
            self._files.save("image", image_name, {"file": png, "thumbnail": thumbnail})
        except Exception as error:
            raise ImageFileSaveException(f"Image file not saved: {error}") from error

    def delete(self, image_name: str, image_subfolder: str = "") -> None:
        """Remove the files of an image whose row is gone; refused while it is there."""
        check_subfolder(image_subfolder)
        if self._files.row_exists("image", check_name(image_name)):
            raise ImageFileDeleteException(f"expected the record of {image_name} to be deleted first")
        self.commit_delete(Doomed((image_name,)))

    def stage_delete(self, image_name: str, image_subfolder: str = "") -> Doomed:
        """Nothing moves before the row is gone."""
        return self.begin_delete([(image_name, image_subfolder)])

    def begin_delete(self, images: Sequence[tuple[str, str]]) -> Doomed:
        """Check the names; the intent is recorded with the deletion of each row."""
        for name, subfolder in images:
            check_name(name)
            check_subfolder(subfolder)
        return Doomed(tuple(name for name, _ in images))

    def commit_delete(self, token: object, image_names: Collection[str] | None = None) -> None:
        """Remove the objects of those rows that are gone, or leave them to recovery when the store does not answer."""
        doomed = _demand(token)
        names = doomed.names if image_names is None else [name for name in doomed.names if name in set(image_names)]
        try:
            self._files.purge("image", names)
        except Exception as error:
            raise ImageFileDeleteException(f"Image files wait for their removal: {error}") from error

    def abandon_delete(self, token: object) -> None:
        """The rows stayed, and so do the objects."""
        _demand(token)

    def rollback_delete(self, token: object) -> None:
        """As abandon_delete()."""
        _demand(token)

    def get_workflow(self, image_name: str, image_subfolder: str = "") -> str | None:
        """The workflow JSON in the PNG."""
        return self._text(image_name, "invokeai_workflow", image_subfolder)

    def get_graph(self, image_name: str, image_subfolder: str = "") -> str | None:
        """The graph JSON in the PNG."""
        return self._text(image_name, "invokeai_graph", image_subfolder)

    def _text(self, image_name: str, field: str, image_subfolder: str) -> str | None:
        text = self.get(image_name, image_subfolder).info.get(field)
        return text if isinstance(text, str) else None

    def _remember(self, key: str, image: PILImageType) -> None:
        with self._lock:
            self._decoded[key] = image
            while len(self._decoded) > DECODED_IMAGES:
                self._decoded.popitem(last=False)


class UnreadablePicture(SaasError):
    """A file that begins like a picture and is none."""

    status = 415


def _read(image: PILImageType) -> None:
    """All of it, now: what was uploaded has only been opened so far."""
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadablePicture(f"expected a whole picture, got one that cannot be read: {error}") from error


def as_webp(image: PILImageType) -> bytes:
    """A thumbnail's bytes."""
    output = io.BytesIO()
    image.save(output, "WEBP")
    return output.getvalue()


def _as_png(image: PILImageType, compress_level: int) -> bytes:
    """The PNG with its texts, compressed as upstream would."""
    texts = PngImagePlugin.PngInfo()
    for field, text in image.info.items():
        texts.add_text(field, text)
    options = {"compress_level": compress_level}
    if compress_level == 1 and image_files_disk._should_use_png_rle(image):
        options["compress_type"] = zlib.Z_RLE
    output = io.BytesIO()
    image.save(output, "PNG", pnginfo=texts, **options)
    return output.getvalue()


def _demand(token: object) -> Doomed:
    if not isinstance(token, Doomed):
        raise ImageFileDeleteException("Invalid delete token")
    return token
