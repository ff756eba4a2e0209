"""GPU seconds of one attempt: the time that its nodes run, without what nobody is charged for.

    claim ─► (queue, waiting: nothing runs) ─► node ──── model is loaded: off_the_clock() ──── node ─► seconds

Loading, downloading and moving a model to the device, and waiting for somebody else's server, are work but no GPU seconds of the customer's
(decision 14). `worked_seconds` counts them too: what a run may last at most is compared with it. Imports no InvokeAI.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from threading import Lock
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Meter:
    """Runs in the worker's thread, is read by the one that beats. `clock` counts seconds.

    Where a process of its own beats, a subclass tells it every change (workers/shared_meter.py).
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, Lock()
        self._since, self._node_runs, self._pauses = clock(), False, 0
        self._seconds = self._worked = 0.0
        self.limit_seconds: float | None = None

    def allow(self, limit_seconds: float | None) -> None:
        """What may be worked at most, None without a limit."""
        with self._lock:
            self.limit_seconds = limit_seconds
            self._changed()

    def begin_node(self) -> None:
        """A node begins; one that was interrupted before ends by it."""
        with self._lock:
            self._count()
            self._node_runs = True
            self._changed()

    def end_node(self) -> None:
        """No node runs any more."""
        with self._lock:
            self._count()
            self._node_runs = False
            self._changed()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, work is not charged. Pauses nest."""
        self._pause(+1)
        try:
            yield
        finally:
            self._pause(-1)

    @property
    def seconds(self) -> float:
        """What is charged, up to this moment."""
        with self._lock:
            self._count()
            return self._seconds

    @property
    def worked_seconds(self) -> float:
        """All time in nodes, up to this moment."""
        with self._lock:
            self._count()
            return self._worked

    def _pause(self, step: int) -> None:
        with self._lock:
            self._count()
            self._pauses += step
            self._changed()

    def _changed(self) -> None:
        """What begins or ends is known here first; called with the lock held."""

    def _count(self) -> None:
        now = self._clock()
        passed, self._since = now - self._since, now
        if self._node_runs:
            self._worked += passed
            self._seconds += 0.0 if self._pauses else passed


_meter: ContextVar[Meter | None] = ContextVar("invokeai_saas_meter", default=None)


@contextmanager
def metered(meter: Meter) -> Iterator[None]:
    """Inside, off_the_clock() pauses this meter, and when it is over nothing runs."""
    token = _meter.set(meter)
    try:
        yield
    finally:
        meter.end_node()
        _meter.reset(token)


def meter_now() -> Meter | None:
    """The meter of the item that this thread runs."""
    return _meter.get()


@contextmanager
def off_the_clock() -> Iterator[None]:
    """Inside, the item that this thread runs is not charged; outside of a run it does nothing."""
    meter = _meter.get()
    if meter is None:
        yield
        return
    with meter.paused():
        yield


def uncharged(function: Callable[P, R]) -> Callable[P, R]:
    """`function` off the clock."""

    @wraps(function)
    def paused(*args: P.args, **kwargs: P.kwargs) -> R:
        with off_the_clock():
            return function(*args, **kwargs)

    return paused
