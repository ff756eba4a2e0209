"""What a supervisor and its runner tell each other: small JSON messages over a socket pair.

    supervisor ── Run, Stop, Quit ──► runner
    supervisor ◄── Ready, Done, Broken ──────── runner          (the end of the stream: the other one is gone)

JSON and not pickle: a runner runs what tenants ask for, and its supervisor believes nothing of it but these few fields.
"""

import json
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from multiprocessing.connection import Connection
from typing import Any, Literal

from invokeai_saas.jobs.lease import Attempt

# Why a runner is to stop: the item is somebody else's or nobody's any more; its price is used up; the worker ends and gives it back.
Why = Literal["lost", "overrun", "hand back"]
Outcome = Literal["completed", "failed", "canceled", "waiting", "handed back", "discarded", "worker's fault"]
LONGEST_MESSAGE = 1 << 20


@dataclass(frozen=True, slots=True)
class Run:
    """Work on this attempt until Done."""

    item_id: int
    attempt_no: int
    user_id: str
    lease_until: str

    @classmethod
    def of(cls, attempt: Attempt) -> "Run":
        """The message for an attempt."""
        return cls(attempt.item_id, attempt.attempt_no, attempt.user_id, attempt.lease_until.isoformat())

    @property
    def attempt(self) -> Attempt:
        """And back."""
        return Attempt(self.item_id, self.attempt_no, self.user_id, datetime.fromisoformat(self.lease_until))


@dataclass(frozen=True, slots=True)
class Stop:
    """End the work on this item within a step."""

    item_id: int
    why: Why


@dataclass(frozen=True, slots=True)
class Quit:
    """End."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The services stand; items may come."""


@dataclass(frozen=True, slots=True)
class Done:
    """The work on an item is over. `fault`: what is wrong here; `counts`: with this worker; `spoiled`: with this process."""

    item_id: int
    outcome: Outcome
    fault: str | None = None
    counts: bool = False
    spoiled: bool = False
    warm: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Broken:
    """The runner cannot start; `is_outage`: because the database is away."""

    why: str
    is_outage: bool = False


Message = Run | Stop | Quit | Ready | Done | Broken
_KINDS: Mapping[str, type[Any]] = {kind.__name__: kind for kind in (Run, Stop, Quit, Ready, Done, Broken)}


class Pipe:
    """One end. `send` and `receive` raise EOFError when the other end is gone."""

    def __init__(self, end: socket.socket) -> None:
        self._connection = Connection(end.detach())

    @staticmethod
    def pair() -> tuple["Pipe", socket.socket]:
        """This end, and the other one to be handed to another process."""
        here, there = socket.socketpair()
        return Pipe(here), there

    def send(self, message: Message) -> None:
        """Tell the other side."""
        try:
            self._connection.send_bytes(json.dumps({"kind": type(message).__name__, **asdict(message)}).encode())
        except (OSError, ValueError) as error:
            raise EOFError("the other process is gone") from error

    def receive(self) -> Message:
        """Wait for the next message."""
        try:
            given = json.loads(self._connection.recv_bytes(LONGEST_MESSAGE))
        except OSError as error:
            raise EOFError("the other process is gone") from error
        kind = _KINDS[given.pop("kind")]
        values = {field.name: given[field.name] for field in fields(kind) if field.name in given}
        if kind is Done:
            values["warm"] = tuple(str(key) for key in values.get("warm", ()))
        message: Message = kind(**values)
        return message

    def has_news(self, timeout_seconds: float) -> bool:
        """Wait so long for a message, or for the end of the other side."""
        try:
            return bool(self._connection.poll(timeout_seconds))
        except OSError:
            return True

    def close(self) -> None:
        """Close this end."""
        self._connection.close()
