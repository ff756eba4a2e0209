"""A user's place in the queue and the expected wait, as numbers that a waiting person can believe."""

import random
from datetime import UTC, datetime, timedelta

import pytest
from saas.fleet import joined
from saas.people import rows
from saas.rows import add_items, add_user

from invokeai_saas.jobs import lease
from invokeai_saas.jobs.routing import Place
from invokeai_saas.jobs.waiting import ItemPosition, PositionEvents, Queue, QueuePosition, Turn, Waiting, _has_moved

BASIC, LARGE = Place(frozenset({"basic"})), Place(frozenset({"high_performance"}))
EARLIER, LATER = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=1)


def queue(waiting: dict[str, int], turns: dict[str, Turn] | None = None, *, workers: int = 1, busy: int = 1) -> Queue:
    """Users with so many items for any worker; jobs take 10 s."""
    there = [(BASIC, number < busy) for number in range(workers)]
    return Queue({user: {None: items} for user, items in waiting.items()}, turns or {}, there, 10.0)


@pytest.mark.parametrize(("others", "number", "position", "seconds"), [
    ({}, 1, 1, 10), ({}, 3, 3, 30), ({"bob": 1}, 1, 2, 20), ({"bob": 1000}, 1, 2, 20), ({"bob": 1000, "carl": 1}, 2, 5, 50),
])  # fmt: skip
def test_turns_go_round_however_much_others_have(others, number, position, seconds):
    """A thousand items of somebody else are one turn before mine, and one more before each of my next."""
    assert queue({"ann": 5, **others}).place("ann", None, number) == (position, seconds)


def test_who_was_served_before_me_waits_behind_me():
    served = {"ann": Turn(served_at=EARLIER), "bob": Turn(served_at=LATER)}

    assert queue({"ann": 1, "bob": 9}, served).place("ann", None, 1)[0] == 1
    assert queue({"ann": 1, "bob": 9}, served).place("bob", None, 1)[0] == 2


def test_priority_is_worth_its_minutes():
    """Ten minutes of one worker are sixty jobs of ten seconds."""
    paid = {"bob": Turn(plan_priority=10)}

    assert queue({"ann": 1, "bob": 1000}, paid).place("ann", None, 1)[0] == 62
    assert queue({"ann": 1, "bob": 7}, paid).place("ann", None, 1)[0] == 8
    assert queue({"ann": 1000, "bob": 7}, paid).place("bob", None, 1)[0] == 1


def test_more_workers_share_the_wait_and_an_idle_one_ends_it():
    assert queue({"ann": 9}, workers=3, busy=3).place("ann", None, 6) == (6, 20)
    assert queue({"ann": 9}, workers=3, busy=2).place("ann", None, 1) == (1, 0)
    assert queue({"ann": 9}, workers=0).place("ann", None, 1) == (1, None)


def test_one_s_own_limit_is_waited_for():
    limited = {"ann": Turn(max_parallel=1, running=1)}

    assert queue({"ann": 9}, limited, workers=10, busy=1).place("ann", None, 2) == (2, 20)


def test_items_for_other_workers_are_not_before_mine():
    both = Queue({"ann": {("high_performance",): 1}, "bob": {("basic",): 50}}, {}, [(BASIC, True), (LARGE, True)], 10.0)

    assert both.place("ann", ("high_performance",), 1) == (1, 10)
    assert both.place("ann", ("dedicated",), 1)[1] is None


def one_by_one(there: Queue, user_id: str, turn_number: int) -> int:
    """The place as it is defined, a user at a time."""
    mine, ahead = there.turns.get(user_id, Turn()), turn_number - 1
    for other_id, items in there.waiting.items():
        if other_id != user_id:
            other = there.turns.get(other_id, Turn())
            first = other.served_at is None or (mine.served_at is not None and other.served_at < mine.served_at)
            minutes = other.plan_priority - mine.plan_priority
            before = turn_number - (0 if first else 1) + int(minutes * 60 * len(there.workers) / there.mean_seconds)
            ahead += min(sum(items.values()), max(0, before))
    return ahead + 1


@pytest.mark.parametrize("seed", range(5))
def test_all_users_at_once_are_counted_as_one_by_one(seed):
    rng = random.Random(seed)
    turns = {
        f"user-{number}": Turn(rng.choice([0, 0, 10, 20]), served_at=rng.choice([None, EARLIER, EARLIER, LATER]))
        for number in range(40) if number % 7
    }  # fmt: skip
    there = Queue({f"user-{n}": {None: rng.randrange(1, 99)} for n in range(40)}, turns, [(BASIC, True)] * rng.randrange(4), 7.3)

    for user_id in ("user-0", "user-1", "user-39", "nobody"):
        for number in (1, 2, 50):
            assert there.place(user_id, None, number)[0] == one_by_one(there, user_id, number)


@pytest.mark.parametrize(("before", "now", "told"), [
    ((1, 10), (1, 10), False), ((2, 20), (1, 20), True), ((10, 90), (9, 90), True), ((1, 0), (1, 1), True),
    ((300, 90), (290, 90), False), ((300, 90), (269, 90), True), ((300, 90), (300, 80), True), ((300, 90), (300, 82), False),
    ((3, None), (3, 0), True), ((3, 0), (3, None), True), ((3, None), (3, None), False), ((3, None), (2, None), True),
])  # fmt: skip
def test_a_move_of_a_tenth_is_told(before, now, told):
    earlier, later = (ItemPosition(queue_item_id=1, position=place, estimated_wait_seconds=wait) for place, wait in (before, now))

    assert _has_moved(earlier, later) is told


def test_small_moves_add_up_until_they_are_told(database):
    waiting, told = Waiting(database), []
    places = iter(range(300, 240, -5))
    waiting.users = lambda: {"ann"}  # type: ignore[method-assign]
    waiting.of = lambda _user: QueuePosition(  # type: ignore[method-assign]
        items=[ItemPosition(queue_item_id=1, position=next(places), estimated_wait_seconds=60)], running=0
    )
    here = {"ann": {"tab"}}
    events = PositionEvents(waiting, lambda: here, lambda _user, _name, data: told.append(data["position"]))
    for _ in range(10):
        events.look()

    assert told == [300, 270]
    here["ann"] = {"tab", "a second one"}
    events.look()
    assert told == [300, 270, 250]
    here["ann"] = {"a second one"}
    events.look()
    assert told == [300, 270, 250]


def test_an_item_that_waits_again_is_told_again(database):
    add_user(database, "ann")
    [item] = add_items(database, "ann", 1)
    told: list[int] = []
    clock = iter(range(0, 1000, 10))
    waiting = Waiting(database, clock=lambda: next(clock))
    events = PositionEvents(waiting, lambda: {"ann": {"tab"}}, lambda _user, _name, data: told.append(data["position"]))
    for status in ("pending", "in_progress", "pending", "pending"):
        rows(database, "UPDATE session_queue SET status = %s WHERE item_id = %s", status, item)
        events.look()

    assert told == [1, 1]


@pytest.fixture
def waiting(database):
    for user in ("ann", "bob"):
        add_user(database, user)
    joined(database, "gpu")
    return Waiting(database, clock=lambda: 0.0)


def test_the_database_s_queue_is_what_is_counted(database, waiting):
    bobs, anns = add_items(database, "bob", 3), add_items(database, "ann", 2)
    lease.claim(database, worker_id="w", lease_seconds=60)
    rows(database, "INSERT INTO job_attempts (item_id, attempt_no, user_id, worker_id, state, started_at, ended_at, lease_until)"
                   " VALUES (999, 1, 'x', 'w', 'finished', now() - interval '4 seconds', now(), now())")  # fmt: skip
    told = waiting.of("ann")

    assert [(item.queue_item_id, item.position) for item in told.items] == [(anns[0], 1), (anns[1], 3)]
    assert [item.estimated_wait_seconds for item in told.items] == [0, 8]
    assert (told.running, waiting.of("bob").running) == (0, 1)
    assert [item.queue_item_id for item in waiting.of("bob").items] == bobs[1:]


@pytest.mark.parametrize("status", ["starting", "draining", "quarantined"])
def test_nothing_is_expected_of_a_worker_that_cannot_take_the_item(database, status):
    add_user(database, "ann")
    add_items(database, "ann", 1)
    joined(database, "gpu", status=status)
    alone = Waiting(database).of("ann").items
    joined(database, "other", status="busy")
    beside = Waiting(database).of("ann").items

    assert [(item.position, item.estimated_wait_seconds) for item in alone] == [(1, None)]
    assert [(item.position, item.estimated_wait_seconds) for item in beside] == [(1, 10)]


def test_nobody_s_items_are_told_to_another(database, waiting):
    add_items(database, "bob", 3)

    assert waiting.of("ann").items == []


def test_a_place_that_moves_is_told_once_to_who_is_here(database):
    for user in ("ann", "bob"):
        add_user(database, user)
    [first], [second] = add_items(database, "bob", 1), add_items(database, "ann", 1)
    rows(database, "UPDATE queue_turns SET served_at = now() WHERE user_id = 'ann'")
    told: list[tuple] = []
    clock = iter(range(0, 1000, 10))
    events = PositionEvents(Waiting(database, clock=lambda: next(clock)), lambda: {"ann": {"tab"}}, lambda *what: told.append(what))
    events.look()
    events.look()
    rows(database, "UPDATE session_queue SET status = 'canceled' WHERE item_id = %s", first)
    events.look()

    assert [(user, name, data["queue_item_id"], data["position"]) for user, name, data in told] == [
        ("ann", "gpu_queue_position", second, 2), ("ann", "gpu_queue_position", second, 1),
    ]  # fmt: skip


