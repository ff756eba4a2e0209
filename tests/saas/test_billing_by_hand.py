"""A plan given by whoever has the machine: it counts at once, with its credits, and takes nothing from what is paid for."""

import pytest
from saas.people import join, rows

from invokeai_saas.accounts.errors import NoSuchAccount
from invokeai_saas.billing import by_hand
from invokeai_saas.billing.errors import BadBillingInput, SubscriptionRuns
from invokeai_saas.credits import service as credits
from invokeai_saas.db import tenancy
from invokeai_saas.plans import catalog
from invokeai_saas.plans.errors import NoSuchPlan

CONTRACT = {"slug": "enterprise", "days": 365, "amount": 100_000, "reason": "contract 17"}
SUBSCRIBE = """
INSERT INTO user_subscriptions (user_id, plan_id, stripe_subscription_id, status, current_period_start, current_period_end)
SELECT %s, plan_id, 'sub_1', 'active', now(), now() + interval '30 days' FROM subscription_plans WHERE slug = 'pro'
"""


def counts_for(database, user_id):
    with tenancy.as_user(user_id), database.postgres() as cursor:
        entitlement = catalog.entitlement_of(cursor, user_id)
        return entitlement.plan and entitlement.plan.slug, credits.balance(cursor, user_id).remaining_credits


def subscriptions(database, user_id):
    return rows(database, "SELECT status FROM user_subscriptions WHERE user_id = %s ORDER BY created_at", user_id)


def test_a_given_plan_counts_at_once_with_its_credits(accounts, database, ann):
    by_hand.give(accounts, email="Ann@example.com", **CONTRACT)

    assert counts_for(database, ann.user_id) == ("enterprise", 100_000)


def test_it_is_in_the_audit_log_with_its_reason(accounts, database, ann):
    by_hand.give(accounts, email="ann@example.com", **CONTRACT)
    (line,) = rows(database, "SELECT * FROM audit_log WHERE action = 'plan_given'")

    assert line["target_id"] == ann.user_id
    assert line["details"] == {"plan": "enterprise", "days": 365, "credits": 100_000, "reason": "contract 17"}


def test_the_next_one_takes_its_place_and_credits_add_up(accounts, database, ann):
    by_hand.give(accounts, email="ann@example.com", **CONTRACT)
    by_hand.give(accounts, email="ann@example.com", **{**CONTRACT, "slug": "studio", "amount": 0})

    assert counts_for(database, ann.user_id) == ("studio", 100_000)
    assert [row["status"] for row in subscriptions(database, ann.user_id)] == ["canceled", "active"]


def test_what_is_paid_for_at_stripe_is_not_taken_away(accounts, database, ann):
    with tenancy.as_system("a test"), database.postgres() as cursor:
        cursor.execute(SUBSCRIBE, (ann.user_id,))

    with pytest.raises(SubscriptionRuns, match="end that first"):
        by_hand.give(accounts, email="ann@example.com", **CONTRACT)
    assert counts_for(database, ann.user_id) == ("pro", 0)


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"days": 0}, BadBillingInput, "expected 1 to 3,660, got 0"),
        ({"days": 3661}, BadBillingInput, "expected 1 to 3,660, got 3,661"),
        ({"amount": -1}, BadBillingInput, "expected 0 to 10,000,000, got -1"),
        ({"amount": 10_000_001}, BadBillingInput, "expected 0 to 10,000,000"),
        ({"reason": " "}, BadBillingInput, "reason"),
        ({"reason": "as ann@example.com asked"}, BadBillingInput, "keeps no address"),
        ({"slug": "gold"}, NoSuchPlan, "gold"),
        ({"email": "nobody@example.com"}, NoSuchAccount, "nobody@example.com"),
    ],
)
def test_bad_input_says_what_was_expected_and_changes_nothing(accounts, database, ann, wrong, error, said):
    with pytest.raises(error, match=said):
        by_hand.give(accounts, **{"email": "ann@example.com", **CONTRACT, **wrong})
    assert subscriptions(database, ann.user_id) == [] and counts_for(database, ann.user_id) == (None, 0)


def test_the_first_administrator_may_do_everything(accounts, database):
    chief = join(accounts, "chief@example.com", role="super_admin")
    by_hand.give(accounts, email="chief@example.com", **by_hand.FIRST_ADMIN)

    assert counts_for(database, chief.user_id) == ("enterprise", 1_000_000)
