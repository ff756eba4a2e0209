"""What time does to subscriptions: trials end, grace runs out, who has nothing any more becomes read-only, who deleted their account
stops paying. Each is a job that may run at any time, in any process, twice."""

import logging
from typing import Any

from invokeai_saas.accounts import letters, mail, store
from invokeai_saas.accounts.store import Cursor
from invokeai_saas.billing.model import Billing
from invokeai_saas.db import tenancy
from invokeai_saas.errors import SaasError

# Also what was given by hand for a time.
END_TRIALS = """
UPDATE user_subscriptions SET status = 'expired', updated_at = clock_timestamp()
WHERE stripe_subscription_id IS NULL AND ((status = 'trialing' AND trial_end <= clock_timestamp())
    OR (status = 'active' AND current_period_end <= clock_timestamp()))
RETURNING user_id, trial_end IS NOT NULL AS was_trial
"""
SUSPEND = """
UPDATE user_subscriptions SET told_of = 'suspended', updated_at = clock_timestamp()
WHERE status = 'past_due' AND grace_until <= clock_timestamp() AND told_of IS NULL
RETURNING user_id
"""
# Who had something, and has nothing now: neither a subscription nor a tester's window.
END_ACCESS = """
UPDATE saas_users SET access_ended_at = clock_timestamp()
WHERE access_ended_at IS NULL AND deleted_at IS NULL
    AND (EXISTS (SELECT FROM user_subscriptions WHERE user_id = saas_users.user_id)
        OR EXISTS (SELECT FROM tester_plan_grants WHERE user_id = saas_users.user_id))
    AND NOT EXISTS (SELECT FROM user_subscriptions WHERE user_id = saas_users.user_id AND status IN ('trialing', 'active', 'past_due'))
    AND NOT EXISTS (SELECT FROM tester_plan_grants
        WHERE user_id = saas_users.user_id AND revoked_at IS NULL AND valid_until > clock_timestamp())
RETURNING user_id, (SELECT status FROM user_subscriptions AS held WHERE held.user_id = saas_users.user_id
    ORDER BY created_at DESC, subscription_id LIMIT 1) AS last_status
"""
# A customer at Stripe whose account is gone here. The row goes when Stripe's is gone.
DELETED = """
SELECT stripe_customer_id FROM billing_customers JOIN saas_users USING (user_id) WHERE deleted_at IS NOT NULL ORDER BY 1 LIMIT 100
"""
FORGET_CUSTOMER = "DELETE FROM billing_customers WHERE stripe_customer_id = %s"

logger = logging.getLogger(__name__)


def end_trials(billing: Billing) -> int:
    """Trials whose week is over; returns how many."""
    with tenancy.as_system("trials end by themselves"), billing.database.postgres() as cursor:
        rows = cursor.execute(END_TRIALS).fetchall()
        for row in rows:
            _write(billing, cursor, row["user_id"], "trial_ended" if row["was_trial"] else "subscription_ended")
    return len(rows)


def tell_suspended(billing: Billing) -> int:
    """Who is suspended from now on hears of it once; the suspension itself is what the clock says (plan_of)."""
    with tenancy.as_system("grace runs out by itself"), billing.database.postgres() as cursor:
        rows = cursor.execute(SUSPEND).fetchall()
        for row in rows:
            _write(billing, cursor, row["user_id"], "suspended")
    return len(rows)


def end_access(billing: Billing) -> int:
    """Who has nothing any more reads for 30 days and is then erased (accounts/erase.py)."""
    with tenancy.as_system("subscriptions end by themselves"), billing.database.postgres() as cursor:
        rows = cursor.execute(END_ACCESS).fetchall()
        for row in rows:
            if row["last_status"] == "canceled":
                _write(billing, cursor, row["user_id"], "subscription_ended")
    return len(rows)


def close_deleted(billing: Billing) -> int:
    """Who deleted their account pays no more: the customer is deleted at Stripe, which ends its subscriptions. Returns how many."""
    if billing.gateway is None:
        return 0
    with tenancy.as_system("accounts that are gone"), billing.database.postgres() as cursor:
        gone = [row["stripe_customer_id"] for row in cursor.execute(DELETED).fetchall()]
    closed = 0
    for customer in gone:
        try:
            billing.gateway.delete_customer(customer)
        except SaasError:
            logger.exception("customer %s of a deleted account could not be deleted at Stripe", customer)
            continue
        with tenancy.as_system("accounts that are gone"), billing.database.postgres() as cursor:
            cursor.execute(FORGET_CUSTOMER, (customer,))
        closed += 1
    return closed


def run(billing: Billing) -> dict[str, int]:
    """Everything that time does, in order."""
    jobs: dict[str, Any] = {
        "trials_ended": end_trials,
        "suspended": tell_suspended,
        "access_ended": end_access,
        "customers_closed": close_deleted,
    }
    return {name: job(billing) for name, job in jobs.items()}


def _write(billing: Billing, cursor: Cursor, user_id: str, kind: letters.Kind) -> None:
    account = store.by_id(cursor, user_id)
    if account is not None and account.deleted_at is None:
        mail.enqueue(cursor, account, kind, billing.accounts.policy, "")
