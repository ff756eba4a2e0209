"""The port of the event bus: what is published once, in any process, is received once by every process that listens.

    worker, web process ─► publish ─► Postgres | Redis ─► receive, in every web process ─► its own sockets
                                             └──────────► subscribe_wanted, in every supervisor: somebody canceled something

Messages of one process arrive in the order in which it published them. What is published in a transaction arrives if it commits. Imports
no InvokeAI.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

# How long a message waits for somebody who was away; progress is old much sooner.
KEPT_SECONDS = 60.0
PASSING_SECONDS = 5.0
MOST_SENDERS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One event on its way. `payload` is JSON, `user_id` whose alone it is (None: the payload says whose).

    `replaces` names what newer messages of that name make worthless: progress, which is dropped rather than queued.
    `stops` are the items whose work it ends, None for some that are not listed. Without a name it only says that there is something.
    `sender` and `number` count what one process sends: after an answer that was lost, the same is sent again.
    """

    name: str
    payload: str
    user_id: str | None = None
    replaces: str | None = None
    stops: tuple[int, ...] | None = ()
    sender: str = ""
    number: int = 0

    @property
    def is_passing(self) -> bool:
        """Whether it may be dropped."""
        return self.replaces is not None


Receive = Callable[[Message], None]
# Whose progress anybody here wants to see.
UsersHere = Callable[[], Collection[str]]
# Items that may be canceled, None: any.
Wanted = Callable[[frozenset[int] | None], None]


class Received:
    """Which messages of other processes were here already."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def is_new(self, message: Message) -> bool:
        """False for one that was received before. Each sender's numbers only rise."""
        if not message.sender:
            return True
        last = self._last.pop(message.sender, 0)
        self._last[message.sender] = max(last, message.number)
        if len(self._last) > MOST_SENDERS:
            # Who sent nothing for longest is gone.
            del self._last[next(iter(self._last))]
        return message.number > last


class EventBus(Protocol):
    """What both transports do. Threads start with the first use: make it before a fork, use it after."""

    def publish(self, message: Message) -> None:
        """Send it: with the open transaction's commit, or at once from another thread. Never waits for a slow bus longer than a moment."""

    def start(self, receive: Receive, users_here: UsersHere) -> None:
        """Hand every message that is published from now on, by this process too, to `receive`, one after the other in one thread."""

    def subscribe_wanted(self, callback: Wanted) -> None:
        """Call back, in another thread, when running items may have been canceled: a hint to look at their rows."""

    def forget(self) -> int:
        """Remove what everybody has received; returns how much. For one process, every few seconds."""

    def close(self) -> None:
        """Send what waits, for a few seconds at most, and end every thread."""
