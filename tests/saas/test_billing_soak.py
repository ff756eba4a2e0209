"""Whatever way events come, late, twice, in any order, or not at all and reconciled: the books are those of an in-order replay.

SAAS_SOAK_LIVES=500 SAAS_SOAK_SHUFFLES=20 for the long form; each failure names its seed.
"""

import os
import random
from collections import Counter

import pytest
from saas.billed import CREDITS, POLICY, Shop, state_of
from saas.billing_life import live, set_prices
from saas.people import rows

from invokeai_saas.billing import apply, inbox, process
from invokeai_saas.billing.model import Billing

LIVES = int(os.environ.get("SAAS_SOAK_LIVES", "5"))
SHUFFLES = int(os.environ.get("SAAS_SOAK_SHUFFLES", "20" if LIVES > 100 else "4"))
FIRST = int(os.environ.get("SAAS_SOAK_FIRST", "0"))


@pytest.fixture
def prices(accounts):
    return set_prices(accounts)


def invoices_due(shop: Shop) -> Counter:
    """What the paid invoices and packs of a life grant, reckoned from the double alone."""
    prices = {price["id"]: slug for slug, price in zip(CREDITS, shop.double.all("price"), strict=True)}
    due: Counter = Counter()
    for invoice in shop.double.all("invoice"):
        if invoice["status"] == "paid":
            amounts = [CREDITS[prices[line["pricing"]["price_details"]["price"]]] for line in invoice["lines"]["data"]]
            due[invoice["id"]] = amounts[0] if len(amounts) == 1 else amounts[1] - amounts[0]
    for intent in shop.double.all("payment_intent"):
        if intent["status"] == "succeeded" and "pack" in intent["metadata"]:
            due[intent["id"]] = int(intent["metadata"]["credits"])
    return due


def granted(accounts, user_id: str) -> Counter:
    found = rows(accounts.database, "SELECT reference_id, total_credits FROM credits WHERE user_id = %s", user_id)
    assert len({row["reference_id"] for row in found}) == len(found)
    return Counter({row["reference_id"]: row["total_credits"] for row in found})


def one_life(accounts, prices, seed: int, shuffle: int | None):
    shop, user_id, lost = live(accounts, prices, seed=seed, shuffle=shuffle)
    stuck = rows(accounts.database, "SELECT event_id, error FROM stripe_events WHERE state NOT IN ('done', 'ignored')")
    assert stuck == [], f"seed {seed}, shuffle {shuffle}"
    assert granted(accounts, user_id) == invoices_due(shop), f"seed {seed}, shuffle {shuffle}"
    return state_of(shop, user_id), lost


@pytest.mark.timeout(4 * 3600)
def test_shuffled_repeated_and_lost_events_end_as_an_in_order_replay_does(accounts, prices):
    lost_in_all, lived = 0, Counter()
    for seed in range(FIRST, FIRST + LIVES):
        expected, _ = one_life(accounts, prices, seed, None)
        lived.update(what_happened(expected))
        for shuffle in range(SHUFFLES):
            found, lost = one_life(accounts, prices, seed, shuffle)
            lost_in_all += lost
            assert found == expected, f"seed {seed}, shuffle {shuffle}"
        if LIVES > 100 and seed % 25 == 24:
            print(f"{seed + 1} lives x {SHUFFLES} shuffles, {lost_in_all} events lost and reconciled", flush=True)

    print(f"{LIVES} lives x {SHUFFLES} shuffles, {lost_in_all} events lost and reconciled; {dict(lived)}")
    assert lost_in_all > 0
    assert {"pack", "subscription", "taken back"} <= set(lived)


def what_happened(state) -> list[str]:
    """So that nobody soaks empty lives."""
    kinds = [row["kind"] for row in state["payments"]] + [row["status"] for row in state["payments"]]
    taken = ["taken back" for row in state["credits"] if row["revoked_credits"]]
    upgrades = ["upgrade" for row in state["payments"] if row["description"].startswith("Upgrade")]
    return kinds + taken + upgrades + [f"ends {row['status']}" for row in state["subscriptions"]]


def test_the_soak_notices_events_that_are_applied_from_their_own_body(accounts, prices, monkeypatch):
    """As cashier #1201: an old event's object overwrites what is newer."""
    told, rng, real = {}, random.Random(0), process._fetch

    def stale(gateway, customer, ref, snapshot):
        real(gateway, customer, ref, snapshot)
        if snapshot.subscriptions is not None:
            said = told.setdefault(customer, [])
            said.append(snapshot.subscriptions)
            snapshot.subscriptions = rng.choice(said)

    monkeypatch.setattr(process, "_fetch", stale)

    with pytest.raises(AssertionError):
        for seed in range(10):
            expected, _ = one_life(accounts, prices, seed, None)
            assert one_life(accounts, prices, seed, 0)[0] == expected


def test_the_soak_notices_grants_without_their_reference(accounts, prices, monkeypatch):
    real = apply.credits.grant
    monkeypatch.setattr(apply, "BEFORE", "SELECT status, credits FROM payments WHERE stripe_invoice_id = %s AND false")
    monkeypatch.setattr(apply.credits, "grant", lambda cursor, **values: real(cursor, **{**values, "reference_id": None}))

    with pytest.raises(AssertionError):
        for seed in range(10):
            one_life(accounts, prices, seed, 0)


def test_the_policy_of_the_soak_is_the_default_but_for_the_wait():
    assert POLICY.grace == Billing(None).policy.grace  # type: ignore[arg-type]
    assert inbox.TOLERANCE_SECONDS == 300
