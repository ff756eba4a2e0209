"""A letter when a user's credits run low (C-44): once per time that they fall below ten, again after they were above it.

Whoever's jobs were settled lately is looked at; the row in low_balance_letters says that the letter was written. Runs every few minutes.
"""

from invokeai_saas.accounts import mail, store
from invokeai_saas.accounts.model import Accounts
from invokeai_saas.credits.model import LOW_BALANCE
from invokeai_saas.db import tenancy

# Who has enough again may be told again.
FORGET = """
DELETE FROM low_balance_letters AS told
WHERE %(low)s <= (SELECT COALESCE(sum(available_credits), 0) FROM credits
    WHERE credits.user_id = told.user_id AND valid_from <= now() AND valid_until > now())
"""
REMEMBER = """
INSERT INTO low_balance_letters (user_id)
SELECT lately.user_id FROM (SELECT DISTINCT user_id FROM usage_records WHERE created_at > now() - interval '1 day') AS lately
WHERE %(low)s > (SELECT COALESCE(sum(available_credits + held_credits), 0) FROM credits
        WHERE credits.user_id = lately.user_id AND valid_from <= now() AND valid_until > now())
    AND EXISTS (SELECT FROM users WHERE users.user_id = lately.user_id AND users.is_active = 1)
ON CONFLICT DO NOTHING
RETURNING user_id
"""


def tell(accounts: Accounts) -> int:
    """Write the letters that are due; returns how many."""
    written = 0
    with tenancy.as_system("balances of all users run low"), accounts.database.postgres() as cursor:
        cursor.execute(FORGET, {"low": LOW_BALANCE})
        for row in cursor.execute(REMEMBER, {"low": LOW_BALANCE}).fetchall():
            account = store.by_id(cursor, row["user_id"])
            if account is not None and account.deleted_at is None:
                mail.enqueue(cursor, account, "low_balance", accounts.policy, "")
                written += 1
    return written
