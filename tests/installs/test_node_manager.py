"""The pack's whole life in an InvokeAI without pip: installed by the node manager, restarted, used, reloaded, prepared, removed.

A server start is expensive, so the story is told once, by three servers over one root; the tests read what was seen on the way.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from live_server import Server
from tiny_graph import text_to_video

pytestmark = [pytest.mark.xdist_group("installs"), pytest.mark.timeout(1500)]

OUR_NODES = {"z_image_video_model_loader", "z_image_video_denoise", "z_image_video_encode", "z_image_video_decode"}
MODEL_PROBLEMS = ("Traceback", "Failed to parse", "skipping", "ValidationError", "Unknown invocation")


@dataclass
class Seen:
    """What one running server answered and logged."""

    statuses: dict[str, int] = field(default_factory=dict)
    models: list[dict[str, Any]] = field(default_factory=list)
    node_types: set[str] = field(default_factory=set)
    our_lines: list[str] = field(default_factory=list)
    log: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


LOOKED_AT = {
    "models": "/api/v2/models/",
    "starter models": "/api/v2/models/starter_models",
    "queue": "/api/v1/queue/default/list_all",
    "queue status": "/api/v1/queue/default/status",
    "workflows": "/api/v1/workflows/?per_page=200",
    "videos": "/api/v1/videos/?limit=100",
    "schema": "/openapi.json",
}


def look(server: Server) -> Seen:
    """Ask the server for everything that the removal or a half-done rebuild could break."""
    seen = Seen()
    for name, path in LOOKED_AT.items():
        status, body = server.request("GET", path)
        seen.statuses[name] = status
        seen.extra[name] = body.decode()
    seen.models = server.models()
    seen.node_types = {node for node in OUR_NODES if f'"{node}"' in seen.extra["schema"]}
    return seen


def close(server: Server, seen: Seen) -> Seen:
    """Add the log as it stands now."""
    seen.log, seen.our_lines = server.log(), server.our_log_lines()
    return seen


@dataclass
class Story:
    """The three servers, and what happened between them."""

    installed: Seen
    restarted: Seen
    removed: Seen
    prepare: subprocess.CompletedProcess[str]


def as_git_repository(folder: Path) -> Path:
    """Commit everything in `folder`, as a clone source."""
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def story(bare_environment, repository, tiny_folder, tmp_path_factory) -> Story:
    """Install by the node manager, restart, install and run a model, reload, prepare the uninstall, remove, start again."""
    root = tmp_path_factory.mktemp("root")
    source = as_git_repository(repository)
    installed = install_by_node_manager(bare_environment, root, source)
    restarted = use_after_restart(bare_environment, root, tiny_folder)
    pack = root / "nodes" / source.name
    command = [bare_environment / "bin" / "python", "-m", "invokeai_video_nodes.cli", "prepare-uninstall", "--root", root, "--yes"]
    prepare = subprocess.run(command, cwd=pack, capture_output=True, text=True, timeout=600)
    shutil.rmtree(pack)
    with Server(bare_environment, root) as server:
        removed = close(server, look(server))
    return Story(installed, restarted, removed, prepare)


def install_by_node_manager(environment: Path, root: Path, source: Path) -> Seen:
    with Server(environment, root) as server:
        answer = server.post("/api/v2/custom_nodes/install", {"source": str(source)})
        reload = server.post("/api/v2/custom_nodes/reload")
        seen = look(server)
        seen.extra |= {"install": answer, "reload": reload, "packs": server.get("/api/v2/custom_nodes/")["node_packs"]}
        return close(server, seen)


def use_after_restart(environment: Path, root: Path, model_folder: Path) -> Seen:
    with Server(environment, root) as server:
        record = server.install(model_folder)
        item = server.run(text_to_video(record))
        before = len(server.our_log_lines())
        server.post("/api/v2/custom_nodes/reload")
        seen = look(server)
        seen.extra |= {"record": record, "item": item, "lines before reload": before}
        return close(server, seen)


def test_the_node_manager_installs_the_pack_from_a_git_path(story):
    answer = story.installed.extra["install"]

    assert answer["success"], answer["message"]
    assert answer["name"] == "invokeai-video"
    assert story.installed.node_types == OUR_NODES


def test_the_node_manager_imports_each_workflow_once(story):
    listed = json.loads(story.restarted.extra["workflows"])["items"]
    names = [workflow["name"] for workflow in listed if workflow["category"] == "user"]

    assert len(names) == len(set(names)) == story.installed.extra["install"]["workflows_imported"] > 0


def test_a_live_installation_asks_for_a_restart_in_one_line_and_breaks_nothing(story):
    asked = [line for line in story.installed.our_lines if "restart" in line]

    assert len(asked) == 1
    assert "Traceback" not in story.installed.log
    assert set(story.installed.statuses.values()) == {200}


def test_after_one_restart_a_model_of_a_new_type_installs_and_runs(story):
    assert story.restarted.extra["record"]["base"] == "z-image-video"
    assert story.restarted.extra["item"]["status"] == "completed"
    assert '"total":1' in story.restarted.extra["videos"].replace(" ", "")


def test_after_the_restart_every_list_and_the_schema_answer(story):
    assert set(story.restarted.statuses.values()) == {200}
    assert story.restarted.node_types == OUR_NODES
    assert "Main_Diffusers_ZImageVideo_Config" in story.restarted.extra["schema"]
    assert "Traceback" not in story.restarted.log


def test_reload_in_the_node_manager_changes_nothing(story):
    assert len(story.restarted.our_lines) == story.restarted.extra["lines before reload"] == 0
    assert [model["base"] for model in story.restarted.models] == ["z-image-video"]


def test_prepare_uninstall_succeeds_without_pip(story):
    assert story.prepare.returncode == 0, story.prepare.stdout + story.prepare.stderr


def test_after_prepare_uninstall_and_removal_model_list_queue_and_start_are_clean(story):
    assert set(story.removed.statuses.values()) == {200}
    assert story.removed.models == []
    assert story.removed.node_types == set()
    assert [word for word in MODEL_PROBLEMS if word in story.removed.log] == []
    assert "z_image_video" not in story.removed.extra["queue"]
