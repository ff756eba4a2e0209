"""Jobs that run again and again: at their pace, alone, in spite of failures, until stopped."""

import threading
import time

import pytest
from saas.patience import PATIENCE_SECONDS, until

from invokeai_saas.db import tenancy
from invokeai_saas.jobs.background import Background


@pytest.fixture
def background(database):
    made: list[Background] = []

    def makes(**jobs) -> Background:
        loop = Background(database)
        for name, function in jobs.items():
            loop.add(name, 0.05, function)
        made.append(loop)
        loop.start()
        return loop

    yield makes
    for loop in made:
        loop.stop()


def test_a_job_runs_again_and_again_and_its_ticks_say_so(background):
    ran, began = [], time.monotonic()
    loop = background(count=lambda: ran.append(1))
    until(lambda: len(ran) >= 5)
    tick = loop.ticks()["count"]
    took = time.monotonic() - began

    assert (tick.failures, tick.is_late, tick.last_error) == (0, False, None)
    assert tick.runs >= 4 and tick.seconds_since_ok is not None and tick.seconds_since_ok < took


def test_a_failing_job_is_counted_told_once_and_tried_again_and_the_others_go_on(background, caplog):
    ran = []

    def fail() -> None:
        raise RuntimeError("no")

    loop = background(bad=fail, good=lambda: ran.append(1))
    until(lambda: loop.ticks()["bad"].failures >= 5 and len(ran) >= 5)
    bad = loop.ticks()["bad"]

    assert (bad.seconds_since_ok, bad.runs, bad.last_error) == (None, 0, "RuntimeError")
    assert caplog.text.count("background job bad failed") == 1


def test_a_job_that_works_again_says_so(background, caplog):
    outcomes = iter([RuntimeError("no"), RuntimeError("no")])

    def fail_twice() -> None:
        for outcome in outcomes:
            raise outcome

    with caplog.at_level("INFO"):
        loop = background(job=fail_twice)
        until(lambda: "works again" in caplog.text)

    assert loop.ticks()["job"].failures == 2


def test_of_two_processes_one_runs_a_job_at_a_time(open_database):
    inside, most, runs = [], [], []

    def work() -> None:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()
        runs.append(1)

    loops = [Background(open_database()) for _ in range(3)]
    for loop in loops:
        loop.add("work", 0.02, work)
        loop.start()
    until(lambda: len(runs) >= 10)
    for loop in loops:
        loop.stop()

    assert max(most) == 1
    assert all(loop.ticks()["work"].seconds_since_ok is not None for loop in loops)


def test_a_job_that_need_not_be_alone_is_not(open_database):
    together = threading.Barrier(2)
    loops = [Background(open_database()) for _ in range(2)]
    for loop in loops:
        loop.add("work", 0.02, lambda: together.wait(PATIENCE_SECONDS), alone=False)
        loop.start()
    until(lambda: all(loop.ticks()["work"].runs >= 1 for loop in loops))
    together.abort()
    for loop in loops:
        loop.stop()


def test_a_job_enters_its_own_context_and_its_transactions_are_its_own(background, database):
    seen = []

    def work() -> None:
        assert not database.in_transaction
        with tenancy.as_system("a job"), database.postgres() as cursor:
            seen.append(cursor.execute("SELECT 1 AS one").fetchone())

    background(work=work)
    until(lambda: seen)

    assert seen[0] == {"one": 1}


def test_stop_finishes_the_job_that_runs_and_begins_no_other(database):
    began, ended = threading.Event(), []

    def work() -> None:
        began.set()
        time.sleep(0.3)
        ended.append(1)

    loop = Background(database)
    loop.add("work", 0.01, work)
    loop.start()
    assert began.wait(PATIENCE_SECONDS)
    loop.stop()
    ends = len(ended)
    time.sleep(0.3)

    assert (ends, len(ended)) == (1, 1)


@pytest.mark.parametrize(("name", "seconds", "message"), [("a", 0, "expected more than 0, got 0"), ("twice", 1, "got twice twice")])
def test_a_job_without_a_pace_or_a_name_of_its_own_is_refused(database, name, seconds, message):
    loop = Background(database)
    loop.add("twice", 1, lambda: None)
    with pytest.raises(ValueError, match=message):
        loop.add(name, seconds, lambda: None)
