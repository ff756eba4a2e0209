"""Credits move: hold, grant, take back, adjust, expire; each verb is one function of 0010_credits.sql, in the caller's transaction.

Holds run as the tenant or as system work, the rest as system work. What a verb changes it changes whole, or raises and changes nothing.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, cast

import psycopg
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from invokeai_saas.credits.errors import AlreadyHeld, BadCredits, GrantConflict, InsufficientCredits, NoSuchGrant
from invokeai_saas.credits.model import MOST_CREDITS, SOURCES, Balance, JobHold, Source, TakenBack

Cursor = psycopg.Cursor[DictRow]

HOLD = """
SELECT credits_hold(%(user_id)s, %(items)s::bigint[], %(amounts)s::int[], %(provider)s::int[], %(tiers)s::text[], %(details)s::jsonb[])
"""
PROVIDER_CALLED = "SELECT credits_provider_called(%s, %s)"
GRANT = """
SELECT credits_grant(%(user_id)s, %(credits)s, %(source)s, %(valid_from)s, %(valid_until)s, %(description)s, %(reference_id)s) AS first
"""
TAKE_BACK = """
SELECT first, taken, owed FROM credits_take_back(%(user_id)s, %(credits)s, %(source)s, %(source_reference)s, %(key)s, %(reason)s)
"""
GIVE_BACK = "SELECT credits_give_back(%s, %s) AS credits"
DEDUCT = "SELECT credits_deduct(%(user_id)s, %(credits)s, %(description)s, %(reference_id)s)"
# Only what is valid now; what was taken back is not counted as granted.
BALANCE = """
SELECT COALESCE(sum(total_credits - revoked_credits - expired_credits), 0)::int AS total_credits,
    COALESCE(sum(consumed_credits), 0)::int AS used_credits, COALESCE(sum(held_credits), 0)::int AS held_credits
FROM credits WHERE user_id = %s AND valid_from <= credits_now() AND valid_until > credits_now()
"""
# What can be spent now, in the order in which it is drawn (C-03).
GRANTS = """
SELECT source, total_credits, available_credits, held_credits, valid_from, valid_until FROM credits
WHERE user_id = %s AND valid_from <= credits_now() AND valid_until > credits_now() AND available_credits + held_credits > 0
ORDER BY valid_until, valid_from, created_at
"""


def hold(cursor: Cursor, *, user_id: str, amounts: Mapping[int, int | JobHold]) -> None:
    """Hold credits for each root item of `user_id`, all or none, in the transaction that enqueues them. Raises InsufficientCredits."""
    if not amounts:
        return
    holds = {item: wanted if isinstance(wanted, JobHold) else JobHold(wanted) for item, wanted in sorted(amounts.items())}
    for wanted in holds.values():
        _demand_amount(wanted.amount)
        if not 0 <= wanted.provider_credits <= wanted.amount:
            raise BadCredits(f"provider_credits: expected 0 to {wanted.amount}, got {wanted.provider_credits}")
    values = {
        "user_id": user_id,
        "items": list(holds),
        "amounts": [wanted.amount for wanted in holds.values()],
        "provider": [wanted.provider_credits for wanted in holds.values()],
        "tiers": [wanted.gpu_tier for wanted in holds.values()],
        "details": [Jsonb(dict(wanted.detail)) for wanted in holds.values()],
    }
    with _mapped():
        cursor.execute(HOLD, values)


def provider_called(cursor: Cursor, *, item_id: int, credits: int) -> None:
    """A call to an external provider was made for this item: charged also when its job is canceled or fails."""
    with _mapped():
        cursor.execute(PROVIDER_CALLED, (item_id, credits))


def grant(
    cursor: Cursor,
    *,
    user_id: str,
    credits: int,
    source: Source,
    valid_from: datetime,
    valid_until: datetime,
    description: str,
    reference_id: str | None = None,
) -> bool:
    """Give credits for a time; returns False when this source and reference had them before. System work."""
    _demand_amount(credits)
    _demand_window(valid_from, valid_until)
    if source not in SOURCES:
        raise BadCredits(f"source: expected one of {', '.join(SOURCES)}, got {source}")
    with _mapped():
        row = cursor.execute(
            GRANT,
            {
                "user_id": user_id,
                "credits": credits,
                "source": source,
                "valid_from": valid_from,
                "valid_until": valid_until,
                "description": _text("description", description),
                "reference_id": reference_id,
            },
        ).fetchone()
    return bool(row and row["first"])


def take_back(
    cursor: Cursor, *, user_id: str, credits: int, source_reference: str, reason: str, key: str, source: Source = "purchase"
) -> TakenBack:
    """A refund or dispute of what `source_reference` granted: never below zero, once per `key` (the provider's refund)."""
    _demand_amount(credits)
    values = {
        "user_id": user_id,
        "credits": credits,
        "source": source,
        "source_reference": source_reference,
        "key": key,
        "reason": _text("reason", reason),
    }
    with _mapped():
        row = cursor.execute(TAKE_BACK, values).fetchone()
    return TakenBack(**cast(dict[str, Any], row))


def give_back(cursor: Cursor, *, key: str, reason: str) -> int:
    """Undo the take_back() of this key: a dispute was won. Returns how many credits came back; 0 the second time. System work."""
    with _mapped():
        row = cursor.execute(GIVE_BACK, (key, _text("reason", reason))).fetchone()
    return int(row["credits"]) if row else 0


def deduct(cursor: Cursor, *, user_id: str, credits: int, description: str, reference_id: str | None = None) -> None:
    """Take available credits away, all or none, soonest to end first. Raises InsufficientCredits. System work; see adjust.py."""
    _demand_amount(credits)
    values = {"user_id": user_id, "credits": credits, "description": _text("description", description), "reference_id": reference_id}
    with _mapped():
        cursor.execute(DEDUCT, values)


def balance(cursor: Cursor, user_id: str) -> Balance:
    """C-01. A tenant reads their own; of others it is 0."""
    row = cursor.execute(BALANCE, (user_id,)).fetchone()
    return Balance(**cast(dict[str, int], row))


def grants(cursor: Cursor, user_id: str) -> list[dict[str, Any]]:
    """Where the balance comes from and when each part of it ends; what is used up is left out."""
    return cursor.execute(GRANTS, (user_id,)).fetchall()


def _demand_amount(credits: int) -> None:
    if isinstance(credits, bool) or not isinstance(credits, int) or not 1 <= credits <= MOST_CREDITS:
        raise BadCredits(f"credits: expected a whole number from 1 to {MOST_CREDITS:,}, got {credits!r}")


def _demand_window(valid_from: datetime, valid_until: datetime) -> None:
    if valid_from.tzinfo is None or valid_until.tzinfo is None:
        raise BadCredits("valid_from, valid_until: expected times with a time zone")
    if valid_until <= valid_from:
        raise BadCredits(f"valid_until: expected a time after {valid_from.isoformat()}, got {valid_until.isoformat()}")
    if valid_until <= datetime.now(UTC):
        raise BadCredits(f"valid_until: expected a time to come, got {valid_until.isoformat()}")


def _text(name: str, value: str) -> str:
    if not value.strip() or "\0" in value or len(value) > 1000:
        raise BadCredits(f"{name}: expected 1 to 1,000 characters")
    return value


@contextmanager
def _mapped() -> Iterator[None]:
    """The database's named constraints as our errors."""
    try:
        yield
    except psycopg.errors.IntegrityError as error:
        raise _error_of(error) from error


def _error_of(error: psycopg.errors.IntegrityError) -> Exception:
    name = error.diag.constraint_name
    if name == "credits_insufficient":
        return _insufficient(error)
    if name == "credit_holds_pkey":
        return AlreadyHeld("this job's credits are held already")
    if name == "credits_no_such_grant":
        return NoSuchGrant("expected a grant with this reference, got none")
    if name == "credits_reference_means_one_grant":
        return GrantConflict(str(error.diag.message_primary))
    if name in ("credits_window_not_past", "credits_window_runs_forward", "credits_add_up", "credits_amount_in_bounds"):
        return BadCredits(str(error.diag.message_primary))
    return error


def _insufficient(error: psycopg.Error) -> InsufficientCredits:
    found = json.loads(error.diag.message_detail or "{}")
    return InsufficientCredits(remaining=int(found["remaining"]), required=int(found["required"]))
