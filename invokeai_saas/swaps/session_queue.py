"""InvokeAI's queue for many processes: upstream's class, with the places that trusted one process's lock taken over.

Claims take row locks and a lease (jobs/lease.py), transitions lock the row before they look, a start leaves other workers' items
alone, and an enqueue counts and inserts under one lock per user. Everything else is upstream's own code.
"""

import os
import socket
from typing import Any, cast

from invokeai.app.services.invoker import Invoker
from invokeai.app.services.session_queue.session_queue_common import (
    DEFAULT_QUEUE_ID,
    QUEUE_ITEM_STATUS,
    Batch,
    EnqueueBatchResult,
    SessionQueueItem,
    SessionQueueItemNotFoundError,
)
from invokeai.app.services.session_queue.session_queue_sqlite import SqliteSessionQueue
from invokeai.app.services.shared.graph import GraphExecutionState

from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.jobs import lease
from invokeai_saas.jobs.lease import Attempt, LeaseLost

LEASE_SECONDS = 60.0
MAX_ATTEMPTS = 3
LOCK_ITEM = "SELECT status FROM session_queue WHERE item_id = %s FOR UPDATE"
# One enqueue per user at a time: the count of pending items and the insert after it belong together.
LOCK_USER = "SELECT pg_advisory_xact_lock(hashtextextended('enqueue ' || %s, 0))"
_RUNNING_ENDS = ("completed", "failed", "canceled", "waiting")


class PostgresSessionQueue(SqliteSessionQueue):
    """Upstream's queue on Postgres; `worker_id` names this process in job_attempts."""

    def __init__(self, db: PostgresDatabase, *, worker_id: str | None = None) -> None:
        super().__init__(db=cast(Any, db))
        self._postgres = db
        self._worker_id = worker_id or f"{socket.gethostname()}:{os.getpid()}"
        self._attempts: dict[int, Attempt] = {}

    def start(self, invoker: Invoker) -> None:
        """Upstream cancels all items in progress here; in ours they may be another worker's. Expired ones are reaped."""
        self.__remember(invoker)
        lease.reap(self._postgres, max_attempts=MAX_ATTEMPTS)
        keep = invoker.services.configuration.max_queue_history
        if keep is not None:
            self._prune_terminal_to_limit(DEFAULT_QUEUE_ID, keep)

    def dequeue(self, device: str | None = None) -> SessionQueueItem | None:
        """Claim the next item; no two processes get the same one."""
        with self._postgres.transaction():
            attempt = lease.claim(self._postgres, worker_id=self._worker_id, lease_seconds=LEASE_SECONDS, device=device)
            if attempt is None:
                return None
            item = self.get_queue_item(attempt.item_id)
            self._announce(item)
        self._attempts[attempt.item_id] = attempt
        return item

    def attempt_of(self, item_id: int) -> Attempt | None:
        """The lease that this process holds on an item."""
        return self._attempts.get(item_id)

    def heartbeat(self, item_id: int, *, gpu_seconds: float) -> None:
        """Extend the lease of a running item; raises LeaseLost, after which its outputs are to be discarded."""
        attempt = self._attempts.get(item_id)
        if attempt is None:
            raise LeaseLost(f"this process holds no lease on item {item_id}")
        lease.heartbeat(self._postgres, attempt, lease_seconds=LEASE_SECONDS, gpu_seconds=gpu_seconds)

    def save_queue_item_session(self, item_id: int, session: GraphExecutionState) -> None:
        """As upstream; a worker whose lease is gone is told that the item is, and discards."""
        attempt = self._attempts.get(item_id)
        if attempt is None:
            super().save_queue_item_session(item_id, session)
            return
        try:
            with self._postgres.transaction():
                # Item before attempt, as everywhere: two orders would deadlock.
                self._lock(item_id)
                with lease.fenced(self._postgres, attempt):
                    super().save_queue_item_session(item_id, session)
        except LeaseLost as error:
            raise SessionQueueItemNotFoundError(str(error)) from error

    def _transition_queue_item_status(  # upstream's signature
        self,
        item_id: int,
        status: QUEUE_ITEM_STATUS,
        error_type: str | None = None,
        error_message: str | None = None,
        error_traceback: str | None = None,
        device: str | None = None,
        queue_item: SessionQueueItem | None = None,
    ) -> tuple[SessionQueueItem, bool]:
        """Under a row lock, so that of two callers exactly one transitions. A worker without its lease changes nothing."""
        moved: tuple[SessionQueueItem, bool]
        try:
            with self._postgres.transaction():
                self._lock(item_id)
                self._settle_attempt(item_id, status)
                moved = super()._transition_queue_item_status(
                    item_id, status, error_type, error_message, error_traceback, device, queue_item
                )
        except LeaseLost:
            moved = self.get_queue_item(item_id), False
        if status in _RUNNING_ENDS:
            self._attempts.pop(item_id, None)
        return moved

    def _enqueue_batch(self, queue_id: str, batch: Batch, prepend: bool, user_id: str) -> EnqueueBatchResult:
        with self._postgres.transaction():
            with self._postgres.postgres() as cursor:
                cursor.execute(LOCK_USER, (user_id,))
            return cast(EnqueueBatchResult, super()._enqueue_batch(queue_id, batch, prepend, user_id))

    def _lock(self, item_id: int) -> None:
        with self._postgres.postgres() as cursor:
            cursor.execute(LOCK_ITEM, (item_id,))

    def _settle_attempt(self, item_id: int, status: QUEUE_ITEM_STATUS) -> None:
        """The worker's own end of an item ends its attempt; anybody else's takes it away."""
        if status not in _RUNNING_ENDS:
            return
        attempt = self._attempts.get(item_id)
        if attempt is not None and status != "canceled":
            lease.finish(self._postgres, attempt)
        else:
            lease.revoke(self._postgres, item_id)

    def _announce(self, item: SessionQueueItem) -> None:
        status = self.get_queue_status(item.queue_id, user_id=item.user_id, acting_user_id=item.user_id)
        batch = self.get_batch_status(queue_id=item.queue_id, batch_id=item.batch_id)
        self._events().emit_queue_item_status_changed(item, batch, status)

    def _events(self) -> Any:
        return self._SqliteSessionQueue__invoker.services.events

    def __remember(self, invoker: Invoker) -> None:
        # Upstream keeps it under a private name, which its other methods read.
        self._SqliteSessionQueue__invoker = invoker
