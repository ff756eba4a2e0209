"""Wake-ups over Procrastinate on the same Postgres: a token is one of its jobs, deferred in the transaction that enqueues the item.

    send: procrastinate_defer_jobs on the enqueue's connection ─► commit: row, hold and token at once ─► NOTIFY
    wait: LISTEN ─► fetch and finish a job in one statement ─► nothing ─► sleep until a NOTIFY ─► fetch again

Not Procrastinate's own worker: it fetches jobs while this one is busy, and answers for them. A job is deleted when it is fetched, so that
its tables hold what waits and nothing else; with all workers busy nothing is added to a full queue, and nobody is notified.
"""

import time
from collections.abc import Sequence
from typing import Any

import procrastinate
import psycopg
from procrastinate.manager import get_channel_for_queues
from procrastinate.types import JSONDict
from psycopg import sql

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.wakeups.port import MOST, Wakeup, by_queue, queues_of
from invokeai_saas.wakeups.waiting import Source, Waiter

REASON = "wake-ups for workers of all tenants"
TASK = "invokeai_saas.wake"
# How many tokens wait already, as far as it matters.
WAITING = """
SELECT queue, (SELECT count(*) FROM (
    SELECT FROM procrastinate_jobs WHERE queue_name = queue AND status = 'todo' LIMIT %(most)s
) AS waiting) AS tokens
FROM unnest(%(queues)s::text[]) AS queue
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
        # Never opened: each job is deferred on a connection that somebody else opened.
        self._app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector())
        self._waiters: dict[tuple[str, ...], Waiter] = {}

    def open(self) -> None:
        """Nothing to open: listening begins with the first wait."""

    def send(self, items: Sequence[Wakeup]) -> None:
        """Defer a job for each token, as the system: its tables are not the tenants'."""
        wanted = by_queue(items)
        if not wanted:
            return
        with tenancy.as_system(REASON), self._database.postgres() as cursor:
            waiting = cursor.execute(WAITING, {"queues": list(wanted), "most": MOST}).fetchall()
            for row in waiting:
                self._defer(cursor.connection, row["queue"], wanted[row["queue"]][: MOST - row["tokens"]])

    def wait(self, tiers: Sequence[str] | None, timeout_seconds: float) -> bool:
        """See Wakeups.wait()."""
        queues = queues_of(tiers)
        if queues not in self._waiters:
            self._waiters.setdefault(queues, Waiter(lambda: _Listener(self._database, queues)))
        return self._waiters[queues].wait(timeout_seconds)

    def close(self) -> None:
        """End all waiting."""
        for waiter in self._waiters.values():
            waiter.close()

    def _defer(self, connection: psycopg.Connection[Any], queue: str, tokens: Sequence[Wakeup]) -> None:
        if tokens:
            task = self._app.configure_task(TASK, queue=queue, connection=connection)
            told: list[JSONDict] = [{"item_id": token.item_id} for token in tokens]
            task.batch_defer(*told)


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

    def close(self) -> None:
        """Stop listening."""
        self._connection.close()

    def _fetched(self) -> bool:
        return self._connection.execute(TAKE, {"queues": self._queues}).rowcount > 0
