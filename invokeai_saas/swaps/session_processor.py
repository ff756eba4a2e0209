"""InvokeAI's session processor for leased items: upstream's threads, devices and runner around a loop of our own.

    claim (system) ─► Holding: heartbeats, cancels from elsewhere ─► run as the item's owner, every commit fenced ─► settled or given back

A worker that stops gives its item back after the step it is in. A database that is away costs waiting, not the thread.
"""

import gc
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from threading import Event
from typing import Any, Protocol

import torch
from invokeai.app.services.events.events_common import FastAPIEvent, QueueClearedEvent, UserAccessChangedEvent
from invokeai.app.services.session_processor.session_processor_default import DefaultSessionProcessor
from invokeai.app.services.session_queue.session_queue_common import SessionQueueItem, SessionQueueItemNotFoundError
from invokeai.backend.util.device_pool import GENERATION_DEVICE_POOL
from invokeai.backend.util.devices import TorchDevice

from invokeai_saas.db import tenancy
from invokeai_saas.jobs import lease
from invokeai_saas.jobs.holding import POLL_SECONDS, Holding, is_outage
from invokeai_saas.jobs.lease import LeaseLost
from invokeai_saas.swaps import session_queue
from invokeai_saas.swaps.session_queue import PostgresSessionQueue

RETRY_SECONDS = 2.0
STOP_SECONDS = 30.0


class Held(Protocol):
    """An item that somebody beats for."""

    def look_now(self) -> None:
        """Look at the row at once."""


class LeasedSessionProcessor(DefaultSessionProcessor):
    """Upstream's processor; `stop_seconds` is how long a stop waits for the step that runs."""

    def __init__(self, *args: Any, poll_seconds: float = POLL_SECONDS, stop_seconds: float = STOP_SECONDS, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._poll_seconds, self._stop_seconds = poll_seconds, stop_seconds
        self._holdings: dict[int, Held] = {}
        self._outage_said = False
        # Devices that claim nothing: an administrator drains them (workers/inside.py).
        self.drained: set[str] = set()

    def stop(self, *args: Any, **kwargs: Any) -> None:
        """As upstream, and wait until the items that run are given back."""
        super().stop(*args, **kwargs)
        for worker in self._workers:
            if worker.thread is not None and worker.thread.is_alive():
                worker.thread.join(self._stop_seconds)

    def _process(self, worker: Any, stop_event: Event, poll_now_event: Event, resume_event: Event) -> None:
        """One worker's thread: upstream's, with claims that can be lost."""
        with self._thread_semaphore:
            if worker.device is not None:
                TorchDevice.set_session_device(worker.device)
            try:
                while not stop_event.is_set():
                    poll_now_event.clear()
                    worker.queue_item = None
                    resume_event.wait()
                    if not stop_event.is_set():
                        self._once(worker, stop_event, poll_now_event)
            finally:
                worker.queue_item = None
                if worker.device is not None:
                    TorchDevice.clear_session_device()

    def _once(self, worker: Any, stop_event: Event, poll_now_event: Event) -> None:
        if ("cpu" if worker.device is None else str(worker.device)) in self.drained:
            poll_now_event.wait(self._polling_interval)
            return
        try:
            # Before the claim: what is set from here on is meant for the item that is claimed now.
            worker.cancel_event.clear()
            worker.queue_item = self._queue.dequeue(device=None if worker.device is None else str(worker.device))
            self._database_answers()
        except Exception as error:
            if is_outage(error):
                self._database_is_away(error)
            else:
                self._report(None, error)
            stop_event.wait(RETRY_SECONDS)
            return
        if worker.queue_item is None:
            poll_now_event.wait(self._polling_interval)
            return
        try:
            self._work(worker, worker.queue_item, stop_event)
        except Exception as error:
            self._report(worker.queue_item, error)

    def _work(self, worker: Any, item: SessionQueueItem, stop_event: Event) -> None:
        """Run a claimed item until it is settled, taken away, or given back."""
        attempt = self._queue.attempt_of(item.item_id)
        if attempt is None:
            # Canceled by this process's routes since the claim.
            return
        with self._holding(worker, attempt) as holding:
            self._holdings[item.item_id] = holding
            try:
                if not stop_event.is_set():
                    self._run(worker, item, attempt)
                    self._demand_an_end(worker, attempt)
            except (LeaseLost, SessionQueueItemNotFoundError):
                self._logger.info(f"Item {item.item_id} was taken away; what it made is discarded")
            except Exception as error:
                if is_outage(error):
                    self._database_is_away(error)
                else:
                    self._report(item, error)
            finally:
                self._give_back(item, stop_event)
                self._holdings.pop(item.item_id, None)

    def _holding(self, worker: Any, attempt: lease.Attempt) -> AbstractContextManager[Held]:
        """Who beats for the item, and sets the worker's `cancel_event` when it is to stop."""
        item_id = attempt.item_id
        return Holding(
            self._queue.database,
            attempt,
            stop=worker.cancel_event,
            seconds=lambda: self._queue.seconds_of(item_id),
            lease_seconds=session_queue.LEASE_SECONDS,
            poll_seconds=self._poll_seconds,
            gpu_seconds=lambda: self._queue.gpu_seconds_of(item_id),
            end_overrun=lambda: self._queue.end_overrun(item_id),
        )

    def _run(self, worker: Any, item: SessionQueueItem, attempt: lease.Attempt) -> None:
        _pin(worker.device)
        # Frees what the last item left; upstream does it at the same place.
        gc.collect()
        self._logger.info(f"Executing queue item {item.item_id}, session {item.session_id} on {worker.label}")
        GENERATION_DEVICE_POOL.acquire_session(worker.device)
        try:
            # The queue has no items of nobody's that could run: as_user refuses 'system'.
            with tenancy.as_user(item.user_id), lease.guarding(attempt), self._queue.running(item):
                if not self._cancel_queue_item_if_owner_inactive(item):
                    worker.runner.workflow_call_queue_lifecycle.run_queue_item(item)
        finally:
            GENERATION_DEVICE_POOL.release_session(worker.device)

    def _demand_an_end(self, worker: Any, attempt: lease.Attempt) -> None:
        """A run that nobody interrupted settled its item; one that did not would be given back and run for ever."""
        if self._queue.attempt_of(attempt.item_id) is None or worker.cancel_event.is_set():
            return
        lease.demand_wanted(self._queue.database, attempt)
        raise RuntimeError("expected a graph that comes to its end, got one with nodes that cannot run")

    def _give_back(self, item: SessionQueueItem, stop_event: Event) -> None:
        """What is still ours after the run was interrupted: by a stop, by the database, or by a signal meant for another item."""
        while self._queue.attempt_of(item.item_id) is not None:
            try:
                self._settle(item)
                self._database_answers()
            except Exception as error:
                if is_outage(error):
                    self._database_is_away(error)
                else:
                    self._logger.exception(f"Item {item.item_id} could not be given back")
                if stop_event.wait(RETRY_SECONDS) or not is_outage(error):
                    # Its lease runs out, and the reaper gives it back.
                    self._queue.forget(item.item_id)

    def _settle(self, item: SessionQueueItem) -> None:
        if item.session.is_complete() and not item.session.has_error():
            # It was done when the database went away: running it again would make everything twice.
            with tenancy.as_user(item.user_id), suppress(SessionQueueItemNotFoundError):
                self._queue.save_queue_item_session(item.item_id, item.session)
                self._queue.complete_queue_item(item.item_id)
        elif self._queue.give_back(item.item_id):
            self._logger.info(f"Item {item.item_id} was given back to the queue")
        self._queue.forget(item.item_id)

    def _report(self, item: SessionQueueItem | None, error: Exception) -> None:
        """Upstream's answer to an error of the processor: said, and the item failed."""
        trace = "".join(traceback.format_exception(error))
        try:
            with tenancy.as_system("a worker's error fails the item"):
                self._on_non_fatal_processor_error(
                    queue_item=item, error_type=type(error).__name__, error_message=str(error), error_traceback=trace
                )
        except Exception as second:
            self._logger.error(f"The error could not be written to the item: {second}")

    async def _on_queue_cleared(self, event: FastAPIEvent[QueueClearedEvent]) -> None:
        # Upstream stops every worker of the queue; here the rows say whose items are gone.
        self._look(lambda item: True)

    async def _on_user_access_changed(self, event: FastAPIEvent[UserAccessChangedEvent]) -> None:
        # Whoever closed the account canceled its items in the same transaction (jobs/stopping.py).
        if not event[1].is_active:
            self._look(lambda item: item.user_id == event[1].user_id)

    def _look(self, concerns: Callable[[SessionQueueItem], bool]) -> None:
        """Have the rows of running items looked at now and not within two seconds."""
        for worker in self._workers:
            item = worker.queue_item
            holding = None if item is None or not concerns(item) else self._holdings.get(item.item_id)
            if holding is not None:
                holding.look_now()

    def _database_is_away(self, error: BaseException) -> None:
        if not self._outage_said:
            self._logger.error(f"The database does not answer; the worker waits for it: {error}")
        self._outage_said = True

    def _database_answers(self) -> None:
        if self._outage_said:
            self._logger.info("The database answers again; the worker goes on")
        self._outage_said = False

    @property
    def _queue(self) -> PostgresSessionQueue:
        queue = self._invoker.services.session_queue
        assert isinstance(queue, PostgresSessionQueue), "leases need our queue"
        return queue

    @property
    def _logger(self) -> Any:
        return self._invoker.services.logger


class IdleSessionProcessor(LeasedSessionProcessor):
    """That of a server whose items run in other processes: no devices, no threads, and no card is touched."""

    def _resolve_devices(self) -> list[Any]:
        return []


def _pin(device: Any) -> None:
    """Make the device the thread's current one, not before there is work: it can reserve memory of an idle card."""
    if device is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    elif device is not None and device.type == "xpu":
        torch.xpu.set_device(device)
