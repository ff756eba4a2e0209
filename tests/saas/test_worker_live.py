"""A server that runs nothing and a worker beside it, both from the command line: a real clip goes from the one to the other and back."""

import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from graphs import text_to_video
from saas.customers import give, subscribe
from saas.live_saas import Person, SaasServer
from saas.patience import until
from saas.people import rows

from invokeai_saas.credits.reconcile import reconcile
from invokeai_saas.db.database import PostgresDatabase
from invokeai_video_nodes.toy_settings import TOY_MODEL

pytestmark = [pytest.mark.xdist_group("worker-live"), pytest.mark.timeout(900)]
ENQUEUE = "/api/v1/queue/default/enqueue_batch"


@pytest.fixture(scope="module")
def server() -> Iterator[SaasServer]:
    # Not under pytest's own folder, which is closed to the account that Postgres runs as.
    with tempfile.TemporaryDirectory(prefix="saas-live-") as folder:
        Path(folder).chmod(0o755)
        with SaasServer(Path(folder, "data"), variables={"SAAS_METERING": "on"}, arguments=["--no-worker"]) as running:
            yield running


@pytest.fixture(scope="module")
def database(server) -> Iterator[PostgresDatabase]:
    with server.database() as opened:
        yield opened


@pytest.fixture(scope="module")
def toy(server) -> dict[str, Any]:
    """The toy model, installed by the administrator."""
    admin = server.admin()
    status, job = admin.ask("POST", f"/api/v2/models/install?source={TOY_MODEL}&inplace=true", {})
    assert status == 201, job
    while job["status"] not in ("completed", "error", "cancelled"):
        time.sleep(0.2)
        job = admin.get(f"/api/v2/models/install/{job['id']}")
    return {name: job["config_out"][name] for name in ("key", "hash", "name", "base", "type")}


def customer(server: SaasServer, database: PostgresDatabase) -> Person:
    person = server.person("ann@example.org")
    subscribe(database, person.user_id, "studio")
    give(database, person.user_id, 1000)
    return person


def enqueue(person: Person, model: dict[str, Any]) -> tuple[int, Any]:
    graph = text_to_video(model, denoise={"num_frames": 16, "width": 128, "height": 128, "steps": 3})
    return person.ask("POST", ENQUEUE, {"batch": {"graph": {"id": "g", **graph}, "runs": 1}, "prepend": False})


def test_a_clip_is_made_by_a_worker_of_its_own_process_and_the_worker_ends_in_order(server, database, toy, tmp_path):
    person = customer(server, database)
    alone = enqueue(person, toy)[0]
    tiers = [word for tier in ("basic", "high_performance", "dedicated") for word in ("--tier", tier)]
    with (tmp_path / "worker.log").open("wb") as log:
        worker = server.run("worker", "--devices", "cpu", "--name", "w", *tiers, output=log)

    def said() -> str:
        return (tmp_path / "worker.log").read_text(errors="replace") + server.log()[-3000:]

    try:
        until(lambda: "is ready" in said(), "a worker", seconds=300, told=said)
        began = time.monotonic()
        status, answer = enqueue(person, toy)
        assert status == 200, answer
        [item] = answer["item_ids"]
        path = f"/api/v1/queue/default/i/{item}"
        until(lambda: person.get(path)["status"] in ("completed", "failed", "canceled"), "an end", seconds=300, told=said)
        print(f"a clip after {time.monotonic() - began:.1f} s")
        done, videos = person.get(path), person.get("/api/v1/videos/")["items"]
        worker.send_signal(signal.SIGTERM)
        code = worker.wait(timeout=300)
    finally:
        if worker.poll() is None:
            worker.kill()
    attempts = rows(database, "SELECT worker_id, state, gpu_seconds > 0 AS measured FROM job_attempts")

    # Nobody was there to run it: said at the door.
    assert alone == 409
    assert done["status"] == "completed", (done, said())
    assert [video["video_name"] for video in videos] != []
    assert [(row["state"], row["measured"]) for row in attempts] == [("finished", True)]
    assert attempts[0]["worker_id"].endswith("/cpu")
    assert code == 0, said()
    assert reconcile(database).problems == ()
    assert rows(database, "SELECT status FROM gpu_instances WHERE name = 'w/cpu'") == [{"status": "terminated"}]
