"""Keeps a claimed item while it runs: heartbeats from a thread of its own, and the word to stop when it is no longer ours to run.

    claim ─► Holding: a heartbeat with the GPU seconds and a look at the row every 2 s ─► `stop` is set: canceled, deleted, given away,
                                                                                      or it ran for longer than its price allows

The work itself may take the thread it runs in for minutes; nothing here waits for it. Imports no InvokeAI.
"""

import logging
import sqlite3
import time
from collections.abc import Callable
from threading import Event, Thread
from types import TracebackType

import psycopg

from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.errors import DatabaseUnavailable
from invokeai_saas.jobs import lease
from invokeai_saas.jobs.lease import Attempt, LeaseLost

POLL_SECONDS = 2.0
# Between an item's last write and the end of its work lies a moment; a process that does not end in so long hangs.
SETTLED_SECONDS = 30.0
logger = logging.getLogger(__name__)


def is_outage(error: BaseException) -> bool:
    """Whether this is a database that is away: at a transaction's begin, in its middle, or as upstream's services see it."""
    if isinstance(error, sqlite3.OperationalError) and isinstance(error.__cause__, psycopg.OperationalError):
        return True
    return isinstance(error, DatabaseUnavailable | psycopg.OperationalError)


class Holding:
    """Use it around the work on one attempt. `lost` tells afterwards whether the attempt was taken away meanwhile."""

    def __init__(
        self,
        database: PostgresDatabase,
        attempt: Attempt,
        *,
        stop: Event,
        seconds: Callable[[], float],
        lease_seconds: float,
        poll_seconds: float = POLL_SECONDS,
        gpu_seconds: Callable[[], float] | None = None,
        end_overrun: Callable[[], str | None] = lambda: None,
        patience_seconds: float | None = None,
    ) -> None:
        """`stop` is set when the work must end; `seconds` says how long ago the item was claimed, `gpu_seconds` what of it is charged.

        `end_overrun` ends an item that ran for longer than its price allows, and then says so. A database that is away is waited for
        up to `patience_seconds`, by default one lease; who waits for longer trusts the fence: what somebody else has by then is refused.
        """
        self._database, self._attempt, self._stop, self._seconds = database, attempt, stop, seconds
        self._gpu_seconds, self._end_overrun = gpu_seconds or seconds, end_overrun
        self._lease_seconds, self._poll_seconds = lease_seconds, min(poll_seconds, lease_seconds / 4)
        self._patience_seconds = lease_seconds if patience_seconds is None else patience_seconds
        self._wake, self._over = Event(), Event()
        self._thread = Thread(target=self._watch, name=f"holding-{attempt.item_id}", daemon=True)
        self.lost = False

    def __enter__(self) -> "Holding":
        # The claim was the first heartbeat.
        self._beaten_at = time.monotonic() - self._seconds()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._wake.set()
        self._thread.join()

    @property
    def attempt(self) -> Attempt:
        """What is held."""
        return self._attempt

    def look_now(self) -> None:
        """Look at the row at once: somebody heard that it may have been canceled."""
        self._wake.set()

    def _watch(self) -> None:
        while not self._over.is_set():
            try:
                self._confirm()
                if (why := self._end_overrun()) is not None:
                    self._lose(why)
                    return
            except LeaseLost as error:
                self._lose(str(error))
                return
            except Exception as error:
                if not is_outage(error):
                    logger.exception("a look at item %s failed", self._attempt.item_id)
                # Unconfirmed for so long: the reaper may have given the item away.
                if time.monotonic() - self._beaten_at > self._patience_seconds:
                    self._lose("its lease could not be extended in time")
                    return
            self._wake.wait(self._poll_seconds)
            self._wake.clear()

    def _confirm(self) -> None:
        # At every look: what a user cancels is charged by the last heartbeat.
        asked_at = time.monotonic()
        try:
            lease.heartbeat(self._database, self._attempt, lease_seconds=self._lease_seconds, gpu_seconds=self._gpu_seconds())
            lease.demand_wanted(self._database, self._attempt)
        except LeaseLost:
            # Settled by the work itself, which is about to be over: that is no loss.
            if lease.is_settled(self._database, self._attempt):
                self._over.wait(SETTLED_SECONDS)
            raise
        self._beaten_at = asked_at

    def _lose(self, why: str) -> None:
        if not self._over.is_set():
            logger.info("stopping work on item %s: %s", self._attempt.item_id, why)
            self.lost = True
            self._stop.set()
