"""Real worker processes, killed, stopped and resumed, canceled from elsewhere: nothing lost, done twice or written late."""

import signal
import time
from collections.abc import Iterator

import pytest
from saas.patience import until
from saas.queues import queue_of
from saas.rows import AT_ONCE, add_items, status_of
from saas.workers import Worker

from invokeai_saas.db import tenancy
from invokeai_saas.jobs.lease import claim
from invokeai_saas.jobs.reaper import reap
from invokeai_saas.jobs.stopping import stop_work_of

LONG = 600
# Two seconds until the worker looks, a step, and a busy machine; the whole item takes a minute.
STOP_WITHIN_SECONDS = 20.0


@pytest.fixture
def start(dsn) -> Iterator:
    started: list[Worker] = []

    def starts(name: str, *, lease_seconds: float = 60.0, steps: int = LONG) -> Worker:
        started.append(Worker(dsn, name, lease_seconds=lease_seconds, steps=steps))
        return started[-1]

    yield starts
    for worker in started:
        if worker.process.poll() is None:
            worker.signal(signal.SIGKILL)
            worker.process.communicate()


def boards_of(database, owner: str) -> list[str]:
    with tenancy.as_user(owner), database.postgres() as cursor:
        return [row["board_name"] for row in cursor.execute("SELECT board_name FROM boards ORDER BY created_at").fetchall()]


def reap_until_it_is_back(database, item: int) -> None:
    def is_back() -> bool:
        reap(database, patience=AT_ONCE)
        return status_of(database, item) == "pending"

    until(is_back, "the item to be back", every=0.1)


def test_a_killed_workers_item_comes_back_and_is_done_as_attempt_two(database, start):
    item = add_items(database, "ann", 1)[0]
    killed = start("first", lease_seconds=4.0)
    killed.says("saved")
    killed.signal(signal.SIGKILL)
    at_once = reap(database, patience=AT_ONCE)
    reap_until_it_is_back(database, item)
    second = start("second", steps=2)

    assert at_once == {}
    assert second.says("claimed") == ["claimed", str(item), "2"]
    assert second.rest()[-1] == "completed"
    assert status_of(database, item) == "completed"


def test_a_worker_stopped_past_its_lease_writes_nothing_when_it_wakes_up(database, start):
    item = add_items(database, "ann", 1)[0]
    late = start("late", lease_seconds=2.0)
    late.says("saved")
    late.signal(signal.SIGSTOP)
    reap_until_it_is_back(database, item)
    second = start("second", steps=2)
    done = second.rest()[-1]
    before = boards_of(database, "ann")
    late.signal(signal.SIGCONT)
    told = late.rest()

    assert done == "completed"
    assert ("refused late-late" in told, told[-1]) == (True, "discarded")
    assert boards_of(database, "ann") == before
    assert status_of(database, item) == "completed"


def test_heartbeats_keep_an_item_that_takes_longer_than_its_lease(database, start):
    item = add_items(database, "ann", 1)[0]
    worker = start("w", lease_seconds=4.0, steps=100)
    worker.says("claimed")
    reaped = {}
    while worker.process.poll() is None:
        reaped |= reap(database, patience=AT_ONCE)
        time.sleep(0.1)
    with tenancy.as_user("ann"), database.postgres() as cursor:
        attempts = cursor.execute("SELECT attempt_no, state, gpu_seconds > 4 AS measured FROM job_attempts").fetchall()

    assert (reaped, worker.rest()[-1], status_of(database, item)) == ({}, "completed", "completed")
    assert attempts == [{"attempt_no": 1, "state": "finished", "measured": True}]


def test_a_cancel_in_another_process_stops_the_worker_within_a_step(database, start):
    item = add_items(database, "ann", 1)[0]
    worker = start("w")
    worker.says("saved")
    began = time.monotonic()
    with tenancy.as_user("ann"):
        queue_of(database, "web").cancel_by_batch_ids("default", ["ann-0-1"], "ann")
    worker.says("lost")
    took = time.monotonic() - began
    print(f"stopped {took:.1f} s after the cancel")

    assert took < STOP_WITHIN_SECONDS
    assert worker.rest() == ["refused w-late", "discarded"]
    assert status_of(database, item) == "canceled"


def test_a_closed_accounts_work_stops_in_another_process_and_nobody_elses(database, start):
    anns, bobs = add_items(database, "ann", 3), add_items(database, "bob", 1)
    workers = [start(f"w{number}") for number in range(2)]
    for worker in workers:
        worker.says("saved")
    began = time.monotonic()
    with tenancy.as_user("admin"):
        stopped = stop_work_of(queue_of_system(database), "ann")
    of_ann = next(worker for worker in workers if item_of(database, worker) in anns)
    of_ann.says("lost")
    took = time.monotonic() - began
    print(f"stopped {took:.1f} s after the account was closed")

    assert (stopped, took < STOP_WITHIN_SECONDS) == (3, True)
    assert [status_of(database, item) for item in anns] == ["canceled"] * 3
    assert status_of(database, bobs[0]) == "in_progress"
    assert stop_work_of(queue_of_system(database), "ann") == 0


def test_a_restarted_web_process_leaves_running_items_of_workers_alone(database, start):
    item = add_items(database, "ann", 1)[0]
    worker = start("w", steps=30)
    worker.says("saved")
    for _ in range(3):
        queue_of_system(database)

    assert status_of(database, item) == "in_progress"
    assert worker.rest()[-1] == "completed"
    assert claim(database, worker_id="other", lease_seconds=60) is None


def queue_of_system(database):
    with tenancy.as_system("a start"):
        return queue_of(database, "web")


def item_of(database, worker: Worker) -> int:
    name = worker.process.args[3]
    with tenancy.as_system("look"), database.postgres() as cursor:
        row = cursor.execute("SELECT item_id FROM job_attempts WHERE worker_id = %s", (name,)).fetchone()
        return int(row["item_id"])
