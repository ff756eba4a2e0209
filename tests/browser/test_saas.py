"""A server for many, from its first start to the end of an account: an administrator, a person who signs up, and their browsers.

Each fixture is one stretch of the story and notes what was seen; each test reads one of the notes.
"""

from __future__ import annotations

import json
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from live_interface import PATIENCE_MS, TOY
from live_server import REPOSITORY
from playwright.sync_api import Browser, expect
from saas.browsing import Mailbox, Someone
from saas.live_saas import ADMIN, SaasServer
from saas.patience import until
from saas.people import PASSWORD, rows
from tiny_graph import text_to_video

WORKFLOW = REPOSITORY / "workflows" / "text_to_video.json"
HEADING = "Video Models"
ANN = "ann@example.org"
# As short as the settings allow: the whole story is told with tokens that end and are renewed.
ACCESS_SECONDS = 30


@pytest.fixture(scope="module")
def mailbox() -> Iterator[tuple[Mailbox, int]]:
    """A mail server and its port."""
    box = Mailbox()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    controller = Controller(box, hostname="127.0.0.1", port=port)
    controller.start()
    yield box, port
    controller.stop()


@pytest.fixture(scope="module")
def saas(mailbox: tuple[Mailbox, int]) -> Iterator[SaasServer]:
    """`invokeai-saas serve` on an empty folder."""
    variables = {
        "SAAS_SMTP_HOST": "127.0.0.1",
        "SAAS_SMTP_PORT": str(mailbox[1]),
        "SAAS_SMTP_SECURITY": "none",
        "SAAS_ACCESS_TOKEN_SECONDS": str(ACCESS_SECONDS),
    }
    # Not under pytest's own folder, which is closed to the account that Postgres runs as.
    with tempfile.TemporaryDirectory(prefix="saas-browser-") as folder:
        Path(folder).chmod(0o755)
        with SaasServer(Path(folder, "data"), variables=variables) as running:
            yield running


def someone(browser: Browser, url: str, screenshots: Path) -> Someone:
    """A browser of their own: its cookies and storage are nobody else's."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, locale="en-US")
    context.set_default_timeout(PATIENCE_MS)
    return Someone(context.new_page(), url, screenshots)


@dataclass
class Start:
    """What the administrator saw."""

    ui: Someone
    role: str = ""
    models: str = ""
    login_page: str = ""


@pytest.fixture(scope="module")
def admin(saas: SaasServer, browser: Browser, screenshots: Path) -> Start:
    """Log in with what the first start printed, and install the toy."""
    ui = someone(browser, saas.url, screenshots)
    seen = Start(ui)
    ui.page.goto(saas.url)
    ui.page.wait_for_url("**/login")
    ui.page.get_by_role("link", name="Create an account").wait_for()
    seen.login_page = ui.page.locator("body").inner_text()
    ui.picture("saas-1-login")
    ui.log_in(ADMIN, saas.admin_password())
    seen.role = ui.get("/api/v1/auth/me")["role"]
    ui.picture("saas-2-admin")
    ui.starter_models()
    ui.search_starter_models(TOY)
    ui.install_starter_model()
    ui.wait_for_model(HEADING, TOY)
    seen.models = ui.model_list()
    ui.picture("saas-3-model")
    return seen


@dataclass
class Joined:
    """What somebody saw who signed up."""

    ui: Someone
    letter: str = ""
    subject: str = ""
    addressed: str = ""
    me: dict[str, Any] = field(default_factory=dict)
    models: str = ""


@pytest.fixture(scope="module")
def ann(admin: Start, saas: SaasServer, mailbox: tuple[Mailbox, int], browser: Browser, screenshots: Path) -> Joined:
    """From the login page to the form, the letter, and into the interface."""
    ui = someone(browser, saas.url, screenshots)
    seen = Joined(ui)
    page = ui.page
    page.goto(saas.url)
    page.get_by_role("link", name="Create an account").click()
    page.get_by_label("E-mail address").fill(ANN)
    page.get_by_label("Name (optional)").fill("Ann")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    ui.picture("saas-4-sign-up")
    page.get_by_role("button", name="Create account").click()
    expect(page.get_by_role("heading", name="Look into your mail")).to_be_visible()
    ui.picture("saas-5-check-mail")
    letter = mailbox[0].wait_for_one()
    body = letter.get_body(("plain",))
    assert body is not None
    seen.subject, seen.addressed, seen.letter = letter["Subject"], letter["To"], body.get_content()
    link = re.search(r"http\S+token=\S+", seen.letter)
    assert link, seen.letter
    page.goto(link[0])
    page.get_by_role("button", name="Confirm and sign in").wait_for()
    ui.picture("saas-6-verify")
    page.get_by_role("button", name="Confirm and sign in").click()
    page.wait_for_url("**/app")
    page.get_by_test_id("Models").wait_for()
    page.wait_for_timeout(2_000)
    ui.picture("saas-7-signed-in")
    seen.me = ui.get("/api/v1/auth/me")
    return seen


@dataclass
class Made:
    """What happened after a click on Invoke."""

    progress: list[str]
    item: dict[str, Any]
    video: dict[str, Any]
    played: dict[str, Any]
    of_admin: dict[str, Any]
    admins_gallery: str


@pytest.fixture(scope="module")
def made(ann: Joined, admin: Start) -> Made:
    """Load the workflow, pick the model that the administrator installed, invoke, watch, play; the administrator looks too."""
    ui = ann.ui
    ui.load_workflow_file(WORKFLOW)
    ui.show_all_nodes()
    ui.pick_model("loader", TOY)
    expect(ui.invoke_button).to_be_enabled()
    ui.panel("Viewer")
    ui.invoke_button.click()
    ui.page.get_by_test_id("progress-image").first.wait_for()
    ui.picture("saas-8-progress")
    item = ui.wait_for_item(seconds=240)
    assert item["status"] == "completed", item
    video = ui.get("/api/v1/videos/?limit=10")["items"][0]
    ui.page.get_by_role("button", name="Play video").first.click()
    played = ui.play()
    ui.page.mouse.move(720, 780)  # off the player, whose controls fade while it plays
    ui.page.evaluate("() => { const v = document.querySelector('video'); v.currentTime = 0; return v.play(); }")
    ui.close_notices()
    ui.page.evaluate("() => { document.querySelector('video').currentTime = 0; }")
    ui.page.wait_for_timeout(900)
    ui.picture("saas-9-gallery")
    ui.page.get_by_role("button", name="Close video player").click()
    other = admin.ui
    other.tab("Generate")
    other.page.wait_for_timeout(2_000)
    other.picture("saas-10-admins-gallery")
    return Made(
        list(ui.progress), item, video, played, other.get("/api/v1/videos/?limit=10"), other.page.locator("body").inner_text()
    )


@dataclass
class Stayed:
    """Both of them, when the token of before was over."""

    tokens: list[tuple[str | None, str | None]]
    answers: list[int]
    urls: list[str]


@pytest.fixture(scope="module")
def stayed(made: Made, ann: Joined, admin: Start) -> Stayed:
    """Touch nothing until every token of now is over."""
    both = (ann.ui, admin.ui)
    before = [ui.token() for ui in both]
    ann.ui.page.wait_for_timeout((ACCESS_SECONDS + 1) * 1000)
    after = [ui.token() for ui in both]
    ann.ui.picture("saas-11-still-signed-in")
    answers = [ui.ask("/api/v1/auth/me")[0] for ui in both]
    return Stayed(list(zip(before, after, strict=True)), answers, [ui.page.url for ui in both])


@dataclass
class Ended:
    """The end of an account, from both sides and from the operator's."""

    deactivated: int
    stop_seconds: float
    signed_out_seconds: float
    token: str | None
    status: str
    steps_seen: int
    login: int
    page: str
    next_job: str
    next_job_seconds: float


@pytest.fixture(scope="module")
def ended(stayed: Stayed, ann: Joined, admin: Start, saas: SaasServer) -> Ended:
    """A job of 1000 steps runs; the administrator deactivates whose it is, and runs a job of their own on the same worker."""
    ui = ann.ui
    item_id = begin_long_job(ui)
    began = time.monotonic()
    deactivated = admin.ui.ask(f"/api/v1/admin/users/{ann.me['user_id']}/deactivate", "POST")[0]
    stop_seconds = until(lambda: f"stopping work on item {item_id}:" in saas.log())
    ui.page.wait_for_url("**/login")
    signed_out = time.monotonic() - began
    token, steps_seen = ui.token(), len(ui.progress)
    ui.page.get_by_role("link", name="Create an account").wait_for()
    ui.picture("saas-13-signed-out")
    with ui.page.expect_response("**/api/v1/auth/login") as login:
        ui.fill_login(ANN, PASSWORD)
    ui.page.wait_for_timeout(1_000)
    ui.picture("saas-14-refused")
    model = next(each for each in admin.ui.get("/api/v2/models/")["models"] if each["name"] == TOY)
    batch = {"batch": {"graph": text_to_video(model), "runs": 1}, "prepend": False}
    assert admin.ui.ask("/api/v1/queue/default/enqueue_batch", "POST", batch)[0] in (200, 201)
    next_job = admin.ui.wait_for_item(seconds=240)
    with saas.database() as database:
        (item,) = rows(database, "SELECT status FROM session_queue WHERE item_id = %s", item_id)
    return Ended(
        deactivated=deactivated,
        stop_seconds=stop_seconds,
        signed_out_seconds=signed_out,
        token=token,
        status=item["status"],
        steps_seen=steps_seen,
        login=login.value.status,
        page=ui.page.locator("body").inner_text(),
        next_job=next_job["status"],
        next_job_seconds=time.monotonic() - began,
    )


def begin_long_job(ui: Someone) -> int:
    """Invoke with 1000 steps and wait for the first few; returns the queue item."""
    ui.panel("Workflow Editor")
    ui.fill_form(Steps=1000)
    ui.panel("Viewer")
    del ui.progress[:]
    ui.invoke_button.click()
    while len(ui.progress) < 5:
        ui.page.wait_for_timeout(200)
    ui.picture("saas-12-long-job")
    return int(ui.newest_item()["item_id"])


def test_the_printed_administrator_logs_in_on_invokeais_own_page_and_installs_a_model(admin: Start) -> None:
    assert admin.role == "super_admin"
    assert HEADING in admin.models and TOY in admin.models


def test_the_login_page_shows_the_way_to_an_account(admin: Start) -> None:
    assert "Create an account" in admin.login_page and "Forgot password?" in admin.login_page


def test_the_letter_s_link_signs_in(ann: Joined) -> None:
    assert (ann.addressed, ann.subject) == (ANN, "Confirm your address")
    assert (ann.me["email"], ann.me["display_name"], ann.me["role"]) == (ANN, "Ann", "user")


def test_their_clip_is_made_with_progress_and_plays(made: Made) -> None:
    assert len(set(made.progress)) > 8, made.progress
    assert made.played["error"] is None
    assert (made.played["width"], made.played["height"]) == (made.video["width"], made.video["height"])
    assert made.played["duration"] == pytest.approx(made.video["duration"], abs=0.2)


def test_the_administrator_s_gallery_shows_none_of_it(made: Made) -> None:
    assert made.of_admin["items"] == []
    assert "No images/videos found" in made.admins_gallery


def test_tabs_that_stay_open_stay_signed_in(stayed: Stayed) -> None:
    assert all(before and after and before != after for before, after in stayed.tokens)
    assert stayed.answers == [200, 200]
    assert all(url.endswith("/app") for url in stayed.urls)


def test_a_deactivated_person_s_job_stops_and_frees_the_worker(ended: Ended) -> None:
    print(f"job stopped after {ended.stop_seconds:.2f} s, next job done after {ended.next_job_seconds:.1f} s")

    assert ended.deactivated == 200
    assert ended.status == "canceled"
    assert ended.stop_seconds < 60
    # 1000 steps would have taken minutes.
    assert 5 <= ended.steps_seen < 100
    assert ended.next_job == "completed"


def test_a_deactivated_person_is_signed_out_at_once_and_stays_out(ended: Ended) -> None:
    print(f"interface signed out after {ended.signed_out_seconds:.2f} s")

    assert ended.token is None
    assert ended.signed_out_seconds < 60
    assert ended.login == 401


def test_the_log_is_for_reading(saas: SaasServer, ended: Ended) -> None:
    saas.stop()
    lines = saas.log().splitlines()
    printed = [line for line in lines if line and not line.startswith("{")]
    records = [json.loads(line) for line in lines if line.startswith("{")]
    bad = [record for record in records if record["level"] in ("error", "critical") or "exception" in record]

    assert bad == []
    # The administrator's address and password.
    assert len(printed) == 3, printed
    assert not [record for record in records if "transport=websocket" in record["message"]]
    refused = [record for record in records if record.get("status") in (401, 403)]
    assert len(refused) < 60, refused
