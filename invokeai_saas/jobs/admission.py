"""Who may enqueue what, and what it holds: in the transaction of the enqueue, all or nothing.

    entitlement ─► demands of the graph, calls expanded ─► gate ─► a worker? ─► rows ─► credits held per root item ─► storage ─► commit
     (one query)    (plans/graph_demands.py, pure)       403 400 403   409               402                        403

A retry is admitted like a new item. Called workflows were expanded and pinned when their root was priced and draw on its hold.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from invokeai_saas.accounts.identify import caller_now
from invokeai_saas.credits import pricing, service
from invokeai_saas.credits.model import JobHold
from invokeai_saas.credits.pricing import Price
from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.errors import SaasError
from invokeai_saas.jobs import queue_rows
from invokeai_saas.jobs.metering import Meter
from invokeai_saas.jobs.queue_rows import Cursor
from invokeai_saas.jobs.routing import Route, Routing
from invokeai_saas.jobs.running import STOP_AT_HOLDS, NotHeld, Run, Stored
from invokeai_saas.plans import gate
from invokeai_saas.plans.batches import demands_of_batch
from invokeai_saas.plans.catalog import entitlement_of
from invokeai_saas.plans.demands import Demands, Model
from invokeai_saas.plans.graph_demands import demands_of
from invokeai_saas.plans.model import Entitlement, Plan

# Models are the same for all; the record says what a model is, never the graph.
MODEL = "SELECT id, name, base, type FROM models WHERE id = %s"
IMAGE_SIZE = "SELECT width, height FROM images WHERE image_name = %s"
STORAGE_USED = "SELECT bytes FROM storage_used WHERE user_id = %s"
HOLD_OF_ROOT = "SELECT 1 FROM credit_holds WHERE item_id = %s AND state = 'held'"
# What is held for a chain of calls, and how long its other items ran already: they share the price.
RUN = """
SELECT hold.amount - hold.provider_credits AS amount, hold.detail, hold.state, (
    SELECT COALESCE(sum(attempt.gpu_seconds), 0) FROM session_queue AS item JOIN job_attempts AS attempt USING (item_id)
    WHERE (item.item_id = %(root)s OR item.root_item_id = %(root)s) AND attempt.state = 'finished'
) AS used_seconds
FROM credit_holds AS hold WHERE hold.item_id = %(root)s
"""

KNOWN_SECONDS = 5.0


class TooManyItems(SaasError):
    """A batch of so many items that it is not even read."""

    status = 400

    def __init__(self, items: int) -> None:
        super().__init__(f"expected fewer items in one batch, got {items}")


@dataclass(frozen=True, slots=True)
class Admitted:
    """Passed the gate; `prices` in the order of the items to come."""

    user_id: str
    entitlement: Entitlement
    prices: tuple[Price, ...]
    details: tuple[Mapping[str, Any], ...]
    # Where each may run; empty: anywhere.
    routes: tuple[Route, ...] = ()

    def hold(self, cursor: Cursor, item_ids: Iterable[int]) -> None:
        """Hold the credits of items just inserted, oldest first. Raises InsufficientCredits, and PlanForbids for a full storage."""
        plan = self.entitlement.plan
        assert plan is not None, "the gate lets nobody pass without a plan"
        holds = {
            item_id: JobHold(price.hold, price.provider, plan.gpu_tier, detail)
            for item_id, price, detail in zip(item_ids, self.prices, self.details, strict=True)
        }
        service.hold(cursor, user_id=self.user_id, amounts=holds)
        # Decision 18: credits before storage.
        gate.check_upload(self.entitlement, storage_used_bytes=storage_used(cursor, self.user_id))


@dataclass(frozen=True)
class Admission:
    """`workflow_of` gives a saved workflow as a dict, `latents_size` the size of stored latents in pixels; None: the tenant sees none.

    Without `routing` every worker may take everything, and nobody asks whether there is one.
    """

    database: PostgresDatabase
    workflow_of: Callable[[str], Mapping[str, Any] | None]
    latents_size: Callable[[str], tuple[int, int] | None] = lambda _: None
    factors: pricing.Factors = field(default_factory=lambda: pricing.FACTORS)
    routing: Routing | None = None
    _known_models: dict[str, tuple[float, Model]] = field(default_factory=dict, repr=False)

    def admit(self, cursor: Cursor, user_id: str, batch: Any) -> Admitted:
        """What a batch (InvokeAI's Batch) holds; raises what keeps it out. Works in the user's own context."""
        entitlement = entitlement_of(cursor, user_id)
        most = None if entitlement.plan is None else entitlement.plan.max_repeats
        wanted = demands_of_batch(batch, **self._asked(cursor), most_items=most)
        return self._admitted(cursor, entitlement, user_id, wanted, batch.graph.nodes.values())

    def admit_again(self, cursor: Cursor, user_id: str, sessions: Mapping[int, str]) -> None:
        """Items that were retried, item_id -> session (JSON): each is gated, priced and held anew, or none."""
        if not sessions:
            return
        entitlement, asked = entitlement_of(cursor, user_id), self._asked(cursor)
        graphs = [json.loads(session)["graph"] for session in sessions.values()]
        admitted = [self._admitted(cursor, entitlement, user_id, demands_of(graph, **asked), ()) for graph in graphs]
        whole = Admitted(
            user_id,
            entitlement,
            tuple(price for each in admitted for price in each.prices),
            tuple(detail for each in admitted for detail in each.details),
        )
        whole.hold(cursor, sessions)
        routes = [route for each in admitted for route in each.routes]
        if routes:
            with tenancy.as_system("a tenant does not choose the worker"), self.database.postgres() as system:
                queue_rows.set_routes(system, dict(zip(sessions, routes, strict=True)))

    def admit_child(self, cursor: Cursor, parent: Any) -> None:
        """A called workflow draws on the hold of its root, which must still be open."""
        if cursor.execute(HOLD_OF_ROOT, (parent.root_item_id or parent.item_id,)).fetchone() is None:
            raise NotHeld

    def begin(self, item: Any, meter: Meter) -> Run:
        """What an item that was claimed may do: its owner's plan as it is now, and what is left of its hold. In the owner's context."""
        with self.database.postgres() as cursor:
            held = cursor.execute(RUN, {"root": item.root_item_id or item.item_id}).fetchone()
            entitlement = entitlement_of(cursor, item.user_id)
        limit: float | None = None
        detail: dict[str, Any] = {}
        if held is not None and held["state"] == "held":
            detail = held["detail"] or {}
            limit = STOP_AT_HOLDS * held["amount"] + detail.get("load_seconds", 0) - held["used_seconds"]
        return Run(
            database=self.database,
            item_id=item.item_id,
            root_id=item.root_item_id or item.item_id,
            entitlement=entitlement,
            meter=meter,
            limit_seconds=limit,
            stored=self._stored_now(),
            jobs_priced=sum(line["times"] for line in detail.get("lines", ())),
            pins=detail.get("pins", {}),
        )

    def _asked(self, cursor: Cursor) -> dict[str, Any]:
        """What a graph names and the database holds, as far as this tenant may see it."""
        return {"resolve_workflow": self.workflow_of, "model_base": models_of(cursor, self._known_models), "image_size": sizes_of(cursor)}

    def _stored_now(self) -> Stored:
        """The same while it runs, each question in a transaction of its own."""

        def model_of(key: str) -> Model | None:
            with self.database.postgres() as cursor:
                return models_of(cursor, self._known_models)(key)

        def image_size(name: str) -> tuple[int, int] | None:
            with self.database.postgres() as cursor:
                return sizes_of(cursor)(name)

        return Stored(workflow_of=self.workflow_of, model_of=model_of, image_size=image_size, latents_size=self.latents_size)

    def _admitted(self, cursor: Cursor, entitlement: Entitlement, user_id: str, wanted: Demands, nodes: Iterable[Any]) -> Admitted:
        caller = caller_now.get()
        gate.check(entitlement, wanted, api_key=caller is not None and caller.kind == "api_key")
        plan = entitlement.plan
        assert plan is not None, "the gate lets nobody pass without a plan"
        if wanted.runs > 1 and not wanted.items:
            raise TooManyItems(wanted.runs)
        # Items that differ in nothing that is priced are one object.
        items, kind = wanted.items or (wanted,), action_type(wanted, {node.get_type() for node in nodes})
        priced = {id(item): self._priced(item, plan, kind) for item in items}
        prices, details = zip(*(priced[id(item)] for item in items), strict=True)
        return Admitted(user_id, entitlement, prices, details, self._routes(cursor, items, plan))

    def _routes(self, cursor: Cursor, items: Sequence[Demands], plan: Plan) -> tuple[Route, ...]:
        if self.routing is None:
            return ()
        routed = {id(item): self.routing.route(cursor, item, plan.gpu_tier) for item in items}
        self.routing.demand_a_place(routed.values())
        return tuple(routed[id(item)] for item in items)

    def _priced(self, item: Demands, plan: Plan, kind: str) -> tuple[Price, Mapping[str, Any]]:
        filled = gate.fill_maxima(item, plan)
        price = pricing.price(filled, factors=self.factors)
        return price, _detail(kind, filled, price, plan.slug)


def models_of(cursor: Cursor, known: dict[str, tuple[float, Model]] | None = None) -> Callable[[str], Model | None]:
    """A model's record by its key. `known` keeps those that are there for a few seconds: they are the same for all and hardly change."""
    kept = {} if known is None else known

    def find(key: str) -> Model | None:
        read_at, model = kept.get(key, (-KNOWN_SECONDS, None))
        if time.monotonic() - read_at < KNOWN_SECONDS:
            return model
        row = cursor.execute(MODEL, (key,)).fetchone()
        if row is None:
            kept.pop(key, None)
            return None
        found = Model(key=row["id"], name=row["name"], base=row["base"], type=row["type"])
        kept[key] = (time.monotonic(), found)
        return found

    return find


def sizes_of(cursor: Cursor) -> Callable[[str], tuple[int, int] | None]:
    """A picture's width and height by its name; None for one that this tenant does not see."""

    def find(name: str) -> tuple[int, int] | None:
        row = cursor.execute(IMAGE_SIZE, (name,)).fetchone()
        return None if row is None else (row["width"], row["height"])

    return find


def storage_used(cursor: Cursor, user_id: str) -> int:
    """Bytes of all of the user's files."""
    row = cursor.execute(STORAGE_USED, (user_id,)).fetchone()
    return 0 if row is None else int(row["bytes"])


def action_type(demands: Demands, node_types: set[str]) -> str:
    """What a usage record calls it (X-45): by what is made, and what it is made from."""
    generates = {job.node_type for job in demands.jobs}
    from_pictures = any(name.endswith(("i2l", "image_to_latents", "_to_latents")) for name in node_types)
    if demands.has_video:
        if any(name.startswith("video_to_") or "video_encode" in name for name in node_types):
            return "vid2vid"
        return "img2vid" if from_pictures or "svd_denoise" in generates else "txt2vid"
    if not generates:
        return "upscale" if any("upscale" in name or "esrgan" in name or "spandrel" in name for name in node_types) else "other"
    if any("denoise_mask" in name for name in node_types):
        return "inpaint"
    if any("controlnet" in name for name in node_types):
        return "controlnet"
    return "img2img" if from_pictures else "txt2img"


def _detail(kind: str, item: Demands, price: Price, plan: str) -> dict[str, Any]:
    """What the books keep with a hold: what usage records show of the dearest job, every line, and what the run is checked against."""
    dearest = max(price.lines, key=lambda line: line.credits, default=None)
    name = next((job.model_name for job in item.jobs if dearest is not None and dearest.base in (job.base, *job.other_bases)), None)
    shown = {} if dearest is None else {key: getattr(dearest, key) for key in ("width", "height", "steps", "batch_size", "frames")}
    return {
        "action_type": kind,
        "model_used": name or (None if dearest is None else dearest.base) or next((call.node_type for call in item.provider_calls), "none"),
        **{key: value for key, value in shown.items() if value is not None},
        "plan": plan,
        "estimate": price.estimate,
        "load_seconds": price.load_seconds,
        "lines": [line.as_json() for line in price.lines],
        "pins": {pin.workflow_id: pin.sha256 for pin in item.pins},
    }
