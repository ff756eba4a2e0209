"""Bob is the victim, Ann the attacker: per table and command, what Ann can reach of Bob's. Runs inside one transaction.

Updates and deletes go without WHERE: a condition would bring the read policy to help, and hide a missing one.
"""

from dataclasses import dataclass

import psycopg

from invokeai_saas.db.tenancy import Context

OWNERS = ("ann", "bob")


@dataclass(frozen=True)
class Table:
    """How to fill a table for {o}, which column names the owner first, what to overwrite, and rows that Ann might forge."""

    fill: str
    key: str
    change: str
    forge: tuple[str, ...]


_BOARD_MEDIA = "INSERT INTO board_{m}s (board_id, {m}_name) VALUES "
_SESSION = "INSERT INTO session_queue (queue_id, batch_id, session, session_id, user_id, parent_item_id, root_item_id) VALUES "
_BOBS_ITEM = "(SELECT nullif(current_setting('test.bobs_item'), '')::bigint)"
_WORKFLOW = '\'{{"name": "n", "description": "d", "meta": {{"category": "user"}}}}\''
_PRESET = "INSERT INTO style_presets (id, name, preset_data, user_id, is_public) VALUES "
_PROMPT = "INSERT INTO system_prompts (id, name, content, user_id, is_public) VALUES "

_PAID = "INSERT INTO payments (user_id, kind, stripe_payment_intent_id, amount, status, description) VALUES "
_ONCE = "INSERT INTO idempotency_keys (user_id, route, key, body_hash, state, status) VALUES "
_KEY = "INSERT INTO api_keys (key_id, user_id, key_hash, name, scopes) VALUES "


def _media(kind: str) -> Table:
    columns = f"{kind}_name, {kind}_origin, {kind}_category, width, height, user_id"
    insert = f"INSERT INTO {kind}s ({columns}) VALUES "
    return Table(
        insert
        + f"('{{o}}-{kind}', 'internal', 'general', 1, 1, '{{o}}'), ('{{o}}-loose-{kind}', 'internal', 'general', 1, 1, '{{o}}')",
        f"{kind}_name",
        "session_id",
        (insert + f"('forged-{kind}', 'internal', 'general', 1, 1, 'bob')",),
    )


def _board_media(kind: str) -> Table:
    insert = _BOARD_MEDIA.format(m=kind)
    forge = (insert + f"('bob-board', 'ann-loose-{kind}')", insert + f"('ann-board', 'bob-loose-{kind}')")
    return Table(insert + f"('{{o}}-board', '{{o}}-{kind}')", f"{kind}_name", "deleted_at", forge)


# In the order of their references.
TABLES = {
    "users": Table(
        "INSERT INTO users (user_id, email, password_hash) VALUES ('{o}', '{o}@example.com', '')", "user_id", "display_name", ()
    ),
    "images": _media("image"),
    "videos": _media("video"),
    "boards": Table(
        "INSERT INTO boards (board_id, board_name, user_id) VALUES ('{o}-board', 'b', '{o}')",
        "board_id",
        "board_name",
        (
            "INSERT INTO boards (board_id, board_name, user_id) VALUES ('forged', 'b', 'bob')",
            "INSERT INTO boards (board_id, board_name, user_id, cover_image_name) VALUES ('forged', 'b', 'ann', 'bob-image')",
        ),
    ),
    "board_images": _board_media("image"),
    "board_videos": _board_media("video"),
    "session_queue": Table(
        _SESSION + "('q', 'b', '{{}}', '{o}-session', '{o}', NULL, NULL)",
        "session_id",
        "device",
        (
            _SESSION + "('q', 'b', '{}', 'forged', 'bob', NULL, NULL)",
            _SESSION + f"('q', 'b', '{{}}', 'forged', 'ann', {_BOBS_ITEM}, NULL)",
            _SESSION + f"('q', 'b', '{{}}', 'forged', 'ann', NULL, {_BOBS_ITEM})",
        ),
    ),
    "job_attempts": Table(
        "INSERT INTO job_attempts (item_id, attempt_no, user_id, worker_id, lease_until)"
        " SELECT item_id, 1, user_id, user_id, now() FROM session_queue WHERE user_id = '{o}'",
        "worker_id",
        "worker_id",
        (),
    ),
    "idempotency_keys": Table(
        _ONCE + "('{o}', 'POST /x', 'k', repeat('a', 64), 'done', 200)",
        "user_id",
        "answer",
        (_ONCE + "('bob', 'POST /y', 'k', repeat('a', 64), 'done', 200)",),
    ),
    # Filled by the trigger of session_queue.
    "queue_turns": Table("SELECT 1", "user_id", "user_id", ("INSERT INTO queue_turns (user_id) VALUES ('bob2')",)),
    "stored_objects": Table(
        "INSERT INTO stored_objects (key, user_id, kind, name, part, bytes, state)"
        " VALUES ('users/{o}/x', '{o}', 'workflow', '{o}-picture', 'file', 5, 'stored')",
        "user_id",
        "name",
        (),
    ),
    # Filled by the trigger of the table above.
    "storage_used": Table("SELECT 1", "user_id", "user_id", ()),
    "client_state": Table(
        "INSERT INTO client_state (user_id, key, value) VALUES ('{o}', 'k', 'v')",
        "user_id",
        "value",
        ("INSERT INTO client_state (user_id, key, value) VALUES ('bob', 'forged', 'v')",),
    ),
    "workflow_library": Table(
        "INSERT INTO workflow_library (workflow_id, workflow, user_id, is_public) VALUES ('{o}-workflow', "
        + _WORKFLOW
        + ", '{o}', 1)",
        "workflow_id",
        "opened_at",
        tuple(
            f"INSERT INTO workflow_library (workflow_id, workflow, user_id) VALUES ('forged', {_WORKFLOW.format()}, '{owner}')"
            for owner in ("bob", "system")
        ),
    ),
    "style_presets": Table(
        _PRESET + "('{o}-preset', 'n', '{{}}', '{o}', 1)",
        "id",
        "name",
        (_PRESET + "('forged', 'n', '{}', 'bob', 0)", _PRESET + "('forged', 'n', '{}', 'system', 1)"),
    ),
    "system_prompts": Table(
        _PROMPT + "('{o}-prompt', 'n', 'c', '{o}', 1)",
        "id",
        "name",
        (_PROMPT + "('forged', 'n', 'c', 'bob', 0)", _PROMPT + "('forged', 'n', 'c', 'system', 1)"),
    ),
    "shared_boards": Table(
        "INSERT INTO shared_boards (board_id, user_id) VALUES ('{o}-board', '{o}')",
        "board_id",
        "shared_at",
        ("INSERT INTO shared_boards (board_id, user_id) VALUES ('bob-board', 'ann')",),
    ),
    "user_sessions": Table(
        "INSERT INTO user_sessions (session_id, user_id, token_hash, expires_at) VALUES ('{o}-login', '{o}', 'h', 'never')",
        "session_id",
        "token_hash",
        (),
    ),
    # Made by the trigger on users.
    "saas_users": Table("UPDATE saas_users SET avatar_url = 'a' WHERE user_id = '{o}'", "user_id", "avatar_url", ()),
    "api_keys": Table(
        _KEY + "('{o}-key', '{o}', repeat('a', 64), 'n', ARRAY['read'])",
        "key_id",
        "name",
        (_KEY + "('forged', 'bob', repeat('a', 64), 'n', ARRAY['read'])",),
    ),
    # On their way to sockets: a tenant's transaction says what it did to the tenant, and reads nothing back.
    "bus_events": Table(
        "INSERT INTO bus_events (name, user_id, payload) VALUES ('{o}-event', '{o}', '{{}}')",
        "name",
        "payload",
        ("INSERT INTO bus_events (name, user_id, payload) VALUES ('forged', 'bob', '{}')",
         "INSERT INTO bus_events (name, user_id, payload) VALUES ('forged', NULL, '{}')",
         "INSERT INTO bus_events (name, user_id, payload, sender, number) VALUES ('forged', 'ann', '{}', 'another process', 9)"),
    ),
    "refresh_families": Table("INSERT INTO refresh_families (user_id) VALUES ('{o}')", "user_id", "revoked_because", ()),
    "refresh_tokens": Table(
        "INSERT INTO refresh_tokens (token_hash, family_id, user_id, expires_at)"
        " SELECT encode(sha256(user_id::bytea), 'hex'), family_id, user_id, now() FROM refresh_families WHERE user_id = '{o}'",
        "user_id",
        "token_hash",
        (),
    ),
    "one_time_tokens": Table(
        "INSERT INTO one_time_tokens (token_hash, user_id, purpose, expires_at)"
        " VALUES (encode(sha256('{o}'::bytea), 'hex'), '{o}', 'reset', now())",
        "user_id",
        "token_hash",
        (),
    ),
    "mail_outbox": Table(
        "INSERT INTO mail_outbox (user_id, kind, to_address, subject, text_body, html_body) VALUES ('{o}', 'k', 'a', 's', 't', 'h')",
        "user_id",
        "subject",
        (),
    ),
    "low_balance_letters": Table("INSERT INTO low_balance_letters (user_id) VALUES ('{o}')", "user_id", "user_id", ()),
    "audit_log": Table("INSERT INTO audit_log (actor_id, action) VALUES ('{o}', 'a')", "actor_id", "action", ()),
    "credits": Table(
        "INSERT INTO credits (user_id, total_credits, available_credits, source, reference_id, valid_from, valid_until)"
        " VALUES ('{o}', 5, 5, 'purchase', '{o}-pack', now(), now() + interval '1 day')",
        "user_id",
        "reference_id",
        (),
    ),
    # Of no item that another attack deletes.
    "credit_holds": Table(
        "INSERT INTO credit_holds (item_id, user_id, amount, drawn, drawn_amounts) VALUES (-1, '{o}', 5, '{{}}', '{{}}')",
        "user_id",
        "gpu_tier",
        (),
    ),
    "credit_transactions": Table(
        "INSERT INTO credit_transactions (user_id, credit_id, amount, transaction_type, description)"
        " SELECT user_id, credit_id, 5, 'purchase', 'd' FROM credits WHERE user_id = '{o}'",
        "user_id",
        "description",
        (),
    ),
    "credit_take_backs": Table(
        "INSERT INTO credit_take_backs (reference_id, user_id, credit_id, asked, taken, owed, reason)"
        " SELECT '{o}-refund', user_id, credit_id, 5, 0, 0, 'r' FROM credits WHERE user_id = '{o}'",
        "reference_id",
        "reason",
        (),
    ),
    "usage_records": Table(
        "INSERT INTO usage_records (user_id, job_id, action_type, model_used, gpu_tier, compute_seconds, credits_held, credits_consumed,"
        " provider_credits, outcome) VALUES ('{o}', '-1', 'other', 'm', 't', 0, 5, 0, 0, 'completed')",
        "user_id",
        "model_used",
        (),
    ),
    "user_subscriptions": Table(
        "INSERT INTO user_subscriptions (user_id, plan_id, status, current_period_start, current_period_end)"
        " SELECT '{o}', plan_id, 'active', now(), now() + interval '30 days' FROM subscription_plans WHERE slug = 'pro'",
        "user_id",
        "stripe_customer_id",
        (
            "INSERT INTO user_subscriptions (user_id, plan_id, status, current_period_start, current_period_end)"
            " SELECT 'ann', plan_id, 'active', now(), now() + interval '30 days' FROM subscription_plans WHERE slug = 'enterprise'",
        ),
    ),
    "tester_plan_grants": Table(
        "INSERT INTO tester_plan_grants (user_id, admin_user_id, valid_until, reason)"
        " VALUES ('{o}', 'admin', now() + interval '1 day', 'a test of isolation')",
        "user_id",
        "reason",
        (
            "INSERT INTO tester_plan_grants (user_id, admin_user_id, valid_until, reason)"
            " VALUES ('ann', 'ann', now() + interval '1 day', 'because I can')",
        ),
    ),
    "billing_customers": Table(
        "INSERT INTO billing_customers (stripe_customer_id, user_id) VALUES ('{o}', '{o}')", "user_id", "user_id", ()
    ),
    "payments": Table(
        _PAID + "('{o}', 'pack', '{o}-payment', 5, 'succeeded', 'd')",
        "stripe_payment_intent_id",
        "description",
        (_PAID + "('bob', 'pack', 'forged', 5, 'succeeded', 'd')", _PAID + "('ann', 'pack', 'forged', 5, 'succeeded', 'd')"),
    ),
    "user_invitations": Table(
        "INSERT INTO user_invitations (invitation_id, email, invited_by, invitation_code, expires_at)"
        " VALUES ('{o}-invitation', 'x@example.com', '{o}', '{o}', 'never')",
        "invitation_id",
        "email",
        (),
    ),
}


def fill_all(connection: psycopg.Connection) -> None:
    """One row and more per owner in every table, as the server's owner."""
    for table in TABLES.values():
        for owner in OWNERS:
            connection.execute(table.fill.format(o=owner).encode())
    connection.execute("SELECT set_config('test.bobs_item', (SELECT item_id::text FROM session_queue WHERE user_id = 'bob'), true)")


def leaks(connection: psycopg.Connection, table: str, command: str, *, sharing: bool = False) -> list[str]:
    """What Ann reached of Bob's with `command` on `table`; the transaction is left as it was."""
    attack = {"SELECT": _read, "INSERT": _insert, "UPDATE": _update, "DELETE": _delete}[command]
    found: list[str] = []
    try:
        with connection.transaction():
            found = attack(connection, table, sharing)
            raise psycopg.Rollback
    except psycopg.errors.InsufficientPrivilege:
        return []
    return found


def become(connection: psycopg.Connection, user_id: str | None, *, sharing: bool = False) -> None:
    """Enter a tenant's context, or leave for the server's owner."""
    if user_id is None:
        connection.execute("SET LOCAL ROLE NONE")
    else:
        connection.execute(Context(user_id=user_id).enter_sql(sharing=sharing))


def _bobs(connection: psycopg.Connection, table: str, condition: str = "true") -> list[str]:
    key = TABLES[table].key
    return [
        row[0]
        for row in connection.execute(f"SELECT {key} FROM {table} WHERE {key} LIKE 'bob%' AND {condition}".encode()).fetchall()
    ]


def _read(connection: psycopg.Connection, table: str, sharing: bool) -> list[str]:
    become(connection, "ann", sharing=sharing)
    return _bobs(connection, table)


def _insert(connection: psycopg.Connection, table: str, sharing: bool) -> list[str]:
    become(connection, "ann", sharing=sharing)
    through = []
    for statement in TABLES[table].forge:
        try:
            with connection.transaction():
                connection.execute(statement.encode())
                through.append(statement)
                raise psycopg.Rollback
        except psycopg.errors.InsufficientPrivilege:
            continue
    return through


def _update(connection: psycopg.Connection, table: str, sharing: bool) -> list[str]:
    become(connection, "ann", sharing=sharing)
    change = TABLES[table].change
    connection.execute(f"UPDATE {table} SET {change} = 'stolen'".encode())
    become(connection, None)
    return _bobs(connection, table, f"{change} = 'stolen'")


def _delete(connection: psycopg.Connection, table: str, sharing: bool) -> list[str]:
    before = set(_bobs(connection, table))
    become(connection, "ann", sharing=sharing)
    connection.execute(f"DELETE FROM {table}".encode())
    become(connection, None)
    return sorted(before - set(_bobs(connection, table)))
