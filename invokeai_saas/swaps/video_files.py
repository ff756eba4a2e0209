"""InvokeAI's video files over storage/: the MP4, a WebP of its first frame, and a JSON sidecar with metadata, workflow and graph."""

import json
import logging
from pathlib import Path
from typing import Any

from invokeai.app.services.invoker import Invoker
from invokeai.app.services.video_files.video_files_base import VideoFileStorageBase
from invokeai.app.services.video_files.video_files_common import (
    VideoFileDeleteException,
    VideoFileNotFoundException,
    VideoFileSaveException,
)
from invokeai.app.util.thumbnails import make_thumbnail
from invokeai.app.util.video_thumbnails import extract_video_frame
from PIL import Image

from invokeai_saas.storage.errors import ObjectMissing
from invokeai_saas.storage.files import Files
from invokeai_saas.storage.keys import ObjectName, Part, check_name, check_subfolder
from invokeai_saas.swaps.image_files import Doomed, as_webp

logger = logging.getLogger(__name__)


class StoredVideoFiles(VideoFileStorageBase):
    """Upstream's video file service. Videos go up in parts, and are played from signed addresses or from the local copy."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def start(self, invoker: Invoker) -> None:
        """Recovery is storage/recovery.py's."""
        self._invoker = invoker

    def get_path(self, video_name: str, thumbnail: bool = False, video_subfolder: str = "") -> Path:
        """A local file of the video, to read. Large ones are better played from Files.signed_url()."""
        check_subfolder(video_subfolder)
        return self._path(video_name, "thumbnail" if thumbnail else "file")

    def save(
        self,
        source_path: Path,
        video_name: str,
        thumbnail_size: int = 256,
        video_subfolder: str = "",
        metadata: str | None = None,
        workflow: str | None = None,
        graph: str | None = None,
        first_frame: Image.Image | None = None,
    ) -> None:
        """Store video, thumbnail and sidecar, all or nothing; the row must be there. `source_path` is consumed on success."""
        texts = {"invokeai_metadata": metadata, "invokeai_workflow": workflow, "invokeai_graph": graph}
        contents: dict[Part, bytes | Path] = {"file": Path(source_path)}
        try:
            check_subfolder(video_subfolder)
            check_name(video_name)
            frame = first_frame or _first_frame(Path(source_path), video_name)
            if frame is not None:
                contents["thumbnail"] = as_webp(make_thumbnail(frame, thumbnail_size))
            if any(text is not None for text in texts.values()):
                contents["sidecar"] = json.dumps(texts).encode()
            self._files.save("video", video_name, contents)
        except Exception as error:
            raise VideoFileSaveException(f"Video file not saved: {error}") from error

    def delete(self, video_name: str, video_subfolder: str = "") -> None:
        """Remove the files of a video whose row is gone; refused while it is there."""
        token = self.stage_delete(video_name, video_subfolder)
        if self._files.row_exists("video", video_name):
            raise VideoFileDeleteException(f"expected the record of {video_name} to be deleted first")
        self.commit_delete(token)

    def stage_delete(self, video_name: str, video_subfolder: str = "") -> Doomed:
        """Nothing moves before the row is gone."""
        check_subfolder(video_subfolder)
        return Doomed((check_name(video_name),))

    def commit_delete(self, token: object) -> None:
        """Remove the objects of rows that are gone, or leave them to recovery when the store does not answer."""
        doomed = _demand(token)
        try:
            self._files.purge("video", doomed.names)
        except Exception as error:
            raise VideoFileDeleteException(f"Video files wait for their removal: {error}") from error

    def rollback_delete(self, token: object) -> None:
        """The rows stayed, and so do the objects."""
        _demand(token)

    def get_workflow(self, video_name: str, video_subfolder: str = "") -> str | None:
        """The workflow JSON of the sidecar."""
        return self._text(video_name, "invokeai_workflow", video_subfolder)

    def get_graph(self, video_name: str, video_subfolder: str = "") -> str | None:
        """The graph JSON of the sidecar."""
        return self._text(video_name, "invokeai_graph", video_subfolder)

    def validate_path(self, path: str) -> bool:
        """Whether a path of get_path() is there."""
        return Path(path).exists()

    def _path(self, video_name: str, part: Part) -> Path:
        try:
            return self._files.path(ObjectName("video", video_name, part))
        except ObjectMissing as error:
            raise VideoFileNotFoundException(str(error)) from error

    def _text(self, video_name: str, field: str, video_subfolder: str) -> str | None:
        check_subfolder(video_subfolder)
        if self._files.locate(ObjectName("video", video_name, "sidecar")) is None:
            return None
        sidecar: dict[str, Any] = json.loads(self._path(video_name, "sidecar").read_text(encoding="utf-8"))
        text = sidecar.get(field)
        return text if isinstance(text, str) else None


def _first_frame(source: Path, video_name: str) -> Image.Image | None:
    """None when it cannot be had: a gallery without a thumbnail is better than a lost video."""
    try:
        frame: Image.Image | None = extract_video_frame(source, frame_index=0)
    except Exception:
        logger.warning("the thumbnail of %s failed", video_name, exc_info=True)
        return None
    if frame is None:
        logger.warning("no frame of %s could be decoded: it stays without a thumbnail", video_name)
    return frame


def _demand(token: object) -> Doomed:
    if not isinstance(token, Doomed):
        raise VideoFileDeleteException("Invalid delete token")
    return token
