"""A psycopg error in, the sqlite3 exception that upstream's services catch out."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors

from invokeai_saas.errors import DatabaseUnavailable, SaasError


class ForeignRow(sqlite3.DatabaseError):
    """A policy refused a row that is not the tenant's."""


class Unavailable(DatabaseUnavailable, sqlite3.OperationalError):
    """No connection to the database within the timeout."""


class NumberTooLarge(SaasError, sqlite3.DataError):
    """A number that no column holds."""

    status = 422


_KEY = re.compile(r"Key \((?P<columns>[^)]*)\)=")
# First match wins. SQLite calls a missing table or column an operational error.
_CLASSES: tuple[tuple[type[psycopg.Error], type[sqlite3.Error]], ...] = (
    (psycopg.IntegrityError, sqlite3.IntegrityError),
    (psycopg.DataError, sqlite3.DataError),
    (psycopg.OperationalError, sqlite3.OperationalError),
    (psycopg.ProgrammingError, sqlite3.OperationalError),
    (psycopg.NotSupportedError, sqlite3.NotSupportedError),
    (psycopg.InternalError, sqlite3.InternalError),
    (psycopg.InterfaceError, sqlite3.InterfaceError),
)
_PREFIXES: tuple[tuple[type[psycopg.Error], str], ...] = (
    (errors.UniqueViolation, "UNIQUE constraint failed"),
    (errors.NotNullViolation, "NOT NULL constraint failed"),
    (errors.ForeignKeyViolation, "FOREIGN KEY constraint failed"),
    (errors.CheckViolation, "CHECK constraint failed"),
    (errors.DeadlockDetected, "database is locked"),
    (errors.LockNotAvailable, "database is locked"),
)


@contextmanager
def as_sqlite() -> Iterator[None]:
    """Raise sqlite3's exceptions in place of psycopg's, the original as the cause."""
    try:
        yield
    except psycopg.Error as error:
        raise translated(error) from error


def translated(error: psycopg.Error) -> sqlite3.Error:
    """The sqlite3 exception for `error`, with SQLite's wording where upstream reads it."""
    if isinstance(error, errors.InsufficientPrivilege):
        return ForeignRow(_first_line(error))
    if isinstance(error, errors.NumericValueOutOfRange):
        return NumberTooLarge("expected numbers that the database can hold")
    prefix = next((text for kind, text in _PREFIXES if isinstance(error, kind)), None)
    message = f"{prefix}: {_subject(error)}" if prefix else _first_line(error)
    return next((target for kind, target in _CLASSES if isinstance(error, kind)), sqlite3.DatabaseError)(message)


def _subject(error: psycopg.Error) -> str:
    """`users.email`, as SQLite names what a constraint is about; the values stay out."""
    diag = error.diag
    if isinstance(error, errors.NotNullViolation):
        return f"{diag.table_name}.{diag.column_name}"
    key = _KEY.search(diag.message_detail or "")
    if isinstance(error, errors.UniqueViolation) and key:
        return ", ".join(f"{diag.table_name}.{column.strip()}" for column in key["columns"].split(","))
    if isinstance(error, errors.UniqueViolation) and diag.constraint_name and diag.table_name:
        # Row-level security hides the detail; upstream_schema.py names these constraints table_columns_key.
        return f"{diag.table_name}.{diag.constraint_name.removeprefix(f'{diag.table_name}_').removesuffix('_key')}"
    return diag.constraint_name or _first_line(error)


def _first_line(error: psycopg.Error) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
