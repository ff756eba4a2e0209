"""An account in, nothing personal left: jobs stopped, rows gone, files journalled for deletion, the name and address overwritten.

What stays: the bare id, so that books and the audit log keep their sense, measured job attempts, and the keyed mark of the address.
Data of an ended subscription is readable for 30 days, announced, then erased the same way.
"""

from invokeai_saas.accounts import audit, mail, passwords, roles, service, store
from invokeai_saas.accounts.errors import BadAccountInput, NoSuchAccount
from invokeai_saas.accounts.model import Account, Accounts, Principal
from invokeai_saas.accounts.store import Cursor
from invokeai_saas.db import tenancy
from invokeai_saas.jobs import lease

# Everything with an owner, children before parents. A test compares this list with the database's own.
ERASE_ROWS = {
    "session_queue": "DELETE FROM session_queue WHERE user_id = %s",
    "queue_turns": "DELETE FROM queue_turns WHERE user_id = %s",
    "shared_boards": "DELETE FROM shared_boards WHERE user_id = %s",
    "boards": "DELETE FROM boards WHERE user_id = %s",
    "images": "DELETE FROM images WHERE user_id = %s",
    "videos": "DELETE FROM videos WHERE user_id = %s",
    "client_state": "DELETE FROM client_state WHERE user_id = %s",
    "workflow_library": "DELETE FROM workflow_library WHERE user_id = %s",
    "style_presets": "DELETE FROM style_presets WHERE user_id = %s",
    "system_prompts": "DELETE FROM system_prompts WHERE user_id = %s",
    "user_sessions": "DELETE FROM user_sessions WHERE user_id = %s",
    "user_invitations": "DELETE FROM user_invitations WHERE invited_by = %s",
    "refresh_tokens": "DELETE FROM refresh_tokens WHERE user_id = %s",
    "refresh_families": "DELETE FROM refresh_families WHERE user_id = %s",
    "one_time_tokens": "DELETE FROM one_time_tokens WHERE user_id = %s",
    "api_keys": "DELETE FROM api_keys WHERE user_id = %s",
    "mail_outbox": "DELETE FROM mail_outbox WHERE user_id = %s",
    "idempotency_keys": "DELETE FROM idempotency_keys WHERE user_id = %s",
    "low_balance_letters": "DELETE FROM low_balance_letters WHERE user_id = %s",
}
# Without an address or anything else that says who it was.
KEPT = {"users", "saas_users", "job_attempts", "stored_objects", "storage_used"}
# Gone within a minute.
KEPT |= {"bus_events"}
# The books: a deletion settles what was held and rewrites nothing.
KEPT |= {"credits", "credit_holds", "credit_transactions", "credit_take_backs", "usage_records"}
KEPT |= {"user_subscriptions", "tester_plan_grants"}
# Stripe's id of who it was goes when Stripe has forgotten them too (billing/upkeep.py).
KEPT |= {"payments", "billing_customers"}
BLANK_USER = """
UPDATE users SET email = 'deleted-' || user_id || '@deleted.invalid', display_name = NULL, password_hash = '', is_active = 0, is_admin = 0,
    last_login_at = NULL, token_epoch = token_epoch + 1
WHERE user_id = %s
"""
BLANK_ACCOUNT = """
UPDATE saas_users SET role = 'user', cognito_sub = NULL, avatar_url = NULL, deleted_at = clock_timestamp() WHERE user_id = %s
"""
END_ACCESS = """
UPDATE saas_users SET access_ended_at = COALESCE(access_ended_at, clock_timestamp()) WHERE user_id = %s AND deleted_at IS NULL
"""
RESUME_ACCESS = "UPDATE saas_users SET access_ended_at = NULL, erase_notice_at = NULL WHERE user_id = %s AND deleted_at IS NULL"
DUE_NOTICES = """
UPDATE saas_users SET erase_notice_at = clock_timestamp()
WHERE access_ended_at < clock_timestamp() - %s AND erase_notice_at IS NULL AND deleted_at IS NULL
RETURNING user_id
"""
# Nobody is erased without having had the notice for its whole time.
DUE_ERASURES = """
SELECT user_id FROM saas_users
WHERE access_ended_at < clock_timestamp() - %(readable)s AND erase_notice_at < clock_timestamp() - %(notice)s AND deleted_at IS NULL
ORDER BY user_id LIMIT 100
"""
STILL_DUE = "SELECT 1 FROM saas_users WHERE user_id = %s AND access_ended_at IS NOT NULL AND deleted_at IS NULL FOR UPDATE"


def erase(accounts: Accounts, cursor: Cursor, account: Account, *, actor_id: str) -> None:
    """Erase inside the open transaction, whose caller holds the account's lock and has the right to."""
    user_id = account.user_id
    lease.cancel_all_of(cursor, user_id)
    for statement in ERASE_ROWS.values():
        cursor.execute(statement.encode(), (user_id,))
    # The last letter to the address; its row forgets it once it is sent.
    mail.enqueue(cursor, account, "deleted", accounts.policy, "")
    cursor.execute(BLANK_ACCOUNT, (user_id,))
    cursor.execute(BLANK_USER, (user_id,))
    audit.append(cursor, actor_id, "user_deleted", user_id)
    blank = store.by_id(cursor, user_id)
    assert blank is not None
    service.announce(accounts, blank)
    # Last: whoever waits for a store after the commit must not keep sockets open and jobs running meanwhile.
    for eraser in accounts.erasers:
        eraser(user_id)


def delete_me(accounts: Accounts, caller: Principal, *, password: str) -> None:
    """Erase one's own account. Asks for the password again, except where a provider keeps it."""
    caller.demand_login()
    if caller.kind == "login" and not passwords.verify_password(password, caller.account.password_hash):
        raise BadAccountInput("Current password is incorrect")
    with tenancy.as_system("a deletion reaches system tables"), accounts.database.postgres() as cursor:
        account = store.by_id(cursor, caller.user_id, lock=True)
        if account is None or account.deleted_at is not None:
            raise NoSuchAccount("expected an account that is there")
        roles.demand_another(cursor, account)
        erase(accounts, cursor, account, actor_id=caller.user_id)


def end_access(accounts: Accounts, user_id: str) -> None:
    """The subscription is over: from now on read only, and erased after the policy's time."""
    with tenancy.as_system("subscriptions end by themselves"), accounts.database.postgres() as cursor:
        cursor.execute(END_ACCESS, (user_id,))


def resume_access(accounts: Accounts, user_id: str) -> None:
    """There is a subscription again: nothing is erased."""
    with tenancy.as_system("subscriptions begin by themselves"), accounts.database.postgres() as cursor:
        cursor.execute(RESUME_ACCESS, (user_id,))


def send_notices(accounts: Accounts) -> int:
    """Write to those whose data goes soon; returns how many. Run it daily, before erase_due()."""
    policy = accounts.policy
    with tenancy.as_system("notices to all users"), accounts.database.postgres() as cursor:
        due = cursor.execute(DUE_NOTICES, (policy.readable_after_end - policy.notice_before_erasure,)).fetchall()
        for row in due:
            account = store.by_id(cursor, row["user_id"])
            if account is not None:
                mail.enqueue(cursor, account, "erase_notice", policy, "")
    return len(due)


def erase_due(accounts: Accounts) -> int:
    """Erase those whose time is over, each in a transaction of its own; returns how many."""
    policy, erased = accounts.policy, 0
    limits = {"readable": policy.readable_after_end, "notice": policy.notice_before_erasure}
    with tenancy.as_system("ended accounts of all users"), accounts.database.postgres() as cursor:
        due = cursor.execute(DUE_ERASURES, limits).fetchall()
    for row in due:
        with tenancy.as_system("ended accounts of all users"), accounts.database.postgres() as cursor:
            account = store.by_id(cursor, row["user_id"], lock=True)
            if account is not None and cursor.execute(STILL_DUE, (row["user_id"],)).fetchone():
                erase(accounts, cursor, account, actor_id=audit.SYSTEM_ACTOR)
                erased += 1
    return erased
