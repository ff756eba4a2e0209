"""`invokeai-saas users …`: operator.py on the command line, in place of InvokeAI's invoke-useradd, -userlist, -usermod and -userdel.

A password is never an argument, where the shell's history and the process list would keep it: it is typed, or made and printed once.
Each command takes (arguments, settings) and returns an exit code; what is wrong raises a SaasError, which the caller prints.
"""

import argparse
import csv
import getpass
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import TypeAdapter, ValidationError

from invokeai_saas.accounts import forms, operator
from invokeai_saas.accounts.errors import BadAccountInput
from invokeai_saas.accounts.model import ROLES, Account, Accounts
from invokeai_saas.accounts.setup import accounts_of
from invokeai_saas.db.opening import open_database
from invokeai_saas.settings import Settings

OK, REFUSED = 0, 1
COLUMNS = ("email", "display_name", "role", "active", "verified", "last_login_at", "user_id")
EMAIL: TypeAdapter[str] = TypeAdapter(forms.Email)
NAME: TypeAdapter[str] = TypeAdapter(forms.Name)

Command = Callable[[Accounts, argparse.Namespace, Settings], int]


def add_commands(subparsers: Any) -> None:
    """Hang `users` and its verbs on a parser; each sets `func`, which takes (arguments, settings) and returns an exit code."""
    words = "add, list, change and remove accounts"
    users = subparsers.add_parser("users", help=words, description=f"{words.capitalize()}.")
    verbs = users.add_subparsers(dest="verb", metavar="VERB", required=True)
    make = _verb(verbs, "add", _add, "make a verified account and print its password, unless one is typed")
    invite = _verb(verbs, "invite", _invite, "make an account and send its owner a letter to choose a password")
    for parser in (make, invite):
        parser.add_argument("email", type=_email)
        parser.add_argument("--name", type=_name)
        parser.add_argument("--role", choices=ROLES, default="user")
    make.add_argument("--ask-password", action="store_true", help="type the password instead of having one made")
    listing = _verb(verbs, "list", _list, "show every account")
    listing.add_argument("--format", choices=("table", "json", "csv"), default="table")
    _add_change(verbs)
    remove = _verb(verbs, "remove", _remove, "erase an account and everything in it, for good")
    remove.add_argument("email", type=_email)
    remove.add_argument("--yes", action="store_true", help="do not ask")


def _add_change(verbs: Any) -> None:
    change = _verb(verbs, "change", _change, "change a name, a role, a password; close or open an account")
    change.add_argument("email", type=_email)
    change.add_argument("--name", type=_name)
    change.add_argument("--role", choices=ROLES)
    change.add_argument("--verify", action="store_true", help="let it in without the letter's link: the address is theirs, you say")
    state = change.add_mutually_exclusive_group()
    state.add_argument("--close", action="store_true", help="end its logins and jobs; its data stays")
    state.add_argument("--open", action="store_true", help="let it in again")
    password = change.add_mutually_exclusive_group()
    password.add_argument("--new-password", action="store_true", help="make a password and print it")
    password.add_argument("--ask-password", action="store_true", help="type a password")


def _verb(verbs: Any, name: str, run: Command, words: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")

    def func(arguments: argparse.Namespace, settings: Settings) -> int:
        with _accounts(settings) as accounts:
            return run(accounts, arguments, settings)

    parser.set_defaults(func=func)
    return parser


@contextmanager
def _accounts(settings: Settings) -> Iterator[Accounts]:
    database = open_database(settings, migrate_first=False)
    try:
        # Files follow their rows by triggers; running servers hear of closed accounts at their next look at the database.
        yield accounts_of(settings, database)
    finally:
        database.close()


def _add(accounts: Accounts, arguments: argparse.Namespace, _settings: Settings) -> int:
    typed = _typed_password() if arguments.ask_password else None
    made = operator.add(accounts, email=arguments.email, name=arguments.name, role=arguments.role, password=typed)
    _say(f"Added {arguments.email} as {arguments.role}.", made)
    return OK


def _invite(accounts: Accounts, arguments: argparse.Namespace, settings: Settings) -> int:
    link = operator.invite(accounts, email=arguments.email, name=arguments.name, role=arguments.role)
    print(f"Invited {arguments.email} as {arguments.role}.")
    if settings.smtp_host is None:
        print(f"No mail server is set (SAAS_SMTP_HOST). Hand over this link, it works once: {link}")
    return OK


def _list(accounts: Accounts, arguments: argparse.Namespace, _settings: Settings) -> int:
    shown = [_row(account) for account in operator.everybody(accounts)]
    if arguments.format == "json":
        print(json.dumps(shown, indent=2, ensure_ascii=False))
    elif arguments.format == "csv":
        writer = csv.DictWriter(sys.stdout, COLUMNS)
        writer.writeheader()
        writer.writerows(shown)
    else:
        _print_table(shown)
    return OK


def _change(accounts: Accounts, arguments: argparse.Namespace, _settings: Settings) -> int:
    names = ("name", "role", "verify", "close", "open", "new_password", "ask_password")
    if not any(getattr(arguments, name) for name in names):
        raise BadAccountInput(f"expected something to change: {', '.join('--' + name.replace('_', '-') for name in names)}")
    email, made = arguments.email, None
    if arguments.name:
        operator.rename(accounts, email=email, name=arguments.name)
    if arguments.role:
        operator.give_role(accounts, email=email, role=arguments.role)
    if arguments.verify:
        operator.verify(accounts, email=email)
    if arguments.close or arguments.open:
        operator.set_active(accounts, email=email, active=arguments.open)
    if arguments.new_password or arguments.ask_password:
        made = operator.new_password(accounts, email=email, password=_typed_password() if arguments.ask_password else None)
    _say(f"Changed {email}.", made)
    return OK


def _remove(accounts: Accounts, arguments: argparse.Namespace, _settings: Settings) -> int:
    if not arguments.yes and input(f"Type {arguments.email} to erase it for good: ").strip().lower() != arguments.email:
        print("Nothing was removed.")
        return REFUSED
    operator.delete(accounts, email=arguments.email)
    print(f"Removed {arguments.email}.")
    return OK


def _typed_password() -> str:
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise BadAccountInput("password: expected the same text twice")
    return password


def _say(words: str, made: str | None) -> None:
    print(words)
    if made is not None:
        print(f"Password (shown this once): {made}")


def _row(account: Account) -> dict[str, Any]:
    values = {"active": bool(account.is_active), "verified": account.email_verified_at is not None}
    return {name: values.get(name, getattr(account, name, None)) for name in COLUMNS}


def _print_table(shown: list[dict[str, Any]]) -> None:
    lines = [list(COLUMNS), *([_cell(row[name]) for name in COLUMNS] for row in shown)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print(f"{len(shown)} accounts")


def _cell(value: Any) -> str:
    return {True: "yes", False: "no", None: "-"}.get(value, str(value)) if isinstance(value, bool | None) else str(value)


def _email(text: str) -> str:
    return _checked(EMAIL, text, "an address such as ann@example.com")


def _name(text: str) -> str:
    return _checked(NAME, text, "a name of 1 to 100 printable characters")


def _checked(adapter: TypeAdapter[str], text: str, expected: str) -> str:
    try:
        return str(adapter.validate_python(text))
    except ValidationError:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}") from None
