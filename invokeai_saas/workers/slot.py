"""One device of a worker: its runner process, and the item that it has.

    may it? (drain, quarantine, checks) ─► a runner ─► claim ─► hand it over, beat for it ─► Done: settled by the runner
                                              ▲                     │ gone, or its own fault ─► the attempt is lost at once
                                              └─────────────────────┘ stop (canceled, over its price, drain) ─► 30 s ─► killed

Runs in a thread of the supervisor; the heartbeats of an item (jobs/holding.py) in another. Imports neither InvokeAI nor torch.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Protocol
from uuid import UUID

from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.jobs import lease
from invokeai_saas.jobs.holding import Holding, is_outage
from invokeai_saas.jobs.lease import Attempt, Capability
from invokeai_saas.settings import Settings
from invokeai_saas.wakeups.port import Wakeups
from invokeai_saas.workers import endings, health, registry
from invokeai_saas.workers.faults import InARow
from invokeai_saas.workers.gpus import Gpu, load_of
from invokeai_saas.workers.model_store import Where
from invokeai_saas.workers.pipe import Done, Why
from invokeai_saas.workers.registry import Instance, NameTaken, Status, TakenOver
from invokeai_saas.workers.runner_process import RunnerGone, RunnerProcess
from invokeai_saas.workers.template import RunnerWish, Template

logger = logging.getLogger(__name__)
LOOK_SECONDS, IDLE_SECONDS = 0.2, 1.0
READY_SECONDS = 300.0
# While the database is away an item goes on; whether it counted, the fence says afterwards.
PATIENCE_SECONDS = 600.0
BEAT_SECONDS = 2.0
ITEM_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.3, 30.0
CHECK_SECONDS = 10.0


class Crew(Protocol):
    """What the slots of one supervisor share."""

    settings: Settings
    database: PostgresDatabase
    dsn: str
    wakeups: Wakeups
    # Claim nothing more and end; and: give back what runs now.
    leaving: Event
    at_once: Event
    runners: int
    models: Where
    # What may be claimed for; None is everything.
    model_keys: frozenset[str] | None

    @property
    def ending(self) -> str | None:
        """What the registry says of the end; None: there is none in sight."""

    def template(self) -> Template:
        """The process that runners are forked from."""


@dataclass(frozen=True, slots=True)
class Device:
    """What a slot is for; `gpu` is None for a device that is no NVIDIA card."""

    name: str
    instance: Instance
    folder: Path
    gpu: Gpu | None = None


class Slot:
    """One device. `run` is its thread; `beat` is called beside it, every few seconds."""

    def __init__(self, crew: Crew, device: Device, incarnation: UUID) -> None:
        self._crew, self.device, self._incarnation = crew, device, incarnation
        self._runner: RunnerProcess | None = None
        self._warm: tuple[str, ...] = ()
        self._faults = InARow(crew.settings.quarantine_after)
        self._pause_until, self._check_next = 0.0, True
        self.attempt: Attempt | None = None
        self._holding: Holding | None = None
        self._drained, self._resume = Event(), Event()
        self._quarantine: str | None = None
        self._lifts_itself = False
        # No runner has used this incarnation yet.
        self._unused, self._ended = True, False
        self._naming = Lock()
        self._outage_said = False
        self.taken_over = False

    def run(self) -> None:
        """Work until the supervisor leaves."""
        try:
            while not self._crew.leaving.is_set() and not self.taken_over:
                try:
                    self._once()
                except Exception as error:
                    self._trouble(error)
        finally:
            self._end()

    def _once(self) -> None:
        if not self._may_claim() or not self._has_runner():
            return
        attempt = self._claim()
        self._outage_said = False
        if attempt is None:
            self._crew.wakeups.wait(self.device.instance.tiers, IDLE_SECONDS)
            return
        self.attempt = attempt
        try:
            self._work(attempt)
        finally:
            self.attempt = None

    # May it?

    def _may_claim(self) -> bool:
        if self._quarantine is not None:
            self._leave_quarantine()
            return False
        if self._drained.is_set() or time.monotonic() < self._pause_until:
            self._crew.leaving.wait(LOOK_SECONDS)
            return False
        if self._check_next:
            wrong = health.what_is_wrong(self._crew.settings, self.device.folder)
            if wrong is not None:
                self._enter_quarantine(wrong, lifts_itself=True)
                return False
            self._check_next = False
        return True

    def _enter_quarantine(self, why: str, *, lifts_itself: bool) -> None:
        self._quarantine, self._lifts_itself = why, lifts_itself
        how = "until that is mended" if lifts_itself else "until an administrator resumes it, or it is started again"
        logger.error("%s takes no more items, %s: %s", self.device.instance.name, how, why)

    def _leave_quarantine(self) -> None:
        if self._crew.leaving.wait(IDLE_SECONDS):
            return
        if not self._resume.is_set():
            if not self._lifts_itself or time.monotonic() < self._pause_until:
                return
            self._pause_until = time.monotonic() + CHECK_SECONDS
            if health.what_is_wrong(self._crew.settings, self.device.folder) is not None:
                return
        logger.warning("%s takes items again", self.device.instance.name)
        self._resume.clear()
        self._faults.went_well()
        self._quarantine, self._check_next, self._pause_until = None, True, 0.0

    def _failed_here(self, attempt: Attempt | None, why: str) -> None:
        """One more by this worker's fault: a pause that grows, a look at disk and folders, and after too many in a row the quarantine.

        After an item the pause is short: with long ones the first items would be back, and lost again, before the last one that it takes.
        """
        if attempt is None:
            self._faults.did_not_start()
        else:
            self._faults.failed(attempt.item_id, attempt.user_id)
        self._check_next = True
        self._pause(2.0**self._faults.count if attempt is None else self._faults.count * ITEM_PAUSE_SECONDS)
        if self._faults.is_too_many:
            self._enter_quarantine(f"{self._faults.count} in a row failed here, the last one: {why}", lifts_itself=False)

    def _pause(self, seconds: float) -> None:
        self._pause_until = time.monotonic() + min(seconds, LONGEST_PAUSE_SECONDS)

    # A runner.

    def _has_runner(self) -> bool:
        if self._runner is not None:
            try:
                self._runner.demand_alive()
                return True
            except RunnerGone as error:
                logger.warning("the runner of %s ended with nothing to do: %s", self.device.name, error)
                self._drop_runner()
        return self._start_runner()

    def _start_runner(self) -> bool:
        began = time.monotonic()
        if not self._unused:
            # Tensors of called workflows are gone with the old process: who is pinned to it must learn that.
            with self._naming:
                registry.retire(self._crew.database, self._incarnation)
                self._incarnation = registry.register(self._crew.database, self.device.instance)
        self._unused = False
        instance = self.device.instance
        wish = RunnerWish(
            worker_id=instance.worker_id,
            incarnation=str(self._incarnation),
            device=self.device.name,
            visible=None if self.device.gpu is None else self.device.gpu.visible,
            folder=str(self.device.folder),
            dsn=self._crew.dsn,
            runners=self._crew.runners,
            models=self._crew.models,
        )
        try:
            runner = RunnerProcess(self._crew.template(), wish)
            self._runner = runner
            if not runner.await_ready(seconds=READY_SECONDS, wanted=lambda: not self._crew.leaving.is_set()):
                return False
        except RunnerGone as error:
            logger.error("the runner of %s did not come up: %s", self.device.name, error)
            self._drop_runner()
            if error.is_outage:
                self._pause(2 * IDLE_SECONDS)
            else:
                self._failed_here(None, str(error))
            return False
        logger.info("%s is ready after %.1f s (process %d)", instance.name, time.monotonic() - began, runner.pid)
        return True

    def _drop_runner(self) -> None:
        if self._runner is not None:
            self._runner.forget()
        self._runner, self._warm = None, ()

    # An item.

    def _claim(self) -> Attempt | None:
        instance = self.device.instance
        can = Capability(instance.tiers, instance.memory_mb, self._crew.model_keys, self._incarnation)
        return lease.claim(
            self._crew.database,
            worker_id=instance.worker_id,
            lease_seconds=self._crew.settings.lease_seconds,
            device=self.device.name,
            warm=self._warm,
            can=can,
        )

    def _work(self, attempt: Attempt) -> None:
        runner = self._runner
        assert runner is not None, "who claims has a runner"
        stop, began = Event(), time.monotonic()
        holding = Holding(
            self._crew.database,
            attempt,
            stop=stop,
            seconds=lambda: time.monotonic() - began,
            lease_seconds=self._crew.settings.lease_seconds,
            poll_seconds=BEAT_SECONDS,
            gpu_seconds=lambda: runner.meter.read().seconds,
            patience_seconds=PATIENCE_SECONDS,
        )
        logger.info("item %s runs on %s (attempt %s)", attempt.item_id, self.device.instance.name, attempt.attempt_no)
        self._holding = holding
        with holding:
            done, stopped, gone = self._watch(runner, attempt, stop)
            self._holding = None
            if done is None:
                self._runner_is_gone(attempt, runner, stopped, gone)
                return
            self._warm = done.warm
            if done.outcome == "worker's fault":
                self._give_up(attempt, done)
        if done.outcome == "completed":
            self._faults.went_well()
        if done.spoiled:
            self._drop_runner()

    def _watch(self, runner: RunnerProcess, attempt: Attempt, stop: Event) -> tuple[Done | None, Why | None, str]:
        """Until it is done or gone: (what it says, why it was to stop, how it ended)."""
        stopping: Why | None = None
        kill_at = float("inf")
        try:
            runner.hand(attempt)
            while (done := runner.done(attempt.item_id, wait_seconds=LOOK_SECONDS)) is None:
                why = self._why_to_stop(runner, stop)
                if why is not None and stopping is None:
                    stopping, kill_at = why, time.monotonic() + self._crew.settings.stop_seconds
                    logger.info("item %s is to stop: %s", attempt.item_id, why)
                    runner.stop(attempt.item_id, why)
                if time.monotonic() > kill_at:
                    logger.warning(
                        "item %s did not stop within %g s: its process is killed", attempt.item_id, self._crew.settings.stop_seconds
                    )
                    runner.kill()
                    kill_at = float("inf")
            return done, stopping, ""
        except RunnerGone as error:
            return None, stopping, str(error)

    def _why_to_stop(self, runner: RunnerProcess, stop: Event) -> Why | None:
        if stop.is_set():
            return "lost"
        if runner.meter.read().is_over:
            return "overrun"
        return "hand back" if self._crew.at_once.is_set() or self.taken_over else None

    def _runner_is_gone(self, attempt: Attempt, runner: RunnerProcess, stopped: Why | None, how: str) -> None:
        reading = runner.meter.read()
        self._drop_runner()
        if stopped is None:
            logger.error("the runner of %s is gone, with item %s: %s", self.device.name, attempt.item_id, how)
            endings.lose(self._crew.database, attempt, why=f"the worker's process: {how}", until=self._crew.leaving)
            self._failed_here(attempt, how)
        elif stopped == "overrun":
            endings.fail_over_price(self._crew.database, attempt, reading, until=self._crew.leaving)
        elif stopped == "hand back":
            endings.hand_back(self._crew.database, attempt, gpu_seconds=reading.seconds, until=self._crew.leaving)

    def _give_up(self, attempt: Attempt, done: Done) -> None:
        why = done.fault or "unknown"
        endings.lose(self._crew.database, attempt, why=why, until=self._crew.leaving)
        if done.counts:
            self._failed_here(attempt, why)

    # What others see and ask for.

    def look_now(self, items: frozenset[int] | None) -> None:
        """Look at the row of the item that runs, if it is one of these."""
        holding = self._holding
        if holding is not None and (items is None or holding.attempt.item_id in items):
            holding.look_now()

    @property
    def status(self) -> Status:
        """As gpu_instances says it."""
        if self._quarantine is not None:
            return "quarantined"
        if self._drained.is_set() or self._crew.leaving.is_set():
            return "draining"
        if self.attempt is not None:
            return "busy"
        return "starting" if self._runner is None else "available"

    def beat(self) -> None:
        """Say what this device does, and hear what an administrator wants of it."""
        attempt = self.attempt
        load = None if self.device.gpu is None else load_of(self.device.gpu)
        try:
            with self._naming:
                if self._ended:
                    return
                wanted = registry.beat(
                    self._crew.database,
                    self._incarnation,
                    status=self.status,
                    current_item=None if attempt is None else attempt.item_id,
                    current_user=None if attempt is None else attempt.user_id,
                    used_memory_mb=None if load is None else load.used_memory_mb,
                    utilization=None if load is None else load.utilization,
                    failures_in_a_row=self._faults.count,
                    reason=self._crew.ending or self._quarantine,
                    model_keys=self._crew.model_keys,
                )
        except TakenOver as error:
            logger.error("%s: %s", self.device.instance.name, error)
            self.taken_over = True
            return
        if wanted == "drain" and not self._drained.is_set():
            logger.warning("%s is asked to drain: it claims nothing more", self.device.instance.name)
            self._drained.set()
        elif wanted != "drain" and self._drained.is_set():
            logger.warning("%s may claim again", self.device.instance.name)
            self._drained.clear()
        if wanted == "resume" and self._quarantine is not None:
            self._resume.set()

    def _trouble(self, error: Exception) -> None:
        if isinstance(error, NameTaken):
            logger.error("%s", error)
            self.taken_over = True
        elif is_outage(error):
            if not self._outage_said:
                logger.error("the database does not answer; %s waits for it: %s", self.device.instance.name, error)
            self._outage_said = True
            self._crew.leaving.wait(IDLE_SECONDS)
            return
        else:
            logger.exception("an error of %s's own", self.device.instance.name)
            self._failed_here(None, f"{type(error).__name__}: {error}")

    def withdraw(self) -> None:
        """Give the name back; no beat comes after it."""
        try:
            with self._naming:
                self._ended = True
                registry.retire(self._crew.database, self._incarnation, reason="ended")
        except Exception as error:
            logger.warning("%s could not say that it ends: %s", self.device.instance.name, error)

    def _end(self) -> None:
        if self._runner is not None:
            self._runner.quit()
            self._runner = None
        self.withdraw()
