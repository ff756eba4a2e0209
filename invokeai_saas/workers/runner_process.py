"""A runner as its supervisor sees it: a process number, a pipe and a meter.

start (forked from the template) ─► Ready, or Broken, or gone ─► hand, stop ─► Done, or gone ─► quit or kill
"""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from invokeai_saas.jobs.lease import Attempt
from invokeai_saas.workers.pipe import Broken, Done, Pipe, Quit, Ready, Run, Stop, Why
from invokeai_saas.workers.shared_meter import MeterReader, new_memory
from invokeai_saas.workers.template import RunnerWish, Template

QUIT_SECONDS = 10.0


class RunnerGone(Exception):
    """The runner ended, or never came up; the message says how. `is_outage`: it found no database."""

    def __init__(self, how: str, *, is_outage: bool = False) -> None:
        super().__init__(how)
        self.is_outage = is_outage


class RunnerProcess:
    """Forked by `template` for `wish`; `await_ready` before anything else."""

    def __init__(self, template: Template, wish: RunnerWish) -> None:
        self._template, self._ended = template, ""
        self._pipe, there = Pipe.pair()
        memory = new_memory()
        try:
            self.pid = template.spawn(wish, pipe=there, memory=memory)
            self.meter = MeterReader(memory)
        except EOFError as error:
            self._pipe.close()
            raise RunnerGone(str(error)) from error
        finally:
            there.close()
            os.close(memory)

    def await_ready(self, *, seconds: float, wanted: Callable[[], bool]) -> bool:
        """Wait for its services; False when nobody wants it any more. Raises RunnerGone."""
        deadline = time.monotonic() + seconds
        while wanted():
            if time.monotonic() > deadline:
                self.kill()
                raise RunnerGone(f"it was not ready after {seconds:g} s")
            if not self._pipe.has_news(0.2):
                continue
            message = self._next()
            if isinstance(message, Broken):
                raise RunnerGone(f"it cannot start: {message.why}", is_outage=message.is_outage)
            if isinstance(message, Ready):
                return True
        return False

    def hand(self, attempt: Attempt) -> None:
        """Have it work on an attempt. Raises RunnerGone."""
        self.meter.watch(attempt.item_id)
        self._tell(Run.of(attempt))

    def stop(self, item_id: int, why: Why) -> None:
        """Have it end an item within a step. Raises RunnerGone."""
        self._tell(Stop(item_id, why))

    def done(self, item_id: int, *, wait_seconds: float) -> Done | None:
        """What it says of an item, None when nothing yet. Raises RunnerGone."""
        if not self._pipe.has_news(wait_seconds):
            return None
        message = self._next()
        return message if isinstance(message, Done) and message.item_id == item_id else None

    def demand_alive(self) -> None:
        """Raise RunnerGone for one that ended while it had nothing to do."""
        if self._pipe.has_news(0.0):
            self._next()

    def quit(self) -> None:
        """Let it close what it opened; kill it when it does not."""
        with suppress(EOFError):
            self._pipe.send(Quit())
            deadline = time.monotonic() + QUIT_SECONDS
            while time.monotonic() < deadline:
                if self._pipe.has_news(0.2):
                    self._pipe.receive()
        self.forget()

    def kill(self) -> None:
        """SIGKILL. Its number cannot be another's: the template keeps it until it is asked for it."""
        if self._ended:
            return
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def forget(self) -> None:
        """Make sure that it is gone, and collect what is left of it."""
        if not self._ended:
            self.kill()
            self._how()
        self._pipe.close()
        self.meter.close()

    def _how(self) -> str:
        self._ended = self._ended or self._template.status_of(self.pid)
        return self._ended

    def _next(self) -> object:
        try:
            return self._pipe.receive()
        except EOFError as error:
            raise RunnerGone(self._how()) from error

    def _tell(self, message: Run | Stop) -> None:
        try:
            self._pipe.send(message)
        except EOFError as error:
            raise RunnerGone(self._how()) from error
