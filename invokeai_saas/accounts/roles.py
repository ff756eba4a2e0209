"""One active super_admin always remains, whoever is demoted, deactivated or deleted at the same moment."""

from invokeai_saas.accounts.errors import LastSuperAdmin
from invokeai_saas.accounts.model import Account
from invokeai_saas.accounts.store import Cursor

# Changes that could take the last one away follow each other.
LOCK_SUPER_ADMINS = "SELECT pg_advisory_xact_lock(hashtextextended('super_admins', 0))"
OTHER_SUPER_ADMINS = """
SELECT count(*) AS others FROM users JOIN saas_users USING (user_id)
WHERE role = 'super_admin' AND is_active = 1 AND deleted_at IS NULL AND user_id <> %s
"""


def others(cursor: Cursor, user_id: str) -> int:
    """How many active super_admins there are besides `user_id`; nobody changes that before the end of the transaction."""
    cursor.execute(LOCK_SUPER_ADMINS)
    row = cursor.execute(OTHER_SUPER_ADMINS, (user_id,)).fetchone()
    return int(row["others"]) if row else 0


def demand_another(cursor: Cursor, target: Account) -> None:
    """Raise LastSuperAdmin when `target` is the only active one."""
    if target.role == "super_admin" and target.is_active and others(cursor, target.user_id) == 0:
        raise LastSuperAdmin
