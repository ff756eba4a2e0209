"""AnimateDiff and Stable Video Diffusion in the stock interface: our workflows from the library, models picked in their forms, clips
that play.

Each fixture is one stretch of an artist's way and notes what was seen; each test reads one of the notes.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from live_interface import Interface
from live_server import Server
from PIL import Image
from playwright.sync_api import Page, expect

ANIMATEDIFF, SVD = "Text to Video - AnimateDiff", "Image to Video - SVD"
MAIN, MODULE, SVD_MODEL = "tiny-sd1", "tiny-motion-module", "tiny-svd"
FRAMES, FPS, SIDE, STEPS = 8, 4, 64, 2
RUN_SECONDS = 240


@pytest.fixture(scope="module")
def ui(page: Page, server: Server, screenshots: Path) -> Interface:
    """The interface, opened anew."""
    interface = Interface(page, server.url, screenshots)
    interface.open()
    return interface


@pytest.fixture(scope="module")
def starters(ui: Interface) -> dict[str, str]:
    """What the Starter Models show of the two families."""
    ui.starter_models()
    found = {}
    for words, name in (("AnimateDiff", "AnimateDiff Motion Module v3"), ("Stable Video", "Stable Video Diffusion XT")):
        ui.search_starter_models(words)
        ui.page.get_by_text(name, exact=True).first.wait_for()
        ui.picture(f"starter-models-{words.split()[0].lower()}")
        found[words] = ui.page.get_by_role("tabpanel").inner_text()
    return found


@pytest.fixture(scope="module")
def models(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    """Tiny models of the real classes: a main model, a motion module, and Stable Video Diffusion."""
    from tiny_sd1 import save_motion_module, tiny_sd1  # torch takes its time, and only this step needs it
    from tiny_svd import tiny_svd

    folder = tmp_path_factory.mktemp("models")
    tiny_sd1().save_pretrained(folder / MAIN)
    save_motion_module(folder / MODULE, "v3")
    tiny_svd().save_pretrained(folder / SVD_MODEL)
    records = {name: server.install(folder / name) for name in (MAIN, MODULE, SVD_MODEL)}
    yield records
    for record in records.values():
        server.request("DELETE", f"/api/v2/models/i/{record['key']}")


@pytest.fixture(scope="module")
def installed(server: Server) -> str:
    """Our workflows in the running server's library, by our command; returns what it printed."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "INVOKEAI"))}
    python = str(server.environment / "bin" / "python")
    command = [python, "-m", "invokeai_video_nodes.cli", "install-workflows", "--root", str(server.root)]
    done = subprocess.run(command, env={**kept, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, cwd=server.root)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@dataclass
class Run:
    """What was seen from the library to the playing clip."""

    form: str = ""
    picked: str = ""
    progress: list[str] = field(default_factory=list)
    video: dict[str, Any] = field(default_factory=dict)
    played: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def animatediff(ui: Interface, server: Server, starters: dict[str, str], models: dict[str, Any], installed: str) -> Run:
    """Load the workflow from the library, fill in its form, pick the models there, invoke, play the clip."""
    seen = Run()
    load(ui, ANIMATEDIFF, "loader.motion_module")
    seen.form = ui.form_field("loader.motion_module").locator("xpath=..").inner_text()
    ui.fill_form(Frames=FRAMES, Frames_per_second=FPS, Width=SIDE, Height=SIDE, Steps=STEPS)
    ui.pick_model_in_form("main.model", MAIN)
    ui.pick_model_in_form("loader.motion_module", MODULE)
    seen.picked = ui.form_field("loader.motion_module").inner_text()
    make(ui, server, seen, "animatediff")
    return seen


@pytest.fixture(scope="module")
def svd(ui: Interface, server: Server, animatediff: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same with a picture, dropped into the form from the gallery."""
    seen = Run()
    path = tmp_path_factory.mktemp("picture") / "start.png"
    Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB").save(path)
    load(ui, SVD, "loader.model")
    seen.form = ui.form_field("loader.model").locator("xpath=..").inner_text()
    ui.form_field("start.image").locator("input[type=file]").set_input_files(path)
    expect(ui.form_field("start.image").locator("img")).to_be_visible()
    ui.fill_form(Frames=FRAMES, Frames_per_second=FPS, Width=SIDE, Height=SIDE, Steps=STEPS)
    ui.form_field("start.size").get_by_role("combobox").first.select_option("own")
    ui.pick_model_in_form("loader.model", SVD_MODEL)
    seen.picked = ui.form_field("loader.model").inner_text()
    make(ui, server, seen, "svd")
    return seen


def load(ui: Interface, name: str, target: str) -> None:
    """Load one of our workflows into an empty editor and wait for a field of its form."""
    ui.open()
    ui.tab("Workflows")
    ui.new_workflow()  # where the editor holds one, as after other tests, the library's button bears its name
    ui.load_from_library(name)
    expect(ui.form_field(target)).to_be_visible()


def make(ui: Interface, server: Server, seen: Run, name: str) -> None:
    """Invoke what the form says and play the clip; pictures are called by `name`."""
    expect(ui.invoke_button).to_be_enabled()
    ui.picture(f"{name}-form")
    ui.panel("Viewer")
    before, told = server.queue(), len(ui.progress)
    ui.invoke_button.click()
    ui.wait_for_one_more(server, before, seconds=RUN_SECONDS)
    seen.progress = ui.progress[told:]
    seen.video = server.get("/api/v1/videos/?limit=10")["items"][0]
    ui.page.get_by_role("button", name="Play video").first.click()
    seen.played = ui.play()
    ui.picture(f"{name}-playing")
    ui.page.get_by_role("button", name="Close video player").click()


def test_the_starter_models_show_the_modules_the_bundles_and_what_svd_asks_for(starters):
    assert "AnimateDiff Zoom In" in starters["AnimateDiff"] and "AnimateDiff (6 GB cards)" in starters["AnimateDiff"]
    assert "access token" in starters["Stable Video"]


def test_a_motion_module_is_picked_in_the_form(animatediff, models):
    assert (models[MODULE]["base"], models[MODULE]["type"]) == ("sd-1", "motion_module")
    assert MODULE in animatediff.picked


def test_the_form_speaks_of_windows(animatediff):
    assert "windows of 16" in animatediff.form


def test_svd_s_model_is_picked_in_the_form_that_speaks_of_motion_and_noise(svd, models):
    assert (models[SVD_MODEL]["base"], models[SVD_MODEL]["type"]) == ("svd", "main")
    assert SVD_MODEL in svd.picked
    assert "Motion bucket (127 is normal, less is calmer)" in svd.form and "Noise augmentation" in svd.form


@pytest.mark.parametrize("name", ["animatediff", "svd"])
def test_invoke_shows_the_steps_and_the_decode(name, request):
    progress = request.getfixturevalue(name).progress

    assert any("Decoding" in message for message in progress), progress
    assert any("Denoising" in message or "step" in message.lower() for message in progress), progress


@pytest.mark.parametrize("name", ["animatediff", "svd"])
def test_the_clip_has_the_form_s_size_and_length_and_plays(name, request):
    seen = request.getfixturevalue(name)

    assert seen.video["has_workflow"]
    assert seen.played["error"] is None
    assert (seen.played["width"], seen.played["height"]) == (SIDE, SIDE)
    assert seen.played["duration"] == pytest.approx(FRAMES / FPS, abs=0.2)


def test_the_server_logged_no_fallback_and_no_traceback(server, svd):
    assert server.our_log_lines() == []
    assert "Traceback" not in server.log()
