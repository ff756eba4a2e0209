"""InvokeAI's queue class on a test's database, without InvokeAI's services around it; and a graph to enqueue."""

import logging
from types import SimpleNamespace

from invokeai.app.invocations.math import AddInvocation
from invokeai.app.services.session_queue.session_queue_common import Batch
from invokeai.app.services.shared.graph import Graph

from invokeai_saas.swaps.session_queue import PostgresSessionQueue


class Events:
    """Counts what the queue announces."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int]] = []

    def emit_queue_item_status_changed(self, item, batch_status, queue_status) -> None:
        self.sent.append((item.status, item.item_id))

    def emit_queue_items_canceled(self, queue_id, item_ids_by_user) -> None:
        self.sent += [("canceled", item) for items in item_ids_by_user.values() for item in items]

    def emit_queue_cleared(self, queue_id, user_id) -> None:
        self.sent.append(("cleared", user_id))

    def emit_queue_items_retried(self, result, user_ids, retried_item_ids_by_user) -> None:
        self.sent.append(("retried", len(result.retried_item_ids)))

    def emit_batch_enqueued(self, result, user_id) -> None:
        self.sent.append(("enqueued", len(result.item_ids)))


def invoker(events: Events, *, max_queue_size: int = 100) -> SimpleNamespace:
    configuration = SimpleNamespace(
        max_queue_size=max_queue_size,
        max_queue_history=None,
        clear_queue_on_startup=True,
        multiuser=True,
        session_queue_mode="round_robin",
    )
    return SimpleNamespace(services=SimpleNamespace(configuration=configuration, events=events, logger=logging.getLogger("test")))


def queue_of(database, worker: str, events: Events | None = None, **settings) -> PostgresSessionQueue:
    queue = PostgresSessionQueue(database, worker_id=worker)
    queue.start(invoker(events or Events(), **settings))
    return queue


def graph() -> Graph:
    made = Graph()
    made.add_node(AddInvocation(id="add", a=1, b=2))
    return made


def enqueue(queue: PostgresSessionQueue, runs: int = 1, user_id: str = "ann") -> list[int]:
    return sorted(queue._enqueue_batch("default", Batch(graph=graph(), runs=runs), False, user_id).item_ids)
