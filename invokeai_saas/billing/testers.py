"""Testers: an admin lends a user the tester plan and credits for a while, and may take both back (S3-176..178, C-17)."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from invokeai_saas.accounts import audit, erase, mail, store
from invokeai_saas.accounts.errors import NoSuchAccount
from invokeai_saas.accounts.model import Principal
from invokeai_saas.billing.errors import AlreadyRevoked, BadBillingInput, NoSuchGrant
from invokeai_saas.billing.model import Billing
from invokeai_saas.credits import service as credits
from invokeai_saas.credits.model import MOST_CREDITS
from invokeai_saas.db import tenancy

DEFAULT_CREDITS = 50_000
MIN_REASON, MAX_DAYS = 10, 365
GRANT = """
INSERT INTO tester_plan_grants (grant_id, user_id, admin_user_id, credits_granted, valid_from, valid_until, reason)
VALUES (%(grant_id)s, %(user_id)s, %(admin_user_id)s, %(credits)s, %(now)s, %(until)s, %(reason)s)
RETURNING *
"""
TO_REVOKE = "SELECT * FROM tester_plan_grants WHERE grant_id = %s FOR UPDATE"
REVOKE = """
UPDATE tester_plan_grants SET revoked_at = clock_timestamp(), revoked_by = %s WHERE grant_id = %s RETURNING *
"""
ACTIVE = " WHERE NOT %(active_only)s OR (revoked_at IS NULL AND valid_until > clock_timestamp())"
LIST = "SELECT * FROM tester_plan_grants" + ACTIVE + " ORDER BY created_at DESC, grant_id LIMIT %(limit)s OFFSET %(offset)s"
COUNT = "SELECT count(*) AS total FROM tester_plan_grants" + ACTIVE


def grant(billing: Billing, caller: Principal, *, user_id: str, days: int, reason: str, amount: int = DEFAULT_CREDITS) -> dict[str, Any]:
    """Lend the tester plan; the row. A paid subscription is not touched by it."""
    caller.demand_admin()
    if not 1 <= days <= MAX_DAYS:
        raise BadBillingInput(f"duration_days: expected 1 to {MAX_DAYS}, got {days}")
    if not 1 <= amount <= MOST_CREDITS:
        raise BadBillingInput(f"credits: expected 1 to {MOST_CREDITS:,}, got {amount}")
    if len(reason.strip()) < MIN_REASON:
        raise BadBillingInput(f"reason: expected {MIN_REASON} characters or more, got {len(reason.strip())}")
    now, grant_id = datetime.now(UTC), uuid4()
    until = now + timedelta(days=days)
    with tenancy.as_system("an admin lends the tester plan"), billing.database.postgres() as cursor:
        account = store.by_id(cursor, user_id, lock=True)
        if account is None or account.deleted_at is not None:
            raise NoSuchAccount("expected the id of an account")
        values = {"grant_id": grant_id, "user_id": user_id, "admin_user_id": caller.user_id, "credits": amount}
        row = cursor.execute(GRANT, {**values, "now": now, "until": until, "reason": reason.strip()}).fetchone()
        credits.grant(
            cursor,
            user_id=user_id,
            credits=amount,
            source="admin_grant",
            valid_from=now,
            valid_until=until,
            description=f"Tester: {amount:,} credits",
            reference_id=_reference(grant_id),
        )
        cursor.execute(erase.RESUME_ACCESS, (user_id,))
        audit.append(cursor, caller.user_id, "tester_granted", user_id, {"grant": str(grant_id), "credits": amount, "days": days})
        mail.enqueue(cursor, account, "tester_granted", billing.accounts.policy, "")
    assert row is not None
    return row


def revoke(billing: Billing, caller: Principal, grant_id: UUID) -> dict[str, Any]:
    """End it now and take back what is not spent; what jobs hold follows when they let go of it."""
    caller.demand_admin()
    with tenancy.as_system("an admin ends a tester's time"), billing.database.postgres() as cursor:
        found = cursor.execute(TO_REVOKE, (grant_id,)).fetchone()
        if found is None:
            raise NoSuchGrant("expected the id of a tester grant")
        if found["revoked_at"] is not None or found["valid_until"] <= datetime.now(UTC):
            raise AlreadyRevoked("expected a tester grant that runs, got one that has ended")
        row = cursor.execute(REVOKE, (caller.user_id, grant_id)).fetchone()
        taken = credits.take_back(
            cursor,
            user_id=found["user_id"],
            credits=found["credits_granted"],
            source="admin_grant",
            source_reference=_reference(grant_id),
            key=f"revoked-{grant_id}",
            reason="Tester grant revoked",
        )
        audit.append(cursor, caller.user_id, "tester_revoked", found["user_id"], {"grant": str(grant_id), "taken": taken.taken})
        account = store.by_id(cursor, found["user_id"])
        if account is not None and account.deleted_at is None:
            mail.enqueue(cursor, account, "tester_revoked", billing.accounts.policy, "")
    assert row is not None
    return row


def listed(billing: Billing, caller: Principal, *, page: int, limit: int, active_only: bool) -> tuple[list[dict[str, Any]], int]:
    """A page (from 1), newest first, and how many there are."""
    caller.demand_admin()
    values = {"active_only": active_only, "limit": limit, "offset": (page - 1) * limit}
    with tenancy.as_system("an admin lists tester grants"), billing.database.postgres() as cursor:
        rows = cursor.execute(LIST, values).fetchall()
        total = cursor.execute(COUNT, values).fetchone()
    return rows, int(total["total"]) if total else 0


def _reference(grant_id: UUID) -> str:
    return f"tester-{grant_id}"
