"""Claim, heartbeat, fence, finish, reap: an item has at most one running attempt, and only that attempt's writes count.

A worker that was stopped past its lease and wakes up finds zero rows in every fenced write, and discards. All of it is system work:
workers serve every tenant; the item itself then runs in its owner's context.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import DictRow, dict_row

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import Connection, PostgresDatabase, commit_guarded
from invokeai_saas.errors import SaasError

REASON = "job leases"
# How many items a warm one may overtake: a claim reads so many graphs, and a cold item waits for so many others at most.
LOOKAHEAD = 32

# Whose turn, then which item. Effective priority is the plan's plus the whole minutes waited, counted from the enqueue or from when the
# user was last served: who enqueued a thousand items waits anew after each of them, and starves nobody. Among equals, who was served
# longest ago. `waiting` leaps through the index from user to user; the lock on the turn sends a second claim to the next user, the lock on
# the item past one that is being canceled. A turn without an item to take (all of them locked) comes back with NULL.
# A user at their plan's limit of parallel jobs waits: what runs is counted through an index that holds nothing else. Parents that wait for
# called workflows run nothing and take no slot, so that a chain of calls counts once. The count is older than the lock: a turn that
# somebody used in between (`seen` differs from what the lock found) is passed over, or two claims would count the same free slot.
# Of the user's next few items of one priority, the one goes first whose models lie in the device's memory: upstream's affinity, which
# saves tens of seconds of loading and changes nobody else's turn.
CLAIM = """
WITH RECURSIVE waiting (user_id) AS (
    (SELECT user_id FROM session_queue WHERE status = 'pending' ORDER BY user_id LIMIT 1)
    UNION ALL
    SELECT (SELECT user_id FROM session_queue WHERE status = 'pending' AND user_id > waiting.user_id ORDER BY user_id LIMIT 1)
    FROM waiting WHERE waiting.user_id IS NOT NULL
), chosen AS (
    SELECT turn.user_id, head.item_id AS first_item, head.priority
    FROM waiting JOIN queue_turns AS turn USING (user_id)
    JOIN queue_turns AS seen ON seen.user_id = turn.user_id AND seen.served_at IS NOT DISTINCT FROM turn.served_at
    CROSS JOIN LATERAL (
        SELECT item_id, priority, created_at::timestamp AT TIME ZONE 'UTC' AS since
        FROM session_queue WHERE user_id = turn.user_id AND status = 'pending' ORDER BY priority DESC, item_id LIMIT 1
    ) AS head
    WHERE turn.user_id <> ALL(%(busy)s)
      AND (turn.max_parallel IS NULL OR turn.max_parallel > (
          SELECT count(*) FROM session_queue AS running WHERE running.user_id = turn.user_id AND running.status = 'in_progress'))
      AND NOT EXISTS (SELECT FROM users WHERE users.user_id = turn.user_id AND users.is_active = 0)
    ORDER BY turn.plan_priority + floor(extract(epoch FROM statement_timestamp() - GREATEST(head.since, turn.served_at)) / 60) DESC,
             turn.served_at NULLS FIRST, head.item_id
    LIMIT 1
    FOR UPDATE OF turn SKIP LOCKED
), warmest AS (
    SELECT item.item_id
    FROM chosen JOIN session_queue AS item ON item.user_id = chosen.user_id AND item.priority = chosen.priority
        AND item.item_id <= chosen.first_item + %(lookahead)s
    WHERE item.status = 'pending' AND cardinality(%(warm)s::text[]) > 0
    ORDER BY (SELECT count(*) FROM unnest(%(warm)s::text[]) AS key WHERE position(key IN item.session) > 0) DESC, item.item_id
    LIMIT 1
    FOR UPDATE OF item SKIP LOCKED
), next AS (
    SELECT item_id FROM session_queue
    WHERE status = 'pending' AND user_id = (SELECT user_id FROM chosen) AND NOT EXISTS (SELECT FROM warmest)
    ORDER BY priority DESC, item_id
    LIMIT 1
    FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE session_queue AS item
    SET status = 'in_progress', status_sequence = COALESCE(status_sequence, 0) + 1, device = COALESCE(%(device)s, device),
        error_type = NULL, error_message = NULL, error_traceback = NULL
    FROM (SELECT item_id FROM warmest UNION ALL SELECT item_id FROM next) AS taken WHERE item.item_id = taken.item_id
    RETURNING item.item_id, item.user_id
), served AS (
    UPDATE queue_turns SET served_at = clock_timestamp() FROM claimed WHERE queue_turns.user_id = claimed.user_id
), attempt AS (
    INSERT INTO job_attempts (item_id, attempt_no, user_id, worker_id, lease_until)
    SELECT item_id, 1 + COALESCE((SELECT max(attempt_no) FROM job_attempts AS earlier WHERE earlier.item_id = claimed.item_id), 0),
           user_id, %(worker_id)s, clock_timestamp() + make_interval(secs => %(lease_seconds)s)
    FROM claimed
    RETURNING item_id, attempt_no, user_id, lease_until
)
SELECT chosen.user_id, attempt.item_id, attempt.attempt_no, attempt.lease_until FROM chosen LEFT JOIN attempt USING (user_id)
"""
# Every user with something to claim is in another claim's hands: wait for one of them. Not for one at their limit: a job's end is no turn.
WAIT_FOR_TURN = """
SELECT 1 FROM queue_turns AS turn
WHERE EXISTS (SELECT FROM session_queue AS item WHERE item.user_id = turn.user_id AND item.status = 'pending')
  AND (turn.max_parallel IS NULL OR turn.max_parallel > (
      SELECT count(*) FROM session_queue AS running WHERE running.user_id = turn.user_id AND running.status = 'in_progress'))
  AND NOT EXISTS (SELECT FROM users WHERE users.user_id = turn.user_id AND users.is_active = 0)
LIMIT 1
FOR UPDATE OF turn
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
UPDATE job_attempts SET state = 'finished', ended_at = clock_timestamp(), gpu_seconds = GREATEST(gpu_seconds, %(gpu_seconds)s)
WHERE item_id = %(item_id)s AND attempt_no = %(attempt_no)s AND state = 'running'
"""
REVOKE = """
UPDATE job_attempts SET state = 'revoked', ended_at = clock_timestamp() WHERE item_id = %(item_id)s AND state = 'running'
"""
# A worker that stops gives its item back: nobody's failure, and not one of the item's attempts that count as lost.
LET_GO = """
UPDATE job_attempts SET state = 'revoked', ended_at = clock_timestamp(), gpu_seconds = GREATEST(gpu_seconds, %(gpu_seconds)s)
WHERE item_id = %(item_id)s AND attempt_no = %(attempt_no)s AND state = 'running'
"""
# What the one who works asks every few seconds: is it still mine, and does anybody still want it?
STILL_WANTED = """
SELECT 1 FROM session_queue AS item JOIN job_attempts AS attempt USING (item_id)
WHERE item_id = %(item_id)s AND item.status = 'in_progress' AND attempt.attempt_no = %(attempt_no)s AND attempt.state = 'running'
"""
# The last thing before the commit: after any lock on the item, as the lock order wants it.
WROTE = "SELECT pg_current_xact_id_if_assigned() IS NOT NULL AS wrote"
COMMIT_FENCE = """
SELECT 1 FROM job_attempts WHERE item_id = %(item_id)s AND attempt_no = %(attempt_no)s AND state = 'running' FOR SHARE
"""
# An item whose worker is gone goes back, and fails when that happened `max_attempts` times; one that was canceled meanwhile stays as it is.
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
    RETURNING attempt.item_id, 1 + (SELECT count(*) FROM job_attempts AS earlier
        WHERE earlier.item_id = attempt.item_id AND earlier.state = 'lost') AS times
)
UPDATE session_queue AS item
SET status = CASE WHEN lost.times < %(max_attempts)s THEN 'pending' ELSE 'failed' END,
    status_sequence = COALESCE(status_sequence, 0) + 1,
    error_type = CASE WHEN lost.times < %(max_attempts)s THEN NULL ELSE 'WorkerLost' END,
    error_message = CASE WHEN lost.times < %(max_attempts)s THEN NULL ELSE 'The worker stopped answering.' END
FROM lost WHERE item.item_id = lost.item_id AND item.status = 'in_progress'
RETURNING item.item_id, item.status
"""
# Item before attempt, and items by number, as everywhere.
CANCEL_ALL_OF = """
WITH mine AS (
    SELECT item_id FROM session_queue
    WHERE user_id = %s AND status IN ('pending', 'waiting', 'in_progress') ORDER BY item_id FOR UPDATE
)
UPDATE session_queue AS item SET status = 'canceled', status_sequence = COALESCE(status_sequence, 0) + 1
FROM mine WHERE item.item_id = mine.item_id
RETURNING item.queue_id, item.item_id
"""
REVOKE_ALL_OF = "UPDATE job_attempts SET state = 'revoked', ended_at = clock_timestamp() WHERE user_id = %s AND state = 'running'"
REAP_ORPHANS = """
UPDATE job_attempts AS attempt SET state = 'lost', ended_at = clock_timestamp()
WHERE state = 'running' AND lease_until < clock_timestamp()
  AND NOT EXISTS (SELECT FROM session_queue AS item WHERE item.item_id = attempt.item_id)
"""
# A parent whose called workflows all ended, or are gone, and which nobody resumed: the worker died in between, or the reaper failed a
# child. The worker of the last child resumes it within moments; a minute without news is the end.
REAP_WAITING = """
WITH forgotten AS (
    SELECT item_id FROM session_queue AS parent
    WHERE status = 'waiting' AND updated_at::timestamp AT TIME ZONE 'UTC' < clock_timestamp() - interval '1 minute'
      AND NOT EXISTS (
          SELECT FROM session_queue AS child
          WHERE child.parent_item_id = parent.item_id AND (child.status IN ('pending', 'in_progress', 'waiting')
              OR child.updated_at::timestamp AT TIME ZONE 'UTC' >= clock_timestamp() - interval '1 minute'))
    ORDER BY item_id
    FOR UPDATE SKIP LOCKED
)
UPDATE session_queue AS item
SET status = 'failed', status_sequence = COALESCE(status_sequence, 0) + 1, error_type = 'WorkerLost',
    error_message = 'A workflow that this one called ended without an answer.'
FROM forgotten WHERE item.item_id = forgotten.item_id AND item.status = 'waiting'
RETURNING item.item_id, item.status
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


_working_on: ContextVar[Attempt | None] = ContextVar("invokeai_saas_working_on", default=None)


def claim(
    database: PostgresDatabase, *, worker_id: str, lease_seconds: float, device: str | None = None, warm: Iterable[str] = ()
) -> Attempt | None:
    """The item whose turn it is, None when there is none. Never the same item twice, and no user before their turn (see CLAIM).

    `warm` are the keys of the models that the device holds.
    """
    values = {"worker_id": worker_id, "lease_seconds": lease_seconds, "device": device, "warm": sorted(warm), "lookahead": LOOKAHEAD}
    busy: list[str] = []
    with tenancy.as_system(REASON), database.postgres() as cursor:
        while True:
            row = cursor.execute(CLAIM, {**values, "busy": busy}).fetchone()
            if row is not None and row["item_id"] is not None:
                return Attempt(**row)
            if row is not None:
                busy.append(row["user_id"])
            elif busy or cursor.execute(WAIT_FOR_TURN).fetchone() is None:
                # Who holds a turn must not wait for another one.
                return None


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


def finish(database: PostgresDatabase, attempt: Attempt, *, gpu_seconds: float = 0.0) -> None:
    """End the attempt, in the transaction that settles the item; raises LeaseLost."""
    with tenancy.as_system(REASON), database.postgres() as cursor:
        cursor.execute(FINISH, {**attempt.key, "gpu_seconds": gpu_seconds})
        _demand_one(cursor.rowcount, attempt)


def let_go(database: PostgresDatabase, attempt: Attempt, *, gpu_seconds: float = 0.0) -> None:
    """End the attempt without a result, in the transaction that gives the item back; raises LeaseLost."""
    with tenancy.as_system(REASON), database.postgres() as cursor:
        cursor.execute(LET_GO, {**attempt.key, "gpu_seconds": gpu_seconds})
        _demand_one(cursor.rowcount, attempt)


def demand_wanted(database: PostgresDatabase, attempt: Attempt) -> None:
    """Raise LeaseLost once the item was canceled, deleted or given to somebody else, whichever process did it."""
    with tenancy.as_system(REASON), database.postgres() as cursor:
        cursor.execute(STILL_WANTED, attempt.key)
        _demand_one(cursor.rowcount, attempt)


@contextmanager
def guarding(attempt: Attempt) -> Iterator[None]:
    """Inside, no transaction that wrote anything commits unless `attempt` still runs: pictures, rows, journal. Raises LeaseLost there."""

    def guard(connection: Connection) -> None:
        with connection.cursor(row_factory=dict_row) as cursor:
            wrote = cursor.execute(WROTE).fetchone()
            if wrote is None or not wrote["wrote"]:
                return
            cursor.execute(tenancy.Context(reason=REASON).enter_sql(sharing=False))
            cursor.execute(COMMIT_FENCE, attempt.key)
            _demand_one(cursor.rowcount, attempt)

    token = _working_on.set(attempt)
    try:
        with commit_guarded(guard):
            yield
    finally:
        _working_on.reset(token)


def lost_behind(error: BaseException | None) -> "LeaseLost | None":
    """The lost lease that an error comes from, whoever made another error of it on the way."""
    for _ in range(20):
        if error is None or isinstance(error, LeaseLost):
            break
        error = error.__cause__ or error.__context__
    return error if isinstance(error, LeaseLost) else None


def working_on() -> Attempt | None:
    """The attempt that this thread is guarding, unguarded() or not."""
    return _working_on.get()


@contextmanager
def unguarded() -> Iterator[None]:
    """For the queue's own transitions, which end the attempt and fence themselves."""
    with commit_guarded(None):
        yield


def revoke(database: PostgresDatabase, item_id: int) -> bool:
    """Take the item from whoever runs it (a cancel); returns whether anybody did."""
    with tenancy.as_system(REASON), database.postgres() as cursor:
        cursor.execute(REVOKE, {"item_id": item_id})
        return cursor.rowcount > 0


def cancel_all_of(cursor: psycopg.Cursor[DictRow], user_id: str) -> list[dict[str, Any]]:
    """Cancel every open item of a user and take running ones from their workers, inside the caller's transaction and system context.

    Returns queue_id and item_id of each. No graph is read on the way: an account must be stoppable whatever its jobs hold.
    """
    canceled = cursor.execute(CANCEL_ALL_OF, (user_id,)).fetchall()
    cursor.execute(REVOKE_ALL_OF, (user_id,))
    return canceled


def reap(database: PostgresDatabase, *, max_attempts: int) -> dict[int, str]:
    """Give back, or fail after `max_attempts`, the items whose lease ran out, and fail who waits for nobody; returns item -> new status."""
    with tenancy.as_system(REASON), database.postgres() as cursor:
        rows = cursor.execute(REAP, {"max_attempts": max_attempts}).fetchall()
        rows += cursor.execute(REAP_WAITING).fetchall()
        cursor.execute(REAP_ORPHANS)
    return {row["item_id"]: row["status"] for row in rows}


def _demand_one(rowcount: int, attempt: Attempt) -> None:
    if rowcount != 1:
        raise LeaseLost(f"attempt {attempt.attempt_no} of item {attempt.item_id} no longer runs")
