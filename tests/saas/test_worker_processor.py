"""The session processor in this process: InvokeAI's runner and graph engine on a leased queue, with stops, cancels and outages."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from invokeai.app.services.shared.graph import GraphExecutionState
from saas.patience import PATIENCE_SECONDS, until
from saas.rows import add_board, add_items, add_user, status_of
from saas.stepping import STEPS, Server

from invokeai_saas.db import tenancy
from invokeai_saas.db.sqlite_errors import Unavailable
from invokeai_saas.jobs import lease
from invokeai_saas.jobs.stopping import stop_work_of
from invokeai_saas.swaps import session_processor, session_queue
from invokeai_saas.swaps.session_queue import PostgresSessionQueue


@pytest.fixture
def start(open_database, monkeypatch) -> Iterator[Callable[..., Server]]:
    started: list[Server] = []
    STEPS.clear()
    STEPS.update(running=threading.Event(), go_on=threading.Event())
    monkeypatch.setattr(session_processor, "RETRY_SECONDS", 0.1)

    def starts(worker_id: str = "w1", *, run: bool = True, **settings: Any) -> Server:
        server = Server(open_database(pool_size=4), worker_id, **settings)
        started.append(server)
        if run:
            server.processor.start(server.invoker)
        return server

    yield starts
    STEPS["go_on"].set()
    for server in started:
        if hasattr(server.processor, "_stop_event"):
            server.processor.stop()


def running(server: Server, user_id: str = "ann") -> int:
    """An item of the user's that is in the middle of a step."""
    add_user(server.database, user_id)
    (item,) = server.enqueue(user_id)
    server.processor._poll_now()
    assert STEPS["running"].wait(PATIENCE_SECONDS)
    return item


def attempts(server: Server, item: int) -> list[tuple[int, str]]:
    with tenancy.as_system("look"), server.database.postgres() as cursor:
        rows = cursor.execute("SELECT attempt_no, state FROM job_attempts WHERE item_id = %s ORDER BY 1", (item,)).fetchall()
    return [(row["attempt_no"], row["state"]) for row in rows]


def test_an_item_runs_as_its_owner_and_completes(start):
    server = start()
    item = running(server)
    STEPS["go_on"].set()
    until(lambda: status_of(server.database, item) == "completed")

    assert STEPS["context"] == tenancy.Context(user_id="ann")
    assert attempts(server, item) == [(1, "finished")]
    assert server.announced(item) == ["in_progress", "completed"]


def test_a_cancel_in_another_process_stops_the_step_that_runs(start):
    server, web = start(), start("web", run=False)
    item = running(server)
    with tenancy.as_user("ann"):
        web.queue.cancel_queue_item(item)
    until(lambda: server.processor.get_status().is_processing is False)

    assert (status_of(server.database, item), attempts(server, item)) == ("canceled", [(1, "revoked")])
    assert STEPS["runs"] == 1


@pytest.mark.parametrize("late", ["a picture", "an error"])
def test_a_cancel_while_a_node_saves_is_no_error_that_anybody_is_told_of(start, caplog, late):
    server, web = start(), start("web", run=False)

    def at_the_end() -> None:
        with tenancy.as_user("ann"):
            web.queue.cancel_queue_item(item)
        if late == "an error":
            raise ValueError("the node's own")
        add_board(server.database, "ann", "late")

    STEPS["at_the_end"] = at_the_end
    item = running(server)
    with caplog.at_level(logging.INFO):
        STEPS["go_on"].set()
        until(lambda: server.processor.get_status().is_processing is False)

    assert (status_of(server.database, item), attempts(server, item)) == ("canceled", [(1, "revoked")])
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert "was taken away; what it made is discarded" in caplog.text
    assert "invocation_error" not in [event.__event_name__ for event in server.events.sent]


def test_without_the_looks_at_its_rows_the_step_runs_on(start, monkeypatch):
    # Each of them sees that the attempt was taken away.
    monkeypatch.setattr(lease, "heartbeat", lambda *_, **__: None)
    monkeypatch.setattr(lease, "demand_wanted", lambda *_: None)
    server, web = start(), start("web", run=False)
    item = running(server)
    with tenancy.as_user("ann"):
        web.queue.cancel_queue_item(item)
    time.sleep(1.0)

    assert server.processor.get_status().is_processing is True


def test_closing_an_account_stops_its_running_item_and_the_next_user_has_their_turn(start):
    server, web = start(), start("web", run=False)
    item = running(server)
    add_user(server.database, "bob")
    (bobs,) = server.enqueue("bob")
    with tenancy.as_user("admin"):
        stopped = stop_work_of(web.queue, "ann")
    until(lambda: status_of(server.database, bobs) == "in_progress")

    assert (stopped, status_of(server.database, item)) == (1, "canceled")


def test_a_stop_gives_the_running_item_back_as_it_was(start):
    server = start()
    item = running(server)
    began = time.monotonic()
    server.processor.stop()
    took = time.monotonic() - began
    with tenancy.as_user("ann"):
        given = server.queue.get_queue_item(item)

    assert (given.status, given.session.results, given.session.prepared_source_mapping) == ("pending", {}, {})
    assert (attempts(server, item), took < 30.0) == ([(1, "revoked")], True)
    assert server.announced(item) == ["in_progress", "pending"]
    STEPS["go_on"].set()
    second = start("w2")
    until(lambda: status_of(second.database, item) == "completed")
    assert attempts(second, item) == [(1, "revoked"), (2, "finished")]


def test_a_lost_lease_stops_the_step_and_discards_its_outputs(start, monkeypatch):
    monkeypatch.setattr(session_queue, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(lease, "heartbeat", lambda *_, **__: None)
    monkeypatch.setattr(lease, "demand_wanted", lambda *_: None)
    server, other = start(), start("w2", run=False)
    STEPS["at_the_end"] = lambda: add_board(server.database, "ann", "late")
    item = running(server)
    until(lambda: other.queue.reap().get(item) == "pending")
    # It waits a little after a loss.
    until(lambda: other.queue.dequeue() is not None)
    STEPS["go_on"].set()
    until(lambda: server.processor.get_status().is_processing is False)
    with tenancy.as_user("ann"), server.database.postgres() as cursor:
        boards = cursor.execute("SELECT board_name FROM boards").fetchall()

    assert (boards, status_of(server.database, item)) == ([], "in_progress")
    assert attempts(server, item) == [(1, "lost"), (2, "running")]


def test_heartbeats_keep_a_long_step_alive(start, monkeypatch):
    monkeypatch.setattr(session_queue, "LEASE_SECONDS", 4.0)
    server, other = start(), start("w2", run=False)
    item = running(server)
    reaped = {}
    for _ in range(60):
        reaped |= other.queue.reap()
        time.sleep(0.1)
    STEPS["go_on"].set()
    until(lambda: status_of(server.database, item) == "completed")

    assert (reaped, attempts(server, item)) == ({}, [(1, "finished")])


def test_without_heartbeats_the_item_is_given_away(start, monkeypatch):
    monkeypatch.setattr(session_queue, "LEASE_SECONDS", 1.5)
    monkeypatch.setattr(lease, "heartbeat", lambda *_, **__: None)
    server, other = start(), start("w2", run=False)
    item = running(server)

    until(lambda: other.queue.reap().get(item) == "pending")


def test_a_database_that_is_away_for_a_while_is_waited_for_and_told_once(start, monkeypatch, caplog):
    server = start()
    away = threading.Event()
    claim = lease.claim

    def claim_or_fail(*args: Any, **kwargs: Any) -> Any:
        if away.is_set():
            raise Unavailable("away")
        return claim(*args, **kwargs)

    monkeypatch.setattr(lease, "claim", claim_or_fail)
    away.set()
    server.processor._poll_now()
    until(lambda: "does not answer" in caplog.text)
    time.sleep(0.5)
    with caplog.at_level(logging.INFO):
        away.clear()
        item = running(server)
    STEPS["go_on"].set()
    until(lambda: status_of(server.database, item) == "completed")

    assert caplog.text.count("does not answer") == 1
    assert caplog.text.count("answers again") == 1


def test_an_item_that_was_done_when_the_database_went_away_is_not_done_again(start, monkeypatch):
    server = start()
    item = running(server)
    failures = iter([Unavailable("away")] * 3)
    save = PostgresSessionQueue.save_queue_item_session

    def save_or_fail(self: Any, *args: Any) -> None:
        for failure in failures:
            raise failure
        save(self, *args)

    monkeypatch.setattr(PostgresSessionQueue, "save_queue_item_session", save_or_fail)
    STEPS["go_on"].set()
    until(lambda: status_of(server.database, item) == "completed")

    assert (STEPS["runs"], attempts(server, item)) == (1, [(1, "finished")])


def test_a_graph_that_never_ends_fails_and_is_not_run_again_and_again(start, monkeypatch):
    monkeypatch.setattr(GraphExecutionState, "next", lambda self: None)
    server = start()
    add_user(server.database, "ann")
    (item,) = server.enqueue("ann")
    server.processor._poll_now()
    until(lambda: status_of(server.database, item) == "failed")
    with tenancy.as_user("ann"):
        failed = server.queue.get_queue_item(item)

    assert (failed.error_type, attempts(server, item)) == ("RuntimeError", [(1, "finished")])
    assert failed.error_message == "expected a graph that comes to its end, got one with nodes that cannot run"


def test_an_item_of_nobodys_never_runs(start):
    server = start()
    (item,) = add_items(server.database, "system", 1)
    server.processor._poll_now()
    until(lambda: status_of(server.database, item) == "failed")

    assert "runs" not in STEPS
    assert server.processor._workers[0].thread.is_alive()


def test_a_clear_of_one_users_queue_stops_nobody_elses_step(start):
    server = start()
    item = running(server)
    add_user(server.database, "bob")
    with tenancy.as_user("bob"):
        server.queue.clear("default", "bob")
    server.processor._look(lambda each: True)
    time.sleep(0.5)
    STEPS["go_on"].set()
    until(lambda: status_of(server.database, item) == "completed")

    assert attempts(server, item) == [(1, "finished")]
