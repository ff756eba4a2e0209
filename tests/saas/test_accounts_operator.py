"""What replaces InvokeAI's invoke-user* commands: the operator needs no login, and is named in the log."""

import pytest
from saas.people import PASSWORD, join, rows

from invokeai_saas.accounts import operator, service
from invokeai_saas.accounts.errors import BadAccountInput, LastSuperAdmin, NoSuchAccount, NotSignedIn, WrongPassword
from invokeai_saas.accounts.identify import identify

ANN = "ann@example.com"


def test_an_added_account_logs_in_with_the_password_that_was_made(accounts):
    made = operator.add(accounts, email="Ann@Example.com", name="Ann", role="admin")

    assert made is not None
    assert service.login(accounts, email=ANN, password=made)[0].role == "admin"
    assert [account.email for account in operator.everybody(accounts)] == [ANN]


def test_a_given_password_is_not_printed_and_must_be_strong(accounts):
    with pytest.raises(BadAccountInput):
        operator.add(accounts, email=ANN, password="weak")
    assert operator.add(accounts, email=ANN, password=PASSWORD) is None


def test_a_taken_address_is_refused(accounts):
    join(accounts, ANN)

    with pytest.raises(BadAccountInput, match="no account has"):
        operator.add(accounts, email="ANN@example.com")


def test_a_new_password_ends_every_login(accounts):
    ann = join(accounts, ANN)
    password = operator.new_password(accounts, email=ANN)

    with pytest.raises(NotSignedIn):
        identify(accounts, ann.tokens.access_token)
    assert service.login(accounts, email=ANN, password=password)


def test_accounts_are_closed_opened_and_deleted(accounts):
    join(accounts, ANN)
    operator.set_active(accounts, email=ANN, active=False)
    with pytest.raises(WrongPassword):
        service.login(accounts, email=ANN, password=PASSWORD)
    operator.set_active(accounts, email=ANN, active=True)
    assert service.login(accounts, email=ANN, password=PASSWORD)
    operator.delete(accounts, email=ANN)

    with pytest.raises(NoSuchAccount):
        operator.delete(accounts, email=ANN)


def test_the_operator_cannot_lose_the_last_super_admin_either(accounts, database):
    join(accounts, ANN, role="super_admin")

    for lose in (
        lambda: operator.give_role(accounts, email=ANN, role="user"),
        lambda: operator.set_active(accounts, email=ANN, active=False),
        lambda: operator.delete(accounts, email=ANN),
    ):
        with pytest.raises(LastSuperAdmin):
            lose()
    operator.add(accounts, email="second@example.com", role="super_admin")
    operator.give_role(accounts, email=ANN, role="admin")

    assert rows(database, "SELECT actor_id, action FROM audit_log ORDER BY audit_id") == [
        {"actor_id": "operator", "action": "user_added"},
        {"actor_id": "operator", "action": "role_changed"},
    ]
