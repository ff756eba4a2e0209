"""The gate, against a table made from the plans' own rows: each limit at its value, one below and one above, on each plan."""

from dataclasses import replace
from decimal import Decimal
from itertools import product

import pytest
from saas.gated import SLUGS, answer, image, refusal, video
from saas.gated import entitlements as entitlements
from saas.plan_graphs import MODELS, batch, clip, graph, model, read, still, still_nodes

from invokeai_saas.plans import gate
from invokeai_saas.plans.demands import Demands, ProviderCall, SizeDemand
from invokeai_saas.plans.errors import PlanForbids
from invokeai_saas.plans.model import Plan

FAMILIES = ["animatediff", "svd", "z-image-video", "hunyuan-video", "wan"]
GB = 1_000_000_000


def allowed_families(plan: Plan) -> list[str]:
    return [each for each in FAMILIES if plan.can_generate_video and (plan.video_bases is None or each in plan.video_bases)]


@pytest.mark.parametrize("slug", SLUGS)
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_frames_at_each_plans_limit(entitlements, slug, beyond):
    entitled = entitlements[slug]
    limit = entitled.plan.max_video_frames
    for family in FAMILIES:
        expected = (200, "ok") if family in allowed_families(entitled.plan) else (403, "model_not_in_plan")
        if not entitled.plan.can_generate_video:
            expected = (403, "video_not_in_plan")
        elif beyond > 0:
            # Before the model is looked at (T-26).
            expected = (400, "frames_over_limit")

        assert answer(entitled, video(family, frames=limit + beyond)) == expected, family


@pytest.mark.parametrize("slug", SLUGS)
@pytest.mark.parametrize("kind", ["video", "image"])
def test_sides_at_each_plans_limit_in_both_orientations(entitlements, slug, kind):
    entitled, wrong = entitlements[slug], []
    plan = entitled.plan
    if kind == "video" and not plan.can_generate_video:
        assert answer(entitled, video()) == (403, "video_not_in_plan")
        return
    most_long, most_short = getattr(plan, f"max_{kind}_long_side"), getattr(plan, f"max_{kind}_short_side")
    for more_long, more_short, upright in product((-1, 0, 1), (-1, 0, 1), (False, True)):
        sides = (most_long + more_long, most_short + more_short)
        width, height = reversed(sides) if upright else sides
        fits = max(sides) <= most_long and min(sides) <= most_short
        asked = video(allowed_families(plan)[0], width=width, height=height) if kind == "video" else image(width=width, height=height)
        if answer(entitled, asked) != ((200, "ok") if fits else (400, "resolution_over_limit")):
            wrong.append((width, height))

    assert wrong == []


@pytest.mark.parametrize("slug", SLUGS)
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_steps_repeats_and_storage_at_each_plans_limit(entitlements, slug, beyond):
    entitled = entitlements[slug]
    plan = entitled.plan
    over = beyond > 0

    assert answer(entitled, image(steps=plan.max_steps + beyond)) == ((400, "steps_over_limit") if over else (200, "ok"))
    assert answer(entitled, replace(image(), repeats=plan.max_repeats + beyond)) == ((400, "repeats_over_limit") if over else (200, "ok"))
    if plan.max_storage_gb is not None:
        used = plan.max_storage_gb * GB + beyond
        assert answer(entitled, image(), storage_used_bytes=used) == ((200, "ok") if beyond < 0 else (403, "storage_full"))


@pytest.mark.parametrize("slug", SLUGS)
def test_models_third_parties_and_keys_are_as_the_row_says(entitlements, slug):
    entitled = entitlements[slug]
    plan, levels = entitled.plan, ["sd_only", "flux_included", "full"]
    reach = levels[: levels.index(plan.model_access) + 1]
    call = Demands(provider_calls=(ProviderCall(node_type="n", node_path="n", model=None, pictures=1, width=1, height=1),))

    for base in (*entitled.access_levels, "qwen-image", "unheard-of"):
        expected = (200, "ok") if entitled.access_levels.get(base, "full") in reach else (403, "model_not_in_plan")
        assert answer(entitled, image(base)) == expected, base
    assert answer(entitled, call) == ((200, "ok") if plan.third_party_api_access else (403, "third_party_api_not_in_plan"))
    assert answer(entitled, image(), api_key=True) == ((200, "ok") if plan.api_access else (403, "api_access_not_in_plan"))


@pytest.mark.parametrize(("slug", "family", "frames", "size", "expected"), [
    ("trial", "animatediff", 16, (512, 512), (403, "video_not_in_plan")),  # T-22
    ("starter", "animatediff", 16, (512, 512), (200, "ok")),  # T-23
    ("starter", "animatediff", 48, (512, 512), (400, "frames_over_limit")),  # T-23
    ("starter", "animatediff", 16, (512, 768), (400, "resolution_over_limit")),  # T-24
    ("starter", "svd", 16, (512, 512), (403, "model_not_in_plan")),  # T-25
    ("starter", "svd", 48, (512, 512), (400, "frames_over_limit")),  # T-26
    ("pro", "hunyuan-video", 48, (1280, 720), (403, "model_not_in_plan")),  # T-27
    ("enterprise", "hunyuan-video", 128, (1920, 1080), (200, "ok")),  # T-27, T-10's shape and T-11's
    ("enterprise", "hunyuan-video", 128, (1280, 720), (200, "ok")),  # T-10
    ("enterprise", "hunyuan-video", 128, (1080, 1920), (200, "ok")),
    ("enterprise", "hunyuan-video", 129, (1280, 720), (400, "frames_over_limit")),
    ("tester", "z-image-video", 48, (1280, 720), (200, "ok")),
    ("pro", "svd", 25, (576, 1024), (200, "ok")),
])  # fmt: skip
def test_the_requirements_own_cases(entitlements, slug, family, frames, size, expected):
    made = clip(family, frames=frames, width=size[0], height=size[1])

    assert answer(entitlements[slug], read(made)) == expected


# One shape.


def test_a_refusal_tells_limit_value_nearest_and_the_cheapest_plan_that_would_allow_it(entitlements):
    refused = refusal(entitlements["starter"], video(frames=48, width=512, height=512))

    assert refused.body() == {
        "error": "frames_over_limit",
        "message": "expected up to 16 frames on the current plan, got 48",
        "limit_type": "frames",
        "limit": 16,
        "value": 48,
        "allowed_by": "pro",
        "nearest": 16,
    }


@pytest.mark.parametrize(("slug", "demands", "also", "told"), [
    ("trial", video(), {}, ("video", False, True, "starter", None)),
    ("starter", video(width=512, height=768), {},
     ("resolution", {"long_side": 512, "short_side": 512}, {"width": 512, "height": 768}, "pro", {"width": 512, "height": 512})),
    ("pro", video(width=720, height=1300), {},
     ("resolution", {"long_side": 1280, "short_side": 720}, {"width": 720, "height": 1300}, "enterprise", {"width": 720, "height": 1280})),
    ("pro", video("hunyuan-video", frames=49), {}, ("frames", 48, 49, "enterprise", 45)),
    ("enterprise", video("hunyuan-video", frames=129), {}, ("frames", 128, 129, None, 125)),
    ("starter", image("flux"), {}, ("model", {"model_access": "sd_only", "video_bases": ["animatediff"]}, "flux", "pro", None)),
    ("starter", image(steps=101), {}, ("steps", 100, 101, "pro", 100)),
    ("starter", replace(image(), repeats=51), {}, ("repeats", 50, 51, "pro", 50)),
    ("starter", image(), {"storage_used_bytes": 150 * GB}, ("storage", 20 * GB, 150 * GB, "studio", None)),
    ("starter", image(), {"api_key": True}, ("api_access", False, None, "pro", None)),
])  # fmt: skip
def test_every_refusal_has_the_one_shape(entitlements, slug, demands, also, told):
    refused = refusal(entitlements[slug], demands, **also)
    body = refused.body()

    assert (body["limit_type"], body["limit"], body["value"], body["allowed_by"], body.get("nearest")) == told
    assert {"error", "message", "limit_type", "limit", "value", "allowed_by"} == body.keys() - {"nearest"}


def test_the_plan_that_is_named_allows_all_of_it_and_is_for_sale(entitlements):
    starter = entitlements["starter"]
    both = Demands(jobs=(*video(frames=48).jobs, *video("hunyuan-video").jobs))
    without_pro = replace(starter, catalog=tuple(plan for plan in starter.catalog if plan.slug != "pro"))

    assert refusal(starter, both).allowed_by == "enterprise"
    assert refusal(without_pro, video(frames=48)).allowed_by == "studio"
    assert refusal(replace(starter, catalog=()), video(frames=48)).allowed_by is None


# The order of decision 18.


def test_refusals_come_in_their_order(entitlements):
    """Everything is wrong; then one thing after the other is put right."""
    plan = entitlements["starter"].plan
    wrong = Demands(
        jobs=(*video("svd", frames=99, width=4000, height=4000).jobs, *image("flux", steps=999).jobs),
        models=(MODELS["flux"],),
        provider_calls=(ProviderCall(node_type="n", node_path="n", model=None, pictures=1, width=1, height=1),),
        repeats=9_999,
        unknown=("new_node",),
    )
    off = replace(plan, api_access=False, can_generate_video=False)
    steps = [
        ({}, (403, "api_access_not_in_plan")),
        ({"api_access": True}, (403, "video_not_in_plan")),
        ({"can_generate_video": True}, (400, "unknown_node")),
        ({"unknown": ()}, (400, "frames_over_limit")),
        ({"max_video_frames": 99}, (400, "resolution_over_limit")),
        ({"max_video_long_side": 4000, "max_video_short_side": 4000}, (400, "steps_over_limit")),
        ({"max_steps": 999}, (400, "repeats_over_limit")),
        ({"max_repeats": 9_999}, (403, "model_not_in_plan")),
        ({"video_bases": ("svd",)}, (403, "model_not_in_plan")),
        ({"model_access": "flux_included"}, (403, "third_party_api_not_in_plan")),
        ({"third_party_api_access": True}, (403, "storage_full")),
        ({"max_storage_gb": 99}, (200, "ok")),
    ]
    seen = []
    for change, _ in steps:
        wrong = replace(wrong, unknown=()) if "unknown" in change else wrong
        off = replace(off, **{name: value for name, value in change.items() if name != "unknown"})
        seen.append(answer(replace(entitlements["starter"], plan=off), wrong, api_key=True, storage_used_bytes=50 * GB))

    assert seen == [expected for _, expected in steps]


# Without a plan.


@pytest.mark.parametrize(("status", "suspended", "code", "allowed_by"), [
    ("none", False, "plan_required", "starter"),
    ("expired", True, "subscription_over", "starter"),
    ("canceled", True, "subscription_over", "starter"),
    ("past_due", True, "subscription_suspended", None),
])  # fmt: skip
def test_without_a_running_plan_nothing_is_allowed(entitlements, status, suspended, code, allowed_by):
    plan = entitlements["pro"].plan if status == "past_due" else None
    refused = refusal(replace(entitlements["pro"], plan=plan, status=status, suspended=suspended), Demands())

    assert (refused.status, refused.code, refused.value, refused.allowed_by) == (403, code, status, allowed_by)


def test_past_due_within_the_grace_goes_on(entitlements):
    assert answer(replace(entitlements["pro"], status="past_due"), image()) == (200, "ok")


# Whole graphs.


def test_a_batch_is_counted_with_its_runs_and_its_iterations(entitlements):
    looped = graph(
        *still_nodes("sd-1"),
        {"id": "list", "type": "range_of_size", "size": 5},
        {"id": "each", "type": "iterate"},
        edges=("loader.unet > denoise.unet", "noise.noise > denoise.noise", "list.collection > each.collection", "each.item > noise.seed"),
    )
    fits, over = (batch(looped, [("denoise.steps", [5] * 5)], runs=runs) for runs in (2, 3))

    assert answer(entitlements["starter"], read(fits)) == (200, "ok")
    assert answer(entitlements["starter"], read(over)) == (400, "repeats_over_limit")


def test_one_forbidden_item_of_a_batch_refuses_it(entitlements):
    assert answer(entitlements["starter"], read(batch(still(), [("noise.width", [512, 2056])]))) == (400, "resolution_over_limit")


def test_a_z_image_checkpoint_opened_for_video_asks_for_both(entitlements):
    made = graph(
        {"id": "loader", "type": "z_image_video_model_loader", "model": model("z-image")},
        {"id": "denoise", "type": "z_image_video_denoise", "num_frames": 16},
        edges=("loader.transformer > denoise.transformer",),
    )
    only_images = replace(entitlements["pro"].plan, video_bases=("svd",))

    assert answer(entitlements["pro"], read(made)) == (200, "ok")
    assert answer(replace(entitlements["pro"], plan=only_images), read(made)) == (403, "model_not_in_plan")


def test_a_size_that_nothing_generates_from_is_bounded_too(entitlements):
    demands = Demands(sizes=(SizeDemand(kind="image", node_type="blank_image", node_path="n", width=50_000, height=16),))

    assert answer(entitlements["enterprise"], demands) == (400, "resolution_over_limit")


def test_an_upload_must_fit_into_the_quota(entitlements):
    starter = entitlements["starter"]
    gate.check_upload(starter, storage_used_bytes=20 * GB - 10, adding_bytes=10)
    gate.check_upload(entitlements["enterprise"], storage_used_bytes=10**15, adding_bytes=10**12)

    with pytest.raises(PlanForbids, match="the storage is full"):
        gate.check_upload(starter, storage_used_bytes=20 * GB - 10, adding_bytes=11)
    with pytest.raises(PlanForbids, match="the storage is full"):
        gate.check_upload(starter, storage_used_bytes=20 * GB)


# T-35, S3-034, decision 20.


@pytest.mark.parametrize(("slug", "margin"), [("starter", 18), ("pro", 54), ("studio", 108)])
def test_a_paid_plan_leaves_the_margin_that_was_reckoned(entitlements, slug, margin):
    plan = entitlements[slug].plan

    assert plan.monthly_margin == margin
    assert plan.monthly_margin / plan.monthly_price == Decimal("0.72")


def test_no_tier_is_sold_below_its_cost(entitlements):
    margins = {slug: 1 - each.plan.cost_per_gpu_second / each.plan.price_per_gpu_second for slug, each in entitlements.items()}

    assert entitlements["enterprise"].plan.monthly_margin is None
    assert {slug: round(float(margin), 3) for slug, margin in margins.items()} == dict.fromkeys(SLUGS, 0.72)
