"""A check that may hang in, an answer within a bounded time out: one call at a time, its answer kept for a moment.

Strangers may ask for readiness as often as they like; the database and the store are asked once a second or less. A check that hangs
keeps its one daemon thread and nothing else.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Probe(Generic[T]):
    """`check` runs in a thread of its own, at most once per `keep_seconds`; whoever asks waits `seconds` for it at most."""

    def __init__(self, check: Callable[[], T], *, seconds: float = 2.0, keep_seconds: float = 1.0) -> None:
        self._check, self.seconds, self._keep_seconds = check, seconds, keep_seconds
        self._lock = threading.Lock()
        self._future: Future[T] | None = None
        self._asked_at = 0.0

    def ask(self) -> T:
        """The check's answer, or what it raised; TimeoutError when there is none in time."""
        return self._running().result(timeout=self.seconds)

    async def ask_async(self) -> T:
        """The same without holding a thread while it waits."""
        return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._running())), timeout=self.seconds)

    def _running(self) -> Future[T]:
        with self._lock:
            future = self._future
            if future is None or (future.done() and time.monotonic() - self._asked_at >= self._keep_seconds):
                future = self._future = Future()
                self._asked_at = time.monotonic()
                threading.Thread(target=self._run, args=(future,), name="probe", daemon=True).start()
            return future

    def _run(self, future: Future[T]) -> None:
        try:
            future.set_result(self._check())
        except BaseException as error:  # handed to whoever asked
            future.set_exception(error)
