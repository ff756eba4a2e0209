"""A graph that calls saved workflows in, one flat graph out: called workflows stand in it as if their nodes were the caller's own.

    node of a graph ─► "n"      node of a workflow that node c calls ─► "c/n"

Built with InvokeAI's own builder, from the same workflow and inputs as the run itself will use, so that nothing is read differently.
What cannot be known beforehand is refused: a workflow's id that an edge brings, a workflow that calls itself, batches inside.
"""

import copy
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

from invokeai.app.invocations.call_saved_workflow import (
    is_call_saved_workflow_dynamic_input,
    parse_call_saved_workflow_dynamic_input,
)
from invokeai.app.services.session_processor.workflow_call_batch import workflow_contains_supported_batch_nodes
from invokeai.app.services.shared.graph import Graph, GraphExecutionState
from invokeai.app.services.shared.workflow_graph_builder import apply_workflow_inputs_to_workflow, build_graph_from_workflow
from pydantic import ValidationError

from invokeai_saas.plans.demands import Pin
from invokeai_saas.plans.errors import UnreadableGraph

CALL = "call_saved_workflow"
RETURN = "workflow_return"
MOST_DEPTH = int(GraphExecutionState.model_fields["max_workflow_call_depth"].default)
# Each call of a workflow that calls two others doubles: the depth alone is no bound.
MOST_NODES = 2_000
Resolve = Callable[[str], Mapping[str, Any] | None]
Overrides = Mapping[tuple[str, str], Any]
Source = tuple[str, str]


class Values(dict[str, Any]):
    """A node's fields, and which of them somebody asked for: what nobody asks for cannot matter."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """As dict's, and remembered."""
        self.read.add(name)
        return super().get(name, default)


@dataclass(frozen=True, slots=True)
class FlatNode:
    """A node at its path; `values` are its fields as the graph gives them, substitutions of a batch included. `caller` is the node that
    calls the workflow that it is in."""

    path: str
    type: str
    cls: Any
    values: Values
    caller: str | None = None


@dataclass(slots=True)
class FlatGraph:
    """Nodes by path, what feeds each input, and `order`: every node after those that it waits for."""

    nodes: dict[str, FlatNode] = field(default_factory=dict)
    sources: dict[tuple[str, str], list[Source]] = field(default_factory=dict)
    pins: dict[str, Pin] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    _fed: dict[str, list[str]] = field(default_factory=dict)

    def feeds(self, path: str, name: str) -> list[Source]:
        """(node, output) of each edge into an input; of lists there may be several."""
        return self.sources.get((path, name), [])

    def inputs(self, path: str) -> Iterator[tuple[str, Source]]:
        """(input, (node, output)) of all edges into a node."""
        for name in self._fed.get(path, ()):
            for source in self.feeds(path, name):
                yield name, source

    def into_call(self, caller: str) -> list[str]:
        """The nodes that feed a call from outside: all of the called workflow waits for them."""
        return [source[0] for _, source in self.inputs(caller) if self.nodes[source[0]].caller != caller]

    def connect(self, path: str, name: str, source: Source) -> None:
        """Add an edge."""
        found = self.sources.setdefault((path, name), [])
        if not found:
            self._fed.setdefault(path, []).append(name)
        found.append(source)


def flatten(graph: Graph | Mapping[str, Any], resolve_workflow: Resolve, overrides: Overrides | None = None) -> FlatGraph:
    """All nodes and edges, called workflows expanded; raises UnreadableGraph."""
    flat = FlatGraph()
    _add(flat, as_graph(graph), caller=None, chain=(), resolve=functools.cache(resolve_workflow), overrides=overrides or {})
    _order(flat)
    return flat


def as_graph(graph: Graph | Mapping[str, Any]) -> Graph:
    """InvokeAI's own reading of a graph given as JSON; raises UnreadableGraph."""
    if isinstance(graph, Graph):
        return graph
    try:
        read: Graph = Graph.model_validate(dict(graph))
        read.validate_self()
        return read
    except (ValueError, TypeError) as error:
        raise _refused("expected a graph of InvokeAI's", "graph") from error


def workflow_digest(workflow: Mapping[str, Any]) -> str:
    """What a workflow is, whoever saved it when: of its nodes, edges, form and exposed fields."""
    told = {name: workflow.get(name) for name in ("nodes", "edges", "form", "exposedFields")}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def _add(flat: FlatGraph, graph: Graph, *, caller: str | None, chain: tuple[str, ...], resolve: Resolve, overrides: Overrides) -> None:
    prefix = "" if caller is None else f"{caller}/"
    for node_id, node in graph.nodes.items():
        path = prefix + node_id
        if path in flat.nodes:
            # A node that is named like one of a called workflow would hide it.
            raise _refused(f"expected node ids that are not paths of other nodes, got {path!r}", "graph", path)
        given = Values({name: getattr(node, name, None) for name in type(node).model_fields})
        given.update({name: value for (at, name), value in overrides.items() if at == path})
        flat.nodes[path] = FlatNode(path, node.get_type(), type(node), given, caller)
    if len(flat.nodes) > MOST_NODES:
        raise _refused(f"expected up to {MOST_NODES} nodes with all called workflows", "nodes", len(flat.nodes))
    for edge in graph.edges:
        flat.connect(prefix + edge.destination.node_id, edge.destination.field, (prefix + edge.source.node_id, edge.source.field))
    for node_id, node in graph.nodes.items():
        if node.get_type() == CALL:
            _call(flat, prefix + node_id, chain=chain, resolve=resolve)


def _call(flat: FlatGraph, path: str, *, chain: tuple[str, ...], resolve: Resolve) -> None:
    if flat.feeds(path, "workflow_id") or flat.feeds(path, "workflow_inputs"):
        raise _refused("expected a called workflow that is chosen in the graph, got one that an edge decides", "workflow")
    workflow_id = str(flat.nodes[path].values.get("workflow_id") or "")
    if workflow_id in chain:
        raise _refused(f"expected workflows that do not call themselves, got {workflow_id!r} inside of itself", "workflow", workflow_id)
    if len(chain) >= MOST_DEPTH:
        raise _refused(f"expected up to {MOST_DEPTH} workflows inside each other", "workflow", len(chain) + 1)
    found = resolve(workflow_id)
    if found is None:
        raise _refused(f"expected a saved workflow that is there and that you may see, got {workflow_id!r}", "workflow", workflow_id)
    flat.pins[workflow_id] = Pin(workflow_id=workflow_id, sha256=workflow_digest(found))
    child = _child_graph(flat, path, found, workflow_id)
    _add(flat, child, caller=path, chain=(*chain, workflow_id), resolve=resolve, overrides={})
    _cross(flat, path, child)


def _child_graph(flat: FlatGraph, path: str, workflow: Mapping[str, Any], workflow_id: str) -> Graph:
    """As InvokeAI builds it when it runs; the inputs that edges will bring are put in by _cross()."""
    if workflow_contains_supported_batch_nodes(workflow):
        raise _refused(f"expected called workflows without batches, got one in {workflow_id!r}", "workflow", workflow_id)
    inputs = flat.nodes[path].values.get("workflow_inputs") or {}
    fed = {name for name, _ in flat.inputs(path) if is_call_saved_workflow_dynamic_input(name)}
    filled = copy.deepcopy(dict(workflow))
    try:
        apply_workflow_inputs_to_workflow(filled, {name: value for name, value in inputs.items() if name not in fed})
        return build_graph_from_workflow(filled)
    except (ValueError, TypeError, KeyError) as error:
        # A node's validator may look at the disk: what it says of a value is nobody's business.
        why = "" if isinstance(error, ValidationError) else f": {error}"
        raise _refused(f"expected a workflow that can be called, got {workflow_id!r}{why}", "workflow", workflow_id) from error


def _cross(flat: FlatGraph, path: str, child: Graph) -> None:
    """Edges into the call feed the workflow's nodes; what the workflow returns comes out of the call."""
    for name, source in list(flat.inputs(path)):
        if is_call_saved_workflow_dynamic_input(name):
            node_id, field_name = parse_call_saved_workflow_dynamic_input(name)
            # An edge of the workflow's own comes first when it runs, too.
            if f"{path}/{node_id}" in flat.nodes and not flat.feeds(f"{path}/{node_id}", field_name):
                flat.connect(f"{path}/{node_id}", field_name, source)
    for node_id, node in child.nodes.items():
        if node.get_type() == RETURN:
            flat.connect(path, RETURN, (f"{path}/{node_id}", "values"))


def _order(flat: FlatGraph) -> None:
    waits = {path: {source[0] for _, source in flat.inputs(path)} for path in flat.nodes}
    for path, node in flat.nodes.items():
        if node.caller is not None:
            waits[path].update(flat.into_call(node.caller))
            # What calls the workflow that calls: its own inputs come before all of this.
            outer = flat.nodes[node.caller].caller
            while outer is not None:
                waits[path].update(flat.into_call(outer))
                outer = flat.nodes[outer].caller
    try:
        flat.order = list(TopologicalSorter(waits).static_order())
    except CycleError as error:
        raise _refused("expected a graph without cycles", "graph") from error


def _refused(message: str, limit_type: str, value: Any = None) -> UnreadableGraph:
    return UnreadableGraph("graph_not_readable", message, limit_type=limit_type, value=value)
