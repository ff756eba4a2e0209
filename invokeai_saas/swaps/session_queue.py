"""InvokeAI's queue for many processes and tenants: upstream's class, with the places that trusted one process's lock taken over.

Claims are fair and leased (jobs/lease.py), transitions lock the row before they look, a start leaves other workers' items alone, an enqueue
is all or nothing under one lock per user, and what is counted for an event is counted as the item's owner. The rest is upstream's own code.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from invokeai.app.services.invoker import Invoker
from invokeai.app.services.session_queue.session_queue_common import (
    DEFAULT_QUEUE_ID,
    QUEUE_ITEM_STATUS,
    Batch,
    ClearResult,
    EnqueueBatchResult,
    RetryItemsResult,
    SessionQueueItem,
    SessionQueueItemNotFoundError,
    SessionQueueStatus,
    calc_session_count,
    prepare_values_to_insert,
)
from invokeai.app.services.shared.graph import GraphExecutionState

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.jobs import lease, lost, queue_rows, reaper
from invokeai_saas.jobs.admission import Admission
from invokeai_saas.jobs.batch_values import demand_size_fits, demand_values_fit, demand_well_formed
from invokeai_saas.jobs.lease import EVERYTHING, Attempt, Capability, LeaseLost
from invokeai_saas.jobs.lost import Patience
from invokeai_saas.jobs.metering import Meter
from invokeai_saas.swaps import readable_items
from invokeai_saas.swaps.held_items import HeldItem, HeldItems
from invokeai_saas.swaps.readable_items import UnreadableItem
from invokeai_saas.wakeups.port import Wakeups

LEASE_SECONDS = 60.0
MAX_ATTEMPTS = 3
LOCK_ITEM = "SELECT user_id FROM session_queue WHERE item_id = %s FOR UPDATE"
# What upstream would retry of these: each root once, if both the item and its root ended badly.
RETRIABLE = """
SELECT root.user_id, count(DISTINCT root.item_id) AS items
FROM session_queue AS item JOIN session_queue AS root ON root.item_id = COALESCE(item.root_item_id, item.item_id)
WHERE item.item_id = ANY(%s) AND item.queue_id = %s AND item.status IN ('failed', 'canceled') AND root.status IN ('failed', 'canceled')
GROUP BY root.user_id ORDER BY root.user_id
"""
# Changed by who had no sockets to tell, a lost attempt's end above all.
UNTOLD = "SELECT item_id FROM session_queue WHERE untold ORDER BY item_id LIMIT 500"
TOLD = "UPDATE session_queue SET untold = false WHERE item_id = %s AND untold"
PIN = "UPDATE session_queue SET pinned_to = %(pin)s WHERE item_id = %(item_id)s"
# A called workflow runs where its parent ran, which could take both.
ROUTE_OF_PARENT = """
UPDATE session_queue AS child
SET tiers = parent.tiers, needs_memory_mb = parent.needs_memory_mb, needs_models = parent.needs_models, pinned_to = %(pin)s
FROM session_queue AS parent WHERE child.item_id = %(item_id)s AND parent.item_id = child.parent_item_id
"""
# A graph that this InvokeAI cannot read: a node that is no longer installed.
FAIL_UNREADABLE = """
UPDATE session_queue SET status = 'failed', status_sequence = COALESCE(status_sequence, 0) + 1, error_type = %(error_type)s,
    error_message = 'expected a graph that can be read, got one with nodes or fields that are not installed'
WHERE item_id = %(item_id)s AND status = 'in_progress'
"""
_RUNNING_ENDS = ("completed", "failed", "canceled", "waiting")


class PostgresSessionQueue(HeldItems):
    """Upstream's queue on Postgres; `worker_id` names this process in job_attempts. Without `admission` nothing is gated or charged."""

    def __init__(
        self,
        db: PostgresDatabase,
        *,
        worker_id: str | None = None,
        admission: Admission | None = None,
        can: Capability = EVERYTHING,
        wakeups: Wakeups | None = None,
    ) -> None:
        """`can` is what this process's worker takes; where it names an incarnation, called workflows are pinned to it.

        Without `wakeups` the workers of other processes find new items when they look.
        """
        super().__init__(db, admission)
        readable_items.install()
        self.can, self._wakeups = can, wakeups
        self._worker_id = worker_id or f"{socket.gethostname()}:{os.getpid()}"

    @property
    def database(self) -> PostgresDatabase:
        """Where the queue lies."""
        return self._postgres

    @property
    def events(self) -> Any:
        """InvokeAI's event service."""
        return self._services().events

    def start(self, invoker: Invoker) -> None:
        """Upstream cancels all items in progress here; in ours they may be another worker's. Expired ones are reaped."""
        self.__remember(invoker)
        with tenancy.as_system("queue upkeep at the start"):
            self.reap()
            keep = invoker.services.configuration.max_queue_history
            if keep is not None:
                self._prune_terminal_to_limit(DEFAULT_QUEUE_ID, keep)

    def reap(self) -> dict[int, str]:
        """Give back or fail the items whose workers are gone, and say so to their owners; to be run every few seconds."""
        changed = reaper.reap(self._postgres, patience=Patience(losses=MAX_ATTEMPTS))
        self.tell()
        return changed

    def tell(self) -> None:
        """Announce what was changed by somebody without sockets."""
        with tenancy.as_system("expired leases of all tenants"):
            with self._postgres.postgres() as cursor:
                untold = [row["item_id"] for row in cursor.execute(UNTOLD).fetchall()]
            for item_id in untold:
                with self._postgres.postgres() as cursor, suppress(SessionQueueItemNotFoundError):
                    if cursor.execute(TOLD, (item_id,)).rowcount:
                        self._announce(self.get_queue_item(item_id))

    def dequeue(self, device: str | None = None) -> SessionQueueItem | None:
        """Claim the next item; no two processes get the same one."""
        with tenancy.as_system("a worker serves every tenant"):
            while (attempt := self._claim(device)) is not None:
                try:
                    return self._claimed(attempt)
                except UnreadableItem as error:
                    # Upstream would meet it again at every claim, and nobody behind it would have their turn.
                    self._fail_unreadable(attempt, error)
            return None

    def _claim(self, device: str | None) -> Attempt | None:
        attempt = lease.claim(
            self._postgres, worker_id=self._worker_id, lease_seconds=LEASE_SECONDS, device=device, warm=self._warm(device), can=self.can
        )
        if attempt is not None:
            self._held[attempt.item_id] = HeldItem(attempt)
        return attempt

    def take(self, attempt: Attempt, meter: Meter) -> SessionQueueItem | None:
        """An item that this process's supervisor claimed for it; None when it is gone, or cannot be read and failed."""
        self._held[attempt.item_id] = HeldItem(attempt, meter=meter)
        with tenancy.as_system("a worker serves every tenant"):
            try:
                return self._claimed(attempt)
            except SessionQueueItemNotFoundError:
                self.forget(attempt.item_id)
            except UnreadableItem as error:
                self._fail_unreadable(attempt, error)
        return None

    def _warm(self, device: str | None) -> set[str]:
        """The models in the device's memory; none where the configuration asks for strict order, as upstream."""
        keys: set[str] = self._get_device_resident_model_keys(device)
        return keys if keys and self._services().configuration.session_queue_mode == "round_robin" else set()

    def _claimed(self, attempt: Attempt) -> SessionQueueItem:
        with self._postgres.transaction():
            item = self.get_queue_item(attempt.item_id)
            if not readable_items.is_readable(item):
                raise UnreadableItem(item.item_id)
            self._announce(item)
        return item

    def _fail_unreadable(self, attempt: Attempt, error: UnreadableItem) -> None:
        with self._postgres.postgres() as cursor:
            self._lock(attempt.item_id)
            cursor.execute(FAIL_UNREADABLE, {"item_id": attempt.item_id, "error_type": type(error).__name__})
            lease.revoke(self._postgres, attempt.item_id)
        self.forget(attempt.item_id)

    def heartbeat(self, item_id: int, *, gpu_seconds: float) -> None:
        """Extend the lease of a running item; raises LeaseLost, after which its outputs are to be discarded."""
        attempt = self.attempt_of(item_id)
        if attempt is None:
            raise LeaseLost(f"this process holds no lease on item {item_id}")
        lease.heartbeat(self._postgres, attempt, lease_seconds=LEASE_SECONDS, gpu_seconds=gpu_seconds)

    def give_back(self, item_id: int) -> bool:
        """Let go of an item that this process did not finish: pending again, as it was enqueued, and what it made is removed.

        Returns whether it was ours to give; an item that was canceled meanwhile stays canceled.
        """
        held = self._held.get(item_id)
        if held is None:
            return False
        try:
            lost.give_back(self._postgres, held.attempt, gpu_seconds=held.meter.seconds)
        except LeaseLost:
            return False
        finally:
            self.forget(item_id)
        self.tell()
        return True

    def save_queue_item_session(self, item_id: int, session: GraphExecutionState) -> None:
        """As upstream; a worker whose lease is gone is told that the item is, and discards."""
        attempt, working_on = self.attempt_of(item_id), lease.working_on()
        if attempt is None and working_on is not None and working_on.item_id == item_id:
            # The runner saves once more after it suspended or lost the item, which by now may be somebody else's.
            return
        with lease.unguarded():
            try:
                with self._postgres.transaction():
                    # Item before attempt, as everywhere: two orders would deadlock.
                    self._lock(item_id)
                    lease.demand_count(self._postgres)
                    with nullcontext() if attempt is None else lease.fenced(self._postgres, attempt):
                        super().save_queue_item_session(item_id, session)
            except LeaseLost as error:
                raise SessionQueueItemNotFoundError(str(error)) from error

    def get_queue_status(
        self, queue_id: str, user_id: str | None = None, acting_user_id: str | None = None, is_admin: bool = False
    ) -> SessionQueueStatus:
        """As upstream, of one tenant: also system work counts what the user whom it is for could count."""
        owner = acting_user_id or user_id
        with _as_owner(owner), self._postgres.postgres() as cursor:
            return queue_rows.status(cursor, queue_id, user_id=user_id, owner=owner, sees_all=is_admin)

    def list_all_queue_items(self, queue_id: str, destination: str | None = None) -> list[SessionQueueItem]:
        """As upstream, up to a size: raises ListTooLarge."""
        with self._postgres.postgres() as cursor:
            instead = "ask for item_ids, and then for some of the items"
            queue_rows.demand_list_fits(cursor, queue_rows.LISTED, instead, queue_id=queue_id, destination=destination)
        return list(super().list_all_queue_items(queue_id, destination))

    def demand_items_fit(self, sizes: str, queue_id: str, item_ids: list[int]) -> None:
        """Raise ListTooLarge where these items, each as often as it is named, are too much by these `sizes` of queue_rows."""
        with self._postgres.postgres() as cursor:
            queue_rows.demand_list_fits(cursor, sizes, "name fewer items at a time", queue_id=queue_id, item_ids=item_ids)

    def clear(self, queue_id: str, user_id: str | None = None) -> ClearResult:
        """As upstream; in a tenant's request always of that tenant, an administrator's included: nobody else's worker is told to stop."""
        return super().clear(queue_id, user_id or tenancy.current().user_id)

    def retry_items_by_id(self, queue_id: str, item_ids: list[int]) -> RetryItemsResult:
        """As upstream, but all or none: raises QueueFull where upstream retries as many as fit."""
        with self._postgres.postgres() as cursor:
            owners = [row["user_id"] for row in self._demand_room_to_retry(cursor, queue_id, item_ids)]
            self._demand_readable(item_ids)
            before = queue_rows.last_item(cursor)
            result = super().retry_items_by_id(queue_id, item_ids)
            if self._admission is not None:
                for owner in owners:
                    with _as_owner(owner):
                        self._admission.admit_again(cursor, owner, queue_rows.sessions_since(cursor, owner, before))
            self._wake(cursor, since=before)
            return result

    def enqueue_workflow_call_child(self, parent_queue_item: SessionQueueItem, *args: Any, **kwargs: Any) -> SessionQueueItem:
        """As upstream, counted and inserted under the user's lock."""
        with self._postgres.postgres() as cursor:
            cursor.execute(queue_rows.LOCK_USER, (parent_queue_item.user_id,))
            if self._admission is not None:
                self._admission.admit_child(cursor, parent_queue_item)
            child = super().enqueue_workflow_call_child(parent_queue_item, *args, **kwargs)
            with tenancy.as_system("called workflows run where their parent ran"), self._postgres.postgres() as system:
                system.execute(ROUTE_OF_PARENT, {"item_id": child.item_id, "pin": self.can.incarnation})
            self._wake(cursor, since=child.item_id - 1)
            return child

    def resume_queue_item(self, item_id: int, queue_item: SessionQueueItem | None = None) -> SessionQueueItem:
        """As upstream; whoever goes on with it has the tensors that it left here."""
        with lease.unguarded(), self._postgres.transaction():
            self._lock(item_id)
            with tenancy.as_system("called workflows run where their parent ran"), self._postgres.postgres() as system:
                system.execute(PIN, {"item_id": item_id, "pin": self.can.incarnation})
            return super().resume_queue_item(item_id, queue_item=queue_item)

    def enqueue(self, *, queue_id: str, batch: Batch, prepend: bool, user_id: str) -> EnqueueBatchResult:
        """enqueue_batch() for who is in a thread of their own, and perhaps in a transaction."""
        return self._enqueue_batch(queue_id, batch, prepend, user_id)

    def _enqueue_batch(self, queue_id: str, batch: Batch, prepend: bool, user_id: str) -> EnqueueBatchResult:
        """All of the batch or, with QueueFull, nothing. `prepend` is ignored: turns are given by waiting (decision 18)."""
        demand_well_formed(queue_id, batch)
        wanted = calc_session_count(batch)
        # Before each value is looked at: there may be a million of them.
        if wanted > (most := self._services().configuration.max_queue_size):
            raise queue_rows.QueueFull(most=most, would_be=wanted)
        demand_values_fit(batch)
        with _as_owner(user_id), self._postgres.postgres() as cursor:
            admitted = None if self._admission is None else self._admission.admit(cursor, user_id, batch)
            self._demand_room(cursor, user_id, wanted)
            demand_size_fits(batch, wanted)
            rows = prepare_values_to_insert(queue_id, batch, priority=0, max_new_queue_items=wanted, user_id=user_id)
            item_ids = queue_rows.insert(cursor, rows, () if admitted is None else admitted.routes)
            if admitted is not None:
                admitted.hold(cursor, item_ids)
            result = EnqueueBatchResult(
                queue_id=queue_id, requested=wanted, enqueued=len(rows), batch=batch, priority=0, item_ids=item_ids[::-1]
            )
            self._wake(cursor, since=min(item_ids, default=0) - 1)
            self.events.emit_batch_enqueued(result, user_id=user_id)
        return result

    def _wake(self, cursor: queue_rows.Cursor, *, since: int) -> None:
        """Tell idle workers of the items that this transaction made after `since`."""
        if self._wakeups is not None:
            self._wakeups.send(queue_rows.wakeups(cursor, since))

    def _demand_readable(self, item_ids: list[int]) -> None:
        """An item that cannot be read would be repeated as an empty graph."""
        for item_id in item_ids:
            with suppress(SessionQueueItemNotFoundError):
                item = self.get_queue_item(item_id)
                root = item if item.root_item_id is None else self.get_queue_item(item.root_item_id)
                if not readable_items.is_readable(root):
                    raise UnreadableItem(item_id)

    def _demand_room_to_retry(self, cursor: queue_rows.Cursor, queue_id: str, item_ids: list[int]) -> list[Any]:
        owners = cursor.execute(RETRIABLE, (list(item_ids), queue_id)).fetchall()
        for row in owners:
            self._demand_room(cursor, row["user_id"], row["items"])
        return owners

    def _demand_room(self, cursor: queue_rows.Cursor, user_id: str, wanted: int) -> None:
        queue_rows.demand_room(cursor, user_id=user_id, wanted=wanted, most=self._services().configuration.max_queue_size)

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
        with lease.unguarded():
            try:
                with self._postgres.transaction():
                    owner = self._lock(item_id)
                    lease.demand_count(self._postgres)
                    self._settle_attempt(item_id, status)
                    with _as_owner(owner):
                        moved = super()._transition_queue_item_status(
                            item_id, status, error_type, error_message, error_traceback, device, queue_item
                        )
            except LeaseLost:
                moved = self.get_queue_item(item_id), False
        if status in _RUNNING_ENDS:
            self.forget(item_id)
        return moved

    def _lock(self, item_id: int) -> str | None:
        """Lock the item; returns its owner, None when it is gone."""
        with self._postgres.postgres() as cursor:
            row = cursor.execute(LOCK_ITEM, (item_id,)).fetchone()
        return None if row is None else row["user_id"]

    def _settle_attempt(self, item_id: int, status: QUEUE_ITEM_STATUS) -> None:
        """The worker's own end of an item ends its attempt; anybody else's takes it away."""
        if status not in _RUNNING_ENDS:
            return
        held = self._held.get(item_id)
        if held is not None and status != "canceled":
            lease.finish(self._postgres, held.attempt, gpu_seconds=held.meter.seconds)
        else:
            lease.revoke(self._postgres, item_id)

    def _announce(self, item: SessionQueueItem) -> None:
        with _as_owner(item.user_id):
            status = self.get_queue_status(item.queue_id, user_id=item.user_id, acting_user_id=item.user_id)
            batch = self.get_batch_status(queue_id=item.queue_id, batch_id=item.batch_id)
        self.events.emit_queue_item_status_changed(item, batch, status)

    def _services(self) -> Any:
        return self._SqliteSessionQueue__invoker.services

    def __remember(self, invoker: Invoker) -> None:
        # Upstream keeps it under a private name, which its other methods read.
        self._SqliteSessionQueue__invoker = invoker


@contextmanager
def _as_owner(user_id: str | None) -> Iterator[None]:
    """System work for one user's eyes sees what they see; a tenant's own work stays as it is."""
    if user_id is None or user_id == tenancy.SYSTEM_USER_ID or not tenancy.current().is_system:
        yield
    else:
        with tenancy.as_user(user_id):
            yield
