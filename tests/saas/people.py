"""People for the tests of accounts: signed up, verified by the letter they got, with the role that a test wants."""

import re
from dataclasses import dataclass
from typing import Any

from invokeai_saas.accounts import service
from invokeai_saas.accounts.identify import identify
from invokeai_saas.accounts.model import Account, Accounts, Principal
from invokeai_saas.accounts.tokens import Tokens
from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase

PASSWORD = "Correct1horse"
OTHER_PASSWORD = "Battery2staple"


@dataclass
class Person:
    """An account, its first tokens, and who its bearer is."""

    accounts: Accounts
    account: Account
    tokens: Tokens

    @property
    def user_id(self) -> str:
        return self.account.user_id

    @property
    def principal(self) -> Principal:
        return identify(self.accounts, self.tokens.access_token)


def rows(database: PostgresDatabase, statement: str, *values: Any) -> list[dict[str, Any]]:
    """What the system sees, or does."""
    with tenancy.as_system("a test looks"), database.postgres() as cursor:
        cursor.execute(statement.encode(), values)
        return cursor.fetchall() if cursor.description else []


def letters(database: PostgresDatabase, kind: str, email: str) -> list[dict[str, Any]]:
    """Letters of a kind that wait for an address, oldest first."""
    return rows(database, "SELECT * FROM mail_outbox WHERE kind = %s AND to_address = %s ORDER BY mail_id", kind, email)


def secret_of(letter: dict[str, Any]) -> str:
    """The token in a letter's link."""
    match = re.search(r"token=([\w-]+)", letter["text_body"])
    assert match
    return match[1]


def join(accounts: Accounts, email: str, *, role: str = "user", password: str = PASSWORD) -> Person:
    """Sign up, follow the link, get a role."""
    service.signup(accounts, email=email, password=password, name=email.partition("@")[0].title())
    done = service.verify_email(accounts, secret_of(letters(accounts.database, "verify", email)[-1]))
    if role != "user":
        rows(accounts.database, "UPDATE saas_users SET role = %s WHERE user_id = %s", role, done.account.user_id)
    return Person(accounts, done.account, done.tokens)
