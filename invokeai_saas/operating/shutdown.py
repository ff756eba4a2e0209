"""SIGTERM in, an orderly end out: readiness says no, requests finish, the worker gives its item back, the pool closes, exit code 0.

A second signal ends the wait. What is not done after `grace_seconds` is left to the leases: the reaper gives its items to others.
"""

import asyncio
import atexit
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import uvicorn

logger = logging.getLogger(__name__)


class Shutdown:
    """`stop_work` stops the worker after its current step and gives its item back; `close` is what ends last, in order."""

    def __init__(
        self, *, grace_seconds: float, stop_work: Callable[[], None] | None = None, close: Sequence[Callable[[], object]] = ()
    ) -> None:
        self._grace_seconds, self._stop_work, self._close = grace_seconds, stop_work, tuple(close)
        self._stopping: threading.Thread | None = None
        self._deadline, self._work_stopped = 0.0, False

    def draining(self) -> bool:
        """True from the first signal on."""
        return self._stopping is not None

    def begin(self) -> None:
        """Stop taking new work. Returns at once; a second call changes nothing."""
        if self._stopping is None:
            self._deadline = time.monotonic() + self._grace_seconds
            self._stopping = threading.Thread(target=self._stop, name="stop-work", daemon=True)
            self._stopping.start()

    def finish(self) -> bool:
        """Wait for the worker within the grace, then close everything; returns whether all went in order."""
        self.begin()
        assert self._stopping is not None
        self._stopping.join(timeout=max(0.0, self._deadline - time.monotonic()))
        in_order = self._work_stopped
        if self._stopping.is_alive():
            logger.error("the worker did not stop within %g s: its lease runs out, and the item goes to another", self._grace_seconds)
        for close in self._close:
            in_order = _quietly(close) and in_order
        return in_order

    def _stop(self) -> None:
        self._work_stopped = self._stop_work is None or _quietly(self._stop_work)


class GracefulServer(uvicorn.Server):
    """uvicorn that drains before it closes its port, and that a signal ends with exit code 0."""

    def __init__(self, config: uvicorn.Config, shutdown: Shutdown, *, drain_seconds: float = 0.0) -> None:
        super().__init__(config)
        self._shutdown, self._drain_seconds = shutdown, drain_seconds
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the next one closes at once."""
        if self._shutdown.draining():
            self.force_exit = self.should_exit = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._cut_off)
            return
        self._shutdown.begin()
        timer = threading.Timer(self._drain_seconds, self._stop_serving)
        timer.daemon = True
        timer.start()

    def _cut_off(self) -> None:
        # From Python 3.12 on asyncio waits for every open connection, whatever uvicorn makes of force_exit.
        for connection in list(self.server_state.connections):
            if (transport := getattr(connection, "transport", None)) is not None:
                transport.abort()

    def _stop_serving(self) -> None:
        self.should_exit = True


def serve(server: uvicorn.Server, shutdown: Shutdown, loop: asyncio.AbstractEventLoop) -> int:
    """Serve on `loop` until a signal, then end in order; returns the exit code."""
    # The loop's own would keep its idle threads to the end.
    threads = ThreadPoolExecutor(thread_name_prefix="loop")
    loop.set_default_executor(threads)
    try:
        loop.run_until_complete(server.serve())
    finally:
        in_order = shutdown.finish()
        _end_tasks(loop)
        threads.shutdown(wait=False, cancel_futures=True)
    logger.info("stopped")
    return 0 if in_order else 1


def exit_now(code: int) -> None:
    """End the process even where a library left a thread that never ends; everything of ours is closed before."""
    left = [thread.name for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]
    if left:
        logger.warning("threads that did not end: %s", ", ".join(left))
    # What stops the embedded Postgres is among them; they would wait for those threads.
    atexit._run_exitfuncs()
    os._exit(code)


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    tasks = [task for task in asyncio.all_tasks(loop) if not task.done()]
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=2.0))


def _quietly(step: Callable[[], object]) -> bool:
    try:
        step()
    except Exception:
        # The next step still has to happen.
        logger.exception("a step of the shutdown failed")
        return False
    return True
