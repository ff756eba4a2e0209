"""Claim, heartbeat, fence, finish, reap: an item has at most one running attempt, and only that attempt's writes count.

A worker that was stopped past its lease and wakes up finds zero rows in every fenced write, and discards. All of it is system work:
workers serve every tenant; the item itself then runs in its owner's context.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.errors import SaasError

REASON = "job leases"

# The row lock of the claim is what makes a second worker take the next item instead of the same one.
CLAIM = """
WITH next AS (
    SELECT item_id FROM session_queue
    WHERE status = 'pending'
    ORDER BY priority DESC, item_id
    LIMIT 1
    FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE session_queue AS item
    SET status = 'in_progress', status_sequence = COALESCE(status_sequence, 0) + 1, device = COALESCE(%(device)s, device),
        error_type = NULL, error_message = NULL, error_traceback = NULL
    FROM next WHERE item.item_id = next.item_id
    RETURNING item.item_id, item.user_id
)
INSERT INTO job_attempts (item_id, attempt_no, user_id, worker_id, lease_until)
SELECT item_id, 1 + COALESCE((SELECT max(attempt_no) FROM job_attempts AS earlier WHERE earlier.item_id = claimed.item_id), 0),
       COALESCE(user_id, 'system'), %(worker_id)s, clock_timestamp() + make_interval(secs => %(lease_seconds)s)
FROM claimed
RETURNING item_id, attempt_no, user_id, lease_until
"""
HEARTBEAT = """
UPDATE job_attempts
SET heartbeat_at = clock_timestamp(), lease_until = clock_timestamp() + make_interval(secs => %(lease_seconds)s),
    gpu_seconds = GREATEST(gpu_seconds, %(gpu_seconds)s)
WHERE item_id = %(item_id)s AND attempt_no = %(attempt_no)s AND state = 'running'
"""
# Holds the attempt until the end of the transaction: the reaper skips it, a cancel waits.
FENCE = """
SELECT 1 FROM job_attempts WHERE item_id = %(item_id)s AND attempt_no = %(attempt_no)s AND state = 'running' FOR UPDATE
"""
FINISH = """
UPDATE job_attempts SET state = 'finished', ended_at = clock_timestamp()
WHERE item_id = %(item_id)s AND attempt_no = %(attempt_no)s AND state = 'running'
"""
REVOKE = """
UPDATE job_attempts SET state = 'revoked', ended_at = clock_timestamp() WHERE item_id = %(item_id)s AND state = 'running'
"""
# An item whose worker is gone goes back, and fails after its last attempt; one that was canceled meanwhile stays as it is.
# Item before attempt, as transitions lock them.
REAP = """
WITH expired AS (
    SELECT attempt.item_id, attempt.attempt_no
    FROM session_queue AS item JOIN job_attempts AS attempt USING (item_id)
    WHERE attempt.state = 'running' AND attempt.lease_until < clock_timestamp()
    ORDER BY attempt.item_id
    FOR UPDATE OF item, attempt SKIP LOCKED
), lost AS (
    UPDATE job_attempts AS attempt SET state = 'lost', ended_at = clock_timestamp()
    FROM expired WHERE attempt.item_id = expired.item_id AND attempt.attempt_no = expired.attempt_no
    RETURNING attempt.item_id, attempt.attempt_no
)
UPDATE session_queue AS item
SET status = CASE WHEN lost.attempt_no < %(max_attempts)s THEN 'pending' ELSE 'failed' END,
    status_sequence = COALESCE(status_sequence, 0) + 1,
    error_type = CASE WHEN lost.attempt_no < %(max_attempts)s THEN NULL ELSE 'WorkerLost' END,
    error_message = CASE WHEN lost.attempt_no < %(max_attempts)s THEN NULL ELSE 'The worker stopped answering.' END
FROM lost WHERE item.item_id = lost.item_id AND item.status = 'in_progress'
RETURNING item.item_id, item.status
"""
REAP_ORPHANS = """
UPDATE job_attempts AS attempt SET state = 'lost', ended_at = clock_timestamp()
WHERE state = 'running' AND lease_until < clock_timestamp()
  AND NOT EXISTS (SELECT FROM session_queue AS item WHERE item.item_id = attempt.item_id)
"""


class LeaseLost(SaasError):
    """This attempt no longer counts: its lease ran out, or the item was canceled. Discard what it made."""

    status = 409


@dataclass(frozen=True, slots=True)
class Attempt:
    """The right to work on an item. Output keys carry `attempt_no`."""

    item_id: int
    attempt_no: int
    user_id: str
    lease_until: datetime

    @property
    def key(self) -> dict[str, int]:
        """What fenced statements compare with."""
        return {"item_id": self.item_id, "attempt_no": self.attempt_no}


def claim(database: PostgresDatabase, *, worker_id: str, lease_seconds: float, device: str | None = None) -> Attempt | None:
    """The next pending item for this worker, None when there is none. Highest priority first, then oldest."""
    with tenancy.as_system(REASON), database.postgres() as cursor:
        row = cursor.execute(CLAIM, {"worker_id": worker_id, "lease_seconds": lease_seconds, "device": device}).fetchone()
    return None if row is None else Attempt(**row)


def heartbeat(database: PostgresDatabase, attempt: Attempt, *, lease_seconds: float, gpu_seconds: float = 0.0) -> None:
    """Extend the lease and record the seconds used so far; raises LeaseLost."""
    with tenancy.as_system(REASON), database.postgres() as cursor:
        cursor.execute(HEARTBEAT, {**attempt.key, "lease_seconds": lease_seconds, "gpu_seconds": gpu_seconds})
        _demand_one(cursor.rowcount, attempt)


@contextmanager
def fenced(database: PostgresDatabase, attempt: Attempt) -> Iterator[None]:
    """A transaction whose writes count only while `attempt` runs; raises LeaseLost before the first of them.

    Who also writes the item locks it first: item before attempt, everywhere.
    """
    with tenancy.as_system(REASON), database.postgres() as cursor:
        cursor.execute(FENCE, attempt.key)
        _demand_one(cursor.rowcount, attempt)
        yield


def finish(database: PostgresDatabase, attempt: Attempt) -> None:
    """End the attempt, in the transaction that settles the item; raises LeaseLost."""
    with tenancy.as_system(REASON), database.postgres() as cursor:
        cursor.execute(FINISH, attempt.key)
        _demand_one(cursor.rowcount, attempt)


def revoke(database: PostgresDatabase, item_id: int) -> bool:
    """Take the item from whoever runs it (a cancel); returns whether anybody did."""
    with tenancy.as_system(REASON), database.postgres() as cursor:
        cursor.execute(REVOKE, {"item_id": item_id})
        return cursor.rowcount > 0


def reap(database: PostgresDatabase, *, max_attempts: int) -> dict[int, str]:
    """Give back, or fail after `max_attempts`, the items whose lease ran out; returns item -> new status."""
    with tenancy.as_system(REASON), database.postgres() as cursor:
        rows = cursor.execute(REAP, {"max_attempts": max_attempts}).fetchall()
        cursor.execute(REAP_ORPHANS)
    return {row["item_id"]: row["status"] for row in rows}


def _demand_one(rowcount: int, attempt: Attempt) -> None:
    if rowcount != 1:
        raise LeaseLost(f"attempt {attempt.attempt_no} of item {attempt.item_id} no longer runs")
