"""Waiting for what other threads, processes and machines do."""

import time
from collections.abc import Callable

# Only a failure takes so long. Two cores that run other tests as well, or that somebody else takes away, stall anybody for many seconds.
PATIENCE_SECONDS = 120.0


def until(
    true: Callable[[], object],
    what: str = "it to happen",
    *,
    seconds: float = PATIENCE_SECONDS,
    every: float = 0.05,
    told: Callable[[], str] = lambda: "",
) -> float:
    """Ask again and again; returns the seconds that it took. Fails after `seconds`, with the end of what is `told` then."""
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > seconds:
            raise AssertionError(f"expected {what} within {seconds} s\n{told()[-6000:]}")
        time.sleep(every)
    return time.monotonic() - began
