"""Migrations: once each, one process at a time, resumed after a kill, never on a database that is newer."""

import logging
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from saas.rows import add_board

from invokeai_saas.db import migrate as migrations
from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.db.embedded import start_embedded, stop_embedded
from invokeai_saas.db.migrate import FOLDER, ROLES_FILE, migrate, read_migrations, refuse_stale
from invokeai_saas.errors import MigrationLocked, MigrationRefused

NAMES = [migration.name for migration in read_migrations()]
MIGRATE_IN_A_PROCESS = """
import sys
from pathlib import Path
from invokeai_saas.db.migrate import migrate
migrate(sys.argv[1], folder=Path(sys.argv[2]))
"""


@pytest.fixture
def empty(cluster):
    address = cluster.empty()
    yield address
    cluster.drop(address)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the migrations that a test may add to."""
    copy = tmp_path / "migrations"
    shutil.copytree(FOLDER, copy)
    return copy


def add(folder: Path, name: str, text: str) -> None:
    (folder / f"{len(NAMES) + 1:04d}_{name}.sql").write_text(text)


def rows(dsn: str, query: str) -> list[tuple]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(query.encode()).fetchall()


def test_all_migrations_run_once_in_order(empty):
    first, second = migrate(empty), migrate(empty)

    assert (first, second) == (NAMES, [])
    refuse_stale(empty)


def test_a_login_that_is_no_superuser_migrates_and_serves():
    with tempfile.TemporaryDirectory(prefix="saas-migrator-") as folder:
        admin = start_embedded(Path(folder))
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute("CREATE ROLE migrator LOGIN CREATEROLE")
            connection.execute("ALTER DATABASE invokeai OWNER TO migrator")
        dsn = make_conninfo(admin, user="migrator")
        ran = [migrate(dsn), migrate(dsn)]
        database = PostgresDatabase(dsn, pool_size=1)
        with tenancy.as_user("ann"):
            add_board(database, "ann", "a")
        counts = []
        for context in (tenancy.as_user("bob"), tenancy.as_system("count in a test")):
            with context, database.transaction() as cursor:
                counts.append(cursor.execute("SELECT count(*) FROM boards").fetchone()[0])
        database.close()
        stop_embedded(Path(folder))

    assert (ran, counts) == ([NAMES, []], [0, 1])


def test_two_processes_at_once_apply_each_migration_once(empty):
    with ThreadPoolExecutor(2) as pool:
        ran = list(pool.map(lambda _: migrate(empty), range(2)))

    assert sorted(ran, key=len) == [[], NAMES]


def test_a_locked_migration_waits_says_so_and_gives_up(empty, caplog):
    with psycopg.connect(empty, autocommit=True) as holder:
        holder.execute(migrations.TRY_LOCK)
        with caplog.at_level(logging.WARNING), pytest.raises(MigrationLocked, match="within 1 s"):
            migrate(empty, lock_seconds=0.6)

    assert [record.message for record in caplog.records] == ["another process is migrating this database; waiting up to 1 s"]
    assert rows(empty, "SELECT to_regclass('saas_migrations')") == [(None,)]


def test_a_waiting_migration_goes_on_when_the_lock_is_free(empty):
    with psycopg.connect(empty, autocommit=True) as holder, ThreadPoolExecutor(1) as pool:
        holder.execute(migrations.TRY_LOCK)
        waiting = pool.submit(migrate, empty)
        time.sleep(0.5)
        assert not waiting.done()
        holder.execute(migrations.UNLOCK)

        assert waiting.result(timeout=60) == NAMES


def test_a_killed_migration_leaves_nothing_half_done_and_is_resumed(empty, folder):
    add(folder, "slow", "CREATE TABLE half_done (a int); SELECT pg_sleep(60);")
    process = subprocess.Popen([sys.executable, "-c", MIGRATE_IN_A_PROCESS, empty, str(folder)])
    sleeping = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
    deadline = time.monotonic() + 60
    while rows(empty, sleeping) == [(0,)] and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    add(folder, "slow", "CREATE TABLE half_done (b int);")
    resumed = migrate(empty, lock_seconds=30, folder=folder)

    assert resumed == ["slow"]
    assert rows(empty, "SELECT column_name FROM information_schema.columns WHERE table_name = 'half_done'") == [("b",)]


def test_a_failing_migration_undoes_itself_and_keeps_those_before(empty, folder):
    add(folder, "broken", "CREATE TABLE half_done (a int); SELECT 1 / 0;")
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(empty, folder=folder)

    assert rows(empty, "SELECT name FROM saas_migrations ORDER BY version") == [(name,) for name in NAMES]
    assert rows(empty, "SELECT to_regclass('half_done')") == [(None,)]


@pytest.mark.parametrize("ask", [migrate, refuse_stale])
def test_a_database_newer_than_the_code_is_refused(dsn, ask):
    rows(dsn, "INSERT INTO saas_migrations VALUES (9999, 'of_tomorrow', 'x') RETURNING 1")

    with pytest.raises(MigrationRefused, match="newer than this code: it has migration 9999_of_tomorrow"):
        ask(dsn)


def test_a_changed_released_migration_is_refused(dsn, folder):
    path = folder / "0001_functions.sql"
    path.write_text(path.read_text() + "-- changed")

    with pytest.raises(MigrationRefused, match="0001_functions was applied with another text"):
        migrate(dsn, folder=folder)


def test_a_server_on_an_older_database_is_told_to_migrate(dsn, folder):
    add(folder, "new", "SELECT 1")

    with pytest.raises(MigrationRefused, match="lacks 1 migrations.*invokeai-saas migrate"):
        refuse_stale(dsn, folder=folder)


def test_numbers_without_gaps_are_demanded(folder):
    (folder / "0099_gap.sql").write_text("SELECT 1")

    with pytest.raises(MigrationRefused, match="without gaps"):
        read_migrations(folder)


def test_rows_from_before_the_file_journal_are_kept_and_can_be_deleted(empty, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    for path in FOLDER.glob("*.sql"):
        if path.name < "0005":
            shutil.copy(path, old)
    shutil.copy(FOLDER / ROLES_FILE, old)
    migrate(empty, folder=old)
    with psycopg.connect(empty, autocommit=True) as connection:
        for name in ("a.png", "b.png"):
            columns = "image_name, image_origin, image_category, width, height, user_id"
            connection.execute(f"INSERT INTO images ({columns}) VALUES (%s, 'internal', 'general', 1, 1, 'ann')".encode(), (name,))
        migrate(empty)
        connection.execute("DELETE FROM images WHERE image_name = 'b.png'")

    assert rows(empty, "SELECT key, state, since = 'infinity' FROM stored_objects ORDER BY key") == [
        ("users/ann/images/a.png", "writing", True),
        ("users/ann/images/b.png", "purge", False),
    ]
    forced = "SELECT count(*) FROM pg_class WHERE relname IN ('images', 'videos') AND relforcerowsecurity"
    assert rows(empty, forced) == [(2,)]


def test_users_that_were_there_before_accounts_get_theirs(empty, tmp_path):
    for path in FOLDER.glob("*.sql"):
        if path.name < "0006" or path.name == ROLES_FILE:
            shutil.copy(path, tmp_path)
    migrate(empty, folder=tmp_path)
    with psycopg.connect(empty) as connection:
        insert = "INSERT INTO users (user_id, email, password_hash, is_admin) VALUES ('a', 'a@x.y', '', 1), ('b', 'b@x.y', '', 0)"
        connection.execute(insert)
    migrate(empty)

    with psycopg.connect(empty) as connection:
        found = connection.execute("SELECT user_id, role, email_verified_at FROM saas_users ORDER BY user_id").fetchall()
        forced = connection.execute("SELECT relforcerowsecurity FROM pg_class WHERE relname = 'users'").fetchone()
    assert found == [("a", "super_admin", None), ("b", "user", None)]
    assert forced == (True,)
