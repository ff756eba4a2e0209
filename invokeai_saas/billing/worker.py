"""The threads that empty the inbox: woken by each event, and every few seconds for what waits for its next try or came to another process.

Several, because each spends its time waiting for Stripe; a customer is looked after by one of them, whichever has the lease.
"""

import logging
from dataclasses import replace
from threading import Event, Thread

from invokeai_saas.billing import process
from invokeai_saas.billing.model import Billing

THREADS = 4
EVERY_SECONDS = 5.0
AFTER_FAILURE_SECONDS = 5.0
logger = logging.getLogger(__name__)


class InboxWorker:
    """One per process; any number of processes. Start it after the fork, stop it before the database closes."""

    def __init__(self, billing: Billing, *, every_seconds: float = EVERY_SECONDS, threads: int = THREADS) -> None:
        self._woken, self._stop, self._every = Event(), Event(), every_seconds
        self.billing = replace(billing, wake=self.wake)
        self._threads = [Thread(target=self._loop, name=f"stripe-inbox-{number}", daemon=True) for number in range(threads)]

    def start(self) -> None:
        """Begin, unless there is no Stripe here."""
        if self.billing.gateway is not None:
            for thread in self._threads:
                thread.start()

    def stop(self) -> None:
        """Finish the customers that are looked after, begin no other."""
        self._stop.set()
        self._woken.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def wake(self) -> None:
        """An event was written down."""
        self._woken.set()

    def _loop(self) -> None:
        failing = False
        while not self._stop.is_set():
            self._woken.clear()
            try:
                while not self._stop.is_set() and process.process_waiting(self.billing, at_most=1):
                    pass
                failing = False
            except Exception:
                # Once per streak with all of it: a database that is away would fill the log.
                if not failing:
                    logger.exception("the inbox could not be read and will be tried again")
                failing = True
                self._stop.wait(AFTER_FAILURE_SECONDS)
                continue
            self._woken.wait(self._every)
