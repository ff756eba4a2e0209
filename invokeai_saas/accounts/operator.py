"""What whoever has the machine may do without a login, in place of InvokeAI's invoke-useradd, -list, -mod and -del.

The audit log names the operator. Passwords that are made here are returned once, to be printed.
"""

from uuid import uuid4

from invokeai_saas.accounts import audit, erase, letters, mail, passwords, roles, service, store, tokens
from invokeai_saas.accounts.errors import BadAccountInput, NoSuchAccount
from invokeai_saas.accounts.model import ROLES, Account, Accounts, Role
from invokeai_saas.accounts.store import Cursor
from invokeai_saas.db import tenancy
from invokeai_saas.jobs import lease

OPERATOR = "operator"
REASON = "the operator has the machine"
INSERT = "INSERT INTO users (user_id, email, display_name, password_hash) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING"
SET_ROLE = "UPDATE saas_users SET role = %s WHERE user_id = %s"
SET_NAME = "UPDATE users SET display_name = %s WHERE user_id = %s"
SET_ACTIVE = "UPDATE users SET is_active = 1 WHERE user_id = %s"
SET_INACTIVE = "UPDATE users SET is_active = 0, token_epoch = token_epoch + 1 WHERE user_id = %s"
ALL = store.COLUMNS + " WHERE deleted_at IS NULL ORDER BY email"


def add(accounts: Accounts, *, email: str, name: str | None = None, role: Role = "user", password: str | None = None) -> str | None:
    """Make a verified account; returns the password that was made when none was given. Raises BadAccountInput for a taken address."""
    made = None if password is not None else passwords.random_password()
    passwords.demand_strong(password or made or "")
    _demand_role(role)
    user_id, password_hash = str(uuid4()), passwords.hash_password(password or made or "")
    with tenancy.as_system(REASON), accounts.database.postgres() as cursor:
        cursor.execute(INSERT, (user_id, email.lower(), name, password_hash))
        if cursor.rowcount != 1:
            raise BadAccountInput("expected an address that no account has")
        cursor.execute(SET_ROLE, (role, user_id))
        store.prove(accounts, cursor, _existing(cursor, email))
        audit.append(cursor, OPERATOR, "user_added", user_id, {"role": role})
    return made


def invite(accounts: Accounts, *, email: str, name: str | None = None, role: Role = "user") -> str:
    """Make an account without a password and write to its address; returns the link of the letter, which sets the password once."""
    _demand_role(role)
    user_id = str(uuid4())
    with tenancy.as_system(REASON), accounts.database.postgres() as cursor:
        cursor.execute(INSERT, (user_id, email.lower(), name, ""))
        if cursor.rowcount != 1:
            raise BadAccountInput("expected an address that no account has")
        cursor.execute(SET_ROLE, (role, user_id))
        secret = tokens.new_link(cursor, user_id, "reset", accounts.policy.verify_link, {})
        mail.enqueue(cursor, _existing(cursor, email), "invite", accounts.policy, secret)
        audit.append(cursor, OPERATOR, "user_invited", user_id, {"role": role})
    return letters.link_of("invite", public_url=accounts.policy.public_url, secret=secret)


def everybody(accounts: Accounts) -> list[Account]:
    """Every account that is not deleted, by address."""
    with tenancy.as_system(REASON), accounts.database.postgres() as cursor:
        return [Account(**row) for row in cursor.execute(ALL).fetchall()]


def give_role(accounts: Accounts, *, email: str, role: Role) -> None:
    """Set a role; one active super_admin always remains."""
    _demand_role(role)
    with tenancy.as_system(REASON), accounts.database.postgres() as cursor:
        account = _existing(cursor, email)
        if role != "super_admin":
            roles.demand_another(cursor, account)
        cursor.execute(SET_ROLE, (role, account.user_id))
        store.prove(accounts, cursor, account)
        audit.append(cursor, OPERATOR, "role_changed", account.user_id, {"from": account.role, "to": role})
        service.announce(accounts, _existing(cursor, email))


def verify(accounts: Accounts, *, email: str) -> None:
    """Take the address as its owner's without a letter; links that are on their way open nothing any more.

    Said again of somebody who has had no trial, it begins one.
    """
    with tenancy.as_system(REASON), accounts.database.postgres() as cursor:
        account = _existing(cursor, email)
        store.prove(accounts, cursor, account)
        if account.email_verified_at is not None:
            accounts.verified(cursor, account)
        tokens.void_links(cursor, account.user_id)
        audit.append(cursor, OPERATOR, "address_verified", account.user_id)


def rename(accounts: Accounts, *, email: str, name: str | None) -> None:
    """Set or clear (None) the name."""
    with tenancy.as_system(REASON), accounts.database.postgres() as cursor:
        account = _existing(cursor, email)
        cursor.execute(SET_NAME, (name, account.user_id))
        audit.append(cursor, OPERATOR, "user_renamed", account.user_id)


def new_password(accounts: Accounts, *, email: str, password: str | None = None) -> str | None:
    """Replace a password; returns the one that was made when none was given. Every login ends."""
    made = None if password is not None else passwords.random_password()
    passwords.demand_strong(password or made or "")
    password_hash = passwords.hash_password(password or made or "")
    with tenancy.as_system(REASON), accounts.database.postgres() as cursor:
        account = _existing(cursor, email)
        service.replace_password(accounts, cursor, account, password_hash)
        audit.append(cursor, OPERATOR, "password_replaced", account.user_id)
    return made


def set_active(accounts: Accounts, *, email: str, active: bool) -> None:
    """Open or close an account; closing ends its logins and cancels its jobs."""
    with tenancy.as_system(REASON), accounts.database.postgres() as cursor:
        account = _existing(cursor, email)
        if active:
            cursor.execute(SET_ACTIVE, (account.user_id,))
        else:
            roles.demand_another(cursor, account)
            cursor.execute(SET_INACTIVE, (account.user_id,))
            tokens.close_all(cursor, account.user_id, "deactivated")
            tokens.void_links(cursor, account.user_id)
            lease.cancel_all_of(cursor, account.user_id)
        audit.append(cursor, OPERATOR, "user_activated" if active else "user_deactivated", account.user_id)
        service.announce(accounts, _existing(cursor, email))


def delete(accounts: Accounts, *, email: str) -> None:
    """Erase an account for good."""
    with tenancy.as_system(REASON), accounts.database.postgres() as cursor:
        account = _existing(cursor, email)
        roles.demand_another(cursor, account)
        erase.erase(accounts, cursor, account, actor_id=OPERATOR)


def _existing(cursor: Cursor, email: str) -> Account:
    found = store.by_email(cursor, email)
    account = store.by_id(cursor, found.user_id, lock=True) if found else None
    if account is None or account.deleted_at is not None:
        raise NoSuchAccount("expected the address of an account")
    return account


def _demand_role(role: str) -> None:
    if role not in ROLES:
        raise BadAccountInput(f"role: expected one of {', '.join(ROLES)}, got {role!r}")
