"""Nodes and routes that are off: each exists in the InvokeAI that we pin, each is really off, and new ones wait until somebody decides."""

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from invokeai.app.api.auth_dependencies import get_current_user_or_default
from invokeai.app.invocations.baseinvocation import BaseInvocation, InvocationRegistry, invocation
from invokeai.app.invocations.fields import InputField
from invokeai.app.invocations.primitives import StringInvocation, StringOutput
from invokeai.app.services.auth.token_service import TokenData
from invokeai.app.services.session_queue.session_queue_common import Batch, BatchDatum
from invokeai.app.services.shared.graph import Graph, GraphExecutionState
from invokeai.app.services.shared.workflow_graph_builder import build_graph_from_workflow
from invokeai.app.util.custom_openapi import get_openapi_func
from saas.stock_nodes import nodes_put_back, routes_put_back

from invokeai_saas.accounts.api import answer_error
from invokeai_saas.closed import nodes
from invokeai_saas.closed.nodes import (
    CLOSED_NODES,
    CLOSED_VALUES,
    REVIEWED,
    ClosedNode,
    close_nodes,
    clues,
    demand_open,
    demand_open_node,
    undecided,
)
from invokeai_saas.closed.routes import CLOSED_ROUTES, MEDIA, PUBLIC, SUPER_ADMIN, close_routes, upstream_routes
from invokeai_saas.db import tenancy
from invokeai_saas.errors import SaasError
from invokeai_saas.storage.errors import StorageUnavailable

# One worker builds the schema of every node and route.
pytestmark = pytest.mark.xdist_group("closed")
ANN = TokenData(user_id="ann", email="ann@example.com", is_admin=False)


@pytest.fixture(scope="module", autouse=True)
def closed() -> Iterator[dict[str, str]]:
    with nodes_put_back(), routes_put_back():
        off = close_nodes()
        close_routes()
        yield off


@pytest.fixture(scope="module")
def app(closed: dict[str, str]) -> FastAPI:
    made = FastAPI(separate_input_output_schemas=False)
    for router in {id(router): router for _row, (router, _route) in upstream_routes()}.values():
        made.include_router(router, prefix="/api")
    made.openapi = get_openapi_func(made)
    made.add_exception_handler(SaasError, answer_error)
    made.dependency_overrides[get_current_user_or_default] = lambda: ANN
    return made


@pytest.fixture(scope="module")
def client(app: FastAPI) -> TestClient:
    return TestClient(app)


def registered() -> dict[str, type[BaseInvocation]]:
    return {cls.get_type(): cls for cls in InvocationRegistry._invocation_classes}


def graph_with(node: dict[str, Any]) -> dict[str, Any]:
    return {"id": "g", "nodes": {"n": {"id": "n", **node}}, "edges": []}


def enqueue(client: TestClient, node: dict[str, Any], **batch: Any) -> Any:
    return client.post("/api/v1/queue/default/enqueue_batch", json={"batch": {"graph": graph_with(node), "runs": 1, **batch}})


# Nodes


@pytest.mark.parametrize("name", CLOSED_NODES)
def test_a_closed_node_exists_and_is_not_shown(name, app):
    shown = {node["properties"]["type"]["const"] for node in _nodes_in(app.openapi())}

    assert name in registered()
    assert name not in shown and len(shown) > 300
    assert name not in InvocationRegistry.get_invocation_types()


def _nodes_in(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [part for part in schema["components"]["schemas"].values() if part.get("class") == "invocation"]


def test_nothing_that_was_reviewed_is_gone():
    found = registered()
    gone = [row for row in REVIEWED if row.partition(".")[0] not in found]
    fields = [row.split(".") for row in REVIEWED if "." in row]

    assert gone == []
    assert all(field in found[name].model_fields for name, field in fields)


def test_nothing_that_was_reviewed_stands_there_without_need(monkeypatch):
    found = registered()
    needed = []
    for row in list(REVIEWED):
        monkeypatch.delitem(REVIEWED, row)
        needed += [row] if row in clues(found[row.partition(".")[0]]) else []
        monkeypatch.undo()

    assert needed == list(REVIEWED)


def test_somebody_decided_on_every_node_that_may_touch_files_or_the_network():
    assert undecided(registered().values()) == {}


def test_a_new_node_with_a_path_is_noticed_and_off_until_somebody_decides():
    with nodes_put_back():

        @invocation("saas_test_reader", version="1.0.0")
        class Reader(BaseInvocation):
            """Reads."""

            where: str = InputField(default="", description="The file to read")

            def invoke(self, context: Any) -> StringOutput:
                return StringOutput(value=self.where)

        off = close_nodes()

        assert undecided([Reader]) == {"saas_test_reader": ["saas_test_reader.where"]}
        assert "nobody has looked at saas_test_reader.where" in off["saas_test_reader"]
        with pytest.raises(ClosedNode):
            Reader(id="r").invoke(None)
    close_nodes()


def test_a_new_node_whose_code_opens_files_is_noticed():
    class Opener(StringInvocation):
        def invoke(self, context: Any) -> StringOutput:
            with open("/etc/hosts") as file:
                return StringOutput(value=file.read())

    assert undecided([Opener]) == {"string": ["string"]}


@pytest.mark.parametrize("name", CLOSED_NODES)
def test_an_enqueued_graph_with_a_closed_node_is_refused_with_its_name_and_reason(name, client):
    answer = enqueue(client, {"type": name})

    assert answer.status_code == 400
    assert name in answer.json()["detail"] and CLOSED_NODES[name] in answer.json()["detail"]


def test_the_refusal_says_nothing_about_the_disk(client, tmp_path):
    there = tmp_path / "there.txt"
    there.write_text("secret")
    answers = [enqueue(client, {"type": "prompt_from_file", "file_path": str(path)}) for path in (there, tmp_path / "missing")]

    assert answers[0].json() == answers[1].json()
    assert [answer.status_code for answer in answers] == [400, 400]


@pytest.mark.parametrize("field,value", CLOSED_VALUES)
def test_a_closed_value_is_refused_in_a_graph_and_at_run(field, value, client):
    name = next(name for name, cls in sorted(registered().items()) if field in cls.model_fields)
    node = registered()[name].model_construct(id="n", **{field: value})
    batch = SimpleNamespace(graph=SimpleNamespace(nodes={"n": node}), data=None)

    with pytest.raises(ClosedNode, match=value.replace("+", r"\+")):
        demand_open(batch)
    with pytest.raises(ClosedNode):
        demand_open_node(node, queue_item=None)


CODE = ("open(p)", "requests.get(u)", "urllib.request", "httpx", "subprocess", "os.system(c)", "os.environ", "os.listdir(p)")
CODE += ("p.write_text(t)", "p.read_bytes()", "c.outputs_path", "Path(p)", "shutil.copy", "import_module(m)", "eval(t)", "exec(t)")


@pytest.mark.parametrize("code", CODE)
def test_code_that_touches_files_or_the_network_is_found_in_a_file(code, tmp_path):
    file = tmp_path / "nodes.py"
    file.write_text(f"class A:\n    x = 1\n\n\n@decorated\nclass B:\n    def invoke(self):\n        return {code}\n")
    classes = nodes._classes_with_clues(str(file))

    assert [bool(nodes._CODE.search(classes[name])) for name in ("A", "B")] == [False, True]
    assert classes["B"].startswith("@decorated")


@pytest.mark.parametrize("field,value", CLOSED_VALUES)
def test_some_node_still_has_the_closed_value(field, value):
    assert any(value in str(cls.model_fields[field].annotation) for cls in registered().values() if field in cls.model_fields)


def test_a_batch_that_writes_over_a_nodes_type_is_refused():
    graph = Graph(nodes={"n": StringInvocation(id="n", value="v")})
    swaps = [[BatchDatum(node_path="n", field_name="type", items=["prompt_from_file"])]]

    with pytest.raises(ClosedNode):
        demand_open(Batch(graph=graph, runs=1, data=swaps))
    demand_open(Batch(graph=graph, runs=1, data=[[BatchDatum(node_path="n", field_name="value", items=["prompt_from_file"])]]))


def test_an_open_node_is_enqueued_as_ever(client):
    answer = enqueue(client, {"type": "string", "value": "v"})

    # No services run here: the route itself was reached.
    assert answer.status_code == 500


@pytest.mark.parametrize("name", CLOSED_NODES)
def test_a_stored_session_with_a_closed_node_is_read_and_refused_when_run(name):
    """Retries and rows from before: what is in the queue is no request any more."""
    stored = GraphExecutionState(graph=Graph(nodes={"n": StringInvocation(id="n", value="v")})).model_dump_json()
    session = GraphExecutionState.model_validate_json(stored.replace('"type":"string"', f'"type":"{name}"'))

    assert json.loads(session.model_dump_json(warnings=False))["graph"]["nodes"]["n"]["type"] == name
    with pytest.raises(ClosedNode):
        session.graph.nodes["n"].invoke(None)


def test_a_called_workflow_with_a_closed_node_does_not_run_it(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    inputs = {"file_path": {"name": "file_path", "value": str(secret)}}
    data = {"id": "n", "type": "prompt_from_file", "version": "1.0.2", "inputs": inputs, "isIntermediate": True, "useCache": True}
    returning = {**data, "id": "r", "type": "workflow_return", "version": "1.0.0", "inputs": {}}
    nodes = [{"id": node["id"], "type": "invocation", "data": node} for node in (data, returning)]
    workflow = {"nodes": nodes, "edges": []}

    with pytest.raises(ClosedNode):
        build_graph_from_workflow(workflow).nodes["n"].invoke(None)


# Routes


def test_every_route_of_invokeai_was_found():
    assert len({row for row, _ in upstream_routes()}) > 170


@pytest.mark.parametrize("row", CLOSED_ROUTES, ids=" ".join)
def test_a_closed_route_answers_403_with_its_reason_and_is_not_in_openapi(row, client, app):
    method, path = row
    answer = client.request(method, path.replace("{", "").replace("}", ""), json={})

    assert answer.status_code == 403
    assert CLOSED_ROUTES[row] in answer.json()["detail"]
    assert method.lower() not in app.openapi()["paths"].get(path, {})


@pytest.mark.parametrize("row", [*PUBLIC, *MEDIA, *SUPER_ADMIN], ids=" ".join)
def test_a_listed_route_is_served(row, app):
    assert row[0].lower() in app.openapi()["paths"][row[1]]


def test_every_route_that_invokeai_keeps_for_admins_is_decided_on(app):
    admin = {row for row, (_router, route) in upstream_routes() if "require_admin" in _dependencies(route.dependant)}
    accounts = {row for row in admin if row[1].startswith("/api/v1/auth/users")}

    assert admin - accounts == set(SUPER_ADMIN) | {row for row in CLOSED_ROUTES if row in admin}
    assert set(SUPER_ADMIN) <= admin


def test_every_route_that_asks_nobody_is_decided_on():
    asks = ("get_current_user", "get_current_user_or_default", "get_current_media_user_or_default")
    open_to_all = {
        row
        for row, (_router, route) in upstream_routes()
        if not any(name in _dependencies(route.dependant) for name in asks) and row not in CLOSED_ROUTES
    }
    replaced = {("POST", "/api/v1/auth/login"), ("POST", "/api/v1/auth/setup")}

    assert open_to_all - replaced == set(PUBLIC) | {("GET", "/api/v1/workflows/i/{workflow_id}/thumbnail")}


def test_every_route_that_takes_the_cookie_is_decided_on():
    media = {row for row, (_r, route) in upstream_routes() if "get_current_media_user_or_default" in _dependencies(route.dependant)}

    assert media <= set(MEDIA)


def _dependencies(dependant: Any) -> str:
    return " ".join(f"{getattr(sub.call, '__name__', '')} {_dependencies(sub)}" for sub in dependant.dependencies)


def test_a_row_that_invokeai_dropped_stops_the_start(monkeypatch):
    monkeypatch.setitem(CLOSED_ROUTES, ("GET", "/api/v9/gone"), "gone")

    with pytest.raises(LookupError, match="/api/v9/gone"):
        close_routes()


def endpoint(method: str, path: str) -> Any:
    return dict(upstream_routes())[method, path][1].endpoint


def with_services(monkeypatch: pytest.MonkeyPatch, **services: Any) -> None:
    from invokeai.app.api.dependencies import ApiDependencies

    monkeypatch.setattr(ApiDependencies, "invoker", SimpleNamespace(services=SimpleNamespace(**services)), raising=False)


class Failing:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Any:
        raise self.error


def test_our_errors_keep_their_status_inside_invokeais_routes(monkeypatch, client):
    with_services(monkeypatch, session_queue=Failing(StorageUnavailable("later")))
    answer = client.get("/api/v1/queue/default/status")

    assert answer.status_code == 503


def test_a_500_of_invokeai_says_nothing_of_its_inside(monkeypatch, client):
    with_services(monkeypatch, session_queue=Failing(RuntimeError("duplicate key (bobs-image.png)")))
    answer = client.get("/api/v1/queue/default/status")

    assert answer.status_code == 500
    assert "bobs-image" not in answer.text


def model_records(tmp_path: Any) -> Any:
    from invokeai.backend.model_manager.configs.vae import VAE_Checkpoint_SD1_Config

    facts = {"key": "k", "hash": "h", "file_size": 1, "name": "vae", "source_type": "path"}
    model = VAE_Checkpoint_SD1_Config(**facts, path=f"{tmp_path}/vae.safetensors", source=f"{tmp_path}/vae.safetensors")
    store = SimpleNamespace(search_by_attr=lambda **_: [model], get_model=lambda key: model)
    return {"model_manager": SimpleNamespace(store=store), "model_images": SimpleNamespace(get_url=lambda key: None)}


@pytest.mark.parametrize("path", ["/api/v2/models/", "/api/v2/models/i/k"])
def test_a_model_shows_its_place_to_super_admins_only(path, monkeypatch, client, app, tmp_path):
    with_services(monkeypatch, **model_records(tmp_path))
    seen = client.get(path)
    monkeypatch.setitem(app.dependency_overrides, get_current_user_or_default, lambda: TokenData(user_id="s", email="", is_admin=True))
    shown = client.get(path)

    assert seen.status_code == shown.status_code == 200, seen.text
    assert str(tmp_path) not in seen.text and '"vae"' in seen.text
    assert str(tmp_path) in shown.text


def test_pictures_are_cached_by_the_browser_alone(monkeypatch, client, tmp_path):
    picture = tmp_path / "p.png"
    picture.write_bytes(b"png")
    with_services(monkeypatch, workflow_thumbnails=SimpleNamespace(get_path=lambda workflow_id: picture))
    with tenancy.as_user("ann"):
        answer = client.get("/api/v1/workflows/i/w/thumbnail")

    assert answer.content == b"png"
    assert answer.headers["cache-control"].startswith("private")
    assert client.get("/api/v1/workflows/i/w/thumbnail").status_code == 401


def test_a_picture_whose_file_is_gone_is_missing(monkeypatch, client, tmp_path):
    with_services(monkeypatch, workflow_thumbnails=SimpleNamespace(get_path=lambda workflow_id: tmp_path / "gone.png"))
    with tenancy.as_user("ann"):
        answer = client.get("/api/v1/workflows/i/w/thumbnail")

    assert answer.status_code == 404
