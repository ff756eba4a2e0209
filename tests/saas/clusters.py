"""A real Postgres for tests: one embedded server per run, one migrated template, a clone of it per test.

SAAS_TEST_DATABASE_URL names another server to use instead, by a login that may make databases and roles.
"""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from invokeai_saas.db.embedded import create_database, start_embedded
from invokeai_saas.db.migrate import migrate

TEMPLATE = "template_saas"
_numbers = itertools.count(1)


class Cluster:
    """Makes and drops databases on one server."""

    def __init__(self, folder: Path) -> None:
        given = os.environ.get("SAAS_TEST_DATABASE_URL")
        self.dsn = given or start_embedded(folder, database="tests")
        with self._admin() as connection:
            if given:
                connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(TEMPLATE)))
                return
            # A crashed test server is thrown away.
            for setting in ("fsync", "synchronous_commit", "full_page_writes"):
                connection.execute(sql.SQL("ALTER SYSTEM SET {} = off").format(sql.Identifier(setting)))
            connection.execute("SELECT pg_reload_conf()")

    def empty(self) -> str:
        """The DSN of a new empty database with collation C."""
        name = self._name()
        create_database(self.dsn, name)
        return make_conninfo(self.dsn, dbname=name)

    def template(self) -> None:
        """Migrate the template that clone() copies."""
        create_database(self.dsn, TEMPLATE)
        migrate(make_conninfo(self.dsn, dbname=TEMPLATE))

    def clone(self) -> str:
        """The DSN of a fresh copy of the migrated template. By files: without fsync half as long as through the log."""
        name = self._name()
        with self._admin() as connection:
            clone = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
            connection.execute(clone.format(sql.Identifier(name), sql.Identifier(TEMPLATE)))
        return make_conninfo(self.dsn, dbname=name)

    def drop(self, dsn: str) -> None:
        """Throw a database away, whoever is connected."""
        name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
        with self._admin() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(str(name))))

    @contextmanager
    def _admin(self) -> Iterator[psycopg.Connection]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            yield connection

    @staticmethod
    def _name() -> str:
        return f"test_{os.getpid()}_{next(_numbers)}"
