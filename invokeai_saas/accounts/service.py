"""Sign up, verify, log in, log out, forget and reset, see and change oneself.

Answers about an address are the same, and take the same time, whether or not an account has it: what is different goes into a letter.
A password is compared outside of any transaction (it takes a tenth of a second), and what was compared is looked at again under the lock.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from invokeai_saas.accounts import mail, passwords, store, tokens
from invokeai_saas.accounts.errors import AddressNotVerified, AlreadyConfirmed, BadAccountInput, LinkInvalid, NotSignedIn, WrongPassword
from invokeai_saas.accounts.model import AccessChange, Account, Accounts, Principal
from invokeai_saas.accounts.store import Cursor
from invokeai_saas.db import tenancy

# The unique address decides between two signups at once.
INSERT_USER = """
INSERT INTO users (user_id, email, display_name, password_hash) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING user_id
"""
CONFIRM_SIGNUP = "UPDATE users SET password_hash = %s, display_name = %s WHERE user_id = %s"
RECORD_LOGIN = """
UPDATE users SET last_login_at = to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"') WHERE user_id = %s
"""
REHASH = "UPDATE users SET password_hash = %s WHERE user_id = %s"
# The epoch is what InvokeAI compares in every access token: raising it ends them all.
SET_PASSWORD = "UPDATE users SET password_hash = %s, token_epoch = token_epoch + 1 WHERE user_id = %s"
RAISE_EPOCH = "UPDATE users SET token_epoch = token_epoch + 1 WHERE user_id = %s"
UPDATE_NAME = "UPDATE users SET display_name = %s WHERE user_id = %s"
UPDATE_AVATAR = "UPDATE saas_users SET avatar_url = %s WHERE user_id = %s"


@dataclass(frozen=True, slots=True)
class Verified:
    """`first_time` is false for an address that was verified here before, under any account: a trial is given once."""

    account: Account
    tokens: tokens.Tokens
    first_time: bool


def signup(accounts: Accounts, *, email: str, password: str, name: str | None) -> None:
    """Begin an account, or write to whoever has the address already. Nobody is signed in before the letter's link is followed."""
    if not accounts.policy.signup_open:
        raise BadAccountInput("signup is closed: ask an administrator for an account")
    passwords.demand_strong(password)
    with _steady(accounts):
        password_hash = passwords.hash_password(password)
        with tenancy.as_system("a signup belongs to nobody yet"), accounts.database.postgres() as cursor:
            created = cursor.execute(INSERT_USER, (str(uuid4()), email.lower(), name, password_hash)).fetchone()
            account = store.by_email(cursor, email)
            if account is None:
                return
            if created is None and account.email_verified_at is not None:
                mail.enqueue(cursor, account, "address_known", accounts.policy, "")
                return
            payload = {"password_hash": password_hash, "display_name": name}
            link = tokens.new_link(cursor, account.user_id, "verify", accounts.policy.verify_link, payload)
            mail.enqueue(cursor, account, "verify", accounts.policy, link)


def verify_email(accounts: Accounts, secret: str) -> Verified:
    """Follow a signup's link: the account becomes that signup's, its address verified, its reader signed in. Raises LinkInvalid."""
    with tenancy.as_system("a letter's link says whose it is"), accounts.database.postgres() as cursor:
        account, payload = _spend(cursor, secret, "verify")
        cursor.execute(CONFIRM_SIGNUP, (payload["password_hash"], payload["display_name"], account.user_id))
        # Other signups of the same address end here.
        tokens.void_links(cursor, account.user_id)
        first_time = store.mark_address(cursor, account.email)
        store.prove(accounts, cursor, account)
        account = _demand(store.by_id(cursor, account.user_id))
        return Verified(account, tokens.open_family(accounts, cursor, account), first_time)


def login(accounts: Accounts, *, email: str, password: str) -> tuple[Account, tokens.Tokens]:
    """Raises WrongPassword for all that is wrong, AddressNotVerified only to who knows the password."""
    with tenancy.as_system("a login belongs to nobody yet"), accounts.database.postgres() as cursor:
        account = store.by_email(cursor, email)
    # Where there is no account the same work is done for nobody.
    if not passwords.verify_password(password, account.password_hash if account else None):
        raise WrongPassword
    assert account is not None
    if account.is_active and account.deleted_at is None and account.email_verified_at is None:
        raise AddressNotVerified
    fresh_hash = passwords.hash_password(password) if passwords.is_outdated(account.password_hash) else account.password_hash
    return _enter(accounts, account, password, fresh_hash)


def _enter(accounts: Accounts, compared: Account, password: str, fresh_hash: str) -> tuple[Account, tokens.Tokens]:
    with tenancy.as_system("a login belongs to nobody yet"), accounts.database.postgres() as cursor:
        account = store.by_id(cursor, compared.user_id, lock=True)
        # Closed while the hash was compared.
        if account is None or not account.may_enter:
            raise WrongPassword
        # Another hash by now: of a new password, or of the same one, which another login stored anew.
        is_compared = account.password_hash == compared.password_hash
        if not is_compared and not passwords.verify_password(password, account.password_hash):
            raise WrongPassword
        if is_compared and fresh_hash != account.password_hash:
            cursor.execute(REHASH, (fresh_hash, account.user_id))
        cursor.execute(RECORD_LOGIN, (account.user_id,))
        account = _demand(store.by_id(cursor, account.user_id))
        return account, tokens.open_family(accounts, cursor, account)


def logout(accounts: Accounts, caller: Principal) -> None:
    """End the login that the credential belongs to; its access token ends with it."""
    caller.demand_login()
    if caller.family_id is None:
        return
    with tenancy.as_system("logins are system work"), accounts.database.postgres() as cursor:
        tokens.close_family(cursor, caller.family_id, caller.user_id)


def logout_everywhere(accounts: Accounts, caller: Principal) -> None:
    """End every login of the caller, this one included, open sockets too. API keys are not logins: they go on."""
    caller.demand_login()
    with tenancy.as_system("logins are system work"), accounts.database.postgres() as cursor:
        account = _demand(store.by_id(cursor, caller.user_id, lock=True))
        cursor.execute(RAISE_EPOCH, (account.user_id,))
        tokens.close_all(cursor, account.user_id, "logout")
        announce(accounts, _demand(store.by_id(cursor, account.user_id)))


def forgot_password(accounts: Accounts, *, email: str) -> None:
    """Send a link to the address if an account has it, and say nothing either way."""
    with (
        _steady(accounts),
        tenancy.as_system("who forgot a password is not signed in"),
        accounts.database.postgres() as cursor,
    ):
        account = store.by_email(cursor, email)
        if account is not None and account.is_active and account.deleted_at is None:
            link = tokens.new_link(cursor, account.user_id, "reset", accounts.policy.reset_link, {})
            mail.enqueue(cursor, account, "reset", accounts.policy, link)


def reset_password(accounts: Accounts, *, secret: str, password: str) -> None:
    """Set a password by a letter's link, which also proves the address. Every login ends. Raises LinkInvalid."""
    passwords.demand_strong(password)
    password_hash = passwords.hash_password(password)
    with tenancy.as_system("a letter's link says whose it is"), accounts.database.postgres() as cursor:
        account, _ = _spend(cursor, secret, "reset")
        replace_password(accounts, cursor, account, password_hash)
        store.prove(accounts, cursor, account)


def change_password(accounts: Accounts, caller: Principal, *, old: str, new: str) -> tuple[Account, tokens.Tokens]:
    """Replace one's own password; every other login ends, this one goes on with the tokens that are returned."""
    caller.demand_login()
    passwords.demand_strong(new)
    if not passwords.verify_password(old, caller.account.password_hash):
        raise BadAccountInput("Current password is incorrect")
    password_hash = passwords.hash_password(new)
    with tenancy.as_system("passwords are system work"), accounts.database.postgres() as cursor:
        account = _demand(store.by_id(cursor, caller.user_id, lock=True))
        if account.password_hash != caller.account.password_hash:
            raise BadAccountInput("Current password is incorrect")
        account = replace_password(accounts, cursor, account, password_hash)
        return account, tokens.open_family(accounts, cursor, account)


def change_me(accounts: Accounts, caller: Principal, changes: dict[str, Any]) -> Account:
    """Change `display_name` and `avatar_url`, as far as given; None clears. Address, role and the rest are not one's own to change."""
    caller.demand_login()
    with tenancy.as_system("tenants do not write users"), accounts.database.postgres() as cursor:
        if "display_name" in changes:
            cursor.execute(UPDATE_NAME, (changes["display_name"], caller.user_id))
        if "avatar_url" in changes:
            cursor.execute(UPDATE_AVATAR, (changes["avatar_url"], caller.user_id))
        return _demand(store.by_id(cursor, caller.user_id))


def replace_password(accounts: Accounts, cursor: Cursor, account: Account, password_hash: str) -> Account:
    """Set a password inside the open transaction: every login and link ends, a letter says so."""
    cursor.execute(SET_PASSWORD, (password_hash, account.user_id))
    tokens.close_all(cursor, account.user_id, "password")
    tokens.void_links(cursor, account.user_id)
    mail.enqueue(cursor, account, "password_changed", accounts.policy, "")
    changed = _demand(store.by_id(cursor, account.user_id))
    announce(accounts, changed)
    return changed


def announce(accounts: Accounts, account: Account) -> None:
    """Tell live connections after the commit that this account's rights are other ones now."""
    alive = bool(account.is_active) and account.deleted_at is None
    change = AccessChange(account.user_id, bool(account.is_admin), alive, account.token_epoch)
    accounts.database.on_commit(lambda: accounts.access_changed(change))


def _spend(cursor: Cursor, secret: str, purpose: Any) -> tuple[Account, dict[str, Any]]:
    found = tokens.spend_link(cursor, secret, purpose)
    if found is None and purpose == "verify" and tokens.is_needless(cursor, secret):
        raise AlreadyConfirmed
    account = None if found is None else store.by_id(cursor, found[0], lock=True)
    if found is None or account is None or not account.is_active or account.deleted_at is not None:
        raise LinkInvalid
    return account, found[1]


def _demand(account: Account | None) -> Account:
    if account is None:
        raise NotSignedIn
    return account


@contextmanager
def _steady(accounts: Accounts) -> Iterator[None]:
    """Take `answer_seconds` at least, so that the clock does not tell whether a letter was written."""
    ends = time.monotonic() + accounts.policy.answer_seconds
    try:
        yield
    finally:
        time.sleep(max(0.0, ends - time.monotonic()))
