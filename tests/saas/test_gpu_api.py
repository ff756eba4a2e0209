"""Administrators see every GPU worker and may drain and resume it; nobody else, and never without a line in the audit log."""

from urllib.parse import quote

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from saas.fleet import ages, joined, waiting
from saas.people import rows

from invokeai_saas.accounts import api as accounts_api
from invokeai_saas.accounts.errors import NotAllowed
from invokeai_saas.accounts.rate_limits import RateLimiter
from invokeai_saas.workers import registry, scaling
from invokeai_saas.workers.api import ask, gpu_router
from invokeai_saas.workers.registry import NoSuchWorker

NAME = "gpu1:77/cuda:0"


@pytest.fixture
def app(accounts):
    made = FastAPI()
    accounts_api.install(made, accounts_api.Web(accounts, RateLimiter()))
    made.include_router(gpu_router, prefix="/api")
    return made


def client_of(app, person):
    return TestClient(app, headers={"Authorization": f"Bearer {person.tokens.access_token}"})


def test_the_status_is_the_pools(app, clerk, database):
    incarnation = joined(database, NAME, "basic", "high_performance")
    registry.beat(database, incarnation, status="busy", current_item=5, current_user="ann", used_memory_mb=12_000, utilization=0.5)
    joined(database, "gpu2/cuda:0", "dedicated", status="quarantined")
    joined(database, "gpu3/cuda:0")
    ages(database, "gpu3/cuda:0", 90)
    waiting(database, "ann", 12, "basic")
    scaling.look(database, scaling.bounds_of(()))
    answer = client_of(app, clerk).get("/api/v1/admin/gpu/status")
    found = answer.json()
    first = found["instances"][0]

    assert answer.status_code == 200
    assert (found["total"], found["statuses"]) == (2, {"busy": 1, "quarantined": 1, "dead": 1})
    shown = ("name", "status", "tiers", "current_item_id", "current_user_id", "utilization")
    assert [first[name] for name in shown] == [NAME, "busy", ["basic", "high_performance"], 5, "ann", 0.5]
    assert found["instances"][2]["status"] == "dead" and found["instances"][2]["silent_seconds"] >= 90
    assert [(tier["tier"], tier["pending"], tier["wanted"], tier["step"]) for tier in found["tiers"]] == [
        ("basic", 12, 2, 1), ("high_performance", 0, 1, 0), ("dedicated", 0, 1, 0),
    ]  # fmt: skip


def test_a_dead_worker_runs_nothing(app, clerk, database):
    incarnation = joined(database, NAME)
    registry.beat(database, incarnation, status="busy", current_item=9, current_user="ann")
    ages(database, NAME, 90)
    (dead,) = client_of(app, clerk).get("/api/v1/admin/gpu/status").json()["instances"]

    assert (dead["status"], dead["current_item_id"], dead["current_user_id"]) == ("dead", None, None)


def test_a_worker_that_ends_is_not_resumed_and_that_is_said_and_not_written_down(app, clerk, database):
    incarnation = joined(database, NAME)
    client, reason = client_of(app, clerk), f"{registry.ENDING}, and gives back what it runs"
    registry.beat(database, incarnation, status="draining", reason=reason)
    refused = client.post(f"/api/v1/admin/gpu/{NAME}/resume")
    drained = client.post(f"/api/v1/admin/gpu/{NAME}/drain")

    assert (refused.status_code, drained.status_code) == (409, 200), (refused.text, drained.text)
    assert f"expected a worker that stays, got {NAME}: it is ending" in refused.text
    assert rows(database, "SELECT 1 FROM audit_log WHERE action = 'gpu.resume'") == []


@pytest.mark.parametrize("path", [NAME, quote(NAME, safe="")])
def test_drain_and_resume_reach_the_worker_and_the_audit_log(app, clerk, database, path):
    incarnation = joined(database, NAME)
    client = client_of(app, clerk)
    drained = client.post(f"/api/v1/admin/gpu/{path}/drain")
    heard = registry.beat(database, incarnation, status="draining")
    resumed = client.post(f"/api/v1/admin/gpu/{path}/resume")

    assert (drained.status_code, resumed.status_code) == (200, 200), (drained.text, resumed.text)
    assert (drained.json()["wanted"], heard, registry.beat(database, incarnation, status="available")) == ("drain", "drain", None)
    assert [(line["actor_id"], line["action"], line["details"]) for line in rows(database, "SELECT * FROM audit_log ORDER BY audit_id")][
        -2:
    ] == [
        (clerk.user_id, "gpu.drain", {"worker": NAME, "was": "available"}),
        (clerk.user_id, "gpu.resume", {"worker": NAME, "was": "draining"}),
    ]


def test_a_user_sees_and_asks_nothing(app, accounts, ann, database):
    joined(database, NAME)
    client = client_of(app, ann)
    answers = [client.get("/api/v1/admin/gpu/status"), *(client.post(f"/api/v1/admin/gpu/{NAME}/{verb}") for verb in ("drain", "resume"))]

    assert [answer.status_code for answer in answers] == [403] * 3
    with pytest.raises(NotAllowed):
        ask(accounts, ann.principal, NAME, "drain")
    assert registry.everybody(database)[0].wanted is None


def test_a_worker_that_is_not_there_is_not_found_and_not_written_down(app, accounts, clerk, database):
    lines = len(rows(database, "SELECT 1 FROM audit_log"))
    with pytest.raises(NoSuchWorker, match="nobody"):
        ask(accounts, clerk.principal, "nobody", "drain")

    assert len(rows(database, "SELECT 1 FROM audit_log")) == lines
    assert client_of(app, clerk).post("/api/v1/admin/gpu/nobody/drain").status_code == 404


@pytest.mark.parametrize(("asked", "nearest"), [("gpu1", "gpu1/cuda:0"), ("gpu2/cuda0", "gpu2/cuda:0"), ("gpu4", None), ("zzz", None)])
def test_a_name_that_is_not_there_is_answered_with_the_nearest_that_lives(app, clerk, database, asked, nearest):
    for name in ("gpu1/cuda:0", "gpu10/cuda:0", "gpu2/cuda:0", "gpu4/cuda:0"):
        joined(database, name)
    ages(database, "gpu4/cuda:0", 60)
    answer = client_of(app, clerk).post(f"/api/v1/admin/gpu/{asked}/drain")

    assert answer.status_code == 404
    assert answer.json()["detail"] == f"expected the name of a living worker, got {asked!r}" + (f": {nearest}?" if nearest else "")


@pytest.mark.parametrize("name", ["a%20b", "%00", "x" * 300, "..%2Fx"])
def test_a_name_that_is_none_is_refused(app, clerk, name):
    assert client_of(app, clerk).post(f"/api/v1/admin/gpu/{name}/drain").status_code in (404, 422)
