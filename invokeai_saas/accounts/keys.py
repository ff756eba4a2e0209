"""API keys: `iv_<id>.<secret>`, shown once, stored as SHA-256, with scopes and an end. Written in their owner's own context."""

import hmac
import re
import secrets
from datetime import datetime, timedelta
from typing import Any

from invokeai_saas.accounts import store
from invokeai_saas.accounts.errors import BadAccountInput, NoSuchAccount, NotSignedIn
from invokeai_saas.accounts.model import SCOPES, Account, Accounts, Principal
from invokeai_saas.db import tenancy

PREFIX = "iv"
MAX_LIVE_KEYS = 50
MAX_LIFETIME = timedelta(days=3650)
_KEY = re.compile(r"iv_([0-9a-f]{16})\.([\w-]{43})", re.ASCII)

COUNT_LIVE = "SELECT count(*) AS live FROM api_keys WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp())"
# One new key of a user at a time: the count and the insert belong together.
LOCK_OWNER = "SELECT pg_advisory_xact_lock(hashtextextended('api keys ' || %s, 0))"
INSERT = """
INSERT INTO api_keys (key_id, user_id, key_hash, name, scopes, expires_at)
VALUES (%s, %s, %s, %s, %s, clock_timestamp() + %s::interval)
RETURNING key_id, name, scopes, created_at, last_used_at, expires_at, revoked_at
"""
LIST = """
SELECT key_id, name, scopes, created_at, last_used_at, expires_at, revoked_at FROM api_keys
WHERE user_id = %s ORDER BY created_at DESC, key_id
"""
REVOKE = "UPDATE api_keys SET revoked_at = COALESCE(revoked_at, clock_timestamp()) WHERE key_id = %s AND user_id = %s"
FIND = """
SELECT user_id, key_hash, scopes FROM api_keys
WHERE key_id = %s AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp())
"""
# At most once a minute: reading must not mean writing.
TOUCH = """
UPDATE api_keys SET last_used_at = clock_timestamp()
WHERE key_id = %s AND (last_used_at IS NULL OR last_used_at < clock_timestamp() - interval '1 minute')
"""

Key = dict[str, str | list[str] | datetime | None]


def create(
    accounts: Accounts, caller: Principal, *, name: str, scopes: list[str], lifetime: timedelta | None
) -> tuple[Key, str]:
    """A new key and, this once, its text. `lifetime` None never ends."""
    caller.demand_login()
    _demand_possible(name, scopes, lifetime)
    key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    with tenancy.as_user(caller.user_id), accounts.database.postgres() as cursor:
        cursor.execute(LOCK_OWNER, (caller.user_id,))
        live = cursor.execute(COUNT_LIVE).fetchone()
        if live is not None and live["live"] >= MAX_LIVE_KEYS:
            raise BadAccountInput(f"expected at most {MAX_LIVE_KEYS} live keys: revoke one first")
        values = (key_id, caller.user_id, store.sha256(secret), name, sorted(set(scopes)), lifetime)
        row = cursor.execute(INSERT, values).fetchone()
    assert row is not None
    return row, f"{PREFIX}_{key_id}.{secret}"


def list_keys(accounts: Accounts, caller: Principal) -> list[Key]:
    """One's own keys, newest first, revoked and ended ones too."""
    with tenancy.as_user(caller.user_id), accounts.database.postgres() as cursor:
        return cursor.execute(LIST, (caller.user_id,)).fetchall()


def revoke(accounts: Accounts, caller: Principal, key_id: str) -> None:
    """End a key at once. Somebody else's and none at all raise NoSuchAccount alike."""
    caller.demand_login()
    with tenancy.as_user(caller.user_id), accounts.database.postgres() as cursor:
        cursor.execute(REVOKE, (key_id, caller.user_id))
        if cursor.rowcount != 1:
            raise NoSuchAccount("expected one of your API keys")


def looks_like_key(credential: str) -> bool:
    """Keys and tokens come in the same header."""
    return credential.startswith(f"{PREFIX}_")


def owner_of(accounts: Accounts, text: str) -> tuple[Account, str, tuple[str, ...]]:
    """Account, key id and scopes of a key that counts; raises NotSignedIn."""
    match = _KEY.fullmatch(text)
    if match is None:
        raise NotSignedIn
    with tenancy.as_system("a key says whose it is"), accounts.database.postgres() as cursor:
        row = cursor.execute(FIND, (match[1],)).fetchone()
        if row is None or not hmac.compare_digest(row["key_hash"], store.sha256(match[2])):
            raise NotSignedIn
        cursor.execute(TOUCH, (match[1],))
        account = store.by_id(cursor, row["user_id"])
    if account is None or not account.may_enter:
        raise NotSignedIn
    return account, match[1], tuple(row["scopes"])


def _demand_possible(name: str, scopes: list[str], lifetime: timedelta | None) -> None:
    problems: list[Any] = []
    if not 1 <= len(name) <= 100:
        problems.append(f"name: expected 1 to 100 characters, got {len(name)}")
    if not scopes or set(scopes) - set(SCOPES):
        problems.append(f"scopes: expected some of {', '.join(SCOPES)}")
    if lifetime is not None and not timedelta(0) < lifetime <= MAX_LIFETIME:
        problems.append(f"expires_in_days: expected 1 to {MAX_LIFETIME.days}")
    if problems:
        raise BadAccountInput("; ".join(problems))
