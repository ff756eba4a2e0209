"""Whatever a graph looks like: no demand is lost, no plan is stepped around, and what is counted is never less than what runs."""

import os
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from invokeai.app.services.shared.graph import GraphExecutionState
from saas.gated import entitlements as entitlements
from saas.gated import image, refusal, video
from saas.plan_graphs import EXPOSE, STILL_EDGES, batch, graph, read, still_nodes, workflow

from invokeai_saas.plans import gate
from invokeai_saas.plans.errors import PlanRefused
from invokeai_saas.plans.flatten import flatten
from invokeai_saas.plans.repeats import Repeats
from invokeai_saas.plans.sizes import Sizes

SIDES = st.integers(1, 1_250).map(lambda n: n * 8)
SLUGS = st.sampled_from(["enterprise", "pro", "starter", "studio", "tester"])
# SAAS_SOAK_GRAPHS=3000 for the long form.
RUNS = settings(max_examples=int(os.environ.get("SAAS_SOAK_GRAPHS", "60")), deadline=None)


def run(made) -> dict[str, int]:
    """How often InvokeAI itself runs each node of a graph of numbers."""
    state, ran = GraphExecutionState(graph=made), {}
    while (node := state.next()) is not None:
        source = state.prepared_source_mapping[node.id]
        ran[source] = ran.get(source, 0) + 1
        state.complete(node.id, node.invoke(None))
    return ran


@st.composite
def looping_graphs(draw):
    """Numbers, sums, ranges, iterates and collects, connected as InvokeAI allows."""
    nodes_, edges = [{"id": "seed", "type": "integer", "value": 1}], []
    numbers, lists = ["seed.value"], []
    for n in range(draw(st.integers(1, 7))):
        kind = draw(st.sampled_from(["range", "iterate", "sum", "collect"]))
        if kind == "range" or (kind == "iterate" and not lists):
            nodes_.append({"id": f"n{n}", "type": "range_of_size", "size": draw(st.integers(1, 3))})
            edges.append(f"{draw(st.sampled_from(numbers))} > n{n}.start")
            lists.append(f"n{n}.collection")
        elif kind == "iterate":
            # Its items go into a sum of its own: an iterate hands on to what says its type.
            nodes_ += [{"id": f"n{n}", "type": "iterate"}, {"id": f"n{n}s", "type": "add", "b": 1}]
            edges += [f"{draw(st.sampled_from(lists))} > n{n}.collection", f"n{n}.item > n{n}s.a"]
            numbers.append(f"n{n}s.value")
        elif kind == "sum":
            nodes_.append({"id": f"n{n}", "type": "add"})
            edges += [f"{draw(st.sampled_from(numbers))} > n{n}.{side}" for side in "ab"]
            numbers.append(f"n{n}.value")
        else:
            nodes_ += [{"id": f"n{n}", "type": "collect"}, {"id": f"n{n}l", "type": "integer_collection"}]
            items = draw(st.lists(st.sampled_from(numbers), min_size=1, max_size=2, unique=True))
            edges += [*(f"{item} > n{n}.item" for item in items), f"n{n}.collection > n{n}l.collection"]
            lists.append(f"n{n}l.collection")
    return nodes_, edges, draw(st.sampled_from(numbers))


def counted(made) -> dict[str, int]:
    """How often we think that each node runs, at most."""
    flat = flatten(made, {}.get)
    repeats = Repeats(flat, Sizes(flat))
    return {path: repeats.times(path) for path in flat.nodes}


@RUNS
@given(looping_graphs())
def test_every_node_is_counted_at_least_as_often_as_invokeai_runs_it(found):
    nodes_, edges, _ = found
    made = graph(*nodes_, edges=tuple(edges))
    ran, counts = run(made), counted(made)

    assert {node: (counts[node], times) for node, times in ran.items() if counts[node] < times} == {}
    assert read(made).repeats >= max(ran.values())


def test_what_an_inner_loop_gathers_is_there_once_per_outer_turn():
    nodes_ = [
        {"id": "outer", "type": "range_of_size", "size": 2}, {"id": "one", "type": "iterate"}, {"id": "n", "type": "add", "b": 0},
        {"id": "inner", "type": "range_of_size", "size": 3}, {"id": "two", "type": "iterate"}, {"id": "m", "type": "add", "b": 0},
        {"id": "all", "type": "collect"}, {"id": "kept", "type": "integer_collection"},
    ]  # fmt: skip
    edges = (
        "outer.collection > one.collection", "one.item > n.a", "n.value > inner.start", "inner.collection > two.collection",
        "two.item > m.a", "m.value > all.item", "all.collection > kept.collection",
    )  # fmt: skip
    made = graph(*nodes_, edges=edges)

    assert (run(made)["m"], run(made)["kept"]) == (6, 2)
    # Which loop a collect ends cannot always be told: never too few.
    assert (counted(made)["m"], counted(made)["kept"]) == (6, 3)


@RUNS
@given(SLUGS, st.integers(1, 200), SIDES, SIDES)
def test_what_passes_is_within_the_limits_and_what_is_within_passes(entitlements, slug, frames, width, height):
    plan = entitlements[slug].plan
    fits = max(width, height) <= plan.max_video_long_side and min(width, height) <= plan.max_video_short_side
    fits = fits and frames <= plan.max_video_frames

    assert (refusal(entitlements[slug], video(frames=frames, width=width, height=height)) is None) is fits


@RUNS
@given(SLUGS, st.integers(1, 200), SIDES, SIDES)
def test_the_nearest_values_are_allowed_and_the_named_plan_allows_the_wish(entitlements, slug, frames, width, height):
    wish = video(frames=frames, width=width, height=height)
    refused = refusal(entitlements[slug], wish)
    if refused is None:
        return
    if refused.limit_type == "frames":
        again = video(frames=refused.nearest, width=16, height=16)
    else:
        again = video(width=refused.nearest["width"], height=refused.nearest["height"])

    assert refusal(entitlements[slug], again) is None
    if refused.allowed_by is not None:
        assert refusal(entitlements[refused.allowed_by], wish) is None


@RUNS
@given(SLUGS, st.none() | SIDES, st.none() | SIDES, st.none() | st.integers(1, 600))
def test_maxima_that_are_filled_in_are_allowed_and_keep_what_is_known(entitlements, slug, width, height, steps):
    entitled, demands = entitlements[slug], image(width=width, height=height, steps=steps)
    if refusal(entitled, demands) is not None:
        return
    filled = gate.fill_maxima(demands, entitled.plan)
    job = filled.jobs[0]

    assert refusal(entitled, filled) is None
    assert [(before, after) for before, after in ((width, job.width), (height, job.height), (steps, job.steps)) if before != after] == [
        (None, after) for before, after in ((width, job.width), (height, job.height), (steps, job.steps)) if before is None
    ]
    assert job.upper_bound is (None in (width, height, steps))


@RUNS
@given(st.data())
def test_nested_calls_hide_nothing(data):
    depth = data.draw(st.integers(0, 4))
    width = data.draw(SIDES)
    base = data.draw(st.sampled_from(["sd-1", "flux", "new-base"]))
    lie = data.draw(st.sampled_from(["sd-1", "sdxl"]))
    nodes_ = [*still_nodes(lie, key=base), {"id": "w", "type": "integer", "value": width}]
    edges = (*STILL_EDGES, "w.value > noise.width")
    stored = {"w0": workflow(*nodes_, edges=edges)}
    for level in range(1, depth):
        stored[f"w{level}"] = workflow({"id": "c", "type": "call_saved_workflow", "workflow_id": f"w{level - 1}"})
    call = {"id": "c", "type": "call_saved_workflow", "workflow_id": f"w{depth - 1}"}
    found = read(graph(call) if depth else graph(*nodes_, edges=edges), stored)

    assert [(job.base, job.width, job.height) for job in found.jobs] == [(base, width, 512)]
    assert [model.base for model in found.models] == [base]


@RUNS
@given(st.lists(SIDES, min_size=1, max_size=6), st.integers(1, 3))
def test_a_batch_asks_for_what_its_items_ask_for(entitlements, widths, runs):
    nodes_ = [*still_nodes("sd-1"), {"id": "w", "type": "integer"}]
    made = batch(graph(*nodes_, edges=(*STILL_EDGES, "w.value > noise.width")), [("w.value", widths)], runs=runs)
    found = read(made)
    single = [read(graph(*nodes_[:-1], {"id": "w", "type": "integer", "value": width}, edges=(*STILL_EDGES, "w.value > noise.width")))
              for width in widths]  # fmt: skip
    allowed = all(refusal(entitlements["pro"], each) is None for each in single)

    assert [item.jobs for item in found.items] == [each.jobs for each in single] * runs
    assert (refusal(entitlements["pro"], found) is None) is allowed


ANY_INT = st.integers(-(10**30), 10**30)
ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True)


@RUNS
@given(ANY_INT, ANY_INT, ANY_FLOAT, st.sampled_from(["add", "sub", "mul"]), ANY_INT.filter(bool))
def test_no_number_is_too_large_to_be_reckoned_with(entitlements, a, b, factor, operation, step):
    nodes_ = [
        {"id": "blank", "type": "blank_image", "width": a},
        {"id": "first", "type": operation, "a": a, "b": b},
        {"id": "second", "type": operation, "b": b},
        {"id": "float", "type": "float", "value": factor},
        {"id": "scale", "type": "img_scale", "image": {"image_name": "small"}},
        {"id": "other", "type": "blank_image"},
    ]
    edges = ("first.value > second.a", "second.value > blank.height", "float.value > scale.scale_factor", "scale.width > other.width")
    gate.fill_maxima(read(graph(*nodes_, edges=edges)), entitlements["pro"].plan)
    if a < b:
        # Lengths are Python's own, where Python can tell them.
        listing = {"id": "list", "type": "range", "start": a, "stop": b, "step": step}
        each = [{"id": "each", "type": "iterate"}, {"id": "end", "type": "add"}]
        try:
            found = read(graph(listing, *each, edges=("list.collection > each.collection", "each.item > end.a"))).repeats
        except PlanRefused as refused:
            assert refused.value > 10_000
        else:
            clamped = [max(-(10**12), min(value, 10**12)) for value in (a, b, step)]
            assert found == max(1, len(range(*clamped)))


@RUNS
@given(st.text(max_size=30), st.text(max_size=30))
def test_an_input_of_a_call_with_any_name_is_read_or_refused(node_id, field_name):
    call = {
        "id": "c", "type": "call_saved_workflow", "workflow_id": "w",
        "workflow_inputs": {f"{EXPOSE}{node_id}::{field_name}": 4096},
    }  # fmt: skip
    stored = {"w": workflow(*still_nodes("sd-1"), edges=STILL_EDGES, exposed=("noise.width",))}
    try:
        found = read(graph(call), stored)
    except PlanRefused:
        return

    assert found.jobs[0].width == 4096


def test_a_count_that_is_too_small_is_noticed(monkeypatch):
    """The harness bites: without the iterators of what feeds a node, the count falls below what InvokeAI runs."""
    nodes_ = [
        {"id": "list", "type": "range_of_size", "size": 3}, {"id": "each", "type": "iterate"}, {"id": "end", "type": "add"},
    ]  # fmt: skip
    made = graph(*nodes_, edges=("list.collection > each.collection", "each.item > end.a"))
    monkeypatch.setattr(Repeats, "_found_axes", lambda self, path: frozenset())

    assert read(made).repeats < run(made)["end"]


def test_the_union_of_demands_keeps_every_refusal(entitlements):
    both = replace(video(), jobs=(*video(frames=48).jobs, *image(steps=999).jobs))

    assert refusal(entitlements["starter"], both).limit_type == "frames"
