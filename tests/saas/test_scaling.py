"""How many workers a tier should have: C-41's rules and their cool-downs; what counts as waiting; one answer from all processes."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from saas.fleet import ages, joined, waiting
from saas.people import rows
from saas.rows import add_user

from invokeai_saas.cli import main
from invokeai_saas.errors import BadSettings
from invokeai_saas.jobs import lease
from invokeai_saas.settings import load_settings
from invokeai_saas.workers import registry, scaling
from invokeai_saas.workers.gauges import FleetGauges
from invokeai_saas.workers.scaling import Bounds, Load, State, advise, bounds_of

START = datetime(2026, 1, 1, tzinfo=UTC)
BOUNDS = Bounds(1, 10)
EVERYWHERE = bounds_of(("1-10",))


def after(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def step(state: State, runnable: int, *, minutes: float, **more: int) -> tuple[State, int]:
    load = Load(pending=runnable, runnable=runnable, **({"alive": state.wanted, "idle": state.wanted} | more))
    state, change, why = advise(state, load, BOUNDS, now=after(minutes))
    assert why
    return state, change


@pytest.mark.parametrize(("runnable", "change"), [(0, 0), (10, 0), (11, 1), (50, 1), (51, 3), (5000, 3)])
def test_a_long_queue_asks_for_more(runnable, change):
    state, found = step(State(2), runnable, minutes=0)

    assert (found, state.wanted) == (change, 2 + change)


def test_one_more_at_most_every_five_minutes_three_at_most_every_three():
    state, changes = State(1), []
    for minute in range(0, 11):
        state, change = step(state, 20, minutes=minute)
        changes.append(change)
    assert [minute for minute, change in enumerate(changes) if change] == [0, 5, 10]

    state, changes = State(1), []
    for minute in range(0, 7):
        state, change = step(state, 60, minutes=minute)
        changes.append(change)
    assert [(minute, change) for minute, change in enumerate(changes) if change] == [(0, 3), (3, 3), (6, 3)]


def test_never_more_than_the_most_nor_fewer_than_the_fewest():
    state, change = step(State(9), 100, minutes=0)
    top, none = step(state, 100, minutes=60)

    assert ((state.wanted, change), (top.wanted, none)) == ((10, 1), (10, 0))
    low = State(1, None, START)
    assert step(low, 0, minutes=60) == (low, 0)


@pytest.mark.parametrize(("runnable", "change"), [(11, 1), (60, 3)])
def test_a_step_up_counts_from_the_workers_that_live_where_those_are_more(runnable, change):
    """Six were started by hand: an autoscaler that follows the advice must not take any away while jobs wait."""
    raised, found = step(State(1), runnable, minutes=0, alive=6, idle=0)
    cooling, none = step(State(1, after(0)), runnable, minutes=1, alive=6, idle=0)
    bounded, _ = step(State(1), runnable, minutes=0, alive=12, idle=0)

    assert ((raised.wanted, found), (cooling.wanted, none)) == ((6 + change, change), (6, 0))
    assert bounded.wanted == BOUNDS.most


def test_a_step_up_counts_from_the_advice_where_fewer_live():
    assert step(State(4), 60, minutes=0, alive=1, idle=0)[0].wanted == 7


def test_ten_quiet_minutes_are_one_worker_less_each():
    state, changes = State(4), []
    for minute in range(0, 41):
        state, change = step(state, 2, minutes=minute)
        changes.append(change)

    assert [minute for minute, change in enumerate(changes) if change] == [10, 20, 30]
    assert state.wanted == 1


def test_one_busy_moment_begins_the_ten_minutes_anew():
    state = State(4)
    for minute in range(0, 10):
        state, _ = step(state, 0, minutes=minute)
    state, _ = step(state, 3, minutes=9.5)
    state, change = step(state, 0, minutes=10)

    assert (change, state.quiet_since) == (0, after(10))


def test_no_worker_is_taken_away_while_all_work():
    state = State(4, None, START)

    assert step(state, 0, minutes=15, idle=0)[1] == 0
    assert step(state, 0, minutes=15, idle=1)[1] == -1
    # What nobody started is not missed.
    assert step(state, 0, minutes=15, alive=2, idle=0)[1] == -1


def test_new_bounds_count_at_once():
    state, _, _ = advise(State(9), Load(), Bounds(1, 4), now=START)

    assert state.wanted == 4


@pytest.mark.parametrize("word", ["10", "1-", "0-4", "5-2", "fast=1-2", "basic=1-2-3", "basic:1-2", "-1-2"])
def test_bounds_that_mean_nothing_are_refused(word):
    with pytest.raises(BadSettings, match="SAAS_SCALE_BOUNDS"):
        bounds_of((word,))


@pytest.mark.parametrize(
    ("word", "fault"), [("basic=0-4", "at least 1 worker"), ("0-0", "at least 1 worker"), ("5-2", "the fewest before")]
)
def test_what_is_wrong_with_bounds_is_said(word, fault):
    with pytest.raises(BadSettings, match=f"SAAS_SCALE_BOUNDS: expected {fault}.*{word}"):
        bounds_of((word,))


def test_bounds_are_for_all_tiers_or_for_one(monkeypatch):
    monkeypatch.setenv("SAAS_SCALE_BOUNDS", "1-20, dedicated=1-2")
    found = bounds_of(load_settings().scale_bounds)

    assert found == {"basic": Bounds(1, 20), "high_performance": Bounds(1, 20), "dedicated": Bounds(1, 2)}


def test_a_wrong_setting_is_named(monkeypatch):
    monkeypatch.setenv("SAAS_SCALE_BOUNDS", "many")

    with pytest.raises(BadSettings, match="SAAS_SCALE_BOUNDS"):
        load_settings()


def looked(database):
    return {each.tier: each for each in scaling.look(database, EVERYWHERE)}


def test_the_queue_counts_where_its_items_will_go(database):
    joined(database, "b/cuda:0", "basic")
    joined(database, "b/cuda:1", "basic", status="busy")
    joined(database, "d/cuda:0", "dedicated", status="draining")
    waiting(database, "ann", 4)
    waiting(database, "bob", 5, "basic", "high_performance")
    # No worker there: the lowest of its tiers.
    waiting(database, "cem", 6, "high_performance", "dedicated")
    found = looked(database)

    assert {tier: each.pending for tier, each in found.items()} == {"basic": 9, "high_performance": 6, "dedicated": 0}
    assert (found["basic"].alive, found["basic"].idle, found["basic"].busy) == (2, 1, 1)
    assert (found["dedicated"].alive, found["basic"].wanted) == (0, 2)
    assert found["basic"].oldest_wait_seconds >= 0


def test_a_worker_that_starts_is_alive_and_not_idle(database):
    joined(database, "b/cuda:0", "basic", status="starting")
    joined(database, "b/cuda:1", "basic")
    found = looked(database)["basic"]

    assert (found.alive, found.idle, found.busy) == (2, 1, 0)


def test_an_item_of_two_tiers_waits_for_the_one_that_has_workers(database):
    joined(database, "h/cuda:0", "high_performance")
    waiting(database, "bob", 5, "basic", "high_performance")

    assert {tier: each.pending for tier, each in looked(database).items()} == {"basic": 0, "high_performance": 5, "dedicated": 0}


def test_jobs_behind_a_parallel_limit_buy_no_worker(database):
    joined(database, "b/cuda:0", "basic")
    for user in ("hog", "free"):
        add_user(database, user)
    waiting(database, "hog", 100, "basic")
    rows(database, "UPDATE queue_turns SET max_parallel = 3 WHERE user_id = 'hog'")
    lease.claim(database, worker_id="w", lease_seconds=60)
    held = looked(database)["basic"]
    rows(database, "UPDATE queue_turns SET max_parallel = NULL WHERE user_id = 'hog'")
    free = looked(database)["basic"]

    assert (held.pending, held.runnable, held.step) == (99, 2, 0)
    assert (free.pending, free.runnable, free.step) == (99, 99, 3)


def test_jobs_of_a_closed_account_buy_no_worker(database):
    add_user(database, "gone")
    waiting(database, "gone", 100, "basic")
    rows(database, "UPDATE users SET is_active = 0 WHERE user_id = 'gone'")

    assert looked(database)["basic"].pending == 0


def test_many_looks_at_once_are_one_step(open_database):
    database = open_database(pool_size=8)
    joined(database, "b/cuda:0", "basic")
    waiting(database, "ann", 60, "basic")
    with ThreadPoolExecutor(8) as pool:
        found = [advice.result()[0] for advice in [pool.submit(scaling.look, database, EVERYWHERE) for _ in range(8)]]

    assert sorted(each.step for each in found) == [0] * 7 + [3]
    assert {each.wanted for each in found} == {4}


def test_the_advice_outlives_its_process(database, open_database):
    joined(database, "b/cuda:0", "basic")
    waiting(database, "ann", 60, "basic")
    scaling.look(database, EVERYWHERE)
    other = open_database()

    assert [(each.tier, each.wanted) for each in scaling.last(other)] == [("basic", 4), ("high_performance", 1), ("dedicated", 1)]
    assert scaling.look(other, EVERYWHERE)[0].step == 0


def test_the_gauges_say_what_the_last_look_said(database):
    registered = CollectorRegistry()
    registered.register(FleetGauges(database))
    empty = generate_latest(registered).decode()
    joined(database, "b/cuda:0", "basic", "high_performance", status="quarantined")
    joined(database, "b/cuda:1", "basic")
    ages(database, "b/cuda:1", 60)
    waiting(database, "ann", 60, "basic")
    scaling.look(database, EVERYWHERE)
    other = CollectorRegistry()
    other.register(FleetGauges(database))
    text = generate_latest(other).decode()

    assert 'invokeai_fleet_workers{status="available",tier="basic"} 0.0' in empty
    for line in (
        'invokeai_fleet_workers_wanted{tier="basic"} 4.0',
        'invokeai_fleet_pending{tier="basic"} 60.0',
        'invokeai_fleet_workers{status="quarantined",tier="high_performance"} 1.0',
        'invokeai_fleet_workers{status="dead",tier="basic"} 1.0',
        'invokeai_fleet_workers_alive{tier="basic"} 0.0',
    ):
        assert line in text
    assert "ann" not in text


def test_gauges_of_a_database_that_is_away_are_missing_and_break_no_scrape(database):
    registered = CollectorRegistry()
    registered.register(FleetGauges(database, seconds=0.5))
    database.close()

    assert generate_latest(registered) == b""


def test_the_command_prints_what_the_servers_do(database, dsn, monkeypatch, capsys):
    monkeypatch.setenv("DATABASE_URL", f"postgresql:///?{dsn.replace(' ', '&')}")
    joined(database, "b/cuda:0", "basic")
    waiting(database, "ann", 60, "basic")
    codes = [main(["scale-advice"]), main(["scale-advice", "--tier", "basic"]), main(["scale-advice", "--json", "--tier", "basic"])]
    lines = capsys.readouterr().out.splitlines()

    assert codes == [0, 0, 0]
    assert lines[0] == "basic: 4 workers (+3), 1 live, 0 busy: 60 jobs wait, more than 50"
    assert lines[3] == "4"
    assert json.loads("\n".join(lines[4:]))["basic"]["wanted"] == 4


def test_a_dead_worker_does_not_count(database):
    incarnation = joined(database, "b/cuda:0", "basic")
    before = looked(database)["basic"].alive
    ages(database, "b/cuda:0", 60)
    silent = looked(database)["basic"].alive
    registry.beat(database, incarnation, status="available")

    assert (before, silent, looked(database)["basic"].alive) == (1, 0, 1)
