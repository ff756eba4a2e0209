"""Whatever makes an item pending for the first time wakes workers for it: a batch, a retry, a called workflow; a refused one nobody."""

import logging
from types import SimpleNamespace

import pytest
from saas import plan_graphs as graphs
from saas.people import rows
from saas.rows import add_user

from invokeai_saas.db import tenancy
from invokeai_saas.jobs.queue_rows import QueueFull
from invokeai_saas.swaps.session_queue import PostgresSessionQueue
from invokeai_saas.wakeups.procrastinate import ProcrastinateWakeups

# Which items somebody was told of, and where.
TOKENS = "SELECT queue_name AS queue, (args ->> 'item_id')::bigint AS item FROM procrastinate_jobs ORDER BY id"
FORGET = "DELETE FROM procrastinate_jobs"
ROUTE = "UPDATE session_queue SET tiers = '{dedicated}' WHERE item_id = ANY(%s)"
ADD = {"id": "add", "type": "add"}


class Silent:
    """InvokeAI's events, which nobody listens to here."""

    def __getattr__(self, name: str):
        return lambda *args, **kwargs: None


@pytest.fixture
def queue(database) -> PostgresSessionQueue:
    add_user(database, "ann")
    made = PostgresSessionQueue(database, wakeups=ProcrastinateWakeups(database))
    configuration = SimpleNamespace(max_queue_size=20, max_queue_history=None, multiuser=True, session_queue_mode="round_robin")
    with tenancy.as_system("a server starts"):
        made.start(SimpleNamespace(services=SimpleNamespace(configuration=configuration, events=Silent(), logger=logging.getLogger())))
    return made


def enqueue(queue: PostgresSessionQueue, runs: int) -> list[int]:
    with tenancy.as_user("ann"):
        made = queue.enqueue(queue_id="default", batch=graphs.batch(graphs.graph(ADD), runs=runs), prepend=False, user_id="ann")
    return sorted(made.item_ids)


def told(database) -> set[tuple[str, int]]:
    found = {(row["queue"].removeprefix("invokeai-gpu-"), row["item"]) for row in rows(database, TOKENS)}
    rows(database, FORGET)
    return found


def test_a_batch_wakes_every_tier_for_each_of_its_items(queue, database):
    items = enqueue(queue, 3)

    assert told(database) == {(tier, item) for tier in ("basic", "highperf", "dedicated") for item in items}


def test_a_batch_that_is_refused_wakes_nobody(queue, database):
    with pytest.raises(QueueFull):
        enqueue(queue, 21)

    assert told(database) == set()


def test_a_retry_wakes_workers_for_the_new_items(queue, database):
    items = enqueue(queue, 2)
    told(database)
    with tenancy.as_user("ann"):
        queue.cancel_by_batch_ids("default", [queue.get_queue_item(items[0]).batch_id], "ann")
        queue.retry_items_by_id("default", items)
    again = {row["item_id"] for row in rows(database, "SELECT item_id FROM session_queue WHERE status = 'pending'")}

    assert len(again) == 2
    assert {item for _, item in told(database)} == again


def test_a_called_workflow_wakes_the_tiers_of_its_caller(queue, database):
    caller = enqueue(queue, 1)
    told(database)
    rows(database, ROUTE, caller)
    with tenancy.as_user("ann"):
        parent = queue.get_queue_item(caller[0])
        call = SimpleNamespace(id="call", depth=1)
        waiting = SimpleNamespace(waiting_workflow_call_execution=call)
        named = ("queue_id", "item_id", "root_item_id", "batch_id", "priority", "origin", "destination", "user_id", "session_id")
        asking = SimpleNamespace(session=waiting, **{name: getattr(parent, name) for name in named})
        child = queue.enqueue_workflow_call_child(asking, parent.session.model_copy(update={"id": "child"}))

    assert told(database) == {("dedicated", child.item_id)}
