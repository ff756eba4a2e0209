"""InvokeAI's queue and processor in a runner: items come from the supervisor, which claimed them and beats for them.

    Run ─► take (its owner hears of it) ─► the server's own path: run as the owner, every commit fenced ─► settled ─► Done

A stop comes from the supervisor too: taken away, over its price, or to be given back. An error that is this worker's fault settles
nothing: the supervisor gives the attempt up, so that another worker takes the item.
"""

import logging
import queue
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import Event
from typing import Any

from invokeai.app.services.session_queue.session_queue_common import QUEUE_ITEM_STATUS, SessionQueueItem
from invokeai.backend.util.devices import TorchDevice

from invokeai_saas.jobs.holding import is_outage
from invokeai_saas.jobs.lease import Attempt, Capability
from invokeai_saas.swaps.session_processor import RETRY_SECONDS, Held, LeasedSessionProcessor
from invokeai_saas.swaps.session_queue import PostgresSessionQueue
from invokeai_saas.workers import faults
from invokeai_saas.workers.faults import WorkerFault
from invokeai_saas.workers.model_files import ModelFiles
from invokeai_saas.workers.pipe import Done, Outcome, Why
from invokeai_saas.workers.shared_meter import SharedMeter

logger = logging.getLogger(__name__)
_OUTCOMES: dict[str, Outcome] = {"completed": "completed", "failed": "failed", "canceled": "canceled", "waiting": "waiting"}


class HandedQueue(PostgresSessionQueue):
    """Remembers how items ended, and fails none by the worker's fault."""

    def __init__(self, *args: Any, can: Capability, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.can = can
        self.ended: dict[int, Outcome] = {}

    def fail_queue_item(self, item_id: int, error_type: str, error_message: str, error_traceback: str) -> SessionQueueItem:
        """As upstream; raises WorkerFault, and leaves the item as it is, where the graph is not to blame."""
        fault = faults.of(error_type, error_message, error_traceback) if self.attempt_of(item_id) is not None else None
        if fault is not None:
            raise fault
        failed: SessionQueueItem = super().fail_queue_item(item_id, error_type, error_message, error_traceback)
        return failed

    def give_back(self, item_id: int) -> bool:
        """As the server's queue, and remembered."""
        given = super().give_back(item_id)
        if given:
            self.ended[item_id] = "handed back"
        return given

    def warm_models(self, device: str | None) -> tuple[str, ...]:
        """Keys of the models in the device's memory."""
        return tuple(sorted(self._warm(device)))

    def _transition_queue_item_status(
        self, item_id: int, status: QUEUE_ITEM_STATUS, *args: Any, **kwargs: Any
    ) -> tuple[SessionQueueItem, bool]:
        mine = self.attempt_of(item_id) is not None
        item, moved = super()._transition_queue_item_status(item_id, status, *args, **kwargs)
        if mine and moved and status in _OUTCOMES:
            self.ended[item_id] = _OUTCOMES[status]
        return item, moved


class _Elsewhere:
    """The supervisor beats, and looks at the row by itself."""

    def look_now(self) -> None:
        """Not here."""


class HandedProcessor(LeasedSessionProcessor):
    """One thread that works on what it is handed.

    `answer` takes Done to the supervisor; `new_meter` makes an item's meter; `models` fetches what an item needs, None: it is all here.
    """

    def __init__(
        self,
        *args: Any,
        answer: Callable[[Done], None],
        new_meter: Callable[[int], SharedMeter],
        models: ModelFiles | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._answer, self._new_meter, self._models = answer, new_meter, models
        self._handed: queue.SimpleQueue[Attempt | None] = queue.SimpleQueue()
        self._fault: WorkerFault | None = None

    def hand(self, attempt: Attempt) -> None:
        """Work on it; nothing else is being worked on."""
        # What is set from here on is meant for this item.
        for worker in self._workers:
            worker.cancel_event.clear()
        self._handed.put(attempt)

    def stop_item(self, item_id: int, why: Why) -> None:
        """End the work on it within a step."""
        if why == "overrun":
            try:
                self._queue.end_overrun(item_id)
            except Exception as error:
                # The supervisor ends it when this process does not.
                self._logger.warning(f"Item {item_id} ran over its price and could not be failed: {error}")
        for worker in self._workers:
            worker.cancel_event.set()

    def stop(self, *args: Any, **kwargs: Any) -> None:
        """As upstream: the step that runs is the last one, and the item is given back."""
        self._handed.put(None)
        super().stop(*args, **kwargs)

    def _process(self, worker: Any, stop_event: Event, poll_now_event: Event, resume_event: Event) -> None:
        with self._thread_semaphore:
            if worker.device is not None:
                TorchDevice.set_session_device(worker.device)
            while (attempt := self._handed.get()) is not None:
                done = self._serve(worker, attempt, stop_event)
                worker.queue_item = None
                self._answer(done)

    def _serve(self, worker: Any, attempt: Attempt, stop_event: Event) -> Done:
        self._fault, ended = None, self._queue.ended
        ended.pop(attempt.item_id, None)
        try:
            worker.queue_item = self._take(worker, attempt, stop_event)
            if worker.queue_item is not None:
                # Before any node runs: fetching is neither charged nor work.
                with self._models_for(worker.queue_item, worker.cancel_event.is_set):
                    self._work(worker, worker.queue_item, stop_event)
        except Exception as error:
            self._report(worker.queue_item, error)
        finally:
            self._queue.forget(attempt.item_id)
        warm = self._queue.warm_models(None if worker.device is None else str(worker.device))
        fault = self._fault
        if fault is not None:
            return Done(attempt.item_id, "worker's fault", fault.why, fault.counts, fault.spoiled, () if fault.spoiled else warm)
        return Done(attempt.item_id, ended.pop(attempt.item_id, "discarded"), warm=warm)

    def _models_for(self, item: SessionQueueItem, stop: Callable[[], bool]) -> AbstractContextManager[None]:
        if self._models is None:
            return nullcontext()
        return self._models.hold(item.session.model_dump_json(warnings=False, exclude_none=True), stop=stop)

    def _take(self, worker: Any, attempt: Attempt, stop_event: Event) -> SessionQueueItem | None:
        """The item, once the database says it: the claim is the supervisor's, and its beats keep it meanwhile."""
        while not worker.cancel_event.is_set():
            try:
                return self._queue.take(attempt, self._new_meter(attempt.item_id))
            except Exception as error:
                if not is_outage(error):
                    raise
                self._database_is_away(error)
                stop_event.wait(RETRY_SECONDS)
        return None

    def _holding(self, worker: Any, attempt: Attempt) -> AbstractContextManager[Held]:
        return nullcontext(_Elsewhere())

    def _report(self, item: SessionQueueItem | None, error: Exception) -> None:
        fault = error if isinstance(error, WorkerFault) else faults.of(type(error).__name__, str(error))
        if fault is None:
            super()._report(item, error)
        else:
            self._logger.error(f"Item {None if item is None else item.item_id} failed by this worker's fault: {fault.why}")
            self._fault = fault

    def _give_back(self, item: SessionQueueItem, stop_event: Event) -> None:
        # The supervisor gives it up: it counts how often that happened.
        if self._fault is None:
            super()._give_back(item, stop_event)

    @property
    def _queue(self) -> HandedQueue:
        found = self._invoker.services.session_queue
        assert isinstance(found, HandedQueue), "a runner has a queue of its own"
        return found
