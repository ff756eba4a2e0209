"""From an empty InvokeAI to a playing clip, in the stock interface with our pack installed by its wheel alone.

Each fixture is one stretch of an artist's way and notes what was seen; each test reads one of the notes.
"""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from live_interface import TOY, Interface
from live_server import REPOSITORY, Server
from playwright.sync_api import Page, expect

WORKFLOW = REPOSITORY / "workflows" / "text_to_video.json"
WORKFLOW_NAME = json.loads(WORKFLOW.read_text())["name"]
HEADING = "Video Models"
RUN_SECONDS = 240


@pytest.fixture(scope="module")
def ui(page: Page, server: Server, screenshots: Path) -> Interface:
    """The interface, opened for the first time."""
    interface = Interface(page, server.url, screenshots)
    interface.open()
    return interface


@dataclass
class Installed:
    """What the model manager showed while the toy model was installed twice."""

    row: str = ""
    lists: list[str] = field(default_factory=list)
    filtered: str = ""
    starters: dict[str, Any] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture(scope="module")
def installed(ui: Interface, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Install the toy as a starter model, delete it, and install it as a bundle; a stock image model stands beside it."""
    from tiny_models import make_tiny_image_checkpoint  # torch takes its time, and only this step needs it

    seen = Installed()
    server.install(make_tiny_image_checkpoint(tmp_path_factory.mktemp("models") / "still-images.safetensors"))
    ui.starter_models()
    ui.search_starter_models(TOY)
    seen.row = ui.page.get_by_role("tabpanel").inner_text()
    ui.picture("starter-models")
    ui.install_starter_model()
    ui.wait_for_model(HEADING, TOY)
    seen.lists.append(ui.model_list())
    toy = next(model for model in server.models() if model["base"] == "z-image-video")
    assert server.request("DELETE", f"/api/v2/models/i/{toy['key']}")[0] == 204
    ui.open()
    ui.starter_models()
    ui.install_bundle("Video (toy model)")
    ui.wait_for_model(HEADING, TOY)
    seen.lists.append(ui.model_list())
    expect(ui.page.get_by_role("tabpanel").get_by_role("button", name="Video (toy model)")).to_be_disabled()
    ui.picture("model-manager")
    ui.filter_models(HEADING)
    seen.filtered = ui.model_list()
    ui.filter_models("All Models")
    seen.starters, seen.records = server.get("/api/v2/models/starter_models"), server.models()
    return seen


@dataclass
class Picked:
    """What the loader node showed: right after picking, and after saving, reloading the page and loading again."""

    before: str
    after_picking: str
    invoke_enabled: bool
    after_reload: str = ""


@pytest.fixture(scope="module")
def picked(ui: Interface, installed: Installed) -> Picked:
    """Load our workflow, pick the toy in the loader node, save, reload the page, empty the editor, load from the library."""
    ui.load_workflow_file(WORKFLOW)
    ui.show_all_nodes()
    before = ui.node("loader").inner_text()
    ui.pick_model("loader", TOY)
    expect(ui.invoke_button).to_be_enabled()
    seen = Picked(before, ui.node("loader").inner_text(), ui.invoke_button.is_enabled())
    ui.picture("workflow-editor")
    ui.save_workflow()
    ui.page.reload()
    ui.page.get_by_test_id("Workflows").wait_for()
    ui.tab("Workflows")
    ui.new_workflow()
    ui.load_from_library(WORKFLOW_NAME)
    ui.panel("Workflow Editor")
    expect(ui.node("loader")).to_have_count(1)
    seen.after_reload = ui.node("loader").inner_text()
    return seen


@dataclass
class Run:
    """What happened after a click on Invoke."""

    progress: list[str] = field(default_factory=list)
    preview: str = ""
    video: dict[str, Any] = field(default_factory=dict)
    played: dict[str, Any] = field(default_factory=dict)
    workflow_back: str = ""


@pytest.fixture(scope="module")
def run(ui: Interface, server: Server, picked: Picked) -> Run:
    """Invoke, watch, play the clip, and load its workflow back into an empty editor."""
    seen = Run()
    ui.panel("Viewer")
    expect(ui.invoke_button).to_be_enabled()
    before = server.queue()
    ui.invoke_button.click()
    preview = ui.page.get_by_test_id("progress-image").first
    preview.wait_for(timeout=RUN_SECONDS * 1000)
    seen.preview = (preview.get_attribute("src") or "")[:30]
    ui.picture("preview")
    ui.wait_for_one_more(server, before, seconds=RUN_SECONDS)
    seen.progress = ui.progress
    seen.video = server.get("/api/v1/videos/?limit=10")["items"][0]
    ui.page.get_by_role("button", name="Play video").first.click()
    seen.played = ui.play()
    ui.page.mouse.move(720, 780)  # off the player, whose controls fade while it plays
    ui.page.evaluate("() => { const v = document.querySelector('video'); v.currentTime = 0; return v.play(); }")
    ui.page.wait_for_timeout(900)
    ui.picture("playing")
    ui.page.get_by_role("button", name="Close video player").click()
    ui.tab("Workflows")
    ui.new_workflow()
    ui.panel("Viewer")
    ui.load_workflow_of_the_shown_video()
    ui.panel("Workflow Editor")
    expect(ui.node("loader")).to_have_count(1)
    seen.workflow_back = ui.node("loader").inner_text()
    return seen


def test_the_socket_connects_while_compression_stays_on(ui, server):
    polled, _ = get_with_gzip(server.url + "/ws/socket.io/?EIO=4&transport=polling")
    schema, encoding = get_with_gzip(server.url + "/openapi.json")

    assert (polled, schema, encoding) == (200, 200, "gzip")
    assert {status for status, _ in ui.polling} == {200}
    assert ui.websockets


def get_with_gzip(url: str) -> tuple[int, str | None]:
    """Status and content encoding of a GET that accepts compressed answers."""
    request = urllib.request.Request(url, headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request) as response:
        return response.status, response.headers["Content-Encoding"]


def test_the_toy_is_offered_as_a_starter_model_with_its_own_badge(installed):
    assert TOY in installed.row
    assert "z-image video" in installed.row.lower()


def test_one_click_installs_it_and_so_does_the_bundle(installed):
    assert [HEADING in listed and TOY in listed for listed in installed.lists] == [True, True]
    toys = [model for model in installed.starters["starter_models"] if model["base"] == "z-image-video"]
    assert [toy["is_installed"] for toy in toys] == [True]


def test_the_installed_toy_is_a_copy_and_the_package_stays_whole(installed):
    source = next(model["source"] for model in installed.starters["starter_models"] if model["base"] == "z-image-video")
    record = next(model for model in installed.records if model["base"] == "z-image-video")

    assert (Path(source) / "model_index.json").is_file()
    assert not Path(record["path"]).is_absolute()


def test_video_models_stand_under_a_heading_of_their_own(installed):
    listed = installed.lists[1]

    assert listed.index("Main\n") < listed.index("still-images") < listed.index(HEADING) < listed.index(TOY)


def test_the_filter_shows_video_models_alone(installed):
    assert TOY in installed.filtered
    assert "still-images" not in installed.filtered


@pytest.mark.parametrize("tab", ["Generate", "Canvas"])
def test_neither_generate_nor_canvas_offers_a_video_model(ui, installed, tab):
    offered = ui.offered_main_models(tab)

    assert "still-images" in offered
    assert TOY not in offered


def test_the_model_can_be_picked_in_the_loader_node(picked):
    assert TOY not in picked.before
    assert TOY in picked.after_picking


def test_a_saved_workflow_keeps_the_model_when_it_is_loaded_again(picked):
    assert TOY in picked.after_reload


def test_invoke_works_and_shows_progress_and_a_preview(run):
    assert run.preview.startswith("data:image/")
    assert len(set(run.progress)) > 12, run.progress


def test_the_finished_clip_stands_in_the_gallery_and_plays(run):
    assert run.video["has_workflow"]
    assert run.played["error"] is None
    assert (run.played["width"], run.played["height"]) == (run.video["width"], run.video["height"])
    assert run.played["duration"] == pytest.approx(run.video["duration"], abs=0.2)


def test_the_clip_s_workflow_loads_back_with_the_model(run):
    assert TOY in run.workflow_back


def test_the_server_logged_no_fallback_and_no_traceback(server, run):
    assert server.our_log_lines() == []
    assert "Traceback" not in server.log()
