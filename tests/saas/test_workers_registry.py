"""Workers tell who they are and what they do; names are one living worker's; admins ask, workers hear."""

import threading
import time

import pytest
from saas.fleet import ages, joined, worker
from saas.people import rows

from invokeai_saas.db import tenancy
from invokeai_saas.errors import BadSettings
from invokeai_saas.workers import registry
from invokeai_saas.workers.registry import Instance, NameTaken, NoSuchWorker, TakenOver


def only(database):
    (row,) = registry.everybody(database)
    return row


def test_a_worker_registers_beats_and_retires(database):
    incarnation = registry.register(database, worker("gpu1/cuda:0", "basic", "high_performance"))
    first = only(database)
    wanted = registry.beat(
        database, incarnation, status="busy", current_item=7, current_user="ann", used_memory_mb=9_000, utilization=0.9, failures_in_a_row=1
    )
    second = only(database)
    registry.retire(database, incarnation, reason="SIGTERM")
    last = only(database)

    assert (first.status, first.tiers, first.memory_mb, first.model_keys, first.alive) == (
        "starting", ["basic", "high_performance"], 16_000, None, True,
    )  # fmt: skip
    assert wanted is None
    assert (second.status, second.current_item_id, second.current_user_id, second.utilization) == ("busy", 7, "ann", 0.9)
    assert (second.failures_in_a_row, second.claims) == (1, True)
    assert (last.status, last.alive, last.current_item_id, last.reason) == ("terminated", False, None, "SIGTERM")
    assert registry.live(database) == []


def test_a_name_of_a_living_worker_is_refused_as_soon_as_it_beats(database):
    incarnation = joined(database, "gpu1/cuda:0")
    over = threading.Event()

    def beat():
        while not over.wait(0.1):
            registry.beat(database, incarnation, status="available", alive_seconds=60)

    beating = threading.Thread(target=beat)
    beating.start()
    began = time.monotonic()
    try:
        with pytest.raises(NameTaken, match="gpu1/cuda:0"):
            registry.register(database, worker("gpu1/cuda:0"), look_seconds=0.2)
    finally:
        over.set()
        beating.join()

    assert time.monotonic() - began < 30
    assert only(database).incarnation == incarnation


def test_a_killed_workers_name_comes_back_when_its_word_no_longer_counts(database):
    first = registry.register(database, worker(), alive_seconds=0.5)
    second = registry.register(database, worker(), look_seconds=0.05)

    assert second != first
    assert only(database).incarnation == second


def test_of_eight_that_start_with_one_name_one_lives(open_database):
    database = open_database(pool_size=8)
    won, refused = [], []

    def start():
        try:
            incarnation = registry.register(database, worker(), alive_seconds=2, look_seconds=0.05)
        except NameTaken:
            refused.append(1)
            return
        won.append(incarnation)
        for _ in range(20):
            registry.beat(database, incarnation, status="available", alive_seconds=2)
            time.sleep(0.05)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (len(won), len(refused)) == (1, 7)


def test_who_was_taken_over_hears_it_and_changes_nothing(database):
    old = joined(database, "gpu1/cuda:0")
    ages(database, "gpu1/cuda:0", 1)
    new = joined(database, "gpu1/cuda:0", status="busy")

    with pytest.raises(TakenOver):
        registry.beat(database, old, status="quarantined")
    registry.retire(database, old)
    assert (only(database).incarnation, only(database).status) == (new, "busy")


def test_a_worker_that_was_silent_and_whose_name_is_still_its_own_goes_on(database):
    incarnation = joined(database, "gpu1/cuda:0")
    ages(database, "gpu1/cuda:0", 600)
    before = registry.live(database)
    registry.beat(database, incarnation, status="available")

    assert before == []
    assert [row.name for row in registry.live(database)] == ["gpu1/cuda:0"]


def test_draining_lasts_until_it_is_taken_back(database):
    incarnation = joined(database, "gpu1/cuda:0")
    registry.ask_to_drain(database, "gpu1/cuda:0")
    heard = [registry.beat(database, incarnation, status="draining") for _ in range(2)]
    claims = only(database).claims
    registry.ask_to_resume(database, "gpu1/cuda:0")

    assert (heard, claims) == (["drain", "drain"], False)
    assert registry.beat(database, incarnation, status="available") is None


def test_a_quarantined_worker_is_told_to_resume_until_it_did(database):
    incarnation = joined(database, "gpu1/cuda:0", status="quarantined")
    asked = registry.ask_to_resume(database, "gpu1/cuda:0")
    heard = [registry.beat(database, incarnation, status=status) for status in ("quarantined", "available", "available")]

    assert asked.wanted == "resume"
    assert heard == ["resume", None, None]


@pytest.mark.parametrize("ask", [registry.ask_to_drain, registry.ask_to_resume])
def test_nobody_asks_the_dead(database, ask):
    incarnation = joined(database, "gpu1/cuda:0")
    ages(database, "gpu1/cuda:0", 20)

    with pytest.raises(NoSuchWorker):
        ask(database, "gpu1/cuda:0")
    registry.retire(database, incarnation)
    for name in ("gpu1/cuda:0", "gpu2/cuda:0"):
        with pytest.raises(NoSuchWorker):
            ask(database, name)


def test_the_dead_are_shown_for_a_day(database):
    joined(database, "gpu1/cuda:0")
    joined(database, "gpu2/cuda:0")
    joined(database, "gpu3/cuda:0")
    ages(database, "gpu1/cuda:0", 25 * 3600)
    ages(database, "gpu2/cuda:0", 600)
    forgotten = registry.forget_dead(database)

    assert forgotten == 1
    assert {row.name: row.shown_status for row in registry.everybody(database)} == {"gpu2/cuda:0": "dead", "gpu3/cuda:0": "available"}
    assert [row.name for row in registry.seen_within(database, seconds=300)] == ["gpu3/cuda:0"]
    assert len(registry.seen_within(database, seconds=3600)) == 2


def test_devices_that_live_as_one_beat_each_for_itself(database):
    shared = registry.register(database, worker("web:1/cuda:0"))
    registry.register(database, worker("web:1/cuda:1"), incarnation=shared)
    registry.beat(database, shared, name="web:1/cuda:0", status="busy")
    registry.beat(database, shared, name="web:1/cuda:1", status="available")
    registry.retire(database, shared, name="web:1/cuda:0")

    assert {row.name: row.status for row in registry.everybody(database)} == {"web:1/cuda:0": "terminated", "web:1/cuda:1": "available"}


def test_models_stay_as_they_were_told_until_others_are(database):
    incarnation = registry.register(database, worker(model_keys=frozenset({"b", "a"})))
    registry.beat(database, incarnation, status="available")
    kept = only(database).model_keys
    registry.beat(database, incarnation, status="available", model_keys=frozenset({"c"}))
    changed = only(database).model_keys
    registry.beat(database, incarnation, status="available", model_keys=None)

    assert (kept, changed, only(database).model_keys) == (["a", "b"], ["c"], None)


def test_a_long_reason_is_cut_and_not_refused(database):
    incarnation = joined(database, "gpu1/cuda:0")
    registry.beat(database, incarnation, status="quarantined", reason="x" * 10_000)

    assert len(only(database).reason or "") == registry.LONGEST_REASON


@pytest.mark.parametrize("name", ["", "a b", "ops@host", "x" * 201, "../x", "-v", "a\nb", "é"])
def test_a_name_that_could_not_stand_in_logs_and_addresses_is_refused(name):
    with pytest.raises(BadSettings, match="--name"):
        worker(name)


@pytest.mark.parametrize("tiers", [(), ("fast",), ("basic", "Basic")])
def test_an_unknown_tier_is_refused(tiers):
    with pytest.raises(BadSettings, match="--tier: expected one or more of basic, high_performance, dedicated"):
        Instance(name="a", worker_id="a", tiers=tiers, device="cpu")


def test_no_tenant_sees_a_worker(database):
    joined(database, "gpu1/cuda:0")

    with tenancy.as_user("ann"), pytest.raises(Exception, match="permission denied"), database.postgres() as cursor:
        cursor.execute("SELECT * FROM gpu_instances")
    assert rows(database, "SELECT count(*) AS n FROM gpu_instances")[0]["n"] == 1
