"""Which tables come over, by which columns, and what changes on the way: owners, paths of models, subfolders of files.

Not here, and why: session_queue (jobs of one installation; nobody wants old ones to run or be charged again), user_sessions and
app_settings (signed with the root's own secret), user_invitations (codes that were mailed for another address), image_subfolder_move_*
(upstream's maintenance), default workflows, presets and prompts (the server brings its own).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psycopg import sql

Values = dict[str, Any]

# What changes by being looked at or moved on disk, and is no content.
VOLATILE = {"updated_at", "opened_at", "image_subfolder", "video_subfolder"}
_STAMPS = ("created_at", "updated_at")
_MEDIA = ("is_intermediate", "starred", "has_workflow", "session_id", "node_id", "metadata", "user_id", "deleted_at", *_STAMPS)
_BOARD_MEDIA = ("created_at", "updated_at", "deleted_at")


@dataclass(frozen=True, slots=True)
class Table:
    """`kind` is what reports and the ledger call its rows; `mine` is the SQLite condition of rows that come over."""

    kind: str
    name: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    mine: str = "1"

    @property
    def read(self) -> str:
        """SQLite: the rows in the order in which they were made."""
        return f"SELECT {', '.join(self.columns)} FROM {self.name} WHERE {self.mine} ORDER BY rowid"

    @property
    def total(self) -> str:
        """SQLite: how many rows."""
        return f"SELECT count(*) FROM {self.name} WHERE {self.mine}"

    @property
    def insert(self) -> sql.Composed:
        """Postgres: one row from named values."""
        names = sql.SQL(", ").join(map(sql.Identifier, self.columns))
        values = sql.SQL(", ").join(map(sql.Placeholder, self.columns))
        return sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(sql.Identifier(self.name), names, values)

    @property
    def look(self) -> sql.Composed:
        """Postgres: rows whose key begins with one of `keys`."""
        names = sql.SQL(", ").join(map(sql.Identifier, self.columns))
        first = sql.Identifier(self.key[0])
        return sql.SQL("SELECT {} FROM {} WHERE {} = ANY(%(keys)s)").format(names, sql.Identifier(self.name), first)

    def name_of(self, values: Mapping[str, Any]) -> str:
        """A row's name in the ledger and in reports."""
        return " ".join(str(values[column]) for column in self.key)

    def content(self, values: Mapping[str, Any]) -> Values:
        """What makes two rows of one name the same."""
        return {column: values[column] for column in self.columns if column not in VOLATILE}


MODELS = Table("model", "models", ("id",), ("id", "config", *_STAMPS))
RELATIONSHIPS = Table(
    "model relationship", "model_relationships", ("model_key_1", "model_key_2"), ("model_key_1", "model_key_2", "created_at")
)
IMAGES = Table(
    "image",
    "images",
    ("image_name",),
    ("image_name", "image_origin", "image_category", "width", "height", "image_subfolder", *_MEDIA),
)
VIDEOS = Table(
    "video",
    "videos",
    ("video_name",),
    ("video_name", "video_origin", "video_category", "width", "height", "duration", "fps", "video_subfolder", *_MEDIA),
)
BOARDS = Table(
    "board",
    "boards",
    ("board_id",),
    ("board_id", "board_name", "cover_image_name", "archived", "is_public", "board_visibility", "user_id", "deleted_at", *_STAMPS),
)
BOARD_IMAGES = Table("image on a board", "board_images", ("image_name",), ("board_id", "image_name", *_BOARD_MEDIA))
BOARD_VIDEOS = Table("video on a board", "board_videos", ("video_name",), ("board_id", "video_name", *_BOARD_MEDIA))
SHARED_BOARDS = Table("shared board", "shared_boards", ("board_id", "user_id"), ("board_id", "user_id", "can_edit", "shared_at"))
WORKFLOWS = Table(
    "workflow",
    "workflow_library",
    ("workflow_id",),
    ("workflow_id", "workflow", "opened_at", "user_id", "is_public", *_STAMPS),
    "category <> 'default'",
)
PRESETS = Table(
    "style preset",
    "style_presets",
    ("id",),
    ("id", "name", "preset_data", "type", "user_id", "is_public", *_STAMPS),
    "type <> 'default'",
)
PROMPTS = Table("system prompt", "system_prompts", ("id",), ("id", "name", "content", "user_id", "is_public", *_STAMPS))
CLIENT_STATE = Table("interface state", "client_state", ("user_id", "key"), ("user_id", "key", "value", "updated_at"))
# In the order of their references, those of pictures and videos apart.
PLAIN = (BOARDS, BOARD_IMAGES, BOARD_VIDEOS, SHARED_BOARDS, WORKFLOWS, PRESETS, PROMPTS, CLIENT_STATE)
OWNED = (IMAGES, VIDEOS, BOARDS, WORKFLOWS, PRESETS, PROMPTS, CLIENT_STATE)
