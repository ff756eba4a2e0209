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
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, TransactionStatus
from psycopg.rows import DictRow, dict_row
from psycopg_pool import PoolTimeout

from invokeai_saas.db import tenancy
from invokeai_saas.db.cursor import Cursor
from invokeai_saas.db.pool import NAME, SteadyPool
from invokeai_saas.db.sqlite_errors import Unavailable, translated
from invokeai_saas.errors import TenantContextClash

Connection = psycopg.Connection[Any]
BEGIN = b"BEGIN ISOLATION LEVEL READ COMMITTED; "
LOCK = "SELECT pg_advisory_lock(hashtextextended(%s, 0))"
UNLOCK = "SELECT pg_advisory_unlock(hashtextextended(%s, 0))"
TRY_LOCK = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
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


CONNECT_SECONDS = 10
CommitGuard = Callable[[Connection], None]
_open_work: ContextVar[_Work | None] = ContextVar("invokeai_saas_transaction", default=None)
_commit_guard: ContextVar[CommitGuard | None] = ContextVar("invokeai_saas_commit_guard", default=None)


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
        # Entered around every outermost transaction; tracing sets it.
        self.around_transaction: Callable[[tenancy.Context], AbstractContextManager[object]] = nullcontext
        self._dsn = _as_application(dsn, statement_timeout_seconds)
        self._pool = SteadyPool(
            self._dsn,
            min_size=min(2, pool_size),
            max_size=pool_size,
            timeout=timeout_seconds,
            kwargs={"autocommit": True},
            reconnect_timeout=60.0,
            open=True,
            name=NAME,
        )

    def close(self) -> None:
        """Close the pool; transactions that are open fail."""
        self._pool.close()

    def connect_alone(self) -> Connection:
        """A connection of its own as the application role, outside of the pool: for LISTEN. Raises psycopg's errors."""
        return psycopg.connect(self._dsn, autocommit=True, connect_timeout=max(1, int(self._timeout_seconds)))

    def pool_counts(self) -> tuple[int, int, int]:
        """Connections in use, connections open, requests that wait for one."""
        counts = self._pool.get_stats()
        opened = counts.get("pool_size", 0)
        return opened - counts.get("pool_available", 0), opened, counts.get("requests_waiting", 0)

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

    @property
    def in_transaction(self) -> bool:
        """True while this thread and task has a transaction open: what is sent elsewhere now cannot be rolled back."""
        return self._own_work() is not None

    @contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Wait until no other process is inside `name`; the lock falls with the connection of whoever dies in it."""
        with self._pool.connection(timeout=self._timeout_seconds) as connection:
            connection.execute("SET statement_timeout = 0")
            connection.execute(LOCK, (name,))
            try:
                yield
            finally:
                connection.execute(UNLOCK, (name,))
                connection.execute("RESET statement_timeout")

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Run `callback` after the open transaction's commit, at once outside of one, never after a rollback."""
        work = self._own_work()
        if work is None:
            callback()
        else:
            work.after_commit.append(callback)

    @contextmanager
    def exclusive_if_free(self, name: str) -> Iterator[bool]:
        """Whether no other process is inside `name`; if so they stay out until the end, or until the connection of this one dies."""
        try:
            with self._pool.connection(timeout=self._timeout_seconds) as connection:
                found = connection.execute(TRY_LOCK, (name,)).fetchone()
                free = found is not None and bool(found[0])
                try:
                    yield free
                finally:
                    if free and not connection.closed:
                        connection.execute(UNLOCK, (name,))
        except PoolTimeout as error:
            raise Unavailable(f"expected a database connection within {self._timeout_seconds} s, got none") from error

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
        with self.around_transaction(context), self._outermost(context) as work:
            yield work
        _run_callbacks(work.after_commit)

    @contextmanager
    def _outermost(self, context: tenancy.Context) -> Iterator[_Work]:
        outer = _open_work.get()
        work = _Work(self, self._begin(context), _owner(), context)
        _open_work.set(work)
        try:
            yield work
            guard = _commit_guard.get()
            if guard is not None:
                guard(work.connection)
            _commit(work.connection)
        except BaseException:
            _rollback(work.connection)
            raise
        finally:
            _open_work.set(outer)
            self._pool.putconn(work.connection)

    def _begin(self, context: tenancy.Context) -> Connection:
        """A connection inside a transaction for `context`. Nothing was asked yet, so that a dead connection is just replaced."""
        deadline = time.monotonic() + self._timeout_seconds
        while True:
            try:
                connection = self._pool.getconn(timeout=max(0.01, deadline - time.monotonic()))
            except PoolTimeout as error:
                raise Unavailable(f"expected a database connection within {self._timeout_seconds} s, got none") from error
            try:
                _run(connection, BEGIN + context.enter_sql(sharing=self._sharing))
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
def commit_guarded(guard: CommitGuard | None) -> Iterator[None]:
    """Inside, every outermost transaction asks `guard` last thing before its commit; what it raises rolls back. None: nothing is asked."""
    token = _commit_guard.set(guard)
    try:
        yield
    finally:
        _commit_guard.reset(token)


@contextmanager
def _nested(work: _Work, context: tenancy.Context, *, sharing: bool) -> Iterator[None]:
    """A savepoint: a failing inner block undoes itself and its callbacks, and the outer one may go on."""
    if not context.is_system and not work.context.is_system and context != work.context:
        raise TenantContextClash("expected the tenant of the open transaction, got another user")
    switched = context.is_system != work.context.is_system or context.user_id != work.context.user_id
    outer_context, callbacks = work.context, len(work.after_commit)
    savepoint = b"nested_%d" % (work.depth + 1)
    _send(work, b"SAVEPOINT %s; %s" % (savepoint, context.enter_sql(sharing=sharing) if switched else b""))
    work.depth += 1
    work.context = context
    try:
        yield
        _send(work, b"RELEASE SAVEPOINT %s; %s" % (savepoint, outer_context.enter_sql(sharing=sharing) if switched else b""))
    except BaseException:
        del work.after_commit[callbacks:]
        if not work.connection.closed and work.connection.info.transaction_status != TransactionStatus.ACTIVE:
            # The settings of the savepoint are undone with it. On a lost connection all is undone, and the cause is what to raise.
            with suppress(psycopg.OperationalError):
                work.connection.execute(b"ROLLBACK TO SAVEPOINT " + savepoint)
        raise
    finally:
        work.context = outer_context
        work.depth -= 1


def _send(work: _Work, command: bytes) -> None:
    try:
        _run(work.connection, command)
    except psycopg.Error as error:
        raise translated(error) from error


def _run(connection: Connection, command: bytes) -> None:
    """Commands that answer nothing, straight through libpq: psycopg's care for parameters and rows was half of a transaction's cost."""
    result = connection.pgconn.exec_(command)
    if result.status in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK) and connection.pgconn.status == ConnStatus.OK:
        return
    # What has no SQLSTATE was said by libpq, not by the server: the connection is lost, even where its status does not say so yet.
    if connection.pgconn.status != ConnStatus.OK or result.error_field(DiagnosticField.SQLSTATE) is None:
        raise psycopg.OperationalError(result.error_message.decode(errors="replace").strip() or "the connection is lost")
    raise error_from_result(result)


def _commit(connection: Connection) -> None:
    if connection.info.transaction_status == TransactionStatus.INERROR:
        # COMMIT would quietly roll back.
        raise sqlite3.OperationalError("expected a transaction that can commit, got one in which a statement failed")
    try:
        _run(connection, b"COMMIT")
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
    options = f"{given} -c role={tenancy.APP_ROLE} -c statement_timeout={milliseconds} -c search_path=public,procrastinate".strip()
    # A server that was killed may leave a socket that takes connections and that nobody answers.
    limits = {} if "connect_timeout" in conninfo_to_dict(dsn) else {"connect_timeout": CONNECT_SECONDS}
    return make_conninfo(dsn, options=options, **limits)
