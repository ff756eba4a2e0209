"""Interleaved transactions of many tenants over few connections, with exceptions, cancellations and timeouts at random.

SAAS_SOAK_TRANSACTIONS sets how many (2,000 here, 100,000 in `make soak-saas`). The seed is printed.
"""

import asyncio
import os
import random
import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from saas.rows import add_board

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase

TRANSACTIONS = int(os.environ.get("SAAS_SOAK_TRANSACTIONS", "2000"))
TENANTS, CONNECTIONS, WORKERS = 50, 4, 12
LEFT_BEHIND = "SELECT current_user::text, coalesce(current_setting('app.current_user_id', true), '')"
COUNTS = "SELECT sum(CASE WHEN user_id = ? THEN 1 ELSE 0 END), count(*) FROM boards"


class Cancelled(BaseException):
    """What an interrupt or a task's cancellation looks like to the transaction."""


def watch_checkouts(database: PostgresDatabase, left: Counter) -> None:
    """Count what a connection still knows of its last tenant when the pool hands it out."""
    getconn = database._pool.getconn

    def watched(timeout: float | None = None):
        connection = getconn(timeout)
        left[connection.execute(LEFT_BEHIND).fetchone()] += 1
        return connection

    database._pool.getconn = watched


def one_transaction(database: PostgresDatabase, number: int, rng: random.Random) -> tuple[str, int]:
    """(what happened, foreign rows seen)."""
    user = f"user-{rng.randrange(TENANTS)}"
    kind = rng.choice(["commit", "commit", "commit", "error", "cancel", "timeout", "bad sql", "nested"])
    foreign = 0
    try:
        with tenancy.as_user(user), database.transaction() as cursor:
            add_board(database, user, str(number))
            own, seen = cursor.execute(COUNTS, (user,)).fetchone()
            foreign = seen - own
            if kind == "error":
                raise RuntimeError
            if kind == "cancel":
                raise Cancelled
            if kind == "timeout":
                with database.postgres() as raw:
                    raw.execute("SET LOCAL statement_timeout = '1ms'")
                    raw.execute("SELECT pg_sleep(1)")
            if kind == "bad sql":
                cursor.execute("SELECT no_such_column FROM boards")
            if kind == "nested":
                add_board(database, user, f"{number}-again")
    except (RuntimeError, Cancelled, sqlite3.Error):
        pass
    except Exception as error:
        if type(error).__name__ != "QueryCanceled":
            raise
    return kind, foreign


def test_no_tenant_ever_sees_another_and_no_connection_remembers_one(open_database):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    database, left = open_database(pool_size=CONNECTIONS), Counter()
    watch_checkouts(database, left)
    with ThreadPoolExecutor(WORKERS) as pool:
        results = list(
            pool.map(lambda number: one_transaction(database, number, random.Random(seed + number)), range(TRANSACTIONS))
        )
    kinds, foreign = Counter(kind for kind, _ in results), sum(count for _, count in results)
    with tenancy.as_system("count what was committed"), database.transaction() as cursor:
        kept = cursor.execute("SELECT count(*) FROM boards").fetchone()[0]

    assert foreign == 0
    assert set(left) == {("invokeai_app", "")}
    assert kept == kinds["commit"] + 2 * kinds["nested"]
    assert min(kinds.values()) > 0


def test_cancelled_tasks_of_one_thread_roll_back_and_leave_no_context(open_database):
    database, left = open_database(pool_size=CONNECTIONS), Counter()
    watch_checkouts(database, left)

    async def work(number: int) -> None:
        with tenancy.as_user(f"user-{number}"), database.transaction() as cursor:
            add_board(database, f"user-{number}", "b")
            await asyncio.sleep(0 if number % 2 else 60)
            assert cursor.execute("SELECT count(*) FROM boards").fetchone()[0] == 1

    async def run() -> None:
        for start in range(0, 40, CONNECTIONS):
            tasks = [asyncio.create_task(work(number)) for number in range(start, start + CONNECTIONS)]
            await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
    with tenancy.as_system("count what was committed"), database.transaction() as cursor:
        kept = cursor.execute("SELECT count(*) FROM boards").fetchone()[0]

    assert kept == 20
    assert set(left) == {("invokeai_app", "")}


def test_the_soak_bites_when_the_context_outlives_the_transaction(open_database, monkeypatch):
    lasting = tenancy.ENTER_CONTEXT.replace("SET LOCAL ROLE", "SET ROLE").replace(", true)", ", false)")
    monkeypatch.setattr(tenancy, "ENTER_CONTEXT", lasting)
    monkeypatch.setattr(tenancy, "_enter_sql", tenancy._enter_sql.__wrapped__)
    database, left = open_database(pool_size=1), Counter()
    watch_checkouts(database, left)
    for user in ("ann", "bob"):
        with tenancy.as_user(user):
            add_board(database, user, "b")

    assert left[("invokeai_app", "ann")] == 1
