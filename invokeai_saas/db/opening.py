"""Settings in, a database that is ready for requests out: found or started, migrated, asked whether it really answers."""

import psycopg

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.db.embedded import runs_embedded, start_embedded
from invokeai_saas.db.migrate import migrate, refuse_stale
from invokeai_saas.errors import BadSettings
from invokeai_saas.settings import Settings

# A role that a login may not become fails at the first of these.
MAY_BECOME = "SET ROLE invokeai_system; SET ROLE invokeai_app; SELECT 1"


def owner_dsn(settings: Settings) -> str:
    """The address that migrations use: DATABASE_URL, or the embedded server, started when it does not run."""
    if settings.database_url is None:
        return start_embedded(settings.data_dir)
    return str(settings.database_url.get_secret_value())


def running_dsn(settings: Settings) -> str:
    """As owner_dsn() for who must not start anything: raises BadSettings when neither DATABASE_URL is set nor a server runs here."""
    if settings.database_url is None and not runs_embedded(settings.data_dir):
        raise BadSettings("expected DATABASE_URL, or SAAS_DATA_DIR of a server that runs on this machine, got neither")
    # It is the server's: this process's end is none of the database's.
    return owner_dsn(settings) if settings.database_url is not None else start_embedded(settings.data_dir, stop_at_exit=False)


def application_dsn(settings: Settings, owner: str) -> str:
    """The address that requests and workers use."""
    return owner if settings.database_app_url is None else str(settings.database_app_url.get_secret_value())


def open_database(settings: Settings, *, migrate_first: bool) -> PostgresDatabase:
    """Open the pool. Raises BadSettings for an address that does not work, MigrationRefused for a database of another version."""
    owner = owner_dsn(settings)
    demand_connection(owner, "DATABASE_URL")
    if migrate_first:
        migrate(owner, lock_seconds=settings.migration_lock_seconds)
    else:
        refuse_stale(owner)
    dsn = application_dsn(settings, owner)
    demand_connection(dsn, "DATABASE_URL" if settings.database_app_url is None else "DATABASE_APP_URL", statement=MAY_BECOME)
    return PostgresDatabase(
        dsn,
        pool_size=settings.db_pool_size,
        timeout_seconds=settings.db_timeout_seconds,
        statement_timeout_seconds=settings.statement_timeout_seconds,
        sharing=settings.sharing,
    )


def demand_connection(dsn: str, variable: str, *, statement: str = "SELECT 1") -> None:
    """Raise BadSettings that names `variable` when `dsn` does not answer; the message holds no part of the address."""
    try:
        with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as connection:
            connection.execute(statement.encode())
    except psycopg.errors.InsufficientPrivilege:
        roles = f"{tenancy.APP_ROLE} and {tenancy.SYSTEM_ROLE}"
        raise BadSettings(f"{variable}: expected a login that is a member of {roles}, got one that is not") from None
    except psycopg.ProgrammingError as error:
        raise BadSettings(f"{variable}: expected an address that psycopg can read ({type(error).__name__})") from None
    except psycopg.OperationalError as error:
        reason = error.sqlstate or "no answer, or the login was refused"
        raise BadSettings(f"{variable}: expected a database that answers within 10 s, got: {reason}") from None
