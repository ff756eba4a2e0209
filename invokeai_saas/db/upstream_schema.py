"""Upstream's migrations in, the Postgres DDL of the same schema out.

The migrations are replayed into an in-memory SQLite, which is then asked (PRAGMA) what it holds: tables, keys, defaults, checks,
indexes, triggers. Dates stay text and booleans integers 0/1, as upstream's code reads and writes them.

The result is recorded as a numbered migration, so that migrating needs no InvokeAI; a test holds the two together. Record it with
`python -m invokeai_saas.db.upstream_schema`. When a new InvokeAI changes its schema, released files stay as they are and the
difference becomes the next numbered migration.
"""

import logging
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg import sql

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.db.dialect_rules import ROW_IDS
from invokeai_saas.errors import MigrationRefused

RECORDED = Path(__file__).parent / "migrations" / "0002_upstream_schema.sql"
_HEAD = """-- InvokeAI's own tables, made from InvokeAI's own migrations. Generated: python -m invokeai_saas.db.upstream_schema
-- applied_migrations says which migrations of InvokeAI this schema stands for.

"""
# What the schema means without: who owns defaults, and upstream's bookkeeping. Default prompts come with seed_defaults().
_ROWS_RECORDED = ("users", "migrations", "applied_migrations")
_ROWS_SEEDED = ("system_prompts",)
_STAMPS = {"created_at", "updated_at", "migrated_at"}
# Free text of any length: a Postgres index entry ends at 2,704 bytes, and such a row could not be saved.
_INDEXES_LEFT_OUT = {
    "idx_workflow_library_name",
    "idx_workflow_library_description",
    "idx_style_presets_name",
    "idx_system_prompts_name",
}
_TYPES = {"TEXT": "text", "TEXT DATETIME": "text", "DATETIME": "text"}
_TYPES |= {"INTEGER": "bigint", "REAL": "double precision", "BOOLEAN": "integer"}
_TABLE_NAMES = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
_TRIGGERS = "SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY tbl_name, name"
_DEFAULTS = {
    "STRFTIME('%Y-%m-%d %H:%M:%f', 'NOW')": "sqlite_now()",
    "CURRENT_TIMESTAMP": "sqlite_now_seconds()",
    "TRUE": "1",
    "FALSE": "0",
}
_UPDATED_AT = re.compile(r"^CREATE TRIGGER (\w+)\s+AFTER UPDATE(?: OF (\w+))?\s+ON (\w+)", re.IGNORECASE)
_TRIGGER_SET = re.compile(r"SET\s+(\w+)\s*=\s*(STRFTIME\('%Y-%m-%d %H:%M:%f', 'NOW'\)|current_timestamp)", re.IGNORECASE)
_TRIGGER_WHEN = re.compile(r"WHEN\s+(.*?)\s+BEGIN", re.IGNORECASE | re.DOTALL)
_GENERATED = re.compile(r"(\w+)\s+(?:TEXT|INTEGER)\s+GENERATED ALWAYS AS \((json_extract\(\w+, '[^']+'\))\)", re.IGNORECASE)
_CHECK = re.compile(r"CHECK\s*\(\s*(\w+ IN \([^)]*\))\s*\)", re.IGNORECASE)


@dataclass(frozen=True)
class UpstreamSchema:
    """DDL statements in order, and the statements that insert upstream's default rows."""

    ddl: tuple[str, ...]
    defaults: tuple[str, ...]

    def as_migration(self) -> str:
        """The text of the recorded migration file."""
        return _HEAD + ";\n".join(self.ddl) + ";\n"


def read_upstream_schema() -> UpstreamSchema:
    """Replay, introspect, emit. Takes about a second, most of it imports of InvokeAI."""
    connection = _replayed()
    try:
        tables = _tables(connection)
        ddl = [*_all_tables(connection, tables), *_all_indexes(connection, tables), *_triggers(connection)]
        ddl += _rows(connection, _ROWS_RECORDED)
        defaults = list(_rows(connection, _ROWS_SEEDED))
    finally:
        connection.close()
    return UpstreamSchema(tuple(ddl), tuple(defaults))


def seed_defaults(database: PostgresDatabase) -> None:
    """Insert upstream's default rows that are missing; a server does it at start, when InvokeAI is loaded anyway."""
    with tenancy.as_system("upstream's default rows"), database.postgres() as cursor:
        for statement in read_upstream_schema().defaults:
            cursor.execute(statement.encode())


def upstream_migration_ids() -> tuple[str, ...]:
    """The migrations that the installed InvokeAI would run, without running them."""
    with tempfile.TemporaryDirectory() as root:
        return tuple(str(migration.id) for migration in _migrations(Path(root), logging.getLogger(__name__)))


def refuse_other_upstream(database: PostgresDatabase) -> None:
    """Raise MigrationRefused when InvokeAI's schema in the database is not that of the installed InvokeAI."""
    with tenancy.as_system("compare InvokeAI's schema with the database"), database.postgres() as cursor:
        theirs = {row["migration_id"] for row in cursor.execute("SELECT migration_id FROM applied_migrations").fetchall()}
    ours = set(upstream_migration_ids())
    if theirs - ours:
        raise MigrationRefused(f"the database is newer than the installed InvokeAI: it has {sorted(theirs - ours)}")
    if ours - theirs:
        raise MigrationRefused(f"the installed InvokeAI has schema changes without a migration of ours: {sorted(ours - theirs)}")


def _migrations(root: Path, logger: logging.Logger) -> list[Any]:
    from invokeai.app.services.config.config_default import InvokeAIAppConfig
    from invokeai.app.services.shared.sqlite_migrator.migration_loader import MigrationBuildContext, build_migrations

    config = InvokeAIAppConfig(use_memory_db=True)
    config._root = root
    # An empty database has no pictures: no migration opens a file.
    return list(build_migrations(MigrationBuildContext(app_config=config, logger=logger, image_files=None)))


def _replayed() -> sqlite3.Connection:
    from invokeai.app.services.shared.sqlite.sqlite_database import SqliteDatabase
    from invokeai.app.services.shared.sqlite_migrator.sqlite_migrator_impl import SqliteMigrator

    logger = logging.getLogger(f"{__name__}.replay")
    logger.setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as root:
        database = SqliteDatabase(db_path=None, logger=logger)
        migrator = SqliteMigrator(db=database)
        for migration in _migrations(Path(root), logger):
            migrator.register_migration(migration)
        migrator.run_migrations()
    connection: sqlite3.Connection = database._conn
    return connection


def _tables(connection: sqlite3.Connection) -> list[str]:
    """Names in an order in which every table comes after those that it references."""
    names = [row[0] for row in connection.execute(_TABLE_NAMES)]
    needs = {name: {row["table"] for row in connection.execute(f"PRAGMA foreign_key_list({name})")} - {name} for name in names}
    ordered: list[str] = []
    while len(ordered) < len(names):
        ready = [name for name in names if name not in ordered and needs[name] <= set(ordered)]
        if not ready:
            raise MigrationRefused(
                f"expected upstream's tables without circular references, got {sorted(set(names) - set(ordered))}"
            )
        ordered += ready
    return ordered


def _all_tables(connection: sqlite3.Connection, tables: list[str]) -> Iterator[str]:
    for table in tables:
        source = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)).fetchone()[0]
        columns = connection.execute(f"PRAGMA table_xinfo({table})").fetchall()
        generated = {name.lower(): expression for name, expression in _GENERATED.findall(source)}
        parts = [_column(table, column, generated) for column in columns]
        parts += list(_constraints(connection, table, columns, source))
        yield f"CREATE TABLE {table} (\n    " + ",\n    ".join(parts) + "\n)"


def _column(table: str, column: sqlite3.Row, generated: dict[str, str]) -> str:
    name, declared = column["name"], column["type"].upper().removesuffix(" GENERATED ALWAYS")
    kind = _TYPES.get(declared)
    if kind is None:
        raise MigrationRefused(f"expected a known column type of {table}.{name}, got {declared!r}")
    parts = [name, kind]
    if column["hidden"] in (2, 3):
        expression = generated[name.lower()]
        parts.append(f"GENERATED ALWAYS AS ({expression if kind == 'text' else f'({expression})::{kind}'}) STORED")
    elif column["pk"] == 1 and kind == "bigint" and table in ROW_IDS:
        parts.append("GENERATED BY DEFAULT AS IDENTITY")
    elif column["dflt_value"] is not None:
        parts.append(f"DEFAULT {_default(column['dflt_value'])}")
    if column["notnull"] or column["pk"]:
        parts.append("NOT NULL")
    if declared == "BOOLEAN":
        parts.append(f"CONSTRAINT {table}_{name}_is_boolean CHECK ({name} IN (0, 1))")
    return " ".join(parts)


def _default(text: str) -> str:
    known = next((ours for theirs, ours in _DEFAULTS.items() if text.strip().upper() == theirs.upper()), None)
    if known is not None:
        return known
    if text.startswith('"'):
        return "'" + text[1:-1].replace("'", "''") + "'"
    if text.startswith("'") or re.fullmatch(r"-?\d+(\.\d+)?", text):
        return text
    raise MigrationRefused(f"expected a known default, got {text!r}")


def _constraints(connection: sqlite3.Connection, table: str, columns: list[sqlite3.Row], source: str) -> Iterator[str]:
    key = [row["name"] for row in sorted((c for c in columns if c["pk"]), key=lambda c: c["pk"])]
    if key:
        yield f"CONSTRAINT {table}_pkey PRIMARY KEY ({', '.join(key)})"
    for index in connection.execute(f"PRAGMA index_list({table})").fetchall():
        if index["origin"] == "u":
            names = [row["name"] for row in connection.execute(f"PRAGMA index_info({index['name']})")]
            yield f"CONSTRAINT {table}_{'_'.join(names)}_key UNIQUE ({', '.join(names)})"
    for number, check in enumerate(_CHECK.findall(source)):
        yield f"CONSTRAINT {table}_check_{number} CHECK ({' '.join(check.split())})"
    for row in connection.execute(f"PRAGMA foreign_key_list({table})").fetchall():
        if row["seq"]:
            raise MigrationRefused(f"expected single-column references in {table}, got one over several columns")
        action = "" if row["on_delete"] == "NO ACTION" else f" ON DELETE {row['on_delete']}"
        target = row["to"] or row["from"]
        yield f"CONSTRAINT {table}_{row['from']}_fkey FOREIGN KEY ({row['from']}) REFERENCES {row['table']} ({target}){action}"


def _all_indexes(connection: sqlite3.Connection, tables: list[str]) -> Iterator[str]:
    """SQLite sorts NULLs lowest: an index in that order serves ORDER BY … NULLS FIRST and, read backwards, DESC NULLS LAST."""
    for table in tables:
        for index in connection.execute(f"PRAGMA index_list({table})").fetchall():
            if index["origin"] != "c" or index["name"] in _INDEXES_LEFT_OUT:
                continue
            if index["partial"]:
                raise MigrationRefused(f"expected no partial index, got {index['name']}")
            keys = [row for row in connection.execute(f"PRAGMA index_xinfo({index['name']})") if row["key"]]
            columns = ", ".join(f"{row['name']} {'DESC NULLS LAST' if row['desc'] else 'ASC NULLS FIRST'}" for row in keys)
            yield f"CREATE {'UNIQUE ' if index['unique'] else ''}INDEX {index['name']} ON {table} ({columns})"


def _rows(connection: sqlite3.Connection, tables: tuple[str, ...]) -> Iterator[str]:
    """Inserts that leave times to the defaults, so that recording twice gives the same text."""
    for table in tables:
        columns = [c["name"] for c in connection.execute(f"PRAGMA table_xinfo({table})") if c["hidden"] == 0]
        names = ", ".join(name for name in columns if name not in _STAMPS)
        for row in connection.execute(f"SELECT {names} FROM {table} ORDER BY rowid").fetchall():
            values = ", ".join(_literal(value) for value in row)
            yield f"INSERT INTO {table} ({names}) VALUES ({values}) ON CONFLICT DO NOTHING"


def _literal(value: Any) -> str:
    return sql.Literal(value).as_string(None)


def _triggers(connection: sqlite3.Connection) -> Iterator[str]:
    """Upstream's triggers stamp a time on the row that was just updated; here they set it before the row is written."""
    for row in connection.execute(_TRIGGERS).fetchall():
        source = " ".join(row["sql"].split())
        head, stamp = _UPDATED_AT.match(source), _TRIGGER_SET.search(source)
        if head is None or stamp is None or source.upper().count("UPDATE ") != 2:
            raise MigrationRefused(f"expected a trigger that stamps a time, got: {source}")
        when = _TRIGGER_WHEN.search(source)
        now = "sqlite_now_seconds()" if stamp[2].lower() == "current_timestamp" else "sqlite_now()"
        yield (
            f"CREATE FUNCTION {row['name']}_stamp() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$\n"
            f"BEGIN NEW.{stamp[1]} := {now}; RETURN NEW; END $$"
        )
        yield (
            f"CREATE TRIGGER {row['name']} BEFORE UPDATE{f' OF {head[2]}' if head[2] else ''} ON {row['tbl_name']}\n"
            f"    FOR EACH ROW{f' WHEN ({when[1]})' if when else ''} EXECUTE FUNCTION {row['name']}_stamp()"
        )


if __name__ == "__main__":
    RECORDED.write_text(read_upstream_schema().as_migration(), encoding="utf-8")
    print(f"recorded {RECORDED}")
