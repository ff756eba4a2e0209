"""`invokeai-saas migrate`: settings in, the database at this code's state and an exit code out."""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

from invokeai_saas.db import migrate as migrations
from invokeai_saas.db.opening import demand_connection, owner_dsn
from invokeai_saas.errors import BadSettings, MigrationLocked, SaasError
from invokeai_saas.settings import Settings

MIGRATED, FAILED, LOCKED = 0, 1, 75
EPILOG = """
Waits for another migration (SAAS_MIGRATION_LOCK_SECONDS) and says so. Each migration is done whole or not at all; after a kill, run it
again. Exit codes: 0 the database is at this code's state, 1 it was refused or failed, 2 a setting is wrong, 75 another process held the
lock for too long.
"""


def add_commands(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `migrate`; its `func` takes (args, settings) and returns the exit code."""
    parser = subparsers.add_parser("migrate", help="bring the database to this code's state", epilog=EPILOG)
    parser.set_defaults(func=migrate)


def migrate(args: argparse.Namespace, settings: Settings) -> int:
    """Run what is missing."""
    try:
        dsn = owner_dsn(settings)
        demand_connection(dsn, "DATABASE_URL")
        with _heard(_say):
            ran = migrations.migrate(dsn, lock_seconds=settings.migration_lock_seconds)
    except BadSettings:  # the command line's own code and words
        raise
    except MigrationLocked as error:
        return _failed(error, LOCKED)
    except (SaasError, psycopg.Error) as error:
        return _failed(error, FAILED)
    _say(f"{len(ran)} migrations applied" if ran else "nothing to do: the database is at this code's state")
    return MIGRATED


@contextmanager
def _heard(say: Callable[[str], None]) -> Iterator[None]:
    """What the migration logs (it waits, it applied one) becomes lines."""
    handler, before = _Lines(say), migrations.logger.level
    migrations.logger.addHandler(handler)
    migrations.logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        migrations.logger.removeHandler(handler)
        migrations.logger.setLevel(before)


class _Lines(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())


def _failed(error: Exception, code: int) -> int:
    print(f"migrate: {error}", file=sys.stderr, flush=True)
    return code


def _say(line: str) -> None:
    print(line, flush=True)
