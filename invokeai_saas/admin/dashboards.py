"""Revenue and usage of a period (S3-179, S3-180, C-45): payments, usage records and plans in, sums and one line per day out. Read only.

Money is what was paid, less what was given back, per currency; cost is measured seconds times what the plan's tier costs (decision 20).
A month's recurring revenue counts running subscriptions that Stripe bills, at their plan's monthly price; what was given by hand is none.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

from invokeai_saas.accounts.model import Accounts, Principal
from invokeai_saas.db import tenancy

Period = Literal["day", "week", "month", "quarter", "year"]
DAYS: dict[str, int] = {"day": 1, "week": 7, "month": 30, "quarter": 91, "year": 365}

SUBSCRIPTIONS = """
SELECT plans.slug, plans.plan_type, count(*) AS users, count(held.stripe_subscription_id) AS billed, plans.currency,
    CASE WHEN plans.plan_type = 'paid' THEN count(held.stripe_subscription_id) * plans.monthly_price ELSE 0 END AS monthly_revenue
FROM user_subscriptions AS held JOIN subscription_plans AS plans USING (plan_id) JOIN saas_users USING (user_id)
WHERE held.status IN ('trialing', 'active', 'past_due') AND saas_users.deleted_at IS NULL
GROUP BY plans.slug, plans.plan_type, plans.currency, plans.monthly_price ORDER BY plans.monthly_price NULLS LAST, plans.slug
"""
PAYMENTS = """
SELECT currency, kind, count(*) AS payments, sum(amount) AS paid, sum(amount_refunded) AS refunded, sum(credits)::bigint AS credits
FROM payments WHERE status IN ('succeeded', 'refunded') AND created_at >= %(since)s AND created_at < %(until)s
GROUP BY currency, kind ORDER BY currency, kind
"""
PAYMENTS_BY_DAY = """
SELECT (created_at AT TIME ZONE 'UTC')::date AS day, currency, sum(amount) AS paid, sum(amount_refunded) AS refunded, count(*) AS payments
FROM payments WHERE status IN ('succeeded', 'refunded') AND created_at >= %(since)s AND created_at < %(until)s
GROUP BY day, currency ORDER BY day, currency
"""
# What a tier's second costs is the dearest plan's that runs on it; a tier without a plan costs nothing that we know.
COSTS = """
SELECT used.gpu_tier, count(*) AS jobs, sum(used.compute_seconds) AS seconds, sum(used.credits_consumed)::bigint AS credits,
    sum(used.provider_credits)::bigint AS provider_credits,
    COALESCE(sum(used.compute_seconds)::numeric * max(tiers.cost), 0) AS cost
FROM usage_records AS used LEFT JOIN (
    SELECT gpu_tier, max(cost_per_gpu_second) AS cost FROM subscription_plans GROUP BY gpu_tier
) AS tiers USING (gpu_tier)
WHERE used.created_at >= %(since)s AND used.created_at < %(until)s
GROUP BY used.gpu_tier ORDER BY used.gpu_tier
"""
# What was promised and not used yet: a debt, until it expires.
OUTSTANDING = """
SELECT COALESCE(sum(available_credits + held_credits), 0)::bigint AS credits FROM credits WHERE valid_until > now()
"""
USAGE = """
SELECT action_type, outcome, count(*) AS jobs, count(DISTINCT user_id) AS users, sum(compute_seconds) AS seconds,
    sum(credits_consumed)::bigint AS credits, sum(credits_held)::bigint AS held,
    sum(GREATEST(compute_seconds - credits_held, 0)) AS overrun_seconds
FROM usage_records WHERE created_at >= %(since)s AND created_at < %(until)s
GROUP BY action_type, outcome ORDER BY action_type, outcome
"""
USAGE_BY_DAY = """
SELECT (created_at AT TIME ZONE 'UTC')::date AS day, count(*) AS jobs, count(DISTINCT user_id) AS users, sum(compute_seconds) AS seconds,
    sum(credits_consumed)::bigint AS credits
FROM usage_records WHERE created_at >= %(since)s AND created_at < %(until)s GROUP BY day ORDER BY day
"""
MODELS = """
SELECT model_used, count(*) AS jobs, sum(compute_seconds) AS seconds, sum(credits_consumed)::bigint AS credits
FROM usage_records WHERE created_at >= %(since)s AND created_at < %(until)s
GROUP BY model_used ORDER BY credits DESC, model_used LIMIT 50
"""
PEOPLE = """
SELECT (SELECT count(DISTINCT user_id) FROM usage_records WHERE created_at >= %(since)s AND created_at < %(until)s) AS active_users,
    (SELECT count(*) FROM images WHERE is_intermediate = 0 AND created_at::timestamp AT TIME ZONE 'UTC' >= %(since)s) AS images,
    (SELECT count(*) FROM videos WHERE is_intermediate = 0 AND created_at::timestamp AT TIME ZONE 'UTC' >= %(since)s) AS videos
"""


@dataclass(frozen=True, slots=True)
class Window:
    """From `since` up to and without `until`."""

    period: str
    since: datetime
    until: datetime

    @classmethod
    def of(cls, period: Period, *, now: datetime | None = None) -> "Window":
        """The last days up to now: whole ones in UTC, and what there is of today."""
        until = now or datetime.now(UTC)
        first = until.date() - timedelta(days=DAYS[period] - 1)
        return cls(period, datetime(first.year, first.month, first.day, tzinfo=UTC), until)

    @property
    def values(self) -> dict[str, Any]:
        """For the statements."""
        return {"since": self.since, "until": self.until}

    def days(self) -> list[date]:
        """Every day of it, with or without anything in it."""
        count = (self.until.date() - self.since.date()).days + 1
        return [self.since.date() + timedelta(days=number) for number in range(count)]


def revenue(accounts: Accounts, caller: Principal, window: Window) -> dict[str, Any]:
    """S3-179: what came in, what it cost, what is owed."""
    caller.demand_admin()
    with tenancy.as_system("an admin looks at the revenue"), accounts.database.postgres() as cursor:
        subscriptions = cursor.execute(SUBSCRIPTIONS).fetchall()
        payments = cursor.execute(PAYMENTS, window.values).fetchall()
        by_day = cursor.execute(PAYMENTS_BY_DAY, window.values).fetchall()
        costs = cursor.execute(COSTS, window.values).fetchall()
        outstanding = cursor.execute(OUTSTANDING).fetchone()
    net: dict[str, Decimal] = {}
    for row in payments:
        net[row["currency"]] = net.get(row["currency"], Decimal(0)) + row["paid"] - row["refunded"]
    cost = sum((row["cost"] for row in costs), Decimal(0)).quantize(Decimal("0.01"))
    recurring = sum((row["monthly_revenue"] or Decimal(0) for row in subscriptions), Decimal(0))
    return {
        **_head(window),
        "monthly_recurring_revenue": recurring,
        "subscriptions": subscriptions,
        "payments": payments,
        "net": [{"currency": currency, "amount": amount} for currency, amount in sorted(net.items())],
        "gpu_cost_usd": cost,
        "margin_usd": net.get("usd", Decimal(0)) - cost,
        "tiers": [{**row, "cost": row["cost"].quantize(Decimal("0.01"))} for row in costs],
        "outstanding_credits": 0 if outstanding is None else outstanding["credits"],
        "days": by_day,
    }


def usage(accounts: Accounts, caller: Principal, window: Window) -> dict[str, Any]:
    """S3-180: who worked with what, how long, and how it ended."""
    caller.demand_admin()
    with tenancy.as_system("an admin looks at the usage"), accounts.database.postgres() as cursor:
        people = cursor.execute(PEOPLE, window.values).fetchone() or {}
        actions = cursor.execute(USAGE, window.values).fetchall()
        models = cursor.execute(MODELS, window.values).fetchall()
        days = {row["day"]: row for row in cursor.execute(USAGE_BY_DAY, window.values).fetchall()}
    hours = max(1.0, (window.until - window.since).total_seconds() / 3600)
    empty = {"jobs": 0, "users": 0, "seconds": 0.0, "credits": 0}
    return {
        **_head(window),
        **people,
        "images_per_hour": round(people.get("images", 0) / hours, 2),
        "jobs": sum(row["jobs"] for row in actions),
        "credits": sum(row["credits"] for row in actions),
        "compute_seconds": sum(row["seconds"] for row in actions),
        "actions": actions,
        "models": models,
        "days": [{"day": day, **empty, **days.get(day, {})} for day in window.days()],
    }


def _head(window: Window) -> dict[str, Any]:
    return {"period": window.period, "since": window.since, "until": window.until}
