"""No transport: workers look every second, and the worker inside a server hears of an enqueue through InvokeAI's own events."""

from collections.abc import Sequence
from threading import Event

from invokeai_saas.wakeups.port import Wakeup


class NoWakeups:
    """Sends nothing; waiting is sleeping, until close()."""

    def __init__(self) -> None:
        self._closing = Event()

    def open(self) -> None:
        """Nothing to open."""

    def send(self, items: Sequence[Wakeup]) -> None:
        """Nobody is told."""

    def wait(self, tiers: Sequence[str] | None, timeout_seconds: float) -> bool:
        """False, after so long."""
        self._closing.wait(timeout_seconds)
        return False

    def close(self) -> None:
        """End all waiting."""
        self._closing.set()
