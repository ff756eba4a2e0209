"""A user in, their work stopped: what waits is canceled, what runs is taken from its worker, in whichever process that is.

The workers find out by themselves within two seconds (holding.py) and stop at their next step. No graph is read on the way: an account
must be stoppable whatever its jobs hold.
"""

from collections.abc import Callable

from invokeai_saas.accounts.model import AccessChange
from invokeai_saas.db import tenancy
from invokeai_saas.jobs import lease
from invokeai_saas.swaps.session_queue import PostgresSessionQueue


def stop_work_of(queue: PostgresSessionQueue, user_id: str) -> int:
    """Cancel the user's open items and tell their sockets; returns how many. A second call finds nothing."""
    canceled: dict[str, list[int]] = {}
    with tenancy.as_system("an administrator's request stops another user's work"), queue.database.postgres() as cursor:
        for row in lease.cancel_all_of(cursor, user_id):
            canceled.setdefault(row["queue_id"], []).append(row["item_id"])
    for queue_id, item_ids in canceled.items():
        queue.events.emit_queue_items_canceled(queue_id, {user_id: item_ids})
    return sum(len(item_ids) for item_ids in canceled.values())


def on_access_changed(queue: PostgresSessionQueue) -> Callable[[AccessChange], None]:
    """What accounts call after the commit that changed somebody's rights."""

    def stop(change: AccessChange) -> None:
        if not change.is_active:
            stop_work_of(queue, change.user_id)

    return stop
