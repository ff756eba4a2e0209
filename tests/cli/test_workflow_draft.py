"""Workflow and graph files -> drafts. No InvokeAI is imported here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.workflow_graph import Link, draft_from, read_workflow, workflow_as_run


def ui_node(node_id: str, node_type: str = "integer", **inputs: Any) -> dict[str, Any]:
    """A canvas node as the workflow editor saves it; an input given as None has no value."""
    entries = {name: {"name": name, "label": "", **({} if value is None else {"value": value})} for name, value in inputs.items()}
    data = {"id": node_id, "type": node_type, "version": "1.0.0", "label": "", "inputs": entries}
    return {"id": node_id, "type": "invocation", "data": {**data, "isIntermediate": True, "useCache": False}}


def wire(source: str, target: str, kind: str = "default") -> dict[str, Any]:
    (source_id, source_field), (target_id, target_field) = source.split("."), target.split(".")
    ends = {"source": source_id, "sourceHandle": source_field, "target": target_id, "targetHandle": target_field}
    return {"id": f"{source}-{target}", "type": kind, **ends}


def ui_workflow(nodes: list[dict[str, Any]], edges: list[dict[str, Any]] | None = None, version: str = "4.0.0") -> dict[str, Any]:
    return {"name": "A workflow", "meta": {"version": version, "category": "user"}, "nodes": nodes, "edges": edges or []}


@pytest.mark.parametrize("version", ["3.0.0", "4.0.0"])
def test_a_ui_workflow_becomes_nodes_with_their_values_and_switches(version: str) -> None:
    draft = draft_from(ui_workflow([ui_node("a", value=7)], version=version), name="file")

    assert draft.name == "A workflow"
    assert draft.nodes == {"a": {"id": "a", "type": "integer", "value": 7, "is_intermediate": True, "use_cache": False}}


def test_an_input_without_a_value_is_left_to_the_nodes_default() -> None:
    draft = draft_from(ui_workflow([ui_node("a", value=None, other=3)]), name="file")

    assert "value" not in draft.nodes["a"]
    assert draft.nodes["a"]["other"] == 3


def test_the_board_pickers_words_for_no_board_are_left_out() -> None:
    draft = draft_from(
        ui_workflow([ui_node("a", board="auto"), ui_node("b", board="none"), ui_node("c", board={"board_id": "x"})]), name=""
    )

    assert "board" not in draft.nodes["a"]
    assert "board" not in draft.nodes["b"]
    assert draft.nodes["c"]["board"] == {"board_id": "x"}


def test_notes_and_the_current_image_node_are_left_out() -> None:
    furniture = [{"id": kind, "type": kind, "data": {"id": kind, "type": kind}} for kind in ("notes", "current_image")]

    assert list(draft_from(ui_workflow([ui_node("a"), *furniture]), name="").nodes) == ["a"]


def test_a_wired_input_gives_up_the_value_that_was_typed_into_it() -> None:
    workflow = ui_workflow([ui_node("a", value=1), ui_node("b", "add", a=5, b=6)], [wire("a.value", "b.a")])

    draft = draft_from(workflow, name="")

    assert draft.links == [Link("a", "value", "b", "a")]
    assert "a" not in draft.nodes["b"]
    assert draft.nodes["b"]["b"] == 6


def test_a_wire_through_connectors_starts_at_the_node_that_feeds_the_first() -> None:
    connectors = [{"id": name, "type": "connector", "data": {"id": name, "type": "connector"}} for name in ("c1", "c2")]
    edges = [wire("a.value", "c1.in"), wire("c1.out", "c2.in"), wire("c2.out", "b.a"), wire("c2.out", "b.b")]

    draft = draft_from(ui_workflow([ui_node("a"), ui_node("b", "add"), *connectors], edges), name="")

    assert draft.links == [Link("a", "value", "b", "a"), Link("a", "value", "b", "b")]


def test_an_empty_connector_is_remarked_and_its_wire_left_out() -> None:
    connector = {"id": "c", "type": "connector", "data": {"id": "c", "type": "connector"}}

    draft = draft_from(ui_workflow([ui_node("b", "add"), connector], [wire("c.out", "b.a")]), name="")

    assert draft.links == []
    assert "b.a" in draft.remarks[0]


def test_a_ring_of_connectors_is_refused() -> None:
    connectors = [{"id": name, "type": "connector", "data": {"id": name, "type": "connector"}} for name in ("c1", "c2")]
    edges = [wire("c1.out", "c2.in"), wire("c2.out", "c1.in"), wire("c2.out", "b.a")]

    with pytest.raises(BadInput, match="a ring through c"):
        draft_from(ui_workflow([ui_node("b", "add"), *connectors], edges), name="")


def test_collapsed_wires_are_drawing_aids_and_left_out() -> None:
    collapsed = {"id": "x", "type": "collapsed", "source": "a", "target": "b"}

    assert draft_from(ui_workflow([ui_node("a"), ui_node("b")], [collapsed]), name="").links == []


def test_the_inputs_of_a_called_workflow_are_gathered_as_the_editor_does() -> None:
    node = ui_node("call", "call_saved_workflow", workflow_id="w", **{"saved_workflow_input::n::seed": 4})

    draft = draft_from(ui_workflow([node]), name="")

    assert draft.nodes["call"]["workflow_inputs"] == {"saved_workflow_input::n::seed": 4}


def test_the_workflow_that_is_kept_with_the_results_tells_what_was_run() -> None:
    draft = draft_from(ui_workflow([ui_node("a", value=1), ui_node("b", "add", a=None, b=6)], [wire("a.value", "b.a")]), name="")
    draft.nodes["a"]["value"] = 9
    draft.nodes["b"]["a"] = 5
    draft.links.clear()

    kept = workflow_as_run(draft)

    assert kept is not None
    assert [node["data"]["inputs"].get("value", {}).get("value") for node in kept["nodes"]] == [9, None]
    assert kept["nodes"][1]["data"]["inputs"]["a"]["value"] == 5
    assert kept["edges"] == []
    assert draft.source is not None and draft.source["nodes"][0]["data"]["inputs"]["value"]["value"] == 1


def test_an_api_graph_has_no_workflow_to_keep() -> None:
    assert workflow_as_run(draft_from(GRAPH, name="")) is None


GRAPH = {
    "nodes": {"a": {"type": "integer", "value": 2}, "b": {"type": "add", "b": 1}},
    "edges": [{"source": {"node_id": "a", "field": "value"}, "destination": {"node_id": "b", "field": "a"}}],
}


@pytest.mark.parametrize(
    "content", [GRAPH, {"graph": GRAPH}, {"prepend": False, "batch": {"graph": GRAPH, "runs": 1}}], ids=["graph", "wrapped", "batch"]
)
def test_an_api_graph_is_read_bare_or_as_the_api_wraps_it(content: dict[str, Any]) -> None:
    draft = draft_from(content, name="file")

    assert draft.nodes["a"] == {"id": "a", "type": "integer", "value": 2}
    assert draft.links == [Link("a", "value", "b", "a")]


def test_a_workflow_record_of_the_library_is_read() -> None:
    draft = draft_from({"workflow_id": "1", "workflow": ui_workflow([ui_node("a")])}, name="file")

    assert list(draft.nodes) == ["a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"foo": 1}, "expected an object with 'nodes' and 'edges', got foo"),
        ([1, 2], "expected an object with 'nodes' and 'edges', got no object"),
        (ui_workflow([], version="2.0.0"), r"expected 3.x or 4.x .*got 2.0.0 \(nearest valid value: 3.0.0\)"),
        ({"batch": {"graph": GRAPH, "runs": 3}}, "expected one run without batch data"),
        ({"nodes": {"a": {"value": 2}}, "edges": []}, "node 'a': expected an object with a 'type'"),
        ({"nodes": {"aa": {"type": "integer"}}, "edges": [{"source": "x"}]}, "expected source and destination"),
        ({"nodes": {}, "edges": []}, "expected at least one node, got none"),
        (ui_workflow([ui_node("first")], [wire("first.value", "frist.a")]), r"got 'frist' \(nearest valid value: first\)"),
        (ui_workflow([{"id": "x", "type": "group"}]), "canvas node: expected invocation"),
    ],
)
def test_what_is_no_workflow_is_refused_in_one_sentence(content: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        draft_from(content, name="file")


def test_a_missing_or_broken_file_is_refused_by_name(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"nodes": [')

    with pytest.raises(BadInput, match="absent.json"):
        read_workflow(tmp_path / "absent.json")
    with pytest.raises(BadInput, match=r"expected JSON, got .*broken.json"):
        read_workflow(broken)


def test_an_unnamed_file_is_called_by_its_file_name(tmp_path: Path) -> None:
    path = tmp_path / "my graph.json"
    path.write_text(json.dumps(GRAPH))

    assert read_workflow(path).name == "my graph"
