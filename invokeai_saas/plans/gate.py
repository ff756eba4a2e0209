"""One gate for every way in: an entitlement and what is asked for, in; nothing, or the one refusal that comes first, out. Pure.

    403 no plan, suspended, API keys or video not in it   ─►   400 frames, sizes, steps, repeats, what cannot be told
    ─►   403 model or feature not in it   ─►   (402 by the hold)   ─►   403 storage full            (decision 18)

Sides are compared long to long and short to short. A refusal names the limit, the value and the cheapest plan that
would let all of it pass.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from invokeai_saas.plans.demands import Demands, JobDemand, Model, ProviderCall, SizeDemand
from invokeai_saas.plans.errors import OverLimit, PlanForbids, PlanRefused, UnreadableGraph
from invokeai_saas.plans.families import ANY_BASE, PROVIDER_BASE, frames_within, side_within, video_family
from invokeai_saas.plans.model import ACCESS_ORDER, Entitlement, Plan

NO_VIDEO = "video generation is not available on the current plan"
Refusals = Iterator[PlanRefused]
Sized = JobDemand | SizeDemand


def check(entitlement: Entitlement, demands: Demands, *, api_key: bool = False, storage_used_bytes: int = 0) -> None:
    """Raise the first refusal, in decision 18's order. Credits are the hold's business: it comes after everything but storage."""
    plan = demand_plan(entitlement)
    levels = entitlement.access_levels
    first = next(_refusals(plan, levels, demands, api_key=api_key, storage_used_bytes=storage_used_bytes), None)
    if first is None:
        return
    if not isinstance(first, UnreadableGraph):
        first.allowed_by = _cheapest(entitlement, demands, api_key=api_key, storage_used_bytes=storage_used_bytes)
    raise first


def check_api_key(entitlement: Entitlement) -> None:
    """An API key wants to do something."""
    check(entitlement, Demands(), api_key=True)


def check_upload(entitlement: Entitlement, *, storage_used_bytes: int, adding_bytes: int = 0) -> None:
    """A file wants in: 403 when it would not fit into the quota. Nothing that lies there already is touched."""
    check(entitlement, Demands(), storage_used_bytes=storage_used_bytes + max(0, adding_bytes - 1))


def check_node(
    entitlement: Entitlement,
    node_type: str,
    values: Mapping[str, Any],
    *,
    model_base: Callable[[str], Model | None],
    image_size: Callable[[str], tuple[int, int] | None] | None = None,
    latents_size: Callable[[str], tuple[int, int] | None] | None = None,
) -> None:
    """Look again at a node that is about to run: `values` are its fields with its inputs filled in, the rest as demands_of() takes it.

    `latents_size` tells the size in pixels that stored latents will have: what was left open when the graph was enqueued ends here.
    """
    from invokeai_saas.plans.graph_demands import demands_of_node

    found = demands_of_node(node_type, values, model_base=model_base, image_size=image_size, latents_size=latents_size)
    # How often it runs was judged when the graph was enqueued; one node cannot tell.
    check(entitlement, replace(found, repeats=1))


def fill_maxima(demands: Demands, plan: Plan) -> Demands:
    """The plan's maximum for every number that only the running graph knows; raises OverLimit where the plan has none."""
    return replace(
        demands,
        jobs=tuple(_filled_job(job, plan) for job in demands.jobs),
        sizes=tuple(_filled_size(size, plan) for size in demands.sizes),
        provider_calls=tuple(_filled_call(call, plan) for call in demands.provider_calls),
        repeats=_or_maximum(demands.repeats, plan.max_repeats, "max_repeats"),
        items=tuple(fill_maxima(item, plan) for item in demands.items),
    )


def demand_plan(entitlement: Entitlement) -> Plan:
    """The plan that runs; raises PlanForbids where none does, or one is suspended or over."""
    plan = entitlement.plan
    if plan is not None and not entitlement.suspended:
        return plan
    cheapest = next((each.slug for each in _for_sale(entitlement)), None)
    if entitlement.suspended and entitlement.status == "past_due":
        message = "the subscription is suspended: its last payment failed. Pay it to go on"
        raise PlanForbids("subscription_suspended", message, limit_type="subscription", value=entitlement.status)
    if entitlement.suspended:
        message = f"the subscription is over ({entitlement.status}): choose a plan to go on"
        raise PlanForbids("subscription_over", message, limit_type="subscription", value=entitlement.status, allowed_by=cheapest)
    message = "expected a plan, got none: choose one under Plan and credits, or ask an administrator for one"
    raise PlanForbids("plan_required", message, limit_type="subscription", value=entitlement.status, allowed_by=cheapest)


def _refusals(plan: Plan, levels: Mapping[str, str], demands: Demands, *, api_key: bool, storage_used_bytes: int) -> Refusals:
    """All of them, in the order in which they count."""
    yield from _features(plan, demands, api_key=api_key)
    yield from _readable(demands)
    all_sized: tuple[Sized, ...] = (*demands.jobs, *demands.sizes)
    for sized in all_sized:
        yield from _frames(plan, sized)
        yield from _sides(plan, sized)
    for call in demands.provider_calls:
        yield from _provider_sides(plan, call)
    yield from _counts(plan, demands)
    yield from _models(plan, levels, demands)
    yield from _providers(plan, demands)
    yield from _storage(plan, storage_used_bytes)


def _features(plan: Plan, demands: Demands, *, api_key: bool) -> Refusals:
    if api_key and not plan.api_access:
        yield PlanForbids("api_access_not_in_plan", "API keys are not available on the current plan", limit_type="api_access", limit=False)
    if demands.has_video and not plan.can_generate_video:
        yield PlanForbids("video_not_in_plan", NO_VIDEO, limit_type="video", limit=False, value=True)


def _readable(demands: Demands) -> Refusals:
    for node_type in demands.unknown:
        message = f"expected nodes whose demands are known, got {node_type!r}: ask the operator to describe it"
        yield UnreadableGraph("unknown_node", message, limit_type="graph", value=node_type)


def _frames(plan: Plan, sized: Sized) -> Refusals:
    limit = plan.max_video_frames
    if sized.kind != "video":
        return
    if sized.frames is None and limit is None:
        yield _undecided("frames", sized.node_type)
    elif sized.frames is not None and limit is not None and sized.frames > limit:
        nearest = frames_within(limit, sized.base if isinstance(sized, JobDemand) else "")
        message = f"expected up to {limit} frames on the current plan, got {sized.frames}"
        yield OverLimit("frames_over_limit", message, limit_type="frames", limit=limit, value=sized.frames, nearest=nearest)


def _sides(plan: Plan, sized: Sized) -> Refusals:
    if sized.kind == "video":
        yield from _over_sides(plan.max_video_long_side, plan.max_video_short_side, sized)
    else:
        yield from _over_sides(plan.max_image_long_side, plan.max_image_short_side, sized)


def _provider_sides(plan: Plan, call: ProviderCall) -> Refusals:
    if call.width is not None and call.height is not None:
        yield from _over_sides(plan.max_image_long_side, plan.max_image_short_side, call)


def _over_sides(most_long: int | None, most_short: int | None, sized: Sized | ProviderCall) -> Refusals:
    width, height = sized.width, sized.height
    known = [side for side in (width, height) if side is not None]
    if len(known) < 2 and None in (most_long, most_short):
        yield _undecided("size", sized.node_type)
    # Of an open pair, the known side alone must fit as a long side; the other one becomes the plan's maximum.
    over_long = most_long is not None and known and max(known) > most_long
    over_short = most_short is not None and len(known) == 2 and min(known) > most_short
    if over_long or over_short:
        value = {"width": width, "height": height}
        limit = {"long_side": most_long, "short_side": most_short}
        message = f"expected up to {most_long}x{most_short} on the current plan, got {width}x{height}"
        nearest = _nearest_size(width, height, most_long, most_short)
        yield OverLimit("resolution_over_limit", message, limit_type="resolution", limit=limit, value=value, nearest=nearest)


def _nearest_size(width: int | None, height: int | None, most_long: int | None, most_short: int | None) -> dict[str, int | None]:
    wide = (width or 0) >= (height or 0)
    across, down = (most_long, most_short) if wide else (most_short, most_long)
    return {"width": side_within(width, across), "height": side_within(height, down)}


def _counts(plan: Plan, demands: Demands) -> Refusals:
    for job in demands.jobs:
        yield from _count("steps", job.steps, plan.max_steps, job.node_type)
    yield from _count("repeats", demands.repeats, plan.max_repeats, "iterate")
    for job in demands.jobs:
        yield from _count("repeats", job.batch_size, plan.max_repeats, job.node_type)
    for call in demands.provider_calls:
        yield from _count("repeats", call.pictures, plan.max_repeats, call.node_type)


def _count(what: str, value: int | None, limit: int | None, node_type: str) -> Refusals:
    if value is None and limit is None:
        yield _undecided(what, node_type)
    elif value is not None and limit is not None and value > limit:
        message = f"expected up to {limit} {what} on the current plan, got {value}"
        yield OverLimit(f"{what}_over_limit", message, limit_type=what, limit=limit, value=value, nearest=limit)


def _models(plan: Plan, levels: Mapping[str, str], demands: Demands) -> Refusals:
    for job in demands.jobs:
        if job.kind == "video" and not _family_allowed(plan, levels, job.base):
            yield _model_refused(plan, job.base, job.model_name)
    for model in demands.models:
        if not model_allowed(plan, levels, model):
            yield _model_refused(plan, video_family(model) or model.base, model.name)


def model_allowed(plan: Plan, levels: Mapping[str, str], model: Model) -> bool:
    """Whether the plan may load the model: its base's level, or for video its family. An unknown base asks for `full`."""
    if model.base in (ANY_BASE, PROVIDER_BASE):
        return True
    family = video_family(model)
    return _family_allowed(plan, levels, family) if family is not None else _level_reached(plan, levels, model.base)


def _family_allowed(plan: Plan, levels: Mapping[str, str], family: str) -> bool:
    if not plan.can_generate_video:
        return False
    return plan.video_bases is None or family in plan.video_bases


def _level_reached(plan: Plan, levels: Mapping[str, str], base: str) -> bool:
    needed = levels.get(base, "full")
    return [*ACCESS_ORDER].index(plan.model_access) >= [str(level) for level in ACCESS_ORDER].index(needed)


def _model_refused(plan: Plan, base: str, name: str | None) -> PlanForbids:
    limit = {"model_access": plan.model_access, "video_bases": None if plan.video_bases is None else list(plan.video_bases)}
    message = f"{name or base} ({base}) is not available on the current plan"
    return PlanForbids("model_not_in_plan", message, limit_type="model", limit=limit, value=base)


def _providers(plan: Plan, demands: Demands) -> Refusals:
    if plan.third_party_api_access:
        return
    for call in demands.provider_calls:
        message = f"external providers ({call.node_type}) are not available on the current plan"
        yield PlanForbids("third_party_api_not_in_plan", message, limit_type="third_party_api", limit=False, value=call.node_type)


def _storage(plan: Plan, storage_used_bytes: int) -> Refusals:
    quota = plan.storage_bytes
    if quota is not None and storage_used_bytes >= quota:
        message = f"the storage is full: {storage_used_bytes} of {quota} bytes are used. Delete something, or choose a larger plan"
        yield PlanForbids("storage_full", message, limit_type="storage", limit=quota, value=storage_used_bytes)


def _undecided(what: str, node_type: str) -> UnreadableGraph:
    message = f"expected a fixed number for the {what} of {node_type!r}: the plan has no maximum that could stand for it"
    return UnreadableGraph("decided_while_running", message, limit_type=what)


def _for_sale(entitlement: Entitlement) -> list[Plan]:
    """Paid, active plans, the cheapest first; a price agreed by contract is the highest."""
    sold = [plan for plan in entitlement.catalog if plan.plan_type == "paid" and plan.is_active]
    return sorted(sold, key=lambda plan: (plan.monthly_price is None, plan.monthly_price or 0, plan.slug))


def _cheapest(entitlement: Entitlement, demands: Demands, *, api_key: bool, storage_used_bytes: int) -> str | None:
    for plan in _for_sale(entitlement):
        refusals = _refusals(plan, entitlement.access_levels, demands, api_key=api_key, storage_used_bytes=storage_used_bytes)
        if next(refusals, None) is None:
            return plan.slug
    return None


def _or_maximum(value: int | None, maximum: int | None, name: str) -> int:
    if value is not None:
        return value
    if maximum is None:
        raise _undecided(name, "a node")
    return maximum


def _filled_sides(width: int | None, height: int | None, most_long: int | None, most_short: int | None) -> tuple[int, int]:
    """The largest size that fits the plan and keeps what is known."""
    if width is not None and height is not None:
        return width, height
    if most_long is None or most_short is None:
        raise _undecided("size", "a node")
    if width is None and height is None:
        return most_long, most_short
    known = width if width is not None else height
    assert known is not None
    other = most_long if known <= most_short else most_short
    return (known, other) if width is not None else (other, known)


def _filled_job(job: JobDemand, plan: Plan) -> JobDemand:
    if not job.decided_while_running:
        return job
    video = job.kind == "video"
    most_long, most_short = (
        (plan.max_video_long_side, plan.max_video_short_side) if video else (plan.max_image_long_side, plan.max_image_short_side)
    )
    width, height = _filled_sides(job.width, job.height, most_long, most_short)
    return replace(
        job,
        width=width,
        height=height,
        frames=_or_maximum(job.frames, plan.max_video_frames if video else 1, "frames"),
        steps=_or_maximum(job.steps, plan.max_steps, "steps"),
        batch_size=_or_maximum(job.batch_size, plan.max_repeats, "repeats"),
        times=_or_maximum(job.times, plan.max_repeats, "repeats"),
        upper_bound=True,
    )


def _filled_size(size: SizeDemand, plan: Plan) -> SizeDemand:
    video = size.kind == "video"
    most_long, most_short = (
        (plan.max_video_long_side, plan.max_video_short_side) if video else (plan.max_image_long_side, plan.max_image_short_side)
    )
    width, height = _filled_sides(size.width, size.height, most_long, most_short)
    frames = _or_maximum(size.frames, plan.max_video_frames if video else 1, "frames")
    return replace(size, width=width, height=height, frames=frames, times=_or_maximum(size.times, plan.max_repeats, "repeats"))


def _filled_call(call: ProviderCall, plan: Plan) -> ProviderCall:
    pictures = _or_maximum(call.pictures, plan.max_repeats, "repeats")
    return replace(call, pictures=pictures, times=_or_maximum(call.times, plan.max_repeats, "repeats"))
