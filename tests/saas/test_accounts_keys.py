"""API keys: shown once, limited by scope and time, ended at once, and nobody else's business."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from saas.people import join, rows

from invokeai_saas.accounts import keys, service
from invokeai_saas.accounts.errors import BadAccountInput, NoSuchAccount, NotAllowed, NotSignedIn
from invokeai_saas.accounts.identify import identify


def new_key(accounts, person, **changes):
    values = {"name": "laptop", "scopes": ["read"], "lifetime": timedelta(days=1)} | changes
    return keys.create(accounts, person.principal, **values)


def test_a_key_says_whose_it_is_and_what_it_may(accounts, ann):
    row, text = new_key(accounts, ann)
    caller = identify(accounts, text)

    assert (caller.user_id, caller.kind, caller.scopes, caller.key_id) == (ann.user_id, "api_key", ("read",), row["key_id"])
    with pytest.raises(NotAllowed):
        caller.demand_scope("write")
    caller.demand_scope("read")


def test_only_the_hash_of_a_key_is_stored(accounts, database, ann):
    _, text = new_key(accounts, ann)
    prefix, secret = text.split(".")
    stored = str(rows(database, "SELECT * FROM api_keys"))

    assert prefix.startswith("iv_") and len(secret) == 43
    assert secret not in stored


def test_a_key_is_not_a_login(accounts, ann):
    caller = identify(accounts, new_key(accounts, ann, scopes=["read", "write"])[1])

    for forbidden in (
        lambda: keys.create(accounts, caller, name="more", scopes=["read"], lifetime=None),
        lambda: keys.revoke(accounts, caller, str(caller.key_id)),
        lambda: service.change_password(accounts, caller, old="", new=""),
        lambda: service.change_me(accounts, caller, {"display_name": "x"}),
        lambda: service.logout(accounts, caller),
        caller.demand_admin,
    ):
        with pytest.raises(NotAllowed):
            forbidden()


def test_a_revoked_key_is_refused_at_once_and_stays_listed(accounts, ann):
    row, text = new_key(accounts, ann)
    keys.revoke(accounts, ann.principal, row["key_id"])

    with pytest.raises(NotSignedIn):
        identify(accounts, text)
    assert [key["revoked_at"] is not None for key in keys.list_keys(accounts, ann.principal)] == [True]


def test_an_expired_key_is_refused(accounts, database, ann):
    _, text = new_key(accounts, ann)
    rows(database, "UPDATE api_keys SET expires_at = now() - interval '1 second'")

    with pytest.raises(NotSignedIn):
        identify(accounts, text)


def test_a_key_rests_with_its_account(accounts, database, ann):
    _, text = new_key(accounts, ann, lifetime=None)
    rows(database, "UPDATE users SET is_active = 0 WHERE user_id = %s", ann.user_id)

    with pytest.raises(NotSignedIn):
        identify(accounts, text)


def test_wrong_keys_are_refused(accounts, ann):
    _, text = new_key(accounts, ann)
    other = new_key(accounts, ann)[1]
    head, secret = text.split(".")

    for wrong in (f"{head}.{other.split('.')[1]}", head, f"{head}.", f"{head}.{secret}x", f"iv_{'0' * 16}.{secret}", "iv_", text + "\n"):
        with pytest.raises(NotSignedIn):
            identify(accounts, wrong)


def test_keys_of_others_and_missing_ones_answer_alike(accounts, ann):
    bob = join(accounts, "bob@example.com")
    row, text = new_key(accounts, bob)
    answers = []
    for key_id in (row["key_id"], "missing"):
        with pytest.raises(NoSuchAccount) as refused:
            keys.revoke(accounts, ann.principal, key_id)
        answers.append(str(refused.value))

    assert answers[0] == answers[1]
    assert keys.list_keys(accounts, ann.principal) == []
    assert identify(accounts, text).user_id == bob.user_id


def test_use_is_recorded_at_most_once_a_minute(accounts, database, ann):
    _, text = new_key(accounts, ann)
    seen = []
    for _ in range(2):
        identify(accounts, text)
        seen.append(rows(database, "SELECT last_used_at FROM api_keys")[0]["last_used_at"])

    assert seen[0] is not None and seen[0] == seen[1]


@pytest.mark.parametrize("wrong", [
    {"name": ""}, {"name": "x" * 101}, {"scopes": []}, {"scopes": ["admin"]}, {"lifetime": timedelta(0)},
    {"lifetime": timedelta(days=9999)},
])  # fmt: skip
def test_impossible_keys_are_refused(accounts, ann, wrong):
    with pytest.raises(BadAccountInput):
        new_key(accounts, ann, **wrong)


def test_racing_for_the_last_key_gives_one(accounts, ann, monkeypatch):
    monkeypatch.setattr(keys, "MAX_LIVE_KEYS", 3)

    def create(_):
        try:
            return new_key(accounts, ann)
        except BadAccountInput:
            return None

    with ThreadPoolExecutor(4) as pool:
        made = [key for key in pool.map(create, range(8)) if key]

    assert len(made) == 3
