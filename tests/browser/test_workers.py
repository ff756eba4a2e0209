"""Two people at two web processes, whose jobs run in a worker's process: progress and previews live, cancel works, each gallery its own.

Each fixture is one stretch of the story and notes what was seen; each test reads one of the notes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from live_interface import PATIENCE_MS, TOY
from live_server import REPOSITORY
from playwright.sync_api import Browser, expect
from saas.browsing import Someone
from saas.clusters import Cluster
from saas.forked_web import Deployment, WebProcess
from saas.live_saas import ADMIN
from saas.patience import until
from saas.people import rows
from saas.worker_fleet import nursery

from invokeai_saas.db.embedded import stop_embedded
from invokeai_video_nodes.toy_settings import TOY_MODEL

# Two web processes, a worker and a browser: minutes of starting. `make soak-workers` runs it.
pytestmark = pytest.mark.soak

WORKFLOW = REPOSITORY / "workflows" / "text_to_video.json"


@pytest.fixture(scope="module")
def there() -> Iterator[Deployment]:
    """Two web processes without a worker inside, a worker, and the toy model in the folder that they share."""
    # Not under pytest's own folder, which is closed to the account that Postgres runs as.
    with tempfile.TemporaryDirectory(prefix="workers-browser-") as folder:
        Path(folder).chmod(0o755)
        cluster = Cluster(Path(folder, "cluster"))
        cluster.template()
        fleet = Path(folder, "fleet")
        fleet.mkdir()
        with nursery(fleet) as started, Deployment(started, cluster.clone(), Path(folder, "data")) as made:
            made.web()
            made.web()
            install_toy(made.webs[0])
            for web in made.webs:
                # Described once per process, in a thread; the interface waits for it.
                assert web.request("GET", "/openapi.json")[0] == 200
            made.worker()
            yield made
        stop_embedded(Path(folder, "cluster"))


def install_toy(web: WebProcess) -> None:
    admin = web.sign_in(ADMIN, web.admin_password())
    status, job = admin.ask("POST", f"/api/v2/models/install?source={TOY_MODEL}&inplace=true", {"name": TOY})
    assert status == 201, job
    until(lambda: admin.get(f"/api/v2/models/install/{job['id']}")["status"] == "completed", seconds=120)


@dataclass
class Seat:
    """Somebody at a web process, with the workflow open."""

    ui: Someone
    user_id: str
    web: WebProcess


def seat(there: Deployment, name: str, web: WebProcess, browser: Browser, screenshots: Path) -> Seat:
    email = f"{name}@example.org"
    password = there.add(email)
    context = browser.new_context(viewport={"width": 1440, "height": 900}, locale="en-US")
    context.set_default_timeout(PATIENCE_MS)
    ui = Someone(context.new_page(), web.url, screenshots)
    ui.log_in(email, password)
    load_workflow(ui)
    ui.show_all_nodes()
    ui.pick_model("loader", TOY)
    expect(ui.invoke_button).to_be_enabled()
    ui.panel("Viewer")
    return Seat(ui, ui.get("/api/v1/auth/me")["user_id"], web)


def load_workflow(ui: Someone) -> None:
    """Again while the interface does not know the nodes: it loads a graph then without its edges."""
    for _ in range(5):
        ui.page.wait_for_load_state("networkidle")
        ui.load_workflow_file(WORKFLOW)
        ui.show_all_nodes()
        if ui.page.locator(".react-flow__edge").count():
            return
    raise AssertionError("the workflow came without edges")


@pytest.fixture(scope="module")
def seats(there: Deployment, browser: Browser, screenshots: Path) -> tuple[Seat, Seat]:
    """Ann at the first web process, Bob at the second."""
    first, second = (
        seat(there, name, web, browser, screenshots) for name, web in zip(("ann", "bob"), there.webs, strict=True)
    )
    return first, second


@dataclass
class Made:
    """What both saw of their clips."""

    progress: tuple[list[str], list[str]]
    videos: tuple[list[dict[str, Any]], list[dict[str, Any]]]
    items: tuple[dict[str, Any], dict[str, Any]]
    workers: list[str]


@pytest.fixture(scope="module")
def made(there: Deployment, seats: tuple[Seat, Seat]) -> Made:
    """Both invoke; both watch until their clips are there."""
    for each in seats:
        del each.ui.progress[:]
        expect(each.ui.invoke_button).to_be_enabled()
        each.ui.invoke_button.click()
    for number, each in enumerate(seats):
        each.ui.page.get_by_test_id("progress-image").first.wait_for()
        each.ui.picture(f"workers-{number + 1}-progress")
    items = seats[0].ui.wait_for_item(seconds=240), seats[1].ui.wait_for_item(seconds=240)
    for number, each in enumerate(seats):
        each.ui.page.get_by_role("button", name="Play video").first.wait_for()
        each.ui.picture(f"workers-{number + 3}-gallery")
    first, second = (each.ui.get("/api/v1/videos/?limit=10")["items"] for each in seats)
    held = rows(there.database, "SELECT DISTINCT worker_id FROM job_attempts")
    return Made((list(seats[0].ui.progress), list(seats[1].ui.progress)), (first, second), items, [row["worker_id"] for row in held])


@dataclass
class Canceled:
    """What a click on Cancel did. `attempt` and `row` are what is left of the job."""

    attempt: str
    row: list[dict[str, Any]]
    seconds: float
    steps_seen: int
    next_status: str
    next_seconds: float


@pytest.fixture(scope="module")
def canceled(there: Deployment, made: Made, seats: tuple[Seat, Seat]) -> Canceled:
    """Ann's job of 1000 steps runs; she cancels it at her web process; the worker takes Bob's next."""
    ui = seats[0].ui
    ui.panel("Workflow Editor")
    ui.fill_form(Steps=1000)
    ui.panel("Viewer")
    del ui.progress[:]
    ui.invoke_button.click()
    while len(ui.progress) < 5:
        ui.page.wait_for_timeout(200)
    item_id = int(ui.newest_item()["item_id"])
    ui.picture("workers-5-long-job")
    # InvokeAI's interface deletes what it cancels.
    ui.page.get_by_role("button", name="Cancel Current Item").first.click()
    began = time.monotonic()
    attempt = "SELECT state FROM job_attempts WHERE item_id = %s"
    until(lambda: rows(there.database, attempt, item_id) != [{"state": "running"}])
    seconds = time.monotonic() - began
    seats[1].ui.invoke_button.click()
    ui.picture("workers-6-canceled")
    newest = "SELECT count(*) AS items FROM session_queue WHERE user_id = %s"
    until(lambda: rows(there.database, newest, seats[1].user_id) == [{"items": 2}])
    next_status = seats[1].ui.wait_for_item(seconds=240)["status"]
    return Canceled(
        attempt=rows(there.database, attempt, item_id)[0]["state"],
        row=rows(there.database, "SELECT status FROM session_queue WHERE item_id = %s AND status <> 'canceled'", item_id),
        seconds=seconds,
        steps_seen=len(ui.progress),
        next_status=next_status,
        next_seconds=time.monotonic() - began,
    )


def test_clips_are_made_by_the_worker(made: Made) -> None:
    assert [item["status"] for item in made.items] == ["completed", "completed"]
    assert len(made.workers) == 1


def test_both_see_their_own_progress_live(made: Made) -> None:
    """Eight steps and the frames of one clip: somebody else's would double the steps."""
    for progress in made.progress:
        steps = [message for message in progress if message.startswith("Denoising step")]
        assert len(set(progress)) > 4, progress
        assert len(steps) == len(set(steps)), progress


def test_each_clip_is_in_its_owner_s_gallery_only(made: Made) -> None:
    assert [len(videos) for videos in made.videos] == [1, 1]
    assert made.videos[0][0]["video_name"] != made.videos[1][0]["video_name"]


def test_cancel_takes_the_job_from_the_worker(canceled: Canceled) -> None:
    print(f"taken away {canceled.seconds:.2f} s after the click, the next job done after {canceled.next_seconds:.1f} s")

    assert (canceled.attempt, canceled.row) == ("revoked", [])
    assert canceled.seconds < 60


def test_the_worker_stops_within_its_steps_and_goes_on_with_the_next_person_s(canceled: Canceled) -> None:
    # 1000 steps would have taken minutes.
    assert 5 <= canceled.steps_seen < 200
    assert canceled.next_status == "completed"
