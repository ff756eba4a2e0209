"""The workflows that InvokeAI and this pack ship are read without a question left open that a plan could not answer."""

import json
from pathlib import Path

import invokeai.app.services.workflow_records as upstream
import pytest
from invokeai.app.invocations.baseinvocation import InvocationRegistry
from invokeai.app.invocations.model import ModelIdentifierField
from invokeai.app.services.shared.workflow_graph_builder import build_graph_from_workflow
from saas.gated import entitlements as entitlements
from saas.gated import refusal
from saas.plan_graphs import RETURN, _drawn, model

from invokeai_saas.closed.nodes import CLOSED_NODES
from invokeai_saas.plans import gate
from invokeai_saas.plans.demands import Model
from invokeai_saas.plans.graph_demands import demands_of

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (Path(upstream.__file__).parent / "default_workflows", ROOT / "workflows")


def runnable(path: Path) -> bool:
    """Some of InvokeAI's own name nodes that it no longer has; some nodes are off on this server."""
    types = {node["data"].get("type") for node in json.loads(path.read_text(encoding="utf-8"))["nodes"] if node["type"] == "invocation"}
    return not types & set(CLOSED_NODES) and all(InvocationRegistry.get_invocation_for_type(each) for each in types)


SHIPPED = [path for folder in FOLDERS for path in sorted(folder.rglob("*.json")) if runnable(path)]


def graph_of(path: Path):
    """A workflow as InvokeAI's builder makes a graph of it when it is called: for that it needs models and a return node."""
    drawn = json.loads(path.read_text(encoding="utf-8"))
    for node in drawn["nodes"]:
        cls = InvocationRegistry.get_invocation_for_type(node["data"].get("type", ""))
        for name, field in cls.model_fields.items() if cls else ():
            if field.annotation is ModelIdentifierField and not node["data"]["inputs"].get(name, {}).get("value"):
                node["data"]["inputs"][name] = {"value": model("sdxl")}
    drawn["nodes"] = [*drawn["nodes"], _drawn(RETURN)]
    return build_graph_from_workflow(drawn)


def installed(key: str) -> Model:
    """Any key: shipped workflows name models by keys of their author's."""
    return Model(key=key, name=key, base="sdxl", type="main")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_workflow_is_read_and_can_be_held(entitlements, path):
    found = demands_of(graph_of(path), resolve_workflow={}.get, model_base=installed)
    enterprise = entitlements["enterprise"]
    filled = gate.fill_maxima(found, enterprise.plan)

    assert refusal(enterprise, found) is None
    assert refusal(enterprise, filled) is None
    assert found.unknown == ()


def test_there_are_workflows_to_read():
    assert len(SHIPPED) >= 30
