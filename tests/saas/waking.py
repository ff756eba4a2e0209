"""Items enqueued with their wake-ups, and worker processes that wait for them, over every transport."""

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager

from saas.rows import add_items

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.wakeups.celery import CeleryWakeups
from invokeai_saas.wakeups.local import NoWakeups
from invokeai_saas.wakeups.port import Wakeup, Wakeups
from invokeai_saas.wakeups.procrastinate import ProcrastinateWakeups

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["saas.waking_worker"])
TRANSPORTS = ("procrastinate", "redis", "sqs")
STARTED = """
SELECT item_id, attempt_no, state, extract(epoch FROM started_at)::float AS started FROM job_attempts WHERE item_id = ANY(%s)
ORDER BY item_id, attempt_no
"""


def wakeups_over(transport: str, database: PostgresDatabase) -> Wakeups:
    """`procrastinate`, `none`, or a broker's address; not opened."""
    if transport == "procrastinate":
        return ProcrastinateWakeups(database)
    return NoWakeups() if transport == "none" else CeleryWakeups(database, transport)


def enqueue(
    database: PostgresDatabase, wakeups: Wakeups | None, owner: str, count: int = 1, *, tiers: tuple[str, ...] | None = None
) -> tuple[list[int], float]:
    """Items and their wake-ups in one transaction; their ids, and when it had committed."""
    with tenancy.as_system("a test enqueues"), database.postgres():
        items = add_items(database, owner, count, priority=_batch())
        if wakeups is not None:
            wakeups.send([Wakeup(item, owner, tiers) for item in items])
    return items, time.time()


_batches = iter(range(1, 10**9))


def _batch() -> int:
    """Batches of the tests are told apart by their priority; a later one goes after an earlier one."""
    return -next(_batches)


def attempts_of(database: PostgresDatabase, items: list[int]) -> list[dict]:
    """item_id, attempt_no, state and started (epoch seconds) of all tries."""
    with tenancy.as_system("a test looks"), database.postgres() as cursor:
        return cursor.execute(STARTED, (items,)).fetchall()


class WakingWorker:
    """waking_worker.py in a process forked from one that has imported everything; it says `ready` when a wake-up came through."""

    def __init__(self, dsn: str, transport: str, *, lease_seconds: float, item_seconds: float, beats: bool) -> None:
        from saas.waking_worker import serve

        self._said, says = FORKS.Pipe(duplex=False)
        asked = (says, dsn, transport, lease_seconds, item_seconds, beats)
        self.process = FORKS.Process(target=serve, args=asked, daemon=True)
        self.process.start()
        says.close()

    def says(self, word: str, *, seconds: float = 120.0) -> list[str]:
        """Wait for a line that begins with `word`; its words."""
        while self._said.poll(seconds):
            words: list[str] = self._said.recv()
            if words[0] == word:
                return words
        raise AssertionError(f"expected {word!r}, got silence")

    def end(self) -> None:
        """At once, as kill -9 does."""
        self.process.kill()
        self.process.join()


@contextmanager
def crew(
    dsn: str, transport: str, count: int, *, lease_seconds: float = 120.0, item_seconds: float = 0.0, beats: bool = True
) -> Iterator[list[WakingWorker]]:
    """So many idle workers."""
    workers = [WakingWorker(dsn, transport, lease_seconds=lease_seconds, item_seconds=item_seconds, beats=beats) for _ in range(count)]
    try:
        for worker in workers:
            worker.says("ready")
        yield workers
    finally:
        for worker in workers:
            worker.end()
