"""Trials, testers, and what time does: who gets what once, who loses it when, what is erased."""

from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest
from saas import books
from saas.billed import grants, letters_to, open_shop, pack_for, subscription, totals
from saas.people import PASSWORD, join, letters, rows, secret_of

from invokeai_saas.accounts import admin, erase, operator
from invokeai_saas.accounts import service as service_of_accounts
from invokeai_saas.accounts.errors import AlreadyConfirmed, NoSuchAccount, NotAllowed
from invokeai_saas.accounts.setup import accounts_of
from invokeai_saas.billing import customers, reconcile, service, testers, trial, upkeep
from invokeai_saas.billing.errors import AlreadyRevoked, BadBillingInput, NoSuchGrant
from invokeai_saas.db import tenancy
from invokeai_saas.plans.catalog import entitlement_of
from invokeai_saas.settings import Settings

REASON = "tries the new video models"


@pytest.fixture
def shop(accounts):
    return open_shop(accounts)


@pytest.fixture
def trying(accounts):
    """Accounts whose addresses begin a trial when they are proved."""
    return replace(accounts, verified=lambda cursor, account: trial.begin(accounts, cursor, account))


def plan_of(database, user_id):
    with tenancy.as_user(user_id), database.postgres() as cursor:
        entitled = entitlement_of(cursor, user_id)
    return (entitled.plan.slug if entitled.plan else None, entitled.status, entitled.suspended)


# trials


def test_a_proved_address_begins_a_trial_of_seven_days_and_500_credits(trying, shop):
    bob = join(trying, "bob@example.com")
    given = grants(shop, bob.user_id)

    assert plan_of(trying.database, bob.user_id) == ("trial", "trialing", False)
    assert [(row["source"], row["total_credits"], (row["valid_until"] - row["valid_from"]).days) for row in given] == [("trial", 500, 7)]
    assert "trial_started" in letters_to(shop, bob.user_id)


def signed_up(accounts, email):
    """An account whose letter is not answered; the secret of its link."""
    service_of_accounts.signup(accounts, email=email, password=PASSWORD, name=None)
    return secret_of(letters(accounts.database, "verify", email)[-1])


WAYS = {
    "the operator verifies": lambda accounts, clerk, email: operator.verify(accounts, email=email),
    "a new password by letter": lambda accounts, clerk, email: reset(accounts, email),
}


def reset(accounts, email):
    service_of_accounts.forgot_password(accounts, email=email)
    secret = secret_of(letters(accounts.database, "reset", email)[-1])
    service_of_accounts.reset_password(accounts, secret=secret, password=PASSWORD)


@pytest.mark.parametrize("way", list(WAYS))
def test_whatever_proves_an_address_begins_its_trial_once_and_the_old_link_says_so(trying, shop, clerk, way):
    secret = signed_up(trying, "bob@example.com")
    for _ in range(2):
        WAYS[way](trying, clerk, "bob@example.com")
    user_id = rows(trying.database, "SELECT user_id FROM users WHERE email = 'bob@example.com'")[0]["user_id"]
    with pytest.raises(AlreadyConfirmed, match="confirmed already: log in"):
        service_of_accounts.verify_email(trying, secret)

    assert plan_of(trying.database, user_id) == ("trial", "trialing", False)
    assert totals(shop, user_id) == [("trial", 500, 0)]
    assert service_of_accounts.login(trying, email="bob@example.com", password=PASSWORD)


def test_somebody_who_was_let_in_without_a_trial_has_one_when_it_is_said_again(trying, shop, ann):
    for _ in range(2):
        operator.verify(trying, email="ann@example.com")

    assert totals(shop, ann.user_id) == [("trial", 500, 0)]


def test_a_role_proves_the_address_too_and_its_link_brings_no_second_trial(trying, shop):
    secret = signed_up(trying, "bob@example.com")
    operator.give_role(trying, email="bob@example.com", role="admin")
    done = service_of_accounts.verify_email(trying, secret)

    assert totals(shop, done.account.user_id) == [("trial", 500, 0)]


@pytest.mark.parametrize("by", ["operator", "admin"])
def test_an_account_that_is_made_for_somebody_has_a_trial(trying, shop, clerk, by):
    if by == "operator":
        operator.add(trying, email="bob@example.com")
    else:
        admin.create(trying, clerk.principal, email="bob@example.com", name=None)
    user_id = rows(trying.database, "SELECT user_id FROM users WHERE email = 'bob@example.com'")[0]["user_id"]

    assert totals(shop, user_id) == [("trial", 500, 0)]


@pytest.mark.parametrize(("metering", "given"), [(True, [("trial", 500, 0)]), (False, [])])
def test_the_commands_begin_trials_as_the_server_does_where_plans_count(shop, database, metering, given):
    operator.add(accounts_of(Settings(metering=metering), database), email="bob@example.com")

    assert totals(shop, rows(database, "SELECT user_id FROM users WHERE email = 'bob@example.com'")[0]["user_id"]) == given


@pytest.mark.parametrize("again", ["bob@example.com", "bob+1@example.com", "bob+2@example.com"])
def test_nobody_gets_a_second_trial_with_the_same_mailbox(trying, shop, again):
    bob = join(trying, "bob@example.com")
    erase.delete_me(trying, bob.principal, password="Correct1horse")
    second = join(trying, again)

    assert grants(shop, second.user_id) == []
    assert plan_of(trying.database, second.user_id)[0] is None


@pytest.mark.parametrize(("one", "other", "same"), [
    ("a.b@gmail.com", "ab+x@googlemail.com", True), ("a.b@example.com", "ab@example.com", False),
    ("+x@example.com", "+y@example.com", False),
])  # fmt: skip
def test_mailboxes_are_known_by_how_their_providers_read_them(one, other, same):
    assert (trial.mailbox(one) == trial.mailbox(other)) is same


def test_the_mark_of_a_trial_is_no_address_and_cannot_be_taken_out(trying, database):
    join(trying, "bob@example.com")
    kept = rows(database, "SELECT * FROM trials")

    assert "bob" not in str(kept)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        rows(database, "DELETE FROM trials")


def test_a_trial_that_is_over_expires_and_its_data_go_after_thirty_days(trying, shop, database):
    bob = join(trying, "bob@example.com")
    rows(database, "UPDATE user_subscriptions SET trial_end = now(), current_period_start = now() - interval '7 days'")
    before = plan_of(database, bob.user_id)
    upkeep.run(shop.billing)
    upkeep.run(shop.billing)
    ended = rows(database, "SELECT access_ended_at FROM saas_users WHERE user_id = %s", bob.user_id)[0]["access_ended_at"]
    early = erase.erase_due(trying)
    rows(database, "UPDATE saas_users SET access_ended_at = access_ended_at - interval '25 days' WHERE user_id = %s", bob.user_id)
    erase.send_notices(trying)
    rows(database, "UPDATE saas_users SET access_ended_at = access_ended_at - interval '8 days'")
    rows(database, "UPDATE saas_users SET erase_notice_at = erase_notice_at - interval '8 days'")

    assert before == (None, "expired", True)
    assert subscription(shop, bob.user_id)["status"] == "expired"
    assert (ended is not None, early, letters_to(shop, bob.user_id).count("trial_ended")) == (True, 0, 1)
    assert erase.erase_due(trying) == 1


def test_who_pays_after_the_trial_keeps_everything(trying, shop, database):
    bob = join(trying, "bob@example.com")
    rows(database, "UPDATE user_subscriptions SET trial_end = now(), current_period_start = now() - interval '7 days'")
    upkeep.run(shop.billing)
    shop.pay(service.subscribe(shop.billing, bob.principal, plan_id="starter", key="s"))

    assert rows(database, "SELECT access_ended_at FROM saas_users WHERE user_id = %s", bob.user_id) == [{"access_ended_at": None}]
    assert plan_of(database, bob.user_id) == ("starter", "active", False)


# testers


def test_a_tester_grant_lends_the_plan_and_its_credits_for_the_window(shop, clerk, ann):
    row = testers.grant(shop.billing, clerk.principal, user_id=ann.user_id, days=30, reason=REASON)
    given = grants(shop, ann.user_id)[0]
    audited = rows(shop.billing.database, "SELECT action FROM audit_log WHERE target_id = %s", ann.user_id)

    assert plan_of(shop.billing.database, ann.user_id) == ("tester", "active", False)
    assert (given["source"], given["total_credits"], given["valid_until"]) == ("admin_grant", 50000, row["valid_until"])
    assert row["valid_until"] - row["valid_from"] == timedelta(days=30)
    assert "tester_granted" in {line["action"] for line in audited}
    assert letters_to(shop, ann.user_id)[-1] == "tester_granted"


def test_a_revoked_tester_loses_what_is_unspent_and_running_jobs_keep_what_they_hold(shop, clerk, ann):
    database = shop.billing.database
    row = testers.grant(shop.billing, clerk.principal, user_id=ann.user_id, days=30, reason=REASON, amount=1000)
    used, running = books.hold(database, ann.user_id, 100, 200)
    books.run(database, used, 100)
    books.end(database, used, "completed")
    testers.revoke(shop.billing, clerk.principal, row["grant_id"])
    during = grants(shop, ann.user_id)[0]
    books.run(database, running, 50)
    books.end(database, running, "completed")
    after = grants(shop, ann.user_id)[0]

    assert (during["consumed_credits"], during["held_credits"], during["revoked_credits"]) == (100, 200, 700)
    assert (after["consumed_credits"], after["held_credits"], after["revoked_credits"]) == (150, 0, 850)
    assert plan_of(database, ann.user_id)[0] is None
    assert books.drift(database) == []


def test_a_grant_is_revoked_once_and_not_after_its_end(shop, clerk, ann):
    row = testers.grant(shop.billing, clerk.principal, user_id=ann.user_id, days=1, reason=REASON)
    over = testers.grant(shop.billing, clerk.principal, user_id=ann.user_id, days=1, reason=REASON)
    testers.revoke(shop.billing, clerk.principal, row["grant_id"])
    statement = "UPDATE tester_plan_grants SET valid_from = now() - interval '2 days', valid_until = now() WHERE grant_id = %s"
    rows(shop.billing.database, statement, over["grant_id"])

    for grant_id in (row["grant_id"], over["grant_id"]):
        with pytest.raises(AlreadyRevoked):
            testers.revoke(shop.billing, clerk.principal, grant_id)
    with pytest.raises(NoSuchGrant):
        testers.revoke(shop.billing, clerk.principal, "00000000-0000-0000-0000-000000000000")


@pytest.mark.parametrize("wrong", [
    {"days": 0}, {"days": 366}, {"days": -1}, {"reason": "too short"}, {"reason": "   short    "}, {"amount": 0}, {"amount": -5},
    {"amount": 10_000_001},
])  # fmt: skip
def test_absurd_grants_are_refused_and_change_nothing(shop, clerk, ann, wrong):
    with pytest.raises(BadBillingInput, match="expected"):
        testers.grant(shop.billing, clerk.principal, **{"user_id": ann.user_id, "days": 30, "reason": REASON, **wrong})

    assert grants(shop, ann.user_id) == []
    assert rows(shop.billing.database, "SELECT 1 FROM tester_plan_grants") == []


@pytest.mark.parametrize(("days", "reason"), [(1, REASON), (365, REASON), (30, "ten chars!")])
def test_the_edges_of_a_grant_are_allowed(shop, clerk, ann, days, reason):
    row = testers.grant(shop.billing, clerk.principal, user_id=ann.user_id, days=days, reason=reason)

    assert (row["valid_until"] - row["valid_from"]).days == days


def test_only_admins_make_testers_and_only_of_accounts_that_are_there(shop, clerk, ann):
    with pytest.raises(NotAllowed):
        testers.grant(shop.billing, ann.principal, user_id=ann.user_id, days=30, reason=REASON)
    with pytest.raises(NoSuchAccount):
        testers.grant(shop.billing, clerk.principal, user_id="nobody", days=30, reason=REASON)


def test_a_tester_with_a_paid_plan_keeps_it(shop, clerk, ann):
    shop.pay(service.subscribe(shop.billing, ann.principal, plan_id="starter", key="s"))
    testers.grant(shop.billing, clerk.principal, user_id=ann.user_id, days=30, reason=REASON)

    assert plan_of(shop.billing.database, ann.user_id) == ("starter", "active", False)
    assert sorted(totals(shop, ann.user_id)) == [("admin_grant", 50000, 0), ("subscription", 5000, 0)]


def test_lists_of_grants_come_in_pages(shop, clerk, ann):
    for _ in range(3):
        testers.grant(shop.billing, clerk.principal, user_id=ann.user_id, days=1, reason=REASON)
    first, total = testers.listed(shop.billing, clerk.principal, page=1, limit=2, active_only=False)
    testers.revoke(shop.billing, clerk.principal, first[0]["grant_id"])
    active, running = testers.listed(shop.billing, clerk.principal, page=1, limit=20, active_only=True)

    assert (len(first), total, len(active), running) == (2, 3, 2, 2)


# what time does


def unpaid(shop, person):
    shop.pay(service.subscribe(shop.billing, person.principal, plan_id="starter", key="s"))
    shop.double.cards[customers.known(shop.billing, person.user_id)] = "declined"
    shop.wait(31)


def test_grace_runs_out_and_the_plan_is_suspended_until_it_is_paid(shop, ann):
    database = shop.billing.database
    unpaid(shop, ann)
    rows(database, "UPDATE user_subscriptions SET grace_until = now() + interval '1 minute'")
    during = plan_of(database, ann.user_id)
    rows(database, "UPDATE user_subscriptions SET grace_until = now() - interval '1 minute'")
    after = plan_of(database, ann.user_id)
    upkeep.run(shop.billing)
    upkeep.run(shop.billing)
    shop.double.cards[customers.known(shop.billing, ann.user_id)] = "ok"
    shop.wait(4)

    assert (during, after) == (("starter", "past_due", False), ("starter", "past_due", True))
    assert letters_to(shop, ann.user_id).count("suspended") == 1
    assert plan_of(database, ann.user_id) == ("starter", "active", False)


def test_a_deleted_account_pays_no_more(shop, ann):
    shop.pay(service.subscribe(shop.billing, ann.principal, plan_id="starter", key="s"))
    erase.delete_me(shop.billing.accounts, ann.principal, password="Correct1horse")
    shop.double.fail("500", 3, "DELETE customers")
    failed = upkeep.close_deleted(shop.billing)
    closed = upkeep.close_deleted(shop.billing)
    shop.bring()

    assert (failed, closed) == (0, 1)
    assert {each["status"] for each in shop.double.all("subscription")} == {"canceled"}
    assert rows(shop.billing.database, "SELECT 1 FROM billing_customers") == []
    assert len(rows(shop.billing.database, "SELECT 1 FROM payments")) == 1


def test_who_had_nothing_ever_is_not_ended(shop, ann):
    assert upkeep.end_access(shop.billing) == 0


def test_reconciliation_brings_what_no_webhook_brought_and_then_nothing_more(shop, ann):
    shop.double.pay(service.subscribe(shop.billing, ann.principal, plan_id="starter", key="s").session_id)
    shop.events()
    first = reconcile.reconcile(shop.billing)
    second = reconcile.reconcile(shop.billing)

    assert totals(shop, ann.user_id) == [("subscription", 5000, 0)]
    assert (first.new > 0, second.new, second.failed) == (True, 0, 0)


def test_what_stripe_forgot_to_list_is_found_customer_by_customer(shop, ann):
    shop.double.pay(service.subscribe(shop.billing, ann.principal, plan_id="starter", key="s").session_id)
    shop.double.pay(pack_for(shop, ann, "small").session_id)
    intent = shop.double.all("payment_intent")[-1]["id"]
    shop.double._refund({"payment_intent": intent})
    shop.events()
    shop.double._kinds["event"] = {}
    reconcile.reconcile(shop.billing)
    before = totals(shop, ann.user_id)
    done = reconcile.reconcile(shop.billing, everybody=True)

    assert (before, done.customers) == ([], 1)
    assert sorted(totals(shop, ann.user_id)) == [("purchase", 1000, 1000), ("subscription", 5000, 0)]
    assert plan_of(shop.billing.database, ann.user_id) == ("starter", "active", False)
