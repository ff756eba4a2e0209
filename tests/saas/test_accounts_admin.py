"""Admins: who reaches whom, what a deactivation and a deletion end, and a log that nobody rewrites."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psycopg
import pytest
from saas.attacks import fill_all
from saas.people import OTHER_PASSWORD, PASSWORD, join, letters, rows
from saas.rows import add_board, add_items, status_of

from invokeai_saas.accounts import admin, audit, erase, keys, operator, service, tokens
from invokeai_saas.accounts.errors import BadAccountInput, LastSuperAdmin, NoSuchAccount, NotAllowed, NotSignedIn, WrongPassword
from invokeai_saas.accounts.identify import identify
from invokeai_saas.db import tenancy
from invokeai_saas.jobs import lease

ANN = "ann@example.com"


def test_accounts_are_listed_by_page_and_search(accounts, ann, clerk, root):
    first, total = admin.list_users(accounts, clerk.principal, page=1, limit=2, search=None)
    rest, _ = admin.list_users(accounts, clerk.principal, page=2, limit=2, search=None)
    found, count = admin.list_users(accounts, clerk.principal, page=1, limit=10, search="ANN@")
    literal, none = admin.list_users(accounts, clerk.principal, page=1, limit=10, search="%")

    assert total == 3 and {user.user_id for user in first + rest} == {ann.user_id, clerk.user_id, root.user_id}
    assert ([user.user_id for user in found], count) == ([ann.user_id], 1)
    assert (literal, none) == ([], 0)


def test_an_account_is_shown_in_numbers(accounts, database, ann, clerk):
    add_items(database, ann.user_id, 2)
    account, counts = admin.detail(accounts, clerk.principal, ann.user_id)

    assert account.email == ANN
    assert counts == {"logins": 1, "api_keys": 0, "images": 0, "videos": 0, "open_jobs": 2}


def test_users_are_no_admins(accounts, ann):
    bob = join(accounts, "bob@example.com")
    for forbidden in (
        lambda: admin.list_users(accounts, ann.principal, page=1, limit=1, search=None),
        lambda: admin.detail(accounts, ann.principal, bob.user_id),
        lambda: admin.change(accounts, ann.principal, bob.user_id, {"display_name": "x"}),
        lambda: admin.deactivate(accounts, ann.principal, bob.user_id),
        lambda: admin.delete(accounts, ann.principal, bob.user_id),
        lambda: audit.read(accounts, ann.principal),
    ):
        with pytest.raises(NotAllowed):
            forbidden()


@pytest.mark.parametrize("role", ["admin", "super_admin"])
def test_only_super_admins_give_roles(accounts, ann, clerk, root, role):
    with pytest.raises(NotAllowed):
        admin.change(accounts, clerk.principal, ann.user_id, {"role": role})
    changed = admin.change(accounts, root.principal, ann.user_id, {"role": role})

    assert (changed.role, bool(changed.is_admin)) == (role, role == "super_admin")


def test_admins_do_not_reach_admins(accounts, ann, clerk, root):
    other = join(accounts, "other@example.com", role="admin")

    for target in (other, root, clerk):
        with pytest.raises(NotAllowed):
            admin.change(accounts, clerk.principal, target.user_id, {"display_name": "x"})
        with pytest.raises(NotAllowed):
            admin.delete(accounts, clerk.principal, target.user_id)
    assert admin.change(accounts, clerk.principal, ann.user_id, {"display_name": "x"}).display_name == "x"


def test_an_admin_who_was_demoted_meanwhile_changes_nothing(accounts, ann, clerk, root):
    before = clerk.principal
    admin.change(accounts, root.principal, clerk.user_id, {"role": "user"})

    with pytest.raises(NotAllowed):
        admin.change(accounts, before, ann.user_id, {"display_name": "x"})


def test_invokeais_own_switch_and_our_role_say_the_same(database, ann, clerk):
    rows(database, "UPDATE users SET is_admin = 1 WHERE user_id = %s", ann.user_id)
    raised = rows(database, "SELECT role FROM saas_users WHERE user_id = %s", ann.user_id)
    rows(database, "UPDATE users SET is_admin = 0 WHERE user_id = %s", ann.user_id)
    lowered = rows(database, "SELECT role FROM saas_users WHERE user_id = %s", ann.user_id)

    assert (raised, lowered) == ([{"role": "super_admin"}], [{"role": "user"}])
    assert rows(database, "SELECT role, is_admin FROM saas_users JOIN users USING (user_id) WHERE user_id = %s", clerk.user_id) == [
        {"role": "admin", "is_admin": 0}
    ]


def test_a_deactivation_ends_logins_keys_and_jobs(accounts, database, ann, clerk):
    _, key = keys.create(accounts, ann.principal, name="k", scopes=["read"], lifetime=None)
    heard = []
    running, pending = add_items(database, ann.user_id, 2)
    attempt = lease.claim(database, worker_id="w", lease_seconds=60)
    bobs = add_items(database, join(accounts, "bob@example.com").user_id, 1)[0]
    admin.deactivate(replace(accounts, access_changed=heard.append), clerk.principal, ann.user_id)

    assert attempt is not None and attempt.item_id == running
    assert [status_of(database, item) for item in (running, pending, bobs)] == ["canceled", "canceled", "pending"]
    with pytest.raises(lease.LeaseLost):
        lease.heartbeat(database, attempt, lease_seconds=60)
    for refused in (
        lambda: identify(accounts, ann.tokens.access_token),
        lambda: identify(accounts, key),
        lambda: tokens.refresh(accounts, ann.tokens.refresh_token),
    ):
        with pytest.raises(NotSignedIn):
            refused()
    with pytest.raises(WrongPassword):
        service.login(accounts, email=ANN, password=PASSWORD)
    assert [(change.user_id, change.is_active, change.token_epoch) for change in heard] == [(ann.user_id, False, 1)]
    assert audit.read(accounts, clerk.principal)[0]["details"] == {"canceled_jobs": 2}


def test_an_activated_account_logs_in_anew_and_its_old_logins_stay_ended(accounts, ann, clerk):
    admin.deactivate(accounts, clerk.principal, ann.user_id)
    admin.change(accounts, clerk.principal, ann.user_id, {"is_active": True})

    assert service.login(accounts, email=ANN, password=PASSWORD)
    with pytest.raises(NotSignedIn):
        tokens.refresh(accounts, ann.tokens.refresh_token)


def test_an_unheard_change_is_not_announced(accounts, ann, clerk, root):
    heard = []
    told = replace(accounts, access_changed=heard.append)
    with pytest.raises(LastSuperAdmin):
        admin.change(told, root.principal, root.user_id, {"is_active": False})

    assert heard == []


@pytest.mark.parametrize("end", ["demote", "deactivate", "delete", "delete_me"])
def test_the_last_super_admin_stays(accounts, root, end):
    verbs = {
        "demote": lambda: admin.change(accounts, root.principal, root.user_id, {"role": "admin"}),
        "deactivate": lambda: admin.deactivate(accounts, root.principal, root.user_id),
        "delete": lambda: admin.delete(accounts, root.principal, root.user_id),
        "delete_me": lambda: erase.delete_me(accounts, root.principal, password=PASSWORD),
    }

    with pytest.raises(LastSuperAdmin):
        verbs[end]()
    join(accounts, "second@example.com", role="super_admin")
    verbs[end]()


def test_two_super_admins_who_depose_each_other_leave_one(accounts, database, root):
    second = join(accounts, "second@example.com", role="super_admin")
    start = threading.Barrier(2)

    def depose(pair):
        caller, target = pair
        start.wait()
        try:
            admin.deactivate(accounts, caller, target)
        except (LastSuperAdmin, NotAllowed):
            return False
        return True

    pairs = [(root.principal, second.user_id), (second.principal, root.user_id)]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(depose, pairs))

    assert sum(done) == 1
    assert rows(database, "SELECT count(*) AS n FROM users WHERE is_admin = 1 AND is_active = 1") == [{"n": 1}]


def test_missing_and_deleted_accounts_answer_alike(accounts, ann, root):
    admin.delete(accounts, root.principal, ann.user_id)

    for user_id in (ann.user_id, "missing", "system"):
        with pytest.raises(NoSuchAccount):
            admin.change(accounts, root.principal, user_id, {"display_name": "x"})


def test_the_first_admin_is_made_once(accounts, database):
    with ThreadPoolExecutor(3) as pool:
        printed = [password for password in pool.map(lambda _: admin.ensure_admin(accounts, "Root@example.com"), range(3)) if password]

    assert len(printed) == 1
    assert service.login(accounts, email="root@example.com", password=printed[0])[0].role == "super_admin"


def test_a_deletion_leaves_the_bare_id(accounts, database, ann, root):
    keys.create(accounts, ann.principal, name="k", scopes=["read"], lifetime=None)
    add_items(database, ann.user_id, 2)
    lease.claim(database, worker_id="w", lease_seconds=60)
    with tenancy.as_user(ann.user_id):
        add_board(database, ann.user_id, "b")
    heard = []

    def eraser(user_id):
        heard.append((user_id, rows(database, "SELECT count(*) AS n FROM boards WHERE user_id = %s", user_id)[0]["n"]))

    erase.delete_me(replace(accounts, erasers=(eraser,)), ann.principal, password=PASSWORD)

    assert heard == [(ann.user_id, 0)]
    for table in erase.ERASE_ROWS:
        if table != "mail_outbox":
            owner = "invited_by" if table == "user_invitations" else "user_id"
            assert rows(database, f"SELECT 1 FROM {table} WHERE {owner} = %s", ann.user_id) == [], table
    (user,) = rows(database, "SELECT * FROM users JOIN saas_users USING (user_id) WHERE user_id = %s", ann.user_id)
    assert (user["email"], user["display_name"], user["password_hash"]) == (f"deleted-{ann.user_id}@deleted.invalid", None, "")
    assert [letter["kind"] for letter in rows(database, "SELECT kind FROM mail_outbox WHERE user_id = %s", ann.user_id)] == ["deleted"]
    assert len(letters(database, "deleted", ANN)) == 1
    with pytest.raises(NotSignedIn):
        identify(accounts, ann.tokens.access_token)


def test_a_deletion_empties_every_table_of_one_owner_and_leaves_the_others(accounts, database, dsn):
    with psycopg.connect(dsn) as connection:
        fill_all(connection)
    rows(database, "UPDATE saas_users SET email_verified_at = now()")
    before = {table: rows(database, f"SELECT * FROM {table}") for table in erase.ERASE_ROWS}
    operator.delete(accounts, email=ANN)

    for table, owned in before.items():
        owner = "invited_by" if table == "user_invitations" else "user_id"
        left = [row[owner] for row in rows(database, f"SELECT {owner} FROM {table}")]
        kept = [row[owner] for row in owned if row[owner] != "ann"]
        assert {row[owner] for row in owned} >= {"ann", "bob"}, table
        assert sorted(left) == sorted(kept + (["ann"] if table == "mail_outbox" else [])), table


def test_after_a_deletion_the_address_is_free(accounts, ann):
    erase.delete_me(accounts, ann.principal, password=PASSWORD)
    again = join(accounts, ANN)

    assert again.user_id != ann.user_id


def test_a_deletion_asks_for_the_password(accounts, ann):
    with pytest.raises(BadAccountInput):
        erase.delete_me(accounts, ann.principal, password=OTHER_PASSWORD)
    assert identify(accounts, ann.tokens.access_token)


def test_a_deletion_that_fails_half_way_deletes_nothing(accounts, database, ann):
    def fail(_user_id):
        raise OSError("storage is down")

    with pytest.raises(OSError):
        erase.delete_me(replace(accounts, erasers=(fail,)), ann.principal, password=PASSWORD)

    assert identify(accounts, ann.tokens.access_token).account.email == ANN


def test_every_table_with_an_owner_is_erased_or_kept_on_purpose(database):
    found = rows(database, "SELECT table_name FROM information_schema.columns WHERE table_schema = 'public' AND column_name = 'user_id'")

    assert {row["table_name"] for row in found} == (set(erase.ERASE_ROWS) - {"user_invitations"}) | erase.KEPT


def test_data_of_an_ended_subscription_goes_after_notice_and_not_before(accounts, database, ann):
    erase.end_access(accounts, ann.user_id)
    early = (erase.send_notices(accounts), erase.erase_due(accounts))
    rows(database, "UPDATE saas_users SET access_ended_at = now() - interval '24 days' WHERE user_id = %s", ann.user_id)
    noticed = (erase.send_notices(accounts), erase.send_notices(accounts), erase.erase_due(accounts))
    rows(database, "UPDATE saas_users SET access_ended_at = now() - interval '31 days' WHERE user_id = %s", ann.user_id)
    before_notice_is_old = erase.erase_due(accounts)
    rows(database, "UPDATE saas_users SET erase_notice_at = now() - interval '8 days' WHERE user_id = %s", ann.user_id)
    erased = (erase.erase_due(accounts), erase.erase_due(accounts))

    assert (early, noticed, before_notice_is_old, erased) == ((0, 0), (1, 0, 0), 0, (1, 0))
    assert len(letters(database, "erase_notice", ANN)) == 0
    assert len(letters(database, "deleted", ANN)) == 1


def test_who_subscribes_again_keeps_everything(accounts, database, ann):
    erase.end_access(accounts, ann.user_id)
    rows(database, "UPDATE saas_users SET access_ended_at = now() - interval '40 days', erase_notice_at = now() - interval '9 days'"
         " WHERE user_id = %s", ann.user_id)  # fmt: skip
    erase.resume_access(accounts, ann.user_id)

    assert erase.erase_due(accounts) == 0
    assert ann.principal.account.access_ended_at is None


def test_every_act_of_an_admin_is_written_down(accounts, ann, clerk, root):
    admin.detail(accounts, clerk.principal, ann.user_id)
    admin.change(accounts, root.principal, ann.user_id, {"role": "admin", "display_name": "A"})
    admin.deactivate(accounts, root.principal, ann.user_id)
    admin.change(accounts, root.principal, ann.user_id, {"is_active": True})
    admin.delete(accounts, root.principal, ann.user_id)
    lines = audit.read(accounts, root.principal, target_id=ann.user_id)

    assert [line["action"] for line in reversed(lines)] == [
        "user_viewed", "role_changed", "user_renamed", "user_deactivated", "user_activated", "user_deleted",
    ]  # fmt: skip
    assert [line["actor_id"] for line in reversed(lines)] == [clerk.user_id] + [root.user_id] * 5


ROLES = ["invokeai_app", "invokeai_system", "invokeai_owner", None]
REWRITES = ["UPDATE audit_log SET action = 'x'", "DELETE FROM audit_log", "TRUNCATE audit_log"]


def rewrite(dsn, role, statement):
    with psycopg.connect(dsn) as connection:
        connection.execute("INSERT INTO audit_log (actor_id, action) VALUES ('a', 'b')")
        if role:
            connection.execute(f"GRANT SELECT, UPDATE, DELETE, TRUNCATE ON audit_log TO {role}".encode())
            connection.execute(f"SET LOCAL ROLE {role}".encode())
        connection.execute(statement.encode())
        connection.rollback()


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("statement", REWRITES)
def test_the_audit_log_is_rewritten_by_nobody_even_with_every_grant(dsn, role, statement):
    with pytest.raises(psycopg.errors.IntegrityConstraintViolation) as refused:
        rewrite(dsn, role, statement)

    assert refused.value.diag.constraint_name == "audit_log_is_append_only"


@pytest.mark.parametrize("statement", REWRITES)
def test_it_is_the_trigger_that_refuses(dsn, statement):
    with psycopg.connect(dsn) as connection:
        connection.execute("DROP TRIGGER tg_audit_log_is_append_only ON audit_log")

    rewrite(dsn, None, statement)


def test_the_audit_log_takes_no_address(accounts, database):
    with pytest.raises(BadAccountInput), tenancy.as_system("test"), database.postgres() as cursor:
        audit.append(cursor, "a", "b", None, {"email": ANN})
