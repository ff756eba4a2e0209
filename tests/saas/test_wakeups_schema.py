"""Migration 0015 is Procrastinate's schema as the installed release ships it, closed to tenants, and its tables stay small."""

from pathlib import Path

import procrastinate
import psycopg
import pytest
from saas.waking import enqueue

from invokeai_saas.db.migrate import FOLDER
from invokeai_saas.wakeups.port import MOST, QUEUES
from invokeai_saas.wakeups.procrastinate import ProcrastinateWakeups

SHIPPED = Path(procrastinate.__file__).parent / "sql" / "schema.sql"
FROM, TO = "-- Enums\n", "-- Ours from here on."
COUNTS = """
SELECT (SELECT count(*) FROM procrastinate.procrastinate_jobs), (SELECT count(*) FROM procrastinate.procrastinate_events),
       (SELECT count(*) FROM procrastinate.procrastinate_workers)
"""


@pytest.fixture
def owner(dsn):
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


def test_the_migration_is_the_schema_of_the_installed_release():
    ours = next(FOLDER.glob("*_procrastinate.sql")).read_text()
    shipped = SHIPPED.read_text()

    assert ours[ours.index(FROM) : ours.index(TO)].strip() == shipped[shipped.index(FROM) :].strip()


def test_tenants_see_none_of_it_and_the_system_all(owner):
    tables = owner.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'procrastinate'").fetchall()
    forced = (
        "SELECT count(*) FROM pg_class WHERE relnamespace = 'procrastinate'::regnamespace AND relkind = 'r' AND NOT relforcerowsecurity"
    )

    assert len(tables) == 4
    assert owner.execute(forced).fetchone() == (0,)
    for (table,) in tables:
        with pytest.raises(psycopg.errors.InsufficientPrivilege), owner.transaction():
            owner.execute("SET LOCAL ROLE invokeai_app")
            owner.execute(f"SELECT * FROM procrastinate.{table}".encode())
        with owner.transaction():
            owner.execute("SET LOCAL ROLE invokeai_system")
            assert owner.execute(f"SELECT count(*) FROM procrastinate.{table}".encode()).fetchone() == (0,)


def test_a_tenant_cannot_wake_anybody_by_hand(owner):
    with pytest.raises(psycopg.errors.InsufficientPrivilege), owner.transaction():
        owner.execute("SET LOCAL ROLE invokeai_app")
        owner.execute("SELECT procrastinate.procrastinate_defer_jobs_v1('{}')")


def test_with_nobody_idle_the_tables_do_not_grow(database, owner):
    wakeups = ProcrastinateWakeups(database)
    for _ in range(30):
        enqueue(database, wakeups, "ann", 10, tiers=("basic",))

    assert owner.execute(COUNTS).fetchone() == (MOST, MOST, 0)


def test_what_was_taken_leaves_nothing(database, owner):
    wakeups = ProcrastinateWakeups(database)
    for _ in range(3):
        enqueue(database, wakeups, "ann", 5)
    taken = 0
    while wakeups.wait(None, 0.3):
        taken += 1
    wakeups.close()

    assert taken == 15 * len(QUEUES)
    assert owner.execute(COUNTS).fetchone() == (0, 0, 0)
