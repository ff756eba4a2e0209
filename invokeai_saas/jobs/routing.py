"""Which workers may run an item: what its models need, capped by its owner's plan; and whether there is such a worker at all.

    demands (bases, keys) ─► model_needs: tier, memory ─► Route: tiers from the need up to the plan's, memory, models ─► columns of the item
                                                      └► fits a worker that was heard of lately?   no: 409 NoWorkerFits, before any row

Decision 18. A base of a higher tier than the plan's needs a worker of all tiers, which is one machine for everything: its tiers are then
none. Several models: the highest need of each kind. The workers are read every few seconds, not at every enqueue.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import psycopg
from psycopg.rows import DictRow

from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.jobs.lease import ALL_TIERS
from invokeai_saas.plans.demands import Demands
from invokeai_saas.plans.errors import PlanRefused
from invokeai_saas.plans.families import PROVIDER_BASE
from invokeai_saas.plans.model import GpuTier
from invokeai_saas.workers import registry

# From the cheapest up.
TIERS: tuple[GpuTier, ...] = ("basic", "high_performance", "dedicated")
NEEDS = "SELECT base, tier, memory_mb FROM model_needs"
NEEDS_KNOWN_SECONDS, WORKERS_KNOWN_SECONDS = 60.0, 3.0
# A worker that restarts, or whose machine is busy, is not gone yet.
HEARD_OF_WITHIN_SECONDS = 300.0
Cursor = psycopg.Cursor[DictRow]


class NoWorkerFits(PlanRefused):
    """No worker that runs now can take this item; the message says why, and what would fit."""

    status = 409


@dataclass(frozen=True, slots=True)
class Need:
    """What one model base needs: a tier and what is above it, and so much memory."""

    base: str
    tier: GpuTier
    memory_mb: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """What the claim compares with a worker (lease.Capability). `why` is the base that asked for the tier, for messages."""

    tiers: tuple[GpuTier, ...] | None = None
    memory_mb: int | None = None
    models: tuple[str, ...] | None = None
    why: Need | None = None
    cap: GpuTier | None = None


ANYWHERE = Route()


@dataclass(frozen=True, slots=True)
class Place:
    """A worker as it registered; None: no limit."""

    tiers: frozenset[str]
    memory_mb: int | None = None
    models: frozenset[str] | None = None

    def has_tier_for(self, route: Route) -> bool:
        """Whether one of its tiers is among the route's; a worker of all tiers takes what no single one may."""
        return route.tiers is None or self.tiers >= ALL_TIERS or not self.tiers.isdisjoint(route.tiers)

    def has_memory_for(self, route: Route) -> bool:
        """Whether the models fit its memory."""
        return route.memory_mb is None or self.memory_mb is None or route.memory_mb <= self.memory_mb

    def has_models_for(self, route: Route) -> bool:
        """Whether it has, or can fetch, the models."""
        return route.models is None or self.models is None or self.models.issuperset(route.models)


def route_of(demands: Demands, needs: Mapping[str, Need], cap: GpuTier | None) -> Route:
    """Where an item with these demands may run; `cap` is the plan's tier, None: any."""
    bases = {base for job in demands.jobs for base in (job.base, *job.other_bases)} | {model.base for model in demands.models}
    needed = [needs.get(base, Need(base, "high_performance")) for base in sorted(bases)]
    highest = max(needed, key=lambda need: TIERS.index(need.tier), default=None)
    lowest = 0 if highest is None else TIERS.index(highest.tier)
    memory = max((need.memory_mb for need in needed if need.memory_mb is not None), default=None)
    models = tuple(sorted({model.key for model in demands.models if model.base != PROVIDER_BASE}))
    tiers = None if cap is None else TIERS[lowest : TIERS.index(cap) + 1]
    return Route(tiers=tiers, memory_mb=memory, models=models or None, why=highest, cap=cap)


def demand_a_place(routes: Iterable[Route], places: Iterable[Place]) -> None:
    """Raise NoWorkerFits for the first route that no place fits."""
    heard_of = list(places)
    for route in routes:
        with_tier = [place for place in heard_of if place.has_tier_for(route)]
        with_memory = [place for place in with_tier if place.has_memory_for(route)]
        if not with_tier:
            raise _no_tier(route, heard_of)
        if not with_memory:
            raise _no_memory(route, with_tier)
        if not any(place.has_models_for(route) for place in with_memory):
            raise _no_models(route, with_memory)


class Routing:
    """Routes with the needs and workers of a database, as they were read a moment ago."""

    def __init__(self, database: PostgresDatabase, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._clock = database, clock
        self._needs: tuple[float, Mapping[str, Need]] | None = None
        self._places: tuple[float, tuple[Place, ...]] | None = None

    def route(self, cursor: Cursor, demands: Demands, cap: GpuTier | None) -> Route:
        """Where an item may run; the needs are everybody's to read."""
        return route_of(demands, self._needs_now(cursor), cap)

    def demand_a_place(self, routes: Iterable[Route]) -> None:
        """Raise NoWorkerFits for a route that no worker of the last minutes fits; who refuses looks anew first."""
        wanted = list(dict.fromkeys(routes))
        known = self._places
        if known is not None and self._clock() - known[0] < WORKERS_KNOWN_SECONDS:
            try:
                demand_a_place(wanted, known[1])
                return
            except NoWorkerFits:
                pass
        demand_a_place(wanted, self._look())

    def _look(self) -> tuple[Place, ...]:
        seen = registry.seen_within(self._database, seconds=HEARD_OF_WITHIN_SECONDS)
        places = tuple(
            Place(frozenset(one.tiers), one.memory_mb, None if one.model_keys is None else frozenset(one.model_keys))
            for one in seen
            if one.status != "quarantined"
        )
        self._places = self._clock(), places
        return places

    def _needs_now(self, cursor: Cursor) -> Mapping[str, Need]:
        known = self._needs
        if known is None or self._clock() - known[0] >= NEEDS_KNOWN_SECONDS:
            known = self._clock(), {row["base"]: Need(**row) for row in cursor.execute(NEEDS).fetchall()}
            self._needs = known
        return known[1]


def _no_tier(route: Route, places: list[Place]) -> NoWorkerFits:
    there = ", ".join(tier for tier in TIERS if any(tier in place.tiers for place in places)) or "none"
    if route.tiers or route.why is None:
        wanted = " or ".join(route.tiers or ())
        message = f"expected a running GPU worker of tier {wanted}, got {there}: try again later"
        return NoWorkerFits("no_worker_fits", message, limit_type="gpu_tier", limit=there, value=wanted, nearest=wanted)
    message = (
        f"expected models for the GPUs of your plan (up to {route.cap}), got {route.why.base}, which needs {route.why.tier}:"
        f" choose a smaller model, or a plan with {route.why.tier}"
    )
    return NoWorkerFits("no_worker_fits", message, limit_type="gpu_tier", limit=route.cap, value=route.why.tier, nearest=route.cap)


def _no_memory(route: Route, places: list[Place]) -> NoWorkerFits:
    largest = max(place.memory_mb or 0 for place in places)
    message = f"expected models for {largest} MB of GPU memory, the most that runs for your plan now, got models for {route.memory_mb} MB"
    return NoWorkerFits("no_worker_fits", message, limit_type="gpu_memory_mb", limit=largest, value=route.memory_mb, nearest=largest)


def _no_models(route: Route, places: list[Place]) -> NoWorkerFits:
    keys = set(route.models or ())
    best = min(places, key=lambda place: len(keys - (place.models or frozenset())))
    missing = sorted(keys - (best.models or frozenset()))
    message = f"expected models that a running GPU worker has, got {', '.join(missing)}, which none of them has: try again later"
    return NoWorkerFits("no_worker_fits", message, limit_type="model", value=missing)
