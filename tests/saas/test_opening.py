"""From settings to a database that serves: embedded or given, migrated or refused, wrong addresses named."""

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr
from saas.rows import add_board

from invokeai_saas.db import tenancy
from invokeai_saas.db.opening import open_database
from invokeai_saas.errors import BadSettings, MigrationRefused
from invokeai_saas.settings import Settings


def settings_for(dsn: str, **more: object) -> Settings:
    return Settings(database_url=address_of(dsn, str(conninfo_to_dict(dsn)["user"])), db_pool_size=2, **more)


def address_of(dsn: str, user: str) -> SecretStr:
    parts = conninfo_to_dict(dsn)
    return SecretStr(f"postgresql://{user}:hidden@/{parts['dbname']}?host={parts['host']}&port={parts.get('port', 5432)}")


def test_a_database_is_migrated_on_request_and_serves(cluster):
    dsn = cluster.empty()
    with pytest.raises(MigrationRefused, match="run `invokeai-saas migrate`"):
        open_database(settings_for(dsn), migrate_first=False)
    database = open_database(settings_for(dsn), migrate_first=True)
    with tenancy.as_user("ann"):
        add_board(database, "ann", "a")
    database.close()
    open_database(settings_for(dsn), migrate_first=False).close()
    cluster.drop(dsn)


@pytest.mark.parametrize(
    "address",
    ["postgresql://u:topsecret@127.0.0.1:1/none", "postgresql://u:topsecret@/no_such_database", "postgresql://u:topsecret@[broken"],
)
def test_an_address_that_does_not_work_is_named_without_its_secret(address):
    with pytest.raises(BadSettings, match="DATABASE_URL: expected") as refused:
        open_database(Settings(database_url=SecretStr(address)), migrate_first=True)

    assert "topsecret" not in str(refused.value)


def test_an_application_login_without_the_roles_is_refused_and_with_them_serves(dsn):
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS web_login")
        admin.execute("CREATE ROLE web_login LOGIN")
    settings = settings_for(dsn, database_app_url=address_of(dsn, "web_login"))
    with pytest.raises(
        BadSettings, match="DATABASE_APP_URL: expected a login that is a member of invokeai_app and invokeai_system"
    ):
        open_database(settings, migrate_first=False)
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("GRANT invokeai_app, invokeai_system TO web_login")
    database = open_database(settings, migrate_first=False)
    with tenancy.as_user("ann"):
        add_board(database, "ann", "a")
    with tenancy.as_user("bob"), database.transaction() as cursor:
        seen = cursor.execute("SELECT count(*) FROM boards").fetchone()[0]
    database.close()

    assert seen == 0
