"""A worker process without InvokeAI: claim, keep the lease, sleep for as long as the item takes, complete; idle: wait for a wake-up."""

import os
import time
from multiprocessing.connection import Connection
from threading import Event

# What a process needs for any transport, before it is forked.
import kombu.transport.redis  # noqa: F401
import kombu.transport.SQS  # noqa: F401
from saas.claiming_worker import complete
from saas.waking import wakeups_over

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.jobs.holding import Holding
from invokeai_saas.jobs.lease import Attempt, claim
from invokeai_saas.wakeups.local import NoWakeups
from invokeai_saas.wakeups.port import Wakeup, Wakeups

POLL_SECONDS = 1.0


def serve(told: Connection, dsn: str, transport: str, lease_seconds: float, item_seconds: float, beats: bool) -> None:
    """Until it is killed; says to `told` what it does."""
    database = PostgresDatabase(dsn, pool_size=2)
    wakeups = wakeups_over(transport, database)
    wakeups.open()
    warm_up(database, wakeups)
    told.send(["ready"])
    while True:
        attempt = claim(database, worker_id="waking", lease_seconds=lease_seconds)
        if attempt is None:
            wakeups.wait(None, POLL_SECONDS)
            continue
        told.send(["claimed", str(attempt.item_id)])
        if beats:
            keep(database, attempt, lease_seconds=lease_seconds, item_seconds=item_seconds)
        else:
            time.sleep(item_seconds)
        told.send([complete(database, attempt), str(attempt.item_id)])


def warm_up(database: PostgresDatabase, wakeups: Wakeups) -> None:
    """Until a token of its own came through: clients are imported and connected at their first use."""
    claim(database, worker_id="nobody", lease_seconds=60.0)
    for number in range(20):
        with tenancy.as_system("a worker warms up"), database.postgres():
            wakeups.send([Wakeup(-100 * os.getpid() - number, f"worker-{os.getpid()}", ("basic",))])
        if wakeups.wait(None, POLL_SECONDS) or isinstance(wakeups, NoWakeups):
            return


def keep(database: PostgresDatabase, attempt: Attempt, *, lease_seconds: float, item_seconds: float) -> None:
    """The item's time, with heartbeats."""
    stop, began = Event(), time.monotonic()
    with Holding(database, attempt, stop=stop, seconds=lambda: time.monotonic() - began, lease_seconds=lease_seconds):
        stop.wait(item_seconds)
