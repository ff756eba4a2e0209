"""Claim, heartbeat, fence, finish: an item has at most one running attempt, and only that attempt's writes count.

A worker that was stopped past its lease and wakes up finds zero rows in every fenced write, and discards. Who lost an item, or gives
it back, is lost.py's. All of it is system work: workers serve every tenant; the item itself then runs in its owner's context.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import DictRow, dict_row

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import Connection, PostgresDatabase, commit_guarded
from invokeai_saas.errors import SaasError

REASON = "job leases"
# How many items a warm one may overtake: a claim reads so many graphs, and a cold item waits for so many others at most.
LOOKAHEAD = 32
# How many items that others have locked (they are being canceled) a claim passes over before it leaves the user to the next one.
PATIENCE = 8
ALL_TIERS = frozenset(("basic", "high_performance", "dedicated"))

# Whose turn, then which item. Effective priority is the plan's plus the whole minutes waited, counted from the enqueue or from when the
# user was last served: who enqueued a thousand items waits anew after each of them, and starves nobody. Among equals, who was served
# longest ago. `waiting` leaps through the index from route to route, and through those that this worker may take from user to user: what
# it must not take (other tiers, more memory, models it has not, somebody else's tensors) costs one look per route, however many users and
# items wait for it. The lock on the turn sends a second claim to the next user, the lock on the item past one that is being canceled. A
# turn without an item to take (all of them locked) comes back with NULL; no turn at all with those who have one, for WAIT_FOR_TURN.
# A user at their plan's limit of parallel jobs waits: what runs is counted through an index that holds nothing else. Parents that wait for
# called workflows run nothing and take no slot, so that a chain of calls counts once. The count is older than the lock: a turn that
# somebody used in between (what the count `seen` differs from what the lock found) is passed over, or two claims would count the same free
# slot.
# Of the user's next few items of one priority, the one goes first whose models lie in the device's memory: upstream's affinity, which
# saves tens of seconds of loading and changes nobody else's turn.
CLAIM = """
WITH RECURSIVE waiting AS (
    SELECT (-9223372036854775808)::bigint AS route, '' AS user_id, NULL::bigint AS item_id, NULL::bigint AS priority, '' AS created_at,
        true AS fits
    UNION ALL
    SELECT head.route, head.user_id, head.item_id, head.priority, head.created_at,
        (head.tiers IS NULL OR %(tiers)s::text[] IS NULL OR head.tiers && %(tiers)s::text[])
        AND (head.needs_memory_mb IS NULL OR %(memory_mb)s::int IS NULL OR head.needs_memory_mb <= %(memory_mb)s::int)
        AND (head.needs_models IS NULL OR %(models)s::text[] IS NULL OR head.needs_models <@ %(models)s::text[])
        AND (head.pinned_to IS NULL OR head.pinned_to = %(incarnation)s::uuid)
    FROM waiting CROSS JOIN LATERAL (
        SELECT route, user_id, item_id, priority, created_at, tiers, needs_memory_mb, needs_models, pinned_to FROM session_queue
        WHERE status = 'pending' AND (not_before IS NULL OR not_before <= clock_timestamp())
          AND (route, user_id) > (CASE WHEN waiting.fits THEN waiting.route ELSE waiting.route + 1 END,
                                  CASE WHEN waiting.fits THEN waiting.user_id ELSE '' END)
        ORDER BY route, user_id, priority DESC, item_id LIMIT 1
    ) AS head
), fitting AS MATERIALIZED (
    SELECT route, user_id, item_id, priority, created_at::timestamp AT TIME ZONE 'UTC' AS since
    FROM waiting WHERE fits AND item_id IS NOT NULL
), able AS MATERIALIZED (
    SELECT head.*, seen.served_at,
        seen.plan_priority + floor(extract(epoch FROM statement_timestamp() - GREATEST(head.since, seen.served_at)) / 60) AS urgency
    FROM (SELECT DISTINCT ON (user_id) user_id, item_id, priority, since FROM fitting ORDER BY user_id, priority DESC, item_id) AS head
    JOIN queue_turns AS seen USING (user_id)
    WHERE head.user_id <> ALL(%(busy)s)
      AND (seen.max_parallel IS NULL OR seen.max_parallel > (
          SELECT count(*) FROM session_queue AS running WHERE running.user_id = seen.user_id AND running.status = 'in_progress'))
      AND NOT EXISTS (SELECT FROM users WHERE users.user_id = seen.user_id AND users.is_active = 0)
), chosen AS (
    SELECT turn.user_id, seen.item_id AS first_item, seen.priority
    FROM able AS seen JOIN queue_turns AS turn ON turn.user_id = seen.user_id AND seen.served_at IS NOT DISTINCT FROM turn.served_at
    ORDER BY seen.urgency DESC, seen.served_at NULLS FIRST, seen.item_id
    LIMIT 1
    FOR UPDATE OF turn SKIP LOCKED
), taken AS (
    SELECT item.item_id
    FROM chosen JOIN fitting USING (user_id) CROSS JOIN LATERAL (
        SELECT near.item_id, near.priority FROM session_queue AS near
        WHERE near.status = 'pending' AND near.user_id = fitting.user_id AND near.route = fitting.route
          AND (near.not_before IS NULL OR near.not_before <= clock_timestamp())
        ORDER BY near.priority DESC, near.item_id LIMIT %(reach)s
    ) AS near JOIN session_queue AS item ON item.item_id = near.item_id
    WHERE item.status = 'pending'
    ORDER BY near.priority DESC, CASE
        WHEN cardinality(%(warm)s::text[]) = 0 OR near.priority < chosen.priority OR near.item_id > chosen.first_item + %(lookahead)s THEN 0
        ELSE (SELECT count(*) FROM unnest(%(warm)s::text[]) AS key WHERE position(key IN item.session) > 0) END DESC, near.item_id
    LIMIT 1
    FOR UPDATE OF item SKIP LOCKED
), claimed AS (
    UPDATE session_queue AS item
    SET status = 'in_progress', status_sequence = COALESCE(status_sequence, 0) + 1, device = COALESCE(%(device)s, device),
        not_before = NULL, error_type = NULL, error_message = NULL, error_traceback = NULL
    FROM taken WHERE item.item_id = taken.item_id
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
SELECT chosen.user_id, attempt.item_id, attempt.attempt_no, attempt.lease_until,
    CASE WHEN chosen.user_id IS NULL THEN ARRAY(SELECT user_id FROM able) END AS turns
FROM (SELECT) AS always LEFT JOIN chosen ON true LEFT JOIN attempt USING (user_id)
"""
# Every user with something to claim is in another claim's hands: wait for one of them. Not for one at their limit: a job's end is no turn.
WAIT_FOR_TURN = "SELECT 1 FROM queue_turns WHERE user_id = ANY(%s) LIMIT 1 FOR UPDATE"
# A claim takes milliseconds; who holds a turn for longer was stopped in the middle, and nobody waits for that.
NOT_LONG = "SET LOCAL lock_timeout = '2s'"
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
# What the one who works asks every few seconds: is it still mine, and does anybody still want it?
STILL_WANTED = """
SELECT 1 FROM session_queue AS item JOIN job_attempts AS attempt USING (item_id)
WHERE item_id = %(item_id)s AND item.status = 'in_progress' AND attempt.attempt_no = %(attempt_no)s AND attempt.state = 'running'
"""
SETTLED = "SELECT 1 FROM job_attempts WHERE item_id = %(item_id)s AND attempt_no = %(attempt_no)s AND state = 'finished'"
# Who lost an attempt, or whose chain started over, has no more to say to anything that it touched.
COUNTS = """
SELECT 1 FROM job_attempts WHERE item_id = %(item_id)s AND attempt_no = %(attempt_no)s AND state IN ('running', 'finished') FOR SHARE
"""
# The last thing before the commit: after any lock on the item, as the lock order wants it.
WROTE = "SELECT pg_current_xact_id_if_assigned() IS NOT NULL AS wrote"
COMMIT_FENCE = """
SELECT 1 FROM job_attempts WHERE item_id = %(item_id)s AND attempt_no = %(attempt_no)s AND state = 'running' FOR SHARE
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


@dataclass(frozen=True, slots=True)
class Capability:
    """What a worker may take; None is no limit. All tiers together are none either: such a worker takes also what no single tier may.

    `incarnation` is the life of the worker that tensors of called workflows are pinned to; without one, it takes nothing that is pinned.
    """

    tiers: tuple[str, ...] | None = None
    memory_mb: int | None = None
    model_keys: frozenset[str] | None = None
    incarnation: UUID | None = None

    @property
    def values(self) -> dict[str, Any]:
        """What the claim compares an item's route with."""
        unlimited = self.tiers is None or set(self.tiers) >= ALL_TIERS
        return {
            "tiers": None if unlimited else list(self.tiers or ()),
            "memory_mb": self.memory_mb,
            "models": None if self.model_keys is None else sorted(self.model_keys),
            "incarnation": self.incarnation,
        }


EVERYTHING = Capability()
_working_on: ContextVar[Attempt | None] = ContextVar("invokeai_saas_working_on", default=None)


def claim(
    database: PostgresDatabase,
    *,
    worker_id: str,
    lease_seconds: float,
    device: str | None = None,
    warm: Iterable[str] = (),
    can: Capability = EVERYTHING,
) -> Attempt | None:
    """The item whose turn it is among those that this worker can take, None when there is none. Never the same item twice, and no user
    before their turn (see CLAIM). `warm` are the keys of the models that the device holds.
    """
    values = {"worker_id": worker_id, "lease_seconds": lease_seconds, "device": device, **looks(warm), **can.values}
    try:
        with tenancy.as_system(REASON), database.postgres() as cursor:
            return _claim(cursor, values)
    except psycopg.errors.LockNotAvailable:
        return None


def _claim(cursor: psycopg.Cursor[DictRow], values: dict[str, Any]) -> Attempt | None:
    busy: list[str] = []
    while True:
        row = cursor.execute(CLAIM, {**values, "busy": busy}).fetchone()
        assert row is not None, "the claim always answers"
        turns = row.pop("turns")
        if row["item_id"] is not None:
            return Attempt(**row)
        if row["user_id"] is not None:
            busy.append(row["user_id"])
        elif busy or not turns:
            # Who holds a turn must not wait for another one.
            return None
        else:
            cursor.execute(NOT_LONG)
            if cursor.execute(WAIT_FOR_TURN, (turns,)).fetchone() is None:
                return None


def looks(warm: Iterable[str] = ()) -> dict[str, Any]:
    """How far a claim looks among the items of whoever's turn it is."""
    keys = sorted(warm)
    return {"warm": keys, "lookahead": LOOKAHEAD, "reach": LOOKAHEAD + 1 if keys else PATIENCE}


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


def demand_wanted(database: PostgresDatabase, attempt: Attempt) -> None:
    """Raise LeaseLost once the item was canceled, deleted or given to somebody else, whichever process did it."""
    with tenancy.as_system(REASON), database.postgres() as cursor:
        cursor.execute(STILL_WANTED, attempt.key)
        _demand_one(cursor.rowcount, attempt)


def is_settled(database: PostgresDatabase, attempt: Attempt) -> bool:
    """Whether the work itself ended the attempt: nobody took it away."""
    with tenancy.as_system(REASON), database.postgres() as cursor:
        return cursor.execute(SETTLED, attempt.key).fetchone() is not None


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


def demand_count(database: PostgresDatabase) -> None:
    """Raise LeaseLost where this thread works on an attempt that was lost or taken away; for what it writes to other items of its chain."""
    attempt = _working_on.get()
    if attempt is not None:
        with tenancy.as_system(REASON), database.postgres() as cursor:
            cursor.execute(COUNTS, attempt.key)
            _demand_one(cursor.rowcount, attempt)


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


def _demand_one(rowcount: int, attempt: Attempt) -> None:
    if rowcount != 1:
        raise LeaseLost(f"attempt {attempt.attempt_no} of item {attempt.item_id} no longer runs")
