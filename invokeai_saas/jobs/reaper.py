"""Finds what nobody looks after any more, every two seconds in every web process, one at a time.

    leases that ran out · pins to workers that are gone · parents that nobody resumes · items past their limit ─► lost.py, one by one

    was the database away?  ─ a gap in this process's own looks ─► one lease longer for everybody, before anything is taken from anybody

Each item is its own transaction: one that fails, or whose row somebody holds for longer, waits for the next look. What a user may cost in
wall time: a worker stops an item at decision 14's limit (twice the hold, and the allowance for loading models) within seconds, counted in
the seconds of its nodes; where that worker beats on but its runner hangs, the item ends here, WALL_SLACK_SECONDS after that limit at
the latest, counted from the claim.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import psycopg

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.errors import DatabaseUnavailable
from invokeai_saas.jobs import lost
from invokeai_saas.jobs.lease import Attempt
from invokeai_saas.jobs.lost import PATIENCE, Patience

REASON = "expired leases of all tenants"
PERIOD_SECONDS = 2.0
# A process that looked every two seconds and then did not for so long had no database, or no time: workers had none either.
GAP_SECONDS = 6.0
WALL_SLACK_SECONDS = 1800.0
# A provider's call may take ten minutes (decision 30), which are nobody's seconds; it costs ten credits or more.
PROVIDER_SECONDS_PER_CREDIT = 60.0
MOST_AT_ONCE = 500
logger = logging.getLogger(__name__)

# The name is what status, metrics and drains go by. The devices of one server share a worker_id, and a worker that is back has another one.
EXPIRED = """
SELECT item_id, attempt_no, user_id, worker_id, lease_until, (
    SELECT min(name) FROM gpu_instances AS known WHERE known.worker_id = attempt.worker_id HAVING count(*) = 1) AS worker_name
FROM job_attempts AS attempt
WHERE state = 'running' AND lease_until < clock_timestamp() ORDER BY item_id LIMIT %(most)s
"""
# What goes on with tensors that are gone. A worker that drains or is in quarantine takes nothing any more: that is no loss.
UNPINNED = """
SELECT COALESCE(item.root_item_id, item.item_id) AS root, bool_or(NOT EXISTS (
    SELECT FROM gpu_instances AS alive WHERE alive.incarnation = item.pinned_to AND alive.status <> 'terminated'
        AND alive.alive_until > clock_timestamp())) AS lost
FROM session_queue AS item
WHERE item.status = 'pending' AND item.pinned_to IS NOT NULL
  AND (%(root)s::bigint IS NULL OR COALESCE(item.root_item_id, item.item_id) = %(root)s::bigint)
  AND NOT EXISTS (SELECT FROM gpu_instances AS taking WHERE taking.incarnation = item.pinned_to AND taking.wanted IS DISTINCT FROM 'drain'
      AND taking.status IN ('starting', 'available', 'busy') AND taking.alive_until > clock_timestamp())
GROUP BY root ORDER BY root LIMIT %(most)s
"""
# A parent whose called workflows all ended, or are gone, and which nobody resumed: the worker died in between. The worker of the last child
# resumes it within moments; a minute without news is the end.
FORGOTTEN = """
SELECT DISTINCT COALESCE(parent.root_item_id, parent.item_id) AS root, true AS lost FROM session_queue AS parent
WHERE parent.status = 'waiting' AND parent.updated_at::timestamp AT TIME ZONE 'UTC' < clock_timestamp() - interval '1 minute'
  AND (%(root)s::bigint IS NULL OR COALESCE(parent.root_item_id, parent.item_id) = %(root)s::bigint)
  AND NOT EXISTS (
      SELECT FROM session_queue AS child
      WHERE child.parent_item_id = parent.item_id AND (child.status IN ('pending', 'in_progress', 'waiting')
          OR child.updated_at::timestamp AT TIME ZONE 'UTC' >= clock_timestamp() - interval '1 minute'))
ORDER BY root LIMIT %(most)s
"""
OVERRUN = """
SELECT hold.item_id AS root, allowed.seconds AS allowed
FROM job_attempts AS attempt JOIN session_queue AS item USING (item_id)
JOIN credit_holds AS hold ON hold.item_id = COALESCE(item.root_item_id, item.item_id) AND hold.user_id = item.user_id
CROSS JOIN LATERAL (SELECT 2 * (hold.amount - hold.provider_credits) + %(slack)s + hold.provider_credits * %(provider)s
    + CASE WHEN jsonb_typeof(hold.detail -> 'load_seconds') = 'number' THEN (hold.detail ->> 'load_seconds')::float ELSE 0 END AS seconds
) AS allowed
WHERE attempt.state = 'running' AND item.status = 'in_progress' AND hold.state = 'held'
  AND (%(root)s::bigint IS NULL OR hold.item_id = %(root)s::bigint)
  AND attempt.started_at < clock_timestamp() - make_interval(secs => allowed.seconds)
ORDER BY root LIMIT %(most)s
"""


def reap(database: PostgresDatabase, *, patience: Patience = PATIENCE) -> dict[int, str]:
    """Give back or fail what nobody works on any more, and end what runs past its limit; returns item (a chain's root) -> new status."""
    changed: dict[int, str] = {}
    with tenancy.as_system(REASON):
        for row in _found(database, EXPIRED):
            changed |= _alone(row["item_id"], _expired, database, row, patience)
        for question in (UNPINNED, FORGOTTEN):
            for row in _found(database, question):
                changed |= _alone(row["root"], _again, database, question, row["root"], patience)
        for row in _found(database, OVERRUN):
            changed |= _alone(row["root"], _stop, database, row["root"])
    return changed


class Reaper:
    """reap() as a background job that every web process runs: `look` reaps when no other process does, and not after an outage."""

    def __init__(
        self,
        database: PostgresDatabase,
        look: Callable[[], object],
        *,
        lease_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`look` is what to do when it is time; `lease_seconds` how long everybody has after an outage."""
        self._database, self._look, self._lease_seconds, self._clock = database, look, lease_seconds, clock
        self._seen_at: float | None = None
        self._patient_until = clock()

    def __call__(self) -> None:
        """One look; raises what the database raises."""
        with self._database.exclusive_if_free("reaper") as free:
            now = self._clock()
            if self._seen_at is not None and now - self._seen_at > GAP_SECONDS:
                away = now - self._seen_at
                logger.warning("nobody looked at the queue for %.0f s: workers have %.0f s to be heard of", away, self._lease_seconds)
                self._patient_until = now + self._lease_seconds
            self._seen_at = now
            if free and now >= self._patient_until:
                self._look()


def _asked(root: int | None = None) -> Mapping[str, Any]:
    return {"root": root, "most": MOST_AT_ONCE, "slack": WALL_SLACK_SECONDS, "provider": PROVIDER_SECONDS_PER_CREDIT}


def _found(database: PostgresDatabase, question: str) -> list[dict[str, Any]]:
    with database.postgres() as cursor:
        return cursor.execute(question.encode(), _asked()).fetchall()


def _alone(item_id: int, function: Callable[..., dict[int, str]], *arguments: Any) -> dict[int, str]:
    """One item's turn: what is wrong with it keeps nobody else's from coming back. A database that is away ends the look."""
    try:
        return function(*arguments)
    except psycopg.errors.LockNotAvailable:
        logger.info("item %s is in somebody else's hands; the next look comes back to it", item_id)
    except (psycopg.OperationalError, DatabaseUnavailable):
        raise
    except Exception:
        logger.exception("item %s could not be given back", item_id)
    return {}


def _expired(database: PostgresDatabase, row: dict[str, Any], patience: Patience) -> dict[int, str]:
    worker_id, name = row.pop("worker_id"), row.pop("worker_name")
    worker = worker_id if name in (None, worker_id) else f"{name} ({worker_id})"
    why = f"its worker {worker} was not heard of for a whole lease"
    return lost.end_attempt(database, Attempt(**row), lost=True, why=why, if_expired=True, patience=patience)


def _again(database: PostgresDatabase, question: str, root: int, patience: Patience) -> dict[int, str]:
    """Start a chain over, if the answer is still the same under its locks."""
    with database.postgres() as cursor:
        cursor.execute(lost.NOT_LONG)
        chain = lost.lock(cursor, root)
        row = cursor.execute(question.encode(), _asked(root)).fetchone()
        return {} if row is None else lost.start_over(cursor, root, chain, lost=row["lost"], patience=patience)


def _stop(database: PostgresDatabase, root: int) -> dict[int, str]:
    with database.postgres() as cursor:
        cursor.execute(lost.NOT_LONG)
        chain = lost.lock(cursor, root)
        row = cursor.execute(OVERRUN.encode(), _asked(root)).fetchone()
        if row is None:
            return {}
        why = f"stopped: it ran for longer than the price that was held allows, and {row['allowed']:.0f} seconds by the clock at the most"
        return lost.fail_chain(cursor, root, chain, error_type="RanOverPrice", error_message=why)
