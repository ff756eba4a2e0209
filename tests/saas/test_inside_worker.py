"""The worker inside of a server stands in the registry like any other, and drains like any other."""

import os
import threading
import time
from collections.abc import Iterator

import pytest
from saas.patience import PATIENCE_SECONDS, until
from saas.people import rows
from saas.rows import add_user, status_of
from saas.stepping import STEPS, Server

from invokeai_saas.swaps.session_processor import IdleSessionProcessor
from invokeai_saas.workers import registry
from invokeai_saas.workers.inside import InsideWorker


@pytest.fixture
def server(open_database) -> Iterator[Server]:
    STEPS.clear()
    STEPS.update(running=threading.Event(), go_on=threading.Event())
    made = Server(open_database(pool_size=4), "w1")
    made.processor.start(made.invoker)
    yield made
    STEPS["go_on"].set()
    made.processor.stop()


@pytest.fixture
def inside(server) -> Iterator[InsideWorker]:
    worker = InsideWorker(server.database, lambda: server.processor, beat_seconds=0.1)
    worker.start()
    yield worker
    worker.stop()


def row(server: Server) -> registry.Registered:
    (found,) = registry.everybody(server.database)
    return found


def test_it_is_there_when_the_server_is(server, inside):
    found = row(server)

    assert found.name.endswith(f":{os.getpid()}/cpu")
    assert (found.alive, found.tiers, found.device) == (True, list(registry.TIERS), "cpu")
    until(lambda: row(server).status == "available")


def test_it_says_what_it_runs(server, inside):
    add_user(server.database, "ann")
    (item,) = server.enqueue("ann")
    server.processor._poll_now()
    until(lambda: row(server).status == "busy")

    assert (row(server).current_item_id, row(server).current_user_id) == (item, "ann")
    STEPS["go_on"].set()
    until(lambda: row(server).status == "available")
    assert row(server).current_item_id is None


def test_it_drains_and_resumes(server, inside):
    add_user(server.database, "ann")
    name = row(server).name
    registry.ask_to_drain(server.database, name)
    until(lambda: row(server).status == "draining")
    # A claim that had begun before is over.
    time.sleep(1.2)
    (item,) = server.enqueue("ann")
    server.processor._poll_now()
    drained = STEPS["running"].wait(2)
    registry.ask_to_resume(server.database, name)

    assert (drained, status_of(server.database, item)) == (False, "pending")
    assert STEPS["running"].wait(PATIENCE_SECONDS)


def test_its_name_is_free_when_the_server_ends(server, inside):
    inside.stop()

    assert row(server).status == "terminated"


def test_a_row_that_was_forgotten_comes_back(server, inside):
    rows(server.database, "DELETE FROM gpu_instances")

    until(lambda: registry.live(server.database))


def test_an_outage_is_waited_for(server, open_database, caplog):
    away = open_database()
    worker = InsideWorker(away, lambda: server.processor, beat_seconds=0.05)
    worker.start()
    until(lambda: registry.live(server.database))
    away.close()
    time.sleep(0.5)
    worker.stop()

    assert [record.levelname for record in caplog.records if "will try again" in record.getMessage()] == ["WARNING"]


def test_a_server_without_a_worker_registers_none(server, database):
    idle = IdleSessionProcessor()
    worker = InsideWorker(database, lambda: idle, beat_seconds=0.05)
    worker.start()
    worker.stop()

    assert registry.everybody(database) == []
