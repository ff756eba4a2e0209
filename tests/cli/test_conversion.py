"""Drafts -> graphs against the nodes of the real InvokeAI, its shipped workflows included."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from invokeai_video_nodes.commands.run import RunRequest, import_media, prepare
from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.workflow_graph import WorkflowDraft, draft_from
from invokeai_video_nodes.workflow_models import takes_model
from invokeai_video_nodes.workflow_settings import apply_settings, parse_setting

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine


@pytest.fixture
def classes(engine: Engine) -> dict[str, Any]:
    from invokeai_video_nodes.workflow_build import node_classes

    return node_classes()


def draft(**nodes: dict[str, Any]) -> WorkflowDraft:
    return draft_from({"nodes": nodes, "edges": []}, name="test")


def wired(start: str, end: str, **nodes: dict[str, Any]) -> WorkflowDraft:
    ends = [dict(zip(("node_id", "field"), name.split("."), strict=True)) for name in (start, end)]
    return draft_from({"nodes": nodes, "edges": [{"source": ends[0], "destination": ends[1]}]}, name="test")


def set_in(target: WorkflowDraft, classes: dict[str, Any], *texts: str, installed: tuple[dict[str, str], ...] = ()) -> None:
    apply_settings(
        target,
        [parse_setting(text) for text in texts],
        classes=classes,
        installed=installed,
        import_media=lambda key, path: f"imported-{path.name}",
    )


def shipped_workflows() -> Iterator[Path]:
    """The workflows that InvokeAI ships, found without importing it."""
    from importlib.util import find_spec

    spec = find_spec("invokeai")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations))) / "app/services/workflow_records/default_workflows"
    yield from sorted(folder.glob("*.json"))


def filled(workflow: dict[str, Any], classes: dict[str, Any]) -> dict[str, Any]:
    """The workflow with a stand-in value in each empty model and image field, as an artist would choose one."""
    for node in workflow["nodes"]:
        cls = classes.get(node["data"]["type"])
        fields = cls.model_fields if cls else {}
        for name, entry in node["data"]["inputs"].items():
            if name == "file_path":  # checked for existence when the node is built
                entry["value"] = __file__
            if name not in fields or entry.get("value") is not None:
                continue
            extra = fields[name].json_schema_extra
            if takes_model(fields[name]) and extra["input"] != "connection":
                base, kind = ((extra.get(f"ui_model_{fact}") or ["any"])[0] for fact in ("base", "type"))
                texts = {"base": getattr(base, "value", base), "type": getattr(kind, "value", kind)}
                entry["value"] = {"key": "k", "hash": "h", "name": "n", **{**texts, "type": texts["type"].replace("any", "main")}}
            elif "ImageField" in str(fields[name].annotation) and extra["orig_required"]:
                entry["value"] = {"image_name": "picture.png"}
            elif "VideoField" in str(fields[name].annotation) and extra["orig_required"]:
                entry["value"] = {"video_name": "clip.mp4"}
    return workflow


def graph_facts(graph: Any) -> tuple[dict[str, Any], set[str]]:
    ignored = {"use_cache"}
    nodes = {node_id: node.model_dump(exclude=ignored, exclude_none=True) for node_id, node in graph.nodes.items()}
    return nodes, {str(edge) for edge in graph.edges}


def test_every_workflow_that_invokeai_ships_becomes_the_graph_that_invokeai_itself_would_build(classes: dict[str, Any]) -> None:
    from invokeai.app.services.shared.workflow_graph_builder import build_graph_from_workflow

    from invokeai_video_nodes.workflow_build import build_graph, refuse_unrunnable

    paths = list(shipped_workflows())
    assert len(paths) > 20
    for path in paths:
        workflow = filled(json.loads(path.read_text(encoding="utf-8")), classes)
        # InvokeAI's own conversion serves calls between workflows only, so it wants a return node.
        data = {"id": "return", "type": "workflow_return", "version": "1.0.0", "inputs": {}}
        workflow["nodes"].append({"id": "return", "type": "invocation", "data": data})
        ours = draft_from(workflow, name=path.stem)
        gone = {node["type"] for node in ours.nodes.values()} - set(classes)
        if gone:  # a shipped workflow may be older than the nodes
            with pytest.raises(BadInput, match=gone.pop()):
                refuse_unrunnable(ours, classes)
            continue
        refuse_unrunnable(ours, classes)

        assert graph_facts(build_graph(ours, classes)) == graph_facts(build_graph_from_workflow(workflow)), path.name


def test_nodes_that_cannot_run_are_all_named_in_one_error(classes: dict[str, Any]) -> None:
    from invokeai_video_nodes.workflow_build import refuse_unrunnable

    nodes = {"batch": "image_batch", "gen": "integer_generator", "odd": "integr", "good": "integer"}
    target = draft(**{node_id: {"type": node_type} for node_id, node_type in nodes.items()})
    target.packs["odd"] = "some_pack"

    with pytest.raises(BadInput) as caught:
        refuse_unrunnable(target, classes)

    message = str(caught.value)
    assert "image_batch (id batch) is unrolled by the browser" in message
    assert "integer_generator (id gen) is unrolled by the browser" in message
    assert "integr (id odd) of the node pack 'some_pack' is not installed here (nearest: integer)" in message
    assert "id good" not in message


def test_an_older_major_version_of_a_node_is_remarked(classes: dict[str, Any]) -> None:
    from invokeai_video_nodes.workflow_build import refuse_unrunnable

    target = draft(a={"type": "integer"})
    target.versions["a"] = "0.9.0"
    refuse_unrunnable(target, classes)

    assert "was saved as version 0.9.0" in target.remarks[0]


def test_an_input_that_the_node_no_longer_has_is_left_out_with_a_remark(classes: dict[str, Any]) -> None:
    from invokeai_video_nodes.workflow_build import build_graph

    target = draft(a={"type": "integer", "value": 3, "colour": "red"})

    assert build_graph(target, classes).nodes["a"].value == 3
    assert "no input 'colour'" in target.remarks[0]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda: draft(a={"type": "integer", "value": "seven"}), r"integer \(id a\).value: expected a valid integer.* got 'seven'"),
        (lambda: draft(a={"type": "blank_image", "mode": "RGBX"}), r"blank_image \(id a\).mode: .*nearest valid value: RGBA?"),
        (lambda: draft(a={"type": "img_resize"}), r"img_resize \(id a\).image: expected a value or a wire, got nothing"),
        (lambda: wired("a.valu", "b.a", a={"type": "integer"}, b={"type": "add"}), r"'valu' \(nearest valid value: value\)"),
        (lambda: wired("a.value", "b.aa", a={"type": "integer"}, b={"type": "add"}), "expected an input that the node has, got 'aa'"),
        (lambda: wired("a.image", "b.a", a={"type": "blank_image"}, b={"type": "add"}), "expected a wire of its own type, got one from"),
    ],
    ids=["value", "choice", "empty", "output", "input", "types"],
)
def test_a_value_or_wire_that_does_not_fit_is_refused_by_name(classes: dict[str, Any], target: Any, message: str) -> None:
    from invokeai_video_nodes.workflow_build import build_graph

    with pytest.raises(BadInput, match=message):
        build_graph(target(), classes)


def test_a_ring_of_wires_is_refused(classes: dict[str, Any]) -> None:
    from invokeai_video_nodes.workflow_build import build_graph

    ring = wired("a.value", "b.a", a={"type": "add"}, b={"type": "add"})
    ring.links.append(ring.links[0]._replace(source="b", target="a"))

    with pytest.raises(BadInput, match="cycles"):
        build_graph(ring, classes)


def test_a_node_is_found_by_id_then_label_then_type_then_title(classes: dict[str, Any]) -> None:
    target = draft(a={"type": "integer"}, b={"type": "float"}, c={"type": "string"})
    target.labels["c"] = "The words. All of them"

    set_in(target, classes, "a.value=1", "float.value=2.5", "the words. all of them.value=text")
    set_in(target, classes, "Integer Primitive.value=3")

    assert [target.nodes[node_id]["value"] for node_id in "abc"] == [3, 2.5, "text"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("integer.value=1", "the type 'integer' of integer .id a., integer .id b."),
        ("intger.value=1", "nearest valid value: integer"),
        ("a.valeu=1", "nearest valid value: value"),
        ("a.value=x", r"integer \(id a\).value: expected a valid integer"),
        ("n.steps=0", r"steps: expected greater than 0, got '0' \(nearest valid value: 1\)"),
        ("n.width=100", r"multiple of 8, got '100' \(nearest valid value: 96\)"),
        ("n.denoising_start=1.5", r"got '1.5' \(nearest valid value: 1\)"),
        ("n.scheduler=eulr", "nearest valid value: euler"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_with_what_would(classes: dict[str, Any], text: str, message: str) -> None:
    target = draft(a={"type": "integer"}, b={"type": "integer"}, n={"type": "denoise_latents"})
    if "width" in text:
        target.nodes["n"]["type"] = "noise"

    with pytest.raises(BadInput, match=message):
        set_in(target, classes, text)


def test_what_a_node_itself_says_of_a_value_is_told_once() -> None:
    from pydantic import BaseModel, ValidationError, field_validator

    from invokeai_video_nodes.workflow_settings import value_error

    class Tiles(BaseModel):
        size: int

        @field_validator("size")
        @classmethod
        def _check(cls, size: int) -> int:
            raise BadInput.expected("tile size", "a multiple of 8", size, 8)

    with pytest.raises(ValidationError) as refused:
        Tiles(size=7)

    told = str(value_error("decode.size", Tiles.model_fields["size"], refused.value, 7))
    assert told == "decode.size: tile size: expected a multiple of 8, got 7 (nearest valid value: 8)"


@pytest.mark.parametrize("text", ["n.scheduler=vp8", "n.latents=5.0"])
def test_no_nearest_value_is_made_up_where_none_comes_near(classes: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput) as refused:
        set_in(draft(n={"type": "denoise_latents"}), classes, text)

    assert "nearest" not in str(refused.value)


@pytest.mark.parametrize("text", ["value=1", "a.value", ".value=1", "a.=1", "="])
def test_a_setting_of_the_wrong_form_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--set: expected NODE.FIELD=VALUE"):
        parse_setting(text)


def test_text_stays_text_and_the_rest_is_read_as_json(classes: dict[str, Any]) -> None:
    target = draft(s={"type": "string"}, b={"type": "boolean"}, c={"type": "integer_collection"})

    set_in(target, classes, "s.value=12", "b.value=true", "c.collection=[1, 2]", "s.use_cache=false")

    assert target.nodes["s"]["value"] == "12"
    assert target.nodes["b"]["value"] is True
    assert target.nodes["s"]["use_cache"] is False
    assert target.nodes["c"]["collection"] == [1, 2]


def test_a_value_set_by_hand_replaces_the_wire_and_says_so(classes: dict[str, Any]) -> None:
    target = wired("a.value", "b.a", a={"type": "integer"}, b={"type": "add"})

    set_in(target, classes, "b.a=5")

    assert target.links == []
    assert "replaces the wire from integer (id a).value" in target.remarks[0]


def test_image_fields_take_a_file_or_the_name_of_one_in_the_gallery(classes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"")
    target = draft(i={"type": "image"}, c={"type": "image_collection"})

    set_in(target, classes, f"i.image={tmp_path / 'cat.png'}", f'c.collection=["{tmp_path / "cat.png"}", "in-gallery.png"]')

    assert target.nodes["i"]["image"] == {"image_name": "imported-cat.png"}
    assert target.nodes["c"]["collection"] == [{"image_name": "imported-cat.png"}, {"image_name": "in-gallery.png"}]
    with pytest.raises(BadInput, match="expected a file or the name of one in the gallery"):
        set_in(target, classes, "i.image=/no/such/cat.png")


def test_a_picture_from_disk_is_in_the_gallery_afterwards_and_what_is_none_is_refused(engine: Engine, tmp_path: Path) -> None:
    Image.new("RGB", (32, 24), "red").save(tmp_path / "red.png")
    (tmp_path / "text.png").write_text("no picture")

    name = import_media(engine.services, "image_name", tmp_path / "red.png")

    assert engine.services.images.get_pil_image(name).size == (32, 24)
    with pytest.raises(BadInput, match="expected an image file"):
        import_media(engine.services, "image_name", tmp_path / "text.png")


def test_an_empty_model_field_takes_the_only_model_that_fits_and_says_so(engine: Engine, tiny_model: dict[str, Any]) -> None:
    target = draft(loader={"type": "z_image_video_model_loader"})

    graph = prepare(RunRequest(draft=target), engine)

    assert graph.nodes["loader"].model.key == tiny_model["key"]
    assert "the only model that fits" in target.remarks[0]


def test_a_model_saved_elsewhere_is_found_by_its_hash(engine: Engine, tiny_model: dict[str, Any]) -> None:
    saved = {**tiny_model, "key": "of another installation", "name": "renamed there"}

    graph = prepare(RunRequest(draft=draft(loader={"type": "z_image_video_model_loader", "model": saved})), engine)

    assert graph.nodes["loader"].model.key == tiny_model["key"]


def test_every_missing_model_is_named_with_where_it_goes(engine: Engine, tiny_model: dict[str, Any]) -> None:
    gone = {"key": "x", "hash": "y", "name": "Gone", "base": "sdxl", "type": "main"}
    target = draft(a={"type": "sdxl_model_loader", "model": gone}, b={"type": "vae_loader"})

    with pytest.raises(BadInput) as caught:
        prepare(RunRequest(draft=target), engine)

    assert "sdxl_model_loader (id a).model, which wants 'Gone' (sdxl main)" in str(caught.value)
    assert "vae_loader (id b).vae_model, which is empty" in str(caught.value)
    assert "--model PATH" in str(caught.value)


LOADER = "hunyuan_video_model_loader"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "models: expected an installed model in each model field, got hunyuan_video_model_loader (id a).model, which is empty while "
             "no installed model is of base hunyuan-video and type main. Installed: none. "
             "Install one with --model PATH or choose one with --set NODE.FIELD=NAME"),
        (["A", "B"], 'which is empty while 2 models fit: choose --set "a.model=A" or --set "a.model=B". Installed: '),
        (["A", "A"], 'choose --set "a.model=key-0" or --set "a.model=key-1".'),
    ],
    ids=["none", "two", "two of one name"],
)  # fmt: skip
def test_an_empty_model_field_says_what_is_installed_and_how_to_choose(classes: dict[str, Any], names: list[str], message: str) -> None:
    from invokeai_video_nodes.workflow_models import resolve_models

    facts = {"base": "hunyuan-video", "type": "main"}
    installed = [{"key": f"key-{number}", "hash": "", "name": name, **facts} for number, name in enumerate(names)]

    with pytest.raises(BadInput) as refused:
        resolve_models(draft(a={"type": LOADER}), classes, installed)

    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("node", "chosen"),
    [("lora_loader", "Ink"), ("animatediff_motion_lora", "Zoom"), ("controlnet", "Canny"), ("animatediff_sparse_control", "Sparse")],
)
def test_motion_loras_and_sparse_controls_go_only_where_they_are_asked_for(classes: dict[str, Any], node: str, chosen: str) -> None:
    from invokeai_video_nodes.workflow_models import resolve_models

    formats = {"Ink": "lycoris", "Zoom": "checkpoint", "Canny": "diffusers", "Sparse": "sparse_ctrl"}
    types = {"Ink": "lora", "Zoom": "lora", "Canny": "controlnet", "Sparse": "controlnet"}
    installed = [{"key": name, "hash": "", "name": name, "base": "sd-1", "type": types[name], "format": formats[name]} for name in types]
    target = draft(a={"type": node})

    resolve_models(target, classes, installed)

    field = "lora" if "lora" in node else "control_model"
    assert target.nodes["a"][field] == {"key": chosen, "hash": "", "name": chosen, "base": "sd-1", "type": types[chosen]}


def test_loras_are_set_by_name_and_become_what_the_node_takes(classes: dict[str, Any]) -> None:
    installed = tuple({"key": f"k{name}", "hash": "h", "name": name, "base": "hunyuan-video", "type": "lora"} for name in ("Ink", "7"))
    target = draft(many={"type": "hunyuan_video_lora_collection_loader"}, one={"type": "hunyuan_video_lora_loader"})

    def chosen(text: str) -> list[tuple[str, float]]:
        set_in(target, classes, text, installed=installed)
        return [(entry["lora"]["key"], entry["weight"]) for entry in target.nodes["many"]["loras"]]

    assert chosen("many.loras=Ink") == [("kInk", 0.75)]
    assert chosen("many.loras=7") == [("k7", 0.75)]
    assert chosen('many.loras=["7", {"lora": "Ink", "weight": 0.5}]') == [("k7", 0.75), ("kInk", 0.5)]
    set_in(target, classes, "one.lora=Ink", installed=installed)
    assert target.nodes["one"]["lora"]["key"] == "kInk"


def test_a_prepared_workflow_runs(engine: Engine) -> None:
    target = wired("img.image", "r.image", img={"type": "blank_image", "width": 64, "height": 64}, r={"type": "img_resize", "width": 32})
    request = RunRequest(draft=target, settings=[parse_setting("r.height=16")])

    result = engine.run(prepare(request, engine))

    assert [Image.open(path).size for path in result.images] == [(64, 64), (32, 16)]
