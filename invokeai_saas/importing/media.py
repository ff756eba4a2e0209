"""Pictures and videos with their files, batch by batch, through the storage journal:

    rows and announcements (commit) -> objects put, several at a time -> finish and remember (commit)

A kill in between leaves announced writes, which the next run goes on with, or storage/recovery.py undoes for it to begin again.
"""

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import file_digest
from pathlib import Path

from invokeai_saas.db import tenancy
from invokeai_saas.importing import ledger
from invokeai_saas.importing.ledger import Cursor
from invokeai_saas.importing.people import GONE
from invokeai_saas.importing.rows import OTHER, Candidate, Work, candidate, insert_one, judge_known, look
from invokeai_saas.importing.tables import IMAGES, VIDEOS, Table, Values
from invokeai_saas.storage import journal, recovery
from invokeai_saas.storage.errors import BadName, ObjectMissing, WriteUndone
from invokeai_saas.storage.files import content_type
from invokeai_saas.storage.keys import Kind, Part, check_name

REASON = "files of a root become files of its users here"
BATCH = 32
THREADS = 8
# Larger files go through a copy, so that memory stays bounded.
IN_MEMORY_BYTES = 8 * 1024 * 1024
STATES = "SELECT name, state, key FROM stored_objects WHERE kind = %s AND name = ANY(%s) AND part = 'file'"
DELETE_ROW = recovery.DELETE_ROW
Contents = dict[Part, Path | bytes]


@dataclass
class Item:
    """A row's files on their way; `keys` once they are announced, `failed` when they cannot be read.

    `there` is the key of a file that is stored here under this name already, `same_row` whether its row says the same.
    """

    candidate: Candidate
    contents: Contents
    sizes: dict[Part, int]
    file_sha256: str
    keys: dict[Part, str] = field(default_factory=dict)
    failed: str = ""
    there: str = ""
    same_row: bool = True

    @property
    def name(self) -> str:
        """Of the row and its files."""
        return self.candidate.name


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why a row's files cannot come over."""

    name: str
    reason: str


def bring_images(work: Work) -> None:
    """All pictures with their files and thumbnails."""
    _bring_media(work, IMAGES, "image", lambda row: _image_contents(work.source.folders.images, row))


def bring_videos(work: Work) -> None:
    """All videos with their files, thumbnails and sidecars."""
    _bring_media(work, VIDEOS, "video", lambda row: _video_contents(work.source.folders.videos, row))


def _bring_media(work: Work, table: Table, kind: Kind, contents_of: Callable[[Values], Contents]) -> None:
    total = work.source.number(table.total)
    with ThreadPoolExecutor(THREADS) as pool:
        for rows in work.source.batches(table.read, BATCH):
            owned = [(item, row) for row in rows if (item := _flat(work, table, row)) is not None]
            prepared = pool.map(lambda pair: _prepared(pair[0], lambda: contents_of(pair[1])), owned)
            items = _readable(work, table.kind, list(prepared))
            with tenancy.as_system(REASON), work.database.postgres() as cursor:
                announced = _announce_media(work, table, kind, cursor, items)
            _put_and_settle(work, pool, table.kind, kind, announced)
            work.report.progress(table.kind, total)


def _flat(work: Work, table: Table, row: Values) -> Candidate | None:
    """Subfolders are a matter of the root's disk."""
    return candidate(work, table, row, lambda values: values | {name: "" for name in values if name.endswith("_subfolder")})


def _put_and_settle(work: Work, pool: ThreadPoolExecutor, label: str, kind: Kind, items: list[Item]) -> None:
    for item, error in zip(items, pool.map(lambda item: put(work, item), items), strict=True):
        item.failed = error
    _settle(work, label, kind, items)


def _announce_media(work: Work, table: Table, kind: Kind, cursor: Cursor, items: list[Item]) -> list[Item]:
    """Rows inserted and files announced, or found as a killed run left them; the rest is reported."""
    names = [item.name for item in items]
    known = ledger.known(cursor, table.kind, names)
    there = look(cursor, table, [item.candidate for item in items])
    states = {row["name"]: row for row in cursor.execute(STATES, (kind, names)).fetchall()}
    announced = []
    for item in items:
        row, state = there.get(item.name), states.get(item.name, {})
        if item.name in known:
            judge_known(work, table.kind, item.name, known[item.name].digest, item.candidate.digest)
            continue
        if item.candidate.values["user_id"] in work.owners.gone:
            work.report.leave(table.kind, item.name, GONE)
            continue
        if row is None:
            if not insert_one(work, table, item.candidate):
                continue
        elif state.get("state") == "stored":
            item.there, item.same_row = state["key"], table.content(row) == table.content(item.candidate.values)
            announced.append(item)
            continue
        elif any(row[column] != item.candidate.values[column] for column in ("user_id", "created_at")):
            work.report.leave(table.kind, item.name, OTHER)
            continue
        item.keys = journal.announce(work.database, kind, item.name, item.sizes)
        announced.append(item)
    return announced


def bring_pictures(work: Work, kind: Kind, rows_kind: str, query: str, folder: Path) -> None:
    """Pictures `folder`/<id>.webp of rows (ids from `query`) that came over."""
    label = f"picture of a {rows_kind}"
    with ThreadPoolExecutor(THREADS) as pool:
        for rows in work.source.batches(query, BATCH):
            found = [Candidate(str(row["id"]), {}, "") for row in rows if (folder / f"{row['id']}.webp").is_file()]
            items = _readable(work, label, list(pool.map(lambda item: _prepared(item, lambda: _picture(folder, item.name)), found)))
            with tenancy.as_system(REASON), work.database.postgres() as cursor:
                announced = _announce_pictures(work, kind, rows_kind, label, cursor, items)
            _put_and_settle(work, pool, label, kind, announced)


def _announce_pictures(work: Work, kind: Kind, rows_kind: str, label: str, cursor: Cursor, items: list[Item]) -> list[Item]:
    names = [item.name for item in items]
    # A row that was left behind is somebody else's: its picture stays too.
    brought, known = ledger.known(cursor, rows_kind, names), ledger.known(cursor, label, names)
    states = {row["name"]: row["key"] for row in cursor.execute(STATES, (kind, names)).fetchall() if row["state"] == "stored"}
    announced = []
    for item in items:
        if item.name in known:
            judge_known(work, label, item.name, known[item.name].digest, item.candidate.digest)
        elif item.name not in brought:
            work.report.leave(label, item.name, f"its {rows_kind} did not come over")
        elif item.name in states:
            item.there = states[item.name]
            announced.append(item)
        else:
            try:
                item.keys = journal.announce(work.database, kind, item.name, item.sizes)
                announced.append(item)
            except ObjectMissing:  # deleted here since its row came over
                work.report.of(label).there += 1
    return announced


def put(work: Work, item: Item) -> str:
    """Store an announced item's files, or compare with what is stored here. Returns why it cannot come; the store's errors are raised."""
    try:
        if item.there:
            return "" if item.same_row and _sha256(work.files.store.local_path(item.there)) == item.file_sha256 else OTHER
        for part, key in item.keys.items():
            _put(work, key, item.contents[part], item.sizes[part])
    except ObjectMissing:
        return OTHER
    except OSError as error:
        return f"its file cannot be read: {error.strerror or error}"
    return ""


def _put(work: Work, key: str, content: Path | bytes, size: int) -> None:
    store, kind = work.files.store, content_type(key)
    if isinstance(content, Path) and size > IN_MEMORY_BYTES:
        # The store consumes the file that it is given: a copy, never the root's own.
        with tempfile.NamedTemporaryFile(dir=work.source.workdir, delete=False) as file:
            copied = Path(file.name)
        try:
            shutil.copyfile(content, copied)
            _demand_size(copied.stat().st_size, size)
            store.put_file(key, copied, kind)
        finally:
            copied.unlink(missing_ok=True)
        return
    data = content.read_bytes() if isinstance(content, Path) else content
    _demand_size(len(data), size)
    store.put(key, data, kind)


def _demand_size(got: int, announced: int) -> None:
    if got != announced:
        raise OSError(f"expected {announced} bytes, got {got}: it changed meanwhile")


def _settle(work: Work, label: str, kind: Kind, items: list[Item]) -> None:
    """Finish and remember in one transaction; take back what failed."""
    undone: list[str] = []
    with tenancy.as_system(REASON), work.database.postgres() as cursor:
        for item in items:
            reason = item.failed or _finish(work, label, kind, item)
            if reason:
                work.report.leave(label, item.name, reason)
                undone.append(item.name)
            if item.failed and item.keys:
                _take_back(work, cursor, kind, item)
    # Only what is marked: another process's recovery may have finished what we found undone.
    recovery.purge(work.database, work.files.store, journal.to_purge(work.database, kind, undone))


def _finish(work: Work, label: str, kind: Kind, item: Item) -> str:
    """Empty, or why it did not come about."""
    tally = work.report.of(label)
    try:
        with work.database.postgres() as cursor:
            if not item.there:
                journal.finish(work.database, kind, item.name, item.keys.values())
            ledger.remember(cursor, label, item.name, item.candidate.digest)
    except WriteUndone:
        return "it was deleted while it was being brought"
    if item.there:
        tally.there += 1
    else:
        tally.brought += 1
        tally.bytes += sum(item.sizes.values())
    return ""


def _take_back(work: Work, cursor: Cursor, kind: Kind, item: Item) -> None:
    """A picture's or video's row goes, and its trigger marks the objects; other rows stay without their picture."""
    if kind not in DELETE_ROW or cursor.execute(DELETE_ROW[kind].encode(), (item.name,)).rowcount == 0:
        journal.give_up(work.database, list(item.keys.values()))


def _prepared(item: Candidate, contents_of: Callable[[], Contents]) -> Item | Unreadable:
    """Find and measure the files; the digest is of row and file."""
    try:
        contents = contents_of()
        sha256 = _sha256(contents["file"])
        sizes = {part: content.stat().st_size if isinstance(content, Path) else len(content) for part, content in contents.items()}
    except BadName:
        return Unreadable(item.name, "its name is no plain file name")
    except FileNotFoundError:
        return Unreadable(item.name, "its file is missing in the root")
    except OSError as error:
        return Unreadable(item.name, f"its file cannot be read: {error.strerror}")
    return Item(replace(item, digest=ledger.digest_of([item.digest, sha256])), contents, sizes, sha256)


def _readable(work: Work, label: str, prepared: list[Item | Unreadable | None]) -> list[Item]:
    for item in prepared:
        if isinstance(item, Unreadable):
            work.report.leave(label, item.name, item.reason)
    return [item for item in prepared if isinstance(item, Item)]


def _image_contents(folder: Path, row: Mapping[str, str]) -> Contents:
    name, subfolder = row["image_name"], row["image_subfolder"]
    path = _inside(folder, subfolder, name)
    thumbnail = _inside(folder / "thumbnails", subfolder, os.path.splitext(name)[0] + ".webp")
    return {"file": path, "thumbnail": thumbnail if thumbnail.is_file() else _thumbnail_of(path)}


def _video_contents(folder: Path, row: Mapping[str, str]) -> Contents:
    name, subfolder = row["video_name"], row["video_subfolder"]
    stem = os.path.splitext(name)[0]
    contents: Contents = {"file": _inside(folder, subfolder, name)}
    if (thumbnail := _inside(folder / "thumbnails", subfolder, f"{stem}.webp")).is_file():
        contents["thumbnail"] = thumbnail
    if (sidecar := _inside(folder / "sidecars", subfolder, f"{stem}.json")).is_file():
        contents["sidecar"] = sidecar
    return contents


def _picture(folder: Path, row_id: str) -> Contents:
    return {"file": _inside(folder, "", f"{row_id}.webp")}


def _inside(folder: Path, subfolder: str, name: str) -> Path:
    """A file of the root; raises BadName for one that would lie outside of its folder."""
    path = folder / subfolder / check_name(name)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BadName(f"expected a file inside its folder, got {name!r}")
    return path


def _thumbnail_of(path: Path) -> bytes:
    """Made anew, as InvokeAI makes it. Raises OSError for what is no picture."""
    from invokeai.app.util.thumbnails import make_thumbnail
    from PIL import Image

    output = io.BytesIO()
    with Image.open(path) as image:
        make_thumbnail(image).save(output, "WEBP")
    return output.getvalue()


def _sha256(content: Path | bytes) -> str:
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
