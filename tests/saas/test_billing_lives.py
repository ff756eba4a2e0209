"""Customers' lives at the double, event by event: buy, renew, upgrade, downgrade, cancel, fail, refund, dispute."""

import pytest
from saas import books
from saas.billed import grants, letters_to, open_shop, pack_for, subscription, totals
from saas.people import rows
from saas.subscribed import subscribe

from invokeai_saas.billing import service
from invokeai_saas.billing.errors import BadBillingInput, NoSubscription, PaymentOpen, SubscriptionRuns
from invokeai_saas.plans.errors import PlanForbids


@pytest.fixture
def shop(accounts):
    return open_shop(accounts)


@pytest.fixture
def starter(shop, ann):
    """Ann has paid for Starter."""
    shop.pay(service.subscribe(shop.billing, ann.principal, plan_id="starter", key="s"))
    return shop


def customer_of(shop, user_id):
    return rows(
        shop.billing.database, "SELECT stripe_customer_id FROM billing_customers WHERE user_id = %s AND retired_at IS NULL", user_id
    )[0]["stripe_customer_id"]


def test_a_paid_checkout_gives_the_plan_and_its_credits_for_thirty_days(starter, ann):
    held, given = subscription(starter, ann.user_id), grants(starter, ann.user_id)

    assert (held["slug"], held["status"]) == ("starter", "active")
    assert totals(starter, ann.user_id) == [("subscription", 5000, 0)]
    assert (given[0]["valid_until"] - given[0]["valid_from"]).days == 30
    assert ("subscription_activated", {"plan": "starter"}) in [(name, data) for _, name, data in starter.told]


def test_a_checkout_that_is_not_paid_gives_nothing(shop, ann):
    service.subscribe(shop.billing, ann.principal, plan_id="starter", key="s")
    shop.bring()

    assert totals(shop, ann.user_id) == []


def test_each_renewal_grants_once_and_nothing_is_carried_over(starter, ann):
    starter.wait(65)
    given = grants(starter, ann.user_id)

    assert totals(starter, ann.user_id) == [("subscription", 5000, 0)] * 3
    assert all(after["valid_from"] >= before["valid_until"] for before, after in zip(given, given[1:], strict=False))


def test_an_upgrade_is_charged_at_once_and_grants_the_difference_for_the_rest_of_the_period(starter, ann):
    starter.wait(10)
    shown = service.change_plan(starter.billing, ann.principal, plan_id="pro", key="u")
    starter.bring()
    first, second = grants(starter, ann.user_id)
    paid = rows(starter.billing.database, "SELECT amount, plan_slug FROM payments ORDER BY created_at")

    assert shown["plan_slug"] == "pro"
    assert (second["total_credits"], second["valid_until"]) == (10000, subscription(starter, ann.user_id)["current_period_end"])
    assert [(float(row["amount"]), row["plan_slug"]) for row in paid] == [(25.0, "starter"), (33.33, "pro")]


def test_an_upgrade_whose_card_is_declined_changes_nothing_until_it_is_paid(starter, ann):
    starter.double.cards[customer_of(starter, ann.user_id)] = "declined"
    for plan_id in ("pro", "studio"):
        with pytest.raises(PaymentOpen, match="waits for its payment") as refused:
            service.change_plan(starter.billing, ann.principal, plan_id=plan_id, key=plan_id)
        assert refused.value.body()["pending_plan_slug"] == "pro"
    at_once = service.mine(starter.billing, ann.principal)
    starter.bring()
    before = totals(starter, ann.user_id)
    starter.double.cards[customer_of(starter, ann.user_id)] = "ok"
    open_one = next(each for each in starter.double.all("invoice") if each["status"] == "open")
    starter.double._pay_invoice(open_one["id"], {})
    starter.bring()

    assert (at_once["plan_slug"], at_once["payment_open"], at_once["pending_plan_slug"]) == ("starter", True, "pro")
    assert before == [("subscription", 5000, 0)]
    paid = service.mine(starter.billing, ann.principal)
    assert (paid["plan_slug"], paid["payment_open"], paid["pending_plan_slug"]) == ("pro", False, None)
    assert sorted(total for _, total, _ in totals(starter, ann.user_id)) == [5000, 10000]


def test_a_downgrade_waits_for_the_end_of_the_period_and_costs_nothing_before(shop, ann):
    shop.pay(service.subscribe(shop.billing, ann.principal, plan_id="pro", key="s"))
    shown = service.change_plan(shop.billing, ann.principal, plan_id="starter", key="d")
    shop.bring()
    before = subscription(shop, ann.user_id)
    shop.wait(31)
    after = subscription(shop, ann.user_id)

    assert (shown["plan_slug"], shown["next_plan_slug"]) == ("pro", "starter")
    assert (before["slug"], before["next_slug"], before["status"]) == ("pro", "starter", "active")
    assert (after["slug"], after["next_slug"]) == ("starter", None)
    assert totals(shop, ann.user_id) == [("subscription", 15000, 0), ("subscription", 5000, 0)]


def test_a_waiting_downgrade_is_undone_by_choosing_the_plan_that_counts(shop, ann):
    shop.pay(service.subscribe(shop.billing, ann.principal, plan_id="pro", key="s"))
    service.change_plan(shop.billing, ann.principal, plan_id="starter", key="d")
    shown = service.change_plan(shop.billing, ann.principal, plan_id="pro", key="b")
    shop.wait(31)

    assert (shown["plan_slug"], shown["next_plan_slug"]) == ("pro", None)
    assert totals(shop, ann.user_id) == [("subscription", 15000, 0)] * 2


def test_an_upgrade_from_a_waiting_downgrade_is_charged_from_the_plan_that_counts(shop, ann):
    shop.pay(service.subscribe(shop.billing, ann.principal, plan_id="pro", key="s"))
    service.change_plan(shop.billing, ann.principal, plan_id="starter", key="d")
    service.change_plan(shop.billing, ann.principal, plan_id="studio", key="u")
    shop.bring()
    paid = rows(shop.billing.database, "SELECT amount, credits FROM payments ORDER BY created_at, amount")

    assert subscription(shop, ann.user_id)["slug"] == "studio"
    assert [(float(row["amount"]), row["credits"]) for row in paid] == [(75.0, 15000), (75.0, 15000)]


def test_a_cancellation_takes_effect_at_the_end_of_the_period_and_can_be_undone_before(starter, ann):
    canceled = service.cancel(starter.billing, ann.principal, key="c")
    again = service.cancel(starter.billing, ann.principal, key="c2")
    back = service.reactivate(starter.billing, ann.principal, key="r")
    service.cancel(starter.billing, ann.principal, key="c3")
    starter.bring()
    before = subscription(starter, ann.user_id)
    starter.wait(31)
    after = subscription(starter, ann.user_id)

    assert [shown["cancel_at_period_end"] for shown in (canceled, again, back)] == [True, True, False]
    assert (before["status"], after["status"]) == ("active", "canceled")
    assert totals(starter, ann.user_id) == [("subscription", 5000, 0)]


def test_a_failed_renewal_is_past_due_with_grace_and_a_later_payment_heals_it(starter, ann):
    starter.double.cards[customer_of(starter, ann.user_id)] = "declined"
    starter.wait(31)
    unpaid = subscription(starter, ann.user_id)
    starter.double.cards[customer_of(starter, ann.user_id)] = "ok"
    starter.wait(4)
    healed = subscription(starter, ann.user_id)

    assert (unpaid["status"], unpaid["grace_until"] - unpaid["past_due_since"]) == ("past_due", starter.billing.policy.grace)
    assert (healed["status"], healed["past_due_since"], healed["grace_until"]) == ("active", None, None)
    assert totals(starter, ann.user_id) == [("subscription", 5000, 0)] * 2
    assert letters_to(starter, ann.user_id).count("payment_failed") == 1


def test_a_subscription_that_is_never_paid_again_ends(starter, ann):
    starter.double.cards[customer_of(starter, ann.user_id)] = "declined"
    starter.wait(45)

    assert subscription(starter, ann.user_id)["status"] == "canceled"
    assert totals(starter, ann.user_id) == [("subscription", 5000, 0)]


def test_an_upgrade_that_was_not_paid_for_a_day_is_taken_back_and_nothing_is_open(starter, ann):
    starter.double.cards[customer_of(starter, ann.user_id)] = "declined"
    with pytest.raises(PaymentOpen):
        service.change_plan(starter.billing, ann.principal, plan_id="pro", key="u")
    rows(starter.billing.database, "UPDATE payments SET created_at = created_at - interval '23 hours' WHERE status = 'failed'")
    rows(starter.billing.database, "UPDATE user_subscriptions SET created_at = created_at - interval '2 days'")

    assert service.mine(starter.billing, ann.principal)["payment_open"] is False


@pytest.mark.parametrize(("status", "grace"), [(None, ""), ("past_due", "-1 day"), ("canceled", "")])
def test_nobody_is_sold_a_pack_that_they_could_not_use(shop, ann, status, grace):
    if status:
        subscribe(shop.billing.database, ann.user_id, "starter", status=status, grace=grace or "2 days")

    with pytest.raises(PlanForbids) as refused:
        service.purchase(shop.billing, ann.principal, pack="small", key="p")

    assert (refused.value.status, refused.value.body()["limit_type"]) == (403, "subscription")
    assert (refused.value.code == "plan_required") is (status is None)
    assert shop.double.all("customer") == shop.double.all("checkout.session") == []


@pytest.mark.parametrize("slug", ["trial", "starter", "tester"])
def test_whoever_has_a_plan_buys_a_pack_and_comes_back_to_a_page_that_is_there(shop, ann, slug):
    subscribe(shop.billing.database, ann.user_id, slug, status="trialing" if slug == "trial" else "active")
    service.purchase(shop.billing, ann.principal, pack="small", key="p")
    (sold,) = shop.double.all("checkout.session")

    assert sold["success_url"] == "https://invoke.example/account/billing?checkout=success"
    assert sold["cancel_url"] == "https://invoke.example/account/billing?checkout=canceled"


@pytest.mark.parametrize(("pack", "granted", "price"), [("small", 1000, 5.0), ("medium", 5000, 25.0), ("large", 15000, 75.0)])
def test_a_pack_is_granted_once_for_sixty_days(shop, ann, pack, granted, price):
    shop.double.pay(pack_for(shop, ann, pack).session_id)
    events = shop.events()
    shop.bring(*events)
    shop.bring(*events)
    given = grants(shop, ann.user_id)
    paid = rows(shop.billing.database, "SELECT amount, kind FROM payments")

    assert totals(shop, ann.user_id) == [("purchase", granted, 0)]
    assert (given[0]["valid_until"] - given[0]["valid_from"]).days == 60
    assert [(float(row["amount"]), row["kind"]) for row in paid] == [(price, "pack")]


@pytest.mark.parametrize("ok", [True, False])
def test_a_pack_paid_by_a_slow_bank_comes_with_the_money_or_not_at_all(shop, ann, ok):
    checkout = pack_for(shop, ann, "small")
    shop.pay(checkout, later=True)
    before = totals(shop, ann.user_id)
    shop.double.settle(checkout.session_id, ok=ok)
    shop.bring()

    assert before == []
    assert totals(shop, ann.user_id) == ([("purchase", 1000, 0)] if ok else [])
    assert letters_to(shop, ann.user_id)[-2:] == ["pack_pending", "pack_bought" if ok else "pack_failed"]


def test_a_refund_takes_back_its_part_and_never_what_was_used(shop, ann):
    shop.pay(pack_for(shop, ann, "medium"))
    intent = shop.double.all("payment_intent")[0]["id"]
    shop.double._refund({"payment_intent": intent, "amount": "1000"})
    shop.bring()
    part = totals(shop, ann.user_id)
    spend(shop, ann, 2500)
    shop.double._refund({"payment_intent": intent})
    shop.bring()
    row = grants(shop, ann.user_id)[0]

    assert part == [("purchase", 5000, 2000)]
    assert (row["consumed_credits"], row["revoked_credits"]) == (2500, 2500)
    assert rows(shop.billing.database, "SELECT status FROM payments") == [{"status": "refunded"}]


def spend(shop, person, amount):
    """A job that took so many seconds."""
    database = shop.billing.database
    item = books.hold(database, person.user_id, amount)[0]
    books.run(database, item, amount)
    books.end(database, item, "completed")


def test_a_dispute_takes_the_credits_and_a_won_one_gives_them_back(starter, ann):
    intent = starter.double.all("payment_intent")[0]["id"]
    dispute = starter.double.dispute(intent)
    starter.bring()
    disputed = totals(starter, ann.user_id)
    starter.double.close_dispute(dispute["id"], "won")
    starter.bring()

    assert disputed == [("subscription", 5000, 5000)]
    assert totals(starter, ann.user_id) == [("subscription", 5000, 0)]
    assert letters_to(starter, ann.user_id)[-2:] == ["money_back", "credits_back"]


def test_a_lost_dispute_keeps_them_and_an_inquiry_takes_nothing(starter, ann):
    intent = starter.double.all("payment_intent")[0]["id"]
    inquiry = starter.double.dispute(intent, status="warning_needs_response")
    starter.bring()
    asked = totals(starter, ann.user_id)
    starter.double.close_dispute(inquiry["id"], "warning_closed")
    dispute = starter.double.dispute(intent)
    starter.double.close_dispute(dispute["id"], "lost")
    starter.bring()

    assert asked == [("subscription", 5000, 0)]
    assert totals(starter, ann.user_id) == [("subscription", 5000, 5000)]


def test_a_subscriptions_payment_is_no_pack(starter, ann):
    starter.wait(31)

    assert {source for source, _, _ in totals(starter, ann.user_id)} == {"subscription"}


def test_the_same_plan_an_unknown_an_inactive_and_an_internal_one_are_refused_and_nothing_changes(starter, ann):
    rows(starter.billing.database, "UPDATE subscription_plans SET is_active = false WHERE slug = 'studio'")
    before = len(starter.double.requests)
    for plan, words in (
        ("starter", "another plan"),
        ("platinum", "sold"),
        ("studio", "sold"),
        ("tester", "sold"),
        ("enterprise", "contract"),
    ):
        with pytest.raises(BadBillingInput, match=words):
            service.change_plan(starter.billing, ann.principal, plan_id=plan, key="x")

    assert not [each for each in starter.double.requests[before:] if each.startswith("POST")]
    assert subscription(starter, ann.user_id)["slug"] == "starter"


def test_a_second_subscription_is_refused_while_one_runs(starter, ann):
    with pytest.raises(SubscriptionRuns):
        service.subscribe(starter.billing, ann.principal, plan_id="pro", key="again")


def test_two_checkouts_that_were_both_paid_leave_one_subscription_and_the_money_of_the_other_goes_back(shop, ann):
    first = service.subscribe(shop.billing, ann.principal, plan_id="starter", key="a")
    wanted = shop.double._wanted[first.session_id]
    twin = shop.double._new_session(wanted)
    shop.double.pay(first.session_id)
    shop.double.wait(60)
    shop.double.pay(twin["id"])
    shop.bring()
    shop.bring()
    statuses = [each["status"] for each in shop.double.all("subscription")]
    charges = [each["amount_refunded"] for each in shop.double.all("charge")]

    assert (statuses, charges) == (["active", "canceled"], [0, 2500])
    assert totals(shop, ann.user_id) == [("subscription", 5000, 0), ("subscription", 5000, 5000)]
    assert subscription(shop, ann.user_id)["status"] == "active"


def test_a_new_checkout_closes_the_one_before(shop, ann):
    first = service.subscribe(shop.billing, ann.principal, plan_id="starter", key="a")
    service.subscribe(shop.billing, ann.principal, plan_id="pro", key="b")

    assert shop.double.find("checkout.session", first.session_id)["status"] == "expired"


def test_a_customer_that_was_deleted_at_stripe_is_made_anew(starter, ann):
    old = customer_of(starter, ann.user_id)
    starter.double.delete_customer(old)
    starter.bring()
    starter.pay(service.subscribe(starter.billing, ann.principal, plan_id="pro", key="again"))

    assert customer_of(starter, ann.user_id) != old
    assert (subscription(starter, ann.user_id)["slug"], subscription(starter, ann.user_id)["status"]) == ("pro", "active")


def test_who_has_no_subscription_can_change_and_cancel_nothing(shop, ann):
    for verb in (
        lambda: service.change_plan(shop.billing, ann.principal, plan_id="pro", key="x"),
        lambda: service.cancel(shop.billing, ann.principal, key="x"),
    ):
        with pytest.raises(NoSubscription):
            verb()


@pytest.mark.parametrize("amount", [0, -1000, 1, 999, 1_000_000])
def test_a_pack_of_another_size_is_refused(shop, ann, amount):
    with pytest.raises(BadBillingInput, match="1000, 5000, 15000"):
        service.pack_of(amount)
    with pytest.raises(BadBillingInput, match="small, medium, large"):
        service.purchase(shop.billing, ann.principal, pack="huge", key="p")

    assert shop.double.all("checkout.session") == []


def test_a_yearly_price_grants_a_years_credits_for_the_year(shop, ann):
    from saas.stripe_serving import direct

    client = direct(shop.double)
    product = rows(shop.billing.database, "SELECT stripe_product FROM subscription_plans WHERE slug = 'pro'")[0]["stripe_product"]
    yearly = client.v1.prices.create({"unit_amount": 75000, "currency": "usd", "product": product, "recurring": {"interval": "year"}})
    rows(shop.billing.database, "UPDATE subscription_plans SET stripe_price_annual = %s WHERE slug = 'pro'", yearly.id)
    checkout = service.subscribe(shop.billing, ann.principal, plan_id="pro", key="s")
    shop.double._wanted[checkout.session_id]["line_items"][0]["price"] = yearly.id
    shop.pay(checkout)
    given = grants(shop, ann.user_id)[0]

    assert (given["total_credits"], (given["valid_until"] - given["valid_from"]).days) == (180_000, 365)


def test_a_price_that_was_replaced_still_belongs_to_its_plan(starter, ann):
    rows(starter.billing.database, "UPDATE subscription_plans SET stripe_price_monthly = 'price_new' WHERE slug = 'starter'")
    starter.wait(31)

    assert subscription(starter, ann.user_id)["slug"] == "starter"
    assert totals(starter, ann.user_id) == [("subscription", 5000, 0)] * 2


def test_a_plans_new_number_of_credits_counts_from_the_next_invoice(starter, ann):
    rows(starter.billing.database, "UPDATE subscription_plans SET monthly_credits = 6000 WHERE slug = 'starter'")
    starter.bring(*starter.double.all("event")[-3:])
    starter.wait(31)

    assert totals(starter, ann.user_id) == [("subscription", 5000, 0), ("subscription", 6000, 0)]


def test_a_trial_ends_when_a_plan_is_paid(shop, ann):
    from invokeai_saas.billing import trial
    from invokeai_saas.db import tenancy

    with tenancy.as_system("test"), shop.billing.database.postgres() as cursor:
        trial.begin(shop.billing.accounts, cursor, ann.account)
    shop.pay(service.subscribe(shop.billing, ann.principal, plan_id="starter", key="s"))
    statuses = rows(shop.billing.database, "SELECT status FROM user_subscriptions ORDER BY created_at")

    assert {row["status"] for row in statuses} == {"canceled", "active"}
    assert subscription(shop, ann.user_id)["slug"] == "starter"
