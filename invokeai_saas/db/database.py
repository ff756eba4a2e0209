"""The look-alike of upstream's SqliteDatabase over a pool of Postgres connections; the only place that commits.

`transaction()` serves upstream's services (SQLite's SQL, sqlite3's rows and errors), `postgres()` our own SQL (psycopg as it is); both
join the transaction that is open around them in the same thread and task. Each outermost transaction first says for whom it works
(tenancy.py). READ COMMITTED; who reads and then writes takes row locks.
"""

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow, dict_row
from psycopg_pool import ConnectionPool, PoolTimeout

from invokeai_saas.db import tenancy
from invokeai_saas.db.cursor import Cursor
from invokeai_saas.db.sqlite_errors import Unavailable, translated
from invokeai_saas.errors import TenantContextClash

Connection = psycopg.Connection[Any]
BEGIN = sql.SQL("BEGIN ISOLATION LEVEL READ COMMITTED; ")
logger = logging.getLogger(__name__)


@dataclass
class _Work:
    """One open transaction: its connection, who may join it, for whom it works and what waits for its commit."""

    database: "PostgresDatabase"
    connection: Connection
    owner: tuple[int, int]
    context: tenancy.Context
    depth: int = 0
    after_commit: list[Callable[[], None]] = field(default_factory=list)


_open_work: ContextVar[_Work | None] = ContextVar("invokeai_saas_transaction", default=None)


class PostgresDatabase:
    """A drop-in for SqliteDatabase. Thread-safe; open it after a fork, not before."""

    def __init__(
        self,
        dsn: str,
        *,
        pool_size: int = 10,
        timeout_seconds: float = 10.0,
        statement_timeout_seconds: float = 60.0,
        sharing: bool = False,
    ) -> None:
        self._timeout_seconds, self._sharing = timeout_seconds, sharing
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            _as_application(dsn, statement_timeout_seconds),
            min_size=min(2, pool_size),
            max_size=pool_size,
            timeout=timeout_seconds,
            kwargs={"autocommit": True},
            reconnect_timeout=60.0,
            open=True,
            name="invokeai-saas",
        )

    def close(self) -> None:
        """Close the pool; transactions that are open fail."""
        self._pool.close()

    def clean(self) -> None:
        """Upstream vacuums at start; Postgres does that by itself."""
        logger.debug("clean(): left to autovacuum")

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        """A cursor for SQLite's SQL. Commits at the end of the outermost block, rolls back on any exception."""
        with self._joined() as work:
            cursor = Cursor(work.connection)
            try:
                yield cursor
            finally:
                cursor.close()

    @contextmanager
    def postgres(self) -> Iterator[psycopg.Cursor[DictRow]]:
        """A psycopg cursor (rows are dicts, errors are psycopg's) for our own SQL, in the same transaction as `transaction()`."""
        with self._joined() as work, work.connection.cursor(row_factory=dict_row) as cursor:
            yield cursor

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Run `callback` after the open transaction's commit, at once outside of one, never after a rollback."""
        work = self._own_work()
        if work is None:
            callback()
        else:
            work.after_commit.append(callback)

    def _own_work(self) -> _Work | None:
        work = _open_work.get()
        return work if work is not None and work.database is self and work.owner == _owner() else None

    @contextmanager
    def _joined(self) -> Iterator[_Work]:
        context, work = tenancy.current(), self._own_work()
        if work is not None:
            with _nested(work, context, sharing=self._sharing):
                yield work
            return
        outer = _open_work.get()
        work = _Work(self, self._begin(context), _owner(), context)
        _open_work.set(work)
        try:
            yield work
            _commit(work.connection)
        except BaseException:
            _rollback(work.connection)
            raise
        finally:
            _open_work.set(outer)
            self._pool.putconn(work.connection)
        _run_callbacks(work.after_commit)

    def _begin(self, context: tenancy.Context) -> Connection:
        """A connection inside a transaction for `context`. Nothing was asked yet, so that a dead connection is just replaced."""
        deadline = time.monotonic() + self._timeout_seconds
        while True:
            try:
                connection = self._pool.getconn(timeout=max(0.01, deadline - time.monotonic()))
            except PoolTimeout as error:
                raise Unavailable(f"expected a database connection within {self._timeout_seconds} s, got none") from error
            try:
                connection.execute(BEGIN + context.enter_sql(sharing=self._sharing))
                return connection
            except psycopg.OperationalError as error:
                self._pool.putconn(connection)
                if time.monotonic() >= deadline:
                    raise Unavailable(f"expected an answering database within {self._timeout_seconds} s") from error
                time.sleep(0.05)
            except BaseException:
                self._pool.putconn(connection)
                raise


@contextmanager
def _nested(work: _Work, context: tenancy.Context, *, sharing: bool) -> Iterator[None]:
    """A savepoint: a failing inner block undoes itself and its callbacks, and the outer one may go on."""
    if not context.is_system and not work.context.is_system and context != work.context:
        raise TenantContextClash("expected the tenant of the open transaction, got another user")
    switched = context.is_system != work.context.is_system or context.user_id != work.context.user_id
    outer_context, callbacks = work.context, len(work.after_commit)
    work.depth += 1
    savepoint = sql.Identifier(f"nested_{work.depth}")
    _send(work, sql.SQL("SAVEPOINT {}").format(savepoint))
    try:
        if switched:
            _send(work, context.enter_sql(sharing=sharing))
            work.context = context
        yield
        _send(work, sql.SQL("RELEASE SAVEPOINT {}").format(savepoint))
        if switched:
            _send(work, outer_context.enter_sql(sharing=sharing))
    except BaseException:
        del work.after_commit[callbacks:]
        if not work.connection.closed and work.connection.info.transaction_status != TransactionStatus.ACTIVE:
            # The settings of the savepoint are undone with it.
            work.connection.execute(sql.SQL("ROLLBACK TO SAVEPOINT {}").format(savepoint))
        raise
    finally:
        work.context = outer_context
        work.depth -= 1


def _send(work: _Work, command: sql.SQL | sql.Composed) -> None:
    try:
        work.connection.execute(command)
    except psycopg.Error as error:
        raise translated(error) from error


def _commit(connection: Connection) -> None:
    if connection.info.transaction_status == TransactionStatus.INERROR:
        # COMMIT would quietly roll back.
        raise sqlite3.OperationalError("expected a transaction that can commit, got one in which a statement failed")
    try:
        connection.execute("COMMIT")
    except psycopg.Error as error:
        raise translated(error) from error


def _rollback(connection: Connection) -> None:
    """Best effort: a connection that cannot roll back is closed, and the pool replaces it."""
    try:
        if not connection.closed and connection.info.transaction_status != TransactionStatus.IDLE:
            connection.execute("ROLLBACK")
    except psycopg.Error:
        connection.close()


def _run_callbacks(callbacks: list[Callable[[], None]]) -> None:
    for callback in callbacks:
        try:
            callback()
        except Exception:
            # The commit stands; one failing listener must not hide it or stop the others.
            logger.exception("a callback after commit failed")


def _owner() -> tuple[int, int]:
    """The thread and the asyncio task: only they may join a transaction, whatever context they were given a copy of."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.get_ident(), id(task) if task is not None else 0


def _as_application(dsn: str, statement_timeout_seconds: float) -> str:
    """The DSN with the application role from the first moment: a statement outside of any transaction of ours sees nothing."""
    given = str(conninfo_to_dict(dsn).get("options") or "")
    milliseconds = int(statement_timeout_seconds * 1000)
    options = f"{given} -c role={tenancy.APP_ROLE} -c statement_timeout={milliseconds} -c search_path=public".strip()
    return make_conninfo(dsn, options=options)
