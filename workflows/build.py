"""Node schemas -> the workflow files beside this script: `python -m workflows.build` writes them, a test compares them.

A workflow is written down as nodes, wires and a form (`Recipe`); everything that depends on a node's schema (its version, and
one `inputs` entry for each input that the editor knows, with the value that the editor itself would give a new node)
comes from the schema. The editor drops the wires of an input without an entry, and refuses to run with an entry too many.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workflows.recipe import Field, Node, Recipe

VERSION = "1.0.0"
META_VERSION = "4.0.0"

# Canvas layout in pixels, as the editor draws it: a node is 320 wide; heights of its frame and of each kind of input.
_COLUMN, _GAP, _FRAME = 440, 60, 110
_CONNECTION, _ROW, _TEXT_AREA = 26, 62, 110
# What the editor skips when it lists a node's inputs.
_NO_INPUT = ("id", "type", "use_cache", "is_intermediate")
# What the editor puts into a new node's input that has no default.
_FALLBACK = {"integer": 0, "number": 0, "string": "", "boolean": False}


def build(recipe: Recipe, schemas: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The workflow file's content. `schemas` maps a node type to its OpenAPI schema; KeyError for one that is missing."""
    labels = {item.target: item.label for item in _fields(recipe)}
    tops = [0] * (1 + max(node.column for node in recipe.nodes))
    nodes = [_canvas_node(node, schemas[node.type], labels, tops) for node in recipe.nodes]
    nodes.append(_note_node(recipe, below=tops[0]))
    return {
        "name": recipe.name,
        "author": "invokeai-video",
        "description": recipe.description,
        "version": VERSION,
        "contact": "",
        "tags": ", ".join(("invokeai-video", *recipe.tags)),
        "notes": recipe.notes,
        "exposedFields": [],
        "meta": {"version": META_VERSION, "category": "user"},
        "nodes": nodes,
        "edges": [_edge(wire) for wire in recipe.wires],
        "form": _form(recipe, schemas),
    }


def editor_inputs(schema: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The inputs that the editor's own schema parser finds in a node, in its order."""
    return {
        name: prop for name, prop in schema["properties"].items() if name not in _NO_INPUT and "field_kind" in prop and _editor_reads(prop)
    }


def _editor_reads(prop: Mapping[str, Any]) -> bool:
    """Whether the editor can name the input's type; it leaves out unions of two different classes."""
    if "ui_type" in prop or "anyOf" not in prop:
        return True
    options = [option for option in prop["anyOf"] if option.get("type") != "null"]
    if len(options) == 1:
        return True
    singles = [option for option in options if option.get("type") != "array"]
    lists = [option["items"] for option in options if option.get("type") == "array"]
    return len(options) == 2 and singles == lists


def _canvas_node(node: Node, schema: Mapping[str, Any], labels: Mapping[str, str], tops: list[int]) -> dict[str, Any]:
    inputs = editor_inputs(schema)
    unknown = set(node.values) - set(inputs)
    if unknown:
        raise KeyError(f"expected inputs of {node.type}, got {', '.join(sorted(unknown))}")
    entries = {}
    for name, prop in inputs.items():
        label = labels.get(f"{node.id}.{name}", node.input_labels.get(name, ""))
        entries[name] = {"name": name, "label": label, "description": ""}
        value = node.values.get(name, _new_node_value(prop))
        if value is not None:
            entries[name]["value"] = value
    top = tops[node.column]
    tops[node.column] += _FRAME + sum(_input_height(prop) for prop in inputs.values()) + _GAP
    return {
        "id": node.id,
        "type": "invocation",
        "data": {
            "id": node.id,
            "type": node.type,
            "version": schema["version"],
            "nodePack": schema["node_pack"],
            "label": node.label,
            "notes": "",
            "inputs": entries,
            "isOpen": True,
            "isIntermediate": not node.makes_result,
            "useCache": bool(schema["properties"]["use_cache"].get("default", True)),
        },
        "position": {"x": node.column * _COLUMN, "y": top},
    }


def _input_height(prop: Mapping[str, Any]) -> int:
    if prop.get("input") == "connection":
        return _CONNECTION
    return _TEXT_AREA if prop.get("ui_component") == "textarea" else _ROW


def _new_node_value(prop: Mapping[str, Any]) -> Any:
    """What the editor fills into a new node: the default, else 0, "" or false where the input takes that."""
    if prop.get("input") == "connection":
        return None
    if prop.get("default") is not None:
        return prop["default"]
    plain = _plain(prop)
    value = _FALLBACK.get(plain.get("type", ""))
    if "enum" in plain or (plain.get("exclusiveMinimum") is not None and value is not None and value <= plain["exclusiveMinimum"]):
        return None
    return value


def _plain(prop: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of an input without its "or null"."""
    return prop if "type" in prop else next((option for option in prop.get("anyOf", []) if option.get("type") != "null"), {})


def _note_node(recipe: Recipe, *, below: int) -> dict[str, Any]:
    data = {"id": "notes", "type": "notes", "label": "Which model goes where", "isOpen": True, "notes": recipe.notes}
    return {"id": "notes", "type": "notes", "data": data, "position": {"x": 0, "y": below}}


def _edge(wire: str) -> dict[str, Any]:
    start, end = wire.split(" -> ")
    source, source_field = start.split(".")
    target, target_field = end.split(".")
    return {
        "id": f"{source}-{source_field}-{target}-{target_field}",
        "type": "default",
        "source": source,
        "target": target,
        "sourceHandle": source_field,
        "targetHandle": target_field,
    }


def _fields(recipe: Recipe) -> list[Field]:
    fields: list[Field] = []
    for item in recipe.form:
        if not isinstance(item, str):
            fields += [item] if isinstance(item, Field) else item
    return fields


def _form(recipe: Recipe, schemas: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The left panel: one column of headings, texts, fields and rows, in the recipe's order."""
    types = {node.id: node.type for node in recipe.nodes}
    elements: dict[str, Any] = {}
    children: list[str] = []
    for number, item in enumerate(recipe.form):
        if isinstance(item, str):
            kind = "heading" if item.startswith("# ") else "text"
            element = {"id": f"{kind}-{number}", "type": kind, "parentId": "root", "data": {"content": item.removeprefix("# ")}}
        elif isinstance(item, Field):
            element = _form_field(item, "root", types, schemas)
        else:
            row = f"container-{number}"
            inner = [_form_field(entry, row, types, schemas) for entry in item]
            elements |= {entry["id"]: entry for entry in inner}
            data = {"layout": "row", "children": [entry["id"] for entry in inner]}
            element = {"id": row, "type": "container", "parentId": "root", "data": data}
        elements[element["id"]] = element
        children.append(element["id"])
    root = {"id": "root", "type": "container", "data": {"layout": "column", "children": children}}
    return {"elements": {"root": root, **elements}, "rootElementId": "root"}


def _form_field(item: Field, parent: str, types: Mapping[str, str], schemas: Mapping[str, Any]) -> dict[str, Any]:
    node, name = item.target.split(".")
    prop = editor_inputs(schemas[types[node]])[name]
    data: dict[str, Any] = {"fieldIdentifier": {"nodeId": node, "fieldName": name}, "showDescription": False}
    plain = _plain(prop)
    if plain.get("type") in ("integer", "number"):
        kind = "integer-field-config" if plain["type"] == "integer" else "float-field-config"
        data["settings"] = {"type": kind, "component": item.component or "number-input", "showShuffle": item.shuffle}
    elif plain.get("type") == "string" and "enum" not in plain:
        data["settings"] = {"type": "string-field-config", "component": item.component or "input"}
    return {"id": f"node-field-{node}-{name}", "type": "node-field", "parentId": parent, "data": data}


def file_text(workflow: Mapping[str, Any]) -> str:
    """The file's text."""
    return json.dumps(workflow, indent=2, ensure_ascii=False) + "\n"


def live_schemas() -> dict[str, dict[str, Any]]:
    """The OpenAPI schema of every node that InvokeAI knows with our pack: what the browser gets from /openapi.json."""
    from fastapi import FastAPI
    from invokeai.app.invocations.load_custom_nodes import load_custom_nodes  # noqa: F401 - the hook registers our nodes
    from invokeai.app.services.shared.graph import Graph
    from invokeai.app.util.custom_openapi import get_openapi_func

    from invokeai_video_nodes import register

    register()
    app = FastAPI()
    app.add_api_route("/graph", lambda: None, response_model=Graph)  # the function wants an API that has at least one schema
    document = get_openapi_func(app)()
    found = document["components"]["schemas"].values()
    return {item["properties"]["type"]["default"]: item for item in found if item.get("class") == "invocation"}


def main() -> None:
    """Write every workflow file; the temporary root serves InvokeAI's configuration only."""
    from workflows.recipes import RECIPES

    with tempfile.TemporaryDirectory() as root:
        os.environ["INVOKEAI_ROOT"] = root
        sys.argv = sys.argv[:1]
        from invokeai_video_nodes.headless import install_patches

        install_patches()
        schemas = live_schemas()
    for stem, recipe in RECIPES.items():
        path = Path(__file__).resolve().parent / f"{stem}.json"
        path.write_text(file_text(build(recipe, schemas)), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
