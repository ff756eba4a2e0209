"""Customers for tests: a plan, credits, and the models that the graphs of plan_graphs ask for."""

from datetime import UTC, datetime, timedelta
from typing import Any

from saas.plan_graphs import MODELS

from invokeai_saas.credits import service
from invokeai_saas.credits.model import Balance
from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase

SUBSCRIBE = """
INSERT INTO user_subscriptions (user_id, plan_id, status, current_period_start, current_period_end, trial_end)
SELECT %(user_id)s, plan_id, %(status)s, now(), now() + interval '30 days',
    CASE WHEN %(status)s = 'trialing' THEN now() + interval '7 days' END
FROM subscription_plans WHERE slug = %(slug)s
"""
MODEL = "INSERT INTO models (id, config) VALUES (%(key)s, %(config)s) ON CONFLICT (id) DO NOTHING"
CONFIG = (
    '{{"key": "{key}", "hash": "h", "base": "{base}", "type": "{type}", "path": "{key}", "format": "diffusers", "name": "{name}",'
    ' "source": "s", "source_type": "path", "file_size": 1}}'
)


def subscribe(database: PostgresDatabase, user_id: str, slug: str, *, status: str = "active") -> None:
    """Put the user on a plan for a month."""
    with tenancy.as_system("a test subscribes"), database.postgres() as cursor:
        cursor.execute(SUBSCRIBE, {"user_id": user_id, "slug": slug, "status": status})


def give(database: PostgresDatabase, user_id: str, credits: int) -> None:
    """Credits for a month."""
    with tenancy.as_system("a test grants"), database.postgres() as cursor:
        now = datetime.now(UTC)
        service.grant(
            cursor, user_id=user_id, credits=credits, source="admin_grant", valid_from=now - timedelta(hours=1),
            valid_until=now + timedelta(days=30), description="a test",
        )  # fmt: skip


def balance_of(database: PostgresDatabase, user_id: str) -> Balance:
    """As the user sees it."""
    with tenancy.as_user(user_id), database.postgres() as cursor:
        return service.balance(cursor, user_id)


def install_models(database: PostgresDatabase) -> None:
    """The models of plan_graphs as InvokeAI keeps them: rows, no files."""
    with tenancy.as_system("a test installs models"), database.postgres() as cursor:
        for known in MODELS.values():
            cursor.execute(
                MODEL, {"key": known.key, "config": CONFIG.format(key=known.key, name=known.name, base=known.base, type=known.type)}
            )


def holds(database: PostgresDatabase) -> dict[int, dict[str, Any]]:
    """What is or was held, by item."""
    with tenancy.as_system("a test looks"), database.postgres() as cursor:
        found = cursor.execute("SELECT * FROM credit_holds ORDER BY item_id").fetchall()
    return {row["item_id"]: row for row in found}


def as_books(database: PostgresDatabase, statement: str, *values: Any) -> None:
    """What no job left: written as the books' own role, which is nobody's to become but the migrating login's."""
    with tenancy.as_system("a test writes the books"), database.postgres() as cursor:
        cursor.execute("SET LOCAL ROLE invokeai_books")
        cursor.execute(statement.encode(), values)
