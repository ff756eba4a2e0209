"""What the guides say of workflows, nodes and bundles against what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from invokeai_video_nodes.workflow_files import workflow_files
from invokeai_video_patches.starter_rows import BUNDLES

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine

REPOSITORY = Path(__file__).resolve().parents[2]
ARTISTS = (REPOSITORY / "docs" / "for-artists.md").read_text(encoding="utf-8")
PACK = (REPOSITORY / "invokeai_video_nodes" / "README.md").read_text(encoding="utf-8")
SELF_HOSTERS = (REPOSITORY / "docs" / "for-self-hosters.md").read_text(encoding="utf-8")
GUIDES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", workflow_files(), ids=lambda path: path.stem)
def test_the_artists_guide_names_every_workflow(path: Path) -> None:
    assert f"*{json.loads(path.read_text(encoding='utf-8'))['name']}*" in ARTISTS


def test_the_pack_s_readme_has_one_line_for_every_node_and_none_for_another(engine: Engine) -> None:
    from invokeai.app.invocations.baseinvocation import InvocationRegistry

    ours = {
        cls.get_type() for cls in InvocationRegistry.get_invocation_classes() if cls.__module__.startswith("invokeai_video_nodes.nodes")
    }

    assert re.findall(r"^\| `(\w+)` \|", PACK, re.MULTILINE).count("hunyuan_video_denoise") == 1
    assert {name for name in re.findall(r"^\| `(\w+)` \|", PACK, re.MULTILINE) if "." not in name} == ours


@pytest.mark.parametrize(
    "node_type",
    [
        "hunyuan_video_denoise",
        "video_vae_encode",
        "video_vae_decode",
        "animatediff_denoise",
        "animatediff_windows",
        "animatediff_prompt_schedule",
        "animatediff_sparse_control",
        "svd_denoise",
        "svd_decode",
    ],
)
def test_the_artists_guide_speaks_of_every_field_that_an_artist_can_fill(engine: Engine, node_type: str) -> None:
    from invokeai_video_nodes.workflow_build import node_classes

    words = []
    for name, field in node_classes()[node_type].model_fields.items():
        facts = field.json_schema_extra or {}
        if facts.get("field_kind") == "input" and facts.get("input") != "connection":
            title = field.title or name.removeprefix("num_").replace("_", " ")
            words.append(title.removesuffix(" Scale").casefold())

    assert len(words) >= 4
    assert [word for word in words if word not in ARTISTS.casefold()] == []


def test_the_guides_and_forms_give_the_numbers_of_the_code(engine: Engine) -> None:
    from invokeai_video_nodes.nodes.kept_latents import kept_folder
    from invokeai_video_nodes.pipelines.step_cache import MIN_STEPS
    from invokeai_video_nodes.pipelines.vae3d import MIN_CELLS, MIN_FRAMES

    folder = f"outputs/{kept_folder().name}"
    workflows = {path.stem: path.read_text(encoding="utf-8") for path in workflow_files()}

    assert folder in ARTISTS and folder in SELF_HOSTERS and folder in workflows["hunyuan_latents_to_video"]
    assert f"Below {MIN_STEPS} steps it must be off" in ARTISTS
    assert f"off below {MIN_STEPS} steps" in workflows["hunyuan_text_to_video"]
    assert f"frames in multiples of 4 from {4 * MIN_FRAMES} on" in ARTISTS
    assert f"multiples of 8 from {8 * MIN_CELLS} on (HunyuanVideo-1.5: of 16 from {16 * MIN_CELLS} on)" in ARTISTS


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_every_relative_link_of_a_guide_leads_somewhere(path: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8"))

    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_artists_guide_speaks_of_every_card_that_has_a_bundle() -> None:
    cards = {match[1] for name in BUNDLES.values() if (match := re.search(r"\((\d+ GB) cards\)", name))}

    assert cards == {card for card in cards if f"| {card}" in ARTISTS}
