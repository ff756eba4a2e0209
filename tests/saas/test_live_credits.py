"""A server that meters, as people meet it: plans and credits at the door, a real clip paid for by its seconds, nothing twice."""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import socketio
from graphs import add, connect, text_to_video
from saas import plan_graphs as graphs
from saas.clips import png
from saas.customers import balance_of, give, install_models, subscribe
from saas.live_saas import Person, SaasServer, multipart
from saas.people import rows

from invokeai_saas.credits.reconcile import reconcile
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.db.embedded import start_embedded
from invokeai_video_nodes.toy_settings import TOY_MODEL

pytestmark = [pytest.mark.xdist_group("live-credits"), pytest.mark.timeout(900)]
ENQUEUE, RETRY = "/api/v1/queue/default/enqueue_batch", "/api/v1/queue/default/retry_items_by_id"
AT_ONCE = 50
ENDED = ("completed", "failed", "canceled")


@pytest.fixture(scope="module")
def server() -> Iterator[SaasServer]:
    # Not under pytest's own folder, which is closed to the account that Postgres runs as.
    with tempfile.TemporaryDirectory(prefix="saas-live-") as folder:
        Path(folder).chmod(0o755)
        with SaasServer(Path(folder, "data"), variables={"SAAS_METERING": "on"}) as running:
            yield running


@pytest.fixture(scope="module")
def database(server) -> Iterator[PostgresDatabase]:
    with server.database() as opened:
        install_models(opened)
        yield opened


@pytest.fixture(scope="module")
def toy(server, database) -> dict[str, Any]:
    """The toy model, installed by the administrator."""
    admin = server.admin()
    status, job = admin.ask("POST", f"/api/v2/models/install?source={TOY_MODEL}&inplace=true", {})
    assert status == 201, job
    while job["status"] not in ("completed", "error", "cancelled"):
        time.sleep(0.2)
        job = admin.get(f"/api/v2/models/install/{job['id']}")
    config = job["config_out"]
    return {name: config[name] for name in ("key", "hash", "name", "base", "type")}


class Customers:
    """Makes people with a plan and credits."""

    def __init__(self, server: SaasServer, database: PostgresDatabase) -> None:
        self.server, self.database, self._count = server, database, 0

    def __call__(self, slug: str | None = "starter", credits: int = 1000) -> Person:
        self._count += 1
        # So many logins from one address are too many.
        rows(self.database, "DELETE FROM rate_limits")
        person = self.server.person(f"customer-{self._count}@example.org")
        if slug is not None:
            subscribe(self.database, person.user_id, slug)
        if credits:
            give(self.database, person.user_id, credits)
        return person


@pytest.fixture(scope="module")
def customer(server, database) -> Customers:
    return Customers(server, database)


def enqueue(person: Person, graph: Any, *, runs: int = 1, **headers: str) -> tuple[int, Any]:
    return person.ask("POST", ENQUEUE, {"batch": json.loads(graphs.batch(graph, runs=runs).model_dump_json()), "prepend": False}, **headers)


def clip(model: dict[str, Any], *, steps: int = 3) -> dict[str, Any]:
    """A clip of 16 frames of 128x128: 6 credits."""
    graph = text_to_video(model, denoise={"num_frames": 16, "width": 128, "height": 128, "steps": steps})
    return {"batch": {"graph": {"id": "g", **graph}, "runs": 1}, "prepend": False}


def ended(person: Person, item: int, seconds: float = 300) -> dict[str, Any]:
    """The item once it is over."""
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        found = person.get(f"/api/v1/queue/default/i/{item}")
        if found["status"] in ENDED:
            return dict(found)
        time.sleep(0.2)
    raise AssertionError(f"item {item} did not end in {seconds} s:\n{person.server.log()[-3000:]}")


def of(database: PostgresDatabase, person: Person) -> dict[str, Any]:
    """Items, holds and usage records of somebody."""
    return {
        "items": rows(database, "SELECT item_id, status FROM session_queue WHERE user_id = %s ORDER BY item_id", person.user_id),
        "holds": rows(database, "SELECT * FROM credit_holds WHERE user_id = %s ORDER BY item_id", person.user_id),
        "usage": rows(database, "SELECT * FROM usage_records WHERE user_id = %s ORDER BY created_at", person.user_id),
    }


def test_a_clip_is_held_run_and_paid_by_its_seconds(server, database, customer, toy):
    person = customer("pro")
    status, answer = person.ask("POST", ENQUEUE, clip(toy))
    assert status == 200, answer
    [item] = answer["item_ids"]
    at_first = of(database, person)["holds"][0]
    done = ended(person, item)
    found, balance = of(database, person), balance_of(database, person.user_id)
    [held], [used] = found["holds"], found["usage"]

    assert done["status"] == "completed", done
    assert (at_first["amount"], at_first["gpu_tier"], at_first["detail"]["action_type"]) == (6, "high_performance", "txt2vid")
    assert (held["state"], used["outcome"], used["credits_held"]) == ("captured", "completed", 6)
    assert 0 < used["compute_seconds"] and held["captured"] == used["credits_consumed"] == min(6, max(1, -(-used["compute_seconds"] // 1)))
    assert balance.remaining_credits == 1000 - held["captured"]
    assert (used["width"], used["height"], used["model_used"]) == (128, 128, toy["name"])
    assert reconcile(database).problems == ()


@contextmanager
def listening(person: Person) -> Iterator[list[tuple[str, Any]]]:
    """What comes over a socket of this person's."""
    heard: list[tuple[str, Any]] = []
    client = socketio.Client(reconnection=False)
    client.on("*", lambda event, data=None: heard.append((event, data)))
    auth = {"token": person.token}
    client.connect(person.server.url, auth=auth, transports=["polling"], socketio_path="/ws/socket.io", wait_timeout=60)
    try:
        yield heard
    finally:
        # Saying goodbye would wait for the end of a long poll.
        client.eio.disconnect(abort=True)


def credit_events(heard: list[tuple[str, Any]], *, at_least: int, seconds: float = 120) -> list[tuple[str, Any]]:
    begun = time.monotonic()
    while len(found := [each for each in heard if each[0].startswith("credit_")]) < at_least:
        if time.monotonic() - begun > seconds:
            break
        time.sleep(0.1)
    return found


def test_the_users_pages_hear_of_it_and_nobody_elses(customer, toy):
    person, stranger = customer("pro"), customer("pro")
    with listening(person) as heard, listening(stranger) as overheard:
        _, answer = person.ask("POST", ENQUEUE, clip(toy))
        [item] = answer["item_ids"]
        ended(person, item)
        told = credit_events(heard, at_least=2)

    assert [name for name, _ in told] == ["credit_reserved", "credit_confirmed"]
    assert (told[0][1]["reservation_id"], told[0][1]["amount"], told[0][1]["remaining_balance"]) == (item, 6, 994)
    assert told[1][1]["actual_amount"] + told[1][1]["refunded"] == 6
    assert credit_events(overheard, at_least=0) == []


def test_loading_the_model_is_not_charged(database, customer, toy, server):
    person = customer("pro")
    _, answer = person.ask("POST", ENQUEUE, clip(toy))
    ended(person, answer["item_ids"][0])
    attempt = rows(
        database,
        "SELECT gpu_seconds, extract(epoch FROM ended_at - started_at)::float AS lasted FROM job_attempts WHERE user_id = %s",
        person.user_id,
    )[0]

    assert 0 < attempt["gpu_seconds"] < attempt["lasted"]


def test_a_canceled_item_pays_what_was_measured_and_gets_the_rest_back(database, customer, toy):
    person = customer("pro")
    _, answer = person.ask("POST", ENQUEUE, clip(toy, steps=150))
    [item] = answer["item_ids"]
    while person.get(f"/api/v1/queue/default/i/{item}")["status"] == "pending":
        time.sleep(0.1)
    time.sleep(3)
    status, _ = person.ask("PUT", f"/api/v1/queue/default/i/{item}/cancel")
    [held] = of(database, person)["holds"]

    assert (status, ended(person, item)["status"], held["reason"]) == (200, "canceled", "canceled")
    assert 1 <= held["captured"] <= 6
    assert balance_of(database, person.user_id).remaining_credits == 1000 - held["captured"]


def test_an_item_that_is_canceled_before_it_runs_costs_nothing(database, customer, toy):
    person = customer("pro")
    items = [person.ask("POST", ENQUEUE, clip(toy, steps=150))[1]["item_ids"][0] for _ in range(2)]
    for item in reversed(items):
        person.ask("PUT", f"/api/v1/queue/default/i/{item}/cancel")
    last = of(database, person)["holds"][1]

    assert (last["state"], last["captured"]) == ("released", 0)


def test_too_few_credits_are_a_402_that_says_so_and_nothing_is_left(database, customer):
    person = customer(credits=4)
    status, answer = enqueue(person, graphs.still())

    assert status == 402
    assert {name: answer[name] for name in ("error", "remaining_credits", "remaining_minutes", "required_credits")} == {
        "error": "insufficient_credits", "remaining_credits": 4, "remaining_minutes": 0.1, "required_credits": 5,
    }  # fmt: skip
    assert of(database, person) == {"items": [], "holds": [], "usage": []}


def test_a_batch_that_is_only_partly_affordable_leaves_nothing(database, customer):
    person = customer(credits=14)
    status, _ = enqueue(person, graphs.still(), runs=3)

    assert (status, of(database, person)["items"], balance_of(database, person.user_id).remaining_credits) == (402, [], 14)


def flux_behind(person: Person, name: str) -> Any:
    """A Flux picture where a first look does not see it."""
    flux = graphs.still_nodes("flux")
    if name == "call_saved_workflow":
        drawn = graphs.workflow(*flux, edges=graphs.STILL_EDGES)
        about = {"name": "w", "author": "", "description": "", "version": "1", "contact": "", "tags": "", "notes": ""}
        meta = {"category": "user", "version": "3.0.0"}
        status, saved = person.ask("POST", "/api/v1/workflows/", {"workflow": {**about, **drawn, "meta": meta}})
        assert status == 200, saved
        return graphs.graph({"id": "call", "type": "call_saved_workflow", "workflow_id": saved["workflow_id"]})
    if name == "iterate":
        nodes = ({"id": "range", "type": "range", "start": 0, "stop": 2, "step": 1}, {"id": "each", "type": "iterate"})
        return graphs.graph(*nodes, *flux, edges=("range.collection > each.collection", "each.item > noise.seed", *graphs.STILL_EDGES))
    return graphs.graph(*flux, {"id": "all", "type": "collect"}, edges=(*graphs.STILL_EDGES, "decode.image > all.item"))


@pytest.mark.parametrize("name", ["call_saved_workflow", "iterate", "collect"])
def test_a_starter_cannot_hide_a_forbidden_model(database, customer, name):
    person = customer()
    status, answer = enqueue(person, flux_behind(person, name))

    assert (status, answer["error"], answer["limit_type"], answer["value"], answer["allowed_by"]) == (
        403, "model_not_in_plan", "model", "flux", "pro",
    )  # fmt: skip
    assert answer["detail"] == answer["message"]
    assert of(database, person) == {"items": [], "holds": [], "usage": []}


# 48 frames of 128x128; 16 frames of 1280x128: the plan's maximum where the graph says nothing.
@pytest.mark.parametrize(("field", "too_much", "held_at"), [("num_frames", 64, 18), ("width", 2048, 60)])
def test_what_an_edge_decides_is_held_at_the_maximum_and_refused_when_it_runs(database, customer, toy, field, too_much, held_at):
    person, wanted = customer("pro"), clip(toy)
    add(wanted["batch"]["graph"], "number", "rand_int", low=too_much, high=too_much + 1)
    connect(wanted["batch"]["graph"], "number.value", f"denoise.{field}")
    status, answer = person.ask("POST", ENQUEUE, wanted)
    assert status == 200, answer
    [held] = of(database, person)["holds"]
    done = ended(person, answer["item_ids"][0])

    assert (held["amount"], done["status"], done["error_type"]) == (held_at, "failed", "OverLimit"), done
    assert balance_of(database, person.user_id).remaining_credits == 1000


@pytest.mark.parametrize(("frames", "status", "error"), [(16, 200, None), (17, 400, "frames_over_limit"), (48, 400, "frames_over_limit")])
def test_frames_are_counted_at_the_door(customer, frames, status, error):
    got, answer = enqueue(customer(), graphs.clip("animatediff", frames=frames))

    assert (got, answer.get("error")) == (status, error)


def key_of(person: Person) -> str:
    status, made = person.ask("POST", "/api/v1/auth/api-keys", {"name": "k", "scopes": ["read", "write"]})
    assert status in (200, 201), made
    return str(made["key"])


@pytest.mark.parametrize(("slug", "expected"), [("starter", 403), ("pro", 200)])
def test_an_api_key_enqueues_where_the_plan_has_api_access(server, customer, slug, expected):
    key = key_of(customer(slug))
    body = {"batch": json.loads(graphs.batch(graphs.still()).model_dump_json()), "prepend": False}
    wrote = server.request("POST", ENQUEUE, body, token=key)
    read = server.request("GET", "/api/v1/images/?limit=1&offset=0", token=key)

    assert (wrote[0], read[0]) == (expected, expected)
    if expected == 403:
        assert json.loads(wrote[1])["error"] == "api_access_not_in_plan"


def test_an_upload_into_a_full_storage_is_refused_and_what_lies_there_stays_readable(server, database, customer):
    person = customer()
    name = person.upload("red.png", png("red"))["image_name"]
    fill(server, person, 20_000_000_000)
    body, kind = multipart("blue.png", png("blue"), "image/png")
    path = "/api/v1/images/upload?image_category=user&is_intermediate=false"
    status, answer = person.ask("POST", path, body, **{"Content-Type": kind})

    assert (status, answer["error"], answer["allowed_by"]) == (403, "storage_full", "pro")
    assert person.ask("GET", f"/api/v1/images/i/{name}/full")[0] == 200
    assert enqueue(person, graphs.still())[1]["error"] == "storage_full"


def fill(server: SaasServer, person: Person, used: int) -> None:
    """As if so many bytes lay there."""
    with psycopg.connect(start_embedded(server.folder), autocommit=True) as owner:
        owner.execute("UPDATE storage_used SET bytes = %s WHERE user_id = %s", (used, person.user_id))


def test_somebody_without_a_plan_is_told_to_choose_one(customer):
    status, answer = enqueue(customer(None), graphs.still())

    assert (status, answer["error"], answer["allowed_by"]) == (403, "plan_required", "starter")


def test_fifty_enqueues_at_once_with_one_key_are_one(database, customer):
    person, key = customer(), {"Idempotency-Key": "once"}
    body = {"batch": json.loads(graphs.batch(graphs.still()).model_dump_json()), "prepend": False}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda _: person.ask("POST", ENQUEUE, body, **key), range(AT_ONCE)))
    other, _ = enqueue(person, graphs.still(), runs=2, **key)

    assert Counter(status for status, _ in answers) == {200: AT_ONCE}
    assert len({json.dumps(answer, sort_keys=True) for _, answer in answers}) == 1
    assert (other, len(of(database, person)["items"]), len(of(database, person)["holds"])) == (409, 1, 1)


def test_fifty_retries_at_once_with_one_key_are_one_and_hold_again(database, customer):
    person = customer()
    _, answer = enqueue(person, graphs.still())
    [item] = answer["item_ids"]
    ended(person, item)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda _: person.ask("PUT", RETRY, [item], **{"Idempotency-Key": "again"}), range(AT_ONCE)))
    found = of(database, person)

    assert Counter(status for status, _ in answers) == {200: AT_ONCE}
    assert (len(found["items"]), len(found["holds"])) == (2, 2)
    assert found["holds"][1]["amount"] == 5


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/admin/credits/adjust", {"credits": 70, "reason": "a reason of ten letters"}),
        ("/api/v1/admin/tester-plan/grant", {"credits": 70, "duration_days": 3, "reason": "a reason of ten letters"}),
    ],
)
def test_fifty_grants_at_once_with_one_key_are_one(server, database, customer, path, body):
    person, admin = customer(None, credits=0), server.admin()
    wanted, key = {"user_id": person.user_id, **body}, {"Idempotency-Key": f"once {path}"}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda _: admin.ask("POST", path, wanted, **key), range(AT_ONCE)))

    assert len({status for status, _ in answers}) == 1 and answers[0][0] in (200, 201), answers[0]
    assert len({json.dumps(answer, sort_keys=True) for _, answer in answers}) == 1
    assert balance_of(database, person.user_id).remaining_credits == 70


@pytest.mark.parametrize("path", ["subscriptions/plans", "subscriptions/my", "credits/balance", "credits/transactions", "credits/usage"])
def test_what_a_page_of_money_asks_is_answered(customer, path):
    status, answer = customer("pro").ask("GET", f"/api/v1/{path}")

    assert status == 200, answer


def test_without_keys_of_stripes_nothing_is_sold_and_the_answer_says_so(customer):
    status, answer = customer("trial").ask("POST", "/api/v1/subscriptions/subscribe", {"plan_id": "pro"})

    assert status == 503 and "detail" in answer


def test_when_all_is_over_the_books_agree(database):
    assert reconcile(database).problems == ()
