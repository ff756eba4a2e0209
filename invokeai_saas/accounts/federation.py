"""Verified claims of an identity provider in, the account that they belong to out; made or linked on first sight."""

from typing import Any, cast
from uuid import uuid4

from invokeai_saas.accounts import audit, service, store, tokens
from invokeai_saas.accounts.errors import NotSignedIn
from invokeai_saas.accounts.model import Account, Accounts, Role
from invokeai_saas.accounts.store import Cursor
from invokeai_saas.db import tenancy

LINK = "UPDATE saas_users SET cognito_sub = %s, email_verified_at = COALESCE(email_verified_at, clock_timestamp()) WHERE user_id = %s"
# A password that was set before anybody proved the address may be a stranger's.
DROP_PASSWORD = "UPDATE users SET password_hash = '', token_epoch = token_epoch + 1 WHERE user_id = %s"
INSERT_USER = "INSERT INTO users (user_id, email, display_name, password_hash) VALUES (%s, %s, %s, '') ON CONFLICT DO NOTHING"
SET_ROLE = "UPDATE saas_users SET role = %s WHERE user_id = %s"


def account_of(accounts: Accounts, claims: dict[str, Any]) -> Account:
    """The live account of `claims['sub']`; raises NotSignedIn when there is none and the claims do not prove an address."""
    subject = str(claims["sub"])
    with tenancy.as_system("a provider's token says whose it is"), accounts.database.postgres() as cursor:
        account = store.by_subject(cursor, subject) or _link(accounts, cursor, subject, claims)
        if account is None or not account.may_enter:
            raise NotSignedIn
        return _with_claimed_role(accounts, cursor, account, claims)


def _link(accounts: Accounts, cursor: Cursor, subject: str, claims: dict[str, Any]) -> Account | None:
    email = claims.get("email")
    # Cognito writes the claim as text in places.
    if not isinstance(email, str) or str(claims.get("email_verified", "")).lower() != "true":
        return None
    name = claims.get("name")
    cursor.execute(INSERT_USER, (str(uuid4()), email.lower(), name if isinstance(name, str) else None))
    found = store.by_email(cursor, email)
    account = store.by_id(cursor, found.user_id, lock=True) if found else None
    if account is None:
        return None
    if account.email_verified_at is None:
        cursor.execute(DROP_PASSWORD, (account.user_id,))
        tokens.close_all(cursor, account.user_id, "takeover")
        tokens.void_links(cursor, account.user_id)
    cursor.execute(LINK, (subject, account.user_id))
    store.mark_address(cursor, account.email)
    linked = store.by_id(cursor, account.user_id)
    if account.email_verified_at is None and linked is not None:
        accounts.verified(cursor, linked)
    return linked


def _with_claimed_role(accounts: Accounts, cursor: Cursor, account: Account, claims: dict[str, Any]) -> Account:
    """Where the operator names a role claim, the provider decides between user and admin; super_admin is never a claim's to give."""
    name = accounts.policy.oidc_role_claim
    wanted = cast(Role, claims.get(name, "user")) if name else account.role
    if account.role == "super_admin" or wanted == account.role or wanted not in ("user", "admin"):
        return account
    cursor.execute(SET_ROLE, (wanted, account.user_id))
    audit.append(cursor, audit.SYSTEM_ACTOR, "role_from_provider", account.user_id, {"from": account.role, "to": wanted})
    changed = store.by_id(cursor, account.user_id)
    assert changed is not None
    service.announce(accounts, changed)
    return changed
