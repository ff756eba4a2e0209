"""Which workers may run what: by what the models need, capped by the plan; and a clear no before anything is written if there is none."""

import math

import pytest
from saas import plan_graphs as graphs
from saas.customers import give, install_models, subscribe
from saas.gated import image, video
from saas.people import rows
from saas.queues import Events, invoker
from saas.rows import add_items

from invokeai_saas.db import tenancy
from invokeai_saas.jobs.admission import Admission
from invokeai_saas.jobs.lease import Capability, claim
from invokeai_saas.jobs.routing import ANYWHERE, Need, NoWorkerFits, Place, Route, Routing, demand_a_place, route_of
from invokeai_saas.plans.demands import Demands, Model, ProviderCall
from invokeai_saas.swaps.session_queue import PostgresSessionQueue
from invokeai_saas.workers import registry
from invokeai_saas.workers.registry import TIERS, Instance

NEEDS = {
    "sd-1": Need("sd-1", "basic"),
    "animatediff": Need("animatediff", "basic", 7500),
    "svd": Need("svd", "high_performance", 11500),
    "hunyuan-video": Need("hunyuan-video", "dedicated", 22500),
    "external": Need("external", "basic"),
}
T4, A10G, A100 = Place(frozenset({"basic"}), 15360), Place(frozenset({"high_performance"}), 23028), Place(frozenset({"dedicated"}), 40960)
HOME = Place(frozenset(TIERS))


@pytest.mark.parametrize(("demands", "cap", "tiers", "memory_mb"), [
    (image("sd-1"), "basic", ("basic",), None),
    (image("sd-1"), "high_performance", ("basic", "high_performance"), None),
    (video("animatediff"), "basic", ("basic",), 7500),
    (video("svd"), "dedicated", ("high_performance", "dedicated"), 11500),
    (video("hunyuan-video"), "dedicated", ("dedicated",), 22500),
    (video("svd"), "basic", (), 11500),
    (video("svd"), None, None, 11500),
    (image("brand-new"), "high_performance", ("high_performance",), None),
    (Demands(), "basic", ("basic",), None),
    (video("animatediff", other_bases=("svd",)), "dedicated", ("high_performance", "dedicated"), 11500),
])  # fmt: skip
def test_from_the_tier_that_is_needed_up_to_the_plans(demands, cap, tiers, memory_mb):
    route = route_of(demands, NEEDS, cap)

    assert (route.tiers, route.memory_mb) == (tiers, memory_mb)


def test_all_models_of_a_graph_are_needed_but_those_of_providers():
    models = tuple(Model(key=key, name=key, base=base, type="main") for key, base in (("b", "sd-1"), ("a", "svd"), ("p", "external")))
    call = ProviderCall(node_type="n", node_path="n", model=models[2], pictures=1, width=1, height=1)

    assert route_of(Demands(models=models, provider_calls=(call,)), NEEDS, "dedicated").models == ("a", "b")
    assert route_of(Demands(models=models[2:], provider_calls=(call,)), NEEDS, "basic").models is None


@pytest.mark.parametrize(("route", "places", "said"), [
    (Route(("basic",)), [], "tier basic, got none"),
    (Route(("high_performance", "dedicated")), [T4], "tier high_performance or dedicated, got basic"),
    (Route((), why=NEEDS["svd"], cap="basic"), [T4, A10G, A100], r"up to basic\), got svd, which needs high_performance"),
    (Route(None, memory_mb=22500), [T4, A10G, Place(frozenset({"basic"}), 8000)], None),
    (Route(("basic",), memory_mb=22500), [T4, A10G], "15360 MB of GPU memory, .* got models for 22500 MB"),
    (Route(models=("a", "b")), [Place(frozenset({"basic"}), models=frozenset("a"))], "got b, which none of them has"),
    (Route(models=("a", "b")), [Place(frozenset({"basic"}), models=frozenset("abc"))], None),
    (Route((), why=NEEDS["svd"], cap="basic"), [HOME], None),
    (Route(("dedicated",), memory_mb=10**6, models=("x",)), [HOME], None),
    (ANYWHERE, [Place(frozenset({"basic"}), 1, frozenset())], None),
    (ANYWHERE, [], "got none"),
])  # fmt: skip
def test_what_no_worker_can_take_is_refused_with_the_reason(route, places, said):
    if said is None:
        demand_a_place([ANYWHERE, route], places)
        return
    with pytest.raises(NoWorkerFits, match=said) as refused:
        demand_a_place([route], places)
    assert (refused.value.status, refused.value.body()["error"]) == (409, "no_worker_fits")


@pytest.mark.parametrize("tiers", [None, (), ("basic",), ("basic", "dedicated"), TIERS])
@pytest.mark.parametrize("route", [ANYWHERE, Route(()), Route(("basic",)), Route(("high_performance", "dedicated")), Route(TIERS)])
def test_the_door_and_the_claim_think_alike(database, route, tiers):
    """What the door lets in, the claim of that worker takes, and nothing else."""
    place = Place(frozenset(TIERS if tiers is None else tiers))
    add_items(database, "ann", 1)
    rows(database, "UPDATE session_queue SET tiers = %s", None if route.tiers is None else list(route.tiers))
    taken = claim(database, worker_id="w", lease_seconds=60, can=Capability(tiers=tiers))

    assert place.has_tier_for(route) is (taken is not None)


@pytest.fixture
def routing(database):
    return Routing(database)


@pytest.fixture
def queue(database, routing):
    made = PostgresSessionQueue(database, worker_id="w", admission=Admission(database, {}.get, routing=routing))
    made.start(invoker(Events()))
    install_models(database)
    return made


def register(database, *tiers: str, name: str = "gpu", memory_mb: int | None = None, models: set[str] | None = None):
    keys = None if models is None else frozenset(models)
    return registry.register(database, Instance(name, "host:1", tiers, "cuda:0", memory_mb=memory_mb, model_keys=keys))


def customer(database, person, slug: str):
    subscribe(database, person.user_id, slug)
    give(database, person.user_id, 10_000)


def enqueue(queue, person, graph, *groups, runs: int = 1) -> list[int]:
    with tenancy.as_user(person.user_id):
        wanted = graphs.batch(graph, *groups, runs=runs)
        return sorted(queue.enqueue(queue_id="default", batch=wanted, prepend=False, user_id=person.user_id).item_ids)


def routes(database) -> list[tuple]:
    found = rows(database, "SELECT tiers, needs_memory_mb, needs_models FROM session_queue ORDER BY item_id")
    return [tuple(row.values()) for row in found]


def written(database) -> int:
    found = rows(database, "SELECT (SELECT count(*) FROM session_queue) + (SELECT count(*) FROM credit_holds) AS n")
    return found[0]["n"]


def test_an_item_says_who_may_run_it(database, queue, ann):
    register(database, "basic")
    customer(database, ann, "pro")
    enqueue(queue, ann, graphs.clip("animatediff"))
    enqueue(queue, ann, graphs.still(), [("denoise.steps", [10, 20])])

    clip, still = (["basic", "high_performance"], 7500, ["motion", "sd-1"]), (["basic", "high_performance"], None, ["sd-1"])
    assert routes(database) == [clip, still, still]


def test_without_a_worker_nothing_is_written(database, queue, ann):
    customer(database, ann, "pro")
    with pytest.raises(NoWorkerFits, match="tier basic or high_performance, got none"):
        enqueue(queue, ann, graphs.still())

    assert written(database) == 0


@pytest.mark.parametrize(("change", "fits"), [
    ("SET last_heartbeat = now() - interval '4 minutes', alive_until = now() - interval '3 minutes'", True),
    ("SET last_heartbeat = now() - interval '6 minutes'", False),
    ("SET status = 'quarantined'", False),
    ("SET status = 'terminated'", False),
    ("SET status = 'draining'", True),
    ("SET tiers = '{dedicated}'", False),
    ("SET memory_mb = 4000", False),
    ("SET model_keys = '{other}'", False),
])  # fmt: skip
def test_a_worker_counts_that_was_heard_of_lately_and_fits(database, queue, ann, change, fits):
    register(database, "basic")
    rows(database, f"UPDATE gpu_instances {change}")
    customer(database, ann, "pro")
    try:
        enqueue(queue, ann, graphs.clip("animatediff"))
        entered = True
    except NoWorkerFits:
        entered = False

    assert (entered, written(database)) == (fits, 2 if fits else 0)


def test_a_tester_asks_for_more_than_the_plans_gpus_and_gets_it_on_a_machine_for_everything(database, queue, ann):
    register(database, "basic", "high_performance")
    customer(database, ann, "tester")
    with pytest.raises(NoWorkerFits, match="got svd, which needs high_performance"):
        enqueue(queue, ann, graphs.clip("svd"))
    register(database, *TIERS, name="home")

    [item] = enqueue(queue, ann, graphs.clip("svd"))
    assert routes(database) == [([], 11500, ["svd"])]
    assert claim(database, worker_id="w", lease_seconds=60, can=Capability(tiers=("basic", "high_performance"))) is None
    assert claim(database, worker_id="w", lease_seconds=60, can=Capability(tiers=TIERS)).item_id == item


def test_a_retry_is_routed_like_a_new_item(database, queue, ann):
    incarnation = register(database, "basic")
    customer(database, ann, "pro")
    [item] = enqueue(queue, ann, graphs.still())
    with tenancy.as_user(ann.user_id):
        queue.cancel_queue_item(item)
    registry.retire(database, incarnation)
    with tenancy.as_user(ann.user_id), pytest.raises(NoWorkerFits):
        _fresh(queue).retry_items_by_id("default", [item])
    before = written(database)
    register(database, "basic")
    with tenancy.as_user(ann.user_id):
        queue.retry_items_by_id("default", [item])

    assert before == 2
    assert routes(database) == [(["basic", "high_performance"], None, ["sd-1"])] * 2


def _fresh(queue):
    """The queue as another process has it, which has not looked at the workers yet."""
    queue._admission.routing._places = None
    return queue


def test_the_workers_are_read_once_in_a_while_and_before_a_refusal(database, ann, monkeypatch):
    now, reads = [100.0], []
    routing = Routing(database, clock=lambda: now[0])
    seen = registry.seen_within
    monkeypatch.setattr(registry, "seen_within", lambda *a, **k: (reads.append(now[0]), seen(*a, **k))[1])
    register(database, "basic")
    for _ in range(5):
        routing.demand_a_place([Route(("basic",))])
    with pytest.raises(NoWorkerFits):
        routing.demand_a_place([Route(("dedicated",))])
    register(database, "dedicated", name="new")
    routing.demand_a_place([Route(("dedicated",))])
    now[0] += 10
    routing.demand_a_place([Route(("basic",))])

    assert reads == [100.0, 100.0, 100.0, 110.0]


def test_needs_are_data(database, queue, routing, ann):
    register(database, "high_performance")
    customer(database, ann, "pro")
    rows(database, "UPDATE model_needs SET tier = 'dedicated' WHERE base = 'sd-1'")
    with pytest.raises(NoWorkerFits, match="got sd-1, which needs dedicated"):
        enqueue(queue, ann, graphs.still())
    rows(database, "DELETE FROM model_needs WHERE base = 'sd-1'")
    routing._needs = (-math.inf, {})

    enqueue(queue, ann, graphs.still())
    assert routes(database) == [(["high_performance"], None, ["sd-1"])]
