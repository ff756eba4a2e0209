"""Workers killed at any moment, stopped past their lease, cut off from the database: each item ends once, with one bill and one output.

SAAS_SOAK_WORKER_KILLS and SAAS_SOAK_WORKER_STOPS set how often; the seed is printed.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from saas.books import drift, settled
from saas.cutting_proxy import CuttingProxy
from saas.patience import PATIENCE_SECONDS, until
from saas.people import rows
from saas.stored_rows import demand_whole
from saas.stores import disk_store
from saas.worker_fleet import Nursery, Server, Worker, await_status, enqueue, subscribe

from invokeai_saas.storage.files import Files

KILLS = int(os.environ.get("SAAS_SOAK_WORKER_KILLS", "20"))
STOPS = int(os.environ.get("SAAS_SOAK_WORKER_STOPS", "20"))
pytestmark = [pytest.mark.xdist_group("workers"), pytest.mark.timeout(600 + 20 * KILLS + 60 * STOPS)]
# Claim, load, denoise, upload, settle: about a second.
JOB = "load 0.2; sleep 0.4; save; sleep 0.1"
LEASE = 2.0
# With these statements a worker that was given up settles, and commits, whatever it likes.
NO_FENCE = {
    "COMMIT_FENCE": "SELECT 1 WHERE %(item_id)s > 0 AND %(attempt_no)s > 0",
    "FENCE": "SELECT 1 WHERE %(item_id)s > 0 AND %(attempt_no)s > 0",
    "FINISH": "UPDATE job_attempts SET gpu_seconds = GREATEST(gpu_seconds, %(gpu_seconds)s) WHERE item_id = %(item_id)s AND"
    " attempt_no = %(attempt_no)s",
}


class Fleet:
    """Workers of one test on one database and one folder of files, and what must be true of it all at the end."""

    def __init__(self, made: Nursery, database, dsn: str, folder: Path, owner: str) -> None:
        self.made, self.database, self.dsn, self.folder, self.owner = made, database, dsn, folder, owner
        self.files = Files(database, disk_store(folder))
        self.items: list[int] = []

    def worker(self, dsn: str | None = None, *, lease_seconds: float = LEASE, **how) -> Worker:
        return self.made.worker(dsn or self.dsn, self.folder, metering="on", lease_seconds=lease_seconds, **how)

    def enqueue(self, script: str = JOB, credits: int = 20) -> int:
        self.items.append(enqueue(self.database, self.owner, script, credits=credits))
        return self.items[-1]

    def statuses(self) -> Counter[str]:
        found = rows(self.database, "SELECT status FROM session_queue WHERE item_id = ANY(%s)", self.items)
        return Counter(row["status"] for row in found)

    def await_end(self, *, seconds: float = 120.0, workers: tuple[Worker, ...] = ()) -> Counter[str]:
        """Every item is settled."""
        told = "\n".join
        until(
            lambda: set(self.statuses()) <= {"completed", "failed", "canceled"},
            "every item to end",
            seconds=seconds,
            told=lambda: f"{self.statuses()}\n" + told(worker.log()[-3000:] for worker in workers),
        )
        return self.statuses()

    def demand_right(self) -> None:
        """One end, one bill and one picture of each completed item, none of any other; no hold, no file and no sum is left over."""
        self.made.end_workers()
        self.files.recover(older_than_seconds=0)
        for item in self.items:
            status, pictures, bills = self.facts(item)
            assert (pictures, bills <= 1, status) == (1 if status == "completed" else 0, True, status), item
            state, captured, _ = settled(self.database, item)
            assert (state == "held", captured > 0) == (False, status == "completed"), (item, state, captured)
        assert drift(self.database) == []
        demand_whole(self.files, self.database)

    def facts(self, item: int) -> tuple[str, int, int]:
        """Status, pictures, usage records with something to pay."""
        row = rows(
            self.database,
            """SELECT status, (SELECT count(*) FROM images WHERE images.session_id = item.session_id) AS pictures,
                (SELECT count(*) FROM usage_records WHERE job_id = item.item_id::text) AS bills
            FROM session_queue AS item WHERE item_id = %s""",
            item,
        )[0]
        return row["status"], row["pictures"], row["bills"]


@pytest.fixture
def fleet(worker_nursery, database, dsn, accounts, ann, tmp_path) -> Iterator[Fleet]:
    subscribe(accounts, ann.account.email)
    ready = Fleet(worker_nursery, database, dsn, tmp_path, ann.user_id)
    with Server(database, ready.files):
        yield ready
    worker_nursery.end_workers()


def random_victim(worker: Worker, dice: random.Random) -> int | None:
    """The supervisor, its template or a runner; runners most often."""
    with suppress(psutil.NoSuchProcess, IndexError):
        processes = worker.processes()
        runners = worker.runners()
        return dice.choice([processes[0].pid, processes[1].pid, *(runners * 4)])
    return None


def test_killed_at_random_every_item_ends_once_with_one_bill_and_one_picture(fleet):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    # So many kills would look like workers that cannot work.
    workers = [fleet.worker(options={"name": name}, quarantine_after=1000) for name in ("a", "b")]
    for worker in workers:
        worker.await_log("is ready")
    killed: Counter[str] = Counter()
    while killed.total() < KILLS:
        while fleet.statuses()["pending"] < 4:
            fleet.enqueue()
        time.sleep(dice.uniform(0.1, 2.0))
        which = dice.randrange(len(workers))
        victim = random_victim(workers[which], dice)
        if victim is None:
            continue
        kind = "supervisor" if victim == workers[which].pid else "runner" if victim in workers[which].runners() else "template"
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            killed[kind] += 1
        if kind == "supervisor":
            workers[which].wait(PATIENCE_SECONDS)
            workers[which] = fleet.worker(options={"name": f"again-{killed.total()}"}, quarantine_after=1000)
    ended = fleet.await_end(workers=tuple(workers))
    states = Counter(row["state"] for row in rows(fleet.database, "SELECT state FROM job_attempts"))
    print(f"killed {dict(killed)}; items {dict(ended)}; attempts {dict(states)}")

    assert states["running"] == 0
    assert ended["completed"] > 0
    fleet.demand_right()


@pytest.mark.parametrize("which", ["all of it", "the supervisor"])
def test_stopped_past_its_lease_and_resumed_it_settles_nothing(fleet, which):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    *late, second = workers = [fleet.worker(options={"name": name}) for name in ("late-1", "late-2", "second")]
    for worker in workers:
        worker.await_log("is ready")
    # Two stops in each round, and as many of each kind.
    for _ in range((STOPS + 3) // 4):
        for _ in workers:
            fleet.enqueue("load 0.2; sleep 2.5; save; sleep 0.1")
        until(lambda: all(running_on(fleet, each) for each in late), "items on the late workers", told=late[0].story)
        time.sleep(dice.uniform(0.0, 2.5))
        stopped = [process for each in late for process in (each.processes() if which == "all of it" else each.processes()[:1])]
        for process in stopped:
            process.suspend()
        fleet.await_end(workers=tuple(workers))
        for process in reversed(stopped):
            process.resume()
        until(lambda: "busy" not in statuses_of(fleet, "late-%"), "the late workers to let go", told=late[0].story)
    lost = len(rows(fleet.database, "SELECT 1 FROM job_attempts WHERE state = 'lost'"))
    print(f"{lost} attempts were lost; items {dict(fleet.statuses())}")

    assert lost > 0
    assert set(fleet.statuses()) == {"completed"}
    fleet.demand_right()


def running_on(fleet: Fleet, worker: Worker) -> bool:
    statement = "SELECT 1 FROM job_attempts WHERE state = 'running' AND worker_id LIKE %s"
    return bool(rows(fleet.database, statement, f"%:{worker.pid}/%"))


def statuses_of(fleet: Fleet, name: str) -> set[str]:
    found = rows(fleet.database, "SELECT status FROM gpu_instances WHERE name LIKE %s AND alive_until > now()", f"{name}/%")
    return {row["status"] for row in found}


def stop_in_the_middle(fleet: Fleet, **how) -> list[psutil.Process]:
    """An item's worker is stopped whole, and the item is done by another one. The stopped processes, the supervisor's first."""
    # On a busy machine a shorter lease would end before the worker is stopped.
    late = fleet.worker(options={"name": "late"}, lease_seconds=6.0, **how)
    # Its runner has begun and cannot save before it is stopped, and it saves as soon as it wakes up.
    begun, go_on = fleet.folder / "begun", fleet.folder / "go-on"
    item = fleet.enqueue(f"touch {begun}; until {go_on}; save; sleep 0.2")
    until(begun.exists, "the item to begin", told=late.story)
    stopped = late.processes()
    for process in stopped:
        process.suspend()
    go_on.touch()
    second = fleet.worker(options={"name": "second"})
    await_status(fleet.database, item, "completed", told=second.story)
    second.kill()
    return stopped


def test_a_worker_that_wakes_up_in_the_middle_discards(fleet):
    for process in reversed(stop_in_the_middle(fleet)):
        process.resume()
    until(lambda: statuses_of(fleet, "late") == {"available"}, "the late worker to let go")

    assert fleet.facts(fleet.items[0])[1] == 1
    fleet.demand_right()


def test_without_the_fence_it_does_not_and_the_test_sees_it(fleet):
    supervisor, *others = stop_in_the_middle(fleet, statements=NO_FENCE)
    # The supervisor would hear that the item is lost, and on a busy machine stop its runner before that one saves.
    for process in others:
        process.resume()
    try:
        until(lambda: fleet.facts(fleet.items[0])[1] == 2, "a second picture of one item")
    finally:
        supervisor.resume()


def test_cut_off_for_two_leases_its_item_is_done_elsewhere_and_its_own_work_is_refused(fleet, tmp_path_factory):
    proxy = CuttingProxy(fleet.dsn, tmp_path_factory.mktemp("p"))
    try:
        away = fleet.worker(proxy.dsn, options={"name": "away"})
        item = fleet.enqueue("sleep 1; save; sleep 0.2")
        await_status(fleet.database, item, "in_progress", told=away.story)
        time.sleep(0.3)
        proxy.cut()
        second = fleet.worker(options={"name": "second"})
        await_status(fleet.database, item, "completed", told=second.story)
        time.sleep(2 * LEASE)
        proxy.heal()
        later = [fleet.enqueue() for _ in range(4)]
        for each in later:
            await_status(fleet.database, each, "completed", told=away.story)
        until(lambda: "busy" not in statuses_of(fleet, "away"), "the worker that was away to let go", told=away.story)
        attempts = rows(fleet.database, "SELECT state FROM job_attempts WHERE item_id = %s ORDER BY attempt_no", item)
    finally:
        proxy.close()

    # A machine that stands still for a lease costs the second worker an attempt too.
    assert (attempts[0]["state"], attempts[-1]["state"]) == ("lost", "finished")
    fleet.demand_right()


def test_an_outage_for_everybody_costs_no_attempt(worker_nursery, database, dsn, accounts, ann, tmp_path, tmp_path_factory):
    subscribe(accounts, ann.account.email)
    fleet, proxy = Fleet(worker_nursery, database, dsn, tmp_path, ann.user_id), CuttingProxy(dsn, tmp_path_factory.mktemp("p"))
    try:
        worker = fleet.worker(proxy.dsn)
        item = fleet.enqueue("sleep 2; save; sleep 0.5")
        await_status(database, item, "in_progress", told=worker.story)
        time.sleep(0.3)
        proxy.break_off()
        time.sleep(3 * LEASE)
        proxy.heal()
        await_status(database, item, "completed", "failed", told=worker.story)
        states = rows(database, "SELECT state FROM job_attempts ORDER BY attempt_no")
    finally:
        proxy.close()

    # The step that needed the database in between is done again, by the same worker; nobody counts that as a loss that fails items.
    assert states[-1] == {"state": "finished"}
    assert fleet.statuses() == {"completed": 1}
    fleet.demand_right()


def test_a_graph_that_kills_its_runner_fails_after_three_and_leaves_nothing(fleet):
    worker = fleet.worker()
    poison = fleet.enqueue("save; die")
    await_status(fleet.database, poison, "failed", told=worker.story, seconds=90)
    after = fleet.enqueue()
    await_status(fleet.database, after, "completed", told=worker.story)
    row = rows(fleet.database, "SELECT error_type, error_message FROM session_queue WHERE item_id = %s", poison)[0]
    attempts = rows(fleet.database, "SELECT state FROM job_attempts WHERE item_id = %s", poison)

    assert (row["error_type"], len(attempts)) == ("WorkerLost", 3)
    assert "Nothing was charged" in row["error_message"]
    assert "quarantined" not in statuses_of(fleet, "")
    fleet.demand_right()


def test_a_worker_whose_clock_is_five_minutes_off_works_like_any_other(fleet):
    ahead, behind = fleet.worker(options={"name": "ahead"}, clock=300), fleet.worker(options={"name": "behind"}, clock=-300)
    for worker in (ahead, behind):
        worker.await_log("is ready")
    for _ in range(6):
        fleet.enqueue()
    fleet.await_end(workers=(ahead, behind))
    attempts = rows(fleet.database, "SELECT worker_id, state FROM job_attempts")

    assert fleet.statuses() == {"completed": 6}
    assert {row["state"] for row in attempts} == {"finished"}
    assert len({row["worker_id"] for row in attempts}) == 2
    fleet.demand_right()
