"""The rows of `imported`: what was brought over before (0008_import.sql), read and written inside the importer's transactions."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import DictRow

Cursor = psycopg.Cursor[DictRow]
KNOWN = "SELECT name, digest, became FROM imported WHERE kind = %s AND name = ANY(%s)"
REMEMBER = "INSERT INTO imported (kind, name, digest, became) VALUES (%s, %s, %s, %s)"
COUNT = "SELECT count(*) AS n FROM imported WHERE kind = %s"


@dataclass(frozen=True, slots=True)
class Entry:
    """What was brought, as it was in the root; `became` is the id that a user has here, where it is another."""

    digest: str
    became: str | None = None


def known(cursor: Cursor, kind: str, names: Collection[str]) -> dict[str, Entry]:
    """Those of `names` that an earlier run brought."""
    rows = cursor.execute(KNOWN, (kind, list(names))).fetchall()
    return {row["name"]: Entry(row["digest"], row["became"]) for row in rows}


def remember(cursor: Cursor, kind: str, name: str, digest: str, became: str | None = None) -> None:
    """In the transaction of the row itself: both or neither."""
    cursor.execute(REMEMBER, (kind, name, digest, became))


def remember_all(cursor: Cursor, kind: str, digests: Mapping[str, str]) -> None:
    """As remember(), of many."""
    cursor.executemany(REMEMBER, [(kind, name, digest, None) for name, digest in digests.items()])


def count(cursor: Cursor, kind: str) -> int:
    """How many of a kind were brought so far, from any root."""
    row = cursor.execute(COUNT, (kind,)).fetchone()
    return int(row["n"]) if row else 0


def digest_of(values: Any) -> str:
    """SHA-256 of what a row says."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=repr).encode("utf-8", "surrogatepass")).hexdigest()
