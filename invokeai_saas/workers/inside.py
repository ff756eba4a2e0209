"""The worker inside of a web process in the registry: one row per device of InvokeAI's session processor.

    start ─► every device registers ─► beat: what it does, and back: drain, resume ─► processor.drained ─► stop: retired

It runs every tier's jobs. Its word counts for long: the processor's own threads may hold Python's lock for as long as a model loads.
"""

import logging
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from threading import Event, Thread
from typing import Any
from uuid import uuid4

from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.jobs.holding import is_outage
from invokeai_saas.workers import gpus, registry
from invokeai_saas.workers.registry import TIERS, Instance, NameTaken, Status, TakenOver

BEAT_SECONDS, ALIVE_SECONDS = 5.0, 90.0
# A server that starts answers enqueues only when they can be run.
FIRST_WAIT_SECONDS = 5.0
logger = logging.getLogger(__name__)


class InsideWorker:
    """A loop of the server, started when InvokeAI's services are there; `processor` finds its session processor."""

    def __init__(
        self,
        database: PostgresDatabase,
        processor: Callable[[], Any],
        *,
        beat_seconds: float = BEAT_SECONDS,
        alive_seconds: float = ALIVE_SECONDS,
    ) -> None:
        self._database, self._processor = database, processor
        self._beat_seconds, self._alive_seconds = beat_seconds, alive_seconds
        self._host = f"{socket.gethostname()}:{os.getpid()}"
        self._incarnation = uuid4()
        self._registered: set[str] = set()
        self._stop, self._first = Event(), Event()
        self._failing = False
        self._thread = Thread(target=self._loop, name="inside-worker", daemon=True)

    def start(self) -> None:
        """Returns when the devices are registered, or after a moment."""
        self._thread.start()
        self._first.wait(FIRST_WAIT_SECONDS)

    def stop(self) -> None:
        """The names are free for the next start."""
        self._stop.set()
        self._thread.join(FIRST_WAIT_SECONDS)
        for name in sorted(self._registered):
            try:
                registry.retire(self._database, self._incarnation, name=name)
            except Exception as error:
                logger.warning("worker %s could not say that it ends: %s", name, error)

    def _loop(self) -> None:
        while not self._stop.is_set():
            try:
                for worker in self._processor()._workers:
                    self._beat(worker)
                self._pin_calls()
                self._failing = False
            except Exception as error:
                if not self._failing:
                    logger.log(
                        logging.WARNING if is_outage(error) else logging.ERROR,
                        "this server's worker could not say that it is there, and will try again: %s",
                        error,
                        exc_info=None if is_outage(error) else error,
                    )
                self._failing = True
            self._first.set()
            self._stop.wait(self._beat_seconds)

    def _pin_calls(self) -> None:
        """Called workflows stay with this process's tensors, once the registry says that it lives: else the reaper takes them for lost."""
        if not self._registered:
            return
        queue = self._processor()._invoker.services.session_queue
        if queue.can.incarnation != self._incarnation:
            queue.can = replace(queue.can, incarnation=self._incarnation)

    def _beat(self, worker: Any) -> None:
        device = "cpu" if worker.device is None else str(worker.device)
        name = f"{self._host}/{device}"
        if name not in self._registered and not self._register(name, device):
            return
        drained: set[str] = self._processor().drained
        item, load = worker.queue_item, _load(device)
        status: Status = "draining" if device in drained else "available" if item is None else "busy"
        try:
            wanted = registry.beat(
                self._database,
                self._incarnation,
                name=name,
                status=status,
                current_item=None if item is None else item.item_id,
                current_user=None if item is None else item.user_id,
                used_memory_mb=None if load is None else load.used_memory_mb,
                utilization=None if load is None else load.utilization,
                alive_seconds=self._alive_seconds,
            )
        except TakenOver:
            # Forgotten while this machine slept, most likely.
            self._registered.discard(name)
            return
        if wanted == "drain" and device not in drained:
            logger.info("worker %s drains: an administrator asked for it", name)
            drained.add(device)
        elif wanted != "drain" and device in drained:
            logger.info("worker %s claims again", name)
            drained.discard(device)

    def _register(self, name: str, device: str) -> bool:
        card = next((each for each in gpus.all_gpus() if each.device == device), None)
        instance = Instance(
            name=name,
            worker_id=self._host,
            tiers=TIERS,
            device=device,
            gpu_name=None if card is None else card.name,
            memory_mb=None if card is None else card.memory_mb,
        )
        try:
            registry.register(self._database, instance, incarnation=self._incarnation, alive_seconds=self._alive_seconds)
        except NameTaken as error:
            logger.error("%s", error)
            return False
        self._registered.add(name)
        return True


def _load(device: str) -> gpus.Load | None:
    card = next((each for each in gpus.all_gpus() if each.device == device), None)
    return None if card is None else gpus.load_of(card)
