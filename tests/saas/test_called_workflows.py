"""Called workflows stay with the worker that has their tensors; when it is gone they start over, and what it still does counts not."""

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from invokeai.app.services.workflow_records.workflow_records_common import WorkflowCategory
from saas import plan_graphs as graphs
from saas.chains import attempts_of, item_of, worker
from saas.patience import PATIENCE_SECONDS, until
from saas.people import rows
from saas.rows import AT_ONCE, add_user, status_of
from saas.stepping import STEPS, Server

from invokeai_saas.db import tenancy
from invokeai_saas.jobs import lease, lost
from invokeai_saas.jobs.lease import EVERYTHING, Capability
from invokeai_saas.jobs.reaper import reap
from invokeai_saas.swaps import session_processor
from invokeai_saas.workers import registry
from invokeai_saas.workers.inside import InsideWorker

CALLED = graphs.workflow({"id": "steps", "type": "saas_test_steps"})
# What comes after the call needs its answer, so that the caller goes on when it is there.
CALLER = graphs.graph(
    {"id": "call", "type": "call_saved_workflow", "workflow_id": "w"},
    {"id": "after", "type": "if", "condition": True},
    edges=("call.values > after.true_input",),
)


@pytest.fixture
def start(open_database, monkeypatch) -> Iterator[Callable[..., Server]]:
    started: list[Server] = []
    STEPS.clear()
    STEPS.update(running=threading.Event(), go_on=threading.Event())
    monkeypatch.setattr(session_processor, "RETRY_SECONDS", 0.1)

    def starts(name: str, *, lives: bool = True, run: bool = True) -> Server:
        server = Server(open_database(pool_size=4), name)
        record = SimpleNamespace(
            workflow=SimpleNamespace(model_dump=lambda: CALLED, meta=SimpleNamespace(category=WorkflowCategory.User)),
            user_id="ann",
            is_public=False,
        )
        server.invoker.services.workflow_records = SimpleNamespace(get=lambda _: record)
        if lives:
            server.queue.can = Capability(incarnation=worker(server.database))
        server.processor._polling_interval = 0.05
        started.append(server)
        if run:
            server.processor.start(server.invoker)
        return server

    yield starts
    STEPS["go_on"].set()
    for server in started:
        if hasattr(server.processor, "_stop_event"):
            server.processor.stop()


def enqueue(server: Server) -> int:
    add_user(server.database, "ann")
    with tenancy.as_user("ann"):
        return server.queue.enqueue(queue_id="default", batch=graphs.batch(CALLER), prepend=False, user_id="ann").item_ids[0]


def calls_of(server: Server, root: int) -> list[int]:
    return [row["item_id"] for row in rows(server.database, "SELECT item_id FROM session_queue WHERE root_item_id = %s ORDER BY 1", root)]


def workers_of(server: Server) -> list[str]:
    return [row["worker_id"] for row in rows(server.database, "SELECT worker_id FROM job_attempts ORDER BY started_at")]


def begin_call(server: Server) -> tuple[int, int]:
    """A root whose called workflow is in the middle of its step."""
    root = enqueue(server)
    server.processor._poll_now()
    assert STEPS["running"].wait(PATIENCE_SECONDS)
    [child] = calls_of(server, root)
    return root, child


def test_a_chain_runs_where_it_began(start):
    first = start("w1")
    root, child = begin_call(first)
    start("w2")
    pinned = item_of(first.database, child)["pinned_to"]
    STEPS["go_on"].set()
    until(lambda: status_of(first.database, root) == "completed")

    assert (pinned, item_of(first.database, root)["pinned_to"]) == (first.queue.can.incarnation,) * 2
    assert workers_of(first) == ["w1"] * 3


def test_without_a_life_to_be_pinned_to_any_worker_goes_on(start):
    first = start("w1", lives=False)
    assert first.queue.can is EVERYTHING
    root, child = begin_call(first)
    STEPS["go_on"].set()
    until(lambda: status_of(first.database, root) == "completed")

    assert (item_of(first.database, root)["pinned_to"], item_of(first.database, child)["pinned_to"]) == (None, None)


def test_a_called_workflow_may_run_where_its_caller_may(start):
    first = start("w1", run=False)
    root = enqueue(first)
    rows(first.database, "UPDATE session_queue SET tiers = '{basic}', needs_memory_mb = 5, needs_models = '{a}'")
    first.processor.start(first.invoker)
    assert STEPS["running"].wait(PATIENCE_SECONDS)
    [child] = calls_of(first, root)
    wanted = [(row["tiers"], row["needs_memory_mb"], row["needs_models"]) for row in (item_of(first.database, i) for i in (root, child))]

    assert wanted == [(["basic"], 5, ["a"])] * 2


def lose_call(first: Server) -> tuple[int, int]:
    """The worker of a chain is given up while it works; it finds out by itself. -> root, child"""
    root, child = begin_call(first)
    first.processor.drained.add("cpu")
    attempt = first.queue.attempt_of(child)
    assert lost.lose(first.database, attempt, why="a test gave it up", patience=AT_ONCE) == {root: "pending"}
    return root, child


def test_a_worker_that_lost_a_call_neither_cancels_nor_overwrites_the_chain(start):
    first = start("w1")
    root, child = lose_call(first)
    second = start("w2")
    until(lambda: len(calls_of(second, root)) == 2 and status_of(second.database, calls_of(second, root)[1]) == "in_progress")
    until(lambda: first.queue.attempt_of(child) is None)
    STEPS["go_on"].set()
    until(lambda: status_of(second.database, root) not in ("waiting", "pending", "in_progress"))
    again = calls_of(second, root)[1]

    assert [status_of(second.database, item) for item in (root, child, again)] == ["completed", "canceled", "completed"]
    assert attempts_of(second.database, root) == ["lost", "finished", "finished"]
    assert workers_of(second) == ["w1", "w1", "w2", "w2", "w2"]


def test_without_the_look_at_its_attempt_it_cancels_what_is_somebody_elses(start, monkeypatch):
    monkeypatch.setattr(lease, "demand_count", lambda database: None)
    first = start("w1")
    root, _ = lose_call(first)

    until(lambda: status_of(first.database, root) == "canceled")


def test_a_saved_session_of_a_call_that_was_taken_away_is_refused(start):
    first = start("w1", run=False)
    root = enqueue(first)
    with tenancy.as_system("a worker in a test"):
        item = first.queue.dequeue()
        attempt = first.queue.attempt_of(root)
        lost.lose(first.database, attempt, why="a test gave it up", patience=AT_ONCE)
        other = enqueue_another(first)
        before = item_of(first.database, other)["session"]
        with lease.guarding(attempt), pytest.raises(Exception, match="no longer runs"):
            first.queue.save_queue_item_session(other, item.session)

    assert item_of(first.database, other)["session"] == before


def enqueue_another(server: Server) -> int:
    with tenancy.as_user("ann"):
        return server.queue.enqueue(queue_id="default", batch=graphs.batch(CALLER), prepend=False, user_id="ann").item_ids[0]


def test_a_worker_that_stops_hands_its_chain_back_whole(start):
    first = start("w1")
    root, child = begin_call(first)
    first.processor.stop()

    assert [status_of(first.database, item) for item in (root, child)] == ["pending", "canceled"]
    assert attempts_of(first.database, root) == ["revoked"]
    second = start("w2")
    STEPS["go_on"].set()
    until(lambda: status_of(second.database, root) == "completed")


def test_owners_hear_of_a_chain_that_started_over(start):
    first = start("w1")
    root, child = lose_call(first)
    web = start("web", lives=False, run=False)
    reap(web.database)
    web.queue.tell()

    assert (web.announced(root), web.announced(child)) == (["pending"], ["canceled"])
    assert rows(web.database, "SELECT count(*) AS n FROM session_queue WHERE untold") == [{"n": 0}]


def test_the_worker_inside_of_a_server_pins_once_it_is_registered(start):
    server = start("w1", lives=False)
    inside = InsideWorker(server.database, lambda: server.processor, beat_seconds=0.1)
    inside.start()
    try:
        until(lambda: server.queue.can.incarnation is not None)

        assert {each.incarnation for each in registry.live(server.database)} == {server.queue.can.incarnation}
    finally:
        inside.stop()
