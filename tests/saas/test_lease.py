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
from saas.rows import add_items, status_of

from invokeai_saas.db import tenancy
from invokeai_saas.jobs import lease
from invokeai_saas.jobs.lease import LeaseLost, claim, fenced, finish, heartbeat, reap, revoke

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


def test_without_the_row_lock_the_claims_collide(database, monkeypatch):
    monkeypatch.setattr(lease, "CLAIM", lease.CLAIM.replace("FOR UPDATE SKIP LOCKED", ""))
    item = add_items(database, "ann", 1)[0]
    with tenancy.as_system("first worker, not committed yet"), database.transaction() as cursor:
        cursor.execute("SELECT 1")
        with psycopg.connect(database._pool.conninfo) as second:
            second.execute("SET LOCAL ROLE invokeai_system")
            second.execute("SET LOCAL lock_timeout = '200ms'")
            assert claim_one(database).item_id == item
            with pytest.raises(psycopg.errors.LockNotAvailable):
                second.execute(lease.CLAIM, {"worker_id": "w2", "lease_seconds": 60, "device": None})


def test_a_claim_does_not_wait_for_another_claim(database, dsn):
    first, second = add_items(database, "ann", 2)
    with tenancy.as_system("first worker, not committed yet"), database.transaction():
        assert claim_one(database).item_id == first
        with psycopg.connect(dsn) as other:
            row = other.execute(lease.CLAIM, {"worker_id": "w2", "lease_seconds": 60, "device": None}).fetchone()

        assert row[0] == second


def test_the_highest_priority_goes_first_then_the_oldest(database):
    low, high = add_items(database, "ann", 2), add_items(database, "bob", 2, priority=5)

    assert [claim_one(database).item_id for _ in range(4)] == [*high, *low]
    assert claim_one(database) is None


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

    assert reap(database, max_attempts=3) == {}
    assert claim_one(database) is None


def test_a_dead_workers_item_comes_back_as_the_next_attempt(database):
    item = add_items(database, "ann", 1)[0]
    claim_one(database, lease_seconds=-1)

    assert reap(database, max_attempts=3) == {item: "pending"}
    assert claim_one(database, "w2").attempt_no == 2


def test_an_item_fails_after_its_last_attempt(database):
    item = add_items(database, "ann", 1)[0]
    statuses = []
    for _ in range(2):
        claim_one(database, lease_seconds=-1)
        statuses.append(reap(database, max_attempts=2)[item])

    assert (statuses, claim_one(database)) == (["pending", "failed"], None)


def test_a_worker_that_wakes_up_after_its_lease_writes_nothing(database):
    item = add_items(database, "ann", 1)[0]
    late = claim_one(database, lease_seconds=-1)
    reap(database, max_attempts=3)
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
    reap(database, max_attempts=3)
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


def test_a_cancel_revokes_the_lease_and_the_reaper_leaves_the_item_canceled(database):
    item = add_items(database, "ann", 1)[0]
    attempt = claim_one(database, lease_seconds=-1)
    with tenancy.as_user("ann"), database.transaction() as cursor:
        cursor.execute("UPDATE session_queue SET status = 'canceled'")
        assert revoke(database, item) is True
    with pytest.raises(LeaseLost):
        heartbeat(database, attempt, lease_seconds=60)

    assert (reap(database, max_attempts=3), status_of(database, item)) == ({}, "canceled")


def test_the_attempt_of_a_deleted_item_ends_and_its_seconds_stay(database):
    add_items(database, "ann", 1)
    attempt = claim_one(database)
    heartbeat(database, attempt, lease_seconds=-1, gpu_seconds=7.5)
    with tenancy.as_user("ann"), database.transaction() as cursor:
        cursor.execute("DELETE FROM session_queue")
    reap(database, max_attempts=3)
    with tenancy.as_user("ann"), database.postgres() as cursor:
        row = cursor.execute("SELECT state, gpu_seconds FROM job_attempts").fetchone()

    assert row == {"state": "lost", "gpu_seconds": 7.5}


def test_an_item_never_has_two_running_attempts(database):
    item = add_items(database, "ann", 1)[0]
    claim_one(database)
    insert = "INSERT INTO job_attempts (item_id, attempt_no, user_id, worker_id, lease_until) VALUES (%s, 2, 'ann', 'w', now())"
    with pytest.raises(psycopg.errors.UniqueViolation, match="job_attempts_one_running"):
        with tenancy.as_system("test"), database.postgres() as cursor:
            cursor.execute(insert, (item,))
