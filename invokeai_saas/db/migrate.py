"""A database of any earlier state in, one of this code's state out: upstream's schema and our numbered migrations.

Each migration is one transaction that also records itself, so that a killed run is resumed by the next. One runs at a time: the
others wait for an advisory lock and say so. A database that is newer than the code, or whose history differs, is refused.
"""

import hashlib
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from invokeai_saas.errors import MigrationLocked, MigrationRefused

FOLDER = Path(__file__).parent / "migrations"
ROLES_FILE = "roles.sql"
OWNER_ROLE = "invokeai_owner"
_NAME = re.compile(r"^(\d{4})_(\w+)\.sql$")
_POLL_SECONDS = 0.2

# 0x4D494752: "MIGR"
TRY_LOCK = "SELECT pg_try_advisory_lock(1296647986)"
UNLOCK = "SELECT pg_advisory_unlock(1296647986)"
CREATE_HISTORY = """
CREATE TABLE IF NOT EXISTS saas_migrations (
    version integer NOT NULL CONSTRAINT saas_migrations_pkey PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);
GRANT SELECT ON saas_migrations TO invokeai_app, invokeai_system
"""
HISTORY_EXISTS = "SELECT to_regclass('public.saas_migrations') IS NOT NULL"
READ_HISTORY = "SELECT version, name, checksum FROM saas_migrations ORDER BY version"
RECORD = "INSERT INTO saas_migrations (version, name, checksum) VALUES (%s, %s, %s)"
# A migration that cannot get a table lock gives up instead of stopping all requests behind it; one whose process died ends too.
TIMEOUTS = (
    "SET LOCAL lock_timeout = '10s'; SET LOCAL statement_timeout = '15min'; SET LOCAL client_connection_check_interval = '1s'"
)
AS_OWNER = sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(OWNER_ROLE))

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file; `checksum` is of its text."""

    version: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def read_migrations(folder: Path = FOLDER) -> list[Migration]:
    """The numbered files in order; raises MigrationRefused on a gap or a doubled number."""
    found = []
    for path in sorted(folder.glob("[0-9]*.sql")):
        match = _NAME.match(path.name)
        if match is None:
            raise MigrationRefused(f"expected a file name like 0001_name.sql, got {path.name}")
        found.append(Migration(int(match[1]), match[2], path.read_text(encoding="utf-8")))
    versions = [migration.version for migration in found]
    if versions != list(range(1, len(found) + 1)):
        raise MigrationRefused(f"expected migrations numbered from 1 without gaps, got {versions}")
    return found


def migrate(dsn: str, *, lock_seconds: float = 300.0, folder: Path = FOLDER) -> list[str]:
    """Bring the database to this code's state; returns the names of the migrations that ran, in order."""
    migrations = read_migrations(folder)
    with psycopg.connect(dsn, autocommit=True) as connection, _locked(connection, lock_seconds):
        refuse_other_history(connection, migrations)
        _prepare(connection, folder)
        done = {row[0] for row in connection.execute(READ_HISTORY).fetchall()}
        ran = [_apply(connection, migration) for migration in migrations if migration.version not in done]
    return ran


def refuse_stale(dsn: str, *, folder: Path = FOLDER) -> None:
    """What a server asks at start: raises MigrationRefused when the database is newer or older than the code."""
    migrations = read_migrations(folder)
    with psycopg.connect(dsn, autocommit=True) as connection:
        refuse_other_history(connection, migrations)
        missing = len(migrations) - len(_history(connection))
    if missing:
        raise MigrationRefused(f"the database lacks {missing} migrations of this code: run `invokeai-saas migrate`")


def refuse_other_history(connection: psycopg.Connection[Any], migrations: list[Migration]) -> None:
    """Raise MigrationRefused when the database holds a migration that this code does not have, or has with other text."""
    known = {migration.version: migration for migration in migrations}
    for version, name, checksum in _history(connection):
        migration = known.get(version)
        if migration is None:
            raise MigrationRefused(
                f"the database is newer than this code: it has migration {version:04d}_{name}, "
                f"the code ends at {max(known, default=0):04d}. Install the newer invokeai-video[saas]"
            )
        if migration.checksum != checksum:
            raise MigrationRefused(
                f"migration {version:04d}_{name} was applied with another text: a released migration is never changed"
            )


@contextmanager
def _locked(connection: psycopg.Connection[Any], seconds: float) -> Iterator[None]:
    deadline, told = time.monotonic() + seconds, False
    while not _one(connection, TRY_LOCK):
        if not told:
            logger.warning("another process is migrating this database; waiting up to %.0f s", seconds)
            told = True
        if time.monotonic() >= deadline:
            raise MigrationLocked(f"expected the migration lock within {seconds:.0f} s, another process still holds it")
        time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute(UNLOCK)


def _prepare(connection: psycopg.Connection[Any], folder: Path) -> None:
    with connection.transaction():
        connection.execute((folder / ROLES_FILE).read_bytes())
        connection.execute(AS_OWNER)
        connection.execute(CREATE_HISTORY)


def _apply(connection: psycopg.Connection[Any], migration: Migration) -> str:
    started = time.monotonic()
    with connection.transaction():
        connection.execute(AS_OWNER)
        connection.execute(TIMEOUTS)
        connection.execute(migration.text.encode())
        connection.execute(RECORD, (migration.version, migration.name, migration.checksum))
    logger.info("migration %04d_%s applied in %.2f s", migration.version, migration.name, time.monotonic() - started)
    return migration.name


def _history(connection: psycopg.Connection[Any]) -> list[tuple[int, str, str]]:
    return connection.execute(READ_HISTORY).fetchall() if _one(connection, HISTORY_EXISTS) else []


def _one(connection: psycopg.Connection[Any], query: str) -> bool:
    row = connection.execute(query.encode()).fetchone()
    return bool(row and row[0])
