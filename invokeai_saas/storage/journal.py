"""The rows of stored_objects: announce, finish, give up, locate, purge (0005_storage.sql says what the states mean).

Reading is done as who asks, so that row-level security answers whether they may. Writing is system work, after the owner was compared:
a tenant may not change what they are counted for.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.storage.errors import AlreadyStored, ObjectMissing, WriteUndone
from invokeai_saas.storage.keys import Kind, ObjectName, Part

REASON = "storage journal"

# Who owns the row of a file. The lock keeps the row until the announcement commits; its deletion then finds what to purge.
OWNERS: dict[Kind, str] = {
    "image": "SELECT COALESCE(user_id, 'system') AS user_id FROM images WHERE image_name = %s FOR KEY SHARE",
    "video": "SELECT user_id FROM videos WHERE video_name = %s FOR KEY SHARE",
    "workflow": "SELECT user_id FROM workflow_library WHERE workflow_id = %s FOR KEY SHARE",
    "style_preset": "SELECT user_id FROM style_presets WHERE id = %s FOR KEY SHARE",
    "model": "SELECT 'system' AS user_id FROM models WHERE id = %s FOR KEY SHARE",
}
ANNOUNCE = """
INSERT INTO stored_objects AS stored (key, user_id, kind, name, part, bytes)
VALUES (%(key)s, %(user_id)s, %(kind)s, %(name)s, %(part)s, %(bytes)s)
ON CONFLICT (key) DO UPDATE SET state = 'writing', bytes = EXCLUDED.bytes, since = clock_timestamp()
WHERE stored.state <> 'stored' AND stored.kind = EXCLUDED.kind AND stored.name = EXCLUDED.name
"""
# Two saves of one picture: the later one wins, whole.
LOCK_NAME = "SELECT pg_advisory_xact_lock(hashtextextended('stored ' || %(kind)s || ' ' || %(name)s, 0))"
REPLACE = """
UPDATE stored_objects SET state = 'purge', since = clock_timestamp()
WHERE kind = %(kind)s AND name = %(name)s AND state = 'stored' AND key <> ALL(%(keys)s)
"""
FINISH = "UPDATE stored_objects SET state = 'stored', since = clock_timestamp() WHERE key = ANY(%(keys)s) AND state = 'writing'"
GIVE_UP = "UPDATE stored_objects SET state = 'purge', since = clock_timestamp() WHERE key = ANY(%(keys)s) AND state = 'writing'"
DISCARD = """
UPDATE stored_objects SET state = 'purge', since = clock_timestamp()
WHERE kind = %(kind)s AND name = %(name)s AND state = 'stored'
"""
LOCATE = """
SELECT key, user_id, bytes FROM stored_objects WHERE kind = %(kind)s AND name = %(name)s AND part = %(part)s AND state = 'stored'
"""
TO_PURGE = "SELECT key FROM stored_objects WHERE kind = %(kind)s AND name = ANY(%(names)s) AND state = 'purge'"
FORGET = "DELETE FROM stored_objects WHERE key = ANY(%(keys)s) AND state = 'purge'"
USED = "SELECT bytes FROM storage_used WHERE user_id = %(user_id)s"


@dataclass(frozen=True, slots=True)
class Stored:
    """An object that the journal knows."""

    key: str
    user_id: str
    bytes: int


def announce(database: PostgresDatabase, kind: Kind, name: str, sizes: Mapping[Part, int]) -> dict[Part, str]:
    """Commit the intent to write these parts, `sizes` in bytes; returns their keys. Raises ObjectMissing unless the row is the caller's."""
    caller = tenancy.current()
    with tenancy.as_system(REASON), database.postgres() as cursor:
        owner = cursor.execute(OWNERS[kind].encode(), (name,)).fetchone()
        if owner is None or not _may_write(caller, kind, owner["user_id"]):
            raise ObjectMissing(f"no {kind} {name}")
        keys: dict[Part, str] = {}
        for part, size in sizes.items():
            key = ObjectName(kind, name, part).key(owner["user_id"])
            row = {"key": key, "user_id": owner["user_id"], "kind": kind, "name": name, "part": part, "bytes": size}
            if cursor.execute(ANNOUNCE, row).rowcount != 1:
                raise AlreadyStored(f"the {part} of {kind} {name} was saved before")
            keys[part] = key
    return keys


def finish(database: PostgresDatabase, kind: Kind, name: str, keys: Collection[str]) -> None:
    """All objects of an announced write are there: readable from now on, what they replace goes. Raises WriteUndone."""
    arguments = {"kind": kind, "name": name, "keys": list(keys)}
    with tenancy.as_system(REASON), database.postgres() as cursor:
        cursor.execute(LOCK_NAME, arguments)
        cursor.execute(REPLACE, arguments)
        if cursor.execute(FINISH, arguments).rowcount != len(keys):
            raise WriteUndone(f"{kind} {name} was deleted while its file was being saved")


def give_up(database: PostgresDatabase, keys: Collection[str]) -> None:
    """An announced write did not come about."""
    with tenancy.as_system(REASON), database.postgres() as cursor:
        cursor.execute(GIVE_UP, {"keys": list(keys)})


def discard(database: PostgresDatabase, kind: Kind, name: str) -> bool:
    """The caller's picture goes while its row stays; returns whether there was one. Raises ObjectMissing for a foreign row."""
    caller = tenancy.current()
    with tenancy.as_system(REASON), database.postgres() as cursor:
        owner = cursor.execute(OWNERS[kind].encode(), (name,)).fetchone()
        if owner is None or not _may_write(caller, kind, owner["user_id"]):
            raise ObjectMissing(f"no {kind} {name}")
        return cursor.execute(DISCARD, {"kind": kind, "name": name}).rowcount > 0


def row_exists(database: PostgresDatabase, kind: Kind, name: str) -> bool:
    """Whether anybody's row of this name is there."""
    with tenancy.as_system(REASON), database.postgres() as cursor:
        return cursor.execute(OWNERS[kind].encode(), (name,)).fetchone() is not None


def locate(database: PostgresDatabase, wanted: ObjectName) -> Stored | None:
    """The object, when there is one and the caller may read it: one answer for foreign and for missing."""
    with database.postgres() as cursor:
        row = cursor.execute(LOCATE, {"kind": wanted.kind, "name": wanted.name, "part": wanted.part}).fetchone()
    return None if row is None else Stored(**row)


def to_purge(database: PostgresDatabase, kind: Kind, names: Sequence[str]) -> list[str]:
    """Keys of objects whose rows are gone."""
    with tenancy.as_system(REASON), database.postgres() as cursor:
        return [row["key"] for row in cursor.execute(TO_PURGE, {"kind": kind, "names": list(names)}).fetchall()]


def forget(database: PostgresDatabase, keys: Collection[str]) -> None:
    """These objects are no longer in the store."""
    with tenancy.as_system(REASON), database.postgres() as cursor:
        cursor.execute(FORGET, {"keys": list(keys)})


def used_bytes(database: PostgresDatabase, user_id: str) -> int:
    """What a user holds, announced writes included. A tenant can ask for themself only; of others it reads 0."""
    with database.postgres() as cursor:
        row = cursor.execute(USED, {"user_id": user_id}).fetchone()
    return 0 if row is None else int(row["bytes"])


def _may_write(caller: tenancy.Context, kind: Kind, owner: str) -> bool:
    # Covers of models are global: the routes that save them are for administrators.
    return caller.is_system or kind == "model" or caller.user_id == owner
