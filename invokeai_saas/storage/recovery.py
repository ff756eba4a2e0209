"""After a crash or an outage: every announced write is finished or undone, every purge is done. Safe to run at any time, anywhere, often.

A write is finished when all its objects are there in full; otherwise its row goes, and with it what was uploaded. Each step commits on
its own; whatever stops the run leaves the rest to the next one.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.storage import journal
from invokeai_saas.storage.errors import BadName, StorageRefused, StorageUnavailable, WriteUndone
from invokeai_saas.storage.keys import Kind, check_key
from invokeai_saas.storage.port import ObjectStore

REASON = "storage recovery"
PURGE_BATCH = 500

EXPIRED = """
SELECT kind, name, array_agg(key ORDER BY key) AS keys, array_agg(bytes ORDER BY key) AS sizes FROM stored_objects
WHERE state = 'writing' AND (kind, name) IN (
    SELECT kind, name FROM stored_objects
    WHERE state = 'writing' GROUP BY kind, name HAVING max(since) <= clock_timestamp() - make_interval(secs => %(older_than)s))
GROUP BY kind, name ORDER BY kind, name
"""
# Still as it was looked at: a write that finished meanwhile is left alone.
LOCK_EXPIRED = """
SELECT key FROM stored_objects
WHERE key = ANY(%(keys)s) AND state = 'writing' AND since <= clock_timestamp() - make_interval(secs => %(older_than)s) FOR UPDATE
"""
# The trigger on the row marks all its objects.
DELETE_ROW: dict[Kind, str] = {
    "image": "DELETE FROM images WHERE image_name = %s",
    "video": "DELETE FROM videos WHERE video_name = %s",
}
PURGES = "SELECT key FROM stored_objects WHERE state = 'purge' AND key > %(after)s ORDER BY key LIMIT %(limit)s"
KNOWN = "SELECT key FROM stored_objects WHERE key = ANY(%(keys)s)"
logger = logging.getLogger(__name__)


@dataclass
class Recovered:
    """What a run did; `left` counts what the store did not answer for."""

    finished: list[tuple[Kind, str]] = field(default_factory=list)
    undone: list[tuple[Kind, str]] = field(default_factory=list)
    purged: int = 0
    left: int = 0


def recover(database: PostgresDatabase, store: ObjectStore, *, older_than_seconds: float = 3600.0) -> Recovered:
    """Settle writes that were announced `older_than_seconds` ago or earlier (0: no other process is writing), then purge."""
    done = Recovered()
    for row in _expired(database, older_than_seconds):
        try:
            _settle(database, store, row, done, older_than_seconds)
        except (StorageUnavailable, StorageRefused) as error:
            done.left += 1
            logger.warning("the write of %s %s waits: %s", row["kind"], row["name"], error)
    _purge_all(database, store, done)
    return done


def purge(database: PostgresDatabase, store: ObjectStore, keys: Collection[str]) -> None:
    """Remove objects that are marked so, then their traces. Whatever it raises, the rest stays marked."""
    if not keys:
        return
    store.delete([key for key in keys if _could_exist(key)])
    journal.forget(database, keys)


def strays(database: PostgresDatabase, store: ObjectStore, *, prefix: str = "", older_than: Any = None) -> list[str]:
    """Keys of objects that no row knows, changed before `older_than` (a datetime) if given: for an operator to look at."""
    found = [item.key for item in store.list(prefix) if older_than is None or item.changed_at < older_than]
    with tenancy.as_system(REASON), database.postgres() as cursor:
        known = {row["key"] for row in cursor.execute(KNOWN, {"keys": found}).fetchall()}
    return [key for key in found if key not in known]


def _expired(database: PostgresDatabase, older_than_seconds: float) -> list[dict[str, Any]]:
    with tenancy.as_system(REASON), database.postgres() as cursor:
        return cursor.execute(EXPIRED, {"older_than": older_than_seconds}).fetchall()


def _settle(
    database: PostgresDatabase, store: ObjectStore, row: dict[str, Any], done: Recovered, older_than_seconds: float
) -> None:
    kind, name, keys = row["kind"], row["name"], row["keys"]
    if kind in DELETE_ROW and all(_is_complete(store, key, size) for key, size in zip(keys, row["sizes"], strict=True)):
        try:
            journal.finish(database, kind, name, keys)
            done.finished.append((kind, name))
        except WriteUndone:
            logger.info("%s %s was settled by somebody else", kind, name)
    elif _undo(database, kind, name, keys, older_than_seconds):
        done.undone.append((kind, name))


def _undo(database: PostgresDatabase, kind: Kind, name: str, keys: list[str], older_than_seconds: float) -> bool:
    arguments = {"keys": keys, "older_than": older_than_seconds}
    with tenancy.as_system(REASON), database.postgres() as cursor:
        if cursor.execute(LOCK_EXPIRED, arguments).rowcount != len(keys):
            return False
        # A picture's row stays, with the picture it had; an image or video without its file goes.
        if kind not in DELETE_ROW or cursor.execute(DELETE_ROW[kind].encode(), (name,)).rowcount == 0:
            cursor.execute(journal.GIVE_UP, arguments)
    return True


def _purge_all(database: PostgresDatabase, store: ObjectStore, done: Recovered) -> None:
    after = ""
    while keys := _purges(database, after):
        after = keys[-1]
        try:
            purge(database, store, keys)
            done.purged += len(keys)
        except (StorageUnavailable, StorageRefused) as error:
            done.left += len(keys)
            logger.warning("%d objects that were to be deleted wait: %s", len(keys), error)


def _purges(database: PostgresDatabase, after: str) -> list[str]:
    with tenancy.as_system(REASON), database.postgres() as cursor:
        return [row["key"] for row in cursor.execute(PURGES, {"after": after, "limit": PURGE_BATCH}).fetchall()]


def _is_complete(store: ObjectStore, key: str, size: int) -> bool:
    return size > 0 and _could_exist(key) and store.size(key) == size


def _could_exist(key: str) -> bool:
    """False for the key of a row whose name no store would take."""
    try:
        check_key(key)
    except BadName:
        return False
    return True
