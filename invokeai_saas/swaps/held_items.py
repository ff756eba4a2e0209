"""What this process works on: the attempts that it holds, when each began, its meter, and what it may cost.

    claim ─► held ─► running(): nodes timed and checked ─► settled, given back or lost ─► forgotten
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, cast

from invokeai.app.services.session_queue.session_queue_common import SessionQueueItem, SessionQueueItemNotFoundError
from invokeai.app.services.session_queue.session_queue_sqlite import SqliteSessionQueue

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.jobs.admission import Admission
from invokeai_saas.jobs.lease import Attempt
from invokeai_saas.jobs.metering import Meter, metered
from invokeai_saas.jobs.running import RanOverPrice, Run, checked


@dataclass(frozen=True, slots=True)
class HeldItem:
    """An attempt of this process and when it began."""

    attempt: Attempt
    since: float = field(default_factory=time.monotonic)
    meter: Meter = field(default_factory=Meter)
    # What the item may cost, once it runs; None where nothing is metered.
    run: Run | None = None


class HeldItems(SqliteSessionQueue):
    """InvokeAI's queue with a memory of this process's attempts."""

    def __init__(self, db: PostgresDatabase, admission: Admission | None) -> None:
        super().__init__(db=cast(Any, db))
        self._postgres, self._admission = db, admission
        self._held: dict[int, HeldItem] = {}

    def attempt_of(self, item_id: int) -> Attempt | None:
        """The lease that this process holds on an item."""
        held = self._held.get(item_id)
        return None if held is None else held.attempt

    def seconds_of(self, item_id: int) -> float:
        """How long this process has worked on an item that it holds."""
        held = self._held.get(item_id)
        return 0.0 if held is None else time.monotonic() - held.since

    def gpu_seconds_of(self, item_id: int) -> float:
        """How much of that nodes ran for, without loading models."""
        held = self._held.get(item_id)
        return 0.0 if held is None else held.meter.seconds

    @contextmanager
    def running(self, item: SessionQueueItem) -> Iterator[None]:
        """Around the run of an item that this process holds: its nodes are timed, and checked against plan and price where that is on."""
        held = self._held[item.item_id]
        run = None if self._admission is None else self._admission.begin(item, held.meter)
        held.meter.allow(None if run is None else run.limit_seconds)
        self._held[item.item_id] = replace(held, run=run)
        with metered(held.meter), checked(run):
            yield

    def end_overrun(self, item_id: int) -> str | None:
        """Fail an item that has run for longer than its price allows, and say so; None for one that may go on."""
        held = self._held.get(item_id)
        if held is None or held.run is None or (why := held.run.overrun()) is None:
            return None
        with tenancy.as_system("an item is stopped at its limit"), suppress(SessionQueueItemNotFoundError):
            self.fail_queue_item(item_id, RanOverPrice.__name__, why, why)
        return why

    def forget(self, item_id: int) -> None:
        """This process no longer works on the item."""
        self._held.pop(item_id, None)
