"""The shipped workflow files against the live schema, and through the engine."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from invokeai_video_nodes.commands.run import RunRequest, import_media, prepare
from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.workflow_files import workflow_file, workflow_files
from invokeai_video_nodes.workflow_graph import read_workflow, workflow_as_run
from invokeai_video_nodes.workflow_settings import parse_setting

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = workflow_files()
STEMS = [path.stem for path in FILES]
# The others run in test_hunyuan_workflows.py and test_sd1_workflows.py.
Z_IMAGE_STEMS = [stem for stem in STEMS if not stem.startswith(("hunyuan_", "animate", "svd_"))]


@pytest.fixture(scope="module")
def schemas(engine: Engine) -> dict[str, Any]:
    from workflows.build import live_schemas

    return live_schemas()


def content(stem: str) -> dict[str, Any]:
    return json.loads(workflow_file(stem).read_text(encoding="utf-8"))


def test_every_recipe_has_its_file_and_every_file_its_recipe() -> None:
    from workflows.recipes import RECIPES

    assert STEMS == sorted(RECIPES)
    assert set(Z_IMAGE_STEMS) == {"first_frame_held", "image_to_video", "text_to_video"}


def test_no_two_workflows_have_one_name() -> None:
    names = [content(stem)["name"] for stem in STEMS]

    assert sorted(set(names)) == sorted(names)


def test_an_unknown_workflow_is_refused_with_the_known_names() -> None:
    with pytest.raises(FileNotFoundError, match=f"{', '.join(STEMS)}, got 'other'"):
        workflow_file("other")


def test_no_other_json_of_the_repository_looks_like_a_workflow_to_the_node_manager() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.json"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    found = []
    for name in listed.stdout.splitlines():
        data = json.loads((REPOSITORY / name).read_text(encoding="utf-8")) if (REPOSITORY / name).is_file() else None
        if isinstance(data, dict) and "nodes" in data and "edges" in data:
            found.append(name)

    assert sorted(found) == sorted(str(path.relative_to(REPOSITORY)) for path in FILES)


@pytest.mark.parametrize("stem", STEMS)
def test_a_file_is_what_the_schema_makes_of_its_recipe(stem: str, schemas: dict[str, Any]) -> None:
    from workflows.build import build, file_text
    from workflows.recipes import RECIPES

    built = file_text(build(RECIPES[stem], schemas))

    assert workflow_file(stem).read_text(encoding="utf-8") == built, "run: python -m workflows.build"


@pytest.mark.parametrize("stem", STEMS)
def test_every_input_that_the_editor_knows_has_an_entry_and_no_other(stem: str, schemas: dict[str, Any]) -> None:
    from workflows.build import editor_inputs

    for node in content(stem)["nodes"]:
        if node["type"] == "invocation":
            data = node["data"]
            assert list(data["inputs"]) == list(editor_inputs(schemas[data["type"]])), data["id"]
            assert data["version"] == schemas[data["type"]]["version"]


@pytest.mark.parametrize("stem", STEMS)
def test_the_form_is_a_tree_that_the_editor_accepts(stem: str) -> None:
    workflow = content(stem)
    elements, root = workflow["form"]["elements"], workflow["form"]["rootElementId"]
    nodes = {node["id"]: node["data"] for node in workflow["nodes"]}
    reached = set()

    def visit(element_id: str, parent: str | None) -> None:
        element = elements[element_id]
        reached.add(element_id)
        assert element["id"] == element_id
        assert element.get("parentId") == parent
        if element["type"] == "node-field":
            target = element["data"]["fieldIdentifier"]
            assert target["fieldName"] in nodes[target["nodeId"]]["inputs"]
            assert nodes[target["nodeId"]]["inputs"][target["fieldName"]]["label"], target
        for child in element.get("data", {}).get("children", []):
            visit(child, element_id)

    visit(root, None)

    assert reached == set(elements)


@pytest.mark.parametrize("stem", STEMS)
def test_no_exposed_input_is_fed_by_a_wire(stem: str) -> None:
    workflow = content(stem)
    wired = {(edge["target"], edge["targetHandle"]) for edge in workflow["edges"]}
    fields = [element["data"]["fieldIdentifier"] for element in workflow["form"]["elements"].values() if element["type"] == "node-field"]

    assert not [field for field in fields if (field["nodeId"], field["fieldName"]) in wired]


@pytest.mark.parametrize("stem", STEMS)
def test_a_label_names_one_node_so_that_the_command_line_can_set_its_inputs(stem: str) -> None:
    names = [(node["id"], node["data"]["label"].casefold()) for node in content(stem)["nodes"] if node["data"]["label"]]
    labels = [label for _, label in names]

    assert sorted(set(labels)) == sorted(labels)
    assert [label for node_id, label in names for other, _ in names if other != node_id and other.casefold() == label] == []


@pytest.mark.parametrize("stem", STEMS)
def test_a_file_says_what_it_is(stem: str, engine: Engine) -> None:
    from invokeai.app.services.workflow_records.workflow_records_common import WorkflowWithoutIDValidator

    workflow = WorkflowWithoutIDValidator.validate_python(content(stem))

    assert workflow.meta.version == "4.0.0"
    assert workflow.meta.category.value == "user"
    assert "invokeai-video" in workflow.tags.split(", ")
    assert "Video Model:" in workflow.notes or "Motion Module:" in workflow.notes


@pytest.mark.parametrize("stem", STEMS)
def test_no_node_lies_on_another(stem: str) -> None:
    positions = [(node["position"]["x"], node["position"]["y"]) for node in content(stem)["nodes"]]

    assert len(set(positions)) == len(positions)
    assert all(abs(x1 - x2) >= 400 or abs(y1 - y2) >= 180 for i, (x1, y1) in enumerate(positions) for x2, y2 in positions[:i])


@pytest.mark.parametrize("stem", Z_IMAGE_STEMS)
def test_a_file_runs_and_leaves_its_workflow_with_the_video(stem: str, engine: Engine, tiny_model: dict[str, Any], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "frame.png")
    settings = ["denoise.steps=2", f"loader.model={tiny_model['key']}"]  # other tests leave their models in this engine
    if stem == "image_to_video":
        settings += [f"encode.image={tmp_path / 'frame.png'}", "frames.value=8"]
    else:
        settings += ["denoise.num_frames=8"]
    if stem == "first_frame_held":
        settings += [f"denoise.start_image={tmp_path / 'frame.png'}"]
    request = RunRequest(draft=read_workflow(workflow_file(stem)), settings=[parse_setting(text) for text in settings])

    graph = prepare(request, engine)
    result = engine.run(graph, workflow=workflow_as_run(request.draft))

    assert len(result.videos) == 1
    assert result.videos[0].stat().st_size > 500
    assert result.outputs["decode"]["num_frames"] == 8
    assert result.images == []
    stored = json.loads(engine.services.videos.get_workflow(result.videos[0].name))
    inputs = {node["id"]: node["data"].get("inputs") for node in stored["nodes"]}
    assert stored["name"] == content(stem)["name"]
    assert stored["edges"] == content(stem)["edges"]
    assert inputs["denoise"]["steps"]["value"] == 2
    assert inputs["loader"]["model"]["value"]["key"] == tiny_model["key"]


def test_a_text_file_as_picture_is_refused_with_its_node_and_field(engine: Engine, tmp_path: Path) -> None:
    notes = tmp_path / "notes.png"
    notes.write_text("not a picture")
    request = RunRequest(draft=read_workflow(workflow_file("image_to_video")), settings=[parse_setting(f"encode.image={notes}")])

    with pytest.raises(BadInput, match=r"id encode\)\.image: .*expected an image file") as refused:
        prepare(request, engine)

    assert str(notes) in str(refused.value)


def test_a_video_from_disk_is_in_the_gallery_afterwards(engine: Engine, tiny_model: dict[str, Any], tmp_path: Path) -> None:
    request = RunRequest(
        draft=read_workflow(workflow_file("text_to_video")),
        settings=[parse_setting(text) for text in ("denoise.steps=1", "denoise.num_frames=4", f"loader.model={tiny_model['key']}")],
    )
    clip = engine.run(prepare(request, engine)).videos[0]

    name = import_media(engine.services, "video_name", clip)

    assert engine.services.videos.get_dto(name).width == 64
    assert clip.exists()
