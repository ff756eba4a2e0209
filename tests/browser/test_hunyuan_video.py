"""HunyuanVideo in the stock interface: our workflow from the library, a model picked in its form, a clip that plays.

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
from playwright.sync_api import Page, expect

NAME = "Text to Video - HunyuanVideo"
MODEL, ENCODERS = "tiny-hunyuan", "tiny-text-encoders"
FRAMES, FPS, SIDE, STEPS = 9, 8, 64, 3
RUN_SECONDS = 240


@pytest.fixture(scope="module")
def ui(page: Page, server: Server, screenshots: Path) -> Interface:
    """The interface, opened anew."""
    interface = Interface(page, server.url, screenshots)
    interface.open()
    return interface


@pytest.fixture(scope="module")
def starters(ui: Interface) -> str:
    """What the Starter Models show of HunyuanVideo."""
    ui.starter_models()
    ui.search_starter_models("HunyuanVideo")
    ui.page.get_by_text("HunyuanVideo VAE", exact=True).wait_for()
    ui.picture("hunyuan-starter-models")
    return ui.page.get_by_role("tabpanel").inner_text()


@pytest.fixture(scope="module")
def model(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A tiny HunyuanVideo model of the real classes."""
    from tiny_hunyuan import tiny_text_to_video  # torch takes its time, and only this step needs it

    folder = tmp_path_factory.mktemp("models") / MODEL
    tiny_text_to_video().save_pretrained(folder)
    record = server.install(folder)
    yield record
    server.request("DELETE", f"/api/v2/models/i/{record['key']}")


@pytest.fixture(scope="module")
def encoders(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The text encoders of such a model, as a model of their own."""
    from tiny_hunyuan import tiny_text_to_video
    from tiny_hunyuan_files import save_encoders

    record = server.install(save_encoders(tmp_path_factory.mktemp("models") / ENCODERS, tiny_text_to_video()))
    yield record
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
    loras: str = ""
    picked: str = ""
    lent: str = ""
    progress: list[str] = field(default_factory=list)
    video: dict[str, Any] = field(default_factory=dict)
    played: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def run(ui: Interface, server: Server, starters: str, model: dict[str, Any], encoders: dict[str, Any], installed: str) -> Run:
    """Load the workflow from the library, fill in its form, pick the models there, invoke, play the clip."""
    seen = Run()
    ui.open()
    ui.tab("Workflows")
    ui.new_workflow()  # where the editor holds one, as after other tests, the library's button bears its name
    ui.load_from_library(NAME)
    expect(ui.form_field("loader.model")).to_be_visible()
    seen.form = ui.form_field("loader.model").locator("xpath=..").inner_text()
    seen.loras = ui.form_field("lora.loras").inner_text()
    ui.fill_form(Frames=FRAMES, Frames_per_second=FPS, Width=SIDE, Height=SIDE, Steps=STEPS)
    ui.pick_model_in_form("loader.model", MODEL)
    seen.picked = ui.form_field("loader.model").inner_text()
    ui.pick_model_in_form("loader.encoder_source", ENCODERS)
    seen.lent = ui.form_field("loader.encoder_source").inner_text()
    expect(ui.invoke_button).to_be_enabled()
    ui.picture("hunyuan-form")
    ui.panel("Viewer")
    before = server.queue()
    ui.invoke_button.click()
    ui.wait_for_one_more(server, before, seconds=RUN_SECONDS)
    seen.progress = ui.progress
    seen.video = server.get("/api/v1/videos/?limit=10")["items"][0]
    ui.page.get_by_role("button", name="Play video").first.click()
    seen.played = ui.play()
    ui.picture("hunyuan-playing")
    ui.page.get_by_role("button", name="Close video player").click()
    return seen


def test_the_starter_models_show_the_bundles_and_the_licence_s_territory(starters):
    assert "HunyuanVideo (12 GB cards)" in starters
    assert "does not apply in the European Union, the United Kingdom and South Korea" in starters


def test_our_command_adds_the_workflow_to_a_running_server_s_library(installed):
    assert f"{NAME}: added" in installed or f"{NAME}: already there" in installed


def test_the_form_speaks_of_frames_guidance_and_loras(run):
    assert "Frames are 4n+1" in run.form
    assert "Guidance (costs no time)" in run.form
    assert "LoRAs (may stay empty)" in run.loras


def test_the_model_is_picked_in_the_form(run, model):
    assert model["base"] == "hunyuan-video"
    assert MODEL in run.picked


def test_text_encoders_of_their_own_are_picked_in_the_form(run, encoders):
    assert encoders["type"] == "video_text_encoders"
    assert ENCODERS in run.lent


def test_invoke_shows_the_prompt_the_steps_and_the_decode(run):
    assert any("Encoding the prompt" in message for message in run.progress), run.progress
    assert any("Decoding" in message for message in run.progress), run.progress


def test_the_clip_has_the_form_s_size_and_length_and_plays(run):
    assert run.video["has_workflow"]
    assert run.played["error"] is None
    assert (run.played["width"], run.played["height"]) == (SIDE, SIDE)
    assert run.played["duration"] == pytest.approx(FRAMES / FPS, abs=0.2)


def test_the_server_logged_no_fallback_and_no_traceback(server, run):
    assert server.our_log_lines() == []
    assert "Traceback" not in server.log()
