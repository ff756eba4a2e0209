"""One SQLite statement of upstream in, one Postgres statement and the way to bind its parameters out.

Two steps, both cached: the text is reduced to a template (comments gone, parameters numbered, `IN (?, ?, …)` one array whatever its
length), then the template is parsed and rewritten by the rules of dialect_rules.py. What has no rule raises UnknownStatement.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import Enum
from functools import lru_cache
from threading import Lock
from typing import Any

from sqlglot import exp, parse
from sqlglot.errors import SqlglotError

from invokeai_saas.db import dialect_rules as rules
from invokeai_saas.errors import UnknownStatement

# In this order: what may hide a question mark comes first.
_TOKENS = re.compile(
    r"""
      (?P<comment>--[^\n]*|/\*.*?\*/)
    | (?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
    | (?P<many>\bIN\s*\(\s*(?:\?(?:\s*,\s*\?)*)?\s*\))
    | (?P<one>\?)
    | :(?P<name>[A-Za-z_]\w*)
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one Postgres parameter comes from: the next `count` values as an array, the next one (None), or `name`."""

    count: int | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Statement:
    """A translated statement; `returns_row_id` tells that RETURNING was added for lastrowid."""

    sql: str
    slots: tuple[Slot, ...]
    returns_row_id: bool


def translate(sqlite_sql: str) -> Statement:
    """Translate one statement; raises UnknownStatement that holds the statement."""
    template, slots = _template(sqlite_sql)
    text, returns_row_id = _translated(template)
    return Statement(text, slots, returns_row_id)


def bind(statement: Statement, parameters: Sequence[Any] | Mapping[str, Any]) -> list[Any]:
    """Values in the order of $1, $2, …; raises ValueError when their number does not fit, as sqlite3 does."""
    if isinstance(parameters, Mapping):
        return [_adapted(parameters[_name_of(slot)]) for slot in statement.slots]
    expected = sum(1 if slot.count is None else slot.count for slot in statement.slots)
    if len(parameters) != expected:
        raise ValueError(f"expected {expected} parameters, got {len(parameters)}: {statement.sql}")
    values, bound = iter(parameters), []
    for slot in statement.slots:
        if slot.count is None:
            bound.append(_adapted(next(values)))
        else:
            bound.append(array_literal([_adapted(next(values)) for _ in range(slot.count)]))
    return bound


def array_literal(values: Sequence[Any]) -> str:
    """A Postgres array in its text form, so that the server takes the type from the column it is compared with."""
    quoted = ("NULL" if value is None else '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values)
    return "{" + ",".join(quoted) + "}"


def _name_of(slot: Slot) -> str:
    if slot.name is None:
        raise ValueError("expected a sequence of parameters for question marks, got a mapping")
    return slot.name


def _adapted(value: Any) -> Any:
    """What sqlite3 would have stored: enums by value, booleans as 0/1, dates as text."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, datetime):
        return value.isoformat(" ")
    return value.isoformat() if isinstance(value, date) else value


@lru_cache(maxsize=2048)
def _template(sqlite_sql: str) -> tuple[str, tuple[Slot, ...]]:
    slots: list[Slot] = []

    def replaced(match: re.Match[str]) -> str:
        if match["comment"]:
            return " "
        if match["text"]:
            return match["text"]
        if match["many"]:
            slots.append(Slot(count=match["many"].count("?")))
            return f"IN (:{rules.MANY}{len(slots)})"
        slots.append(Slot(name=match["name"]))
        return f":{rules.ONE}{len(slots)}"

    text = _TOKENS.sub(replaced, sqlite_sql)
    return " ".join(text.split()) if "'" not in text and '"' not in text else text.strip(), tuple(slots)


# sqlglot builds its dialects when they are first used, and a second thread meanwhile writes with half of one: "@1" for "$1".
_ONE_AT_A_TIME = Lock()


@lru_cache(maxsize=2048)
def _translated(template: str) -> tuple[str, bool]:
    with _ONE_AT_A_TIME:
        return _translate(template)


def _translate(template: str) -> tuple[str, bool]:
    try:
        statements = [tree for tree in parse(template, read="sqlite") if tree is not None]
    except SqlglotError as error:
        raise UnknownStatement(f"expected SQL that the SQLite parser reads, got: {template}") from error
    if len(statements) != 1:
        raise UnknownStatement(f"expected one statement, got {len(statements)}: {template}")
    tree: exp.Expr = statements[0]
    try:
        tree, returns_row_id = rules.apply(tree)
    except rules.NoRule as error:
        raise UnknownStatement(f"no rule for {error}: {template}") from None
    return tree.sql(dialect="postgres", comments=False), returns_row_id
