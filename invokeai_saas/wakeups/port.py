"""How an enqueue reaches an idle worker at once; without it a worker that polls every second would find the item as well.

    enqueue's transaction: row + hold ─► send(items) ─► a token per item in the queue of each tier that may run it
                                                             │  (Procrastinate: commits with the row; Celery: after the commit)
    idle worker: claim ─► nothing ─► wait(tiers, 1 s) ◄──────┘ one token wakes one worker ─► claim: whatever is fairest

A token says "look", not "do this": the queue's row is the truth. One that is lost costs at most the second until the next look, one that
comes twice costs one look too many. Only idle workers take tokens, and a token is acknowledged once it has woken one, not after the work:
a broker would give a healthy job of half an hour to a second worker, and SQS FIFO holds back a user's next token until this one is gone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

# C-39. For SQS they end in .fifo.
QUEUES = {"basic": "invokeai-gpu-basic", "high_performance": "invokeai-gpu-highperf", "dedicated": "invokeai-gpu-dedicated"}
# So many tokens per enqueue and tier, and so many waiting in a tier's queue, are enough to wake whoever is idle: who finds work goes on by
# itself, and with all workers busy tokens would only pile up.
MOST = 64


@dataclass(frozen=True, slots=True)
class Wakeup:
    """An item that was just enqueued; `tiers` may run it. None, and none: who serves all of them may as well."""

    item_id: int
    user_id: str
    tiers: tuple[str, ...] | None = None


class Wakeups(Protocol):
    """One transport. Thread-safe; one object serves all devices of a worker process. Open it after a fork, not before."""

    def open(self) -> None:
        """Be ready to send; who only waits need not. A broker that does not answer is no reason to fail."""

    def send(self, items: Sequence[Wakeup]) -> None:
        """Wake workers for `items`, inside the transaction that enqueues them: nobody is woken for what is rolled back."""

    def wait(self, tiers: Sequence[str] | None, timeout_seconds: float) -> bool:
        """Block until an item for `tiers` (None: any) may be there, at most so long, whatever the broker does; whether one may be."""

    def close(self) -> None:
        """Send what is to be sent and end all waiting; returns within seconds."""


def queues_of(tiers: Iterable[str] | None) -> tuple[str, ...]:
    """The queues of some tiers, of all where none is named; an unknown tier gets one after its name."""
    return tuple(QUEUES.get(tier, f"invokeai-gpu-{tier}") for tier in tiers or ()) or tuple(QUEUES.values())


def by_queue(items: Iterable[Wakeup]) -> dict[str, list[Wakeup]]:
    """Who is to be woken where: at most MOST tokens for each queue."""
    found: dict[str, list[Wakeup]] = {}
    for item in items:
        for queue in queues_of(item.tiers):
            tokens = found.setdefault(queue, [])
            if len(tokens) < MOST:
                tokens.append(item)
    return found
