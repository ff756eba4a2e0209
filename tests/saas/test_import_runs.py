"""Imports that are killed and resumed, roots of older InvokeAIs, large files, and the command line."""

import argparse
import hashlib
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import SecretStr
from saas.import_library import content, demand_whole_with_videos
from saas.people import rows
from saas.stock_root import StockRoot, change_database, fingerprint, picture
from saas.stored_rows import objects
from saas.stores import disk_store, moto_server, s3_store
from saas.test_storage_crashes import await_end_of_sessions

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.importing import commands, tables
from invokeai_saas.importing.run import import_root
from invokeai_saas.settings import Settings
from invokeai_saas.storage.files import Files
from invokeai_saas.storage.keys import ObjectName

KILLS = int(os.environ.get("SAAS_SOAK_KILLS", "10"))
ANN = "ann@example.com"
PICTURES = 150
# What differs between two runs by its nature.
MOVING = ("since", "imported_at", "email_verified_at", "password_hash")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two users, and pictures enough for several batches."""
    folder = tmp_path_factory.mktemp("large")
    stock = StockRoot(folder)
    bob = stock.user("bob@example.com")
    stock.furnish("system", 1)
    stock.furnish(bob, 11)
    board = stock.services.board_records.save("many", "system").board_id
    for seed in range(PICTURES):
        stock.image(seed, bob if seed % 3 else "system", board_id=None if seed % 3 else board)
    stock.close()
    return folder


class Importer:
    """importing_worker.py."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).parent / "importing_worker.py")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._line() == "ready"

    def run(self, dsn: str, folder: Path, root: Path, *, kill_when: Callable[[], bool] = lambda: False) -> int:
        """An import; its exit status, negative for a signal. `kill_when` is asked again and again."""
        self._process.stdin.write("\t".join((make_conninfo(dsn, application_name="doomed"), str(folder), str(root), ANN)) + "\n")
        self._process.stdin.flush()
        pid = int(self._line())
        over = threading.Event()
        killer = threading.Thread(target=_kill, args=(pid, kill_when, over))
        killer.start()
        status = os.waitstatus_to_exitcode(int(self._line()))
        over.set()
        killer.join()
        return status

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _line(self) -> str:
        return self._process.stdout.readline().strip()


def _kill(pid: int, when: Callable[[], bool], over: threading.Event) -> None:
    while not over.wait(0.005):
        if when():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return


def after(seconds: float) -> Callable[[], bool]:
    began = time.monotonic()
    return lambda: time.monotonic() - began > seconds


def has_lines(database: PostgresDatabase, more_than: int) -> bool:
    return lines_of(database) > more_than


def lines_of(database: PostgresDatabase) -> int:
    """Of the ledger, which grows with every batch that was brought over."""
    return rows(database, "SELECT count(*) AS n FROM imported")[0]["n"]


@pytest.fixture(scope="module")
def importer() -> Iterator[Importer]:
    started = Importer()
    yield started
    started.close()


def without_moving(database: PostgresDatabase) -> dict[str, list]:
    """All rows; pictures' keys carry a version, accounts made anew an id and a time."""
    owner = rows(database, "SELECT user_id FROM users WHERE email = %s", ANN)[0]["user_id"]
    found = {}
    for name in content(database):
        lines = []
        for row in rows(database, f"SELECT * FROM {name}"):
            kept = {column: value for column, value in row.items() if column not in MOVING}
            if row.get("kind") in ("workflow", "style_preset"):
                kept.pop("key", None)
            if row.get("email") == ANN:
                kept = {"email": ANN}
            lines.append(str(kept).replace(owner, "OWNER"))
        found[name] = sorted(lines)
    return found


def digests(files: Files, database: PostgresDatabase) -> dict[tuple[str, str, str], str]:
    """SHA-256 of every object by what it is."""
    found = {}
    for row in rows(database, "SELECT key, kind, name, part FROM stored_objects"):
        found[row["kind"], row["name"], row["part"]] = hashlib.sha256(files.store.local_path(row["key"]).read_bytes()).hexdigest()
    return found


def test_kills_at_any_moment_lose_nothing_and_double_nothing(cluster, importer, root, tmp_path):
    seed = random.randrange(2**32)
    rng, stood = random.Random(seed), []
    undisturbed, again = cluster.clone(), cluster.clone()
    assert importer.run(undisturbed, tmp_path / "undisturbed", root) == 0
    # The first one is slower.
    began = time.monotonic()
    assert importer.run(again, tmp_path / "again", root) == 0
    takes = time.monotonic() - began
    with closing(PostgresDatabase(undisturbed, pool_size=2)) as database:
        files = Files(database, disk_store(tmp_path / "undisturbed"))
        expected, expected_files, whole = without_moving(database), digests(files, database), lines_of(database)
    for number in range(max(2, KILLS // 3)):
        dsn, folder = cluster.clone(), tmp_path / str(number)
        with closing(PostgresDatabase(dsn, pool_size=2)) as database:
            files = Files(database, disk_store(folder))
            for attempt in range(4):
                # By the clock a busy machine is killed before its first batch, or not at all.
                by_the_clock = (number + attempt) % 2 == 0
                moment, reached = rng.uniform(0.1, 0.4 + 0.2 * attempt) * takes, rng.randrange(whole // 2)
                when = after(moment) if by_the_clock else partial(has_lines, database, reached)
                assert importer.run(dsn, folder, root, kill_when=when) in (0, -signal.SIGKILL)
                await_end_of_sessions(dsn)
                stood.append(lines_of(database))
                if rng.random() < 0.5:
                    files.recover(older_than_seconds=0)
            assert importer.run(dsn, folder, root) == 0
            files.recover(older_than_seconds=0)

            assert without_moving(database) == expected
            assert digests(files, database) == expected_files
            demand_whole_with_videos(files, database)
        cluster.drop(dsn)
    for dropped in (undisturbed, again):
        cluster.drop(dropped)
    print(f"seed {seed}: undisturbed {takes:.2f} s; lines of the ledger after each kill: {stood}")
    assert len(set(stood)) > 2


def old_root(folder: Path, version: int) -> Path:
    """A database as an InvokeAI of before users, videos and subfolders left it, with a picture on a board and a model."""
    from invokeai.app.services.config.config_default import DefaultInvokeAIAppConfig
    from invokeai.app.services.shared.sqlite.sqlite_database import SqliteDatabase
    from invokeai.app.services.shared.sqlite_migrator.migration_loader import MigrationBuildContext, build_migrations
    from invokeai.app.services.shared.sqlite_migrator.sqlite_migrator_impl import SqliteMigrator

    logger, config = logging.getLogger("old"), DefaultInvokeAIAppConfig()
    config._root = folder
    database = SqliteDatabase(folder / "databases" / "invokeai.db", logger)
    migrator = SqliteMigrator(database)
    for migration in build_migrations(MigrationBuildContext(app_config=config, logger=logger, image_files=None)):
        if migration.to_version is not None and migration.to_version <= version:
            migrator.register_migration(migration)
    migrator.run_migrations()
    with database.transaction() as cursor:
        columns = "image_name, image_origin, image_category, width, height, starred"
        cursor.execute(f"INSERT INTO images ({columns}) VALUES ('old.png', 'internal', 'general', 80, 60, TRUE)")
        cursor.execute("INSERT INTO boards (board_id, board_name, cover_image_name) VALUES ('b', 'old board', 'old.png')")
        cursor.execute("INSERT INTO board_images (board_id, image_name) VALUES ('b', 'old.png')")
    database._conn.close()
    pictures = folder / "outputs" / "images"
    (pictures / "thumbnails").mkdir(parents=True)
    picture(1).save(pictures / "old.png")
    return folder


@pytest.mark.parametrize("version", [1, 13, 25])
def test_roots_of_older_invokeais_come_over_and_stay_as_they_are(accounts, database, tmp_path, version):
    root = old_root(tmp_path / "old", version)
    before = fingerprint(root)
    files = Files(database, disk_store(tmp_path))
    report = import_root(root, accounts=accounts, files=files, owner_email=ANN, say=lambda line: None)

    assert report.left == []
    assert rows(database, "SELECT board_name, cover_image_name FROM boards") == [
        {"board_name": "old board", "cover_image_name": "old.png"}
    ]
    owner = rows(database, "SELECT user_id, starred FROM images")[0]
    assert owner["starred"] == 1
    with tenancy.as_user(owner["user_id"]):
        stored = files.path(ObjectName("image", "old.png")).read_bytes()
    assert stored == (root / "outputs" / "images" / "old.png").read_bytes()
    assert fingerprint(root) == before


def test_models_of_an_older_root_are_not_moved_by_upstreams_migrations(accounts, database, tmp_path):
    root = old_root(tmp_path / "old", 20)
    model = root / "models" / "sd-1" / "vae" / "v.safetensors"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"weights")
    config = (
        '{"key": "k", "name": "v", "base": "sd-1", "type": "vae", "format": "checkpoint", "path": "sd-1/vae/v.safetensors",'
        ' "hash": "h", "source": "s", "source_type": "path", "file_size": 0}'
    )
    change_database(root, f"INSERT INTO models (id, config) VALUES ('k', '{config}')")
    import_root(root, accounts=accounts, files=Files(database, disk_store(tmp_path)), owner_email=ANN, say=lambda line: None)

    assert model.read_bytes() == b"weights"
    assert rows(database, "SELECT path, file_size FROM models") == [{"path": str(model), "file_size": 7}]


@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_files_too_large_for_memory_go_through_a_copy_and_the_roots_stay(accounts, database, tmp_path, kind):
    root = old_root(tmp_path / "old", 25)
    large = root / "outputs" / "images" / "old.png"
    large.write_bytes(large.read_bytes() + random.Random(1).randbytes(9 * 1024 * 1024))
    with moto_server() as (url, _):
        store = disk_store(tmp_path) if kind == "disk" else s3_store(url, tmp_path)
        files = Files(database, store)
        report = import_root(root, accounts=accounts, files=files, owner_email=ANN, say=lambda line: None)
        key = next(key for key in objects(files) if key.endswith("old.png"))

        assert report.left == []
        assert store.local_path(key).read_bytes() == large.read_bytes()


def settings_for(dsn: str, tmp_path: Path, **more: object) -> Settings:
    parts = conninfo_to_dict(dsn)
    url = f"postgresql://{parts['user']}@/{parts['dbname']}?host={parts['host']}&port={parts.get('port', 5432)}"
    return Settings(database_url=SecretStr(url), data_dir=tmp_path / "data", db_pool_size=2, **more)


def command(settings: Settings, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    commands.add_commands(parser.add_subparsers())
    args = parser.parse_args(["import-sqlite", *arguments])
    return args.func(args, settings)


def test_the_command_shows_progress_and_a_summary_and_its_code_says_what_was_left(dsn, database, tmp_path, capsys):
    root, settings = old_root(tmp_path / "old", 25), settings_for(dsn, tmp_path)
    codes = [command(settings, str(root), "--owner", ANN)]
    first = capsys.readouterr().out
    codes.append(command(settings, str(root)))
    codes.append(command(settings, str(root), "--owner", ANN))
    change_database(root, "UPDATE boards SET board_name = 'renamed'")
    codes.append(command(settings, str(root), "--owner", ANN))
    said = capsys.readouterr()

    assert codes == [0, 1, 0, 3]
    assert f"made the account {ANN} (super_admin) with the password " in first
    assert "image: 1/1, " in first
    assert "import-sqlite: --owner: expected whose" in said.err
    assert "left behind: board b: changed in the root since it was brought; what is here stays" in said.out


def test_the_command_counts_in_a_dry_run(dsn, database, tmp_path, capsys):
    root = old_root(tmp_path / "old", 25)

    assert command(settings_for(dsn, tmp_path), str(root), "--owner", ANN, "--dry-run") == 0
    assert "dry run: nothing was written" in capsys.readouterr().out
    assert rows(database, "SELECT count(*) AS n FROM images") == [{"n": 0}]


def test_of_two_imports_at_once_one_is_refused(dsn, database, tmp_path, capsys):
    root = old_root(tmp_path / "old", 25)
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute(commands.TRY_LOCK)
        code = command(settings_for(dsn, tmp_path), str(root), "--owner", ANN)

    assert code == 1
    assert "another import into this database is running" in capsys.readouterr().err


def test_the_command_refuses_a_database_that_lacks_migrations(cluster, tmp_path, capsys):
    empty = cluster.empty()
    code = command(settings_for(empty, tmp_path), str(tmp_path))
    cluster.drop(empty)

    assert code == 1
    assert "run `invokeai-saas migrate`" in capsys.readouterr().err


def test_a_board_is_brought_even_when_its_neighbours_cannot_be(accounts, database, tmp_path):
    root = old_root(tmp_path / "old", 25)
    with closing(sqlite3.connect(root / "databases" / "invokeai.db")) as connection, connection:
        connection.execute("INSERT INTO boards (board_id, board_name) VALUES ('nul', ?)", ("a\0b",))
        connection.execute("INSERT INTO boards (board_id, board_name) VALUES ('bytes', CAST(x'ff41' AS TEXT))")
    report = import_root(root, accounts=accounts, files=Files(database, disk_store(tmp_path)), owner_email=ANN, say=lambda line: None)

    assert [(item.kind, item.name) for item in report.left] == [("board", "nul")]
    assert {row["board_id"] for row in rows(database, "SELECT board_id FROM boards")} == {"b", "bytes"}


def test_every_column_of_every_table_that_comes_over_comes_over(database):
    for table in (tables.MODELS, tables.RELATIONSHIPS, tables.IMAGES, tables.VIDEOS, *tables.PLAIN):
        columns = "SELECT column_name AS c FROM information_schema.columns WHERE table_name = %s AND is_generated = 'NEVER'"

        assert {row["c"] for row in rows(database, columns, table.name)} == set(table.columns), table.name
