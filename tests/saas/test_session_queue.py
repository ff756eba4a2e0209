"""InvokeAI's queue class on Postgres with several workers: claims, transitions, leases, limits."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from invokeai.app.services.session_queue.session_queue_common import Batch, SessionQueueItemNotFoundError
from invokeai.app.services.shared.graph import GraphExecutionState
from saas.queues import Events, enqueue, graph, queue_of
from saas.rows import AT_ONCE, status_of

from invokeai_saas.db import tenancy
from invokeai_saas.jobs import lease
from invokeai_saas.jobs.lease import LeaseLost
from invokeai_saas.jobs.queue_rows import QueueFull
from invokeai_saas.jobs.reaper import reap
from invokeai_saas.swaps.session_queue import PostgresSessionQueue


@pytest.fixture(autouse=True)
def as_worker():
    with tenancy.as_system("a worker in a test"):
        yield


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
    reap(database, patience=AT_ONCE)
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
        try:
            return len(enqueue(queue))
        except QueueFull:
            return 0

    with ThreadPoolExecutor(8) as pool:
        made = sum(call.result() for call in [pool.submit(tenancy.carry(try_one)) for _ in range(12)])

    assert made == 5


def test_a_batch_that_does_not_fit_is_refused_whole(database):
    queue = queue_of(database, "web", max_queue_size=5)
    enqueue(queue, runs=3)
    with pytest.raises(QueueFull, match="expected at most 5 pending items, got 6") as refused:
        enqueue(queue, runs=3)
    with tenancy.as_user("ann"):
        pending = queue.get_queue_status("default").pending

    assert (refused.value.status, pending) == (409, 3)
    assert len(enqueue(queue, runs=2)) == 2


def test_one_users_full_queue_leaves_room_for_the_next(database):
    queue = queue_of(database, "web", max_queue_size=2)
    enqueue(queue, runs=2)

    assert len(enqueue(queue, runs=2, user_id="bob")) == 2


def test_a_retry_that_does_not_fit_retries_nothing(database):
    events = Events()
    queue = queue_of(database, "web", events, max_queue_size=3)
    items = enqueue(queue, runs=3)
    for item in items:
        queue.cancel_queue_item(item)
    enqueue(queue, runs=1)
    with pytest.raises(QueueFull, match="expected at most 3 pending items, got 4"):
        queue.retry_items_by_id("default", items)

    assert queue.retry_items_by_id("default", items[:2]).retried_item_ids == items[:2]
    assert [sent for sent in events.sent if sent[0] == "retried"] == [("retried", 2)]


def test_prepend_gives_nobody_a_turn_before_others(database):
    queue = queue_of(database, "web")
    first = enqueue(queue)
    second = queue._enqueue_batch("default", Batch(graph=graph(), runs=1), True, "ann")

    assert second.priority == 0
    assert [queue.dequeue().item_id for _ in range(2)] == [*first, *second.item_ids]


def test_what_a_worker_announces_counts_the_owners_items_only(database):
    statuses: list[tuple[int, int, int | None]] = []

    class Counts(Events):
        def emit_queue_item_status_changed(self, item, batch_status, queue_status) -> None:
            statuses.append((queue_status.total, batch_status.total, queue_status.item_id))

    queue = queue_of(database, "w", Counts())
    for user, runs in (("ann", 2), ("bob", 5)):
        queue._enqueue_batch("default", Batch(batch_id="same", graph=graph(), runs=runs), False, user)
    item = queue.dequeue()
    queue.complete_queue_item(item.item_id)

    assert statuses == [(2, 2, item.item_id), (2, 2, None)]


def test_an_administrators_clear_clears_their_own_queue(database):
    events = Events()
    queue = queue_of(database, "web", events)
    (mine,) = enqueue(queue, user_id="admin")
    (anns,) = enqueue(queue)
    with tenancy.as_user("admin"):
        queue.clear("default")

    assert status_of(database, anns) == "pending"
    assert events.sent[-1] == ("cleared", "admin")


def test_a_graph_that_cannot_be_read_fails_and_the_next_item_has_its_turn(database):
    queue = queue_of(database, "w")
    broken = enqueue(queue, user_id="bob")[0]
    (item,) = enqueue(queue)
    with database.postgres() as cursor:
        cursor.execute("UPDATE session_queue SET session = '{}' WHERE item_id = %s", (broken,))

    assert queue.dequeue().item_id == item
    assert (status_of(database, broken), queue.attempt_of(broken)) == ("failed", None)
    assert queue.dequeue() is None


def test_an_item_given_back_is_as_it_was_claimed(database):
    events = Events()
    queue = queue_of(database, "w", events)
    (item,) = enqueue(queue)
    claimed = queue.dequeue()
    claimed.session.next()
    queue.save_queue_item_session(item, claimed.session)
    given = queue.give_back(item)

    assert (given, events.sent[-1], queue.give_back(item)) == (True, ("pending", item), False)
    again = queue.dequeue()
    assert (again.session.prepared_source_mapping, queue.attempt_of(item).attempt_no) == ({}, 2)


def test_a_canceled_item_is_not_given_back(database):
    worker, web = queue_of(database, "w"), queue_of(database, "web")
    (item,) = enqueue(web)
    worker.dequeue()
    web.cancel_queue_item(item)

    assert (worker.give_back(item), status_of(database, item)) == (False, "canceled")


def test_a_workers_last_save_of_an_item_that_it_suspended_does_not_undo_another_workers(database):
    first, second = queue_of(database, "w1"), queue_of(database, "w2")
    (item,) = enqueue(first)
    stale = first.dequeue()
    with lease.guarding(first.attempt_of(item)):
        first.suspend_queue_item(item)
        with lease.unguarded():
            second.resume_queue_item(item)
            resumed = second.dequeue()
            resumed.session.next()
            second.save_queue_item_session(item, resumed.session)
        first.save_queue_item_session(item, stale.session)

    assert second.get_queue_item(item).session.prepared_source_mapping != {}


def test_owners_hear_of_what_the_reaper_gave_back(database, monkeypatch):
    events = Events()
    queue = queue_of(database, "w", events)
    (item,) = enqueue(queue)
    monkeypatch.setattr("invokeai_saas.swaps.session_queue.LEASE_SECONDS", -1.0)
    queue.dequeue()

    assert queue.reap() == {item: "pending"}
    assert events.sent[-1] == ("pending", item)
