"""Who works on an item stops when it is taken away, and not because it was just settled."""

import logging
import time
from collections.abc import Iterator
from threading import Event

import pytest
from saas.chains import claimed
from saas.claiming_worker import complete
from saas.rows import add_items

from invokeai_saas.jobs import holding, lease
from invokeai_saas.jobs.holding import Holding


@pytest.fixture(autouse=True)
def everything_said(caplog) -> Iterator[None]:
    with caplog.at_level(logging.INFO):
        yield


def held(database, stop: Event) -> Holding:
    add_items(database, "ann", 1)
    return Holding(database, claimed(database), stop=stop, seconds=lambda: 0.0, lease_seconds=60, poll_seconds=0.05)


def test_an_item_that_was_settled_a_moment_ago_is_not_lost(database, caplog):
    stop = Event()
    with held(database, stop) as holds:
        outcome = complete(database, holds.attempt)
        # What a worker still does before it hears that its runner is done.
        time.sleep(0.4)

    assert (outcome, holds.lost, stop.is_set()) == ("completed", False, False)
    assert "no longer runs" not in caplog.text


def test_an_item_that_was_taken_away_is_lost(database, caplog):
    stop = Event()
    with held(database, stop) as holds:
        lease.revoke(database, holds.attempt.item_id)
        stopped = stop.wait(120)

    assert (stopped, holds.lost) == (True, True)
    assert f"stopping work on item {holds.attempt.item_id}: attempt 1 of item {holds.attempt.item_id} no longer runs" in caplog.text


def test_a_process_that_hangs_after_its_item_was_settled_is_stopped(database, monkeypatch):
    monkeypatch.setattr(holding, "SETTLED_SECONDS", 0.2)
    stop = Event()
    with held(database, stop) as holds:
        complete(database, holds.attempt)

        assert stop.wait(120)
