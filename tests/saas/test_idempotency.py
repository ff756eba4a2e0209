"""The same key and body: one effect and one answer, however often, at once, or after a crash. Another body: 409."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psycopg
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel
from saas.people import rows

from invokeai_saas.accounts import api
from invokeai_saas.accounts.rate_limits import RateLimiter
from invokeai_saas.db import tenancy
from invokeai_saas.errors import SaasError
from invokeai_saas.web import idempotency
from invokeai_saas.web.idempotency import KeyReused, Once, OnceDep, StillRunning, digest, forget_old

AT_ONCE = 50


class Refused(SaasError):
    status = 402


class Body(BaseModel):
    name: str
    refuse: bool = False


class Things:
    """Routes that make rows, and somebody outside who counts what reached them."""

    def __init__(self, accounts):
        self.accounts, self.outside_keys = accounts, []
        self.app = FastAPI()
        api.install(self.app, api.Web(accounts, RateLimiter()))
        self.app.post("/v1/things", status_code=201)(self.make)
        self.app.post("/v1/calls")(self.call)

    def client(self, person):
        return TestClient(self.app, headers={"Authorization": f"Bearer {person.tokens.access_token}"}, raise_server_exceptions=False)

    def make(self, body: Body, once: OnceDep):
        def work():
            with self.accounts.database.postgres() as cursor:
                cursor.execute(
                    "INSERT INTO boards (board_id, board_name, user_id) VALUES (gen_random_uuid()::text, %s, %s)", (body.name, once.user_id)
                )
                if body.refuse:
                    raise Refused("expected more credits")
                return {"made": body.name, "count": cursor.execute("SELECT count(*) AS n FROM boards").fetchone()["n"]}

        return once.in_transaction(work, status=201)

    def call(self, body: Body, once: OnceDep):
        def work(step_key: str):
            self.outside_keys.append(step_key)
            time.sleep(0.05)
            if body.refuse:
                raise Refused("expected another card")
            return {"called": body.name, "times": len(self.outside_keys)}

        return once.outside(work)

    def made(self) -> int:
        return rows(self.accounts.database, "SELECT count(*) AS n FROM boards")[0]["n"]


@pytest.fixture
def things(accounts):
    return Things(accounts)


def post(client, path, body, key=None):
    return client.post(path, json=body, headers={} if key is None else {"Idempotency-Key": key})


def test_a_second_request_gets_the_first_ones_answer_and_makes_nothing(things, ann):
    client = things.client(ann)
    first, second = (post(client, "/v1/things", {"name": "a"}, "k1") for _ in range(2))

    assert (first.status_code, second.status_code, first.json(), things.made()) == (201, 201, second.json(), 1)
    assert ("idempotent-replayed" in first.headers, second.headers["idempotent-replayed"]) == (False, "true")


def test_without_a_key_every_request_is_a_new_one(things, ann):
    client = things.client(ann)
    answers = [post(client, path, {"name": "a"}).status_code for path in ("/v1/things", "/v1/things", "/v1/calls", "/v1/calls")]

    assert (answers, things.made(), len(set(things.outside_keys))) == ([201, 201, 200, 200], 2, 2)


@pytest.mark.parametrize("path", ["/v1/things", "/v1/calls"])
def test_another_body_with_the_same_key_is_a_conflict_that_changes_nothing(things, ann, path):
    client = things.client(ann)
    first, second = post(client, path, {"name": "a"}, "k1"), post(client, path, {"name": "b"}, "k1")

    assert (first.is_success, second.status_code) == (True, 409)
    assert "another one" in second.json()["detail"]
    assert things.made() + len(things.outside_keys) == 1


def test_the_same_json_written_in_another_way_is_the_same_body(things, ann):
    client, headers = things.client(ann), {"Idempotency-Key": "k1", "Content-Type": "application/json"}
    bodies = ('{"name":"a","refuse":false}', '{ "refuse": false,\n "name": "a" }')
    answers = [client.post("/v1/things", content=body, headers=headers) for body in bodies]

    assert [answer.status_code for answer in answers] == [201, 201]
    assert things.made() == 1


def test_a_key_is_one_users_and_one_routes_own(things, ann, clerk):
    for person, path in ((ann, "/v1/things"), (clerk, "/v1/things"), (ann, "/v1/calls")):
        assert post(things.client(person), path, {"name": "a"}, "k1").is_success

    assert (things.made(), len(things.outside_keys)) == (2, 1)


@pytest.mark.parametrize("path", ["/v1/things", "/v1/calls"])
def test_fifty_at_once_have_one_effect_and_one_answer(things, ann, path):
    client = things.client(ann)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda _: post(client, path, {"name": "a"}, "k1"), range(AT_ONCE)))

    assert Counter(answer.text for answer in answers) == {answers[0].text: AT_ONCE}
    assert {answer.is_success for answer in answers} == {True}
    assert things.made() + len(things.outside_keys) == 1


def test_without_the_unique_key_two_requests_have_two_effects(things, ann, dsn, monkeypatch):
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute("ALTER TABLE idempotency_keys DROP CONSTRAINT idempotency_keys_pkey")
    once = Once(things.accounts.database, ann.user_id, "POST /x", "k", "a" * 64)
    monkeypatch.setattr(idempotency, "FIRST", idempotency.FIRST.replace("ON CONFLICT ON CONSTRAINT idempotency_keys_pkey DO NOTHING", ""))
    effects = []
    for _ in range(2):
        once.in_transaction(lambda: effects.append(1))

    assert len(effects) == 2


@pytest.mark.parametrize("path", ["/v1/things", "/v1/calls"])
def test_a_refusal_leaves_nothing_and_may_be_tried_again_with_the_same_key(things, ann, path):
    client = things.client(ann)
    refused = [post(client, path, {"name": "a", "refuse": True}, "k1").status_code for _ in range(2)]
    kept = rows(things.accounts.database, "SELECT count(*) AS n FROM idempotency_keys")[0]["n"]

    assert (refused, kept, things.made()) == ([402, 402], 0, 0)
    assert post(client, path, {"name": "b"}, "k1").is_success


def test_work_that_died_half_way_is_taken_over_with_the_same_key_for_others(things, ann, monkeypatch):
    once, steps = Once(things.accounts.database, ann.user_id, "POST /x", "k", "a" * 64), []

    class Killed(BaseException):
        """As if the process were gone: nothing is cleaned up."""

    def dies(step_key):
        steps.append(step_key)
        raise Killed

    monkeypatch.setattr(idempotency, "LEASE_SECONDS", 0.2)
    with suppress(Killed):
        once.outside(dies)
    answer = once.outside(lambda step_key: steps.append(step_key) or {"done": True})

    assert answer.status_code == 200
    assert len(steps) == 2 and len(set(steps)) == 1


def test_of_two_who_take_over_one_does_the_work(things, ann):
    database = things.accounts.database
    once, done = Once(database, ann.user_id, "POST /x", "k", "a" * 64), []
    rows(
        database,
        "INSERT INTO idempotency_keys (user_id, route, key, body_hash, state, lease_until)"
        " VALUES (%s, 'POST /x', 'k', repeat('a', 64), 'running', now() - interval '1 s')",
        ann.user_id,
    )

    def work(_):
        done.append(threading.get_ident())
        time.sleep(0.1)
        return {"done": True}

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: once.outside(work).body, range(2)))

    assert (len(done), answers) == (1, [b'{"done":true}'] * 2)


def test_who_waits_too_long_is_told_to_come_back(things, ann, monkeypatch):
    monkeypatch.setattr(idempotency, "WAIT_SECONDS", 0.1)
    once, running = Once(things.accounts.database, ann.user_id, "POST /x", "k", "a" * 64), threading.Event()
    over = threading.Event()

    def slow(_):
        running.set()
        over.wait(120)
        return {}

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(once.outside, slow)
        running.wait(120)
        with pytest.raises(StillRunning):
            once.outside(lambda _: {})
        with pytest.raises(KeyReused):
            Once(things.accounts.database, ann.user_id, "POST /x", "k", "b" * 64).outside(lambda _: {})
        over.set()

        assert first.result(timeout=120).status_code == 200


def test_talking_to_others_inside_a_transaction_is_our_own_bug(things, ann):
    once = Once(things.accounts.database, ann.user_id, "POST /x", "k", "a" * 64)
    with tenancy.as_user(ann.user_id), things.accounts.database.postgres():
        with pytest.raises(RuntimeError, match="expected no open transaction"):
            once.outside(lambda _: {})


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_a_key_of_no_or_too_many_characters_is_refused(things, ann, key):
    assert post(things.client(ann), "/v1/things", {"name": "a"}, key).status_code == 422
    assert things.made() == 0


def test_keys_are_forgotten_after_days(things, ann):
    database = things.accounts.database
    for key in ("old", "new"):
        Once(database, ann.user_id, "POST /x", key, "a" * 64).in_transaction(dict)
    rows(database, "UPDATE idempotency_keys SET created_at = now() - interval '3 days' WHERE key = 'old'")

    assert forget_old(database) == 1
    assert [row["key"] for row in rows(database, "SELECT key FROM idempotency_keys")] == ["new"]


def test_what_is_asked_is_method_path_query_and_body():
    asked = {
        digest(*each)
        for each in (("POST", "/a", "", b"{}"), ("PUT", "/a", "", b"{}"), ("POST", "/b", "", b"{}"), ("POST", "/a", "x=1", b"{}"))
    }

    assert len(asked) == 4
    assert digest("POST", "/a", "", b"\xff not json") == digest("POST", "/a", "", b"\xff not json")
