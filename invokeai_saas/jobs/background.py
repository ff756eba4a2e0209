"""What must be done again and again: named jobs in one thread, each at its own pace; a failing one is logged, counted and tried again.

    add(name, every_seconds, function) ... start() ─► due? ─► alone? ─► run ─► next time, give or take a tenth ─► stop()

A job enters whatever context it needs by itself. Of several processes one runs a job at a time, unless it says that it does not matter.
"""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event, Thread

from invokeai_saas.db.database import PostgresDatabase

JITTER = 0.1
FIRST_WITHIN_SECONDS = 5.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tick:
    """How a job fares. `seconds_since_ok` is None until it first worked, here or (when it runs alone) in another process."""

    every_seconds: float
    seconds_since_ok: float | None
    runs: int
    failures: int
    last_error: str | None

    @property
    def is_late(self) -> bool:
        """Whether it has not worked for three of its periods: what readiness asks."""
        return self.seconds_since_ok is not None and self.seconds_since_ok > 3 * self.every_seconds + FIRST_WITHIN_SECONDS


@dataclass
class _Job:
    name: str
    every_seconds: float
    function: Callable[[], object]
    alone: bool
    due_at: float = 0.0
    ok_at: float | None = None
    runs: int = 0
    failures: int = 0
    last_error: str | None = None
    failing: bool = field(default=False)


class Background:
    """The thread. Jobs are added before start()."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database, self._jobs, self._stop = database, dict[str, _Job](), Event()
        self._thread = Thread(target=self._loop, name="saas-background", daemon=True)

    def add(self, name: str, every_seconds: float, function: Callable[[], object], *, alone: bool = True) -> None:
        """Run `function` every so many seconds; `alone`: not while another process runs the job of this name."""
        if every_seconds <= 0:
            raise ValueError(f"every_seconds of {name}: expected more than 0, got {every_seconds}")
        if name in self._jobs:
            raise ValueError(f"expected a new name, got {name} twice")
        self._jobs[name] = _Job(name, every_seconds, function, alone)

    def start(self) -> None:
        """Begin; every job runs for the first time within a few seconds, not all at once and not in step with other processes."""
        now = time.monotonic()
        for job in self._jobs.values():
            job.due_at = now + random.uniform(0, min(job.every_seconds, FIRST_WITHIN_SECONDS))
        self._thread.start()

    def stop(self) -> None:
        """Finish the job that is running, begin no other; returns when it is over."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def ticks(self) -> dict[str, Tick]:
        """Every job's state."""
        now = time.monotonic()
        return {
            job.name: Tick(job.every_seconds, None if job.ok_at is None else now - job.ok_at, job.runs, job.failures, job.last_error)
            for job in self._jobs.values()
        }

    def _loop(self) -> None:
        while self._jobs and not self._stop.is_set():
            job = min(self._jobs.values(), key=lambda each: each.due_at)
            if self._stop.wait(max(0.0, job.due_at - time.monotonic())):
                return
            self._run(job)
            job.due_at = time.monotonic() + job.every_seconds * random.uniform(1 - JITTER, 1 + JITTER)

    def _run(self, job: _Job) -> None:
        try:
            if job.alone:
                self._run_alone(job)
            else:
                job.function()
                job.runs += 1
        except Exception as error:
            self._failed(job, error)
        else:
            if job.failing:
                logger.info("background job %s works again", job.name)
            job.failing, job.ok_at = False, time.monotonic()

    def _run_alone(self, job: _Job) -> None:
        with self._database.exclusive_if_free(f"background {job.name}") as free:
            if free:
                job.function()
                job.runs += 1

    def _failed(self, job: _Job, error: Exception) -> None:
        job.failures += 1
        job.last_error = type(error).__name__
        # Once per failing streak with all of it: a database that is away would fill the log.
        if not job.failing:
            logger.error("background job %s failed and will be tried again", job.name, exc_info=error)
        job.failing = True


class Looking:
    """One look again and again in a thread of its own, where a second matters; subclasses say what look() does."""

    def __init__(self, *, name: str, every_seconds: float, trouble: str) -> None:
        """`name` is the thread's; `trouble` what the log says of a look that fails."""
        self._every_seconds, self._trouble = every_seconds, trouble
        self._stop = Event()
        self._thread = Thread(target=self._loop, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Returns when the thread is over."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """One look."""
        raise NotImplementedError

    def _loop(self) -> None:
        failing = False
        while not self._stop.wait(self._every_seconds):
            try:
                self.look()
                failing = False
            except Exception:
                # Once per streak: a database that is away would fill the log.
                if not failing:
                    logger.exception(self._trouble)
                failing = True
