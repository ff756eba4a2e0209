"""An administrator gives credits, or takes them away, and says why; one line in the audit log, in the same transaction."""

from datetime import datetime, timedelta
from typing import cast

from invokeai_saas.accounts import audit, store
from invokeai_saas.accounts.errors import NoSuchAccount
from invokeai_saas.accounts.model import Accounts, Principal
from invokeai_saas.credits import service
from invokeai_saas.credits.errors import BadCredits
from invokeai_saas.credits.model import MOST_CREDITS, Balance
from invokeai_saas.db import tenancy

NOW = "SELECT now() AS now"
SHORTEST_REASON = 10
LONGEST_DAYS = 3650


def adjust(
    accounts: Accounts, caller: Principal, *, user_id: str, credits: int, reason: str, days: int = 30, key: str | None = None
) -> Balance:
    """Give `credits` for `days`, or take them when negative: all or none. `key` makes a second call with it give nothing more."""
    caller.demand_admin()
    if isinstance(credits, bool) or not isinstance(credits, int) or credits == 0 or abs(credits) > MOST_CREDITS:
        raise BadCredits(f"credits: expected a whole number up to {MOST_CREDITS:,}, not 0, got {credits!r}")
    if len(reason.strip()) < SHORTEST_REASON:
        raise BadCredits(f"reason: expected at least {SHORTEST_REASON} characters")
    if "@" in reason:
        raise BadCredits("reason: expected words without an @: the audit log keeps no address")
    if not 1 <= days <= LONGEST_DAYS:
        raise BadCredits(f"days: expected 1 to {LONGEST_DAYS}, got {days}")
    with tenancy.as_system("an admin adjusts somebody's credits"), accounts.database.postgres() as cursor:
        account = store.by_id(cursor, user_id, lock=True)
        if account is None or account.deleted_at is not None:
            raise NoSuchAccount("expected an account that is there")
        now, first = _now(cursor), True
        if credits > 0:
            first = service.grant(
                cursor,
                user_id=user_id,
                credits=credits,
                source="admin_grant",
                valid_from=now,
                valid_until=now + timedelta(days=days),
                description=reason,
                reference_id=key,
            )
        else:
            service.deduct(cursor, user_id=user_id, credits=-credits, description=reason, reference_id=key)
        if first:
            audit.append(cursor, caller.user_id, "credits_adjusted", user_id, {"credits": credits, "days": days, "reason": reason})
        return service.balance(cursor, user_id)


def _now(cursor: service.Cursor) -> datetime:
    """When the transaction began, as the books reckon: credits that begin later would not count in the answer."""
    row = cursor.execute(NOW).fetchone()
    assert row is not None
    return cast(datetime, row["now"])
