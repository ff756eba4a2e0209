"""InvokeAI's queue class on Postgres with several workers: claims, transitions, leases, limits."""

import logging
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from invokeai.app.invocations.math import AddInvocation
from invokeai.app.services.session_queue.session_queue_common import Batch, SessionQueueItemNotFoundError
from invokeai.app.services.shared.graph import Graph, GraphExecutionState
from saas.rows import status_of

from invokeai_saas.db import tenancy
from invokeai_saas.jobs import lease
from invokeai_saas.jobs.lease import LeaseLost
from invokeai_saas.swaps.session_queue import PostgresSessionQueue


class Events:
    """Counts what the queue announces."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int]] = []

    def emit_queue_item_status_changed(self, item, batch_status, queue_status) -> None:
        self.sent.append((item.status, item.item_id))

    def emit_batch_enqueued(self, result, user_id) -> None:
        self.sent.append(("enqueued", len(result.item_ids)))


@pytest.fixture(autouse=True)
def as_worker():
    with tenancy.as_system("a worker in a test"):
        yield


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


def test_workers_share_the_items_and_announce_each_claim(open_database):
    database, events = open_database(pool_size=8), Events()
    queues = [queue_of(database, f"w{n}", events) for n in range(4)]
    items = enqueue(queues[0], runs=40)

    def drain(queue: PostgresSessionQueue) -> list[int]:
        claimed = []
        while (item := queue.dequeue()) is not None:
            claimed.append(item.item_id)
        return claimed

    with ThreadPoolExecutor(4) as pool:
        claimed = [item for part in pool.map(tenancy.carry(drain), queues) for item in part]

    assert sorted(claimed) == items
    assert sorted(item for status, item in events.sent if status == "in_progress") == items


def test_a_restart_leaves_another_workers_item_alone_and_gives_back_expired_ones(database, monkeypatch):
    worker = queue_of(database, "w1")
    alive, dead = enqueue(worker, runs=2)
    worker.dequeue()
    monkeypatch.setattr("invokeai_saas.swaps.session_queue.LEASE_SECONDS", -1.0)
    worker.dequeue()
    queue_of(database, "web")

    assert (status_of(database, alive), status_of(database, dead)) == ("in_progress", "pending")


def test_of_many_callers_exactly_one_cancels(open_database):
    database = open_database(pool_size=8)
    queue = queue_of(database, "w1")
    (item,) = enqueue(queue)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(tenancy.carry(queue._transition_queue_item_status), item, "canceled") for _ in range(8)]
        moved = [call.result()[1] for call in calls]

    assert sorted(moved) == [False] * 7 + [True]


def test_a_worker_without_its_lease_neither_completes_nor_saves(database, monkeypatch):
    late, current = queue_of(database, "w1"), queue_of(database, "w2")
    (item,) = enqueue(late)
    with monkeypatch.context() as patched:
        patched.setattr("invokeai_saas.swaps.session_queue.LEASE_SECONDS", -1.0)
        late.dequeue()
    lease.reap(database, max_attempts=3)
    current.dequeue()
    before = current.get_queue_item(item).session.id
    with pytest.raises(SessionQueueItemNotFoundError, match="no longer runs"):
        late.save_queue_item_session(item, GraphExecutionState(graph=graph()))
    with pytest.raises(LeaseLost):
        late.heartbeat(item, gpu_seconds=1.0)
    late.complete_queue_item(item)
    still = status_of(database, item)
    current.complete_queue_item(item)

    assert (still, status_of(database, item)) == ("in_progress", "completed")
    assert current.get_queue_item(item).session.id == before


def test_a_cancel_takes_the_lease_and_the_worker_hears_of_it(database):
    worker, web = queue_of(database, "w1"), queue_of(database, "web")
    (item,) = enqueue(web)
    worker.dequeue()
    with tenancy.as_user("ann"):
        web.cancel_queue_item(item)
    with pytest.raises(LeaseLost):
        worker.heartbeat(item, gpu_seconds=1.0)
    worker.complete_queue_item(item)

    assert status_of(database, item) == "canceled"


def test_racing_enqueues_never_pass_the_limit(open_database):
    database = open_database(pool_size=8)
    queue = queue_of(database, "web", max_queue_size=5)

    def try_one() -> int:
        return len(enqueue(queue))

    with ThreadPoolExecutor(8) as pool:
        made = sum(call.result() for call in [pool.submit(tenancy.carry(try_one)) for _ in range(12)])

    assert made == 5
