"""The routes of billing over HTTP: who may, what they answer, and that one key is one effect."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from saas.billed import CREDITS, grants, open_shop
from saas.people import rows
from saas.subscribed import grant as lend
from saas.test_billing_webhooks import door

from invokeai_saas.billing import customers, service

REASON = "tries the new video models"
AT_ONCE = 50


@pytest.fixture
def shop(accounts):
    return open_shop(accounts)


@pytest.fixture
def client(shop):
    return door(shop.billing)


def as_(person, key=None):
    return {"Authorization": f"Bearer {person.tokens.access_token}", **({"Idempotency-Key": key} if key else {})}


def test_a_plan_is_bought_changed_canceled_and_taken_up_again(shop, client, ann):
    bought = client.post("/api/v1/subscriptions/subscribe", json={"plan_id": "starter"}, headers=as_(ann, "a"))
    shop.double.pay(bought.json()["session_id"])
    shop.bring()
    changed = client.put("/api/v1/subscriptions/change-plan", json={"plan_id": "pro"}, headers=as_(ann, "b"))
    canceled = client.post("/api/v1/subscriptions/cancel", headers=as_(ann, "c"))
    back = client.post("/api/v1/subscriptions/reactivate", headers=as_(ann, "d"))
    portal = client.post("/api/v1/subscriptions/portal", headers=as_(ann))

    assert bought.json()["url"].startswith("https://checkout.stripe.com/")
    assert (changed.json()["plan_slug"], changed.json()["status"]) == ("pro", "active")
    assert (canceled.json()["cancel_at_period_end"], back.json()["cancel_at_period_end"]) == (True, False)
    assert portal.json()["url"].startswith("https://billing.stripe.com/")
    assert "stripe" not in str(changed.json())


@pytest.mark.parametrize(("method", "path", "body"), [
    ("post", "subscriptions/subscribe", {"plan_id": "starter"}), ("put", "subscriptions/change-plan", {"plan_id": "pro"}),
    ("post", "subscriptions/cancel", None), ("post", "subscriptions/reactivate", None), ("post", "subscriptions/portal", None),
    ("post", "credits/purchase", {"pack": "small"}), ("post", "admin/tester-plan/grant", {}), ("get", "admin/tester-plan/grants", None),
])  # fmt: skip
def test_nobody_and_who_may_not_are_turned_away(client, ann, method, path, body):
    nobody = client.request(method, f"/api/v1/{path}", json=body)
    as_ann = client.request(method, f"/api/v1/{path}", json=body, headers=as_(ann))

    assert nobody.status_code == 401
    assert as_ann.status_code == (403 if "admin" in path else as_ann.status_code)


@pytest.mark.parametrize(("path", "body", "status"), [
    ("subscriptions/subscribe", {"plan_id": "platinum"}, 400), ("subscriptions/subscribe", {"plan_id": "tester"}, 400),
    ("subscriptions/subscribe", {"plan_id": "00000000-0000-0000-0000-000000000000"}, 400),
    ("subscriptions/subscribe", {"plan_id": ""}, 422),
    ("subscriptions/subscribe", {}, 422), ("credits/purchase", {"amount": 0}, 400), ("credits/purchase", {"amount": -1000}, 400),
    ("credits/purchase", {"amount": 1001}, 400), ("credits/purchase", {"pack": "huge"}, 400), ("credits/purchase", {}, 422),
    ("credits/purchase", {"pack": "small", "amount": 1000}, 422), ("credits/purchase", {"amount": 1000.5}, 422),
])  # fmt: skip
def test_bad_input_is_refused_in_words_and_nothing_is_sold(shop, client, ann, path, body, status):
    answer = client.post(f"/api/v1/{path}", json=body, headers=as_(ann))

    assert (answer.status_code, "expected" in answer.text or status == 422) == (status, True)
    assert shop.double.all("checkout.session") == []


def test_a_second_subscription_is_409(shop, client, ann):
    shop.pay(service.subscribe(shop.billing, ann.principal, plan_id="starter", key="s"))

    assert client.post("/api/v1/subscriptions/subscribe", json={"plan_id": "pro"}, headers=as_(ann)).status_code == 409


def test_an_upgrade_that_is_not_paid_is_402_and_said_again_by_every_answer_until_it_is(shop, client, ann):
    shop.pay(service.subscribe(shop.billing, ann.principal, plan_id="starter", key="s"))
    shop.double.cards[customers.known(shop.billing, ann.user_id)] = "declined"

    def upgrade(key):
        return client.put("/api/v1/subscriptions/change-plan", json={"plan_id": "pro"}, headers=as_(ann, key))

    answers = [upgrade(key) for key in ("once", "once", "again")]
    canceled = client.post("/api/v1/subscriptions/cancel", headers=as_(ann, "c")).json()

    assert {answer.status_code for answer in answers} == {402}
    assert {(answer.json()["error"], answer.json()["pending_plan_slug"]) for answer in answers} == {("payment_open", "pro")}
    assert (canceled["plan_slug"], canceled["payment_open"], canceled["pending_plan_slug"]) == ("starter", True, "pro")
    assert len([each for each in shop.double.all("invoice") if each["status"] == "open"]) == 1


def test_a_pack_without_a_plan_is_refused_in_the_shape_of_all_plans_refusals(shop, client, ann):
    answer = client.post("/api/v1/credits/purchase", json={"pack": "small"}, headers=as_(ann, "p"))

    assert (answer.status_code, answer.json()["error"], answer.json()["allowed_by"]) == (403, "plan_required", "starter")
    assert shop.double.all("checkout.session") == []


@pytest.mark.parametrize(("path", "body", "other"), [
    ("credits/purchase", {"pack": "small"}, {"pack": "large"}), ("subscriptions/subscribe", {"plan_id": "starter"}, {"plan_id": "pro"}),
])  # fmt: skip
def test_the_same_key_fifty_times_at_once_is_one_checkout(shop, client, ann, path, body, other):
    lend(shop.billing.database, ann.user_id)

    def buy(_):
        answer = client.post(f"/api/v1/{path}", json=body, headers=as_(ann, "once"))
        return answer.status_code, answer.json()["session_id"]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = set(pool.map(buy, range(AT_ONCE)))
    conflict = client.post(f"/api/v1/{path}", json=other, headers=as_(ann, "once"))

    assert len(answers) == len(shop.double.all("checkout.session")) == 1
    assert conflict.status_code == 409


def test_the_same_key_fifty_times_at_once_is_one_upgrade(shop, client, ann):
    shop.pay(service.subscribe(shop.billing, ann.principal, plan_id="starter", key="s"))

    def upgrade(_):
        answer = client.put("/api/v1/subscriptions/change-plan", json={"plan_id": "pro"}, headers=as_(ann, "once"))
        return answer.status_code, answer.text

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = set(pool.map(upgrade, range(AT_ONCE)))
    shop.bring()

    # The first month's, and the difference: once.
    assert {status for status, _ in answers} == {200}
    assert [row["total_credits"] for row in grants(shop, ann.user_id)] == [CREDITS["starter"], CREDITS["pro"] - CREDITS["starter"]]


def test_the_same_key_fifty_times_at_once_is_one_tester_grant(shop, client, clerk, ann):
    body = {"user_id": ann.user_id, "duration_days": 30, "reason": REASON}

    def grant(_):
        return client.post("/api/v1/admin/tester-plan/grant", json=body, headers=as_(clerk, "once")).status_code

    with ThreadPoolExecutor(AT_ONCE) as pool:
        statuses = set(pool.map(grant, range(AT_ONCE)))

    assert statuses == {201}
    assert [row["total_credits"] for row in grants(shop, ann.user_id)] == [50000]


@pytest.mark.parametrize("wrong", [{"duration_days": 0}, {"duration_days": 366}, {"reason": "too short"}, {"credits": -1}])
def test_absurd_tester_grants_are_400_in_words(shop, client, clerk, ann, wrong):
    body = {"user_id": ann.user_id, "duration_days": 30, "reason": REASON, **wrong}
    answer = client.post("/api/v1/admin/tester-plan/grant", json=body, headers=as_(clerk))

    assert (answer.status_code, "expected" in answer.text) == (400, True)
    assert rows(shop.billing.database, "SELECT 1 FROM tester_plan_grants") == []


def test_a_tester_is_made_listed_and_revoked(client, clerk, ann):
    body = {"user_id": ann.user_id, "duration_days": 30, "reason": REASON, "credits": 100}
    made = client.post("/api/v1/admin/tester-plan/grant", json=body, headers=as_(clerk))
    listed = client.get("/api/v1/admin/tester-plan/grants?active_only=true", headers=as_(clerk))
    revoked = client.delete(f"/api/v1/admin/tester-plan/grant/{made.json()['id']}", headers=as_(clerk))
    again = client.delete(f"/api/v1/admin/tester-plan/grant/{made.json()['id']}", headers=as_(clerk))
    after = client.get("/api/v1/admin/tester-plan/grants?active_only=true", headers=as_(clerk))

    assert (made.status_code, made.json()["credits_granted"]) == (201, 100)
    assert (listed.json()["total"], after.json()["total"]) == (1, 0)
    assert (revoked.json()["revoked"], again.status_code) == (True, 409)
