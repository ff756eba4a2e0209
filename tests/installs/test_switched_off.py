"""With the kill switch, and with an InvokeAI that the patches were not written for: stock types and stock interface."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from live_server import Server, build_wheel, make_environment

pytestmark = [pytest.mark.xdist_group("installs"), pytest.mark.timeout(900)]

LOOK = """
import json
from invokeai.app.api.no_cache_staticfiles import NoCacheStaticFiles
from invokeai.backend.model_manager.starter_models import STARTER_BUNDLES, STARTER_MODELS
from invokeai.backend.model_manager.taxonomy import BaseModelType, ModelType
print("SEEN", json.dumps({
    "bases": [base.value for base in BaseModelType],
    "types": [kind.value for kind in ModelType],
    "starters": [model.base.value for model in STARTER_MODELS],
    "bundles": list(STARTER_BUNDLES),
    "serves": NoCacheStaticFiles.file_response.__module__,
}))
"""


@dataclass
class Seen:
    """What InvokeAI's modules held, and what was printed."""

    facts: dict[str, list[str]]
    our_lines: list[str]
    output: str


def look(environment: Path, variables: Mapping[str, str]) -> Seen:
    """Import the patched modules of the real InvokeAI in a fresh interpreter."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "INVOKEAI"))}
    command = [environment / "bin" / "python", "-c", LOOK]
    done = subprocess.run(command, env={**kept, **variables}, capture_output=True, text=True, timeout=600, cwd=environment)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    facts = next(line for line in done.stdout.splitlines() if line.startswith("SEEN "))
    lines = [line for line in output.splitlines() if "invokeai-video:" in line]
    return Seen(json.loads(facts.removeprefix("SEEN ")), lines, output)


@pytest.fixture(scope="module")
def unknown_version_environment(tmp_path_factory) -> Path:
    """Our wheel beside an InvokeAI whose metadata says 6.99."""
    folder = tmp_path_factory.mktemp("unknown")
    environment = make_environment(folder / "venv", wheel=build_wheel(folder / "wheel"))
    (site,) = environment.glob("lib/python*/site-packages")
    info = site / "invokeai-6.99.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: InvokeAI\nVersion: 6.99.0\n")
    return environment


def is_stock(seen: Seen) -> bool:
    """True when nothing of ours is in InvokeAI's modules."""
    ours = {"z-image-video", "hunyuan-video", "svd", "video_vae", "video_text_encoders", "motion_module"}
    mentioned = {*seen.facts["bases"], *seen.facts["types"], *seen.facts["starters"]}
    return not ours & mentioned and "invokeai_video_toy" not in seen.facts["bundles"] and "invokeai." in seen.facts["serves"]


def test_the_wheel_alone_patches_every_module_without_a_word(packed_environment):
    seen = look(packed_environment, {})

    assert "z-image-video" in seen.facts["bases"]
    assert "video_vae" in seen.facts["types"]
    assert "z-image-video" in seen.facts["starters"]
    assert "invokeai_video_toy" in seen.facts["bundles"]
    assert seen.facts["serves"] == "invokeai_video_patches.web_ui"
    assert seen.our_lines == []


@pytest.mark.soak
def test_with_the_kill_switch_invokeai_is_stock_and_nothing_is_said_twice(packed_environment):
    seen = look(packed_environment, {"INVOKEAI_VIDEO_DISABLE": "1"})

    assert is_stock(seen)
    assert len(seen.our_lines) <= 1
    assert "Traceback" not in seen.output


def test_with_an_unknown_invokeai_it_is_stock_and_one_line_says_so(unknown_version_environment):
    seen = look(unknown_version_environment, {})

    assert is_stock(seen)
    assert len(seen.our_lines) == 1
    assert "6.99.0" in seen.our_lines[0]
    assert "Traceback" not in seen.output


@pytest.mark.parametrize(
    ("environment", "variables", "said"),
    [
        ("packed_environment", {"INVOKEAI_VIDEO_DISABLE": "1"}, "INVOKEAI_VIDEO_DISABLE"),
        pytest.param("unknown_version_environment", {}, "6.99.0", marks=pytest.mark.soak),
    ],
    ids=["kill switch", "unknown version"],
)
def test_a_server_then_starts_and_serves_what_invokeai_alone_would(environment, variables, said, request, tmp_path):
    with Server(request.getfixturevalue(environment), tmp_path / "root", variables=variables) as server:
        schema = json.dumps(server.get("/openapi.json"))
        starters = json.dumps(server.get("/api/v2/models/starter_models"))
        page = server.request("GET", "/")[1].decode()
        script = re.search(r"assets/index-[\w-]+\.js", page)[0]
        served = server.request("GET", f"/{script}")[1]
        installed = Path(importlib.util.find_spec("invokeai").submodule_search_locations[0], "frontend", "web", "dist", script)
        lines, log = server.our_log_lines(), server.log()

    assert served == installed.read_bytes()
    assert "z_image_video_denoise" not in schema and "z-image-video" not in schema
    assert "sd-1" in starters and "z-image-video" not in starters and "invokeai_video_toy" not in starters
    assert len(lines) <= 1 and all(said in line for line in lines)
    assert "Traceback" not in log
