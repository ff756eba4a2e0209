"""Admins look after accounts: make, list, see, change, deactivate, delete. Every act is a line of the audit log, in its own transaction.

An admin reaches plain users only; super_admins reach everybody, are the only ones who give roles and set passwords, and one of them
always remains.
"""

from typing import Any
from uuid import uuid4

from invokeai_saas.accounts import audit, erase, passwords, roles, service, store, tokens
from invokeai_saas.accounts.errors import BadAccountInput, NoSuchAccount, NotAllowed
from invokeai_saas.accounts.model import ROLES, Account, Accounts, Principal, Role
from invokeai_saas.accounts.store import Cursor
from invokeai_saas.db import tenancy
from invokeai_saas.jobs import lease

MATCHES = """
 WHERE deleted_at IS NULL AND (%(search)s::text IS NULL
    OR strpos(lower(email), lower(%(search)s)) > 0 OR strpos(lower(coalesce(display_name, '')), lower(%(search)s)) > 0)
"""
LIST = store.COLUMNS + MATCHES + " ORDER BY created_at DESC, users.user_id LIMIT %(limit)s OFFSET %(offset)s"
COUNT = "SELECT count(*) AS total FROM users JOIN saas_users USING (user_id)" + MATCHES
DETAIL = """
SELECT (SELECT count(*) FROM refresh_families WHERE user_id = %(user_id)s AND revoked_at IS NULL) AS logins,
       (SELECT count(*) FROM api_keys WHERE user_id = %(user_id)s AND revoked_at IS NULL) AS api_keys,
       (SELECT count(*) FROM images WHERE user_id = %(user_id)s) AS images,
       (SELECT count(*) FROM videos WHERE user_id = %(user_id)s) AS videos,
       (SELECT count(*) FROM session_queue WHERE user_id = %(user_id)s AND status IN ('pending', 'in_progress', 'waiting')) AS open_jobs
"""
SET_NAME = "UPDATE users SET display_name = %s WHERE user_id = %s"
SET_ROLE = "UPDATE saas_users SET role = %s WHERE user_id = %s"
# Raising the epoch ends InvokeAI's own tokens; the row's state is what everything else asks.
DEACTIVATE = "UPDATE users SET is_active = 0, token_epoch = token_epoch + 1 WHERE user_id = %s"
ACTIVATE = "UPDATE users SET is_active = 1 WHERE user_id = %s"
INSERT = "INSERT INTO users (user_id, email, display_name, password_hash) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING"
INSERT_ADMIN = "INSERT INTO users (user_id, email, display_name, password_hash, is_admin) VALUES (%s, %s, %s, %s, 1) ON CONFLICT DO NOTHING"
GIVES_ROLES = "expected a super_admin: only they give roles"
VERIFY = "UPDATE saas_users SET email_verified_at = clock_timestamp() WHERE user_id = %s"


def list_users(accounts: Accounts, caller: Principal, *, page: int, limit: int, search: str | None) -> tuple[list[Account], int]:
    """One page (from 1), newest first, and how many there are in all. Deleted accounts are nobody any more."""
    caller.demand_admin()
    values = {"search": search or None, "limit": limit, "offset": (page - 1) * limit}
    with tenancy.as_system("an admin lists accounts"), accounts.database.postgres() as cursor:
        rows = cursor.execute(LIST, values).fetchall()
        total = cursor.execute(COUNT, values).fetchone()
    return [Account(**row) for row in rows], int(total["total"]) if total else 0


def detail(accounts: Accounts, caller: Principal, user_id: str) -> tuple[Account, dict[str, int]]:
    """An account and what it holds, in numbers: not its pictures, not its prompts."""
    caller.demand_admin()
    with tenancy.as_system("an admin looks at an account"), accounts.database.postgres() as cursor:
        account = _existing(store.by_id(cursor, user_id))
        audit.append(cursor, caller.user_id, "user_viewed", user_id)
        counts = cursor.execute(DETAIL, {"user_id": user_id}).fetchone()
    return account, dict(counts or {})


def create(
    accounts: Accounts, caller: Principal, *, email: str, name: str | None, role: Role = "user", password: str | None = None
) -> tuple[Account, str | None]:
    """Make a verified account, signup open or closed; also returns the password that was made when none was given.

    Raises BadAccountInput for an address that an account has, verified or not.
    """
    caller.demand_admin()
    made = passwords.random_password() if password is None else None
    password_hash = _hashed(made or password or "")
    user_id = str(uuid4())
    with tenancy.as_system("an admin makes an account"), accounts.database.postgres() as cursor:
        if _acting(cursor, caller).role != "super_admin" and role != "user":
            raise NotAllowed(GIVES_ROLES)
        cursor.execute(INSERT, (user_id, email.lower(), name, password_hash))
        if cursor.rowcount != 1:
            raise BadAccountInput("email: expected an address that no account has")
        cursor.execute(SET_ROLE, (role, user_id))
        store.prove(accounts, cursor, _existing(store.by_id(cursor, user_id)))
        audit.append(cursor, caller.user_id, "user_added", user_id, {"role": role})
        return _existing(store.by_id(cursor, user_id)), made


def change(accounts: Accounts, caller: Principal, user_id: str, changes: dict[str, Any]) -> Account:
    """Change `display_name`, `role`, `is_active` and `password`, as far as given.

    `is_admin` is InvokeAI's word for super_admin: True makes one, False makes one a user again and leaves other roles alone.
    """
    caller.demand_admin()
    password_hash = None if changes.get("password") is None else _hashed(changes["password"])
    with tenancy.as_system("an admin changes an account"), accounts.database.postgres() as cursor:
        target = _reachable(cursor, caller, user_id)
        role = _wanted_role(target, changes)
        if role != target.role:
            _change_role(cursor, caller, target, role)
        if password_hash is not None:
            target = _change_password(accounts, cursor, caller, target, password_hash)
        if "display_name" in changes:
            cursor.execute(SET_NAME, (changes["display_name"], user_id))
            audit.append(cursor, caller.user_id, "user_renamed", user_id)
        if changes.get("is_active") is False:
            _deactivate(cursor, caller, target)
        elif changes.get("is_active") is True and not target.is_active:
            cursor.execute(ACTIVATE, (user_id,))
            audit.append(cursor, caller.user_id, "user_activated", user_id)
        changed = _existing(store.by_id(cursor, user_id))
        if _rights(changed) != _rights(target):
            service.announce(accounts, changed)
        return changed


def deactivate(accounts: Accounts, caller: Principal, user_id: str) -> Account:
    """Close an account for now: its logins end, its keys rest, its jobs are canceled, running ones included."""
    return change(accounts, caller, user_id, {"is_active": False})


def delete(accounts: Accounts, caller: Principal, user_id: str) -> None:
    """Erase an account for good."""
    caller.demand_admin()
    with tenancy.as_system("an admin deletes an account"), accounts.database.postgres() as cursor:
        target = _reachable(cursor, caller, user_id)
        roles.demand_another(cursor, target)
        erase.erase(accounts, cursor, target, actor_id=caller.user_id)


def ensure_admin(accounts: Accounts, email: str) -> str | None:
    """On a server without a super_admin make one; its one-time password to print, None when there is one already."""
    with tenancy.as_system("the first admin is made by nobody"), accounts.database.postgres() as cursor:
        if roles.others(cursor, ""):
            return None
        password, user_id = passwords.random_password(), str(uuid4())
        cursor.execute(INSERT_ADMIN, (user_id, email.lower(), "Administrator", passwords.hash_password(password)))
        if cursor.rowcount != 1:
            raise BadAccountInput("the first admin's address: expected one that no account has")
        cursor.execute(VERIFY, (user_id,))
        audit.append(cursor, audit.SYSTEM_ACTOR, "first_admin_created", user_id)
        return password


def _acting(cursor: Cursor, caller: Principal) -> Account:
    """The caller, if an admin at this moment."""
    acting = store.by_id(cursor, caller.user_id)
    if acting is None or not acting.may_enter or acting.role == "user":
        raise NotAllowed("expected an admin")
    return acting


def _reachable(cursor: Cursor, caller: Principal, user_id: str) -> Account:
    """The target, locked, if the caller's role of this moment reaches it."""
    target = _existing(store.by_id(cursor, user_id, lock=True))
    acting = _acting(cursor, caller)
    if target.role != "user" and acting.role != "super_admin":
        raise NotAllowed("expected a super_admin: the account has a role")
    return target


def _wanted_role(target: Account, changes: dict[str, Any]) -> str:
    role, is_admin = changes.get("role"), changes.get("is_admin")
    if role is not None:
        if role not in ROLES:
            raise BadAccountInput(f"role: expected one of {', '.join(ROLES)}")
        return str(role)
    if is_admin is None or is_admin == (target.role == "super_admin"):
        return target.role
    return "super_admin" if is_admin else "user"


def _change_role(cursor: Cursor, caller: Principal, target: Account, role: str) -> None:
    if _acting(cursor, caller).role != "super_admin":
        raise NotAllowed(GIVES_ROLES)
    roles.demand_another(cursor, target)
    cursor.execute(SET_ROLE, (role, target.user_id))
    audit.append(cursor, caller.user_id, "role_changed", target.user_id, {"from": target.role, "to": role})


def _change_password(accounts: Accounts, cursor: Cursor, caller: Principal, target: Account, password_hash: str) -> Account:
    """Whoever sets a password can enter with it; a letter tells the owner."""
    if _acting(cursor, caller).role != "super_admin":
        raise NotAllowed("expected a super_admin: only they set passwords")
    if target.user_id == caller.user_id:
        raise BadAccountInput("password: expected somebody else's: one's own is changed in the profile, which asks for the current one")
    changed = service.replace_password(accounts, cursor, target, password_hash)
    audit.append(cursor, caller.user_id, "password_replaced", target.user_id)
    return changed


def _hashed(password: str) -> str:
    """Outside of any transaction: it takes a tenth of a second."""
    passwords.demand_strong(password)
    return passwords.hash_password(password)


def _deactivate(cursor: Cursor, caller: Principal, target: Account) -> None:
    roles.demand_another(cursor, target)
    cursor.execute(DEACTIVATE, (target.user_id,))
    tokens.close_all(cursor, target.user_id, "deactivated")
    tokens.void_links(cursor, target.user_id)
    canceled = len(lease.cancel_all_of(cursor, target.user_id))
    audit.append(cursor, caller.user_id, "user_deactivated", target.user_id, {"canceled_jobs": canceled})


def _rights(account: Account) -> tuple[int, int, int]:
    return account.is_admin, account.is_active, account.token_epoch


def _existing(account: Account | None) -> Account:
    if account is None or account.deleted_at is not None:
        raise NoSuchAccount("expected the id of an account")
    return account
