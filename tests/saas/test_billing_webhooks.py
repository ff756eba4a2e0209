"""The webhook's door and the inbox behind it: proved on the raw body, written down once, processed by one at a time, fenced."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from saas.billed import POLICY, open_shop, pack_for, subscription, totals
from saas.patience import until
from saas.people import rows
from saas.stripe_serving import SECRET, signature

from invokeai_saas.accounts import api as accounts_api
from invokeai_saas.accounts.setup import limiter_of
from invokeai_saas.billing import api, inbox, process, service
from invokeai_saas.billing.errors import Busy, Fenced
from invokeai_saas.billing.model import Billing
from invokeai_saas.billing.worker import InboxWorker
from invokeai_saas.db import tenancy

PATH = "/api/v1/webhooks/stripe"


@pytest.fixture
def shop(accounts):
    return open_shop(accounts)


@pytest.fixture
def paid(shop, ann):
    """Ann paid a checkout, and no event has come yet."""
    shop.double.pay(service.subscribe(shop.billing, ann.principal, plan_id="starter", key="s").session_id)
    return shop


def door(billing):
    """The application with the routes of billing."""
    app = FastAPI()
    accounts_api.install(app, accounts_api.Web(billing.accounts, limiter_of(billing.database)))
    api.install(app, billing)
    for router in api.ROUTERS:
        app.include_router(router, prefix="/api")
    return TestClient(app, raise_server_exceptions=False)


def send(client, body, **how):
    header = how.pop("header", None) or signature(body if isinstance(body, str) else body.decode(), **how)
    return client.post(PATH, content=body, headers={"Stripe-Signature": header, "Content-Type": "application/json"})


def event(shop, number=0):
    return json.dumps(shop.sent[number])


def inside(shop):
    return rows(shop.billing.database, "SELECT event_id, type, state, attempts, error FROM stripe_events ORDER BY received_at, event_id")


def test_a_signed_event_is_written_down_and_answered_before_anything_is_done(paid, ann):
    answer = send(door(paid.billing), event(paid))

    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert [row["state"] for row in inside(paid)] == ["waiting"]
    assert totals(paid, ann.user_id) == []


def bad_bodies(body):
    """What must be refused, and why."""
    now = int(time.time())
    return {
        "stale": (body, signature(body, at=now - 301)),
        "long ago": (body, signature(body, at=0)),
        "signed with another secret": (body, signature(body, secret="whsec_other")),
        "serialised again": (json.dumps(json.loads(body), indent=2), signature(body)),
        "a space more": (body + " ", signature(body)),
        "another amount": (body.replace("2500", "9900"), signature(body)),
        "no signature": (body, "none"),
        "empty signature": (body, f"t={now},v1="),
        "an older scheme": (body, signature(body).replace("v1=", "v0=")),
        "time moved": (body, signature(body, at=now - 100).replace(f"t={now - 100}", f"t={now}")),
        "not utf-8": (b"\xff\xfe" + body.encode(), signature(body)),
        "no json": ("hello", signature("hello")),
        "no event": ("[1]", signature("[1]")),
        "an event of nothing": ('{"object": "event", "id": "evt_1"}', signature('{"object": "event", "id": "evt_1"}')),
        "empty": ("", signature("")),
        "letters that no signature has": (body, f"t={now},v1=é".encode()),
        "deeper than anybody reads": ("[" * 100_000, signature("[" * 100_000)),
    }


@pytest.mark.parametrize("why", list(bad_bodies("{}")))
def test_what_stripe_did_not_sign_is_refused_and_leaves_nothing(paid, why):
    body, header = bad_bodies(event(paid))[why]
    answer = send(door(paid.billing), body, header=header)

    assert answer.status_code == 400
    assert inside(paid) == []


def test_an_event_of_just_under_five_minutes_is_taken(paid):
    body = event(paid)

    assert send(door(paid.billing), body, at=int(time.time()) - 290).status_code == 200


def test_while_a_secret_is_replaced_both_are_good(paid):
    billing = replace(paid.billing, policy=replace(POLICY, webhook_secrets=("whsec_new", SECRET)))
    answers = [send(door(billing), event(paid), secret=secret).status_code for secret in ("whsec_new", SECRET, "whsec_third")]

    assert answers == [200, 200, 400]


@pytest.mark.parametrize("change", [{"livemode": True}, {"account": "acct_other"}, {"type": "customer.created"}])
def test_events_of_another_mode_account_or_kind_are_answered_and_left_alone(paid, caplog, change):
    body = json.dumps({**paid.sent[0], **change})
    answer = send(door(paid.billing), body)

    assert answer.status_code == 200
    assert inside(paid) == []
    assert ("another account or mode" in caplog.text) == ("type" not in change)


def test_an_event_of_an_unknown_customer_is_kept_as_ignored_and_logged(paid, caplog):
    stranger = json.loads(event(paid))
    stranger["data"]["object"]["customer"] = "cus_stranger"
    answer = send(door(paid.billing), json.dumps(stranger))

    assert (answer.status_code, [row["state"] for row in inside(paid)]) == (200, ["ignored"])
    assert "nobody here has" in caplog.text


def test_without_keys_the_routes_say_so(accounts, ann):
    client = door(Billing(accounts))
    bearer = {"Authorization": f"Bearer {ann.tokens.access_token}"}
    asked = [
        client.post(PATH, content="{}"),
        client.post("/api/v1/subscriptions/subscribe", json={"plan_id": "starter"}, headers=bearer),
        client.post("/api/v1/credits/purchase", json={"pack": "small"}, headers=bearer),
        client.post("/api/v1/subscriptions/portal", headers=bearer),
    ]

    assert {answer.status_code for answer in asked} == {503}


def test_fifty_copies_at_once_are_one_event(paid):
    client, body = door(paid.billing), event(paid)
    with ThreadPoolExecutor(8) as pool:
        answers = {answer.status_code for answer in pool.map(lambda _: send(client, body), range(50))}

    assert answers == {200}
    assert len(inside(paid)) == 1


def test_eight_workers_grant_once(paid, ann):
    for each in paid.events():
        inbox.record(paid.billing, each)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: process.process_waiting(paid.billing), range(8)))

    assert totals(paid, ann.user_id) == [("subscription", 5000, 0)]
    assert {row["state"] for row in inside(paid)} == {"done"}


def test_who_lost_the_lease_while_fetching_writes_nothing(paid, ann):
    billing = replace(paid.billing, policy=replace(POLICY, lease=timedelta(seconds=0)))
    for each in paid.events():
        inbox.record(billing, each)
    slow = inbox.take(billing)
    snapshot = process.fetch(billing, slow)
    taken_over = inbox.take(billing, slow.customer)

    assert taken_over.fence == slow.fence + 1
    with pytest.raises(Fenced):
        process._apply(billing, slow, snapshot)
    assert totals(paid, ann.user_id) == []
    assert {row["state"] for row in inside(paid)} == {"waiting"}


def test_without_the_fence_an_old_snapshot_would_win(paid, ann, monkeypatch):
    billing = replace(paid.billing, policy=replace(POLICY, lease=timedelta(seconds=0)))
    paid.bring()
    inbox.retry(billing, paid.double.all("event")[-1]["id"])
    rows(billing.database, "UPDATE stripe_events SET state = 'waiting', processed_at = NULL")
    slow = inbox.take(billing)
    snapshot = process.fetch(billing, slow)
    service.cancel(paid.billing, ann.principal, key="c")
    monkeypatch.setattr(inbox, "demand_fence", lambda cursor, taken: None)
    process._apply(billing, slow, snapshot)

    assert subscription(paid, ann.user_id)["cancel_at_period_end"] is False


def test_while_somebody_looks_after_a_customer_a_verb_waits_and_then_says_so(paid, ann):
    paid.bring()
    customer = rows(paid.billing.database, "SELECT stripe_customer_id FROM billing_customers")[0]["stripe_customer_id"]
    inbox.take(paid.billing, customer)

    with pytest.raises(Busy):
        service.cancel(paid.billing, ann.principal, key="c")
    assert process.process_waiting(paid.billing) == 0


def test_a_verb_that_fails_lets_the_customer_go(paid, ann):
    paid.bring()
    paid.double.fail("500", 10, "POST subscriptions")
    with pytest.raises(Exception, match="does not answer"):
        service.cancel(paid.billing, ann.principal, key="c")
    paid.double.faults.clear()

    assert service.cancel(paid.billing, ann.principal, key="c")["cancel_at_period_end"] is True


@pytest.mark.parametrize("kind", ["500", "timeout", "429"])
def test_while_stripe_is_away_events_wait_and_are_brought_in_later(paid, ann, kind):
    paid.double.fail(kind, 1000)
    paid.bring()
    waiting = inside(paid)
    paid.double.faults.clear()
    rows(paid.billing.database, "UPDATE stripe_events SET not_before = now()")
    process.process_waiting(paid.billing)

    assert {row["state"] for row in waiting} == {"waiting"}
    assert all(row["error"].startswith("StripeUnavailable") for row in waiting)
    assert totals(paid, ann.user_id) == [("subscription", 5000, 0)]


def test_an_event_that_never_works_is_given_up_loudly_and_holds_nothing_up(paid, ann, caplog):
    billing = replace(paid.billing, policy=replace(POLICY, max_attempts=2))
    shop = replace(paid, billing=billing)
    rows(billing.database, "UPDATE subscription_plans SET stripe_price_monthly = NULL, stripe_product = NULL WHERE slug = 'starter'")
    shop.bring()
    shop.pay(pack_for(shop, ann, "small"))
    rows(billing.database, "UPDATE stripe_events SET not_before = now() WHERE state = 'waiting'")
    process.process_waiting(billing)
    stuck = inbox.listed(billing, ["failed"])
    before = totals(shop, ann.user_id)
    rows(
        billing.database,
        "UPDATE subscription_plans SET stripe_price_monthly = %s WHERE slug = 'starter'",
        shop.double.all("price")[0]["id"],
    )
    inbox.retry(billing, None)
    process.process_waiting(billing)

    assert before == [("purchase", 1000, 0)]
    assert stuck and all("belongs to no plan" in row["error"] for row in stuck)
    assert "given up after 2 tries" in caplog.text
    assert sorted(totals(shop, ann.user_id)) == [("purchase", 1000, 0), ("subscription", 5000, 0)]


def test_the_worker_is_woken_by_an_event(paid, ann):
    worker = InboxWorker(paid.billing, every_seconds=60)
    worker.start()
    try:
        client = door(worker.billing)
        for number in range(len(paid.sent)):
            assert send(client, event(paid, number)).status_code == 200
        until(lambda: {row["state"] for row in inside(paid)} == {"done"})
    finally:
        worker.stop()

    assert totals(paid, ann.user_id) == [("subscription", 5000, 0)]


def test_no_question_goes_to_stripe_from_inside_a_transaction(paid):
    with tenancy.as_system("a test"), paid.billing.database.postgres(), pytest.raises(RuntimeError, match="no open transaction"):
        paid.billing.gateway.subscriptions("cus_1")


def test_events_that_were_processed_long_ago_are_forgotten(paid):
    paid.bring()
    rows(paid.billing.database, "UPDATE stripe_events SET processed_at = now() - interval '91 days'")

    assert inbox.forget(paid.billing) > 0
    assert inside(paid) == []


def test_two_verbs_at_once_make_one_change(paid, ann):
    paid.bring()
    billing = replace(paid.billing, policy=replace(POLICY, wait=timedelta(seconds=10)))
    start = threading.Barrier(2)

    def upgrade(key):
        start.wait()
        try:
            return service.change_plan(billing, ann.principal, plan_id="pro", key=key)["plan_slug"]
        except Exception as error:
            return type(error).__name__

    with ThreadPoolExecutor(2) as pool:
        done = sorted(pool.map(upgrade, ("a", "b")))

    assert done == ["BadBillingInput", "pro"]
    assert len([each for each in paid.double.all("invoice") if each["billing_reason"] == "subscription_update"]) == 1
