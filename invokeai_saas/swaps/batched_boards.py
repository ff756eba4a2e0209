"""Pages of the gallery with one question about pictures and one about boards, where InvokeAI asks once per picture.

That is cheap in its own process and dear over a connection.
"""

from collections.abc import Callable
from typing import Any

from invokeai.app.services.image_records.image_records_common import ImageRecord, deserialize_image_record
from invokeai.app.services.images.images_common import ImageDTO, image_record_to_dto
from invokeai.app.services.images.images_default import ImageService
from invokeai.app.services.shared.pagination import OffsetPaginatedResults
from invokeai.app.services.videos.videos_common import VideoDTO, video_record_to_dto
from invokeai.app.services.videos.videos_default import VideoService

from invokeai_saas.db.database import PostgresDatabase

# The columns of InvokeAI's IMAGE_DTO_COLS.
IMAGES_BY_NAMES = """
SELECT image_name, image_origin, image_category, width, height, session_id, node_id, has_workflow, is_intermediate, created_at,
       updated_at, deleted_at, starred, image_subfolder
FROM images WHERE image_name = ANY(%s)
"""
BOARDS_OF_IMAGES = "SELECT image_name AS name, board_id FROM board_images WHERE image_name = ANY(%s)"
BOARDS_OF_VIDEOS = "SELECT video_name AS name, board_id FROM board_videos WHERE video_name = ANY(%s)"


class BatchedImages(ImageService):
    """Upstream's image service."""

    def __init__(self, database: PostgresDatabase) -> None:
        super().__init__()
        self._database = database

    def get_many(self, *args: Any, **kwargs: Any) -> OffsetPaginatedResults[ImageDTO]:
        """A page of images, arguments as upstream's."""
        page = self._services().image_records.get_many(*args, **kwargs)
        return OffsetPaginatedResults[ImageDTO](items=self._dtos(page.items), offset=page.offset, limit=page.limit, total=page.total)

    def get_by_names(self, names: list[str]) -> list[ImageDTO]:
        """Those of these images that are there for the caller, in the order of `names`; an outage is an error and no empty gallery."""
        with self._database.postgres() as cursor:
            rows = {row["image_name"]: row for row in cursor.execute(IMAGES_BY_NAMES, (names,)).fetchall()}
        return self._dtos([deserialize_image_record(rows[name]) for name in names if name in rows])

    def _dtos(self, records: list[ImageRecord]) -> list[ImageDTO]:
        boards = _boards(self._database, BOARDS_OF_IMAGES, [record.image_name for record in records])
        urls: Callable[..., str] = self._services().urls.get_image_url
        return [
            image_record_to_dto(
                image_record=record,
                image_url=urls(record.image_name),
                thumbnail_url=urls(record.image_name, True),
                board_id=boards.get(record.image_name),
            )
            for record in records
        ]

    def _services(self) -> Any:
        # Upstream keeps its invoker under a private name.
        return self._ImageService__invoker.services


class BatchedVideos(VideoService):
    """Upstream's video service."""

    def __init__(self, database: PostgresDatabase) -> None:
        super().__init__()
        self._database = database

    def get_many(self, *args: Any, **kwargs: Any) -> OffsetPaginatedResults[VideoDTO]:
        """A page of videos, arguments as upstream's."""
        services = self._VideoService__invoker.services
        page = services.video_records.get_many(*args, **kwargs)
        boards = _boards(self._database, BOARDS_OF_VIDEOS, [record.video_name for record in page.items])
        urls: Callable[..., str] = services.urls.get_video_url
        items = [
            video_record_to_dto(
                video_record=record,
                video_url=urls(record.video_name),
                thumbnail_url=urls(record.video_name, thumbnail=True),
                board_id=boards.get(record.video_name),
            )
            for record in page.items
        ]
        return OffsetPaginatedResults[VideoDTO](items=items, offset=page.offset, limit=page.limit, total=page.total)


def _boards(database: PostgresDatabase, statement: str, names: list[str]) -> dict[str, str]:
    """The board of each name that has one."""
    if not names:
        return {}
    with database.postgres() as cursor:
        return {row["name"]: row["board_id"] for row in cursor.execute(statement.encode(), (names,)).fetchall()}
