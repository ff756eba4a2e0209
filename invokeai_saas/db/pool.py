"""psycopg's pool, which asks a lost server for a connection every second, and says once in a while that it gets none.

Its own backoff doubles up to a minute: after an outage of 20 s requests would wait for 10 s more although the server is back. Its own log
has a line for each try of each connection, with the server's address in it.
"""

import logging
import re
import time
from collections.abc import Callable
from threading import Lock
from typing import Any

import psycopg
from psycopg_pool import ConnectionPool
from psycopg_pool.pool import AddConnection, MaintenanceTask

Connection = psycopg.Connection[Any]
NAME = "invokeai-saas"
RECONNECT_SECONDS, SAY_AGAIN_SECONDS = 1.0, 30.0
# How psycopg_pool begins what Outage says instead.
_EACH_TRY = ("error connecting in ", "reconnection attempt in pool ")
# libpq's last words on a server, and no further than to what they quote: hosts, users, databases.
_WHY = re.compile(r'.*failed: ([^"\n]+)')
logger = logging.getLogger(__name__)


class Outage:
    """Tries of a pool in, a line about the first one that fails out, and at most one every SAY_AGAIN_SECONDS after it. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, Lock()
        self._failed, self._since, self._said = 0, 0.0, False
        self._said_at = -float("inf")

    def fails(self, error: BaseException) -> None:
        """No connection, this time."""
        with self._lock:
            now, self._failed = self._clock(), self._failed + 1
            if self._failed == 1:
                self._since = now
            # A server that takes only some connections begins a streak every second.
            if now - self._said_at >= SAY_AGAIN_SECONDS:
                self._said, self._said_at = True, now
                so_far = f"; {self._failed} tries in {now - self._since:.0f} s" if self._failed > 1 else ""
                logger.warning("the database does not answer: %s%s", why_of(error), so_far)

    def ends(self) -> None:
        """A connection."""
        with self._lock:
            if self._said:
                logger.info("the database answers again, after %d tries in %.0f s", self._failed, self._clock() - self._since)
            self._failed, self._said = 0, False


class SteadyPool(ConnectionPool[Connection]):
    """Reconnects at a steady pace."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._outage = Outage()
        # Adding it once more changes nothing.
        logging.getLogger("psycopg.pool").addFilter(_is_no_try_of_ours)
        super().__init__(*args, **kwargs)

    def schedule_task(self, task: MaintenanceTask, delay: float) -> None:
        """See ConnectionPool: every task but reconnecting keeps its delay."""
        super().schedule_task(task, min(delay, RECONNECT_SECONDS) if isinstance(task, AddConnection) else delay)

    def _connect(self, timeout: float | None = None) -> Connection:
        try:
            connection = super()._connect(timeout)
        except Exception as error:
            self._outage.fails(error)
            raise
        self._outage.ends()
        return connection


def why_of(error: BaseException) -> str:
    """Why there is no connection, without any address; the error's kind where that cannot be told apart."""
    found = _WHY.match(str(error))
    return found[1].strip() if found else type(error).__name__


def _is_no_try_of_ours(record: logging.LogRecord) -> bool:
    ours = isinstance(record.args, tuple) and record.args[:1] == (NAME,)
    return not (ours and str(record.msg).startswith(_EACH_TRY))
