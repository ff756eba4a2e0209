"""Workflow file -> draft -> graph: what the browser does on Invoke, without a browser.

A file is read into a `WorkflowDraft` (plain data, no InvokeAI needed, so a broken file is refused at once); settings
and models are put into the draft; `build_graph` then makes the API graph that the engine runs. Three kinds of file are
read: a workflow saved by the UI (meta version 3.x or 4.x), a graph as the API takes it, and either one wrapped the way
the API hands it out (`{"workflow": …}`, `{"graph": …}`, `{"batch": {"graph": …}}`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from invokeai_video_nodes.pipelines.errors import BadInput

# Fields of the API graph that the UI keeps beside the inputs.
NODE_ATTRIBUTES = ("id", "type", "is_intermediate", "use_cache")
_WORKFLOW_TEXTS = ("author", "description", "version", "contact", "tags", "notes")
# The UI's own furniture: shown on the canvas, never run.
_CANVAS_ONLY = ("notes", "current_image")
# The inputs of a call_saved_workflow node that stand for exposed fields of the workflow it calls.
SAVED_WORKFLOW_INPUT = "saved_workflow_input::"


class Link(NamedTuple):
    """One wire: from an output of `source` into an input of `target`."""

    source: str
    source_field: str
    target: str
    target_field: str


@dataclass
class WorkflowDraft:
    """A workflow on its way to a graph. `remarks` tell the person what was changed or left out, and why.

    `source` is the editor's own workflow where the file was one.
    """

    name: str
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    packs: dict[str, str] = field(default_factory=dict)
    source: Mapping[str, Any] | None = None
    remarks: list[str] = field(default_factory=list)

    def title(self, node_id: str) -> str:
        """How messages name a node: its label when it has one, its type, its id."""
        node_type = self.nodes[node_id]["type"]
        label = self.labels.get(node_id)
        return f"'{label}' ({node_type}, id {node_id})" if label else f"{node_type} (id {node_id})"


def nearest_word(word: str, known: Iterable[str]) -> str | None:
    """The known word that looks most like `word`, for the end of an error; None when nothing comes near."""
    return next(iter(get_close_matches(word, list(known), n=1, cutoff=0.4)), None)


def read_workflow(path: Path) -> WorkflowDraft:
    """Read a workflow or graph file. BadInput names what the file lacks."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput.expected("workflow file", "a readable JSON file", f"{path} ({error.strerror})") from error
    except ValueError as error:
        raise BadInput.expected("workflow file", "JSON", f"{path} ({error})") from error
    return draft_from(data, name=path.stem)


def draft_from(data: Any, *, name: str) -> WorkflowDraft:
    """The draft of a parsed workflow or graph, see the module's docstring for the accepted forms."""
    content = _unwrap(data)
    if not isinstance(content, Mapping) or "nodes" not in content or "edges" not in content:
        got = ", ".join(sorted(map(str, content))) or "none of them" if isinstance(content, Mapping) else "no object"
        raise BadInput.expected("workflow file", "an object with 'nodes' and 'edges'", got)
    read = _draft_from_api_graph if isinstance(content["nodes"], Mapping) else _draft_from_ui_workflow
    draft = read(content, name=name)
    if not draft.nodes:
        raise BadInput.expected("workflow file", "at least one node", "none")
    return draft


def _unwrap(data: Any) -> Any:
    """Follow the API's wrappings down to the object that holds the nodes."""
    if not isinstance(data, Mapping) or "nodes" in data:
        return data
    if isinstance(data.get("batch"), Mapping):
        batch = data["batch"]
        if batch.get("data") or batch.get("runs", 1) != 1:
            raise BadInput.expected("batch", "one run without batch data", "several (run it once per value with --set)")
        return _unwrap(batch)
    for key in ("workflow", "graph"):
        if isinstance(data.get(key), Mapping):
            return _unwrap(data[key])
    return data


def _draft_from_api_graph(graph: Mapping[str, Any], *, name: str) -> WorkflowDraft:
    """Nodes keyed by id, edges with source and destination."""
    draft = WorkflowDraft(name=name)
    for node_id, node in graph["nodes"].items():
        if not isinstance(node, Mapping) or not isinstance(node.get("type"), str):
            raise BadInput.expected(f"node '{node_id}'", "an object with a 'type'", repr(node)[:80])
        draft.nodes[node_id] = {**node, "id": node_id}
    for edge in graph["edges"]:
        try:
            source, target = edge["source"], edge["destination"]
            link = Link(source["node_id"], source["field"], target["node_id"], target["field"])
        except (KeyError, TypeError) as error:
            wanted = "source and destination with node_id and field"
            raise BadInput.expected("edge", wanted, repr(edge)[:120]) from error
        draft.links.append(link)
    _check_links(draft)
    return draft


def _draft_from_ui_workflow(workflow: Mapping[str, Any], *, name: str) -> WorkflowDraft:
    """A list of canvas nodes and a list of wires, as the workflow editor saves them."""
    _check_meta_version(workflow)
    draft = WorkflowDraft(name=str(workflow.get("name") or name), source=workflow)
    connectors: set[str] = set()
    for node in workflow["nodes"]:
        kind = node.get("type") if isinstance(node, Mapping) else None
        if kind == "invocation":
            _add_ui_node(draft, node)
        elif kind == "connector":
            connectors.add(node["id"])
        elif kind not in _CANVAS_ONLY:
            raise BadInput.expected("canvas node", "invocation, connector, notes or current_image", repr(kind))
    wires = [edge for edge in workflow["edges"] if edge.get("type", "default") == "default"]
    draft.links = _straighten(wires, draft, connectors)
    _check_links(draft)
    return draft


def _check_meta_version(workflow: Mapping[str, Any]) -> None:
    version = str((workflow.get("meta") or {}).get("version", "3.0.0"))
    if version.split(".")[0] not in ("3", "4"):
        raise BadInput.expected("workflow version", "3.x or 4.x (open the file in InvokeAI 6 and save it again)", version, nearest="3.0.0")


def _add_ui_node(draft: WorkflowDraft, node: Mapping[str, Any]) -> None:
    """Copy a canvas node's type, switches and filled inputs; an input without a value keeps the node's default."""
    data = node.get("data")
    if not isinstance(data, Mapping) or not isinstance(data.get("type"), str):
        raise BadInput.expected(f"node '{node.get('id')}'", "a 'data' object with a 'type'", repr(data)[:80])
    node_id = str(data.get("id") or node["id"])
    fields: dict[str, Any] = {}
    for name, entry in (data.get("inputs") or {}).items():
        if not isinstance(entry, Mapping) or entry.get("value") is None:
            continue
        if name == "board" and entry["value"] in ("auto", "none"):
            continue  # the board picker's words for "no board"; headless there is no selected board to follow
        if data["type"] == "call_saved_workflow" and name.startswith(SAVED_WORKFLOW_INPUT):
            fields.setdefault("workflow_inputs", {})[name] = entry["value"]
            continue
        fields[name] = entry["value"]
    draft.nodes[node_id] = {
        **fields,
        "id": node_id,
        "type": data["type"],
        "is_intermediate": bool(data.get("isIntermediate", False)),
        "use_cache": bool(data.get("useCache", True)),
    }
    draft.labels[node_id] = str(data.get("label") or "")
    draft.versions[node_id] = str(data.get("version") or "")
    draft.packs[node_id] = str(data.get("nodePack") or "")


def _straighten(wires: list[Mapping[str, Any]], draft: WorkflowDraft, connectors: set[str]) -> list[Link]:
    """Wires between invocations only: a wire that passes connectors starts where the first of them is fed."""
    feeds = {wire["target"]: wire for wire in wires if wire.get("target") in connectors}
    links: dict[Link, None] = {}
    for wire in wires:
        if wire.get("target") in connectors:
            continue
        seen: set[str] = set()
        origin: Mapping[str, Any] | None = wire
        while origin is not None and origin["source"] in connectors:
            if origin["source"] in seen:
                ring = f"a ring through {origin['source']}"
                raise BadInput.expected("connector", "a wire that starts at a node", ring)
            seen.add(origin["source"])
            origin = feeds.get(origin["source"])
        if origin is None:
            end = f"{wire['target']}.{wire.get('targetHandle')}"
            draft.remarks.append(f"the wire into {end} comes from an empty connector and is left out")
            continue
        links[Link(origin["source"], origin["sourceHandle"], wire["target"], wire["targetHandle"])] = None
    return list(links)


def workflow_as_run(draft: WorkflowDraft) -> dict[str, Any] | None:
    """The editor's workflow with the values and wires of the draft, to be kept with the results; None for an API graph."""
    if draft.source is None:
        return None
    workflow = {**dict.fromkeys(_WORKFLOW_TEXTS, ""), "exposedFields": [], **deepcopy(dict(draft.source)), "name": draft.name}
    workflow["meta"] = {"version": "3.0.0", "category": "user", **workflow.get("meta", {})}
    for node in workflow["nodes"]:
        values = draft.nodes.get(node["id"], {})
        for name, entry in node.get("data", {}).get("inputs", {}).items():
            if name in values:
                entry["value"] = values[name]
    fed = {(link.target, link.target_field) for link in draft.links}
    workflow["edges"] = [
        edge
        for edge in workflow["edges"]
        if edge.get("target") not in draft.nodes or "targetHandle" not in edge or (edge["target"], edge["targetHandle"]) in fed
    ]
    return workflow


def _check_links(draft: WorkflowDraft) -> None:
    """Every wire joins nodes that exist; a fed input gives up the value that was typed into it."""
    for link in draft.links:
        for end in (link.source, link.target):
            if end not in draft.nodes:
                raise BadInput.expected("edge", "nodes of this file", f"'{end}'", nearest_word(end, draft.nodes))
        target = draft.nodes[link.target]
        if link.target_field.startswith(SAVED_WORKFLOW_INPUT):
            target.get("workflow_inputs", {}).pop(link.target_field, None)
        else:
            target.pop(link.target_field, None)
