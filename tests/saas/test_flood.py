"""A flood of items of customers on better plans: who is on none of them waits so long and no longer."""

import math

import pytest
from saas.rows import add_items
from saas.turns import claims_until_served, plan

from invokeai_saas.jobs import lease

# Ten minutes that the plans differ by, and one that may not be whole yet.
STUDIO_LEAD_SECONDS = 11 * 60


def flood(database, studios: int = 10) -> None:
    """Ten times as many items of studio customers as one starter customer's, and more of them all the while."""
    for number in range(studios):
        add_items(database, f"studio-{number}", 40)
        plan(database, f"studio-{number}", 10)
    add_items(database, "starter", 40)


@pytest.mark.parametrize(("seconds_per_claim", "studios"), [(6.0, 10), (60.0, 10), (180.0, 10), (6.0, 3)])
def test_a_starters_wait_under_a_flood_of_studio_items_is_bounded(database, seconds_per_claim, studios):
    """At most eleven minutes, and then one turn of each studio customer: after that none of them is ahead again."""
    flood(database, studios)
    bound = math.ceil(STUDIO_LEAD_SECONDS / seconds_per_claim) + studios
    waited = claims_until_served(database, "starter", seconds_per_claim=seconds_per_claim, most=40 * studios)
    again = claims_until_served(database, "starter", seconds_per_claim=seconds_per_claim, most=40 * studios)
    print(f"{waited} and {again} claims of {seconds_per_claim:.0f} s went before the starter's first and second, the bound is {bound}")

    assert max(waited, again) <= bound
    assert waited > 0


def test_without_the_minutes_waited_a_starter_starves(database, monkeypatch):
    waits_in_claim = "floor(extract(epoch FROM statement_timestamp() - GREATEST(head.since, seen.served_at)) / 60)"
    assert waits_in_claim in lease.CLAIM
    monkeypatch.setattr(lease, "CLAIM", lease.CLAIM.replace(waits_in_claim, "0"))
    flood(database)

    assert claims_until_served(database, "starter", seconds_per_claim=6.0, most=200) == 200
