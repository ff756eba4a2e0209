"""What InvokeAI's file services are made of: a row's file saved, found, handed out and removed, with the journal around the store.

    save:   announce (commit) -> put the objects -> finish (commit)           a crash in between: recovery.py
    delete: the row goes and its trigger marks the objects (commit) -> delete the objects -> forget (commit)
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.storage import journal, recovery
from invokeai_saas.storage.errors import InsideTransaction, ObjectMissing, StorageRefused, StorageUnavailable, WriteUndone
from invokeai_saas.storage.journal import Stored
from invokeai_saas.storage.keys import Kind, ObjectName, Part, check_name
from invokeai_saas.storage.port import ObjectStore
from invokeai_saas.storage.signing import MAX_SECONDS

URL_SECONDS = 3600
_TYPES = {".png": "image/png", ".webp": "image/webp", ".mp4": "video/mp4", ".webm": "video/webm", ".json": "application/json"}
logger = logging.getLogger(__name__)


class Files:
    """The journal of `database` and the objects of `store`, kept together. Thread-safe."""

    def __init__(self, database: PostgresDatabase, store: ObjectStore) -> None:
        self._database, self.store = database, store

    def save(self, kind: Kind, name: str, contents: Mapping[Part, bytes | Path]) -> None:
        """Store all parts of a row's file or none; a Path is consumed. Raises ObjectMissing unless the row is the caller's."""
        check_name(name)
        self._refuse_transaction()
        keys = journal.announce(self._database, kind, name, {part: _size(content) for part, content in contents.items()})
        try:
            for part, key in keys.items():
                self._put(key, contents[part])
            journal.finish(self._database, kind, name, keys.values())
        except Exception as error:
            # An image's or video's row is the caller's to delete, and takes the objects along; a picture's row stays.
            if isinstance(error, WriteUndone) or ObjectName(kind, name).replaceable:
                self._give_up(list(keys.values()))
            raise
        if ObjectName(kind, name).replaceable:
            self.purge(kind, [name])

    def locate(self, wanted: ObjectName) -> Stored | None:
        """Where the object lies, None for one that is missing or that the caller may not read."""
        return journal.locate(self._database, wanted)

    def path(self, wanted: ObjectName) -> Path:
        """A local file of the object, to read; raises ObjectMissing."""
        return self.store.local_path(self._demand(wanted).key)

    def signed_url(self, wanted: ObjectName, *, seconds: int = URL_SECONDS) -> str:
        """An address for the user who asks; raises ObjectMissing when it is not theirs to read."""
        if not 1 <= seconds <= MAX_SECONDS:
            raise ValueError(f"expected 1 to {MAX_SECONDS} seconds, got {seconds}")
        user_id = tenancy.current().user_id
        if user_id is None:
            raise ObjectMissing("addresses are signed for users, not for system work")
        return self.store.signed_url(self._demand(wanted).key, user_id=user_id, seconds=seconds)

    def purge(self, kind: Kind, names: Sequence[str]) -> None:
        """Remove the objects of rows that were deleted; of a transaction that is still open, after its commit.

        A store that does not answer is no failure: the objects stay marked, and recovery removes them.
        """
        self._database.on_commit(lambda: self._purge_now(kind, names))

    def discard(self, kind: Kind, name: str) -> bool:
        """Remove the caller's picture; returns whether there was one."""
        self._refuse_transaction()
        there_was = journal.discard(self._database, kind, name)
        self.purge(kind, [name])
        return there_was

    def row_exists(self, kind: Kind, name: str) -> bool:
        """Whether a row of this name is left, anybody's."""
        return journal.row_exists(self._database, kind, name)

    def recover(self, *, older_than_seconds: float = 3600.0) -> recovery.Recovered:
        """See recovery.recover(): at start, and every few minutes by the reaper."""
        return recovery.recover(self._database, self.store, older_than_seconds=older_than_seconds)

    def used_bytes(self, user_id: str) -> int:
        """See journal.used_bytes()."""
        return journal.used_bytes(self._database, user_id)

    def _demand(self, wanted: ObjectName) -> Stored:
        found = self.locate(wanted)
        if found is None:
            raise ObjectMissing(f"no {wanted.part} of {wanted.kind} {wanted.name}")
        return found

    def _put(self, key: str, content: bytes | Path) -> None:
        if isinstance(content, bytes):
            self.store.put(key, content, content_type(key))
        else:
            self.store.put_file(key, content, content_type(key))

    def _purge_now(self, kind: Kind, names: Sequence[str]) -> None:
        keys = journal.to_purge(self._database, kind, names)
        try:
            recovery.purge(self._database, self.store, keys)
        except (StorageUnavailable, StorageRefused) as error:
            # The rows are gone, so the delete happened; the objects are marked.
            logger.warning("%d objects are left to recovery: %s", len(keys), error)

    def _give_up(self, keys: list[str]) -> None:
        try:
            journal.give_up(self._database, keys)
            recovery.purge(self._database, self.store, keys)
        except Exception:
            logger.exception("a failed write is left to recovery")

    def _refuse_transaction(self) -> None:
        if self._database.in_transaction:
            raise InsideTransaction("expected no open transaction around a file, got one: its rollback could not take the file back")


def content_type(key: str) -> str:
    """What a browser is told that the object is."""
    return _TYPES.get(os.path.splitext(key)[1].lower(), "application/octet-stream")


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
