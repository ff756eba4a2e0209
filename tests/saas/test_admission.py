"""Into the queue: plan, price and rows in one transaction; whatever is refused leaves nothing."""

from types import SimpleNamespace

import psycopg
import pytest
from saas import plan_graphs as graphs
from saas.customers import balance_of, give, holds, install_models, subscribe
from saas.people import rows
from saas.queues import Events, invoker

from invokeai_saas.accounts.identify import caller_now
from invokeai_saas.accounts.model import Principal
from invokeai_saas.credits.errors import InsufficientCredits
from invokeai_saas.db import tenancy
from invokeai_saas.jobs.admission import Admission, action_type
from invokeai_saas.jobs.queue_rows import QueueFull
from invokeai_saas.jobs.running import NotHeld
from invokeai_saas.plans.errors import OverLimit, PlanForbids, PlanRefused
from invokeai_saas.swaps.session_queue import PostgresSessionQueue

WORKFLOWS = {}


@pytest.fixture(autouse=True)
def workflows():
    WORKFLOWS.clear()


@pytest.fixture
def queue(database):
    made = PostgresSessionQueue(database, worker_id="w", admission=Admission(database, WORKFLOWS.get))
    made.start(invoker(Events()))
    install_models(database)
    return made


def customer(database, person, slug: str = "starter", credits: int = 1000):
    subscribe(database, person.user_id, slug)
    if credits:
        give(database, person.user_id, credits)
    return person


def enqueue(queue, person, graph, *groups, runs: int = 1) -> list[int]:
    """As the route does: in the person's context."""
    with tenancy.as_user(person.user_id):
        wanted = graphs.batch(graph, *groups, runs=runs)
        return sorted(queue.enqueue(queue_id="default", batch=wanted, prepend=False, user_id=person.user_id).item_ids)


def counts(database) -> tuple[int, int]:
    """Items and holds that there are."""
    found = rows(database, "SELECT (SELECT count(*) FROM session_queue) AS items, (SELECT count(*) FROM credit_holds) AS holds")[0]
    return found["items"], found["holds"]


def test_an_item_holds_its_price_with_what_explains_it(database, queue, ann):
    customer(database, ann)
    [item] = enqueue(queue, ann, graphs.still())
    held = holds(database)[item]

    assert (held["amount"], held["state"], held["gpu_tier"], held["user_id"]) == (5, "held", "basic", ann.user_id)
    assert {name: held["detail"][name] for name in ("action_type", "model_used", "width", "height", "steps", "plan")} == {
        "action_type": "txt2img", "model_used": "the sd-1 model", "width": 512, "height": 512, "steps": 20, "plan": "starter",
    }  # fmt: skip
    assert balance_of(database, ann.user_id).remaining_credits == 995


def test_each_item_of_a_batch_holds_its_own_price(database, queue, ann):
    customer(database, ann)
    items = enqueue(queue, ann, graphs.still(), [("denoise.steps", [20, 40, 60])], runs=2)

    assert [holds(database)[item]["amount"] for item in items] == [5, 10, 15, 5, 10, 15]


def test_a_video_holds_by_formula_b(database, queue, ann):
    customer(database, ann)
    [item] = enqueue(queue, ann, graphs.clip("animatediff"))

    assert (holds(database)[item]["amount"], holds(database)[item]["detail"]["action_type"]) == (32, "txt2vid")


def test_a_batch_that_is_only_partly_affordable_leaves_nothing(database, queue, ann):
    customer(database, ann, credits=14)
    with pytest.raises(InsufficientCredits) as refused:
        enqueue(queue, ann, graphs.still(), runs=3)

    assert (refused.value.remaining, refused.value.required, counts(database)) == (14, 15, (0, 0))
    assert balance_of(database, ann.user_id).remaining_credits == 14
    assert len(enqueue(queue, ann, graphs.still(), runs=2)) == 2


def test_a_queue_that_is_full_holds_nothing(database, queue, ann):
    customer(database, ann, "pro")
    with pytest.raises(QueueFull):
        enqueue(queue, ann, graphs.still(), runs=101)

    assert (counts(database), balance_of(database, ann.user_id).held_credits) == ((0, 0), 0)


REFUSED = {
    "no plan": (None, graphs.still(), PlanForbids, "plan_required"),
    "a model of another plan": ("starter", graphs.still("flux"), PlanForbids, "model_not_in_plan"),
    "a family of another plan": ("starter", graphs.clip("svd"), PlanForbids, "model_not_in_plan"),
    "video on trial": ("trial", graphs.clip("animatediff"), PlanForbids, "video_not_in_plan"),
    "too many frames": ("starter", graphs.clip("animatediff", frames=17), OverLimit, "frames_over_limit"),
    "too large": ("starter", graphs.clip("animatediff", width=528), OverLimit, "resolution_over_limit"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_plan_refuses_leaves_nothing(database, queue, ann, name):
    slug, graph, error, code = REFUSED[name]
    if slug is not None:
        customer(database, ann, slug)
    with pytest.raises(error) as refused:
        enqueue(queue, ann, graph)

    assert (refused.value.code, counts(database)) == (code, (0, 0))


def test_a_refusal_names_the_cheapest_plan_that_would_allow_it(database, queue, ann):
    customer(database, ann)
    with pytest.raises(OverLimit) as refused:
        enqueue(queue, ann, graphs.clip("animatediff", frames=48))

    assert refused.value.body() | {"message": ""} == {
        "error": "frames_over_limit", "message": "", "limit_type": "frames", "limit": 16, "value": 48, "allowed_by": "pro", "nearest": 16,
    }  # fmt: skip


def hidden_behind(name: str):
    """A graph that asks for a Flux picture where a first look does not see it."""
    flux = graphs.still_nodes("flux")
    if name == "call_saved_workflow":
        WORKFLOWS["w"] = graphs.workflow(*flux, edges=graphs.STILL_EDGES)
        return graphs.graph({"id": "call", "type": "call_saved_workflow", "workflow_id": "w"})
    if name == "iterate":
        nodes = ({"id": "range", "type": "range", "start": 0, "stop": 2, "step": 1}, {"id": "each", "type": "iterate"})
        return graphs.graph(*nodes, *flux, edges=("range.collection > each.collection", "each.item > noise.seed", *graphs.STILL_EDGES))
    if name == "collect":
        return graphs.graph(*flux, {"id": "all", "type": "collect"}, edges=(*graphs.STILL_EDGES, "decode.image > all.item"))
    nodes = graphs.still_nodes("flux")
    nodes[0]["model"] = graphs.model("flux", "sd-1")
    return graphs.graph(*nodes, edges=graphs.STILL_EDGES)


@pytest.mark.parametrize("name", ["call_saved_workflow", "iterate", "collect", "a lie about the base"])
def test_a_forbidden_model_is_found_wherever_it_hides(database, queue, ann, name):
    customer(database, ann)
    with pytest.raises(PlanForbids) as refused:
        enqueue(queue, ann, hidden_behind(name))

    assert (refused.value.code, refused.value.value, counts(database)) == ("model_not_in_plan", "flux", (0, 0))


@pytest.mark.parametrize(("field", "amount"), [("num_frames", 32), ("width", 32)])
def test_a_number_that_an_edge_brings_is_held_at_the_plans_maximum(database, queue, ann, field, amount):
    customer(database, ann)
    nodes = [
        {"id": "main", "type": "main_model_loader", "model": graphs.model("sd-1")},
        {"id": "loader", "type": "animatediff_model_loader", "motion_module": graphs.model("motion", "sd-1")},
        {"id": "number", "type": "rand_int", "low": 8, "high": 9},
        {
            "id": "denoise",
            "type": "animatediff_denoise",
            "num_frames": 16,
            "width": 512,
            "height": 512,
            field: 8 if field == "num_frames" else 64,
        },
    ]
    edges = ("main.unet > loader.unet", "loader.model > denoise.model", f"number.value > denoise.{field}")
    [item] = enqueue(queue, ann, graphs.graph(*nodes, edges=edges))

    assert holds(database)[item]["amount"] == amount


def test_iterations_hold_as_often_as_they_run(database, queue, ann):
    customer(database, ann)
    nodes = ({"id": "range", "type": "range", "start": 0, "stop": 3, "step": 1}, {"id": "each", "type": "iterate"})
    edges = ("range.collection > each.collection", "each.item > noise.seed", *graphs.STILL_EDGES)
    [item] = enqueue(queue, ann, graphs.graph(*nodes, *graphs.still_nodes("sd-1"), edges=edges))

    assert holds(database)[item]["amount"] == 15


def test_a_called_workflow_is_priced_with_its_caller_and_pinned(database, queue, ann):
    customer(database, ann)
    WORKFLOWS["w"] = graphs.workflow(*graphs.still_nodes("sd-1"), edges=graphs.STILL_EDGES)
    [item] = enqueue(queue, ann, graphs.graph({"id": "call", "type": "call_saved_workflow", "workflow_id": "w"}))
    held = holds(database)[item]

    assert (held["amount"], list(held["detail"]["pins"])) == (5, ["w"])


def by_key(person) -> Principal:
    return Principal(account=person.account, kind="api_key", key_id="k")


@pytest.mark.parametrize(("slug", "code"), [("starter", "api_access_not_in_plan"), ("pro", None)])
def test_an_api_key_needs_a_plan_that_has_them(database, queue, ann, slug, code):
    customer(database, ann, slug)
    token = caller_now.set(by_key(ann))
    try:
        if code is None:
            assert len(enqueue(queue, ann, graphs.still())) == 1
        else:
            with pytest.raises(PlanForbids) as refused:
                enqueue(queue, ann, graphs.still())
            assert refused.value.code == code
    finally:
        caller_now.reset(token)


def fill_storage(dsn, user_id: str, used: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute("INSERT INTO storage_used (user_id, bytes) VALUES (%s, %s)", (user_id, used))


@pytest.mark.parametrize(("credits", "error"), [(1000, PlanForbids), (1, InsufficientCredits)])
def test_a_full_storage_refuses_after_the_credits_did_not(database, queue, ann, dsn, credits, error):
    customer(database, ann, credits=credits)
    fill_storage(dsn, ann.user_id, 20_000_000_000)
    with pytest.raises(error):
        enqueue(queue, ann, graphs.still())

    assert (counts(database), balance_of(database, ann.user_id).held_credits) == ((0, 0), 0)


def end(database, item: int, status: str) -> None:
    rows(database, "UPDATE session_queue SET status = %s WHERE item_id = %s", status, item)


def retry(queue, person, items: list[int]):
    with tenancy.as_user(person.user_id):
        return queue.retry_items_by_id("default", items)


def test_a_retry_holds_again(database, queue, ann):
    customer(database, ann)
    [item] = enqueue(queue, ann, graphs.still())
    end(database, item, "failed")
    retry(queue, ann, [item])
    held = holds(database)

    assert [row["state"] for row in held.values()] == ["released", "held"]
    assert [row["amount"] for row in held.values()] == [5, 5]
    assert balance_of(database, ann.user_id).held_credits == 5


def test_retries_that_are_only_partly_affordable_leave_nothing(database, queue, ann):
    customer(database, ann, credits=10)
    items = enqueue(queue, ann, graphs.still(), runs=2)
    for item in items:
        end(database, item, "failed")
    [third] = enqueue(queue, ann, graphs.still())
    with pytest.raises(InsufficientCredits):
        retry(queue, ann, items)

    assert counts(database) == (3, 3)
    assert holds(database)[third]["state"] == "held"


def test_a_retry_is_gated_by_the_plan_of_today(database, queue, ann):
    customer(database, ann, "pro")
    [item] = enqueue(queue, ann, graphs.still("flux"))
    end(database, item, "failed")
    rows(database, "UPDATE user_subscriptions SET plan_id = (SELECT plan_id FROM subscription_plans WHERE slug = 'starter')")
    with pytest.raises(PlanForbids):
        retry(queue, ann, [item])

    assert counts(database) == (1, 1)


def test_a_called_workflow_needs_the_open_hold_of_its_root(database, queue, ann):
    customer(database, ann)
    [item] = enqueue(queue, ann, graphs.still())
    parent = SimpleNamespace(item_id=item, root_item_id=None, user_id=ann.user_id)
    with tenancy.as_user(ann.user_id), database.postgres() as cursor:
        queue._admission.admit_child(cursor, parent)
    end(database, item, "canceled")
    with pytest.raises(NotHeld), tenancy.as_user(ann.user_id), database.postgres() as cursor:
        queue._admission.admit_child(cursor, parent)


def test_without_admission_nothing_is_gated_or_held(database, ann):
    queue = PostgresSessionQueue(database, worker_id="w")
    queue.start(invoker(Events()))

    assert (len(enqueue(queue, ann, graphs.still("flux"), runs=3)), counts(database)) == (3, (3, 0))


def test_a_suspended_subscription_enqueues_nothing(database, queue, ann):
    customer(database, ann)
    rows(
        database,
        "UPDATE user_subscriptions SET status = 'past_due', past_due_since = now() - interval '9 d', grace_until = now() - interval '1 d'",
    )
    with pytest.raises(PlanRefused) as refused:
        enqueue(queue, ann, graphs.still())

    assert refused.value.code == "subscription_suspended"


@pytest.mark.parametrize(
    ("graph", "nodes", "expected"),
    [
        (graphs.still(), {"noise", "denoise_latents"}, "txt2img"),
        (graphs.still(), {"i2l", "denoise_latents"}, "img2img"),
        (graphs.still(), {"i2l", "create_denoise_mask"}, "inpaint"),
        (graphs.still(), {"controlnet"}, "controlnet"),
        (graphs.clip("animatediff"), {"animatediff_denoise"}, "txt2vid"),
        (graphs.clip("svd"), {"svd_denoise"}, "img2vid"),
        (graphs.graph({"id": "u", "type": "esrgan"}), {"esrgan"}, "upscale"),
        (graphs.graph({"id": "a", "type": "add"}), {"add"}, "other"),
    ],
)
def test_a_usage_record_says_what_was_made(graph, nodes, expected):
    assert action_type(graphs.read(graph), nodes) == expected
