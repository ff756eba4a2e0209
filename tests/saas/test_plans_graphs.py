"""What a graph asks for: each number where the node has it, and no way to hide one."""

import pytest
from saas.plan_graphs import STILL_EDGES, clip, graph, model, read, still, still_nodes

from invokeai_saas.plans.demands import JobDemand
from invokeai_saas.plans.errors import UnreadableGraph


def job(made) -> JobDemand:
    found = read(made).jobs
    assert len(found) == 1
    return found[0]


def shape(demand: JobDemand) -> tuple:
    return demand.base, demand.width, demand.height, demand.frames, demand.steps, demand.times


def test_a_picture_has_the_size_of_its_noise_and_the_base_of_its_model():
    assert shape(job(still("sdxl", width=1024, height=768, steps=30))) == ("sdxl", 1024, 768, 1, 30, 1)


@pytest.mark.parametrize("family", ["animatediff", "svd", "z-image-video", "hunyuan-video", "wan"])
def test_a_clip_has_the_numbers_of_its_node(family):
    found = job(clip(family, frames=21, width=832, height=480, steps=7))

    assert (found.kind, *shape(found)) == ("video", family, 832, 480, 21, 7, 1)


def test_numbers_that_are_written_in_the_graph_are_followed_along_edges():
    nodes_ = [
        *still_nodes("sdxl"),
        {"id": "side", "type": "integer", "value": 640},
        {"id": "more", "type": "add", "b": 128},
    ]
    edges = (*STILL_EDGES, "side.value > more.a", "more.value > noise.width", "side.value > noise.height", "side.value > denoise.steps")

    assert shape(job(graph(*nodes_, edges=edges))) == ("sdxl", 768, 640, 1, 640, 1)


@pytest.mark.parametrize(("source", "output"), [
    ({"type": "rand_int"}, "value"), ({"type": "ideal_size"}, "width"), ({"type": "float_to_int", "value": 2.0}, "value"),
    ({"type": "integer_math"}, "value"), ({"type": "metadata_to_integer", "label": "steps"}, "value"), ({"type": "image"}, "width"),
])  # fmt: skip
def test_a_number_that_only_the_running_graph_knows_stays_open(source, output):
    made = graph(
        *still_nodes("sd-1"),
        {"id": "source", **source},
        edges=(*STILL_EDGES, f"source.{output} > noise.width", f"source.{output} > denoise.steps"),
    )
    found = job(made)

    assert (found.width, found.height, found.steps) == (None, 512, None)
    assert {(check.node_path, check.fields) for check in read(made).run_checks} == {
        ("denoise", ("steps", "noise")), ("noise", ("width",)),
    }  # fmt: skip


def test_frames_that_an_edge_brings_stay_open():
    made = clip("hunyuan-video")
    loader, denoise = (node.model_dump() for node in made.nodes.values())
    opened = graph(
        loader, denoise, {"id": "r", "type": "rand_int"}, edges=("loader.transformer > denoise.transformer", "r.value > denoise.num_frames")
    )

    assert job(opened).frames is None


def test_a_start_picture_of_a_clip_has_its_own_size_only_where_the_node_itself_says_so():
    def clip_of(**start):
        nodes_ = [
            {"id": "loader", "type": "svd_model_loader", "model": model("svd")},
            {"id": "start", "type": "svd_start_image", "image": {"image_name": "small"}, "width": 512, "height": 320, **start},
            {"id": "denoise", "type": "svd_denoise", "num_frames": 14},
        ]
        return graph(*nodes_, edges=("loader.model > denoise.model", "start.image > denoise.image"))

    assert [shape(job(clip_of(size=size)))[1:3] for size in ("own", "ideal", "trained")] == [(512, 320), (None, None), (None, None)]


def test_a_stored_picture_gives_its_size_and_an_unknown_one_none():
    def img2img(name: str):
        encode = {"id": "encode", "type": "i2l", "image": {"image_name": name}}
        found = [node for node in still_nodes("sd-1") if node["id"] != "noise"]
        return graph(*found, encode, edges=("loader.unet > denoise.unet", "encode.latents > denoise.latents"))

    assert shape(job(img2img("large")))[1:3] == (3000, 2000)
    assert shape(job(img2img("somebody-elses")))[1:3] == (None, None)


@pytest.mark.parametrize(("node", "size"), [
    ({"type": "img_scale", "scale_factor": 2.5}, (1280, 1280)),
    ({"type": "img_resize", "width": 640, "height": 704}, (640, 704)),
    ({"type": "img_pad_crop", "left": 100, "bottom": 28}, (612, 540)),
    ({"type": "spandrel_image_to_image_autoscale", "scale": 3.0}, (1536, 1536)),
    ({"type": "esrgan"}, (2048, 2048)),
    ({"type": "img_blur"}, (512, 512)),
    ({"type": "crop_image_to_bounding_box", "bounding_box": {"x_min": -500, "x_max": 700, "y_min": 0, "y_max": 64}}, (1200, 64)),
    ({"type": "canny_edge_detection"}, (None, None)),
])  # fmt: skip
def test_a_picture_on_its_way_to_the_latents_has_the_size_that_the_nodes_give_it(node, size):
    changed = {"id": "changed", "image": {"image_name": "small"}, **node}
    found = [each for each in still_nodes("sd-1") if each["id"] != "noise"]
    edges = ("loader.unet > denoise.unet", "changed.image > encode.image", "encode.latents > denoise.latents")
    made = graph(*found, changed, {"id": "encode", "type": "i2l"}, edges=edges)

    assert shape(job(made))[1:3] == size


def test_pasting_far_outside_makes_a_large_picture():
    paste = {"id": "p", "type": "img_paste", "base_image": {"image_name": "small"}, "image": {"image_name": "small"}, "x": 90_000, "y": -5}
    found = read(graph(paste)).sizes[0]

    assert (found.width, found.height) == (90_512, 517)


def test_latents_that_are_larger_than_a_node_says_count():
    nodes_ = [
        {"id": "loader", "type": "flux_model_loader", "model": model("flux"), "t5_encoder_model": model("any"),
         "clip_embed_model": model("any"), "vae_model": model("flux")},
        {"id": "noise", "type": "noise", "width": 2048, "height": 2048},
        {"id": "denoise", "type": "flux_denoise", "width": 256, "height": 256},
    ]  # fmt: skip
    made = graph(*nodes_, edges=("loader.transformer > denoise.transformer", "noise.noise > denoise.latents"))

    assert shape(job(made))[1:3] == (2048, 2048)


def test_a_base_is_the_installed_models_whatever_the_graph_says():
    lying = still("sd-1", key="flux")

    assert [found.base for found in read(lying).models] == ["flux"]
    assert job(lying).base == "flux"


def test_a_key_that_is_not_installed_is_refused():
    with pytest.raises(UnreadableGraph, match="installed model, got 'no-such-key'"):
        read(still("sd-1", key="no-such-key"))


@pytest.mark.parametrize("hidden", [
    {"type": "lora_selector", "lora": model("flux-lora")},
    {"type": "if", "true_input": {"key": "flux", "base": "sd-1"}},
    {"type": "workflow_return_value", "key": "k", "value": [{"deep": [model("flux", "sd-1")]}]},
    {"type": "denoise_latents", "unet": {"unet": model("flux", "sd-1"), "scheduler": model("flux", "sd-1"), "loras": []}},
    {"type": "lora_collection_loader", "loras": [{"lora": model("flux-lora"), "weight": 1}]},
])  # fmt: skip
def test_a_model_is_found_wherever_a_node_keeps_it(hidden):
    made = graph({"id": "hidden", **hidden})

    assert {found.base for found in read(made).models} == {"flux"}


def test_a_model_that_metadata_would_choose_is_refused():
    made = graph(
        *[node for node in still_nodes("sd-1") if node["id"] != "loader"],
        {"id": "loader", "type": "metadata_to_model", "default_value": model("sd-1")},
        edges=STILL_EDGES,
    )

    with pytest.raises(UnreadableGraph, match="chosen in the graph, got 'metadata_to_model'"):
        read(made)


def test_of_two_models_that_a_running_graph_chooses_between_both_count():
    first, second = ({"id": name, "type": "main_model_loader", "model": model(base)} for name, base in (("a", "sd-1"), ("b", "sdxl")))
    made = graph(
        *[node for node in still_nodes("sd-1") if node["id"] != "loader"],
        first,
        second,
        {"id": "loader", "type": "if"},
        edges=("a.unet > loader.true_input", "b.unet > loader.false_input", "loader.value > denoise.unet", "noise.noise > denoise.noise"),
    )
    found = job(made)

    assert {found.base, *found.other_bases} == {"sd-1", "sdxl"}


def test_what_is_only_written_into_the_picture_is_not_used():
    made = graph({"id": "m", "type": "core_metadata", "model": model("flux"), "width": 99_999, "steps": 9_999})

    assert (read(made).models, read(made).sizes, read(made).unknown) == ((), (), ())


def test_a_providers_call_says_how_many_pictures():
    call = {"id": "c", "type": "openai_image_generation", "model": model("external"), "num_images": 7, "width": 1024, "height": 512}
    found = read(graph(call)).provider_calls[0]

    assert (found.model.base, found.pictures, found.width, found.height, found.times) == ("external", 7, 1024, 512, 1)


# Iterations.


def iterated(*listing: dict, edges: tuple[str, ...]):
    """denoise's seed noise comes out of an iterate; `listing` and `edges` make the list."""
    return graph(
        *still_nodes("sd-1"),
        *listing,
        {"id": "each", "type": "iterate"},
        edges=(*STILL_EDGES, "each.item > noise.seed", *edges),
    )


@pytest.mark.parametrize(("listing", "times"), [
    ({"type": "range", "start": 0, "stop": 100, "step": 7}, 15),
    ({"type": "range_of_size", "size": 33}, 33),
    ({"type": "random_range", "size": 12}, 12),
    ({"type": "integer_collection", "collection": [1, 2, 3]}, 3),
    ({"type": "metadata_to_integer_collection", "label": "steps"}, None),
])  # fmt: skip
def test_a_node_behind_an_iterate_runs_as_often_as_the_list_is_long(listing, times):
    made = iterated({"id": "list", **listing}, edges=("list.collection > each.collection",))

    assert job(made).times == times
    assert read(made).repeats == times


def test_a_list_whose_length_an_edge_decides_stays_open():
    made = iterated(
        {"id": "n", "type": "rand_int"},
        {"id": "list", "type": "range_of_size"},
        edges=("n.value > list.size", "list.collection > each.collection"),
    )

    assert (job(made).times, read(made).repeats) == (None, None)


def test_iterations_inside_iterations_multiply():
    made = iterated(
        {"id": "outer", "type": "range_of_size", "size": 5},
        {"id": "one", "type": "iterate"},
        {"id": "inner", "type": "range_of_size", "size": 4},
        edges=("outer.collection > one.collection", "one.item > inner.start", "inner.collection > each.collection"),
    )

    assert job(made).times == 20


def test_what_a_collect_gathers_runs_once_and_iterates_as_often_as_it_gathered():
    made = iterated(
        {"id": "first", "type": "range_of_size", "size": 6},
        {"id": "one", "type": "iterate"},
        {"id": "sum", "type": "add"},
        {"id": "gather", "type": "collect"},
        {"id": "alone", "type": "integer_collection"},
        edges=(
            "first.collection > one.collection", "one.item > sum.a", "sum.value > gather.item", "gather.collection > each.collection",
            "gather.collection > alone.collection",
        ),
    )  # fmt: skip
    found = read(made)

    assert (found.jobs[0].times, found.repeats) == (6, 6)


def test_collects_chained_behind_each_other_keep_counting():
    made = iterated(
        *({"id": f"n{n}", "type": "integer"} for n in range(7)),
        {"id": "first", "type": "collect"},
        {"id": "second", "type": "collect"},
        edges=(
            *(f"n{n}.value > first.item" for n in range(4)), *(f"n{n}.value > second.item" for n in range(4, 7)),
            "first.collection > second.collection", "second.collection > each.collection",
        ),
    )  # fmt: skip

    assert job(made).times == 7


def test_a_list_that_would_fill_the_memory_is_refused_though_nothing_iterates_over_it():
    with pytest.raises(UnreadableGraph, match="lists of up to 10000 items, got 1000000000 from 'range_of_size'"):
        read(graph({"id": "list", "type": "range_of_size", "size": 1_000_000_000}))


def test_a_chain_of_thousands_of_nodes_is_read_and_one_that_doubles_at_each_node_too():
    adds = [{"id": f"n{n}", "type": "add", "a": 1, "b": 1} for n in range(1_500)]
    edges = [f"n{n}.value > n{n + 1}.{side}" for n in range(1_499) for side in "ab"]

    assert read(graph(*adds, edges=tuple(edges))).jobs == ()
