"""A worker's life: items run in its runner, and stop; it drains; its runner comes back; what is wrong is said before anything is loaded."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from saas.people import rows
from saas.rows import add_user
from saas.worker_fleet import Nursery, Server, await_status, cancel, enqueue, nursery, status_of


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Iterator[Nursery]:
    with nursery(tmp_path_factory.mktemp("fleet")) as started:
        yield started


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path


@pytest.fixture
def fleet(made, database) -> Iterator[Nursery]:
    add_user(database, "ann")
    with Server(database):
        yield made
    made.end_workers()


def test_an_item_is_claimed_run_and_settled_and_its_picture_is_its_owners(fleet, database, dsn, folder):
    worker = fleet.worker(dsn, folder)
    item = enqueue(database, "ann", "sleep 0.3; save")
    await_status(database, item, "completed", "failed", told=worker.log)
    pictures = rows(database, "SELECT user_id FROM images")

    assert pictures == [{"user_id": "ann"}]
    assert rows(database, "SELECT state, gpu_seconds >= 0.3 AS measured FROM job_attempts") == [{"state": "finished", "measured": True}]


def test_a_dead_runner_loses_its_item_at_once_and_is_back_in_seconds(fleet, database, dsn, folder):
    worker = fleet.worker(dsn, folder)
    item = enqueue(database, "ann", "sleep 2; save")
    await_status(database, item, "in_progress", told=worker.log)
    began = time.monotonic()
    os.kill(worker.runners()[0], signal.SIGKILL)
    await_status(database, item, "pending", seconds=10, told=worker.log)
    lost_after = time.monotonic() - began
    await_status(database, item, "completed", told=worker.log)
    took = time.monotonic() - began
    print(f"lost {lost_after:.2f} s and done {took:.2f} s after the kill")

    assert lost_after < 3
    assert [row["state"] for row in rows(database, "SELECT state FROM job_attempts ORDER BY attempt_no")] == ["lost", "finished"]
    assert len(rows(database, "SELECT 1 FROM images")) == 1


def test_a_cancel_stops_the_item_within_a_step(fleet, database, dsn, folder):
    worker = fleet.worker(dsn, folder)
    item = enqueue(database, "ann", "sleep 60; save")
    await_status(database, item, "in_progress", told=worker.log)
    time.sleep(0.5)
    began = time.monotonic()
    cancel(database, item)
    next_item = enqueue(database, "ann", "sleep 0")
    await_status(database, next_item, "completed", told=worker.log)
    took = time.monotonic() - began
    print(f"the next item was done {took:.2f} s after the cancel")

    assert took < 6
    assert rows(database, "SELECT 1 FROM images") == []


def test_a_worker_that_drains_finishes_its_item_takes_no_other_and_ends_with_0(fleet, database, dsn, folder):
    worker = fleet.worker(dsn, folder)
    first = enqueue(database, "ann", "sleep 2; save")
    await_status(database, first, "in_progress", told=worker.log)
    second = enqueue(database, "ann", "sleep 0")
    worker.signal(signal.SIGTERM)
    code = worker.wait(30)

    assert (code, status_of(database, first), status_of(database, second)) == (0, "completed", "pending")
    assert rows(database, "SELECT status FROM gpu_instances") == [{"status": "terminated"}]


def test_a_second_signal_gives_the_item_back_at_once(fleet, database, dsn, folder):
    worker = fleet.worker(dsn, folder)
    item = enqueue(database, "ann", "sleep 60")
    await_status(database, item, "in_progress", told=worker.log)
    time.sleep(0.3)
    began = time.monotonic()
    worker.signal(signal.SIGTERM)
    time.sleep(0.3)
    worker.signal(signal.SIGTERM)
    code = worker.wait(30)
    took = time.monotonic() - began

    assert (code, status_of(database, item), took < 15) == (0, "pending", True)
    assert rows(database, "SELECT state FROM job_attempts") == [{"state": "revoked"}]


def test_heartbeats_go_on_while_a_node_holds_pythons_lock(fleet, database, dsn, folder):
    worker = fleet.worker(dsn, folder, lease_seconds=2)
    item = enqueue(database, "ann", "hold 5; save")
    await_status(database, item, "completed", "failed", told=worker.log)

    assert rows(database, "SELECT state, gpu_seconds >= 5 AS measured FROM job_attempts") == [{"state": "finished", "measured": True}]


def test_a_canceled_item_that_does_not_stop_is_killed(fleet, database, dsn, folder):
    worker = fleet.worker(dsn, folder, stop_seconds=1)
    item = enqueue(database, "ann", "hold 60")
    await_status(database, item, "in_progress", told=worker.log)
    time.sleep(0.5)
    began = time.monotonic()
    cancel(database, item)
    next_item = enqueue(database, "ann", "sleep 0")
    await_status(database, next_item, "completed", told=worker.log)
    took = time.monotonic() - began

    assert took < 15
    assert status_of(database, item) == "canceled"
