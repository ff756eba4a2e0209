"""What nobody looks after any more is found: leases, pins, parents, items past their limit; and nobody is robbed after an outage."""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import psycopg
import pytest
from saas import fleet
from saas.books import give, hold, picture, settled
from saas.chains import attempts_of, call, claimed, item_of, suspend, worker
from saas.patience import PATIENCE_SECONDS, until
from saas.people import rows
from saas.rows import AT_ONCE, add_items, status_of

from invokeai_saas.credits.model import JobHold
from invokeai_saas.db import tenancy
from invokeai_saas.errors import DatabaseUnavailable
from invokeai_saas.jobs import lease, lost, reaper
from invokeai_saas.jobs.lease import heartbeat
from invokeai_saas.jobs.reaper import GAP_SECONDS, Reaper, reap
from invokeai_saas.workers import registry


def look(database) -> dict[int, str]:
    return reap(database, patience=AT_ONCE)


def pinned_chain(database, incarnation):
    """A root that waits for the workflow that it called, which is pinned."""
    [root] = add_items(database, "ann", 1)
    suspend(database, claimed(database))
    return root, call(database, root, pin=incarnation)


WAITS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
LIVES = [("busy", 60, None), ("available", 60, None), ("starting", 60, None)]
TAKES_NOTHING = [("draining", 60, None), ("quarantined", 60, None), ("busy", 60, "drain")]
GONE = [("terminated", 60, None), ("busy", -1, None), ("draining", -1, None)]


@pytest.mark.parametrize(("status", "alive_seconds", "wanted", "becomes", "counted"), [
    *((*each, "waiting", "finished") for each in LIVES),
    *((*each, "pending", "revoked") for each in TAKES_NOTHING),
    *((*each, "pending", "lost") for each in GONE),
])  # fmt: skip
def test_what_is_pinned_to_a_worker_waits_while_it_lives(database, status, alive_seconds, wanted, becomes, counted):
    root, child = pinned_chain(database, worker(database, status=status, alive_seconds=alive_seconds, wanted=wanted))
    changed = look(database)

    assert changed == ({} if becomes == "waiting" else {root: "pending"})
    assert (status_of(database, root), attempts_of(database, root)) == (becomes, [counted])
    assert status_of(database, child) == ("pending" if becomes == "waiting" else "canceled")


def test_another_life_of_the_same_worker_is_another_worker(database):
    incarnation = worker(database)
    root, _ = pinned_chain(database, incarnation)
    rows(database, "UPDATE gpu_instances SET incarnation = %s", uuid4())

    assert look(database) == {root: "pending"}


def test_a_resumed_root_starts_over_without_its_worker_too(database):
    [root] = add_items(database, "ann", 1)
    suspend(database, claimed(database))
    rows(database, "UPDATE session_queue SET status = 'pending', pinned_to = %s", uuid4())

    assert look(database) == {root: "pending"}
    assert (item_of(database, root)["pinned_to"], attempts_of(database, root)) == (None, ["lost"])


def test_one_of_several_devices_that_share_a_life_is_enough(database):
    incarnation = worker(database, status="quarantined")
    rows(
        database,
        "INSERT INTO gpu_instances (name, incarnation, worker_id, tiers, device, status, alive_until)"
        " SELECT 'other', incarnation, worker_id, tiers, 'cuda:1', 'busy', alive_until FROM gpu_instances",
    )
    pinned_chain(database, incarnation)

    assert look(database) == {}


@pytest.mark.parametrize(
    ("names", "named"), [(["two/cpu"], "two/cpu (vm:7)"), ([], "vm:7"), (["vm:7"], "vm:7"), (["vm:7/cuda:0", "vm:7/cuda:1"], "vm:7")]
)
def test_a_lost_worker_is_named_as_the_registry_names_it(database, caplog, names, named):
    """Unless it has no name there any more, or several devices of one server have the same id."""
    [item] = add_items(database, "ann", 1)
    claimed(database, lease_seconds=-1)
    rows(database, "UPDATE job_attempts SET worker_id = 'vm:7'")
    for name in ("another", *names):
        registry.register(database, fleet.worker(name, worker_id="vm:7" if name in names else "vm:8"))
    look(database)

    assert f"attempt 1 of item {item}: its worker {named} was not heard of for a whole lease" in caplog.text


def test_an_item_that_cannot_be_given_back_keeps_no_other_from_it(database, monkeypatch, caplog):
    broken, fine = add_items(database, "ann", 2)
    for _ in range(2):
        claimed(database, lease_seconds=-1)
    ends = lost.end_attempt

    def fails_for_one(database, attempt, **how):
        if attempt.item_id == broken:
            raise RuntimeError("a bug")
        return ends(database, attempt, **how)

    monkeypatch.setattr(lost, "end_attempt", fails_for_one)

    assert look(database) == {fine: "pending"}
    assert f"item {broken} could not be given back" in caplog.text


def test_a_database_that_goes_away_ends_the_look(database, monkeypatch):
    add_items(database, "ann", 1)
    claimed(database, lease_seconds=-1)
    monkeypatch.setattr(lost, "end_attempt", lambda *_, **__: (_ for _ in ()).throw(DatabaseUnavailable("away")))
    with pytest.raises(DatabaseUnavailable):
        look(database)


def test_an_item_in_somebody_elses_hands_is_passed_over(database, dsn):
    held, free = add_items(database, "ann", 2)
    for _ in range(2):
        claimed(database, lease_seconds=-1)
    with psycopg.connect(dsn) as other:
        other.execute("SELECT 1 FROM session_queue WHERE item_id = %s FOR UPDATE", (held,))
        first = look(database)

    assert (first, look(database)) == ({free: "pending"}, {held: "pending"})


def test_a_worker_that_beats_between_the_look_and_the_lock_keeps_its_item(database, dsn, monkeypatch):
    monkeypatch.setattr(lost, "NOT_LONG", lost.NOT_LONG.replace("500ms", "30s"))
    [item] = add_items(database, "ann", 1)
    attempt = claimed(database, lease_seconds=-1)
    with ThreadPoolExecutor(1) as pool, psycopg.connect(dsn) as other, psycopg.connect(dsn, autocommit=True) as looking:
        other.execute("SELECT 1 FROM session_queue FOR UPDATE")
        reaped = pool.submit(look, database)
        while not reaped.done() and not looking.execute(WAITS).fetchone()[0]:
            time.sleep(0.01)
        assert not reaped.done()
        heartbeat(database, attempt, lease_seconds=60)
        other.rollback()

        assert (reaped.result(timeout=120), status_of(database, item)) == ({}, "in_progress")


def meet(database, dsn) -> tuple[bool, bool]:
    """A worker's commit and the reaper meet, each with a lock that the other wants: whether the commit stood, and the reaper gave way."""
    [item] = add_items(database, "ann", 1)
    attempt, go = claimed(database, lease_seconds=-1), threading.Event()
    picture(database, item)

    def save() -> bool:
        with tenancy.as_system("a worker's save"), lease.guarding(attempt):
            try:
                with database.postgres() as cursor:
                    cursor.execute("UPDATE stored_objects SET since = now()")
                    go.wait(PATIENCE_SECONDS)
            except psycopg.errors.DeadlockDetected:
                return False
            return True

    with ThreadPoolExecutor(2) as pool, psycopg.connect(dsn) as other, psycopg.connect(dsn, autocommit=True) as looking:
        other.execute("SELECT 1 FROM images FOR UPDATE")
        saved, reaped = pool.submit(save), pool.submit(look, database)
        until(lambda: reaped.done() or looking.execute(WAITS).fetchone()[0] == 1)
        go.set()
        until(lambda: reaped.done() or looking.execute(WAITS).fetchone()[0] == 2, every=0.01)
        other.rollback()
        stood, gave_way = saved.result(timeout=120), reaped.result(timeout=120) == {}
    if gave_way:
        assert look(database) == {item: "pending"}
    rows(database, "DELETE FROM session_queue")
    rows(database, "DELETE FROM images")
    return stood, gave_way


def test_a_save_that_meets_the_reaper_goes_first(database, dsn):
    """In a deadlock of the two the worker would be told of an error of the database, and its item would have failed."""
    # A machine that stands still for half a second in the middle decides it by chance.
    assert any(meet(database, dsn) == (True, True) for _ in range(3))


def late(database, seconds: float) -> None:
    """The running attempts began so long ago."""
    rows(database, "UPDATE job_attempts SET started_at = now() - make_interval(secs => %s) WHERE state = 'running'", seconds)


def test_an_item_whose_runner_hangs_ends_at_its_limit_by_the_clock(database):
    give(database, "ann", 200)
    [item] = hold(database, "ann", JobHold(100, 0, "basic", {"load_seconds": 50}))
    attempt = claimed(database)
    picture(database, item)
    heartbeat(database, attempt, lease_seconds=60, gpu_seconds=120.0)
    late(database, 2 * 100 + 50 + reaper.WALL_SLACK_SECONDS - 5)
    early = look(database)
    late(database, 2 * 100 + 50 + reaper.WALL_SLACK_SECONDS + 5)

    assert (early, look(database)) == ({}, {item: "failed"})
    assert (item_of(database, item)["error_type"], attempts_of(database, item)) == ("RanOverPrice", ["revoked"])
    assert settled(database, item) == ("captured", 100, "failed_with_outputs")


def test_a_call_past_the_limit_ends_its_whole_chain(database):
    give(database, "ann", 200)
    [root] = hold(database, "ann", 10)
    suspend(database, claimed(database), seconds=3.0)
    child = call(database, root)
    claimed(database)
    late(database, 20 + reaper.WALL_SLACK_SECONDS + 5)

    assert look(database) == {root: "failed"}
    assert [status_of(database, item) for item in (root, child)] == ["failed", "canceled"]


def test_without_a_price_nothing_ends_by_the_clock(database):
    add_items(database, "ann", 1)
    claimed(database)
    late(database, 10**6)

    assert look(database) == {}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_reaper_looks_at_once_and_then_every_time(database, clock):
    looks = []
    reaping = Reaper(database, lambda: looks.append(clock.now), lease_seconds=8, clock=clock)
    for _ in range(3):
        reaping()
        clock.now += 2

    assert looks == [1000, 1002, 1004]


def test_after_an_outage_everybody_has_one_lease_more(database, clock, caplog):
    looks = []
    reaping = Reaper(database, lambda: looks.append(clock.now), lease_seconds=8, clock=clock)
    reaping()
    clock.now += GAP_SECONDS + 1
    for _ in range(6):
        reaping()
        clock.now += 2

    assert looks == [1000, 1015, 1017]
    assert caplog.text.count("workers have 8 s to be heard of") == 1


def test_a_look_that_fails_is_no_look(database, clock, monkeypatch):
    """The pool knows before anybody else that the database is away: what fails there is what the reaper sees of an outage."""
    looks = []
    reaping = Reaper(database, lambda: looks.append(clock.now), lease_seconds=8, clock=clock)
    reaping()
    with monkeypatch.context() as away:
        away.setattr(database, "exclusive_if_free", lambda _: (_ for _ in ()).throw(DatabaseUnavailable("away")))
        for _ in range(5):
            clock.now += 2
            with pytest.raises(DatabaseUnavailable):
                reaping()
    clock.now += 2
    reaping()

    assert looks == [1000]


def test_one_process_at_a_time_reaps_and_the_others_know_that_the_database_was_there(open_database, clock):
    database, looks = open_database(), []
    first = Reaper(database, lambda: looks.append("first"), lease_seconds=8, clock=clock)
    second = Reaper(open_database(), lambda: (looks.append("second"), [first() or step() for _ in range(5)]), lease_seconds=8, clock=clock)

    def step() -> None:
        clock.now += 2

    second()
    first()

    assert looks == ["second", "first"]


def test_a_real_outage_costs_nobody_an_item(database, clock, caplog):
    """The whole path with an attempt whose lease ended while nobody could beat."""
    caplog.set_level(logging.WARNING)
    [item] = add_items(database, "ann", 1)
    reaping = Reaper(database, lambda: look(database), lease_seconds=8, clock=clock)
    reaping()
    attempt = claimed(database, lease_seconds=-1)
    clock.now += 30
    reaping()
    heartbeat(database, attempt, lease_seconds=60)
    clock.now += 9
    reaping()

    assert status_of(database, item) == "in_progress"
