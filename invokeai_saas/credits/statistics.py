"""What was used and what moved, to read: a user's own pages and sums, and everybody's lines for an administrator's tables."""

import csv
import io
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

from invokeai_saas.credits.errors import BadCredits
from invokeai_saas.credits.service import Cursor
from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase

Period = Literal["day", "week", "month", "year"]
DAYS: dict[Period, int] = {"day": 1, "week": 7, "month": 30, "year": 365}
LONGEST_DAYS = 3660
# Everything that was ever counted, and no day whose neighbours there are none of.
FIRST_DAY, LAST_DAY = date(2000, 1, 1), date(2999, 12, 31)
PAGE = 1000

TRANSACTIONS = """
SELECT id, credit_id, amount, transaction_type, description, reference_id, created_at FROM credit_transactions
WHERE user_id = %(user_id)s AND (%(type)s::text IS NULL OR transaction_type = %(type)s)
ORDER BY created_at DESC, id LIMIT %(limit)s OFFSET %(offset)s
"""
COUNT = """
SELECT count(*)::int AS total FROM credit_transactions
WHERE user_id = %(user_id)s AND (%(type)s::text IS NULL OR transaction_type = %(type)s)
"""
# Every grouping of the same rows, in one pass.
USAGE = """
SELECT action_type, model_used, (created_at AT TIME ZONE 'UTC')::date AS day, count(*)::int AS jobs,
    sum(credits_consumed)::int AS credits_consumed, sum(compute_seconds)::float AS compute_seconds
FROM usage_records WHERE user_id = %(user_id)s AND created_at >= %(since)s AND created_at < %(until)s
GROUP BY GROUPING SETS ((), (action_type), (model_used), ((created_at AT TIME ZONE 'UTC')::date))
ORDER BY day, action_type, model_used
"""
ALL_TRANSACTIONS = """
SELECT created_at, id, user_id, credit_id, amount, transaction_type, description, reference_id FROM credit_transactions
WHERE (created_at, id) > (%(after)s, %(after_id)s) AND created_at < %(until)s ORDER BY created_at, id LIMIT %(limit)s
"""
ALL_USAGE = """
SELECT created_at, id, user_id, job_id, action_type, model_used, gpu_tier, steps, width, height, batch_size, compute_seconds, credits_held,
    credits_consumed, provider_credits, outcome
FROM usage_records
WHERE (created_at, id) > (%(after)s, %(after_id)s) AND created_at < %(until)s ORDER BY created_at, id LIMIT %(limit)s
"""
TABLES = {"transactions": ALL_TRANSACTIONS, "usage": ALL_USAGE}
_NO_ID = "00000000-0000-0000-0000-000000000000"
# What a spreadsheet would run.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def transactions(cursor: Cursor, *, user_id: str, page: int, limit: int, kind: str | None) -> tuple[list[dict[str, Any]], int]:
    """A page of the user's ledger, newest first, and how many lines there are."""
    values = {"user_id": user_id, "type": kind, "limit": limit, "offset": (page - 1) * limit}
    count = cursor.execute(COUNT, values).fetchone()
    return cursor.execute(TRANSACTIONS, values).fetchall(), int(count["total"]) if count else 0


def window(period: Period, start: date | None, end: date | None) -> tuple[datetime, datetime]:
    """From the beginning of `start` to the end of `end`, both days in UTC; by default the period that ends today."""
    for name, day in (("start_date", start), ("end_date", end)):
        if day is not None and not FIRST_DAY <= day <= LAST_DAY:
            raise BadCredits(f"{name}: expected a day from {FIRST_DAY} to {LAST_DAY}, got {day}")
    last = end or datetime.now(UTC).date()
    first = start or last - timedelta(days=DAYS[period] - 1)
    if first > last or (last - first).days > LONGEST_DAYS:
        raise BadCredits(f"start_date: expected a day up to {LONGEST_DAYS} days before {last.isoformat()}, got {first.isoformat()}")
    return _midnight(first), _midnight(last) + timedelta(days=1)


def usage(cursor: Cursor, *, user_id: str, since: datetime, until: datetime) -> dict[str, Any]:
    """Jobs, credits and seconds: in all, by action, by model, by day."""
    found: dict[str, Any] = {"by_action": [], "by_model": [], "by_day": []}
    for row in cursor.execute(USAGE, {"user_id": user_id, "since": since, "until": until}).fetchall():
        sums = {name: row[name] or 0 for name in ("jobs", "credits_consumed", "compute_seconds")}
        if row["action_type"] is not None:
            found["by_action"].append({"action_type": row["action_type"], **sums})
        elif row["model_used"] is not None:
            found["by_model"].append({"model_used": row["model_used"], **sums})
        elif row["day"] is not None:
            found["by_day"].append({"day": row["day"], **sums})
        else:
            found.update(sums)
    return found


def export(database: PostgresDatabase, table: str, *, since: datetime, until: datetime) -> Iterator[str]:
    """CSV of everybody's lines, oldest first, page by page: no transaction waits for a slow reader."""
    values: dict[str, Any] = {"after": since - timedelta(microseconds=1), "after_id": _NO_ID, "until": until, "limit": PAGE}
    header = True
    while True:
        rows = _page(database, table, values)
        if header:
            yield ",".join(_columns(table)) + "\r\n"
            header = False
        if not rows:
            return
        yield _lines(rows)
        values |= {"after": rows[-1]["created_at"], "after_id": rows[-1]["id"]}


def _page(database: PostgresDatabase, table: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    with tenancy.as_system("an admin exports the books"), database.postgres() as cursor:
        return cursor.execute(TABLES[table].encode(), values).fetchall()


def _columns(table: str) -> list[str]:
    return [name.strip() for name in TABLES[table].split("FROM")[0].replace("SELECT", "").split(",")]


def _lines(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerows([_cell(value) for value in row.values()] for row in rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
