"""Called workflows and batches stand in what a graph asks for as if they were part of it; and every node is known."""

import pytest
from invokeai.app.invocations.baseinvocation import BaseInvocation, InvocationRegistry, invocation
from invokeai.app.invocations.fields import ImageField, InputField, LatentsField
from invokeai.app.invocations.model import ModelIdentifierField
from invokeai.app.invocations.primitives import IntegerOutput, LatentsOutput
from invokeai.app.services.session_queue.session_queue_common import create_session_nfv_tuples
from pydantic import ValidationError
from saas.plan_graphs import EXPOSE, MODELS, STILL_EDGES, batch, graph, model, read, still, still_nodes, workflow
from saas.stock_nodes import nodes_put_back

from invokeai_saas.plans import nodes
from invokeai_saas.plans.errors import UnreadableGraph
from invokeai_saas.plans.flatten import MOST_NODES, workflow_digest
from invokeai_saas.plans.graph_demands import demands_of_node, model_keys


def call(workflow_id: str = "w", node_id: str = "call", **inputs) -> dict:
    return {"id": node_id, "type": "call_saved_workflow", "workflow_id": workflow_id, "workflow_inputs": inputs}


def flux_workflow(**settings) -> dict:
    return workflow(*still_nodes("flux", **settings), edges=STILL_EDGES, exposed=("noise.width", "noise.seed", "denoise.steps"))


def test_a_called_workflow_is_read_like_the_graph_that_calls_it():
    found = read(graph(call()), {"w": flux_workflow(width=1024)})

    assert [(each.node_path, each.base, each.width) for each in found.jobs] == [("call/denoise", "flux", 1024)]
    assert [each.base for each in found.models] == ["flux"]


def test_a_workflow_inside_of_a_workflow_is_read_too():
    stored = {"w": workflow(call("x", "deeper")), "x": workflow(call("y", "deepest")), "y": flux_workflow()}
    found = read(graph(call()), stored)

    assert [each.node_path for each in found.jobs] == ["call/deeper/deepest/denoise"]
    assert {pin.workflow_id: pin.sha256 for pin in found.pins} == {name: workflow_digest(each) for name, each in stored.items()}


@pytest.mark.parametrize("stored", [
    {"w": workflow(call("w", "self"))},
    {"w": workflow(call("x", "a")), "x": workflow(call("w", "b"))},
])  # fmt: skip
def test_a_workflow_that_calls_itself_is_refused(stored):
    with pytest.raises(UnreadableGraph, match="do not call themselves"):
        read(graph(call()), stored)


def test_a_workflow_deeper_than_invokeai_goes_is_refused():
    stored = {f"w{n}": workflow(call(f"w{n + 1}", "next")) for n in range(5)} | {"w5": flux_workflow()}

    with pytest.raises(UnreadableGraph, match="up to 4 workflows inside each other"):
        read(graph(call("w0")), stored)


def test_a_tree_of_calls_ends_before_it_fills_the_memory():
    stored = {f"w{n}": workflow(*(call(f"w{n + 1}", f"c{i}") for i in range(60))) for n in range(3)} | {"w3": workflow()}

    with pytest.raises(UnreadableGraph, match=f"up to {MOST_NODES} nodes"):
        read(graph(call("w0")), stored)


def test_a_workflow_that_is_not_there_or_is_somebody_elses_is_refused():
    with pytest.raises(UnreadableGraph, match="that is there and that you may see, got 'theirs'"):
        read(graph(call("theirs")))


def test_a_workflow_that_an_edge_chooses_is_refused():
    made = graph(call(), {"id": "which", "type": "string", "value": "w"}, edges=("which.value > call.workflow_id",))

    with pytest.raises(UnreadableGraph, match="one that an edge decides"):
        read(made, {"w": flux_workflow()})


def test_a_batch_inside_of_a_called_workflow_is_refused():
    stored = {"w": workflow({"id": "b", "type": "integer_batch", "integers": [1, 2]}, *still_nodes("sd-1"), edges=STILL_EDGES)}

    with pytest.raises(UnreadableGraph, match="called workflows without batches"):
        read(graph(call()), stored)


def test_a_literal_input_of_a_call_counts():
    found = read(graph(call(**{EXPOSE + "noise::width": 2048})), {"w": flux_workflow()})

    assert found.jobs[0].width == 2048


def test_an_input_that_the_workflow_does_not_show_is_refused():
    with pytest.raises(UnreadableGraph, match="is not exposed"):
        read(graph(call(**{EXPOSE + "noise::height": 2048})), {"w": flux_workflow()})


def test_an_edge_into_a_call_counts_inside_of_it():
    known = {"id": "n", "type": "integer", "value": 1600}
    edge = f"n.value > call.{EXPOSE}noise::width"
    wide = read(graph(call(), known, edges=(edge,)), {"w": flux_workflow()})
    opened = read(graph(call(), {"id": "n", "type": "rand_int"}, edges=(edge,)), {"w": flux_workflow()})

    assert (wide.jobs[0].width, opened.jobs[0].width) == (1600, None)


def test_a_call_behind_an_iterate_runs_its_workflow_as_often():
    made = graph(
        {"id": "list", "type": "range_of_size", "size": 9},
        {"id": "each", "type": "iterate"},
        {"id": "seed", "type": "integer"},
        call(),
        edges=("list.collection > each.collection", "each.item > seed.value", f"seed.value > call.{EXPOSE}aside::value"),
    )
    # Nothing that the edge feeds leads to the picture: the whole workflow runs again all the same.
    aside = workflow(*still_nodes("flux"), {"id": "aside", "type": "integer"}, edges=STILL_EDGES, exposed=("aside.value",))
    found = read(made, {"w": aside})

    assert ({each.times for each in (*found.jobs, *found.sizes)}, found.repeats) == ({9}, 9)


def test_a_call_inside_of_a_called_workflow_repeats_with_the_outer_one():
    middle = workflow(call("w", "inner"), {"id": "aside", "type": "integer"}, exposed=("aside.value",))
    made = graph(
        {"id": "list", "type": "range_of_size", "size": 4},
        {"id": "each", "type": "iterate"},
        {"id": "n", "type": "integer"},
        call("middle"),
        edges=("list.collection > each.collection", "each.item > n.value", f"n.value > call.{EXPOSE}aside::value"),
    )

    assert read(made, {"middle": middle, "w": flux_workflow()}).jobs[0].times == 4


def test_iterations_outside_and_inside_of_nested_calls_multiply():
    looped = workflow(
        {"id": "list", "type": "range_of_size", "size": 5},
        {"id": "each", "type": "iterate"},
        *still_nodes("flux"),
        edges=(*STILL_EDGES, "list.collection > each.collection", "each.item > noise.seed"),
        exposed=("list.start",),
    )
    between = workflow(call("loop", "inner"), {"id": "n", "type": "integer"}, edges=(f"n.value > inner.{EXPOSE}list::start",),
                       exposed=("n.value",))  # fmt: skip
    made = graph(
        {"id": "list", "type": "integer_collection", "collection": [1, 2, 3]},
        {"id": "each", "type": "iterate"},
        {"id": "one", "type": "integer"},
        call("between"),
        edges=("list.collection > each.collection", "each.item > one.value", f"one.value > call.{EXPOSE}n::value"),
    )

    assert read(made, {"between": between, "loop": looped}).jobs[0].times == 15


def test_what_a_workflow_gives_back_is_a_number_nobody_knows_beforehand():
    stored = {"w": workflow({"id": "v", "type": "workflow_return_value", "key": "n", "value": 3}, edges=("v.value > return.values",))}
    made = graph(
        *still_nodes("sd-1"),
        call(),
        {"id": "get", "type": "workflow_return_get", "key": "n"},
        edges=(*STILL_EDGES, "call.values > get.values", "get.value > denoise.steps", "get.value > noise.width"),
    )
    found = read(made, stored).jobs[0]

    assert (found.steps, found.width) == (None, None)


def test_a_model_that_a_workflow_gives_back_is_known():
    loader = {"id": "loader", "type": "main_model_loader", "model": model("flux", "sd-1")}
    returned = workflow(loader, {"id": "v", "type": "workflow_return_value", "key": "u"},
                        edges=("loader.unet > v.value", "v.value > return.values"))  # fmt: skip
    made = graph(
        *[node for node in still_nodes("sd-1") if node["id"] != "loader"],
        call(),
        {"id": "get", "type": "workflow_return_get", "key": "u"},
        edges=("call.values > get.values", "get.value > denoise.unet", "noise.noise > denoise.noise"),
    )
    found = read(made, {"w": returned})

    assert ([each.base for each in found.models], found.jobs[0].base) == (["flux"], "flux")


def test_a_refused_workflow_does_not_say_what_a_nodes_validator_found():
    stored = {"w": workflow({"id": "p", "type": "prompt_from_file", "file_path": "/etc/no-such-file"})}

    with pytest.raises(UnreadableGraph) as refused:
        read(graph(call()), stored)
    assert str(refused.value) == "expected a workflow that can be called, got 'w'"


def test_a_node_named_like_a_called_workflows_node_does_not_hide_it():
    hiding = {"id": "call/denoise", "type": "integer"}

    with pytest.raises(UnreadableGraph, match="not paths of other nodes"):
        read(graph(call(), hiding), {"w": flux_workflow()})


@pytest.mark.parametrize("broken", [
    {"nodes": {"n": {"id": "n", "type": "no_such_node"}}, "edges": []},
    {"nodes": {"g": {"id": "g", "type": "graph", "graph": {"nodes": {}}}}, "edges": []},
    {"nodes": {"n": {"id": "n", "type": "integer"}}, "edges": [
        {"source": {"node_id": "n", "field": "value"}, "destination": {"node_id": "gone", "field": "a"}}]},
    {"nodes": "x"},
])  # fmt: skip
def test_what_is_no_graph_is_refused(broken):
    with pytest.raises(UnreadableGraph, match="expected a graph"):
        read(broken)


# Batches.


def test_a_batch_has_the_demands_of_each_item_in_invokeais_order():
    made = batch(still(), [("noise.width", [512, 1024]), ("denoise.steps", [5, 6])], [("noise.height", [64, 128, 256])], runs=2)
    found = read(made)
    sessions = [values for _, _, values in create_session_nfv_tuples(made, 1000)]

    assert [(item.jobs[0].width, item.jobs[0].steps, item.jobs[0].height) for item in found.items] == [
        (512, 5, 64), (512, 5, 128), (512, 5, 256), (1024, 6, 64), (1024, 6, 128), (1024, 6, 256),
    ] * 2  # fmt: skip
    assert (found.runs, found.repeats, len(found.jobs)) == (12, 12, 6)
    assert '"value": 512' in sessions[0] and '"value": 256' in sessions[-1]


def test_items_that_differ_in_seeds_and_prompts_only_are_read_once():
    made = batch(still(), [("noise.seed", list(range(500)))], runs=3)
    found = read(made)

    assert (len(found.items), len({id(item) for item in found.items}), len(found.jobs)) == (1500, 1, 1)


def test_invokeais_batches_take_no_models():
    with pytest.raises(ValidationError, match="valid string"):
        batch(still("sd-1"), [("loader.model", [ModelIdentifierField(**model("flux", "sd-1"))])])


def test_a_called_workflow_in_a_batch_is_found_and_so_is_what_is_read_because_of_it():
    made = graph(call("w"), {"id": "n", "type": "integer", "value": 512}, edges=(f"n.value > call.{EXPOSE}noise::width",))
    stored = {"w": workflow({"id": "noise", "type": "string"}, exposed=("noise.value",)), "x": flux_workflow()}
    stored["w"]["exposedFields"] = [{"nodeId": "noise", "fieldName": "width"}]
    found = read(batch(made, [("n.value", [512, 4096])], [("call.workflow_id", ["w", "x"])]), stored)

    assert [[each.width for each in item.jobs] for item in found.items] == [[], [512], [], [4096]]


def test_pictures_in_a_batch_are_measured_one_by_one():
    nodes_ = [node for node in still_nodes("sd-1") if node["id"] != "noise"]
    made = graph(*nodes_, {"id": "encode", "type": "i2l", "image": {"image_name": "small"}},
                 edges=("loader.unet > denoise.unet", "encode.latents > denoise.latents"))  # fmt: skip
    names = [ImageField(image_name=name) for name in ("small", "large", "somebody-elses")]
    found = read(batch(made, [("encode.image", names)]))

    assert [item.jobs[0].width for item in found.items] == [512, 3000, None]


@pytest.mark.parametrize("name", ["type", "id"])
def test_a_batch_that_would_make_another_node_of_one_is_refused(name):
    with pytest.raises(UnreadableGraph, match=f"got one for its {name}"):
        read(batch(still(), [(f"noise.{name}", ["blank_image"])]))


def test_a_batch_of_millions_is_not_read():
    made = batch(still(), [("noise.seed", list(range(5_000)))], runs=1_000_000)
    found = read(made)

    assert (found.runs, found.repeats, found.items) == (5_000_000_000, 5_000_000_000, ())


# Every node is known.


def known_types() -> set[str]:
    return {cls.get_type() for cls in InvocationRegistry._invocation_classes}


def test_every_registered_node_with_a_size_a_count_or_latents_is_described():
    found = {cls.get_type(): found for cls in InvocationRegistry._invocation_classes if (found := nodes.undescribed(cls))}

    assert found == {}


def test_every_description_is_of_a_node_that_is_there_with_the_fields_it_names():
    tables = (nodes.RULES, nodes.SAME_SIZE, nodes.LIST_LENGTHS, nodes.REVIEWED)
    described = {name for table in tables for name in table} | nodes.BOXED | nodes.METADATA | nodes.MODELS_FROM_METADATA
    missing = []
    for name, rule in nodes.RULES.items():
        cls = InvocationRegistry.get_invocation_for_type(name)
        assert cls is not None, name
        wanted = {*rule.fields, *rule.follows, *([rule.model] if rule.model else [])}
        missing += [(name, each) for each in wanted if each not in cls.model_fields]

    assert described - known_types() == set()
    assert missing == []


def test_a_rule_names_every_size_frame_count_and_step_of_its_node():
    sizes = {"width", "height", "num_frames", "steps", "num_steps", "num_inference_steps", "num_images"}
    left_out = {
        (name, each)
        for name, rule in nodes.RULES.items()
        for each in sizes & set(InvocationRegistry.get_invocation_for_type(name).model_fields)
        if each not in rule.fields
    }

    # One frame of a conditioning more, and a start picture's own clip length.
    assert left_out == set()


def test_a_new_node_with_a_size_is_noticed_and_refused():
    with nodes_put_back():

        @invocation("brand_new_upscaler", version="1.0.0")
        class BrandNew(BaseInvocation):
            """A node of a later InvokeAI."""

            duration: int = InputField(default=1)
            seed: int = InputField(default=1)

            def invoke(self, context) -> IntegerOutput:
                return IntegerOutput(value=1)

        @invocation("brand_new_sampler", version="1.0.0")
        class BrandNewSampler(BaseInvocation):
            """Hands on latents."""

            latents: LatentsField | None = InputField(default=None)

            def invoke(self, context) -> LatentsOutput:
                raise NotImplementedError

        found = read(graph({"id": "a", "type": "brand_new_upscaler"}, {"id": "b", "type": "brand_new_sampler"}))

        assert nodes.undescribed(BrandNew) == ("duration",)
        assert found.unknown == ("brand_new_sampler", "brand_new_upscaler")


def test_every_field_that_holds_a_model_is_looked_into():
    blind = []
    for cls in InvocationRegistry._invocation_classes:
        for name, field in cls.model_fields.items():
            if "ModelIdentifierField" in str(field.annotation):
                value = ModelIdentifierField(**model("flux"))
                if list(model_keys({"x": [value]})) != ["flux"] or list(model_keys(value.model_dump())) != ["flux"]:
                    blind.append((cls.get_type(), name))

    assert blind == []


def test_a_node_that_runs_shows_its_real_values():
    values = {"latents": LatentsField(latents_name="stored"), "steps": 77, "unet": {"unet": model("flux", "sd-1")}}
    found = demands_of_node("denoise_latents", values, model_base=MODELS.get, latents_size={"stored": (4096, 2048)}.get)

    assert [(each.base, each.width, each.height, each.steps) for each in found.jobs] == [("flux", 4096, 2048, 77)]
