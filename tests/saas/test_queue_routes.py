"""Our routes of the queue: the status that fits, foreign as missing, and InvokeAI's own descriptions of them."""

from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from invokeai.app.api.auth_dependencies import get_current_user_or_default
from invokeai.app.api.dependencies import ApiDependencies
from invokeai.app.api.routers.session_queue import session_queue_router
from invokeai.app.services.auth.token_service import TokenData
from invokeai.app.services.session_queue.session_queue_common import Batch
from saas.people import rows
from saas.queues import Events, graph, queue_of
from saas.rows import status_of

from invokeai_saas.accounts import api
from invokeai_saas.accounts.rate_limits import RateLimiter
from invokeai_saas.db import tenancy
from invokeai_saas.jobs.api import REPLACED, queue_router
from invokeai_saas.jobs.queue_rows import ListTooLarge
from invokeai_saas.swaps.install import take_away

USER = "x-user"
REFUSALS = {"400", "402", "403", "409"}


class AsUser:
    """What the server's identity middleware does, for callers who are believed."""

    def __init__(self, app) -> None:
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        headers = dict(scope.get("headers", ()))
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with tenancy.as_user(headers[USER.encode()].decode()):
            await self.app(scope, receive, send)


def caller() -> TokenData:
    return TokenData(user_id=str(tenancy.current().user_id), email="someone@example.com", is_admin=False)


@pytest.fixture
def queue(database):
    with tenancy.as_system("a start"):
        return queue_of(database, "web", Events(), max_queue_size=3)


@pytest.fixture
def client(queue, accounts, monkeypatch):
    monkeypatch.setattr(ApiDependencies, "invoker", SimpleNamespace(services=SimpleNamespace(session_queue=queue)), raising=False)
    app = FastAPI()
    app.include_router(queue_router, prefix="/api")
    api.install(app, api.Web(accounts, RateLimiter()))
    app.dependency_overrides[get_current_user_or_default] = app.dependency_overrides[api.caller_of] = caller
    with TestClient(AsUser(app)) as opened:
        yield opened


def ask(client, method: str, path: str, user: str = "ann", body=None):
    return client.request(method, f"/api/v1/queue/default/{path}", json=body, headers={USER: user})


def enqueue(client, runs: int = 1, user: str = "ann", **more):
    batch = Batch(graph=graph(), runs=runs).model_dump(mode="json", exclude_none=True)
    return ask(client, "POST", "enqueue_batch", user, {"batch": batch, **more})


def test_a_batch_is_enqueued_for_the_caller_and_prepend_is_ignored(client, queue):
    answer = enqueue(client, runs=2, prepend=True)
    made = answer.json()

    assert (answer.status_code, made["enqueued"], made["requested"], made["priority"]) == (200, 2, 2, 0)
    assert {ask(client, "GET", f"i/{item}").json()["user_id"] for item in made["item_ids"]} == {"ann"}


def test_a_batch_that_does_not_fit_is_a_conflict_and_leaves_nothing(client, queue):
    refused = enqueue(client, runs=4)
    huge = enqueue(client, runs=10**12)

    assert (refused.status_code, refused.json()) == (409, {"detail": "expected at most 3 pending items, got 4"})
    assert huge.status_code == 409
    with tenancy.as_user("ann"):
        assert queue.get_queue_status("default").total == 0


def test_a_retry_that_does_not_fit_is_a_conflict(client):
    items = enqueue(client, runs=3).json()["item_ids"]
    for item in items:
        ask(client, "PUT", f"i/{item}/cancel")
    enqueue(client)
    refused = ask(client, "PUT", "retry_items_by_id", body=items)
    retried = ask(client, "PUT", "retry_items_by_id", body=items[:2])

    assert (refused.status_code, refused.json()["detail"]) == (409, "expected at most 3 pending items, got 4")
    assert sorted(retried.json()["retried_item_ids"]) == sorted(items[:2])


LARGER = "UPDATE session_queue SET session = jsonb_set(session::jsonb, '{graph,id}', to_jsonb(repeat('x', %s)))::text"


def test_items_are_given_by_their_numbers_up_to_a_size_and_one_counts_as_often_as_it_is_named(client, database):
    one, other = sorted(enqueue(client, runs=2).json()["item_ids"])
    (foreign,) = enqueue(client, user="bob").json()["item_ids"]
    few = ask(client, "POST", "items_by_ids", body={"item_ids": [other, foreign, one, 10**9]})
    rows(database, LARGER, 1 << 20)
    fit = ask(client, "POST", "items_by_ids", body={"item_ids": [one] * 3})
    many = ask(client, "POST", "items_by_ids", body={"item_ids": [one] * 64})
    bobs = ask(client, "POST", "items_by_ids", "bob", body={"item_ids": [one] * 64})
    summaries = ask(client, "POST", "item_summaries_by_ids", body={"item_ids": [one] * 64})
    large = []
    for column in ("field_values", "origin", "destination"):
        rows(database, f"UPDATE session_queue SET {column} = to_jsonb(repeat('x', %s))::text", 1 << 20)
        large.append(ask(client, "POST", "item_summaries_by_ids", body={"item_ids": [one] * 64}))
        rows(database, f"UPDATE session_queue SET {column} = '[]'")

    assert [item["item_id"] for item in few.json()] == [other, one]
    assert [item["item_id"] for item in fit.json()] == [one] * 3
    assert many.status_code == 400 and "at most 64 MB of items at once, got 64 items with 64." in many.json()["detail"]
    assert (summaries.status_code, len(summaries.json())) == (200, 64)
    answers = {(answer.status_code, answer.json()["detail"].partition(",")[0]) for answer in large}
    assert answers == {(400, "expected at most 64 MB of items at once")}
    assert bobs.json() == []


def test_a_retry_counts_what_it_repeats_and_each_item_once(client, database):
    items = enqueue(client, runs=2).json()["item_ids"]
    for item in items:
        ask(client, "PUT", f"i/{item}/cancel")
    rows(database, LARGER, 33 << 20)
    both = ask(client, "PUT", "retry_items_by_id", body=items)
    one = ask(client, "PUT", "retry_items_by_id", body=items[:1] * 64)

    assert both.status_code == 400 and "got 2 items with 66.0 MB: name fewer" in both.json()["detail"]
    assert (one.status_code, one.json()["retried_item_ids"]) == (200, items[:1])


@pytest.mark.parametrize("field", ["batch_id", "origin", "destination"])
def test_what_names_a_batch_is_no_longer_than_a_name(client, queue, field):
    batch = Batch(graph=graph()).model_dump(mode="json", exclude_none=True)
    longest = ask(client, "POST", "enqueue_batch", body={"batch": batch | {field: "x" * 255}})
    longer = ask(client, "POST", "enqueue_batch", body={"batch": batch | {field: "x" * 256}})

    assert longest.status_code == 200
    assert (longer.status_code, longer.json()["detail"]) == (400, f"{field}: expected at most 255 characters, got 256")
    with tenancy.as_user("ann"):
        assert queue.get_queue_status("default").total == 1


def test_items_of_every_queue_count_and_its_name_is_no_longer_than_a_name(client, database):
    def enqueue_in(queue_id, runs):
        batch = Batch(graph=graph(), runs=runs).model_dump(mode="json", exclude_none=True)
        return client.post(f"/api/v1/queue/{queue_id}/enqueue_batch", json={"batch": batch}, headers={USER: "ann"})

    answers = [enqueue_in(*asked) for asked in (("default", 2), ("q" * 255, 1), ("another", 1), ("q" * 256, 1))]

    assert [answer.status_code for answer in answers] == [200, 200, 409, 400]
    assert answers[2].json() == {"detail": "expected at most 3 pending items, got 4"}
    assert answers[3].json() == {"detail": "queue_id: expected at most 255 characters, got 256"}
    assert len(rows(database, "SELECT 1 FROM session_queue")) == 3


@pytest.mark.parametrize("data", [[[]], [[], [{"node_path": "add", "field_name": "a", "items": [1]}]]])
def test_a_group_without_values_is_refused(client, data):
    batch = Batch(graph=graph()).model_dump(mode="json", exclude_none=True) | {"data": data}
    answer = ask(client, "POST", "enqueue_batch", body={"batch": batch})

    assert (answer.status_code, answer.json()) == (400, {"detail": "data: expected at least one list of values in each group, got none"})


def test_all_items_are_listed_up_to_a_size(client, queue, database):
    enqueue(client, runs=2)
    with tenancy.as_user("ann"):
        assert len(queue.list_all_queue_items("default")) == 2
    rows(database, LARGER, 33 << 20)
    with tenancy.as_user("ann"):
        with pytest.raises(ListTooLarge, match="got 2 items with 66.0 MB: ask for item_ids"):
            queue.list_all_queue_items("default")
        assert queue.list_all_queue_items("default", destination="elsewhere") == []
    with tenancy.as_user("bob"):
        assert queue.list_all_queue_items("default") == []


@pytest.mark.parametrize(("method", "path"), [("GET", "i/{}"), ("DELETE", "i/{}"), ("PUT", "i/{}/cancel")])
def test_a_foreign_item_answers_as_a_missing_one(client, database, method, path):
    (item,) = enqueue(client).json()["item_ids"]
    foreign = ask(client, method, path.format(item), "bob")
    missing = ask(client, method, path.format(item + 1), "bob")

    assert (foreign.status_code, missing.status_code) == (404, 404)
    assert foreign.json()["detail"].replace(str(item), "N") == missing.json()["detail"].replace(str(item + 1), "N")
    assert status_of(database, item) == "pending"


def test_foreign_and_missing_items_are_passed_over_by_a_retry(client, database):
    (item,) = enqueue(client).json()["item_ids"]
    ask(client, "PUT", f"i/{item}/cancel")

    assert ask(client, "PUT", "retry_items_by_id", "bob", [item, item + 1]).json()["retried_item_ids"] == []


def test_a_cancel_of_batches_reaches_ones_own_items_and_none_are_no_error(client, database):
    anns, bobs = enqueue(client).json(), enqueue(client, user="bob").json()
    ids = [anns["batch"]["batch_id"], bobs["batch"]["batch_id"]]
    answers = [ask(client, "PUT", "cancel_by_batch_ids", body={"batch_ids": batch_ids}).json() for batch_ids in ([], ids)]

    assert answers == [{"canceled": 0}, {"canceled": 1}]
    assert [status_of(database, made["item_ids"][0]) for made in (anns, bobs)] == ["canceled", "pending"]


@pytest.mark.parametrize("item", ["x", "-1", str(2**63)])
def test_an_item_that_cannot_exist_is_refused_before_the_database(client, item):
    assert ask(client, "GET", f"i/{item}").status_code == 422


def test_the_routes_look_like_those_they_replace():
    upstream, ours = FastAPI(), FastAPI()
    upstream.include_router(session_queue_router, prefix="/api")
    ours.include_router(queue_router, prefix="/api")
    theirs, mine = upstream.openapi()["paths"], ours.openapi()["paths"]
    replaced = {(f"/api{path}", method.lower()) for method, path in REPLACED}

    assert {(path, method) for path, methods in mine.items() for method in methods} == replaced
    for path, method in replaced:
        assert mine[path][method]["operationId"] == theirs[path][method]["operationId"]
        # And how plans and credits refuse.
        assert mine[path][method]["responses"].keys() - REFUSALS == theirs[path][method]["responses"].keys() - REFUSALS
        assert body_of(mine[path][method]) == body_of(theirs[path][method])


def body_of(operation) -> object:
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    return schema.get("$ref", schema.get("type"))


def test_every_replaced_route_is_one_that_invokeai_has():
    routes = list(session_queue_router.routes)
    try:
        take_away([session_queue_router], REPLACED)

        assert len(session_queue_router.routes) == len(routes) - len(REPLACED)
    finally:
        session_queue_router.routes[:] = routes
