"""Subscriptions and tester grants for tests, written as billing writes them: by system work."""

from typing import Any

from saas.people import rows

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.plans import catalog
from invokeai_saas.plans.model import Entitlement

SUBSCRIBE = """
INSERT INTO user_subscriptions (user_id, plan_id, status, current_period_start, current_period_end, trial_end, past_due_since, grace_until,
    cancel_at_period_end, stripe_subscription_id)
SELECT %s, plan_id, %s, now() - interval '20 days', now() + %s::interval, now() + %s::interval, now() - interval '5 days',
    now() + %s::interval, %s, %s
FROM subscription_plans WHERE slug = %s RETURNING subscription_id
"""
GRANT = """
INSERT INTO tester_plan_grants (user_id, admin_user_id, valid_from, valid_until, reason)
VALUES (%s, 'clerk', now() + %s::interval, now() + %s::interval, 'tries the new release') RETURNING grant_id
"""


def subscribe(
    database: PostgresDatabase,
    user_id: str,
    slug: str,
    *,
    status: str = "active",
    period: str = "10 days",
    trial: str = "5 days",
    grace: str = "2 days",
    ends: bool = False,
    stripe: str | None = None,
) -> Any:
    """A subscription whose period, trial and grace end in so long; negative intervals are past."""
    found = rows(database, SUBSCRIBE, user_id, status, period, trial, grace, ends, stripe, slug)
    return found[0]["subscription_id"]


def grant(database: PostgresDatabase, user_id: str, *, begins: str = "-1 day", ends: str = "1 day") -> Any:
    """A tester's window."""
    return rows(database, GRANT, user_id, begins, ends)[0]["grant_id"]


def entitled(database: PostgresDatabase, user_id: str) -> Entitlement:
    """What counts, in the user's own context."""
    with tenancy.as_user(user_id), database.postgres() as cursor:
        return catalog.entitlement_of(cursor, user_id)


def told(database: PostgresDatabase, user_id: str) -> tuple[str | None, str, bool]:
    """(plan's slug, status, suspended)."""
    found = entitled(database, user_id)
    return found.plan and found.plan.slug, found.status, found.suspended


def turn(database: PostgresDatabase, user_id: str) -> tuple[int, int | None] | None:
    """(plan_priority, max_parallel) of the user's turn in the queue."""
    found = rows(database, "SELECT plan_priority, max_parallel FROM queue_turns WHERE user_id = %s", user_id)
    return (found[0]["plan_priority"], found[0]["max_parallel"]) if found else None
