"""What only the running graph knows is held at the plan's maximum or refused, and looked at again before each node runs."""

from dataclasses import replace

import pytest
from invokeai.app.invocations.fields import ImageField, LatentsField
from saas.gated import answer, image, refusal, video
from saas.gated import entitlements as entitlements
from saas.plan_graphs import MODELS, graph, model, read, still_nodes

from invokeai_saas.plans import gate
from invokeai_saas.plans.errors import OverLimit, PlanForbids, PlanRefused, UnreadableGraph


def test_what_is_open_is_held_at_the_plans_maximum(entitlements):
    made = graph(
        *still_nodes("sd-1"),
        {"id": "r", "type": "rand_int"},
        {"id": "list", "type": "range_of_size"},
        {"id": "each", "type": "iterate"},
        edges=(
            "loader.unet > denoise.unet", "noise.noise > denoise.noise", "r.value > noise.width", "r.value > denoise.steps",
            "r.value > list.size", "list.collection > each.collection", "each.item > noise.seed",
        ),
    )  # fmt: skip
    demands, entitled = read(made), entitlements["starter"]
    gate.check(entitled, demands)
    filled = gate.fill_maxima(demands, entitled.plan)
    job = filled.jobs[0]

    assert (job.width, job.height, job.steps, job.times, job.upper_bound) == (2048, 512, 100, 50, True)
    assert (filled.sizes[0].width, filled.sizes[0].height, filled.repeats) == (2048, 512, 50)


def test_the_open_side_is_as_large_as_the_known_one_leaves_room_for(entitlements):
    pro = entitlements["pro"].plan
    sides = [(1000, None), (720, None), (None, 1280), (None, None), (None, 64)]
    filled = [gate.fill_maxima(video(width=width, height=height), pro).jobs[0] for width, height in sides]

    assert [(job.width, job.height) for job in filled] == [(1000, 720), (720, 1280), (720, 1280), (1280, 720), (1280, 64)]


def test_the_known_side_of_an_open_size_is_judged_alone(entitlements):
    assert answer(entitlements["pro"], video(width=None, height=1281)) == (400, "resolution_over_limit")
    assert answer(entitlements["pro"], video(width=None, height=1280)) == (200, "ok")


@pytest.mark.parametrize(("limits", "demands"), [
    ({"max_image_long_side": None}, image(width=None)),
    ({"max_steps": None}, image(steps=None)),
    ({"max_repeats": None}, replace(image(), repeats=None)),
    ({"max_video_frames": None}, video(frames=None)),
])  # fmt: skip
def test_what_is_open_and_has_no_maximum_is_refused(entitlements, limits, demands):
    entitled = replace(entitlements["enterprise"], plan=replace(entitlements["enterprise"].plan, **limits))
    refused = refusal(entitled, demands)

    assert (type(refused), refused.code) == (UnreadableGraph, "decided_while_running")
    with pytest.raises(OverLimit):
        gate.fill_maxima(demands, entitled.plan)


def test_a_node_is_looked_at_again_with_its_real_values(entitlements):
    values = {"latents": LatentsField(latents_name="l"), "steps": 20, "unet": {"unet": model("sd-1")}}
    sizes = {"fits": (2048, 2048), "wide": (2049, 64)}

    def run(slug: str, name: str, **changed) -> None:
        asked = values | {"latents": LatentsField(latents_name=name)} | changed
        gate.check_node(entitlements[slug], "denoise_latents", asked, model_base=MODELS.get, latents_size=sizes.get)

    run("starter", "fits")
    with pytest.raises(OverLimit, match="up to 2048x2048"):
        run("starter", "wide")
    with pytest.raises(OverLimit, match="100 steps"):
        run("starter", "fits", steps=101)
    with pytest.raises(PlanForbids, match="flux"):
        run("starter", "fits", unet={"unet": model("flux", "sd-1")})


@pytest.mark.parametrize(("node_type", "values", "allowed"), [
    ("noise", {"width": 2048, "height": 2048}, True),
    ("noise", {"width": 2056, "height": 64}, False),
    ("animatediff_denoise", {"width": 512, "height": 512, "num_frames": 16, "steps": 10}, True),
    ("animatediff_denoise", {"width": 512, "height": 512, "num_frames": 17, "steps": 10}, False),
    ("svd_denoise", {"num_frames": 14, "steps": 10, "image": ImageField(image_name="x")}, False),
    ("range_of_size", {"size": 20_000}, False),
    ("img_blur", {"radius": 9_999}, True),
    ("img_pad_crop", {"image": ImageField(image_name="x"), "left": 0, "right": 2_000, "top": 0, "bottom": 0}, False),
    ("openai_image_generation", {"num_images": 1, "width": 512, "height": 512}, False),
])  # fmt: skip
def test_nodes_of_every_kind_are_looked_at_again(entitlements, node_type, values, allowed):
    try:
        gate.check_node(entitlements["starter"], node_type, values, model_base=MODELS.get, image_size={"x": (512, 512)}.get)
        passed = True
    except PlanRefused:
        passed = False

    assert passed is allowed
