"""Everybody on each plan, and what they ask for, for the tests of the gate."""

from dataclasses import replace

import pytest

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.plans import catalog, gate
from invokeai_saas.plans.demands import Demands, JobDemand, Model
from invokeai_saas.plans.errors import PlanRefused
from invokeai_saas.plans.model import Entitlement

SLUGS = ["enterprise", "pro", "starter", "studio", "tester", "trial"]


@pytest.fixture(scope="module")
def entitlements(cluster) -> dict[str, Entitlement]:
    """Each plan as somebody on it has it, read from the migrated database."""
    dsn = cluster.clone()
    database = PostgresDatabase(dsn, pool_size=1)
    try:
        with tenancy.as_system("test"), database.postgres() as cursor:
            none = catalog.entitlement_of(cursor, "nobody")
    finally:
        database.close()
        cluster.drop(dsn)
    assert sorted(plan.slug for plan in none.catalog) == SLUGS
    return {plan.slug: replace(none, plan=plan, status="active") for plan in none.catalog}


def refusal(entitlement: Entitlement, demands: Demands, **also) -> PlanRefused | None:
    """What keeps the demands out, or None."""
    try:
        gate.check(entitlement, demands, **also)
    except PlanRefused as error:
        return error
    return None


def answer(entitlement: Entitlement, demands: Demands, **also) -> tuple[int, str]:
    """The status and code that a route would answer."""
    refused = refusal(entitlement, demands, **also)
    return (200, "ok") if refused is None else (refused.status, refused.code)


def video(family: str = "animatediff", *, frames: int = 1, width: int = 16, height: int = 16, **also) -> Demands:
    job = JobDemand(kind="video", node_type="n", node_path="n", base=family, width=width, height=height, frames=frames, steps=1, **also)
    return Demands(jobs=(job,))


def image(base: str = "sd-1", *, width: int | None = 16, height: int | None = 16, steps: int | None = 1, **also) -> Demands:
    """One picture, small but for what is asked, with its model."""
    job = JobDemand(kind="image", node_type="n", node_path="n", base=base, width=width, height=height, steps=steps, **also)
    return Demands(jobs=(job,), models=(Model(key="k", name="m", base=base, type="main"),))
