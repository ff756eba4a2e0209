"""How long will mine wait: a user's place among the turns, and an estimate in seconds.

    who waits for which workers, which workers are up, how long jobs took lately (read every few seconds, for all users) ─┐
    my items ──────────────────────────────────────────────────────────────────────────────────────────────────────────┴─► place, seconds

Turns go round between users (jobs/lease.py): before my third item everybody else has up to three, whoever pays for priority as many more
as start in the minutes that it is worth. It is an estimate: the longest jobs, priorities that change and models that must be loaded are
not in it. Users learn numbers about the others together, nothing about anybody.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.jobs.background import Looking
from invokeai_saas.jobs.routing import Place, Route
from invokeai_saas.workers import registry

Numbers: TypeAlias = NDArray[Any]
KNOWN_SECONDS = 2.0
TOLD_EVERY_SECONDS = 5.0
TOLD_CHANGE = 0.1
PAUSE_SECONDS = 0.002
MOST_ITEMS = 50
# Before anything ran.
USUAL_SECONDS = 10.0
REASON = "the places of all users in the queue"
MINE = """
SELECT item_id, tiers FROM session_queue WHERE user_id = %s AND status = 'pending' ORDER BY priority DESC, item_id LIMIT %s
"""
MINE_RUNNING = "SELECT count(*) AS items FROM session_queue WHERE user_id = %s AND status = 'in_progress'"
WAITING = """
SELECT user_id, tiers, count(*) AS items FROM session_queue WHERE status = 'pending' GROUP BY user_id, tiers
"""
TURNS = """
SELECT user_id, plan_priority, max_parallel, served_at, (
    SELECT count(*) FROM session_queue AS item WHERE item.user_id = turn.user_id AND item.status = 'in_progress') AS running
FROM queue_turns AS turn WHERE user_id = ANY(%s)
"""
# Of the newest items, whatever became of them.
MEAN_SECONDS = """
SELECT avg(extract(epoch FROM ended_at - started_at))::float AS seconds
FROM (SELECT * FROM job_attempts ORDER BY item_id DESC LIMIT 500) AS newest WHERE state = 'finished'
"""


class ItemPosition(BaseModel):
    """One waiting item. `estimated_wait_seconds` is null while no worker that could take it is up."""

    queue_item_id: int
    position: int
    estimated_wait_seconds: int | None


class QueuePosition(BaseModel):
    """The caller's waiting items, the next one first, and how many of theirs run."""

    items: list[ItemPosition]
    running: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One user's."""

    plan_priority: int = 0
    max_parallel: int | None = None
    served_at: datetime | None = None
    running: int = 0


@dataclass(frozen=True)
class Queue:
    """Everybody's: items that wait by user and tiers, turns by user, workers that are up with whether they are busy, mean seconds."""

    waiting: Mapping[str, Mapping[tuple[str, ...] | None, int]]
    turns: Mapping[str, Turn]
    workers: Sequence[tuple[Place, bool]]
    mean_seconds: float

    def place(self, user_id: str, tiers: tuple[str, ...] | None, turn_number: int) -> tuple[int, float | None]:
        """The place of the user's `turn_number`-th item (from 1) with these tiers, and the seconds that it waits."""
        known = self._rivals
        if tiers not in known:
            workers = [(place, busy) for place, busy in self.workers if place.has_tier_for(Route(tiers=tiers))]  # type: ignore[arg-type]
            compete = {route: _compete(route, workers) for items in self.waiting.values() for route in items}
            rivals = [sum(count for route, count in items.items() if compete[route]) for items in self.waiting.values()]
            known[tiers] = workers, np.array(rivals, dtype=np.int64)
        workers, counts = known[tiers]
        mine = self.turns.get(user_id, Turn())
        before = np.minimum(counts, self._before(mine, turn_number, len(workers)))
        own = self._numbers.get(user_id)
        ahead = turn_number - 1 + int(before.sum()) - (0 if own is None else int(before[own]))
        return ahead + 1, self._seconds(mine, ahead, turn_number, workers)

    def _before(self, mine: Turn, turn_number: int, workers: int) -> Numbers:
        """How many turns of each user come before mine."""
        first = np.isneginf(self._served) | (self._served < _at(mine))
        minutes = self._priorities - mine.plan_priority
        extra = np.trunc(minutes * 60 * workers / self.mean_seconds).astype(np.int64)
        turns: Numbers = np.maximum(0, turn_number - np.where(first, 0, 1) + extra)
        return turns

    @cached_property
    def _rivals(self) -> dict[tuple[str, ...] | None, tuple[list[tuple[Place, bool]], Numbers]]:
        """By an item's tiers: the workers that take it, and how many items of each user they could take before it."""
        return {}

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Where a user stands in the arrays."""
        return {user_id: number for number, user_id in enumerate(self.waiting)}

    @cached_property
    def _served(self) -> Numbers:
        return np.array([_at(self.turns.get(user_id, Turn())) for user_id in self.waiting], dtype=np.float64)

    @cached_property
    def _priorities(self) -> Numbers:
        return np.array([self.turns.get(user_id, Turn()).plan_priority for user_id in self.waiting], dtype=np.float64)

    def _seconds(self, mine: Turn, ahead: int, turn_number: int, workers: Sequence[tuple[Place, bool]]) -> float | None:
        if not workers:
            return None
        idle = sum(not busy for _place, busy in workers)
        wait = max(0, ahead - idle + 1) * self.mean_seconds / len(workers)
        if mine.max_parallel is not None:
            wait = max(wait, max(0, mine.running + turn_number - mine.max_parallel) * self.mean_seconds / mine.max_parallel)
        return wait


def _at(turn: Turn) -> float:
    return -math.inf if turn.served_at is None else turn.served_at.timestamp()


def _compete(route: tuple[str, ...] | None, workers: Sequence[tuple[Place, bool]]) -> bool:
    return not workers or any(place.has_tier_for(Route(tiers=route)) for place, _busy in workers)  # type: ignore[arg-type]


class Waiting:
    """Answers from one look at the queue for all users, every few seconds."""

    def __init__(self, database: PostgresDatabase, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._clock, self._lock = database, clock, Lock()
        self._known: tuple[float, Queue] | None = None

    def of(self, user_id: str) -> QueuePosition:
        """The user's waiting items."""
        with tenancy.as_user(user_id), self._database.postgres() as cursor:
            mine = cursor.execute(MINE, (user_id, MOST_ITEMS)).fetchall()
            running = cursor.execute(MINE_RUNNING, (user_id,)).fetchall()[0]["items"]
        queue, items = self._queue(), []
        for number, row in enumerate(mine, 1):
            position, seconds = queue.place(user_id, _route(row["tiers"]), number)
            wait = None if seconds is None else round(seconds)
            items.append(ItemPosition(queue_item_id=row["item_id"], position=position, estimated_wait_seconds=wait))
        return QueuePosition(items=items, running=running)

    def users(self) -> set[str]:
        """Who has anything that waits."""
        return set(self._queue().waiting)

    def _queue(self) -> Queue:
        with self._lock:
            if self._known is None or self._clock() - self._known[0] > KNOWN_SECONDS:
                self._known = self._clock(), self._read()
            return self._known[1]

    def _read(self) -> Queue:
        workers = [(Place(frozenset(each.tiers)), each.status == "busy") for each in registry.live(self._database) if each.is_up]
        waiting: dict[str, dict[tuple[str, ...] | None, int]] = {}
        with tenancy.as_system(REASON), self._database.postgres() as cursor:
            for row in cursor.execute(WAITING).fetchall():
                waiting.setdefault(row["user_id"], {})[_route(row["tiers"])] = row["items"]
            turns = {row.pop("user_id"): Turn(**row) for row in cursor.execute(TURNS, (list(waiting),)).fetchall()}
            mean = cursor.execute(MEAN_SECONDS).fetchall()[0]["seconds"]
        return Queue(waiting, turns, workers, max(0.1, mean or USUAL_SECONDS))


class PositionEvents(Looking):
    """C-52: gpu_queue_position, to this process' sockets, when a place or an estimate has moved by a tenth, and to a new socket.

    Every item that ends moves everybody's: told each time, a thousand waiting items would keep the process from answering requests.
    From ten on down every place is told.
    """

    def __init__(
        self,
        waiting: Waiting,
        sockets_here: Callable[[], Mapping[str, Collection[str]]],
        tell: Callable[[str, str, dict[str, Any]], object],
        *,
        every_seconds: float = TOLD_EVERY_SECONDS,
    ) -> None:
        super().__init__(name="saas-positions", every_seconds=every_seconds, trouble="places in the queue are not told")
        self._waiting, self._sockets_here, self._tell = waiting, sockets_here, tell
        # By user: the sockets that heard it, and what of each item was told last.
        self._told: dict[str, tuple[Collection[str], dict[int, ItemPosition]]] = {}

    def look(self) -> None:
        """Tell whose items moved."""
        here, waiting = self._sockets_here(), self._waiting.users()
        self._told = {user_id: told for user_id, told in self._told.items() if user_id in here and user_id in waiting}
        for user_id in sorted(waiting & set(here)):
            heard_by, known = self._told.get(user_id, ((), {}))
            if not set(here[user_id]) <= set(heard_by):
                known = {}
            told: dict[int, ItemPosition] = {}
            for item in self._waiting.of(user_id).items:
                before = known.get(item.queue_item_id)
                if before is not None and not _has_moved(before, item):
                    told[item.queue_item_id] = before
                    continue
                told[item.queue_item_id] = item
                self._tell(user_id, "gpu_queue_position", item.model_dump())
                # Requests go between them.
                if self._stop.wait(PAUSE_SECONDS):
                    return
            self._told[user_id] = here[user_id], told


def _has_moved(before: ItemPosition, now: ItemPosition) -> bool:
    earlier, later = before.estimated_wait_seconds, now.estimated_wait_seconds
    if earlier is None or later is None:
        return earlier is not later or _differs(before.position, now.position)
    return _differs(before.position, now.position) or _differs(earlier, later)


def _differs(before: int, now: int) -> bool:
    return now != before and abs(now - before) >= before * TOLD_CHANGE


def _route(tiers: list[str] | None) -> tuple[str, ...] | None:
    return None if tiers is None else tuple(sorted(tiers))
