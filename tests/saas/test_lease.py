"""Leases: every item claimed once, a dead worker's item comes back, a late worker's writes do not count."""

import os
import random
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from saas.rows import AT_ONCE, add_board, add_items, status_of

from invokeai_saas.db import tenancy
from invokeai_saas.jobs import lease
from invokeai_saas.jobs.lease import LeaseLost, claim, demand_wanted, fenced, finish, heartbeat, revoke
from invokeai_saas.jobs.lost import Patience, give_back
from invokeai_saas.jobs.reaper import reap

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 4
CANCEL = "UPDATE session_queue SET status = 'canceled' WHERE item_id = %s AND status IN ('pending', 'in_progress')"
ITEMS = int(os.environ.get("SAAS_SOAK_ITEMS", "500"))


def claim_one(database, worker: str = "w1", lease_seconds: float = 60.0):
    return claim(database, worker_id=worker, lease_seconds=lease_seconds)


def cancel(database, item: int) -> bool:
    """What a user's cancel does: lock the item, take it from its worker; False when it was over already."""
    with tenancy.as_user("ann"), database.postgres() as cursor:
        cursor.execute(CANCEL, (item,))
        revoke(database, item)
        return cursor.rowcount == 1


def start_worker(dsn: str, number: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).with_name("claiming_worker.py")), dsn, f"worker-{number}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_four_processes_claim_every_item_exactly_once(database, dsn):
    items = [item for number in range(PROCESSES) for item in add_items(database, f"user-{number}", ITEMS, priority=number % 2)]
    workers = [start_worker(dsn, number) for number in range(PROCESSES)]
    outputs = [worker.communicate(timeout=300) for worker in workers]
    claimed = Counter(line for output, _ in outputs for line in output.split("\n") if line)

    assert [(worker.returncode, errors) for worker, (_, errors) in zip(workers, outputs, strict=True)] == [(0, "")] * PROCESSES
    assert claimed == Counter(f"{item} 1 completed" for item in items)
    assert sum(1 for output, _ in outputs if output) > 1


def test_cancels_that_race_with_the_workers_lose_no_item_and_double_none(database, dsn):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    items = add_items(database, "ann", PROCESSES * ITEMS)
    workers = [start_worker(dsn, number) for number in range(PROCESSES)]
    canceled = {item for item in random.Random(seed).sample(items, len(items) // 3) if cancel(database, item)}
    outputs = [worker.communicate(timeout=600) for worker in workers]
    told = [line.split() for output, _ in outputs for line in output.split("\n") if line]
    claims, completed = Counter(int(item) for item, _, _ in told), {int(item) for item, _, end in told if end == "completed"}
    with tenancy.as_user("ann"), database.transaction() as cursor:
        statuses = {row[0]: row[1] for row in cursor.execute("SELECT item_id, status FROM session_queue").fetchall()}

    assert [errors for _, errors in outputs] == [""] * PROCESSES
    assert max(claims.values()) == 1
    assert (completed & canceled, completed | canceled) == (set(), set(items))
    assert statuses == {item: "canceled" if item in canceled else "completed" for item in items}


def test_a_claim_names_the_owner_the_device_and_marks_the_item(database):
    item = add_items(database, "ann", 1)[0]
    attempt = claim(database, worker_id="w1", lease_seconds=60, device="cuda:1")
    with tenancy.as_user("ann"), database.transaction() as cursor:
        row = cursor.execute("SELECT status, device, started_at IS NOT NULL AS started FROM session_queue").fetchone()

    assert (attempt.item_id, attempt.attempt_no, attempt.user_id) == (item, 1, "ann")
    assert (row["status"], row["device"], row["started"]) == ("in_progress", "cuda:1", 1)


def test_a_living_workers_item_is_left_alone(database):
    add_items(database, "ann", 1)
    attempt = claim_one(database)
    heartbeat(database, attempt, lease_seconds=60, gpu_seconds=1.5)

    assert reap(database, patience=AT_ONCE) == {}
    assert claim_one(database) is None


def test_a_dead_workers_item_comes_back_as_the_next_attempt(database):
    item = add_items(database, "ann", 1)[0]
    claim_one(database, lease_seconds=-1)

    assert reap(database, patience=AT_ONCE) == {item: "pending"}
    assert claim_one(database, "w2").attempt_no == 2


def test_an_item_fails_after_its_last_attempt(database):
    item = add_items(database, "ann", 1)[0]
    statuses = []
    for _ in range(2):
        claim_one(database, lease_seconds=-1)
        statuses.append(reap(database, patience=Patience(losses=2, first_wait_seconds=0))[item])

    assert (statuses, claim_one(database)) == (["pending", "failed"], None)


def test_a_worker_that_wakes_up_after_its_lease_writes_nothing(database):
    item = add_items(database, "ann", 1)[0]
    late = claim_one(database, lease_seconds=-1)
    reap(database, patience=AT_ONCE)
    current = claim_one(database, "w2")
    with pytest.raises(LeaseLost):
        heartbeat(database, late, lease_seconds=60)
    with pytest.raises(LeaseLost):
        finish(database, late)
    with pytest.raises(LeaseLost), fenced(database, late), database.transaction() as cursor:
        cursor.execute("UPDATE session_queue SET status = 'completed'")
    still = status_of(database, item)
    with fenced(database, current), database.transaction() as cursor:
        cursor.execute("UPDATE session_queue SET status = 'completed'")
        finish(database, current)

    assert (still, status_of(database, item)) == ("in_progress", "completed")


@pytest.mark.parametrize("statement", ["HEARTBEAT", "FENCE", "FINISH"])
def test_without_the_fence_a_late_worker_gets_through(database, monkeypatch, statement):
    monkeypatch.setattr(lease, statement, getattr(lease, statement).replace("AND state = 'running'", ""))
    add_items(database, "ann", 1)
    late = claim_one(database, lease_seconds=-1)
    reap(database, patience=AT_ONCE)
    claim_one(database, "w2")
    through = []
    with suppress(LeaseLost):
        if statement == "FENCE":
            with fenced(database, late):
                through.append(statement)
        else:
            heartbeat(database, late, lease_seconds=60) if statement == "HEARTBEAT" else finish(database, late)
            through.append(statement)

    assert through == [statement]


def test_an_item_given_back_is_not_an_attempt_lost(database):
    item = add_items(database, "ann", 1)[0]
    for _ in range(3):
        give_back(database, claim_one(database), gpu_seconds=2.5)
    claim_one(database, lease_seconds=-1)

    assert reap(database, patience=Patience(losses=2, first_wait_seconds=0)) == {item: "pending"}
    assert claim_one(database).attempt_no == 5


def test_the_seconds_of_a_finished_attempt_are_those_at_its_end(database):
    add_items(database, "ann", 1)
    attempt = claim_one(database)
    heartbeat(database, attempt, lease_seconds=60, gpu_seconds=1.0)
    finish(database, attempt, gpu_seconds=3.5)
    with tenancy.as_user("ann"), database.postgres() as cursor:
        row = cursor.execute("SELECT state, gpu_seconds FROM job_attempts").fetchone()

    assert row == {"state": "finished", "gpu_seconds": 3.5}


def write_board(database, owner: str, name: str) -> None:
    with tenancy.as_user(owner):
        add_board(database, owner, name)


def test_what_a_worker_writes_as_the_items_owner_is_fenced_at_the_commit(database):
    add_items(database, "ann", 1)
    late = claim_one(database, lease_seconds=-1)
    with lease.guarding(late):
        write_board(database, "ann", "in time")
        with lease.unguarded():
            reap(database, patience=AT_ONCE)
        with pytest.raises(LeaseLost):
            write_board(database, "ann", "late")
        with tenancy.as_user("ann"), database.postgres() as cursor:
            boards = [row["board_name"] for row in cursor.execute("SELECT board_name FROM boards").fetchall()]

    assert boards == ["in time"]


def test_without_the_commits_fence_a_late_write_gets_through(database, monkeypatch):
    monkeypatch.setattr(lease, "COMMIT_FENCE", lease.COMMIT_FENCE.replace("AND state = 'running'", ""))
    add_items(database, "ann", 1)
    late = claim_one(database, lease_seconds=-1)
    reap(database, patience=AT_ONCE)
    with lease.guarding(late):
        write_board(database, "ann", "late")


def test_the_fence_of_commits_ends_with_the_work(database):
    add_items(database, "ann", 1)
    late = claim_one(database, lease_seconds=-1)
    reap(database, patience=AT_ONCE)
    with lease.guarding(late), lease.unguarded():
        write_board(database, "ann", "the queue's own")
    write_board(database, "ann", "afterwards")


@pytest.mark.parametrize(
    "end",
    [
        "UPDATE session_queue SET status = 'canceled'",
        "DELETE FROM session_queue",
        "UPDATE job_attempts SET state = 'revoked', ended_at = now()",
    ],
)
def test_an_item_that_nobody_wants_any_more_says_so_to_its_worker(database, end):
    add_items(database, "ann", 1)
    attempt = claim_one(database)
    demand_wanted(database, attempt)
    with tenancy.as_system("another process"), database.postgres() as cursor:
        cursor.execute(end.encode())
    with pytest.raises(LeaseLost):
        demand_wanted(database, attempt)


def test_a_cancel_revokes_the_lease_and_the_reaper_leaves_the_item_canceled(database):
    item = add_items(database, "ann", 1)[0]
    attempt = claim_one(database, lease_seconds=-1)
    with tenancy.as_user("ann"), database.transaction() as cursor:
        cursor.execute("UPDATE session_queue SET status = 'canceled'")
        assert revoke(database, item) is True
    with pytest.raises(LeaseLost):
        heartbeat(database, attempt, lease_seconds=60)

    assert (reap(database, patience=AT_ONCE), status_of(database, item)) == ({}, "canceled")


def test_the_attempt_of_a_deleted_item_ends_and_its_seconds_stay(database):
    add_items(database, "ann", 1)
    attempt = claim_one(database)
    heartbeat(database, attempt, lease_seconds=-1, gpu_seconds=7.5)
    with tenancy.as_user("ann"), database.transaction() as cursor:
        cursor.execute("DELETE FROM session_queue")
    reap(database, patience=AT_ONCE)
    with tenancy.as_user("ann"), database.postgres() as cursor:
        row = cursor.execute("SELECT state, gpu_seconds FROM job_attempts").fetchone()

    assert row == {"state": "lost", "gpu_seconds": 7.5}


@pytest.mark.parametrize(
    ("child", "child_age", "parent_age", "becomes"),
    [
        ("completed", 90, 90, "pending"),
        ("failed", 90, 90, "pending"),
        (None, 90, 90, "pending"),
        ("in_progress", 90, 90, "waiting"),
        ("pending", 90, 90, "waiting"),
        ("completed", 5, 90, "waiting"),
        (None, 90, 5, "waiting"),
    ],
)
def test_a_parent_that_waits_for_nobody_starts_again_after_a_minute(database, child, child_age, parent_age, becomes):
    parent, called = add_items(database, "ann", 2)
    set_item(database, parent, "waiting", parent_age)
    set_item(database, called, child or "completed", child_age, parent if child else None)
    reap(database, patience=AT_ONCE)

    assert status_of(database, parent) == becomes


def set_item(database, item: int, status: str, seconds_ago: float, parent: int | None = None) -> None:
    """Status, parent and age of an item, past the trigger that stamps changes."""
    with tenancy.as_system("the scene of a test"), database.postgres() as cursor:
        cursor.execute("UPDATE session_queue SET status = %s, parent_item_id = %s WHERE item_id = %s", (status, parent, item))
    with psycopg.connect(database._pool.conninfo) as owner:
        owner.execute("SET ROLE NONE")
        owner.execute("ALTER TABLE session_queue DISABLE TRIGGER USER")
        owner.execute(
            "UPDATE session_queue SET updated_at = to_char(now() AT TIME ZONE 'UTC' - make_interval(secs => %s),"
            " 'YYYY-MM-DD HH24:MI:SS.MS') WHERE item_id = %s",
            (seconds_ago, item),
        )
        owner.execute("ALTER TABLE session_queue ENABLE TRIGGER USER")


def test_an_item_never_has_two_running_attempts(database):
    item = add_items(database, "ann", 1)[0]
    claim_one(database)
    insert = "INSERT INTO job_attempts (item_id, attempt_no, user_id, worker_id, lease_until) VALUES (%s, 2, 'ann', 'w', now())"
    with pytest.raises(psycopg.errors.UniqueViolation, match="job_attempts_one_running"):
        with tenancy.as_system("test"), database.postgres() as cursor:
            cursor.execute(insert, (item,))
