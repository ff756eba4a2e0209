"""Who did what to whom, for good: the database refuses every change of a line, and every line that holds an address."""

from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from invokeai_saas.accounts.errors import BadAccountInput
from invokeai_saas.accounts.model import Accounts, Principal
from invokeai_saas.db import tenancy

NO_ADDRESS = "audit_log_keeps_no_address"
SYSTEM_ACTOR = "system"
APPEND = "INSERT INTO audit_log (actor_id, action, target_id, details) VALUES (%s, %s, %s, %s)"
# Newest first, older than `before`.
READ = """
SELECT audit_id, at, actor_id, action, target_id, details FROM audit_log
WHERE (%(target_id)s::text IS NULL OR target_id = %(target_id)s) AND (%(before)s::bigint IS NULL OR audit_id < %(before)s)
ORDER BY audit_id DESC LIMIT %(limit)s
"""

Entry = dict[str, int | str | datetime | dict[str, Any] | None]


def append(
    cursor: psycopg.Cursor[DictRow], actor_id: str, action: str, target_id: str | None = None, details: dict[str, Any] | None = None
) -> None:
    """One line, in the transaction of the act itself: both or neither. Raises BadAccountInput for an address in the details."""
    try:
        cursor.execute(APPEND, (actor_id, action, target_id, Jsonb(details or {})))
    except psycopg.errors.CheckViolation as error:
        if error.diag.constraint_name != NO_ADDRESS:
            raise
        raise BadAccountInput("expected no @ in what the audit log keeps: it outlives the account") from error


def read(
    accounts: Accounts, caller: Principal, *, target_id: str | None = None, before: int | None = None, limit: int = 100
) -> list[Entry]:
    """The newest lines, for admins."""
    caller.demand_admin()
    with tenancy.as_system("an admin reads the audit log"), accounts.database.postgres() as cursor:
        return cursor.execute(READ, {"target_id": target_id, "before": before, "limit": limit}).fetchall()
