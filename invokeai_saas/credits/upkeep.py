"""What time does to the books: grants end, holds of jobs that vanished go back, late seconds reach the usage record. Every minute."""

import logging
from datetime import UTC, datetime, timedelta

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase

EXPIRE_DUE = "SELECT credits_expire_due() AS lines"
RELEASE_ORPHANS = "SELECT credits_release_orphans(%s) AS released"
NOTE_LATE_SECONDS = "SELECT credits_note_late_seconds(%s) AS noted"
# A worker beats at most this long after its job was canceled.
LATE = timedelta(minutes=10)
ORPHAN_AFTER = timedelta(minutes=1)
logger = logging.getLogger(__name__)


def expire_due(database: PostgresDatabase) -> int:
    """Expire what is left of grants that have ended; returns how many grants lost something."""
    with tenancy.as_system("credits of all users end by themselves"), database.postgres() as cursor:
        row = cursor.execute(EXPIRE_DUE).fetchone()
    return int(row["lines"]) if row else 0


def release_orphans(database: PostgresDatabase, *, older_than: timedelta = ORPHAN_AFTER) -> int:
    """Release holds whose job is gone (decision 15). The triggers leave none: one is an error in the log."""
    with tenancy.as_system("holds of jobs that are gone"), database.postgres() as cursor:
        row = cursor.execute(RELEASE_ORPHANS, (older_than,)).fetchone()
    released = int(row["released"]) if row else 0
    if released:
        logger.error("released %d holds of credits whose jobs had ended without settling them", released)
    return released


def note_late_seconds(database: PostgresDatabase) -> int:
    """Seconds that a worker reported after its job was canceled: for the measurements, charged to nobody."""
    with tenancy.as_system("late heartbeats of all workers"), database.postgres() as cursor:
        row = cursor.execute(NOTE_LATE_SECONDS, (datetime.now(UTC) - LATE,)).fetchone()
    return int(row["noted"]) if row else 0


def run(database: PostgresDatabase) -> None:
    """All three."""
    expire_due(database)
    release_orphans(database)
    note_late_seconds(database)
