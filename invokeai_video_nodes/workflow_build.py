"""Draft -> the graph that the engine runs; everything that cannot run is named in one error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.workflow_graph import NODE_ATTRIBUTES, SAVED_WORKFLOW_INPUT, Link, WorkflowDraft, nearest_word
from invokeai_video_nodes.workflow_settings import value_error


def node_classes() -> dict[str, Any]:
    """Every node type that this process knows -> its class; call it with an engine running, so that our own are in."""
    from invokeai.app.invocations.baseinvocation import InvocationRegistry

    return {cls.get_type(): cls for cls in InvocationRegistry.get_invocation_classes()}


def refuse_unrunnable(draft: WorkflowDraft, classes: Mapping[str, Any]) -> None:
    """BadInput that names every node which cannot run here: unknown types, and the UI's batch and generator nodes."""
    problems: list[str] = []
    for node_id, node in draft.nodes.items():
        cls = classes.get(node["type"])
        if cls is None:
            problems.append(_unknown_type(draft, node_id, classes))
        elif _is_unrolled_by_ui(cls):
            problems.append(f"{draft.title(node_id)} is unrolled by the browser into many runs (use --set, once per value)")
        elif _major(draft.versions.get(node_id, "")) not in ("", _major(cls.UIConfig.version)):
            versions = f"was saved as version {draft.versions[node_id]}, installed is {cls.UIConfig.version}"
            draft.remarks.append(f"{draft.title(node_id)} {versions}")
    if problems:
        raise BadInput.expected("workflow", "nodes that run without the browser", "; ".join(problems))


def build_graph(draft: WorkflowDraft, classes: Mapping[str, Any]) -> Any:
    """InvokeAI's `Graph` of the draft, with its values and wires checked against the nodes' schemas.

    Inputs that the installed node does not have are dropped with a remark, as the browser does. BadInput names the node
    and field of a value or wire that does not fit.
    """
    from invokeai.app.services.shared.graph import Edge, EdgeConnection, Graph

    nodes = {node_id: _build_node(draft, node_id, classes[node["type"]]) for node_id, node in draft.nodes.items()}
    edges = []
    for link in draft.links:
        _check_wire(draft, link, nodes)
        start = EdgeConnection(node_id=link.source, field=link.source_field)
        end = EdgeConnection(node_id=link.target, field=link.target_field)
        edges.append(Edge(source=start, destination=end))
    _check_filled(draft, classes)
    graph = Graph(nodes=nodes, edges=edges)
    try:
        graph.validate_self()
    except ValueError as error:  # a ring, or iterate and collect nodes in a wrong place: upstream's sentences are plain
        raise BadInput.expected("workflow", "wires that InvokeAI can follow", str(error)) from error
    return graph


def _check_wire(draft: WorkflowDraft, link: Link, nodes: Mapping[str, Any]) -> None:
    """Both ends exist and their types fit each other."""
    from invokeai.app.services.shared.graph import are_connections_compatible

    source, target = nodes[link.source], nodes[link.target]
    if link.target_field.startswith(SAVED_WORKFLOW_INPUT):
        return
    outputs, inputs = source.get_output_annotation().model_fields, type(target).model_fields
    for name, known, node_id, what in (
        (link.source_field, outputs, link.source, "output"),
        (link.target_field, inputs, link.target, "input"),
    ):
        if name not in known:
            where = f"wire at {draft.title(node_id)}"
            raise BadInput.expected(where, f"an {what} that the node has", f"'{name}'", nearest_word(name, known))
    if not are_connections_compatible(source, link.source_field, target, link.target_field):
        raise BadInput.expected(
            f"{draft.title(link.target)}.{link.target_field}",
            "a wire of its own type",
            f"one from {draft.title(link.source)}.{link.source_field}",
        )


def _build_node(draft: WorkflowDraft, node_id: str, cls: Any) -> Any:
    from pydantic import ValidationError

    values = dict(draft.nodes[node_id])
    if cls.model_config.get("extra") != "allow":
        for name in [name for name in values if name not in cls.model_fields]:
            if values.pop(name) is not None:
                draft.remarks.append(f"{draft.title(node_id)} has no input '{name}' here; its value is left out")
    values = {name: value for name, value in values.items() if value is not None}
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0]) if error.errors()[0]["loc"] else "values"
        field = cls.model_fields.get(name)
        where = f"{draft.title(node_id)}.{name}"
        if field is None:
            raise BadInput.expected(where, "values that fit the node", error.errors()[0]["msg"]) from error
        raise value_error(where, field, error, values.get(name)) from error


def _check_filled(draft: WorkflowDraft, classes: Mapping[str, Any]) -> None:
    """A required input that is neither wired nor filled would only fail when its turn comes; name it now."""
    wired = {(link.target, link.target_field) for link in draft.links}
    for node_id, node in draft.nodes.items():
        for name, field in classes[node["type"]].model_fields.items():
            extra = field.json_schema_extra
            if name in NODE_ATTRIBUTES or not isinstance(extra, dict) or not extra.get("orig_required", False):
                continue
            given = node.get(name) is not None or (node_id, name) in wired
            if not given and field.get_default(call_default_factory=True) is None:
                how = "a wire" if extra.get("input") == "connection" else "a value or a wire"
                raise BadInput.expected(f"{draft.title(node_id)}.{name}", how, "nothing")


def _unknown_type(draft: WorkflowDraft, node_id: str, classes: Mapping[str, Any]) -> str:
    node_type = draft.nodes[node_id]["type"]
    pack = draft.packs.get(node_id)
    source = f" of the node pack '{pack}'" if pack and pack != "invokeai" else ""
    nearest = nearest_word(node_type, classes)
    hint = f" (nearest: {nearest})" if nearest else ""
    return f"{draft.title(node_id)}{source} is not installed here{hint}"


def _is_unrolled_by_ui(cls: Any) -> bool:
    return cls.UIConfig.category == "batch" and str(getattr(cls.UIConfig.classification, "value", "")) == "special"


def _major(version: str) -> str:
    return version.split(".")[0]
