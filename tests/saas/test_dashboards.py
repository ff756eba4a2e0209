"""What administrators see: money in, seconds out, margins, CSV; and the letter that credits run low."""

import csv
import io
import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from saas.customers import as_books, give
from saas.people import join, letters, rows
from saas.subscribed import subscribe

from invokeai_saas.accounts import admin
from invokeai_saas.accounts import api as accounts_api
from invokeai_saas.accounts.errors import NotAllowed
from invokeai_saas.accounts.rate_limits import RateLimiter
from invokeai_saas.admin import dashboards
from invokeai_saas.admin.api import as_csv, dashboards_router
from invokeai_saas.admin.dashboards import Window
from invokeai_saas.credits import low_balance

NOW = datetime.now(UTC)
JUST_NOW = NOW - timedelta(milliseconds=1)
PAY = """
INSERT INTO payments (user_id, kind, stripe_payment_intent_id, stripe_invoice_id, amount, amount_refunded, currency, status, credits,
    description, created_at)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, 'a test', %s)
"""
USE = """
INSERT INTO usage_records (user_id, job_id, action_type, model_used, gpu_tier, compute_seconds, credits_held, credits_consumed,
    provider_credits, outcome, created_at)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, 0, %s, %s)
"""


@pytest.fixture
def sold(accounts, ann, database):
    """Ann on Pro: an invoice, a pack half refunded, one of another currency, one long ago; three jobs on two tiers."""
    subscribe(database, ann.user_id, "pro", stripe="sub_ann")
    of = ann.user_id
    rows(database, PAY, of, "subscription", None, "in_1", "75.00", "0", "usd", "succeeded", 15000, JUST_NOW)
    rows(database, PAY, of, "pack", "pi_1", None, "25.00", "12.50", "usd", "refunded", 5000, JUST_NOW)
    rows(database, PAY, of, "pack", "pi_2", None, "5.00", "0", "eur", "succeeded", 1000, JUST_NOW)
    rows(database, PAY, of, "pack", "pi_3", None, "99.00", "0", "usd", "failed", 0, JUST_NOW)
    rows(database, PAY, of, "pack", "pi_4", None, "75.00", "0", "usd", "succeeded", 15000, NOW - timedelta(days=40))
    use(database, of, "1", "txt2img", "sdxl", "basic", 1000, 900, 900, "completed")
    use(database, of, "2", "txt2vid", "animatediff", "high_performance", 100, 200, 100, "completed")
    use(database, of, "3", "txt2vid", "animatediff", "high_performance", 10, 200, 0, "failed_empty")
    give(database, of, 700)
    return accounts


def use(database, user_id, job, action, model, tier, seconds, held, consumed, outcome, at=JUST_NOW):
    """As the role of the books writes it."""
    as_books(database, USE, user_id, job, action, model, tier, seconds, held, consumed, outcome, at)


def test_revenue_is_what_was_paid_less_what_went_back_per_currency(sold, clerk):
    found = dashboards.revenue(sold, clerk.principal, Window.of("month", now=NOW))

    assert found["net"] == [{"currency": "eur", "amount": Decimal("5.00")}, {"currency": "usd", "amount": Decimal("87.50")}]
    assert found["monthly_recurring_revenue"] == Decimal("75.00")
    assert [(row["slug"], row["users"]) for row in found["subscriptions"]] == [("pro", 1)]
    assert found["outstanding_credits"] == 700


def test_recurring_is_what_stripe_bills_not_what_was_given_and_not_of_who_is_gone(sold, clerk, root, database):
    subscribe(database, clerk.user_id, "studio")
    bob, eve = (join(sold, f"{name}@example.com") for name in ("bob", "eve"))
    subscribe(database, bob.user_id, "starter", stripe="sub_bob")
    subscribe(database, eve.user_id, "pro")
    for gone in (bob, eve):
        admin.delete(sold, root.principal, gone.user_id)
    found = dashboards.revenue(sold, clerk.principal, Window.of("month", now=NOW))

    assert found["monthly_recurring_revenue"] == Decimal("75.00")
    assert [(row["slug"], row["users"], row["billed"]) for row in found["subscriptions"]] == [("pro", 1, 1), ("studio", 1, 0)]


def test_cost_is_measured_seconds_at_what_the_tier_costs(sold, clerk):
    found = dashboards.revenue(sold, clerk.principal, Window.of("month", now=NOW))

    # 1,110 seconds at 0.0014.
    assert (found["gpu_cost_usd"], found["margin_usd"]) == (Decimal("1.55"), Decimal("85.95"))
    assert {row["gpu_tier"]: row["jobs"] for row in found["tiers"]} == {"basic": 1, "high_performance": 2}


def test_a_longer_period_holds_older_payments(sold, clerk):
    month, quarter = (dashboards.revenue(sold, clerk.principal, Window.of(period, now=NOW)) for period in ("month", "quarter"))
    paid = [sum(row["paid"] for row in found["payments"] if row["currency"] == "usd") for found in (month, quarter)]

    assert paid == [Decimal("100.00"), Decimal("175.00")]


def test_usage_counts_jobs_by_what_they_made_and_how_they_ended(sold, clerk):
    found = dashboards.usage(sold, clerk.principal, Window.of("week", now=NOW))
    ended = {(row["action_type"], row["outcome"]): (row["jobs"], row["overrun_seconds"]) for row in found["actions"]}

    assert (found["active_users"], found["jobs"], found["credits"], found["compute_seconds"]) == (1, 3, 1000, 1110)
    assert ended == {("txt2img", "completed"): (1, 100), ("txt2vid", "completed"): (1, 0), ("txt2vid", "failed_empty"): (1, 0)}
    assert [row["model_used"] for row in found["models"]] == ["sdxl", "animatediff"]
    assert [row["jobs"] for row in found["days"]] == [0] * 6 + [3]


@pytest.mark.parametrize("board", [dashboards.revenue, dashboards.usage])
def test_a_user_sees_no_dashboard(accounts, ann, board):
    with pytest.raises(NotAllowed):
        board(accounts, ann.principal, Window.of("day"))


@pytest.mark.parametrize(("period", "days"), [("day", 1), ("week", 7), ("month", 30), ("quarter", 91), ("year", 365)])
def test_a_period_is_whole_days_up_to_now(period, days):
    window = Window.of(period, now=datetime(2026, 3, 5, 13, tzinfo=UTC))

    assert (len(window.days()), window.days()[-1], window.since.hour) == (days, date(2026, 3, 5), 0)


@pytest.fixture
def client(sold, clerk):
    app = FastAPI()
    accounts_api.install(app, accounts_api.Web(sold, RateLimiter()))
    app.include_router(dashboards_router, prefix="/api")
    return TestClient(app, headers={"Authorization": f"Bearer {clerk.tokens.access_token}"})


def test_the_routes_answer_as_json_and_as_csv(client):
    revenue, usage = (client.get(f"/api/v1/admin/dashboard/{name}?period=month") for name in ("revenue", "usage"))
    sheets = {name: client.get(f"/api/v1/admin/dashboard/{name}.csv") for name in ("revenue", "usage")}
    lines = {name: list(csv.DictReader(io.StringIO(sheet.text))) for name, sheet in sheets.items()}

    assert (revenue.status_code, usage.status_code) == (200, 200), (revenue.text, usage.text)
    assert json.loads(revenue.text)["margin_usd"] == "85.95"
    assert {sheet.headers["content-type"] for sheet in sheets.values()} == {"text/csv; charset=utf-8"}
    assert [line["paid"] for line in lines["revenue"]] == ["5.00", "100.00"]
    assert len(lines["usage"]) == 30


@pytest.mark.parametrize("period", ["decade", "", "1"])
def test_an_unknown_period_is_refused(client, period):
    assert client.get(f"/api/v1/admin/dashboard/usage?period={period}").status_code == 422


def test_no_cell_of_a_spreadsheet_is_a_formula():
    found = as_csv("x", ["a", "b"], [{"a": "=HYPERLINK(1)", "b": -5}])

    assert found.body.decode().splitlines()[1] == "'=HYPERLINK(1),-5"


def settle(database, user_id: str) -> None:
    """A job of the user's was settled a moment ago."""
    use(database, user_id, "1", "txt2img", "sdxl", "basic", 1, 1, 1, "completed")


def test_who_falls_below_ten_credits_gets_one_letter(accounts, ann, database):
    give(database, ann.user_id, 9)
    settle(database, ann.user_id)
    told = [low_balance.tell(accounts) for _ in range(3)]

    assert told == [1, 0, 0]
    assert len(letters(database, "low_balance", "ann@example.com")) == 1


def test_who_had_enough_again_gets_another_letter(accounts, ann, database):
    give(database, ann.user_id, 9)
    settle(database, ann.user_id)
    low_balance.tell(accounts)
    give(database, ann.user_id, 100)
    above = low_balance.tell(accounts)
    rows(database, "SELECT credits_deduct(%s, 105, 'a test', NULL)", ann.user_id)

    assert (above, low_balance.tell(accounts)) == (0, 1)


def test_ten_credits_are_enough_and_who_never_worked_is_left_alone(accounts, ann, clerk, database):
    give(database, ann.user_id, 10)
    settle(database, ann.user_id)
    give(database, clerk.user_id, 1)

    assert low_balance.tell(accounts) == 0
