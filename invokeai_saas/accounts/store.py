"""Rows of accounts in, Account out: the reads and small writes that several verbs share. All of them run inside a caller's transaction."""

import hashlib
import hmac
import secrets
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg.rows import DictRow

from invokeai_saas.accounts.model import Account, Accounts
from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase

Cursor = psycopg.Cursor[DictRow]
COLUMNS = """
SELECT users.user_id, email, display_name, password_hash, is_admin, is_active, created_at, updated_at, last_login_at, token_epoch,
       role, avatar_url, email_verified_at, access_ended_at, deleted_at
FROM users JOIN saas_users USING (user_id)
"""
BY_ID = COLUMNS + " WHERE users.user_id = %s"
# The account of a token and whether its login still stands, in one question: every request asks it.
BY_LOGIN = COLUMNS.replace(
    "SELECT ",
    """SELECT EXISTS (SELECT 1 FROM refresh_families
               WHERE family_id = %(family_id)s AND user_id = users.user_id AND revoked_at IS NULL) AS login_stands, """,
    1,
) + " WHERE users.user_id = %(user_id)s"
BY_EMAIL = COLUMNS + " WHERE lower(email) = lower(%s)"
BY_SUBJECT = COLUMNS + " WHERE cognito_sub = %s"
# Whoever changes an account holds its row first, so that changes and logins of one account follow each other.
LOCK = "SELECT 1 FROM users WHERE user_id = %s FOR UPDATE"
# Made by whichever process asks first; InvokeAI reads the same row.
ENSURE_SECRET = "INSERT INTO app_settings (key, value) VALUES (%s, %s) ON CONFLICT (key) DO NOTHING"
READ_SECRET = "SELECT value FROM app_settings WHERE key = %s"
SIGNING, ADDRESS_MARKS = "jwt_secret", "saas_secret_address_marks"
_kept: "WeakKeyDictionary[PostgresDatabase, str]" = WeakKeyDictionary()
MARK_VERIFIED = "UPDATE saas_users SET email_verified_at = COALESCE(email_verified_at, clock_timestamp()) WHERE user_id = %s"
MARK_ADDRESS = "INSERT INTO address_marks (mark) VALUES (%s) ON CONFLICT DO NOTHING"


def by_id(cursor: Cursor, user_id: str, *, lock: bool = False) -> Account | None:
    """The account, locked until the end of the transaction when asked."""
    if lock:
        cursor.execute(LOCK, (user_id,))
    return _account(cursor.execute(BY_ID, (user_id,)).fetchone())


def by_login(cursor: Cursor, user_id: str, family_id: str | None) -> tuple[Account | None, bool]:
    """The account, and whether the login of this family is still open; False without a family."""
    row = cursor.execute(BY_LOGIN.encode(), {"user_id": user_id, "family_id": family_id}).fetchone()
    return (None, False) if row is None else (_account({name: row[name] for name in row if name != "login_stands"}), row["login_stands"])


def by_email(cursor: Cursor, email: str) -> Account | None:
    """The account with this address, however it is capitalised."""
    return _account(cursor.execute(BY_EMAIL, (email,)).fetchone())


def by_subject(cursor: Cursor, subject: str) -> Account | None:
    """The account that an identity provider's subject belongs to."""
    return _account(cursor.execute(BY_SUBJECT, (subject,)).fetchone())


def signing_secret(cursor: Cursor) -> str:
    """The key that InvokeAI and we sign access tokens with."""
    return _secret(cursor, SIGNING)


def kept_signing_secret(database: PostgresDatabase) -> str:
    """The same, read once per process as InvokeAI does: every request proves a token with it."""
    kept = _kept.get(database)
    if kept is None:
        with tenancy.as_system("the signing secret is nobody's"), database.postgres() as cursor:
            kept = _kept[database] = signing_secret(cursor)
    return kept


def mark_address(cursor: Cursor, email: str) -> bool:
    """Remember a verified address beyond the account's deletion, as a keyed hash; returns whether it is new here."""
    cursor.execute(MARK_ADDRESS, (keyed_mark(cursor, email.lower()),))
    return cursor.rowcount == 1


def prove(accounts: Accounts, cursor: Cursor, account: Account) -> None:
    """Take the address as its owner's, whoever says so: a letter's link, an admin, the operator. The first time a trial begins."""
    cursor.execute(MARK_VERIFIED, (account.user_id,))
    if account.email_verified_at is None:
        accounts.verified(cursor, by_id(cursor, account.user_id) or account)


def keyed_mark(cursor: Cursor, text: str) -> str:
    """What may be kept of an address for good: nobody without this server's key finds out whose it was."""
    return hmac.new(_secret(cursor, ADDRESS_MARKS).encode(), text.encode(), "sha256").hexdigest()


def sha256(secret: str) -> str:
    """What is stored of a secret of 256 random bits: no salt or stretching needed."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _account(row: dict[str, Any] | None) -> Account | None:
    return None if row is None else Account(**row)


def _secret(cursor: Cursor, name: str) -> str:
    row = cursor.execute(READ_SECRET, (name,)).fetchone()
    if row is None:
        cursor.execute(ENSURE_SECRET, (name, secrets.token_urlsafe(48)))
        row = cursor.execute(READ_SECRET, (name,)).fetchone()
    assert row is not None
    return str(row["value"])
