"""A kind, a user and a name in, the key of the object out. The only place that makes keys (and 0005_storage.sql for new rows).

    users/{user}/images/{name}.png          users/{user}/images/thumbnails/{name}.webp
    users/{user}/videos/{name}.mp4          users/{user}/videos/thumbnails/{name}.webp    users/{user}/videos/sidecars/{name}.json
    users/{user}/workflow_pictures/{id}.{version}.webp       users/{user}/style_preset_pictures/{id}.{version}.webp
    system/style_presets/{id}.{version}.webp                 models/shared/pictures/{id}.{version}.webp
    zips/{user}/{name}.zip                  what a user fetches within the hour, and no row knows

Pictures of workflows, presets and models can be replaced; each version has a key of its own, so that a failed upload leaves the old one.
"""

import os
import re
import uuid
from dataclasses import dataclass
from typing import Literal

from invokeai_saas.db.tenancy import SYSTEM_USER_ID
from invokeai_saas.storage.errors import BadName

Kind = Literal["image", "video", "workflow", "style_preset", "model"]
Part = Literal["file", "thumbnail", "sidecar"]

ZIPS = "zips/"
MAX_NAME_BYTES = 200
MAX_KEY_BYTES = 900
_FORBIDDEN = re.compile(r"[/\\\x00-\x1f\x7f]")
_EXTENSIONS: dict[Part, str] = {"thumbnail": ".webp", "sidecar": ".json"}
_FOLDERS: dict[Part, str] = {"thumbnail": "thumbnails/", "sidecar": "sidecars/"}


@dataclass(frozen=True, slots=True)
class ObjectName:
    """What an object is, apart from where it lies."""

    kind: Kind
    name: str
    part: Part = "file"

    def __post_init__(self) -> None:
        check_name(self.name)

    @property
    def replaceable(self) -> bool:
        """True for pictures of workflows, presets and models: saved again under the same name."""
        return self.kind not in ("image", "video")

    def key(self, user_id: str) -> str:
        """The object's key; of replaceable ones a new one at every call."""
        check_name(user_id)
        if self.replaceable:
            return self._picture_key(user_id)
        stem = self.name if self.part == "file" else os.path.splitext(self.name)[0] + _EXTENSIONS[self.part]
        return check_key(f"users/{user_id}/{self.kind}s/{_FOLDERS.get(self.part, '')}{stem}")

    def _picture_key(self, user_id: str) -> str:
        versioned = f"{self.name}.{uuid.uuid4().hex}.webp"
        if self.kind == "model":
            return check_key(f"models/shared/pictures/{versioned}")
        if user_id == SYSTEM_USER_ID:
            return check_key(f"system/{self.kind}s/{versioned}")
        return check_key(f"users/{user_id}/{self.kind}_pictures/{versioned}")


def zips_of(user_id: str) -> str:
    """The prefix of a user's zips."""
    return f"{ZIPS}{check_name(user_id)}/"


def zip_key(user_id: str, name: str) -> str:
    """The key of a zip; raises BadName for a name that no zip has."""
    if not name.endswith(".zip"):
        raise BadName(f"expected the name of a zip, got {name[:80]!r}")
    return check_key(f"{zips_of(user_id)}{check_name(name)}")


def is_zip(key: str) -> bool:
    """Whether `key` is a zip's; a store's own tools leave other things in a folder."""
    user_id, _, name = key.removeprefix(ZIPS).partition("/")
    try:
        return key == zip_key(user_id, name)
    except BadName:
        return False


def check_name(name: str) -> str:
    """`name` as it is; raises BadName for one that is no plain file name."""
    if not name or name.startswith(".") or _FORBIDDEN.search(name) or not _fits(name, MAX_NAME_BYTES):
        raise BadName(f"expected a plain file name of up to {MAX_NAME_BYTES} bytes, got {name[:80]!r}")
    return name


def check_key(key: str) -> str:
    """`key` as it is; raises BadName for one with empty, dotted or foreign segments."""
    for segment in key.split("/"):
        if not segment or segment.startswith(".") or _FORBIDDEN.search(segment):
            raise BadName(f"expected a key of plain segments, got {key[:80]!r}")
    if not _fits(key, MAX_KEY_BYTES):
        raise BadName(f"expected a key of up to {MAX_KEY_BYTES} bytes, got {len(key)} characters")
    return key


def check_subfolder(subfolder: str) -> None:
    """Upstream hands subfolders on; keys do not use them, tricks in them are refused all the same."""
    if subfolder:
        check_key(subfolder)


def _fits(text: str, limit: int) -> bool:
    try:
        return len(text.encode()) <= limit
    except UnicodeEncodeError:  # lone surrogates
        return False
