"""The embedded Postgres: started once, joined, survives kills and postmasters that only look alive."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg
import pytest

from invokeai_saas.db.embedded import probe, sole_server, start_embedded, stop_embedded
from invokeai_saas.errors import BadSettings, DatabaseUnavailable


@pytest.fixture
def data_dir():
    # Not under pytest's own folder, which is closed to the account that Postgres runs as.
    with tempfile.TemporaryDirectory(prefix="saas-embedded-") as folder:
        yield Path(folder)
        stop_embedded(Path(folder))


def postmaster(data_dir: Path) -> int:
    return int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0])


def write_and_count(dsn: str) -> int:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (n int)")
        connection.execute("INSERT INTO kept VALUES (1)")
        return connection.execute("SELECT count(*) FROM kept").fetchone()[0]


def test_a_second_start_joins_the_running_server(data_dir):
    first, pid = start_embedded(data_dir), postmaster(data_dir)

    assert (start_embedded(data_dir), postmaster(data_dir)) == (first, pid)


def test_text_sorts_bytewise_as_in_sqlite(data_dir):
    with psycopg.connect(start_embedded(data_dir)) as connection:
        rows = connection.execute("SELECT t FROM (VALUES ('b'), ('B'), ('a'), ('Ä')) AS v(t) ORDER BY t").fetchall()

    assert [row[0] for row in rows] == ["B", "a", "b", "Ä"]


def test_a_killed_server_is_started_again_and_has_lost_nothing(data_dir):
    counts = [write_and_count(start_embedded(data_dir))]
    for _ in range(3):
        os.kill(postmaster(data_dir), signal.SIGKILL)
        time.sleep(0.3)
        counts.append(write_and_count(start_embedded(data_dir)))

    assert counts == [1, 2, 3, 4]


def test_a_dead_postmaster_that_nobody_reaped_is_not_taken_for_alive(data_dir):
    start_embedded(data_dir)
    lines = (data_dir / "postgres" / "postmaster.pid").read_text().splitlines()
    stop_embedded(data_dir)
    zombie = subprocess.Popen([sys.executable, "-c", "pass"])
    time.sleep(0.5)
    (data_dir / "postgres" / "postmaster.pid").write_text("\n".join([str(zombie.pid), *lines[1:]]) + "\n")
    dsn = start_embedded(data_dir)
    zombie.wait()

    assert probe(dsn, seconds=1) is None


def test_another_program_with_the_number_of_a_dead_postmaster_is_not_taken_for_it(data_dir):
    start_embedded(data_dir)
    lines = (data_dir / "postgres" / "postmaster.pid").read_text().splitlines()
    stop_embedded(data_dir)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (data_dir / "postgres" / "postmaster.pid").write_text("\n".join([str(other.pid), *lines[1:]]) + "\n")
    began = time.monotonic()
    dsn = start_embedded(data_dir)
    other.kill()
    other.wait()

    assert probe(dsn, seconds=1) is None
    assert time.monotonic() - began < 55  # not after having waited for it to answer


def test_a_start_that_was_killed_while_it_made_the_cluster_is_made_good_by_the_next(data_dir):
    doomed = subprocess.Popen(
        [sys.executable, "-c", "import sys; from pathlib import Path; from invokeai_saas.db.embedded import start_embedded; "
         "start_embedded(Path(sys.argv[1]))", str(data_dir)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(data_dir.rglob("PG_VERSION")):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    doomed.kill()
    doomed.wait()

    assert not (data_dir / "postgres" / "PG_VERSION").exists()
    assert write_and_count(start_embedded(data_dir)) == 1


def test_a_server_that_cannot_start_is_reported_with_its_folder(data_dir):
    (data_dir / "postgres").mkdir()
    (data_dir / "postgres" / "unexpected").write_text("in the way of initdb")

    with pytest.raises(DatabaseUnavailable, match="postgres to answer after 3 starts"):
        start_embedded(data_dir)


def test_a_folder_has_one_server_at_a_time(data_dir):
    with sole_server(data_dir):
        with pytest.raises(BadSettings, match="SAAS_DATA_DIR: expected a folder without a running server"), sole_server(data_dir):
            pass
    with sole_server(data_dir):
        pass
