"""Grants, jobs with holds and their ends, for the tests of credits; and the sums that must be right after each of them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from saas.people import rows

from invokeai_saas.credits import service
from invokeai_saas.credits.model import Balance, JobHold
from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase

# What is wrong with the books; none of it ever is.
DRIFT = """
SELECT 'grant' AS what, g.credit_id::text AS name FROM credits AS g
LEFT JOIN (SELECT credit_id, sum(amount) AS amount FROM credit_transactions GROUP BY credit_id) AS ledger USING (credit_id)
LEFT JOIN (SELECT credit_id, sum(part) AS amount FROM credit_holds, unnest(drawn, drawn_amounts) AS d (credit_id, part)
    WHERE state = 'held' GROUP BY credit_id) AS open USING (credit_id)
WHERE total_credits - consumed_credits - expired_credits - revoked_credits <> COALESCE(ledger.amount, 0)
    OR held_credits <> COALESCE(open.amount, 0)
    OR total_credits <> available_credits + held_credits + consumed_credits + expired_credits + revoked_credits
    OR LEAST(available_credits, held_credits, consumed_credits, expired_credits, revoked_credits, owed_credits) < 0
UNION ALL
SELECT 'hold', item_id::text FROM credit_holds WHERE amount <> (SELECT sum(part) FROM unnest(drawn_amounts) AS part)
    OR (state = 'held' AND NOT EXISTS (SELECT FROM session_queue AS item
        WHERE item.item_id = credit_holds.item_id AND status IN ('pending', 'in_progress', 'waiting')))
"""


def give(database: PostgresDatabase, user_id: str, credits: int, *, days: float = 30, reference: str | None = None, **how: Any) -> bool:
    """A grant that is valid from a minute ago."""
    now = datetime.now(UTC)
    with tenancy.as_system("a test grants"), database.postgres() as cursor:
        return service.grant(
            cursor,
            user_id=user_id,
            credits=credits,
            source=how.get("source", "purchase"),
            valid_from=now - timedelta(minutes=1),
            valid_until=now + timedelta(days=days),
            description="a test's grant",
            reference_id=reference,
        )


def hold(database: PostgresDatabase, user_id: str, *amounts: int | JobHold) -> list[int]:
    """Pending items of the user with these holds; their numbers."""
    with tenancy.as_system("a test enqueues"), database.postgres() as cursor:
        items = [new_item(database, user_id) for _ in amounts]
        service.hold(cursor, user_id=user_id, amounts=dict(zip(items, amounts, strict=True)))
    return items


def new_item(database: PostgresDatabase, user_id: str, *, root: int | None = None) -> int:
    """A pending item, with `root` one of its called workflows."""
    statement = """INSERT INTO session_queue (queue_id, batch_id, session, session_id, user_id, root_item_id, parent_item_id)
        VALUES ('default', 'b', '{"graph": {}}', gen_random_uuid()::text, %s, %s, %s) RETURNING item_id"""
    return int(rows(database, statement, user_id, root, root)[0]["item_id"])


def run(database: PostgresDatabase, item_id: int, seconds: float, *, state: str = "running") -> None:
    """The item is in progress, in one more attempt with so many seconds at its last heartbeat."""
    rows(
        database,
        """INSERT INTO job_attempts (item_id, attempt_no, user_id, worker_id, state, ended_at, lease_until, gpu_seconds)
        SELECT item_id, 1 + (SELECT count(*) FROM job_attempts AS e WHERE e.item_id = item.item_id), user_id, 'w', %s,
            CASE WHEN %s = 'running' THEN NULL ELSE now() END, now() + interval '1 minute', %s
        FROM session_queue AS item WHERE item_id = %s""",
        state,
        state,
        seconds,
        item_id,
    )
    rows(database, "UPDATE session_queue SET status = 'in_progress' WHERE item_id = %s", item_id)


def end(database: PostgresDatabase, item_id: int, status: str, *, error: str | None = None) -> None:
    """The worker's end of an item: its attempt is finished first, as jobs/lease.py does."""
    rows(database, "UPDATE job_attempts SET state = 'finished', ended_at = now() WHERE item_id = %s AND state = 'running'", item_id)
    rows(database, "UPDATE session_queue SET status = %s, error_type = %s WHERE item_id = %s", status, error, item_id)


def picture(database: PostgresDatabase, item_id: int, *, kind: str = "image", intermediate: int = 0) -> None:
    """Something that the item saved."""
    columns = f"{kind}_name, {kind}_origin, {kind}_category, width, height, user_id, session_id, is_intermediate"
    rows(
        database,
        f"INSERT INTO {kind}s ({columns}) SELECT gen_random_uuid()::text, 'internal', 'general', 1, 1, user_id, session_id, %s"
        " FROM session_queue WHERE item_id = %s",
        intermediate,
        item_id,
    )


def as_owner(dsn: str, statement: str) -> None:
    """What no role of ours may do."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement.encode())


def settled(database: PostgresDatabase, item_id: int) -> tuple[str, int, str | None]:
    """State, credits charged and reason of an item's hold."""
    row = rows(database, "SELECT state, captured, reason FROM credit_holds WHERE item_id = %s", item_id)[0]
    return row["state"], row["captured"], row["reason"]


def balance(database: PostgresDatabase, user_id: str) -> Balance:
    with tenancy.as_user(user_id), database.postgres() as cursor:
        return service.balance(cursor, user_id)


def remaining(database: PostgresDatabase, user_id: str) -> int:
    return balance(database, user_id).remaining_credits


def drift(database: PostgresDatabase) -> list[dict[str, Any]]:
    """What is wrong, by a sum that shares nothing with the code under test."""
    return rows(database, DRIFT)
