"""What becomes of an item whose worker is gone, or gave it back: as if that attempt had never been, or the end of it.

    worker gone (lease over, runner dead) ─► attempt `lost` ─┐
    worker stops, pin's worker drains     ─► `revoked`       ├─► outputs removed, called workflows canceled, session fresh, nothing owed
                                                             └─► pending: at once, or 2 s, 4 s after a loss; after the third: failed

A chain of called workflows is one thing here: half of it lies in the memory of the runner that is gone, so it starts again from its root,
and a loss of any of its items is a loss of the root's. Everything of one chain happens in one transaction, under the locks of its items
in the order of their numbers, items before attempts. Rows only: removed pictures leave their files to the journal (storage/), sockets
hear from the next reaper of a web process (`untold`). Imports no InvokeAI: supervisors of GPU workers call it too.
"""

import logging
from dataclasses import dataclass

import psycopg
from psycopg.rows import DictRow

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.jobs import lease
from invokeai_saas.jobs.lease import Attempt, LeaseLost

REASON = "items whose workers are gone"
MAX_LOSSES = 3
FIRST_WAIT_SECONDS = 2.0
WORKER_LOST = "The worker that ran this stopped answering, {times} times in a row. Nothing was charged; you can try it again."
Cursor = psycopg.Cursor[DictRow]
logger = logging.getLogger(__name__)

# Items by number, as everywhere. The root comes first: it was there before what it called.
LOCK_CHAIN = """
SELECT item_id, user_id, session_id, status FROM session_queue
WHERE item_id = %(root)s OR root_item_id = %(root)s ORDER BY item_id FOR UPDATE
"""
ROOT_OF = "SELECT COALESCE(root_item_id, item_id) AS root FROM session_queue WHERE item_id = %s"
END_ATTEMPT = """
UPDATE job_attempts SET state = %(state)s, ended_at = clock_timestamp(), gpu_seconds = GREATEST(gpu_seconds, %(gpu_seconds)s)
WHERE item_id = %(item_id)s AND attempt_no = %(attempt_no)s AND state = 'running'
  AND (NOT %(if_expired)s OR lease_until < clock_timestamp())
"""
# What the chain did before counts for nothing: neither for the price nor, but for the root's last try, as a loss.
END_OTHERS = """
UPDATE job_attempts AS attempt
SET ended_at = COALESCE(ended_at, clock_timestamp()), state = CASE
    WHEN %(lost)s AND item_id = %(root)s
        AND attempt_no = (SELECT max(attempt_no) FROM job_attempts AS last WHERE last.item_id = %(root)s) THEN 'lost' ELSE 'revoked' END
WHERE item_id = ANY(%(items)s) AND state IN ('running', 'finished')
"""
LOSSES = "SELECT count(*) AS times FROM job_attempts WHERE item_id = %s AND state = 'lost'"
CANCEL_CALLED = """
UPDATE session_queue SET status = 'canceled', status_sequence = COALESCE(status_sequence, 0) + 1, untold = true
WHERE root_item_id = %(root)s AND status IN ('pending', 'in_progress', 'waiting')
"""
REMOVE_PICTURES = "DELETE FROM images WHERE session_id = ANY(%(sessions)s) AND user_id = %(user_id)s"
REMOVE_VIDEOS = "DELETE FROM videos WHERE session_id = ANY(%(sessions)s) AND user_id = %(user_id)s"
OWE_NOTHING = "SELECT credits_start_over(%(root)s)"
# A row that somebody else holds is looked at again by the next reaper. Less than Postgres' deadlock_timeout (1 s): a worker that saves at
# this very moment holds its files' rows and waits for the attempt, the other way round than here; this side must be the one that gives way.
NOT_LONG = "SET LOCAL lock_timeout = '500ms'"
START_OVER = """
UPDATE session_queue
SET status = 'pending', status_sequence = COALESCE(status_sequence, 0) + 1, untold = true, session = queue_fresh_session(session),
    pinned_to = NULL, not_before = clock_timestamp() + make_interval(secs => %(wait_seconds)s),
    error_type = NULL, error_message = NULL, error_traceback = NULL
WHERE item_id = %(root)s
"""
FAIL = """
UPDATE session_queue
SET status = 'failed', status_sequence = COALESCE(status_sequence, 0) + 1, untold = true, error_type = %(error_type)s,
    error_message = %(error_message)s, error_traceback = NULL
WHERE item_id = %(root)s
"""
_OPEN = ("pending", "in_progress", "waiting")


@dataclass(frozen=True, slots=True)
class Patience:
    """How often an item may lose its worker before it fails, and how long it waits after the first time; twice as long after each."""

    losses: int = MAX_LOSSES
    first_wait_seconds: float = FIRST_WAIT_SECONDS

    def wait_seconds(self, times: int) -> float:
        """After the loss number `times`; none for an item that was given back."""
        return self.first_wait_seconds * 2 ** (times - 1) if times else 0.0


PATIENCE = Patience()


def lose(database: PostgresDatabase, attempt: Attempt, *, why: str, patience: Patience = PATIENCE) -> dict[int, str]:
    """The worker of `attempt` is gone, somebody saw it die. Returns root -> new status, empty where the attempt had ended before."""
    return end_attempt(database, attempt, lost=True, why=why, patience=patience)


def give_back(database: PostgresDatabase, attempt: Attempt, *, gpu_seconds: float = 0.0) -> dict[int, str]:
    """The worker lets go of an item that it did not finish: nobody's failure. Raises LeaseLost for an attempt that had ended before."""
    changed = end_attempt(database, attempt, lost=False, why="given back", gpu_seconds=gpu_seconds)
    if not changed:
        raise LeaseLost(f"attempt {attempt.attempt_no} of item {attempt.item_id} no longer runs")
    return changed


def end_attempt(
    database: PostgresDatabase,
    attempt: Attempt,
    *,
    lost: bool,
    why: str,
    if_expired: bool = False,
    gpu_seconds: float = 0.0,
    patience: Patience = PATIENCE,
) -> dict[int, str]:
    """End a running attempt and start its chain over; `if_expired`: unless it was heard of meanwhile. Returns root -> new status."""
    values = {**attempt.key, "state": "lost" if lost else "revoked", "if_expired": if_expired, "gpu_seconds": gpu_seconds}
    with tenancy.as_system(REASON), lease.unguarded(), database.postgres() as cursor:
        if if_expired:
            cursor.execute(NOT_LONG)
        root = _root_of(cursor, attempt.item_id)
        chain = [] if root is None else lock(cursor, root)
        if cursor.execute(END_ATTEMPT, values).rowcount == 0:
            return {}
        logger.warning("attempt %s of item %s: %s", attempt.attempt_no, attempt.item_id, why)
        status = next((row["status"] for row in chain if row["item_id"] == attempt.item_id), None)
        # One that was canceled meanwhile, or is gone, stays so.
        return {} if root is None or status != "in_progress" else start_over(cursor, root, chain, lost=lost, patience=patience)


def lock(cursor: Cursor, root: int) -> list[DictRow]:
    """Lock all items of a chain until the end of the transaction; as they are then, the root first."""
    return cursor.execute(LOCK_CHAIN, {"root": root}).fetchall()


def start_over(cursor: Cursor, root: int, chain: list[DictRow], *, lost: bool, patience: Patience = PATIENCE) -> dict[int, str]:
    """Start a chain over of which nothing runs; `lost` counts as a loss of its root. In the caller's transaction and system context."""
    cursor.execute(CANCEL_CALLED, {"root": root})
    if not chain or chain[0]["item_id"] != root or chain[0]["status"] not in _OPEN:
        # Whoever ended the root ended what it called.
        return {}
    # After the called workflows ended: their end adds what they used.
    cursor.execute(END_OTHERS, {"root": root, "items": [row["item_id"] for row in chain], "lost": lost})
    cursor.execute(OWE_NOTHING, {"root": root})
    made = {"sessions": [row["session_id"] for row in chain], "user_id": chain[0]["user_id"]}
    cursor.execute(REMOVE_PICTURES, made)
    cursor.execute(REMOVE_VIDEOS, made)
    counted = cursor.execute(LOSSES, (root,)).fetchone()
    times = counted["times"] if lost and counted is not None else 0
    if times and times >= patience.losses:
        message = WORKER_LOST.format(times=times)
        cursor.execute(FAIL, {"root": root, "error_type": "WorkerLost", "error_message": message})
        return {root: "failed"}
    cursor.execute(START_OVER, {"root": root, "wait_seconds": patience.wait_seconds(times)})
    return {root: "pending"}


def fail_chain(cursor: Cursor, root: int, chain: list[DictRow], *, error_type: str, error_message: str) -> dict[int, str]:
    """End a chain as failed by what it did itself: it is charged as measured. In the caller's transaction and system context."""
    if not chain or chain[0]["status"] not in _OPEN:
        return {}
    for row in chain:
        cursor.execute(lease.REVOKE, {"item_id": row["item_id"]})
    cursor.execute(CANCEL_CALLED, {"root": root})
    cursor.execute(FAIL, {"root": root, "error_type": error_type, "error_message": error_message})
    return {root: "failed"}


def _root_of(cursor: Cursor, item_id: int) -> int | None:
    row = cursor.execute(ROOT_OF, (item_id,)).fetchone()
    return None if row is None else int(row["root"])
