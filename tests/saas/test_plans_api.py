"""The routes of plans, as the pages call them."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from saas.people import rows
from saas.subscribed import grant, subscribe

from invokeai_saas.accounts import api
from invokeai_saas.accounts.rate_limits import RateLimiter
from invokeai_saas.billing import api as billing_api
from invokeai_saas.billing.model import Billing, BillingPolicy
from invokeai_saas.plans.api import admin_plans_router, plans_router

BODY = {
    "slug": "team", "name": "Team", "plan_type": "paid", "gpu_tier": "basic", "model_access": "sd_only", "monthly_price": "99.50",
    "price_per_gpu_second": "0.005", "cost_per_gpu_second": "0.0014",
}  # fmt: skip


@pytest.fixture
def client(accounts):
    app = FastAPI()
    api.install(app, api.Web(accounts, RateLimiter()))
    for router in (plans_router, admin_plans_router):
        app.include_router(router, prefix="/api")
    with TestClient(app, base_url="https://invoke.example") as opened:
        yield opened


def ask(client, method: str, path: str, person=None, **also):
    headers = {"Authorization": f"Bearer {person.tokens.access_token}"} if person else {}
    return client.request(method, f"/api/v1/{path}", headers=headers, **also)


def test_what_is_for_sale_is_shown_without_what_it_costs_us(client, ann):
    shown = ask(client, "GET", "subscriptions/plans", ann).json()

    assert [plan["slug"] for plan in shown] == ["trial", "starter", "pro", "studio", "enterprise"]
    assert (shown[2]["monthly_price"], shown[4]["monthly_price"], shown[4]["video_bases"]) == ("75.00", None, None)
    assert not {"cost_per_gpu_second", "stripe_price_monthly", "monthly_margin", "plan_priority"} & set(shown[0])


def test_strangers_are_asked_to_sign_in(client):
    for path in ("subscriptions/plans", "subscriptions/my", "admin/plans"):
        assert ask(client, "GET", path).status_code == 401


def test_my_subscription_is_what_counts_now(client, database, ann):
    nothing = ask(client, "GET", "subscriptions/my", ann).json()
    subscribe(database, ann.user_id, "trial", status="trialing", trial="-1 second")
    over = ask(client, "GET", "subscriptions/my", ann).json()
    grant(database, ann.user_id)
    testing = ask(client, "GET", "subscriptions/my", ann).json()

    assert (nothing["status"], nothing["plan"], nothing["subscription_id"]) == ("none", None, None)
    assert (over["status"], over["suspended"], over["plan"], over["plan_slug"]) == ("expired", True, None, "trial")
    assert (testing["status"], testing["suspended"], testing["plan"]["slug"]) == ("active", False, "tester")


def test_my_subscription_tells_period_grace_and_what_comes_next(client, database, ann):
    subscribe(database, ann.user_id, "studio", status="past_due", ends=True)
    mine = ask(client, "GET", "subscriptions/my", ann).json()

    assert (mine["status"], mine["plan"]["slug"], mine["cancel_at_period_end"], mine["next_plan_slug"]) == (
        "past_due", "studio", True, None,
    )  # fmt: skip
    assert mine["grace_until"] and mine["current_period_end"]


def test_my_subscription_says_whether_it_is_billed_and_what_is_open(client, database, ann):
    subscribe(database, ann.user_id, "starter", stripe="sub_1")
    calm = ask(client, "GET", "subscriptions/my", ann).json()
    rows(
        database,
        """INSERT INTO payments (user_id, kind, stripe_invoice_id, amount, status, credits, plan_slug, description, created_at)
        VALUES (%s, 'subscription', 'in_1', 50, 'failed', 0, 'pro', 'a test', now() + interval '1 second')""",
        ann.user_id,
    )
    waiting = ask(client, "GET", "subscriptions/my", ann).json()
    rows(database, "UPDATE user_subscriptions SET status = 'past_due'")
    unpaid = ask(client, "GET", "subscriptions/my", ann).json()
    rows(database, "UPDATE user_subscriptions SET status = 'active', stripe_subscription_id = NULL")
    by_hand = ask(client, "GET", "subscriptions/my", ann).json()
    told = [(each["billed"], each["payment_open"], each["pending_plan_slug"]) for each in (calm, waiting, unpaid, by_hand)]

    assert told == [(True, False, None), (True, True, "pro"), (True, True, None), (False, False, None)]


def test_an_admin_makes_changes_and_lists_plans(client, clerk):
    made = ask(client, "POST", "admin/plans", clerk, json=BODY)
    changed = ask(client, "PATCH", f"admin/plans/{made.json()['plan_id']}", clerk, json={"is_active": False, "max_queues": None})
    listed = ask(client, "GET", "admin/plans", clerk).json()

    assert (made.status_code, made.json()["slug"], made.json()["max_queues"]) == (201, "team", 1)
    assert (changed.status_code, changed.json()["is_active"], changed.json()["max_queues"]) == (200, False, None)
    assert {plan["slug"]: plan["is_active"] for plan in listed}["team"] is False
    assert {plan["slug"]: plan["monthly_margin"] for plan in listed}["pro"] == "54.000000"


@pytest.mark.parametrize(("changes", "status"), [
    ({"monthly_price": "-1"}, 422), ({"gpu_tier": "huge"}, 422), ({"plan_type": None}, 422), ({"slug": "Has Spaces"}, 422),
    ({"extra": 1}, 422), ({"monthly_price": "1e99"}, 422), ({"max_queues": 0}, 422), ({"name": "x\u0000y"}, 422),
    ({"slug": "pro"}, 409), ({"cost_per_gpu_second": "0.01"}, 400), ({"can_generate_video": True}, 400),
    ({"features": {"k": "\u0000"}}, 400),
])  # fmt: skip
def test_a_bad_plan_is_refused(client, clerk, changes, status):
    refused = ask(client, "POST", "admin/plans", clerk, json={**BODY, **changes})

    assert refused.status_code == status, refused.text
    assert "team" not in [plan["slug"] for plan in ask(client, "GET", "admin/plans", clerk).json()]


def test_stripes_currency_counts_where_something_is_sold(client, accounts, clerk):
    billing_api.install(client.app, Billing(accounts, object(), BillingPolicy(currency="eur")))
    made = ask(client, "POST", "admin/plans", clerk, json={**BODY, "currency": "eur"})
    refused = [ask(client, "POST", "admin/plans", clerk, json={**BODY, "slug": "other"})]
    refused += [ask(client, "PATCH", f"admin/plans/{made.json()['plan_id']}", clerk, json={"currency": "usd"})]

    assert made.status_code == 201
    assert {(answer.status_code, "expected eur" in answer.text) for answer in refused} == {(400, True)}


def test_a_plan_that_is_not_there_is_404_and_a_null_where_none_may_be_400(client, clerk):
    missing = ask(client, "PATCH", "admin/plans/00000000-0000-0000-0000-000000000000", clerk, json={"max_queues": 2})
    pro = next(plan for plan in ask(client, "GET", "admin/plans", clerk).json() if plan["slug"] == "pro")
    null = ask(client, "PATCH", f"admin/plans/{pro['plan_id']}", clerk, json={"gpu_tier": None})

    assert (missing.status_code, null.status_code) == (404, 400)


def test_users_are_kept_out_of_the_admins_routes_before_the_body_is_looked_at(client, ann):
    for method, path in (("GET", "admin/plans"), ("POST", "admin/plans"), ("PATCH", "admin/plans/x")):
        assert ask(client, method, path, ann, json={"bad": 1}).status_code in (403, 422)
    assert ask(client, "POST", "admin/plans", ann, json={"bad": 1}).status_code == 403
