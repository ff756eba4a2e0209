"""Every way a job can end, and what it costs (decision 14)."""

import pytest
from saas.books import balance, drift, end, give, hold, new_item, remaining, run, settled
from saas.people import rows

from invokeai_saas.credits.model import JobHold


@pytest.mark.parametrize(("seconds", "credits"), [(0.0, 1), (0.2, 1), (80.0, 80), (80.1, 81), (200.0, 100)])
def test_a_completed_job_costs_its_seconds_and_never_more_than_its_price(database, seconds, credits):
    give(database, "ann", 500)
    [item] = hold(database, "ann", 100)
    run(database, item, seconds)
    end(database, item, "completed")

    assert settled(database, item) == ("captured", credits, "completed")
    assert remaining(database, "ann") == 500 - credits
    assert drift(database) == []


@pytest.mark.parametrize(("price", "seconds", "back"), [(84, 80, 4), (96, 82, 14), (25, 22, 3)])
def test_what_a_job_did_not_use_comes_back(database, price, seconds, back):
    give(database, "ann", 100)
    [item] = hold(database, "ann", price)
    before = remaining(database, "ann")
    run(database, item, seconds)
    end(database, item, "completed")

    assert remaining(database, "ann") - before == back
