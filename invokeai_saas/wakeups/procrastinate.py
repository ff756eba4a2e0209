"""Wake-ups over Procrastinate on the same Postgres: a token is one of its jobs, deferred in the transaction that enqueues the item.

    send: its function for deferring, on the enqueue's connection ─► commit: row, hold and token at once ─► NOTIFY
    wait: LISTEN ─► fetch and finish a job in one statement ─► nothing ─► sleep until a NOTIFY ─► fetch again

Not Procrastinate's own worker: it fetches jobs while this one is busy, and answers for them. A job is deleted when it is fetched, so that
its tables hold what waits and nothing else; with all workers busy nothing is added to a full queue, and nobody is notified.
"""

import time
from collections.abc import Sequence

from procrastinate.manager import get_channel_for_queues
from psycopg import sql

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.wakeups.port import MOST, Wakeup, by_queue, queues_of
from invokeai_saas.wakeups.waiting import Source, Waiters

REASON = "wake-ups for workers of all tenants"
TASK = "invokeai_saas.wake"
# Tokens as Procrastinate's jobs, by its own function, as far as their queues have room.
DEFER = """
WITH room AS (
    SELECT queue, %(most)s - (SELECT count(*) FROM (
        SELECT FROM procrastinate_jobs WHERE queue_name = queue AND status = 'todo' LIMIT %(most)s) AS waiting) AS places
    FROM (SELECT DISTINCT unnest(%(queues)s::text[]) AS queue) AS wanted
), token AS (
    SELECT queue, item_id, row_number() OVER (PARTITION BY queue ORDER BY item_id) AS place
    FROM unnest(%(queues)s::text[], %(items)s::bigint[]) AS wanted (queue, item_id)
)
SELECT procrastinate_defer_jobs_v1(array_agg(
    ROW(queue, %(task)s, 0, NULL, NULL, jsonb_build_object('item_id', item_id), NULL)::procrastinate_job_to_defer_v1))
FROM token JOIN room USING (queue) WHERE place <= places HAVING count(*) > 0
"""
# One token, fetched and finished at once: who dies in between leaves none half taken.
TAKE = """
SELECT procrastinate_finish_job_v1(job.id, 'succeeded', true)
FROM procrastinate_fetch_job_v2(%(queues)s::varchar[], NULL) AS job WHERE job.id IS NOT NULL
"""
# Tenants do not see these tables. A statement that takes longer than this hangs.
AS_SYSTEM = sql.SQL("SET ROLE {}; SET statement_timeout = '5s'").format(sql.Identifier(tenancy.SYSTEM_ROLE))


class ProcrastinateWakeups:
    """`database` is where items are enqueued. Its address must not be a pooler's of transactions: those listen for nobody."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        self._waiters = Waiters(lambda queues: [lambda: _Listener(database, queues)])

    def open(self) -> None:
        """Nothing to open: listening begins with the first wait."""

    def send(self, items: Sequence[Wakeup]) -> None:
        """Defer a job for each token, as the system: its tables are not the tenants'."""
        tokens = [(queue, item.item_id) for queue, some in by_queue(items).items() for item in some]
        if tokens:
            queues, item_ids = zip(*tokens, strict=True)
            with tenancy.as_system(REASON), self._database.postgres() as cursor:
                cursor.execute(DEFER, {"queues": list(queues), "items": list(item_ids), "task": TASK, "most": MOST})

    def wait(self, tiers: Sequence[str] | None, timeout_seconds: float) -> bool:
        """See Wakeups.wait()."""
        return self._waiters.wait(queues_of(tiers), timeout_seconds)

    def close(self) -> None:
        """End all waiting."""
        self._waiters.close()


class _Listener(Source):
    """A connection of its own as the system's role, on which some queues are listened to."""

    def __init__(self, database: PostgresDatabase, queues: Sequence[str]) -> None:
        self._connection, self._queues = database.connect_alone(), list(queues)
        try:
            self._connection.execute(AS_SYSTEM)
            # Before the first look: what is committed from here on is heard.
            for channel in get_channel_for_queues(queues):
                self._connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        except BaseException:
            self._connection.close()
            raise

    def take(self, seconds: float) -> bool:
        """Look, and listen for the rest of the time."""
        deadline = time.monotonic() + seconds
        while not self._fetched():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            # Everything that came in is one reason to look again.
            for _ in self._connection.notifies(timeout=left, stop_after=1):
                pass
        return True

    def acknowledge(self) -> None:
        """Fetched is finished."""

    def close(self) -> None:
        """Stop listening."""
        self._connection.close()

    def _fetched(self) -> bool:
        return self._connection.execute(TAKE, {"queues": self._queues}).rowcount > 0
