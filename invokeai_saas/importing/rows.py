"""Rows without files, batch by batch: one transaction brings a batch and remembers it. What is there already stays as it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psycopg

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.importing import ledger
from invokeai_saas.importing.ledger import Cursor
from invokeai_saas.importing.people import GONE, Owners
from invokeai_saas.importing.report import Report
from invokeai_saas.importing.source import Source
from invokeai_saas.importing.tables import BOARDS, Table, Values
from invokeai_saas.storage.files import Files

REASON = "rows of a root become rows of its users here"
BATCH = 500
CHANGED = "changed in the root since it was brought; what is here stays"
OTHER = "something else of this name is here"
THERE_IMAGES = "SELECT image_name FROM images WHERE image_name = ANY(%s)"


@dataclass(frozen=True, slots=True)
class Work:
    """What every step of an import takes."""

    source: Source
    database: PostgresDatabase
    files: Files
    owners: Owners
    report: Report


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row on its way: as it will be here, and the digest of how it was in the root."""

    name: str
    values: Values
    digest: str


def bring_rows(work: Work, table: Table, change: Callable[[Values], Values] = lambda values: values) -> None:
    """All rows of a table; `change` makes a row fit for here, besides its owner."""
    total = work.source.number(table.total)
    for rows in work.source.batches(table.read, BATCH):
        candidates = [found for row in rows if (found := candidate(work, table, row, change)) is not None]
        with tenancy.as_system(REASON), work.database.postgres() as cursor:
            fresh = _sift(work, table, cursor, candidates)
            if table is BOARDS:
                _forget_lost_covers(cursor, fresh)
            brought = _insert(work, table, cursor, fresh)
            ledger.remember_all(cursor, table.kind, brought)
        work.report.of(table.kind).brought += len(brought)
        work.report.progress(table.kind, total)


def candidate(work: Work, table: Table, row: Values, change: Callable[[Values], Values]) -> Candidate | None:
    """The row with its owner here; None, and reported, when it has none."""
    values, digest = dict(row), ledger.digest_of(table.content(row))
    if "user_id" in values:
        values["user_id"] = work.owners.of(row["user_id"])
        if values["user_id"] is None:
            work.report.leave(table.kind, table.name_of(row), work.owners.why(row["user_id"]))
            return None
    values = change(values)
    return Candidate(table.name_of(values), values, digest)


def judge_known(work: Work, kind: str, name: str, before: str, now: str) -> None:
    """Of something that an earlier run brought: report whether the root still says the same."""
    if before == now:
        work.report.of(kind).there += 1
    else:
        work.report.leave(kind, name, CHANGED)


def look(cursor: Cursor, table: Table, candidates: Sequence[Candidate]) -> dict[str, Values]:
    """Rows that are here under the names of `candidates`."""
    keys = list({item.values[table.key[0]] for item in candidates})
    return {table.name_of(row): row for row in cursor.execute(table.look, {"keys": keys}).fetchall()}


def _sift(work: Work, table: Table, cursor: Cursor, candidates: list[Candidate]) -> list[Candidate]:
    """Those that neither an earlier run brought nor anybody else made."""
    known = ledger.known(cursor, table.kind, [item.name for item in candidates])
    there = look(cursor, table, candidates)
    fresh = []
    for item in candidates:
        if item.name in known:
            judge_known(work, table.kind, item.name, known[item.name].digest, item.digest)
        elif item.values.get("user_id") in work.owners.gone:
            work.report.leave(table.kind, item.name, GONE)
        elif item.name not in there:
            fresh.append(item)
        elif table.content(there[item.name]) == table.content(item.values):
            ledger.remember(cursor, table.kind, item.name, item.digest)
            work.report.of(table.kind).there += 1
        else:
            work.report.leave(table.kind, item.name, OTHER)
    return fresh


def _insert(work: Work, table: Table, cursor: Cursor, fresh: list[Candidate]) -> dict[str, str]:
    """Insert in one go; when that fails, one by one, leaving those behind that do not fit. Returns digests by name."""
    try:
        with work.database.postgres() as inner:
            inner.executemany(table.insert, [item.values for item in fresh])
        return {item.name: item.digest for item in fresh}
    except (psycopg.IntegrityError, psycopg.DataError):
        return {item.name: item.digest for item in fresh if insert_one(work, table, item)}


def insert_one(work: Work, table: Table, item: Candidate) -> bool:
    """Insert in a savepoint; False, and reported, when the database refuses the row."""
    try:
        with work.database.postgres() as inner:
            inner.execute(table.insert, item.values)
    except psycopg.errors.ForeignKeyViolation:
        work.report.leave(table.kind, item.name, "what it refers to is not here")
    except psycopg.errors.UniqueViolation as error:
        work.report.leave(table.kind, item.name, f"{OTHER} ({error.diag.constraint_name})")
    except (psycopg.IntegrityError, psycopg.DataError) as error:
        work.report.leave(table.kind, item.name, f"the database refuses it ({type(error).__name__})")
    else:
        return True
    return False


def _forget_lost_covers(cursor: Cursor, boards: list[Candidate]) -> None:
    """A board whose cover did not come over comes without."""
    covers = [item.values["cover_image_name"] for item in boards if item.values["cover_image_name"]]
    there = {row["image_name"] for row in cursor.execute(THERE_IMAGES, (covers,)).fetchall()}
    for item in boards:
        if item.values["cover_image_name"] not in there:
            item.values["cover_image_name"] = None
