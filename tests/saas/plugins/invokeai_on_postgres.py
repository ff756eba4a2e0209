"""pytest plugin for upstream_suite.py: every SqliteDatabase that InvokeAI's tests make becomes a clone of our template."""

import atexit
import os
import shutil
import tempfile
from collections import deque
from pathlib import Path

import invokeai.app.services.shared.sqlite.sqlite_database as sqlite_database
import invokeai.app.services.shared.sqlite.sqlite_util as sqlite_util

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.db.embedded import stop_embedded
from invokeai_saas.db.upstream_schema import seed_defaults

from clusters import Cluster  # isort: skip
from statement_recorder import record_if_asked  # isort: skip

# Databases kept open: more than any one test makes, far fewer connections than the server has.
_KEPT = 12
_folder = tempfile.mkdtemp(prefix="invokeai-on-postgres-")
_cluster = Cluster(Path(_folder))
_open: deque[tuple["SystemDatabase", str]] = deque()


class _Connection:
    """What some tests reach for behind the database: own statements, a commit. Their CREATE TABLE is already there."""

    def __init__(self, database: "SystemDatabase") -> None:
        self._database = database

    def execute(self, statement, parameters=()):
        if statement.split()[0].upper() in {"CREATE", "PRAGMA"}:
            return None
        with self._database.transaction() as cursor:
            cursor.execute(statement, parameters)
            rows = cursor.fetchall()
        return _Rows(rows)

    def cursor(self):
        return self

    def commit(self) -> None:
        pass


class _Rows:
    def __init__(self, rows) -> None:
        self._rows = rows

    def fetchone(self):
        return self._rows[0] if self._rows else None

    def fetchall(self):
        return self._rows

    def __iter__(self):
        return iter(self._rows)


class SystemDatabase(PostgresDatabase):
    """With the connection that some tests reach for."""

    @property
    def _conn(self):
        return _Connection(self)


def _make(*_args, seeded=False, **_kwargs) -> SystemDatabase:
    dsn = _cluster.clone()
    database = SystemDatabase(dsn, pool_size=6)
    _open.append((database, dsn))
    if not seeded:
        with database.transaction() as cursor:
            for table in ("users", "system_prompts"):
                cursor.execute(f"DELETE FROM {table}")
    if len(_open) > _KEPT:
        _close(*_open.popleft())
    return database


def _close(database: SystemDatabase, dsn: str) -> None:
    database.close()
    _cluster.drop(dsn)


def _init_db(config, logger, image_files) -> SystemDatabase:
    return _make(seeded=True)


def _finish() -> None:
    while _open:
        _close(*_open.popleft())
    stop_embedded(Path(_folder))
    shutil.rmtree(_folder, ignore_errors=True)


def _seed_template() -> None:
    from psycopg.conninfo import make_conninfo

    _cluster.template()
    database = PostgresDatabase(make_conninfo(_cluster.dsn, dbname="template_saas"))
    seed_defaults(database)
    database.close()


# In system context wherever no tenant was entered, in every thread: upstream's tests know no tenants.
tenancy.current = lambda: tenancy.current_or_none() or tenancy.Context(reason="InvokeAI's own tests")
_seed_template()
if os.environ.get("SAAS_SUITE_QUEUE"):
    import invokeai.app.services.session_queue.session_queue_sqlite as session_queue_sqlite

    from invokeai_saas.swaps.session_queue import PostgresSessionQueue

    session_queue_sqlite.SqliteSessionQueue = PostgresSessionQueue
record_if_asked()
sqlite_database.SqliteDatabase = _make
sqlite_util.init_db = _init_db
atexit.register(_finish)
