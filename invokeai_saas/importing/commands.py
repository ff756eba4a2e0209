"""`invokeai-saas import-sqlite ROOT`: settings and a root in, lines and an exit code out."""

import argparse
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from invokeai_saas.accounts.setup import accounts_of
from invokeai_saas.db.opening import open_database, owner_dsn
from invokeai_saas.errors import BadSettings, SaasError
from invokeai_saas.importing.run import count_root, import_root
from invokeai_saas.importing.source import ImportRefused
from invokeai_saas.settings import Settings
from invokeai_saas.storage.opening import open_files

ALL_BROUGHT, STOPPED, LEFT_BEHIND = 0, 1, 3
# One import at a time. 0x494D5054: "IMPT"
TRY_LOCK = "SELECT pg_try_advisory_lock(1229803604)"
EPILOG = """
Users, models' records, pictures, videos, boards, workflows, style presets, prompts and interface state come over with their ids and times;
the root is only read. It can be run again, and goes on after a kill: what it brought once it neither doubles nor overwrites nor
brings back. Jobs of the queue stay. Exit codes: 0 all is here, 3 some things were left behind (they are listed), 1 nothing could
be done or it was stopped (run it again), 2 a setting is wrong.
"""


def add_commands(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `import-sqlite`; its `func` takes (args, settings) and returns the exit code."""
    parser = subparsers.add_parser("import-sqlite", help="bring an existing InvokeAI root over", epilog=EPILOG)
    parser.add_argument("root", type=Path, help="folder with invokeai.yaml, databases and outputs")
    parser.add_argument("--owner", metavar="EMAIL", help="whose the rows without a user become; made as super_admin when missing")
    parser.add_argument("--dry-run", action="store_true", help="count, and write nothing")
    parser.set_defaults(func=import_sqlite)


def import_sqlite(args: argparse.Namespace, settings: Settings) -> int:
    """Run the import or the count."""
    try:
        database = open_database(settings, migrate_first=False)
        try:
            accounts = accounts_of(settings, database)
            if args.dry_run:
                report = count_root(args.root, accounts=accounts, owner_email=args.owner, say=_say)
                _say("dry run: nothing was written")
            else:
                with _only_one(settings):
                    files = open_files(settings, database)
                    report = import_root(args.root, accounts=accounts, files=files, owner_email=args.owner, say=_say)
        finally:
            database.close()
    except BadSettings:  # the command line's own code and words
        raise
    except (SaasError, psycopg.OperationalError, sqlite3.Error) as error:  # the last is what a lost database looks like
        print(f"import-sqlite: {error}", file=sys.stderr, flush=True)
        return STOPPED
    for line in report.summary():
        _say(line)
    return ALL_BROUGHT if report.complete else LEFT_BEHIND


@contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    with psycopg.connect(owner_dsn(settings), autocommit=True) as connection:
        row: tuple[Any, ...] | None = connection.execute(TRY_LOCK).fetchone()
        if row is None or not row[0]:
            raise ImportRefused("another import into this database is running")
        yield


def _say(line: str) -> None:
    print(line, flush=True)
