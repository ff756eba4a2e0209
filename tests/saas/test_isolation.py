"""No tenant reaches another's rows: every table, every command; and every policy is shown to be what stops it."""

import psycopg
import pytest
from saas.attacks import TABLES, become, fill_all, leaks

from invokeai_saas.db import tenancy

COMMANDS = ("SELECT", "INSERT", "UPDATE", "DELETE")
# Global: the same for all, or system work only (0003_tenant_policies.sql says why of each).
GLOBAL = {"models", "model_relationships", "app_settings", "migrations", "applied_migrations"}
# 0009_plans.sql: what is for sale.
GLOBAL |= {"subscription_plans", "model_access_levels"}
# 0013_workers.sql: what models need, and the operator's machines.
GLOBAL |= {"model_needs"}
SYSTEM_ONLY = {"image_subfolder_move_items", "image_subfolder_move_jobs", "user_invitations"}
# 0006_accounts.sql: strangers' addresses, hashes of credentials, everybody's history.
ACCOUNT_SECRETS = {"refresh_families", "refresh_tokens", "one_time_tokens", "mail_outbox", "audit_log"}
SYSTEM_ONLY |= ACCOUNT_SECRETS | {"rate_limits", "address_marks"}
# 0008_import.sql: everybody's ids.
SYSTEM_ONLY |= {"imported"}
SYSTEM_ONLY |= {"gpu_instances", "fleet_scaling"}
# 0012_admission.sql: which letters were written.
SYSTEM_ONLY |= {"low_balance_letters"}
# 0011_billing.sql: Stripe's ids and events, and marks of addresses.
SYSTEM_ONLY |= {"billing_customers", "stripe_events", "customer_leases", "trials", "billing_marks"}
# Runs as its owner, with the owner's policies: each one is looked at before it is added.
DEFINER_FUNCTIONS = {"app_owns_image", "app_owns_video", "storage_announce", "storage_count", "storage_purge"}
# 0010_credits.sql: the books' own role; who asks is compared with whose credits they are, or only the system may call.
BOOKS_FUNCTIONS = {"credits_hold", "credits_provider_called", "tg_session_queue_settles_update", "tg_session_queue_settles_delete"}
BOOKS_FUNCTIONS |= {"credits_grant", "credits_take_back", "credits_give_back", "credits_deduct"}
BOOKS_FUNCTIONS |= {"credits_expire_due", "credits_release_orphans", "credits_note_late_seconds", "credits_start_over"}
# 0014_events.sql: what all users are told; a tenant's own transaction adds to it.
SYSTEM_ONLY |= {"bus_events"}
# No policy lets a tenant do it, and no grant either.
NOT_GRANTED = {
    (table, command)
    for table in ("users", "user_sessions", "job_attempts", "stored_objects", "storage_used", "saas_users")
    for command in ("INSERT", "UPDATE", "DELETE")
}
NOT_GRANTED |= {(table, command) for table in ACCOUNT_SECRETS | {"user_invitations"} for command in COMMANDS}
NOT_GRANTED |= {(table, command) for table in ("billing_customers", "low_balance_letters") for command in COMMANDS}
NOT_GRANTED |= {("payments", c) for c in ("INSERT", "UPDATE", "DELETE")}
# Made with one's first job, served by the claim.
NOT_GRANTED |= {("queue_turns", "UPDATE"), ("queue_turns", "DELETE")}
# 0010_credits.sql: read, and moved by the books' functions only.
CREDITS = {"credits", "credit_holds", "credit_transactions", "credit_take_backs", "usage_records"}
NOT_GRANTED |= {(table, command) for table in CREDITS for command in ("INSERT", "UPDATE", "DELETE")}
NOT_GRANTED |= {("bus_events", c) for c in ("SELECT", "UPDATE", "DELETE")}
# A revoked key's row stays.
NOT_GRANTED |= {("api_keys", "DELETE")}
# A tenant could put themself on another plan.
NOT_GRANTED |= {(t, c) for t in ("user_subscriptions", "tester_plan_grants") for c in ("INSERT", "UPDATE", "DELETE")}
# Bob's rows in these are public, which all may read once sharing is on.
PUBLIC = {(table, "SELECT", True) for table in ("workflow_library", "style_presets", "system_prompts")}
ATTACKS = [(t, c, s) for t in TABLES for c in COMMANDS for s in (False, True) if (t, c, s) not in PUBLIC]
GUARDED = [(table, command) for table in TABLES for command in COMMANDS if (table, command) not in NOT_GRANTED]
OURS = "relnamespace = 'public'::regnamespace"
REPLACE = {
    "SELECT": "ALTER POLICY {t}_read ON {t} USING (true)",
    "INSERT": "ALTER POLICY {t}_insert ON {t} WITH CHECK (true)",
    "UPDATE": "ALTER POLICY {t}_update ON {t} USING (true) WITH CHECK (true)",
    "DELETE": "ALTER POLICY {t}_delete ON {t} USING (true)",
}


@pytest.fixture(scope="module")
def filled(cluster):
    dsn = cluster.clone()
    with psycopg.connect(dsn) as connection:
        fill_all(connection)
        connection.commit()
        yield connection
    cluster.drop(dsn)


@pytest.fixture
def connection(filled):
    filled.execute("SELECT set_config('test.bobs_item', (SELECT item_id::text FROM session_queue WHERE user_id = 'bob'), true)")
    yield filled
    filled.rollback()


@pytest.mark.parametrize(("table", "command", "sharing"), ATTACKS)
def test_ann_reaches_nothing_of_bobs(connection, table, command, sharing):
    assert leaks(connection, table, command, sharing=sharing) == []


@pytest.mark.parametrize(("table", "command"), GUARDED)
def test_an_open_policy_is_noticed(connection, table, command):
    sharing = table == "shared_boards"
    connection.execute(REPLACE[command].format(t=table).encode())

    assert leaks(connection, table, command, sharing=sharing) != []


@pytest.mark.parametrize(("table", "command"), GUARDED)
def test_row_level_security_switched_off_is_noticed(connection, table, command):
    connection.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY".encode())

    assert leaks(connection, table, command) != []


@pytest.mark.parametrize(
    "table", ["images", "videos", "boards", "client_state", "workflow_library", "style_presets", "system_prompts"]
)
def test_a_row_cannot_be_given_away(connection, table):
    become(connection, "ann")

    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(f"UPDATE {table} SET user_id = 'bob'".encode())


def test_a_job_can_neither_be_given_away_nor_get_another_parent(connection):
    for column in ("user_id", "parent_item_id", "root_item_id", "item_id"):
        become(connection, "ann")
        with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
            connection.execute(f"UPDATE session_queue SET {column} = NULL".encode())


def test_foreign_and_missing_names_are_refused_alike(connection):
    answers = []
    for name in ("bob-loose-image", "no-such-image"):
        become(connection, "ann")
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as refused, connection.transaction():
            connection.execute("INSERT INTO board_images (board_id, image_name) VALUES ('ann-board', %s)", (name,))
        answers.append(str(refused.value))

    assert answers[0] == answers[1]


def test_nobody_sees_nothing(connection):
    connection.execute("SET LOCAL ROLE invokeai_app")
    connection.execute("SELECT set_config('app.current_user_id', '', true)")
    granted = [table for table in TABLES if table not in SYSTEM_ONLY]
    counts = {table: connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()[0] for table in granted}

    assert counts == dict.fromkeys(granted, 0)


def test_tenants_read_what_is_global_and_change_none_of_it(connection):
    connection.execute("INSERT INTO app_settings (key, value) VALUES ('jwt_secret', 's'), ('other', 'v')")
    become(connection, "ann")

    assert connection.execute("SELECT key FROM app_settings").fetchall() == [("other",)]
    for table in GLOBAL:
        assert connection.execute(f"SELECT count(*) >= 0 FROM {table}".encode()).fetchone() == (True,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
            connection.execute(f"DELETE FROM {table}".encode())
    for table in SYSTEM_ONLY:
        with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
            connection.execute(f"SELECT * FROM {table}".encode())


def test_defaults_of_the_system_are_read_by_all_and_its_pictures_by_none(connection):
    connection.execute(
        "INSERT INTO style_presets (id, name, preset_data, type, user_id) VALUES ('d', 'n', '{}', 'default', 'system')"
    )
    columns = "image_name, image_origin, image_category, width, height"
    connection.execute(f"INSERT INTO images ({columns}) VALUES ('s', 'internal', 'general', 1, 1)".encode())
    become(connection, "ann")

    assert connection.execute("SELECT id FROM style_presets WHERE user_id = 'system'").fetchall() == [("d",)]
    assert connection.execute("SELECT count(*) FROM images WHERE user_id = 'system'").fetchone() == (0,)


@pytest.mark.parametrize(("visibility", "sharing", "seen", "may_add"), [
    ("public", False, False, False), ("private", True, False, False), ("shared", True, True, False), ("public", True, True, True),
])  # fmt: skip
def test_boards_cross_users_only_as_their_visibility_and_the_setting_say(connection, visibility, sharing, seen, may_add):
    connection.execute("UPDATE boards SET board_visibility = %s WHERE board_id = 'bob-board'", (visibility,))
    become(connection, "ann", sharing=sharing)
    rows = "SELECT (SELECT count(*) FROM boards WHERE board_id = 'bob-board'), (SELECT count(*) FROM images WHERE image_name = 'bob-image')"
    loose = "SELECT count(*) FROM images WHERE image_name = 'bob-loose-image'"
    added = True
    try:
        with connection.transaction():
            connection.execute("INSERT INTO board_images (board_id, image_name) VALUES ('bob-board', 'ann-loose-image')")
    except psycopg.errors.InsufficientPrivilege:
        added = False

    assert connection.execute(rows.encode()).fetchone() == ((1, 1) if seen else (0, 0))
    assert connection.execute(loose.encode()).fetchone() == (0,)
    assert added is may_add


def test_every_table_is_either_forced_under_policies_or_our_bookkeeping(filled):
    query = f"SELECT relname FROM pg_class WHERE {OURS} AND relkind IN ('r', 'p') AND NOT (relrowsecurity AND relforcerowsecurity)"
    tables = {row[0] for row in filled.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()}

    assert {row[0] for row in filled.execute(query.encode()).fetchall()} == {"saas_migrations"}
    assert tables == set(TABLES) | GLOBAL | SYSTEM_ONLY | {"saas_migrations"}


def test_the_application_role_owns_nothing_and_bypasses_nothing(filled):
    powerful = "rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolinherit"
    roles = f"SELECT rolname, {powerful} FROM pg_roles WHERE rolname LIKE 'invokeai%'"
    owned = "SELECT count(*) FROM pg_class WHERE pg_get_userbyid(relowner) IN ('invokeai_app', 'invokeai_system')"
    powers = (
        "SELECT pg_has_role('invokeai_app', 'invokeai_system', 'USAGE'), has_schema_privilege('invokeai_app', 'public', 'CREATE')"
    )

    assert {row[0] for row in filled.execute(roles.encode()).fetchall() if row[1]} == set()
    assert filled.execute(owned.encode()).fetchone() == (0,)
    assert filled.execute(powers.encode()).fetchone() == (False, False)


def test_definer_functions_are_those_that_were_looked_at(filled):
    what = "proname, proconfig::text LIKE '%search_path%', pg_get_userbyid(proowner)"
    query = f"SELECT {what} FROM pg_proc WHERE prosecdef AND pronamespace = 'public'::regnamespace"
    found = filled.execute(query.encode()).fetchall()

    assert {name for name, _, owner in found if owner == "invokeai_definer"} == DEFINER_FUNCTIONS
    assert {name for name, _, owner in found if owner == "invokeai_books"} == BOOKS_FUNCTIONS
    assert {(fixed, owner) for _, fixed, owner in found} == {(True, "invokeai_definer"), (True, "invokeai_books")}


def test_tenants_call_the_books_for_themselves_and_the_rest_of_them_not_at_all(connection):
    calls = (
        "credits_hold('bob', '{1}', '{1}', '{}', '{}', '{}')",
        "credits_grant('ann', 9, 'purchase', now(), now() + interval '1 day', 'd', NULL)",
        "credits_take_back('bob', 1, 'purchase', 'bob-pack', 'k', 'r')",
        "credits_give_back('bob-refund', 'r')",
        "credits_deduct('bob', 1, 'd', NULL)",
        "credits_expire_due()",
        "credits_release_orphans('0 seconds')",
        "credits_note_late_seconds(now())",
        "credits_start_over(1)",
        "credits_settle('{}')",
        "credits_apply('{}', '{}')",
    )
    for call in calls:
        become(connection, "ann")
        with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
            connection.execute(f"SELECT {call}".encode())


def test_views_run_with_the_rights_of_who_asks(filled):
    careless = "NOT coalesce(reloptions::text, '') LIKE '%security_invoker=true%'"
    query = f"SELECT relname FROM pg_class WHERE {OURS} AND relkind = 'v' AND {careless}"

    assert filled.execute(query.encode()).fetchall() == []


def test_a_context_names_a_user_or_a_reason():
    for user_id in ("", "system"):
        with pytest.raises(Exception, match="real user"), tenancy.as_user(user_id):
            pass
    with pytest.raises(Exception, match="reason"), tenancy.as_system(" "):
        pass
