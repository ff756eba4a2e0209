"""The idle worker's side of every transport: threads that take tokens while somebody waits for one, and never otherwise.

    wait() ──wants──► lane (a thread): take a token from the broker, for a second at most ──gives──► wait() returns True
                        └─ the broker is away: said once, tried again every second; wait() times out as ever

A broker's client may hang for as long as its network does; only its lane hangs with it, and is replaced. A worker that is busy for long
holds no connection.
"""

import logging
import time
from collections.abc import Callable, Sequence
from threading import Condition, Lock, Thread
from typing import Literal, Protocol

# A lane asks for so long at once, and looks then whether anybody still waits.
SLICE_SECONDS = 1.0
# A worker looks at the queue between two waits. A token that comes in just then is kept for it so long, and then dropped.
KEEP_SECONDS = 1.0
# Nobody waited for so long: the connection is given up. Postgres would store up notifications for it.
REST_SECONDS = 5.0
RETRY_SECONDS = 1.0
# What no broker's client takes for one question, unless its connection is gone without a word.
HUNG_SECONDS = 20.0
CLOSE_SECONDS = 2.0
logger = logging.getLogger(__name__)


class Source(Protocol):
    """A connection to a broker, used by one thread."""

    def take(self, seconds: float) -> bool:
        """Take one token, waiting so long for it; whether there was one. Raises whatever the client raises."""

    def acknowledge(self) -> None:
        """Have the broker forget what was taken, where taking it was not enough. Who waited works already: nobody waits for this."""

    def close(self) -> None:
        """Free the connection."""


class Waiter:
    """Hands the tokens of some lanes to those who wait, one each. `connects` make a lane's connection each."""

    def __init__(self, *connects: Callable[[], Source], hung_seconds: float = HUNG_SECONDS) -> None:
        self._changed = Condition()
        self._waiting, self._tokens, self._token_at, self._closing, self._away = 0, 0, 0.0, False, False
        self._connects, self._hung_seconds = connects, hung_seconds
        with self._changed:
            # A lane that begins asks whether it is one of these.
            self._lanes = [_Lane(self, connect) for connect in connects]

    def wait(self, timeout_seconds: float) -> bool:
        """One token, or False after so long."""
        with self._changed:
            self._replace_hung()
            self._waiting += 1
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: self._closing or self._fresh() > 0, timeout_seconds)
                if self._closing or not self._fresh():
                    return False
                self._tokens -= 1
                return True
            finally:
                self._waiting -= 1

    def close(self) -> None:
        """End all waiting."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for lane in self._lanes:
            lane.thread.join(CLOSE_SECONDS)

    def wanted(self, lane: "_Lane") -> Literal["take", "rest", "over"]:
        """Block until somebody waits for a token, or nobody did for long, or the lane is over."""
        with self._changed:
            lane.asked_at = None
            some = self._changed.wait_for(lambda: self._over(lane) or self._waiting > self._fresh(), REST_SECONDS)
            if self._over(lane):
                return "over"
            lane.asked_at = time.monotonic()
            return "take" if some else "rest"

    def give(self) -> None:
        """A token came in."""
        with self._changed:
            self._tokens, self._token_at = self._fresh() + 1, time.monotonic()
            self._changed.notify_all()

    def answers(self) -> None:
        """A lane's broker answered."""
        if self._away:
            logger.info("the wake-ups' broker answers again")
        self._away = False

    def is_away(self, lane: "_Lane", error: Exception) -> None:
        """A lane's broker did not answer; wait before the next try."""
        with self._changed:
            if not (self._away or self._over(lane)):
                # Not the error's text: an address may hold a password.
                logger.warning("the wake-ups' broker does not answer (%s); workers look every second meanwhile", type(error).__name__)
            self._away = True
            lane.asked_at = None
            self._changed.wait_for(lambda: self._over(lane), RETRY_SECONDS)

    def _fresh(self) -> int:
        return self._tokens if time.monotonic() - self._token_at <= KEEP_SECONDS else 0

    def _over(self, lane: "_Lane") -> bool:
        return self._closing or lane not in self._lanes

    def _replace_hung(self) -> None:
        now = time.monotonic()
        for place, lane in enumerate(self._lanes):
            if not self._closing and lane.asked_at is not None and now - lane.asked_at > self._hung_seconds:
                logger.warning("a connection to the wake-ups' broker hangs; another one is made")
                self._lanes[place] = _Lane(self, self._connects[place])


class Waiters:
    """A Waiter for each set of queues that somebody waits at, made then; `connects_of` gives its lanes."""

    def __init__(self, connects_of: Callable[[tuple[str, ...]], Sequence[Callable[[], Source]]]) -> None:
        self._connects_of, self._lock, self._closed = connects_of, Lock(), False
        self._waiters: dict[tuple[str, ...], Waiter] = {}

    def wait(self, queues: tuple[str, ...], timeout_seconds: float) -> bool:
        """One token of these queues, or False after so long, and at once when all is closed."""
        with self._lock:
            if self._closed:
                return False
            waiter = self._waiters.get(queues)
            if waiter is None:
                waiter = self._waiters[queues] = Waiter(*self._connects_of(queues))
        return waiter.wait(timeout_seconds)

    def close(self) -> None:
        """End all waiting."""
        with self._lock:
            self._closed = True
        for waiter in self._waiters.values():
            waiter.close()


class _Lane:
    """One thread and its connection."""

    def __init__(self, waiter: Waiter, connect: Callable[[], Source]) -> None:
        self._waiter, self._connect = waiter, connect
        # Since when the broker is being asked; None while it is not.
        self.asked_at: float | None = None
        self.thread = Thread(target=self._run, name="wake-ups", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        source: Source | None = None
        while (wanted := self._waiter.wanted(self)) != "over":
            if wanted == "rest":
                _close(source)
                source = None
                continue
            try:
                source = source or self._connect()
                if source.take(SLICE_SECONDS):
                    self._waiter.give()
                    source.acknowledge()
                self._waiter.answers()
            except Exception as error:
                _close(source)
                source = None
                self._waiter.is_away(self, error)
        _close(source)


def _close(source: Source | None) -> None:
    try:
        if source is not None:
            source.close()
    except Exception:
        logger.debug("a connection to the wake-ups' broker could not be closed", exc_info=True)
