"""A login in, an access token (15 minutes) and a refresh token (30 days, good once) out; and letters' one-time links.

Rotation: each refresh spends its token and issues the next of the same family. Reuse detection is strict: a token that comes a second
time, whether stolen, raced or retried, revokes its family, because nobody can tell the thief from the owner. Of two refreshes at once one
gets tokens that are dead a moment later; clients send one refresh at a time.
"""

import secrets
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, Literal

import jwt
from psycopg.types.json import Jsonb

from invokeai_saas.accounts import audit, store
from invokeai_saas.accounts.errors import NotSignedIn
from invokeai_saas.accounts.model import Account, Accounts
from invokeai_saas.accounts.store import Cursor
from invokeai_saas.db import tenancy

ALGORITHM = "HS256"
# Another process's clock may be a second ahead: `iat` is not looked at.
READ_OPTIONS: Any = {"require": ["exp", "user_id", "token_epoch"], "verify_iat": False}
KEPT_TOKENS = 4096
Reason = Literal["logout", "reused", "password", "deactivated", "deleted", "takeover"]

NEW_FAMILY = "INSERT INTO refresh_families (user_id) VALUES (%s) RETURNING family_id::text"
NEW_TOKEN = """
INSERT INTO refresh_tokens (token_hash, family_id, user_id, expires_at)
VALUES (%s, %s, %s, clock_timestamp() + %s)
"""
# The row lock of the update decides between two refreshes of one token.
SPEND = """
UPDATE refresh_tokens SET used_at = clock_timestamp() WHERE token_hash = %s AND used_at IS NULL
RETURNING family_id::text, user_id, expires_at > clock_timestamp() AS is_fresh
"""
LOCK_LIVE_FAMILY = "SELECT 1 FROM refresh_families WHERE family_id = %s AND revoked_at IS NULL FOR UPDATE"
REVOKE_REUSED = """
UPDATE refresh_families SET revoked_at = clock_timestamp(), revoked_because = 'reused'
WHERE revoked_at IS NULL AND family_id = (SELECT family_id FROM refresh_tokens WHERE token_hash = %s)
RETURNING family_id::text, user_id
"""
REVOKE_FAMILY = """
UPDATE refresh_families SET revoked_at = clock_timestamp(), revoked_because = 'logout'
WHERE family_id = %s AND user_id = %s AND revoked_at IS NULL
"""
REVOKE_ALL = """
UPDATE refresh_families SET revoked_at = clock_timestamp(), revoked_because = %s WHERE user_id = %s AND revoked_at IS NULL
"""
FAMILY_LIVES = "SELECT 1 FROM refresh_families WHERE family_id = %s AND user_id = %s AND revoked_at IS NULL"
NEW_LINK = "INSERT INTO one_time_tokens (token_hash, user_id, purpose, payload, expires_at) VALUES (%s, %s, %s, %s, clock_timestamp() + %s)"
# Spends the link, whether or not its account may still use it. Read under the lock, because what it carried is forgotten with it.
SPEND_LINK = """
WITH link AS (
    SELECT token_hash, user_id, payload FROM one_time_tokens
    WHERE token_hash = %s AND purpose = %s AND used_at IS NULL AND expires_at > clock_timestamp()
    FOR UPDATE
)
UPDATE one_time_tokens AS spent SET used_at = clock_timestamp(), payload = '{}'
FROM link WHERE spent.token_hash = link.token_hash
RETURNING link.user_id, link.payload
"""
NEEDLESS = """
SELECT 1 FROM one_time_tokens JOIN saas_users USING (user_id)
WHERE token_hash = %s AND purpose = 'verify' AND email_verified_at IS NOT NULL AND deleted_at IS NULL
"""
VOID_LINKS = """
UPDATE one_time_tokens SET used_at = clock_timestamp(), payload = '{}' WHERE user_id = %s AND used_at IS NULL
"""
# Spent refresh tokens stay until they would have expired: a reuse must still be recognised.
FORGET_EXPIRED = """
WITH links AS (DELETE FROM one_time_tokens WHERE expires_at < clock_timestamp() - interval '1 day'),
     tokens AS (DELETE FROM refresh_tokens WHERE expires_at < clock_timestamp() - interval '1 day')
DELETE FROM refresh_families WHERE created_at < clock_timestamp() - interval '1 day' AND NOT EXISTS (
    SELECT FROM refresh_tokens WHERE refresh_tokens.family_id = refresh_families.family_id
    AND expires_at >= clock_timestamp() - interval '1 day')
"""


@dataclass(frozen=True, slots=True, repr=False)
class Tokens:
    """What a login or a refresh answers; lifetimes in seconds."""

    access_token: str
    refresh_token: str
    expires_in: int
    refresh_expires_in: int


def sign_access(account: Account, secret: str, *, lifetime: timedelta, **claims: Any) -> str:
    """A JWT with the claims that InvokeAI reads, and ours; `sid` is the login's family."""
    now = int(time.time())
    return jwt.encode(
        {
            "user_id": account.user_id,
            "email": account.email,
            "is_admin": bool(account.is_admin),
            "remember_me": False,
            "token_epoch": account.token_epoch,
            "iat": now,
            "exp": now + int(lifetime.total_seconds()),
            "jti": secrets.token_urlsafe(12),
            **claims,
        },
        secret,
        algorithm=ALGORITHM,
    )


def read_access(token: str, secret: str) -> dict[str, Any]:
    """The claims of an access token that we signed and that is not over; raises NotSignedIn."""
    try:
        claims = _signed_claims(token, secret)
    except jwt.InvalidTokenError:
        raise NotSignedIn from None
    # What was true of the signature stays true; the time goes on.
    if claims["exp"] <= time.time():
        raise NotSignedIn
    return dict(claims)


@lru_cache(maxsize=KEPT_TOKENS)
def _signed_claims(token: str, secret: str) -> dict[str, Any]:
    """Decoded once per token: a page's hundred pictures come with the same one."""
    return jwt.decode(token, secret, algorithms=[ALGORITHM], options=READ_OPTIONS)


def open_family(accounts: Accounts, cursor: Cursor, account: Account) -> Tokens:
    """The tokens of a new login."""
    row = cursor.execute(NEW_FAMILY, (account.user_id,)).fetchone()
    assert row is not None
    return _issue(accounts, cursor, account, row["family_id"])


def refresh(accounts: Accounts, refresh_token: str) -> tuple[Account, Tokens]:
    """Spend a refresh token for the next pair; raises NotSignedIn, after revoking the family if the token was spent before."""
    token_hash = store.sha256(refresh_token)
    with tenancy.as_system("a refresh token says whose it is"), accounts.database.postgres() as cursor:
        spent = cursor.execute(SPEND, (token_hash,)).fetchone()
        if spent is None:
            _revoke_if_reused(cursor, token_hash)
            renewed = None
        else:
            renewed = _renew(accounts, cursor, spent)
    # Outside of the transaction: raised inside, it would undo the revocation.
    if renewed is None:
        raise NotSignedIn
    return renewed


def _renew(accounts: Accounts, cursor: Cursor, spent: dict[str, Any]) -> tuple[Account, Tokens] | None:
    account = store.by_id(cursor, spent["user_id"])
    alive = cursor.execute(LOCK_LIVE_FAMILY, (spent["family_id"],)).fetchone()
    if not spent["is_fresh"] or alive is None or account is None or not account.may_enter:
        return None
    return account, _issue(accounts, cursor, account, spent["family_id"])


def _revoke_if_reused(cursor: Cursor, token_hash: str) -> None:
    family = cursor.execute(REVOKE_REUSED, (token_hash,)).fetchone()
    if family is not None:
        details = {"family_id": family["family_id"]}
        audit.append(cursor, audit.SYSTEM_ACTOR, "refresh_token_reused", family["user_id"], details)


def _issue(accounts: Accounts, cursor: Cursor, account: Account, family_id: str) -> Tokens:
    policy, refresh_token = accounts.policy, secrets.token_urlsafe(32)
    cursor.execute(NEW_TOKEN, (store.sha256(refresh_token), family_id, account.user_id, policy.refresh))
    access = sign_access(account, store.signing_secret(cursor), lifetime=policy.access, sid=family_id)
    return Tokens(access, refresh_token, int(policy.access.total_seconds()), int(policy.refresh.total_seconds()))


def close_family(cursor: Cursor, family_id: str, user_id: str) -> None:
    """End one login; ending it twice is fine."""
    cursor.execute(REVOKE_FAMILY, (family_id, user_id))


def close_all(cursor: Cursor, user_id: str, because: Reason) -> None:
    """End every login of a user."""
    cursor.execute(REVOKE_ALL, (because, user_id))


def family_lives(cursor: Cursor, family_id: str, user_id: str) -> bool:
    """False after a logout, a reuse, a new password."""
    return cursor.execute(FAMILY_LIVES, (family_id, user_id)).fetchone() is not None


def new_link(cursor: Cursor, user_id: str, purpose: Literal["verify", "reset"], lifetime: timedelta, payload: dict[str, Any]) -> str:
    """The secret of a letter's link; only its hash is stored."""
    secret = secrets.token_urlsafe(32)
    cursor.execute(NEW_LINK, (store.sha256(secret), user_id, purpose, Jsonb(payload), lifetime))
    return secret


def spend_link(cursor: Cursor, secret: str, purpose: Literal["verify", "reset"]) -> tuple[str, dict[str, Any]] | None:
    """Whose link it is and what it carries; None when it is used, too old or unknown. Of two at once one gets it."""
    row = cursor.execute(SPEND_LINK, (store.sha256(secret), purpose)).fetchone()
    return None if row is None else (row["user_id"], row["payload"])


def is_needless(cursor: Cursor, secret: str) -> bool:
    """Whether it is a signup's link whose address was confirmed another way, or by it before."""
    return cursor.execute(NEEDLESS, (store.sha256(secret),)).fetchone() is not None


def void_links(cursor: Cursor, user_id: str) -> None:
    """Make every open link of a user useless."""
    cursor.execute(VOID_LINKS, (user_id,))


def forget_expired(accounts: Accounts) -> None:
    """Delete what no longer matters; run it once a day."""
    with tenancy.as_system("expired tokens of all users"), accounts.database.postgres() as cursor:
        cursor.execute(FORGET_EXPIRED)
