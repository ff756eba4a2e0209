"""The pack as a plain folder in `nodes/`, without pip and without git: types, interface, starter models and nodes in one start."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from live_server import Server
from tiny_graph import text_to_video

pytestmark = [pytest.mark.xdist_group("installs"), pytest.mark.timeout(900)]


@dataclass
class Seen:
    """What the server with the dropped folder answered."""

    record: dict[str, Any]
    item: dict[str, Any]
    starters: dict[str, Any]
    installed_starter: dict[str, Any]
    starters_after: dict[str, Any]
    bundle: str
    lines: list[str]
    log: str
    pack: Path


@pytest.fixture(scope="module")
def seen(bare_environment, repository, tiny_folder, tmp_path_factory) -> Seen:
    root = tmp_path_factory.mktemp("root")
    pack = root / "nodes" / "video-pack"
    shutil.copytree(repository, pack, ignore=shutil.ignore_patterns(".git"))
    with Server(bare_environment, root) as server:
        record = server.install(tiny_folder)
        item = server.run(text_to_video(record))
        starters = server.get("/api/v2/models/starter_models")
        toy = next(model for model in starters["starter_models"] if model["base"] == "z-image-video")
        installed = install_as_the_page_does(server, toy)
        after = server.get("/api/v2/models/starter_models")
        index = server.request("GET", "/")[1].decode()
        script = index.split('src="./assets/', 1)[1].split('"', 1)[0]
        bundle = server.request("GET", f"/assets/{script}")[1].decode()
        return Seen(record, item, starters, installed, after, bundle, server.our_log_lines(), server.log(), pack)


def install_as_the_page_does(server: Server, starter: dict[str, Any]) -> dict[str, Any]:
    """The Starter Models page sends the row's own fields and never asks for an installation in place."""
    config = {key: starter[key] for key in ("name", "base", "type", "description", "format", "variant")}
    return server.install(Path(starter["source"]), inplace=False, **config)


def test_a_dropped_folder_brings_model_types_and_nodes_in_one_start(seen):
    assert seen.record["base"] == "z-image-video"
    assert seen.item["status"] == "completed"
    assert seen.lines == []
    assert "Traceback" not in seen.log


def test_a_dropped_folder_rewrites_the_interface(seen):
    assert "z-image-video" in seen.bundle


def test_the_starter_model_of_a_dropped_folder_installs_as_a_copy_and_is_then_marked_installed(seen):
    toys = [model for model in seen.starters_after["starter_models"] if model["base"] == "z-image-video"]

    assert seen.installed_starter["name"] == toys[0]["name"]
    assert [toy["is_installed"] for toy in toys] == [True] * len(toys)
    assert (Path(toys[0]["source"]) / "model_index.json").is_file()
    assert Path(toys[0]["source"]).is_relative_to(seen.pack)


def test_the_bundle_of_a_dropped_folder_holds_the_toy_model(seen):
    bundle = seen.starters["starter_bundles"]["invokeai_video_toy"]

    assert [model["base"] for model in bundle["models"]] == ["z-image-video"]
    assert json.dumps(seen.starters_after["starter_bundles"]["invokeai_video_toy"]).count('"is_installed": true') == 1
