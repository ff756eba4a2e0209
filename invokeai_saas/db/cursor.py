"""What `transaction()` yields: a cursor that takes upstream's SQLite SQL and answers as sqlite3's does, over psycopg."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import psycopg
from psycopg.adapt import Dumper
from psycopg.rows import tuple_row

from invokeai_saas.db.sqlite_dialect import bind, translate
from invokeai_saas.db.sqlite_errors import as_sqlite
from invokeai_saas.errors import UnknownStatement

Parameters = Sequence[Any] | Mapping[str, Any]

# SQLite's write lock, for those who ask for it before they read: 0x494E564F4B45 is "INVOKE".
LOCK_WRITES = "SELECT pg_advisory_xact_lock(80603084212037)"
_NUMERIC_OID = 1700


class IntegerDumper(Dumper):
    """Integers without a type of their own, so that 0/1 and ids take the type of the column that they meet."""

    oid = 0

    def dump(self, obj: int) -> bytes:
        """Decimal digits."""
        return str(int(obj)).encode()


class Row:
    """A result row that reads like sqlite3.Row: by position, by name without case, as a mapping for dict()."""

    __slots__ = ("_names", "_places", "_values")

    def __init__(self, names: tuple[str, ...], places: Mapping[str, int], values: tuple[Any, ...]) -> None:
        """`places` is where each name of the result stands, made once for all of its rows."""
        self._names, self._places, self._values = names, places, values

    def keys(self) -> list[str]:
        """Column names in order."""
        return list(self._names)

    def __getitem__(self, key: int | slice | str) -> Any:
        if not isinstance(key, str):
            return self._values[key]
        place = self._places.get(key)
        if place is None:
            place = self._places.get(key.lower())
        if place is None:
            raise IndexError("No item with that key")
        return self._values[place]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Row) and (self._names, self._values) == (other._names, other._values)

    def __hash__(self) -> int:
        return hash((self._names, self._values))

    def __repr__(self) -> str:
        return f"Row({', '.join(self._names)})"


class Cursor:
    """sqlite3.Cursor's surface, as far as upstream uses it."""

    arraysize = 1

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._cursor = psycopg.RawCursor(connection, row_factory=tuple_row)
        # Of this cursor only: our own SQL keeps psycopg's types.
        self._cursor.adapters.register_dumper(int, IntegerDumper)
        self._names: tuple[str, ...] = ()
        self._places: dict[str, int] = {}
        self._has_numeric = False
        self.lastrowid: int | None = None

    @property
    def rowcount(self) -> int:
        """Rows that the last statement changed."""
        return self._cursor.rowcount

    @property
    def description(self) -> list[tuple[Any, ...]] | None:
        """Seven-tuples of which only the name is set, as sqlite3 gives them."""
        return [(name, None, None, None, None, None, None) for name in self._names] or None

    def execute(self, sql: str, parameters: Parameters = ()) -> "Cursor":
        """Translate and run one statement."""
        if _is_begin(sql):
            with as_sqlite():
                self._cursor.execute(LOCK_WRITES)
            self._names = ()
            return self
        statement = translate(sql)
        with as_sqlite():
            self._cursor.execute(statement.sql.encode(), bind(statement, parameters) or None)
        self._read_header()
        if statement.returns_row_id:
            row = self._cursor.fetchone()
            self.lastrowid, self._names = (int(row[0]) if row else self.lastrowid), ()
        return self

    def executemany(self, sql: str, parameters: Iterable[Parameters]) -> "Cursor":
        """One statement for many parameter sets, sent in one go."""
        rows = list(parameters)
        if not rows:
            return self
        first = translate(sql)
        with as_sqlite():
            self._cursor.executemany(first.sql.encode(), [bind(first, row) for row in rows])
        self._names = ()
        return self

    def fetchone(self) -> Row | None:
        """The next row, None at the end or when the statement answers no rows."""
        values = self._cursor.fetchone() if self._names else None
        return None if values is None else self._row(values)

    def fetchmany(self, size: int | None = None) -> list[Row]:
        """Up to `size` rows."""
        return [self._row(values) for values in self._cursor.fetchmany(size or self.arraysize)] if self._names else []

    def fetchall(self) -> list[Row]:
        """All remaining rows."""
        return [self._row(values) for values in self._cursor.fetchall()] if self._names else []

    def __iter__(self) -> Iterator[Row]:
        while (row := self.fetchone()) is not None:
            yield row

    def close(self) -> None:
        """Free the result."""
        self._cursor.close()

    def _read_header(self) -> None:
        columns = self._cursor.description or []
        self._names = tuple(column.name for column in columns)
        # By name and by name without case; of two columns of one name the first counts, as in sqlite3.
        self._places = {}
        for place, name in enumerate(self._names):
            self._places.setdefault(name.lower(), place)
        for place, name in enumerate(self._names):
            self._places.setdefault(name, place)
        self._has_numeric = any(column.type_code == _NUMERIC_OID for column in columns)

    def _row(self, values: tuple[Any, ...]) -> Row:
        if self._has_numeric:
            values = tuple(_plain(value) if isinstance(value, Decimal) else value for value in values)
        return Row(self._names, self._places, values)


def _plain(value: Decimal) -> int | float:
    """SUM of integers is numeric in Postgres, an integer in SQLite."""
    return int(value) if value == value.to_integral_value() else float(value)


def _is_begin(sql: str) -> bool:
    words = sql.strip().rstrip(";").upper().split()
    if words and words[0] in {"BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE"}:
        if words in (["BEGIN", "IMMEDIATE"], ["BEGIN", "EXCLUSIVE"]):
            return True
        raise UnknownStatement(f"expected transaction() to begin and end transactions, got: {sql}")
    return False
