"""Plans in the database: which there are, which one counts for a user, and admins' changes, each with a line in the audit log.

Invariant: what a plan may be is said by named constraints of subscription_plans; their names become BadPlanInput and PlanExists.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from invokeai_saas.accounts import audit
from invokeai_saas.accounts.model import Accounts, Principal
from invokeai_saas.db import tenancy
from invokeai_saas.plans.errors import BadPlanInput, NoSuchPlan, PlanExists
from invokeai_saas.plans.families import VIDEO_FAMILIES
from invokeai_saas.plans.model import Entitlement, Plan

BY_SLUG = "SELECT * FROM subscription_plans WHERE slug = %s"
BY_ID = "SELECT * FROM subscription_plans WHERE plan_id = %s"
TO_CHANGE = "SELECT * FROM subscription_plans WHERE plan_id = %s FOR UPDATE"
# Cheapest first; a price agreed by contract is the highest.
ACTIVE = "SELECT * FROM subscription_plans WHERE is_active ORDER BY monthly_price NULLS LAST, slug"
ALL = "SELECT * FROM subscription_plans ORDER BY monthly_price NULLS LAST, slug"
# What counts for a user, the plans that there are, and the levels of models: at least one row, also without any plan.
ENTITLEMENT = """
SELECT now_on.plan_id AS effective_plan_id, now_on.status AS effective_status, now_on.suspended AS effective_suspended,
    (SELECT jsonb_object_agg(base, access) FROM model_access_levels) AS access_levels, plans.*
FROM plan_of(%s) AS now_on
    LEFT JOIN subscription_plans AS plans ON plans.is_active OR plans.plan_id = now_on.plan_id
ORDER BY plans.monthly_price NULLS LAST, plans.slug
"""
# The running subscription, or the one that ended last. An upgrade that is not paid waits at Stripe for 23 hours and is taken back then.
SUBSCRIPTION = """
SELECT held.*, plans.slug AS plan_slug, next_plans.slug AS next_plan_slug, waiting.plan_slug AS pending_plan_slug,
    runs.so AND held.stripe_subscription_id IS NOT NULL AS billed,
    runs.so AND (held.status = 'past_due' OR waiting.plan_slug IS NOT NULL) AS payment_open
FROM user_subscriptions AS held JOIN subscription_plans AS plans ON plans.plan_id = held.plan_id
    CROSS JOIN LATERAL (SELECT held.status IN ('trialing', 'active', 'past_due') AS so) AS runs
    LEFT JOIN subscription_plans AS next_plans ON next_plans.plan_id = held.next_plan_id
    LEFT JOIN LATERAL (
        SELECT unpaid.plan_slug FROM payments AS unpaid
        WHERE unpaid.user_id = held.user_id AND held.status = 'active' AND unpaid.kind = 'subscription' AND unpaid.status = 'failed'
            AND unpaid.created_at >= held.created_at AND unpaid.created_at > clock_timestamp() - interval '23 hours'
            AND unpaid.plan_slug <> plans.slug
        ORDER BY unpaid.created_at DESC LIMIT 1
    ) AS waiting ON held.stripe_subscription_id IS NOT NULL
WHERE held.user_id = %s
ORDER BY runs.so DESC, held.created_at DESC, held.subscription_id LIMIT 1
"""
INSERT = """
INSERT INTO subscription_plans (slug, name, plan_type, monthly_price, annual_price, currency, monthly_credits, validity_days, gpu_tier,
    price_per_gpu_second, cost_per_gpu_second, max_queues, max_storage_gb, plan_priority, model_access, third_party_api_access,
    lora_training, collaboration, node_editor_access, api_access, can_generate_video, max_video_frames, max_video_long_side,
    max_video_short_side, video_bases, max_image_long_side, max_image_short_side, max_steps, max_repeats, stripe_product,
    stripe_price_monthly, stripe_price_annual, features, is_active)
VALUES (%(slug)s, %(name)s, %(plan_type)s, %(monthly_price)s, %(annual_price)s, %(currency)s, %(monthly_credits)s, %(validity_days)s,
    %(gpu_tier)s, %(price_per_gpu_second)s, %(cost_per_gpu_second)s, %(max_queues)s, %(max_storage_gb)s, %(plan_priority)s,
    %(model_access)s, %(third_party_api_access)s, %(lora_training)s, %(collaboration)s, %(node_editor_access)s, %(api_access)s,
    %(can_generate_video)s, %(max_video_frames)s, %(max_video_long_side)s, %(max_video_short_side)s, %(video_bases)s,
    %(max_image_long_side)s, %(max_image_short_side)s, %(max_steps)s, %(max_repeats)s, %(stripe_product)s, %(stripe_price_monthly)s,
    %(stripe_price_annual)s, %(features)s, %(is_active)s)
RETURNING *
"""
UPDATE = """
UPDATE subscription_plans SET slug = %(slug)s, name = %(name)s, plan_type = %(plan_type)s, monthly_price = %(monthly_price)s,
    annual_price = %(annual_price)s, currency = %(currency)s, monthly_credits = %(monthly_credits)s, validity_days = %(validity_days)s,
    gpu_tier = %(gpu_tier)s, price_per_gpu_second = %(price_per_gpu_second)s, cost_per_gpu_second = %(cost_per_gpu_second)s,
    max_queues = %(max_queues)s, max_storage_gb = %(max_storage_gb)s, plan_priority = %(plan_priority)s, model_access = %(model_access)s,
    third_party_api_access = %(third_party_api_access)s, lora_training = %(lora_training)s, collaboration = %(collaboration)s,
    node_editor_access = %(node_editor_access)s, api_access = %(api_access)s, can_generate_video = %(can_generate_video)s,
    max_video_frames = %(max_video_frames)s, max_video_long_side = %(max_video_long_side)s,
    max_video_short_side = %(max_video_short_side)s, video_bases = %(video_bases)s, max_image_long_side = %(max_image_long_side)s,
    max_image_short_side = %(max_image_short_side)s, max_steps = %(max_steps)s, max_repeats = %(max_repeats)s,
    stripe_product = %(stripe_product)s, stripe_price_monthly = %(stripe_price_monthly)s,
    stripe_price_annual = %(stripe_price_annual)s, features = %(features)s, is_active = %(is_active)s, updated_at = clock_timestamp()
WHERE plan_id = %(plan_id)s
RETURNING *
"""
# What a constraint's name means to whoever typed the values.
EXPECTED = {
    "subscription_plans_slug_is_plain": "a slug of 1 to 50 lower-case letters, digits, - and _, beginning with a letter or digit",
    "subscription_plans_slug_stays": "the slug that the plan has: other rows name the plan by it",
    "subscription_plans_name_has_1_to_50_characters": "a name of 1 to 50 characters",
    "subscription_plans_type_is_known": "plan_type paid, internal or trial",
    "subscription_plans_currency_is_lower_case": "a currency of three lower-case letters",
    "subscription_plans_validity_is_1_to_366_days": "validity_days from 1 to 366",
    "subscription_plans_tier_is_known": "gpu_tier basic, high_performance or dedicated",
    "subscription_plans_priority_is_0_to_1000": "plan_priority from 0 to 1000",
    "subscription_plans_access_is_known": "model_access sd_only, flux_included or full",
    "subscription_plans_features_are_an_object": "features as an object",
    "subscription_plans_prices_not_negative": "prices of 0 or more",
    "subscription_plans_credits_not_negative": "monthly_credits of 0 or more",
    "subscription_plans_not_below_cost": "a price_per_gpu_second that is not below cost_per_gpu_second, and no negative cost",
    "subscription_plans_limits_are_positive": "limits of 1 or more; leave one out, as null, where there is none",
    "subscription_plans_image_sides_in_order": "max_image_short_side up to max_image_long_side",
    "subscription_plans_video_limits_only_with_video": "with can_generate_video positive limits (or null) and bases, without it 0 and []",
}
_KEPT_BY_DATABASE = {"plan_id", "created_at", "updated_at"}
CHANGEABLE = frozenset(Plan.__dataclass_fields__) - _KEPT_BY_DATABASE

Cursor = psycopg.Cursor[DictRow]


def plan_by_slug(cursor: Cursor, slug: str) -> Plan:
    """A plan, active or not; raises NoSuchPlan."""
    return _found(cursor.execute(BY_SLUG, (slug,)).fetchone(), slug)


def plan_by_id(cursor: Cursor, plan_id: UUID) -> Plan:
    """A plan, active or not; raises NoSuchPlan."""
    return _found(cursor.execute(BY_ID, (plan_id,)).fetchone(), str(plan_id))


def list_active(cursor: Cursor) -> tuple[Plan, ...]:
    """The plans that may be chosen or given, cheapest first."""
    return tuple(Plan.of(row) for row in cursor.execute(ACTIVE).fetchall())


def entitlement_of(cursor: Cursor, user_id: str) -> Entitlement:
    """What counts for `user_id` now, by one statement; works in the tenant's own context."""
    rows = cursor.execute(ENTITLEMENT, (user_id,)).fetchall()
    first = rows[0]
    plans = {row["plan_id"]: Plan.of(row) for row in rows if row["plan_id"] is not None}
    return Entitlement(
        plan=plans.get(first["effective_plan_id"]),
        status=first["effective_status"],
        suspended=first["effective_suspended"],
        catalog=tuple(plan for plan in plans.values() if plan.is_active),
        access_levels=first["access_levels"] or {},
    )


def subscription_of(cursor: Cursor, user_id: str) -> dict[str, Any] | None:
    """The user's running subscription or the one that ended last, with its plans' slugs; None when there never was one."""
    return cursor.execute(SUBSCRIPTION, (user_id,)).fetchone()


def list_all(accounts: Accounts, caller: Principal) -> tuple[Plan, ...]:
    """Every plan, inactive ones too, for admins."""
    caller.demand_admin()
    with tenancy.as_system("an admin lists plans"), accounts.database.postgres() as cursor:
        return tuple(Plan.of(row) for row in cursor.execute(ALL).fetchall())


def create(accounts: Accounts, caller: Principal, values: Mapping[str, Any], *, currency: str | None = None) -> Plan:
    """A new plan with all of CHANGEABLE given (S3-182); raises BadPlanInput or PlanExists. `currency` is Stripe's, where it is set up."""
    caller.demand_admin()
    _demand_fields(values, missing=CHANGEABLE - set(values))
    with tenancy.as_system("an admin makes a plan"), accounts.database.postgres() as cursor:
        made = _written(cursor, INSERT, values)
        _demand_sellable(made, values, currency)
        audit.append(cursor, caller.user_id, "plan_created", str(made.plan_id), {"slug": made.slug})
    return made


def change(accounts: Accounts, caller: Principal, plan_id: UUID, values: Mapping[str, Any], *, currency: str | None = None) -> Plan:
    """Change some fields of a plan (S3-183); who is on it gets the new limits at once. Raises NoSuchPlan, BadPlanInput or PlanExists."""
    caller.demand_admin()
    _demand_fields(values)
    with tenancy.as_system("an admin changes a plan"), accounts.database.postgres() as cursor:
        row = cursor.execute(TO_CHANGE, (plan_id,)).fetchone()
        before = _found(row, str(plan_id))
        assert row is not None
        after = _written(cursor, UPDATE, {**row, **values})
        _demand_sellable(after, values, currency)
        changed = {name: _told(before, after, name) for name in sorted(values) if getattr(before, name) != getattr(after, name)}
        if changed:
            audit.append(cursor, caller.user_id, "plan_changed", str(plan_id), {"slug": after.slug, "changed": changed})
    return after


def _found(row: DictRow | None, wanted: str) -> Plan:
    if row is None:
        raise NoSuchPlan(wanted)
    return Plan.of(row)


def _demand_fields(values: Mapping[str, Any], missing: frozenset[str] = frozenset()) -> None:
    unknown = sorted(set(values) - CHANGEABLE)
    if unknown or missing:
        raise BadPlanInput(f"expected the fields of a plan: unknown {unknown}, missing {sorted(missing)}")


def _demand_sellable(plan: Plan, values: Mapping[str, Any], currency: str | None) -> None:
    """What no constraint says: a typing error here would turn something off, or sell nothing for money."""
    unknown = sorted(set(values.get("video_bases") or ()) - set(VIDEO_FAMILIES))
    if unknown:
        raise BadPlanInput(f"video_bases: expected some of {', '.join(VIDEO_FAMILIES)}, got {', '.join(unknown)}")
    if plan.for_sale and plan.monthly_credits is None:
        raise BadPlanInput("monthly_credits: expected a number for a plan that is sold, got null: a contract has no stripe_price_monthly")
    if currency is not None and plan.currency != currency and {"currency", "stripe_price_monthly"} & set(values):
        raise BadPlanInput(f"currency: expected {currency}, which Stripe is asked in (STRIPE_CURRENCY), got {plan.currency}")


def _written(cursor: Cursor, statement: str, values: Mapping[str, Any]) -> Plan:
    """The row after `statement`; raises what the database's refusal means, which ends the transaction."""
    bases = values["video_bases"]
    adapted = {**values, "features": Jsonb(values["features"]), "video_bases": None if bases is None else list(bases)}
    try:
        row = cursor.execute(statement.encode(), adapted).fetchone()
    except psycopg.errors.UniqueViolation as error:
        taken = (error.diag.constraint_name or "").removeprefix("subscription_plans_").removesuffix("_key")
        raise PlanExists(f"expected a {taken} that no other plan has, got {values.get(taken)!r}") from error
    except psycopg.errors.IntegrityError as error:
        if error.diag.constraint_name not in EXPECTED:
            raise BadPlanInput(f"expected a value for {error.diag.column_name}, got null") from error
        raise BadPlanInput(f"expected {EXPECTED[error.diag.constraint_name]}") from error
    except psycopg.DataError as error:
        message = "expected numbers that fit (prices below 100,000,000, counts below 2,147,483,648) and text without NUL"
        raise BadPlanInput(message) from error
    assert row is not None
    return Plan.of(row)


def _told(before: Plan, after: Plan, name: str) -> list[str]:
    return [str(getattr(before, name)), str(getattr(after, name))]
