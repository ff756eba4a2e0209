"""A trial: 7 days and 500 credits, once per address, from the moment the address is proved (C-15, decision 17)."""

from datetime import UTC, datetime, timedelta

from invokeai_saas.accounts import mail, store
from invokeai_saas.accounts.model import Account, Accounts
from invokeai_saas.accounts.store import Cursor
from invokeai_saas.credits import service as credits
from invokeai_saas.plans import catalog

# The insert decides; the mark outlives the account.
REMEMBER = "INSERT INTO trials (mark) VALUES (%s) ON CONFLICT DO NOTHING"
BEGIN = """
INSERT INTO user_subscriptions (user_id, plan_id, status, current_period_start, current_period_end, trial_end)
SELECT %(user_id)s, %(plan_id)s, 'trialing', %(now)s, %(ends)s, %(ends)s
WHERE NOT EXISTS (SELECT FROM user_subscriptions WHERE user_id = %(user_id)s)
"""
# Providers that ignore dots in a name.
DOTLESS = frozenset({"gmail.com", "googlemail.com"})


def begin(accounts: Accounts, cursor: Cursor, account: Account) -> bool:
    """Give the account a trial, unless its address had one before or it has a subscription; returns whether it did. System work.

    Runs in the transaction that proves the address.
    """
    plan = catalog.plan_by_slug(cursor, "trial")
    if not plan.is_active or not plan.monthly_credits:
        return False
    cursor.execute(REMEMBER, (store.keyed_mark(cursor, f"trial {mailbox(account.email)}"),))
    if cursor.rowcount != 1:
        return False
    now = datetime.now(UTC)
    ends = now + timedelta(days=plan.validity_days)
    cursor.execute(BEGIN, {"user_id": account.user_id, "plan_id": plan.plan_id, "now": now, "ends": ends})
    if cursor.rowcount != 1:
        return False
    credits.grant(
        cursor,
        user_id=account.user_id,
        credits=plan.monthly_credits,
        source="trial",
        valid_from=now,
        valid_until=ends,
        description=f"Trial: {plan.monthly_credits:,} credits",
        reference_id=f"trial-{account.user_id}",
    )
    mail.enqueue(cursor, account, "trial_started", accounts.policy, "")
    return True


def mailbox(email: str) -> str:
    """Whose mailbox an address reaches: one person writes it in many ways (+tags, dots at Google), and has one trial."""
    name, _, domain = email.strip().lower().rpartition("@")
    name = name.partition("+")[0] or name
    if domain in DOTLESS:
        name, domain = name.replace(".", ""), "gmail.com"
    return f"{name}@{domain}"
