"""A plan without Stripe: contracts (Enterprise has no price there), imported users, the first administrator.

Whoever has the machine gives it for a number of days, with credits for that time; the plan that was given before ends and its
credits stay, what is paid for is not touched.
"""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from invokeai_saas.accounts import audit, erase, store
from invokeai_saas.accounts.errors import NoSuchAccount
from invokeai_saas.accounts.model import Account, Accounts
from invokeai_saas.billing.errors import BadBillingInput, SubscriptionRuns
from invokeai_saas.credits import service as credits
from invokeai_saas.credits.model import MOST_CREDITS
from invokeai_saas.db import tenancy
from invokeai_saas.plans import catalog

OPERATOR = "operator"
MOST_DAYS = 3660
FIRST_ADMIN: dict[str, Any] = {"slug": "enterprise", "days": MOST_DAYS, "amount": 1_000_000, "reason": "the first administrator"}
ACCOUNT = "SELECT user_id FROM users WHERE lower(email) = lower(%s)"
PAID = """
SELECT 1 FROM user_subscriptions
WHERE user_id = %s AND status IN ('trialing', 'active', 'past_due') AND stripe_subscription_id IS NOT NULL FOR UPDATE
"""
END_EARLIER = """
UPDATE user_subscriptions SET status = 'canceled', updated_at = clock_timestamp()
WHERE user_id = %s AND status IN ('trialing', 'active', 'past_due')
"""
GIVE = """
INSERT INTO user_subscriptions (subscription_id, user_id, plan_id, status, current_period_start, current_period_end)
VALUES (%(id)s, %(user_id)s, %(plan_id)s, 'active', %(now)s, %(ends)s)
RETURNING subscription_id, current_period_end
"""


def give(accounts: Accounts, *, email: str, slug: str, days: int, amount: int, reason: str) -> dict[str, Any]:
    """Put an account on a plan for `days`, with `amount` credits (0: none); returns the subscription's id and end.

    Raises NoSuchAccount, NoSuchPlan, BadBillingInput, and SubscriptionRuns where a subscription at Stripe runs.
    """
    _demand(days=days, amount=amount, reason=reason)
    now = datetime.now(UTC)
    values: dict[str, Any] = {"id": uuid4(), "now": now, "ends": now + timedelta(days=days)}
    with tenancy.as_system("whoever has the machine gives a plan"), accounts.database.postgres() as cursor:
        account = _account(cursor, email)
        plan = catalog.plan_by_slug(cursor, slug)
        if cursor.execute(PAID, (account.user_id,)).fetchone() is not None:
            raise SubscriptionRuns("expected an account without a subscription at Stripe, got one that runs: end that first")
        cursor.execute(END_EARLIER, (account.user_id,))
        given = cursor.execute(GIVE, {**values, "user_id": account.user_id, "plan_id": plan.plan_id}).fetchone()
        assert given is not None
        if amount:
            credits.grant(
                cursor,
                user_id=account.user_id,
                credits=amount,
                source="admin_grant",
                valid_from=now,
                valid_until=values["ends"],
                description=f"{plan.name}: {amount:,} credits",
                reference_id=f"by-hand-{values['id']}",
            )
        cursor.execute(erase.RESUME_ACCESS, (account.user_id,))
        told = {"plan": plan.slug, "days": days, "credits": amount, "reason": reason.strip()}
        audit.append(cursor, OPERATOR, "plan_given", account.user_id, told)
    return given


def _demand(*, days: int, amount: int, reason: str) -> None:
    if not 1 <= days <= MOST_DAYS:
        raise BadBillingInput(f"days: expected 1 to {MOST_DAYS:,}, got {days:,}")
    if not 0 <= amount <= MOST_CREDITS:
        raise BadBillingInput(f"credits: expected 0 to {MOST_CREDITS:,}, got {amount:,}")
    if not reason.strip():
        raise BadBillingInput("reason: expected a few words for the audit log, got none")
    if "@" in reason:
        raise BadBillingInput("reason: expected words without an @: the audit log keeps no address")


def _account(cursor: store.Cursor, email: str) -> Account:
    row = cursor.execute(ACCOUNT, (email,)).fetchone()
    account = None if row is None else store.by_id(cursor, row["user_id"], lock=True)
    if account is None or account.deleted_at is not None:
        raise NoSuchAccount(f"expected the address of an account, got {email}")
    return account
