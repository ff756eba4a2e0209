"""`invokeai-saas migrate`: what it says and answers, and that a kill at any moment leaves nothing that the next run does not mend."""

import argparse
import os
import random
import subprocess
import sys
import threading
import time

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from invokeai_saas.db import commands
from invokeai_saas.db import migrate as migrations
from invokeai_saas.db.migrate import migrate, read_migrations, refuse_stale
from invokeai_saas.errors import BadSettings
from invokeai_saas.settings import Settings

KILLS = int(os.environ.get("SAAS_SOAK_KILLS", "10"))
MIGRATE_IN_A_PROCESS = """
import sys
from invokeai_saas.db.migrate import migrate
print("ready", flush=True)
migrate(sys.argv[1])
print("done", flush=True)
"""
# All that a schema is, in the order of its names.
SCHEMA = {
    "columns": "SELECT table_name, column_name, data_type, is_nullable, column_default, generation_expression"
    " FROM information_schema.columns WHERE table_schema = 'public'",
    "constraints": "SELECT conrelid::regclass, conname, pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE connamespace = 'public'::regnamespace",
    "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "policies": "SELECT tablename, policyname, roles, cmd, qual, with_check FROM pg_policies WHERE schemaname = 'public'",
    "triggers": "SELECT tgrelid::regclass, tgname, pg_get_triggerdef(oid), tgenabled FROM pg_trigger WHERE NOT tgisinternal",
    "functions": "SELECT proname, pg_get_functiondef(oid), proowner::regrole, proacl::text FROM pg_proc"
    " WHERE pronamespace = 'public'::regnamespace",
    "relations": "SELECT relname, relkind, relowner::regrole, relacl::text, relrowsecurity, relforcerowsecurity, relpersistence"
    " FROM pg_class WHERE relnamespace = 'public'::regnamespace",
    "history": "SELECT version, name, checksum FROM saas_migrations",
    "upstream": "SELECT migration_id, legacy_version FROM applied_migrations",
}


def schema_of(dsn: str) -> dict[str, list[str]]:
    with psycopg.connect(dsn) as connection:
        return {what: sorted(str(row) for row in connection.execute(query.encode()).fetchall()) for what, query in SCHEMA.items()}


@pytest.fixture
def empty(cluster):
    address = cluster.empty()
    yield address
    cluster.drop(address)


def killed_migration(dsn: str, seconds: float) -> bool:
    """Whether the migration was done before the kill."""
    command = [sys.executable, "-c", MIGRATE_IN_A_PROCESS, dsn]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    said, trouble = process.communicate()
    timer.join()
    assert "Error" not in trouble, trouble
    return said == "done\n"


def test_kills_at_any_moment_leave_nothing_half_done(cluster, dsn):
    undisturbed, seed = schema_of(dsn), random.randrange(2**32)
    rng, counts, total = random.Random(seed), [], len(read_migrations())
    fresh = cluster.empty()
    began = time.monotonic()
    migrate(fresh)
    takes = time.monotonic() - began
    cluster.drop(fresh)
    for _ in range(KILLS):
        database, kills = cluster.empty(), 0
        for _ in range(3):
            kills += not killed_migration(database, rng.uniform(0, takes))
        with psycopg.connect(database) as connection:
            row = connection.execute("SELECT to_regclass('public.saas_migrations') IS NOT NULL").fetchone()
            done = connection.execute("SELECT count(*) FROM saas_migrations").fetchone()[0] if row[0] else 0
        ran = migrate(database, lock_seconds=60)

        assert len(ran) == total - done
        assert schema_of(database) == undisturbed
        refuse_stale(database)
        counts.append((kills, done))
        cluster.drop(database)
    print(f"seed {seed}: undisturbed {takes:.2f} s; (kills, migrations that stood before the last run): {counts}")
    assert sum(kills for kills, _ in counts) >= KILLS


def test_the_comparison_notices_a_missing_policy_and_a_changed_function(dsn):
    before = schema_of(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP POLICY images_read ON images")
        connection.execute("ALTER FUNCTION storage_count() SECURITY INVOKER")
    after = schema_of(dsn)

    assert {what for what in SCHEMA if before[what] != after[what]} == {"policies", "functions"}


def run(dsn: str, **more: object) -> int:
    parts = conninfo_to_dict(dsn)
    url = f"postgresql://{parts['user']}@/{parts['dbname']}?host={parts['host']}&port={parts.get('port', 5432)}"
    parser = argparse.ArgumentParser()
    commands.add_commands(parser.add_subparsers())
    args = parser.parse_args(["migrate"])
    return args.func(args, Settings(database_url=SecretStr(url), **more))


def test_the_command_says_what_it_applied_and_then_that_nothing_is_left(empty, capsys):
    codes = [run(empty), run(empty)]
    lines = capsys.readouterr().out.splitlines()

    assert codes == [0, 0]
    applied = [f"migration {one.version:04d}_{one.name} applied in" for one in read_migrations()]
    assert [line.rpartition(" in ")[0] + " in" for line in lines[: len(applied)]] == applied
    assert lines[len(applied) :] == [f"{len(applied)} migrations applied", "nothing to do: the database is at this code's state"]


def test_the_command_waits_for_the_lock_says_so_and_has_a_code_for_giving_up(empty, capsys):
    with psycopg.connect(empty, autocommit=True) as holder:
        holder.execute(migrations.TRY_LOCK)
        code = run(empty, migration_lock_seconds=0.6)
    said = capsys.readouterr()

    assert code == 75
    assert said.out == "another process is migrating this database; waiting up to 1 s\n"
    assert said.err.startswith("migrate: expected the migration lock within 1 s")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ("INSERT INTO saas_migrations VALUES (9999, 'of_tomorrow', 'x')", "newer than this code"),
        ("UPDATE saas_migrations SET checksum = 'x' WHERE version = 1", "applied with another text"),
    ],
)
def test_the_command_refuses_what_it_does_not_know(dsn, capsys, spoil, reason):
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(spoil.encode())

    assert run(dsn) == 1
    assert reason in capsys.readouterr().err


def test_the_command_leaves_a_wrong_setting_to_the_command_line():
    with pytest.raises(BadSettings, match="DATABASE_URL: expected a database that answers"):
        run("host=/nowhere user=u dbname=d")
