"""The routes of credits, as a user and an administrator call them; and what sockets are told."""

from datetime import UTC, datetime, timedelta

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from saas.books import drift, end, give, hold, remaining, run
from saas.people import join, rows

from invokeai_saas.accounts import api as accounts_api
from invokeai_saas.accounts.rate_limits import RateLimiter
from invokeai_saas.credits import adjust, api
from invokeai_saas.credits.errors import BadCredits, InsufficientCredits
from invokeai_saas.credits.events import CreditEvents
from invokeai_saas.credits.model import Balance, JobHold

REASON = "a present for a tester"


@pytest.fixture
def client(accounts):
    app = FastAPI()
    accounts_api.install(app, accounts_api.Web(accounts, RateLimiter()))
    for router in api.ROUTERS:
        app.include_router(router, prefix="/api")
    with TestClient(app, base_url="https://invoke.example") as opened:
        yield opened


def get(client, person, path, **query):
    return client.get(f"/api/v1/{path}", params=query, headers={"Authorization": f"Bearer {person.tokens.access_token}"})


def post(client, person, **body):
    headers = {"Authorization": f"Bearer {person.tokens.access_token}"}
    return client.post("/api/v1/admin/credits/adjust", json=body, headers=headers)


def used(database, person, seconds: float, **detail) -> int:
    """One completed job."""
    [item] = hold(database, person.user_id, JobHold(100, detail=detail))
    run(database, item, seconds)
    end(database, item, "completed")
    return item


def test_a_balance_is_worth_its_minutes_and_dollars():
    balance = Balance(total_credits=700, used_credits=150, held_credits=50)

    assert (balance.remaining_credits, balance.remaining_minutes, str(balance.remaining_value_usd)) == (500, 8.3, "2.50")


def test_a_user_reads_their_balance(client, database, ann):
    give(database, ann.user_id, 700)
    used(database, ann, 60)
    hold(database, ann.user_id, 140)

    assert get(client, ann, "credits/balance").json() == {
        "total_credits": 700,
        "used_credits": 60,
        "held_credits": 140,
        "remaining_credits": 500,
        "remaining_minutes": 8.3,
        "remaining_value_usd": "2.50",
    }


def test_a_user_pages_through_their_own_ledger(client, accounts, database, ann):
    bob = join(accounts, "bob@example.com")
    give(database, bob.user_id, 700)
    give(database, ann.user_id, 700)
    items = [used(database, ann, seconds) for seconds in (10, 20, 30)]
    first = get(client, ann, "credits/transactions", limit=3).json()
    only = get(client, ann, "credits/transactions", type="generation", page=2, limit=2).json()

    assert [line["amount"] for line in first["items"]] == [-30, -20, -10]
    assert (first["total"], first["pages"]) == (4, 2)
    assert [(line["amount"], line["reference_id"]) for line in only["items"]] == [(-10, str(items[0]))]


@pytest.mark.parametrize("query", [{"limit": 101}, {"limit": 0}, {"page": 0}, {"type": "gift"}])
def test_absurd_pages_are_refused(client, ann, query):
    assert get(client, ann, "credits/transactions", **query).status_code == 422


def test_a_user_reads_what_their_jobs_used(client, database, ann):
    give(database, ann.user_id, 700)
    used(database, ann, 10, action_type="txt2img", model_used="sdxl")
    used(database, ann, 20, action_type="txt2vid", model_used="svd")
    used(database, ann, 30.5, action_type="txt2vid", model_used="svd")
    found = get(client, ann, "credits/usage", period="week").json()
    today = datetime.now(UTC).date()
    earlier = get(client, ann, "credits/usage", end_date=str(today - timedelta(days=1))).json()

    assert (found["jobs"], found["credits_consumed"], found["compute_seconds"]) == (3, 61, 60.5)
    assert [(each["action_type"], each["credits_consumed"]) for each in found["by_action"]] == [("txt2img", 10), ("txt2vid", 51)]
    assert [(each["model_used"], each["jobs"]) for each in found["by_model"]] == [("sdxl", 1), ("svd", 2)]
    assert [each["day"] for each in found["by_day"]] == [str(today)]
    assert (earlier["jobs"], earlier["by_day"]) == (0, [])


@pytest.mark.parametrize("day", ["9999-12-31", "0001-01-01", "1999-12-31", "3000-01-01"])
@pytest.mark.parametrize("name", ["start_date", "end_date"])
def test_days_that_no_calendar_reaches_are_refused_in_words(client, ann, clerk, name, day):
    own = get(client, ann, "credits/usage", **{name: day})
    all_of = [get(client, clerk, f"admin/credits/{table}.csv", **{name: day}) for table in ("usage", "transactions")]

    assert {answer.status_code for answer in (own, *all_of)} == {400}
    assert f"{name}: expected a day from 2000-01-01 to 2999-12-31, got {day}" in own.text


def test_a_balance_is_told_by_its_parts_and_their_ends(client, database, ann, clerk):
    give(database, ann.user_id, 500, days=60, source="purchase")
    give(database, ann.user_id, 100, days=7, source="trial")
    hold(database, ann.user_id, 120)
    parts = get(client, ann, "credits/grants").json()
    told = [(part["source"], part["available_credits"], part["held_credits"]) for part in parts]

    assert told == [("trial", 0, 100), ("purchase", 480, 20)]
    assert parts[0]["valid_until"] < parts[1]["valid_until"]
    assert get(client, clerk, "credits/grants").json() == []


def test_a_window_that_runs_backwards_is_refused(client, ann):
    answer = get(client, ann, "credits/usage", start_date="2026-02-01", end_date="2026-01-01")

    assert answer.status_code == 400


def test_strangers_read_nothing(client):
    for path in ("credits/balance", "credits/transactions", "credits/usage", "admin/credits/transactions.csv"):
        assert client.get(f"/api/v1/{path}").status_code == 401


def test_an_admin_gives_and_takes_with_a_reason(client, database, ann, clerk):
    given = post(client, clerk, user_id=ann.user_id, credits=500, reason=REASON, days=7)
    taken = post(client, clerk, user_id=ann.user_id, credits=-200, reason="a mistake of ours")
    log = rows(database, "SELECT actor_id, action, target_id, details FROM audit_log WHERE action = 'credits_adjusted' ORDER BY audit_id")

    assert (given.json()["remaining_credits"], taken.json()["remaining_credits"]) == (500, 300)
    assert [(line["actor_id"], line["target_id"], line["details"]["credits"]) for line in log] == [
        (clerk.user_id, ann.user_id, 500),
        (clerk.user_id, ann.user_id, -200),
    ]
    assert drift(database) == []


def test_an_admin_takes_no_more_than_there_is(client, database, accounts, ann, clerk):
    give(database, ann.user_id, 100)
    answer = post(client, clerk, user_id=ann.user_id, credits=-101, reason=REASON)
    with pytest.raises(InsufficientCredits):
        adjust.adjust(accounts, clerk.principal, user_id=ann.user_id, credits=-101, reason=REASON)

    assert answer.status_code == 402
    assert remaining(database, ann.user_id) == 100


@pytest.mark.parametrize("body", [
    {"credits": 10_000_001}, {"credits": 1.5}, {"credits": True}, {"credits": "9"}, {"reason": "short"}, {"days": 0}, {"days": 3651},
    {"user_id": "a b"}, {"price": 1},
])  # fmt: skip
def test_an_absurd_adjustment_changes_nothing(client, database, ann, clerk, body):
    answer = post(client, clerk, **{"user_id": ann.user_id, "credits": 5, "reason": REASON, **body})

    assert answer.status_code == 422
    assert rows(database, "SELECT 1 FROM credits") == []


@pytest.mark.parametrize(
    "wrong", [{"credits": 0}, {"reason": "  padded   "}, {"reason": "for ann@example.com"}, {"days": 0}, {"credits": -(10**8)}]
)
def test_the_verb_refuses_what_the_route_would(database, accounts, ann, clerk, wrong):
    with pytest.raises(BadCredits):
        adjust.adjust(accounts, clerk.principal, **{"user_id": ann.user_id, "credits": 5, "reason": REASON, **wrong})

    assert rows(database, "SELECT 1 FROM credits") == []


def test_an_adjustment_of_nobody_is_not_found(client, clerk):
    assert post(client, clerk, user_id="nobody", credits=5, reason=REASON).status_code == 404


def test_users_adjust_and_export_nothing(client, ann):
    refused = [post(client, ann, user_id=ann.user_id, credits=5, reason=REASON), get(client, ann, "admin/credits/usage.csv")]

    assert [answer.status_code for answer in refused] == [403, 403]


def test_an_admin_exports_the_ledger_and_no_spreadsheet_runs_it(client, database, ann, clerk):
    give(database, ann.user_id, 100)
    post(client, clerk, user_id=ann.user_id, credits=5, reason="=HYPERLINK(1,2)")
    lines = get(client, clerk, "admin/credits/transactions.csv").text.splitlines()

    assert lines[0] == "created_at,id,user_id,credit_id,amount,transaction_type,description,reference_id"
    assert [line.split(",")[4:6] for line in lines[1:]] == [["100", "purchase"], ["5", "admin_grant"]]
    assert '"\'=HYPERLINK(1,2)"' in lines[2]


def test_an_export_reads_every_page(client, database, ann, clerk, monkeypatch):
    monkeypatch.setattr("invokeai_saas.credits.statistics.PAGE", 2)
    give(database, ann.user_id, 700)
    items = [used(database, ann, seconds) for seconds in (10, 20, 30, 40, 50)]
    lines = get(client, clerk, "admin/credits/usage.csv").text.splitlines()

    assert [line.split(",")[3] for line in lines[1:]] == [str(item) for item in items]


@pytest.fixture
def told(database):
    """What sockets were told, and the look that tells."""
    heard: list[tuple] = []
    events = CreditEvents(database, lambda user_id, name, data: heard.append((user_id, name, data)))
    return heard, events


def test_a_socket_hears_of_holds_and_their_ends_once(database, told):
    heard, events = told
    give(database, "ann", 100)
    hold(database, "ann", 1)
    events.look()
    [item] = hold(database, "ann", 30)
    for _ in range(2):
        events.look()
    run(database, item, 12)
    end(database, item, "completed")
    for _ in range(2):
        events.look()

    assert heard == [
        ("ann", "credit_reserved", {"reservation_id": item, "amount": 30, "remaining_balance": 69}),
        ("ann", "credit_confirmed", {"reservation_id": item, "new_balance": 87, "actual_amount": 12, "refunded": 18}),
    ]


def test_a_socket_hears_why_credits_came_back(database, told):
    heard, events = told
    give(database, "bob", 100)
    events.look()
    [item] = hold(database, "bob", 30)
    rows(database, "DELETE FROM session_queue WHERE item_id = %s", item)
    events.look()

    assert heard[1] == (
        "bob",
        "credit_refunded",
        {"reservation_id": item, "new_balance": 100, "refunded_amount": 30, "reason": "not_started"},
    )


def test_the_thread_tells_by_itself(database):
    heard: list[str] = []
    events = CreditEvents(database, lambda user_id, name, data: heard.append(name), every_seconds=0.02)
    give(database, "ann", 100)
    events.start()
    deadline = datetime.now(UTC) + timedelta(seconds=20)
    while not heard and datetime.now(UTC) < deadline:
        hold(database, "ann", 1)
    events.stop()

    assert heard[0] == "credit_reserved"
