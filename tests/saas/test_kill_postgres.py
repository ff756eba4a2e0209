"""Postgres killed under load: no acknowledged write is lost, and the service answers again, kept alive by the process that serves.

SAAS_SOAK_KILLS sets how often (10 here, 100 in `make soak-saas`). The seed and every recovery time are printed.
"""

import os
import random
import signal
import sqlite3
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import psycopg
import pytest
from saas.rows import add_board

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.db.embedded import keep_alive, probe, start_embedded, stop_embedded
from invokeai_saas.db.migrate import migrate

KILLS = int(os.environ.get("SAAS_SOAK_KILLS", "10"))
WRITERS = 4
# The aim is 10 s; a machine that does many other things may take longer and is still right.
BOUND_SECONDS = 60.0


@pytest.fixture
def data_dir() -> Iterator[Path]:
    # Not under pytest's own folder, which is closed to the account that Postgres runs as.
    with tempfile.TemporaryDirectory(prefix="saas-killed-") as folder:
        yield Path(folder)
        stop_embedded(Path(folder))


class Load:
    """Writers that remember what was acknowledged, and when last."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database, self._over, self._lock = database, threading.Event(), threading.Lock()
        self.acknowledged: set[str] = set()
        self.failed = 0
        self._last_begun = 0.0

    @contextmanager
    def running(self) -> Iterator["Load"]:
        threads = [threading.Thread(target=self._write, args=(f"user-{number}",)) for number in range(WRITERS)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def await_answer(self) -> float:
        """Seconds from now until a write that begins from now on is acknowledged."""
        moment = time.monotonic()
        while time.monotonic() - moment < BOUND_SECONDS:
            if self._last_begun > moment:
                return time.monotonic() - moment
            time.sleep(0.01)
        raise AssertionError(f"no write was acknowledged within {BOUND_SECONDS} s of the kill")

    def _write(self, user: str) -> None:
        while not self._over.is_set():
            name, begun = uuid.uuid4().hex, time.monotonic()
            try:
                with tenancy.as_user(user), self._database.transaction():
                    add_board(self._database, user, name)
            except sqlite3.Error:
                # What our look-alike makes of a lost server; it may have committed.
                self.failed += 1
                continue
            with self._lock:
                self.acknowledged.add(f"{user}-{name}")
                self._last_begun = max(self._last_begun, begun)


def postmaster(data_dir: Path) -> psutil.Process:
    """The running one, with children; in the middle of a restart, the one that comes."""
    deadline = time.monotonic() + BOUND_SECONDS
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError, IndexError, psutil.NoSuchProcess):
            found = psutil.Process(int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0]))
            if found.status() != psutil.STATUS_ZOMBIE and found.children():
                return found
        time.sleep(0.02)
    raise AssertionError("no postmaster came up")


def kill_all(data_dir: Path) -> None:
    """The postmaster and all that it started, as a power loss would."""
    parent = postmaster(data_dir)
    for process in [parent, *parent.children(recursive=True)]:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def kill_one_backend(data_dir: Path, rng: random.Random) -> None:
    """Any process of the server: the postmaster then restarts itself."""
    with suppress(ProcessLookupError):
        os.kill(rng.choice(postmaster(data_dir).children()).pid, signal.SIGKILL)
    time.sleep(0.1)  # until the postmaster has noticed


def lost(dsn: str, acknowledged: set[str]) -> set[str]:
    with psycopg.connect(dsn) as connection:
        return acknowledged - {row[0] for row in connection.execute("SELECT board_id FROM boards").fetchall()}


def test_kills_lose_no_acknowledged_write_and_the_service_answers_again(data_dir):
    seed = random.randrange(2**32)
    rng, seconds = random.Random(seed), []
    dsn = start_embedded(data_dir)
    migrate(dsn)
    database = PostgresDatabase(dsn, pool_size=WRITERS)
    with keep_alive(data_dir), Load(database).running() as load:
        load.await_answer()
        for number in range(KILLS):
            time.sleep(rng.uniform(0.05, 0.5))
            if number % 3 == 2:
                kill_one_backend(data_dir, rng)
            else:
                kill_all(data_dir)
            seconds.append(load.await_answer())
        assert lost(dsn, set(load.acknowledged)) == set()
    database.close()
    print(f"seed {seed}: {KILLS} kills, {len(load.acknowledged)} acknowledged, {load.failed} failed, recovery in s:")
    print(f"  median {statistics.median(seconds):.2f}, worst {max(seconds):.2f}, within 10 s: {sum(s <= 10 for s in seconds)}")

    assert load.failed > 0
    assert lost(dsn, load.acknowledged) == set()


def crash(connection: psycopg.Connection) -> None:
    """End its server process the way that a crash of another one does: it says a last word, so that libpq takes the next command."""
    process = psutil.Process(connection.info.backend_pid)
    process.send_signal(signal.SIGQUIT)
    psutil.wait_procs([process], timeout=BOUND_SECONDS)


@pytest.fixture
def database(data_dir: Path) -> Iterator[PostgresDatabase]:
    dsn = start_embedded(data_dir)
    migrate(dsn)
    opened = PostgresDatabase(dsn, pool_size=1)
    yield opened
    opened.close()
    # One that is told to stop while it recovers takes a minute.
    assert probe(dsn, seconds=BOUND_SECONDS) is None


def test_a_server_lost_before_the_first_command_is_asked_again(database):
    with tenancy.as_user("alice"), database.postgres() as cursor:
        idle = cursor.connection
    crash(idle)

    with tenancy.as_user("alice"), database.transaction() as cursor:
        assert cursor.execute("SELECT 1").fetchone()[0] == 1


@pytest.mark.parametrize("depth", [1, 2])
def test_a_server_lost_inside_a_transaction_is_the_error_that_upstream_catches(database, depth):
    with tenancy.as_user("alice"), pytest.raises(sqlite3.OperationalError, match="closed the connection"), ExitStack() as stack:
        for _ in range(depth):
            stack.enter_context(database.transaction())
        with database.postgres() as cursor:
            connection = cursor.connection
        crash(connection)


def test_the_harness_notices_writes_that_were_acknowledged_before_they_were_on_disk(data_dir):
    dsn = start_embedded(data_dir)
    migrate(dsn)
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("ALTER SYSTEM SET synchronous_commit = off")
        admin.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
        admin.execute("SELECT pg_reload_conf()")
    time.sleep(0.5)
    database = PostgresDatabase(dsn, pool_size=WRITERS)
    with Load(database).running() as load:
        load.await_answer()
        time.sleep(1)
        kill_all(data_dir)
        written = set(load.acknowledged)
        time.sleep(0.5)
        start_embedded(data_dir)
    database.close()

    assert lost(dsn, written) != set()


def test_a_server_that_is_left_alone_is_not_started_again(data_dir, caplog):
    with keep_alive(data_dir, every_seconds=0.05):
        before = postmaster(data_dir).pid
        time.sleep(1)

        assert postmaster(data_dir).pid == before
    assert [record for record in caplog.records if record.name.endswith("embedded")] == []


def test_nobody_starts_the_server_again_once_the_keeper_is_gone(data_dir):
    with keep_alive(data_dir, every_seconds=0.05):
        dsn = start_embedded(data_dir)
    stop_embedded(data_dir)
    time.sleep(0.5)

    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn, connect_timeout=2)
