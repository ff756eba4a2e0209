"""`invokeai-saas users …` on a real database: what it does, what it prints, and what it never shows."""

import argparse
import getpass
import json
import os
import subprocess
import sys

import pytest
from saas.people import PASSWORD, join, letters, rows

from invokeai_saas.accounts import commands, service
from invokeai_saas.accounts.errors import BadAccountInput, LastSuperAdmin, NoSuchAccount, NotSignedIn, WrongPassword
from invokeai_saas.accounts.identify import identify
from invokeai_saas.settings import load_settings

ANN = "ann@example.com"


@pytest.fixture
def settings(dsn, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", f"postgresql:///?{dsn.replace(' ', '&')}")
    return load_settings()


@pytest.fixture
def users(settings):
    """Runs `users …` as the command line does; returns the exit code."""

    def run(*words):
        parser = argparse.ArgumentParser()
        commands.add_commands(parser.add_subparsers())
        arguments = parser.parse_args(["users", *words])
        return arguments.func(arguments, settings)

    return run


def type_in(monkeypatch, *words):
    answers = iter(words)
    monkeypatch.setattr(getpass, "getpass", lambda prompt: next(answers))


def test_an_added_account_logs_in_with_the_printed_password(users, accounts, capsys):
    code = users("add", "Ann@Example.com", "--name", "Ann", "--role", "admin")
    printed = capsys.readouterr().out
    password = printed.rsplit(": ", 1)[1].strip()

    assert code == 0 and printed.count(password) == 1
    assert service.login(accounts, email=ANN, password=password)[0].role == "admin"


def test_a_typed_password_is_taken_and_not_printed(users, accounts, capsys, monkeypatch):
    type_in(monkeypatch, PASSWORD, PASSWORD)
    users("add", ANN, "--ask-password")

    assert PASSWORD not in capsys.readouterr().out
    assert service.login(accounts, email=ANN, password=PASSWORD)


def test_two_different_passwords_add_nobody(users, database, monkeypatch):
    type_in(monkeypatch, PASSWORD, PASSWORD + "x")
    with pytest.raises(BadAccountInput, match="twice"):
        users("add", ANN, "--ask-password")

    assert rows(database, "SELECT 1 FROM users WHERE user_id <> 'system'") == []


@pytest.mark.parametrize("verb", ["add", "invite", "change"])
def test_no_verb_takes_a_password_as_an_argument(users, verb):
    with pytest.raises(SystemExit):
        users(verb, ANN, "--password", PASSWORD)


@pytest.mark.parametrize("words", [
    ("add", "no address"), ("add", ANN, "--role", "root"), ("add", ANN, "--name", "a\nb"), ("change", ANN, "--close", "--open"), (),
])  # fmt: skip
def test_wrong_words_are_refused_before_the_database_is_opened(users, words, capsys):
    with pytest.raises(SystemExit) as refused:
        users(*words)

    assert refused.value.code == 2 and "error:" in capsys.readouterr().err


def test_an_invited_person_chooses_the_password_by_the_letters_link(users, accounts, database, capsys):
    users("invite", ANN, "--role", "admin")
    printed = capsys.readouterr().out
    (letter,) = letters(database, "invite", ANN)
    link = next(word for word in letter["text_body"].split() if "token=" in word)
    secret = link.partition("token=")[2]
    with pytest.raises(WrongPassword):
        service.login(accounts, email=ANN, password="")
    service.reset_password(accounts, secret=secret, password=PASSWORD)

    assert link in printed and "works once" in printed
    assert service.login(accounts, email=ANN, password=PASSWORD)[0].role == "admin"


def test_with_a_mail_server_the_link_of_an_invitation_is_not_printed(users, settings, database, monkeypatch, capsys):
    object.__setattr__(settings, "smtp_host", "mail.example")
    users("invite", ANN)

    assert "token=" not in capsys.readouterr().out
    assert len(letters(database, "invite", ANN)) == 1


def test_accounts_are_listed_in_three_forms_without_any_hash(users, accounts, capsys):
    join(accounts, ANN)
    printed = {}
    for form in ("table", "json", "csv"):
        users("list", "--format", form)
        printed[form] = capsys.readouterr().out

    (row,) = json.loads(printed["json"])
    assert (row["email"], row["role"], row["active"], row["verified"]) == (ANN, "user", True, True)
    assert all(ANN in text and "argon2" not in text for text in printed.values())
    assert "1 accounts" in printed["table"] and printed["csv"].startswith("email,")


def test_an_account_is_renamed_raised_closed_and_opened(users, accounts, database):
    ann = join(accounts, ANN)
    users("change", ANN, "--name", "Anna", "--role", "admin", "--close")
    with pytest.raises(NotSignedIn):
        identify(accounts, ann.tokens.access_token)
    users("change", ANN, "--open")
    account, _ = service.login(accounts, email=ANN, password=PASSWORD)

    assert (account.display_name, account.role) == ("Anna", "admin")
    assert [row["action"] for row in rows(database, "SELECT action FROM audit_log ORDER BY audit_id")] == [
        "user_renamed", "role_changed", "user_deactivated", "user_activated",
    ]  # fmt: skip


def test_a_new_password_is_printed_once_and_ends_the_logins(users, accounts, capsys):
    ann = join(accounts, ANN)
    users("change", ANN, "--new-password")
    password = capsys.readouterr().out.rsplit(": ", 1)[1].strip()

    with pytest.raises(NotSignedIn):
        identify(accounts, ann.tokens.access_token)
    assert service.login(accounts, email=ANN, password=password)


def test_a_typed_new_password_must_be_strong(users, accounts, monkeypatch):
    join(accounts, ANN)
    type_in(monkeypatch, "weak", "weak")

    with pytest.raises(BadAccountInput, match="password: expected"):
        users("change", ANN, "--ask-password")


def test_a_change_of_nothing_is_a_mistake(users, accounts):
    join(accounts, ANN)

    with pytest.raises(BadAccountInput, match="something to change"):
        users("change", ANN)


@pytest.mark.parametrize(("typed", "code", "left"), [("no", 1, 1), (ANN, 0, 0)])
def test_a_removal_asks_for_the_address(users, accounts, database, monkeypatch, typed, code, left):
    join(accounts, ANN)
    monkeypatch.setattr("builtins.input", lambda prompt: typed)

    assert users("remove", ANN) == code
    assert len(rows(database, "SELECT 1 FROM saas_users WHERE deleted_at IS NULL")) == left


def test_the_last_super_admin_and_missing_people_are_refused(users, accounts):
    join(accounts, ANN, role="super_admin")

    with pytest.raises(LastSuperAdmin):
        users("remove", ANN, "--yes")
    with pytest.raises(LastSuperAdmin):
        users("change", ANN, "--close")
    with pytest.raises(NoSuchAccount):
        users("remove", "nobody@example.com", "--yes")


def test_the_help_is_there_before_any_database(tmp_path):
    program = "import argparse; from invokeai_saas.accounts.commands import add_commands as a; p = argparse.ArgumentParser(); "
    program += "a(p.add_subparsers()); p.parse_args(['users', '--help'])"
    environment = {**os.environ, "DATABASE_URL": "postgresql://nowhere.invalid/x"}
    shown = subprocess.run([sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    assert shown.returncode == 0
    assert all(verb in shown.stdout for verb in ("add", "invite", "list", "change", "remove"))


def test_an_address_is_verified_without_a_letter(users, settings, accounts, database):
    service.signup(accounts, email=ANN, password=PASSWORD, name="Ann")

    assert users("change", ANN, "--verify") == 0
    assert service.login(accounts, email=ANN, password=PASSWORD)[0].email == ANN
    assert rows(database, "SELECT action FROM audit_log ORDER BY audit_id DESC LIMIT 1") == [{"action": "address_verified"}]


def test_a_question_that_nobody_answers_is_no_traceback(settings, accounts):
    join(accounts, ANN)
    command = [sys.executable, "-m", "invokeai_saas", "users", "remove", ANN]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=os.environ)

    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "error: expected an answer typed on a terminal" in done.stderr
