"""A worker's life: items run in its runner, and stop; it drains; its runner comes back; what is wrong is said before anything is loaded."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from saas.books import drift, settled
from saas.patience import PATIENCE_SECONDS, until
from saas.people import join, rows
from saas.rows import add_user
from saas.worker_fleet import Nursery, Server, await_status, cancel, enqueue, status_of, subscribe
from small_disk import small_disk

from invokeai_saas.workers import registry
from invokeai_saas.workers.registry import WorkerEnds

pytestmark = pytest.mark.xdist_group("workers")


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path


@pytest.fixture
def fleet(worker_nursery, database) -> Iterator[Nursery]:
    add_user(database, "ann")
    with Server(database):
        yield worker_nursery
    worker_nursery.end_workers()


def test_an_item_is_claimed_run_and_settled_and_its_picture_is_its_owners(fleet, database, dsn, folder):
    worker = fleet.worker(dsn, folder)
    item = enqueue(database, "ann", "sleep 0.3; save")
    await_status(database, item, "completed", "failed", told=worker.story)
    pictures = rows(database, "SELECT user_id FROM images")

    assert pictures == [{"user_id": "ann"}]
    assert rows(database, "SELECT state, gpu_seconds >= 0.3 AS measured FROM job_attempts") == [{"state": "finished", "measured": True}]


def test_a_dead_runner_loses_its_item_at_once_and_is_back_in_seconds(fleet, database, dsn, folder, tmp_path):
    worker = fleet.worker(dsn, folder)
    item = enqueue(database, "ann", f"until {tmp_path / 'killed'}; save")
    await_status(database, item, "in_progress", told=worker.story)
    began = time.monotonic()
    os.kill(worker.runners()[0], signal.SIGKILL)
    until(lambda: rows(database, "SELECT 1 FROM job_attempts WHERE state = 'lost'"), "a lost attempt", told=worker.story)
    lost_after = time.monotonic() - began
    (tmp_path / "killed").touch()
    await_status(database, item, "completed", told=worker.story)
    took = time.monotonic() - began
    print(f"lost {lost_after:.2f} s and done {took:.2f} s after the kill")

    # Long before its lease is over.
    assert lost_after < 30
    assert [row["state"] for row in rows(database, "SELECT state FROM job_attempts ORDER BY attempt_no")] == ["lost", "finished"]
    assert len(rows(database, "SELECT 1 FROM images")) == 1


def test_a_cancel_stops_the_item_within_a_step(fleet, database, dsn, folder):
    worker = fleet.worker(dsn, folder)
    item = enqueue(database, "ann", "sleep 600; save")
    await_status(database, item, "in_progress", told=worker.story)
    time.sleep(0.5)
    began = time.monotonic()
    cancel(database, item)
    next_item = enqueue(database, "ann", "sleep 0")
    await_status(database, next_item, "completed", told=worker.story)
    took = time.monotonic() - began
    print(f"the next item was done {took:.2f} s after the cancel")

    assert rows(database, "SELECT 1 FROM images") == []


def test_a_worker_that_drains_finishes_its_item_takes_no_other_and_ends_with_0(fleet, database, dsn, folder, tmp_path):
    worker = fleet.worker(dsn, folder)
    first = enqueue(database, "ann", f"until {tmp_path / 'told'}; save")
    await_status(database, first, "in_progress", told=worker.story)
    second = enqueue(database, "ann", "sleep 0")
    worker.signal(signal.SIGTERM)
    worker.await_log("told to end")
    (tmp_path / "told").touch()
    code = worker.wait(PATIENCE_SECONDS)

    assert (code, status_of(database, first), status_of(database, second)) == (0, "completed", "pending")
    assert rows(database, "SELECT status FROM gpu_instances") == [{"status": "terminated"}]


def test_a_second_signal_gives_the_item_back_at_once(fleet, database, dsn, folder):
    worker = fleet.worker(dsn, folder)
    item = enqueue(database, "ann", "sleep 600")
    await_status(database, item, "in_progress", told=worker.story)
    time.sleep(0.3)
    worker.signal(signal.SIGTERM)
    time.sleep(0.3)
    worker.signal(signal.SIGTERM)
    code = worker.wait(PATIENCE_SECONDS)

    assert (code, status_of(database, item)) == (0, "pending")
    assert rows(database, "SELECT state FROM job_attempts") == [{"state": "revoked"}]


def test_a_worker_that_is_told_to_end_says_at_once_what_it_still_does_and_for_how_long(fleet, database, dsn, folder):
    worker = fleet.worker(dsn, folder, options={"name": "one"}, drain_seconds=300)
    item = enqueue(database, "ann", "sleep 60")
    await_status(database, item, "in_progress", told=worker.story)
    time.sleep(0.3)
    worker.signal(signal.SIGTERM)
    worker.await_log(f"told to end: it claims nothing more, and it finishes what it runs within 300 s: item {item} on one/cpu")
    until(lambda: instance(database)["reason"] is not None, "a reason", told=worker.story)
    told = instance(database)
    with pytest.raises(WorkerEnds, match="it is ending, and may finish what it runs for (300|2..) s more"):
        registry.ask_to_resume(database, "one/cpu")
    worker.signal(signal.SIGTERM)
    worker.await_log("it ends now: what it still runs goes back to the queue")
    code = worker.wait(PATIENCE_SECONDS)

    assert (told["status"], code, worker.log().count("told to end")) == ("draining", 0, 1)


def test_heartbeats_go_on_while_a_node_holds_pythons_lock(fleet, database, dsn, folder):
    worker = fleet.worker(dsn, folder, lease_seconds=4)
    item = enqueue(database, "ann", "hold 9; save")
    await_status(database, item, "completed", "failed", told=worker.story)

    assert rows(database, "SELECT state, gpu_seconds >= 9 AS measured FROM job_attempts") == [{"state": "finished", "measured": True}]


def test_a_canceled_item_that_does_not_stop_is_killed(fleet, database, dsn, folder):
    worker = fleet.worker(dsn, folder, stop_seconds=1)
    item = enqueue(database, "ann", "hold 600")
    await_status(database, item, "in_progress", told=worker.story)
    time.sleep(0.5)
    cancel(database, item)
    next_item = enqueue(database, "ann", "sleep 0")
    await_status(database, next_item, "completed", told=worker.story)

    assert status_of(database, item) == "canceled"


def instance(database) -> dict:
    found = rows(database, "SELECT status, reason, failures_in_a_row FROM gpu_instances ORDER BY started_at DESC")
    return found[0] if found else {"status": "not there"}


def test_three_items_that_fail_by_its_own_fault_put_it_into_quarantine_and_an_admin_takes_it_out(fleet, database, dsn, folder):
    worker, owners = fleet.worker(dsn, folder), ("ann", "bob", "cid")
    for owner in owners[1:]:
        add_user(database, owner)
    items = [enqueue(database, owner, "raise OSError [Errno 28] No space left on device: 'x'") for owner in owners]
    until(lambda: instance(database)["status"] == "quarantined", "a quarantine", told=worker.story)
    after = enqueue(database, "ann", "sleep 0")
    time.sleep(1.5)
    held_back = status_of(database, after)
    states = {status_of(database, item) for item in items}
    for item in items:
        cancel(database, item)
    reason = instance(database)["reason"]
    registry.ask_to_resume(database, rows(database, "SELECT name FROM gpu_instances")[0]["name"])
    await_status(database, after, "completed", told=worker.story)

    # Their attempts were lost, nobody was told of a failure: another worker takes them.
    assert (held_back, states) == ("pending", {"pending"})
    assert "the disk is full" in reason
    assert "the disk is full" in worker.log()
    until(lambda: instance(database)["status"] == "available", "the end of the quarantine", told=worker.story)


def test_one_graph_that_fails_again_and_again_by_a_workers_fault_is_no_reason_for_a_quarantine(fleet, database, dsn, folder):
    worker = fleet.worker(dsn, folder)
    item = enqueue(database, "ann", "raise OSError [Errno 28] No space left on device")
    await_status(database, item, "failed", told=worker.story)
    after = enqueue(database, "ann", "sleep 0")
    await_status(database, after, "completed", told=worker.story)

    assert len(rows(database, "SELECT 1 FROM job_attempts WHERE item_id = %s AND state = 'lost'", item)) == 3
    assert instance(database)["failures_in_a_row"] <= 1


def test_a_save_that_met_somebody_elses_is_tried_again(fleet, database, dsn, folder):
    worker = fleet.worker(dsn, folder)
    item = enqueue(database, "ann", "raise DeadlockDetected deadlock detected")
    until(lambda: rows(database, "SELECT 1 FROM job_attempts WHERE state = 'lost'"), "a lost attempt", told=worker.story)
    cancel(database, item)

    assert "the database was busy: deadlock detected" in worker.log()
    assert instance(database)["failures_in_a_row"] == 0


def test_a_graphs_own_error_fails_the_item_and_says_nothing_about_the_worker(fleet, database, dsn, folder):
    worker = fleet.worker(dsn, folder)
    items = [enqueue(database, "ann", "raise ValueError expected a picture") for _ in range(4)]
    for item in items:
        await_status(database, item, "failed", told=worker.story)

    assert instance(database)["failures_in_a_row"] == 0
    assert {row["state"] for row in rows(database, "SELECT state FROM job_attempts")} == {"finished"}


def test_a_broken_card_costs_the_process_and_the_item_is_run_in_a_new_one(fleet, database, dsn, folder):
    worker = fleet.worker(dsn, folder)
    item = enqueue(database, "ann", "raise AcceleratorError CUDA error: an illegal memory access was encountered")
    worker.await_log("is ready")
    first = worker.runners()
    until(lambda: worker.runners() not in ([], first), "another runner", told=worker.story)
    cancel(database, item)
    after = enqueue(database, "ann", "sleep 0")
    await_status(database, after, "completed", told=worker.story)

    assert "the GPU failed" in worker.log()


def test_a_full_disk_stops_claims_until_there_is_room(fleet, database, dsn, folder):
    mine = folder / "workers"
    mine.mkdir()
    with small_disk(mine, kib=700 << 10):
        (mine / "filler").write_bytes(bytes(300 << 20))
        worker = fleet.worker(dsn, folder)
        item = enqueue(database, "ann", "sleep 0")
        until(lambda: instance(database)["status"] == "quarantined", "a quarantine", told=worker.story)
        full = status_of(database, item)
        (mine / "filler").unlink()
        await_status(database, item, "completed", told=worker.story)
        worker.end()

    assert full == "pending"
    assert "expected 512 MB free" in worker.log()


def test_an_admins_drain_lets_it_finish_and_resume_goes_on(fleet, database, dsn, folder, tmp_path):
    worker = fleet.worker(dsn, folder)
    first = enqueue(database, "ann", f"until {tmp_path / 'asked'}")
    await_status(database, first, "in_progress", told=worker.story)
    name = rows(database, "SELECT name FROM gpu_instances")[0]["name"]
    registry.ask_to_drain(database, name)
    until(lambda: instance(database)["status"] == "draining", "a drain", told=worker.story)
    second = enqueue(database, "ann", "sleep 0")
    (tmp_path / "asked").touch()
    await_status(database, first, "completed", told=worker.story)
    time.sleep(1.5)
    waited = status_of(database, second)
    registry.ask_to_resume(database, name)
    await_status(database, second, "completed", told=worker.story)

    assert waited == "pending"


def test_the_second_worker_of_a_name_does_not_start(fleet, database, dsn, folder):
    first = fleet.worker(dsn, folder, options={"name": "one"})
    first.await_log("is ready")
    second = fleet.worker(dsn, folder, options={"name": "one"})
    code = second.wait(PATIENCE_SECONDS)

    assert code == 1
    assert "expected a name that no living worker has, got one/cpu" in second.log()
    assert instance(database)["status"] == "available"


def test_a_worker_whose_name_was_taken_over_gives_its_item_back_and_ends(fleet, database, dsn, folder):
    worker = fleet.worker(dsn, folder)
    item = enqueue(database, "ann", "sleep 60")
    await_status(database, item, "in_progress", told=worker.story)
    time.sleep(0.3)
    rows(database, "UPDATE gpu_instances SET incarnation = gen_random_uuid()")
    code = worker.wait(PATIENCE_SECONDS)

    assert (code, status_of(database, item)) == (1, "pending")


def test_with_its_template_gone_a_worker_makes_another_one(fleet, database, dsn, folder):
    worker = fleet.worker(dsn, folder)
    worker.await_log("is ready")
    os.kill(worker.processes()[1].pid, signal.SIGKILL)
    item = enqueue(database, "ann", "sleep 0.2")
    await_status(database, item, "completed", told=worker.story)

    assert worker.log().count("is ready") == 2


def test_nothing_of_a_killed_worker_lives_on(fleet, database, dsn, folder):
    worker = fleet.worker(dsn, folder)
    item = enqueue(database, "ann", "hold 30")
    await_status(database, item, "in_progress", told=worker.story)
    time.sleep(0.3)
    processes = worker.processes()
    worker.kill()
    _, alive = psutil.wait_procs(processes, timeout=60)

    assert len(processes) == 3
    assert alive == []


def test_an_item_that_works_past_its_price_is_stopped_and_charged_its_price(fleet, database, dsn, folder, accounts):
    person = join(accounts, "bob@example.com")
    subscribe(accounts, person.account.email)
    worker = fleet.worker(dsn, folder, metering="on", stop_seconds=1)
    polite = enqueue(database, person.user_id, "save; sleep 60", credits=1)
    deaf = enqueue(database, person.user_id, "save; hold 60", credits=1)
    for item in (polite, deaf):
        await_status(database, item, "failed", told=worker.story)
    after = enqueue(database, person.user_id, "sleep 0", credits=1)
    await_status(database, after, "completed", told=worker.story)
    errors = rows(database, "SELECT error_type FROM session_queue WHERE item_id = ANY(%s)", [polite, deaf])

    assert {row["error_type"] for row in errors} == {"RanOverPrice"}
    assert [settled(database, item)[:2] for item in (polite, deaf, after)] == [("captured", 1)] * 3
    assert drift(database) == []
