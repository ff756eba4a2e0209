"""Access tokens, refresh tokens and their families, and the door that every request comes through."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import jwt
import pytest
from saas.people import PASSWORD, rows

from invokeai_saas.accounts import keys, service, store, tokens
from invokeai_saas.accounts.errors import NotSignedIn
from invokeai_saas.accounts.identify import identify, internal_token
from invokeai_saas.db import tenancy

ANN = "ann@example.com"


def secret_of(database):
    with tenancy.as_system("a test signs"), database.postgres() as cursor:
        return store.signing_secret(cursor)


def test_invokeai_reads_our_access_tokens(accounts, database, ann):
    from invokeai.app.services.auth import token_service

    token_service.set_jwt_secret(secret_of(database))
    data = token_service.verify_token(ann.tokens.access_token)

    assert data is not None
    assert (data.user_id, data.email, data.is_admin, data.token_epoch) == (ann.user_id, ANN, False, 0)
    assert 880 < (token_service.get_token_remaining_seconds(ann.tokens.access_token) or 0) <= 900


def test_access_lasts_15_minutes_and_refresh_30_days(database, ann):
    claims = jwt.decode(ann.tokens.access_token, options={"verify_signature": False})
    (row,) = rows(database, "SELECT expires_at - issued_at AS lifetime FROM refresh_tokens")

    assert claims["exp"] - claims["iat"] == 15 * 60
    assert timedelta(days=30) - timedelta(seconds=1) < row["lifetime"] <= timedelta(days=30, seconds=1)


def test_a_refresh_gives_the_next_pair_and_spends_the_last(accounts, ann):
    _, second = tokens.refresh(accounts, ann.tokens.refresh_token)
    account, third = tokens.refresh(accounts, second.refresh_token)

    assert account.user_id == ann.user_id
    assert len({ann.tokens.refresh_token, second.refresh_token, third.refresh_token}) == 3
    assert identify(accounts, third.access_token).user_id == ann.user_id


def test_a_refresh_token_that_comes_again_ends_its_login_and_is_written_down(accounts, database, ann):
    _, other_login = service.login(accounts, email=ANN, password=PASSWORD)
    _, second = tokens.refresh(accounts, ann.tokens.refresh_token)

    with pytest.raises(NotSignedIn):
        tokens.refresh(accounts, ann.tokens.refresh_token)
    with pytest.raises(NotSignedIn):
        tokens.refresh(accounts, second.refresh_token)
    with pytest.raises(NotSignedIn):
        identify(accounts, second.access_token)
    assert tokens.refresh(accounts, other_login.refresh_token)
    assert rows(database, "SELECT action, target_id FROM audit_log") == [{"action": "refresh_token_reused", "target_id": ann.user_id}]


def test_of_refreshes_of_one_token_at_once_one_wins_and_the_family_dies(accounts, database, ann):
    start = threading.Barrier(4)

    def refresh(_):
        start.wait()
        try:
            return tokens.refresh(accounts, ann.tokens.refresh_token)[1]
        except NotSignedIn:
            return None

    with ThreadPoolExecutor(4) as pool:
        won = [issued for issued in pool.map(refresh, range(4)) if issued]

    assert len(won) == 1
    assert rows(database, "SELECT revoked_because FROM refresh_families") == [{"revoked_because": "reused"}]
    for issued in won:
        with pytest.raises(NotSignedIn):
            identify(accounts, issued.access_token)


def test_at_most_one_token_of_a_family_is_unused_by_a_named_rule(database, ann):
    with pytest.raises(Exception, match="refresh_tokens_one_unused"):
        rows(
            database,
            "INSERT INTO refresh_tokens (token_hash, family_id, user_id, expires_at)"
            " SELECT repeat('a', 64), family_id, user_id, now() FROM refresh_families",
        )


def test_expired_and_invented_refresh_tokens_are_refused(accounts, database, ann):
    rows(database, "UPDATE refresh_tokens SET expires_at = now() - interval '1 second'")

    for token in (ann.tokens.refresh_token, "invented", "", "\ud800"):
        with pytest.raises(NotSignedIn):
            tokens.refresh(accounts, token)


def test_a_logout_ends_this_login_at_once_and_no_other(accounts, ann):
    _, other = service.login(accounts, email=ANN, password=PASSWORD)
    service.logout(accounts, ann.principal)

    with pytest.raises(NotSignedIn):
        identify(accounts, ann.tokens.access_token)
    with pytest.raises(NotSignedIn):
        tokens.refresh(accounts, ann.tokens.refresh_token)
    assert identify(accounts, other.access_token).user_id == ann.user_id


@pytest.mark.parametrize("column", ["is_active = 0", "token_epoch = token_epoch + 1"])
def test_the_database_decides_on_every_request(accounts, database, ann, column):
    rows(database, f"UPDATE users SET {column} WHERE user_id = %s", ann.user_id)

    with pytest.raises(NotSignedIn):
        identify(accounts, ann.tokens.access_token)


def test_a_deactivated_account_gets_no_new_tokens(accounts, database, ann):
    rows(database, "UPDATE users SET is_active = 0 WHERE user_id = %s", ann.user_id)

    with pytest.raises(NotSignedIn):
        tokens.refresh(accounts, ann.tokens.refresh_token)


def test_forged_access_tokens_are_refused(accounts, database, ann):
    secret, now = secret_of(database), int(time.time())
    claims = {"user_id": ann.user_id, "email": ANN, "is_admin": True, "token_epoch": 0, "exp": now + 600}
    forged = [
        jwt.encode(claims, "x" * 40, algorithm="HS256"),
        jwt.encode(claims, "", algorithm="none"),
        jwt.encode(claims, secret, algorithm="HS512"),
        jwt.encode({**claims, "exp": now - 1}, secret, algorithm="HS256"),
        jwt.encode({name: claims[name] for name in claims if name != "exp"}, secret, algorithm="HS256"),
        jwt.encode({**claims, "user_id": "nobody"}, secret, algorithm="HS256"),
        jwt.encode({**claims, "sid": "00000000-0000-0000-0000-000000000000"}, secret, algorithm="HS256"),
        ann.tokens.access_token[:-2],
        "a.b.c", "", None,
    ]  # fmt: skip

    for token in forged:
        with pytest.raises(NotSignedIn):
            identify(accounts, token)


def test_the_role_is_the_databases_and_not_the_tokens(accounts, database, ann):
    family = ann.principal.family_id
    claims = {"user_id": ann.user_id, "email": ANN, "is_admin": True, "token_epoch": 0, "exp": int(time.time()) + 600, "sid": family}
    token = jwt.encode(claims, secret_of(database), algorithm="HS256")

    assert identify(accounts, token).role == "user"


def test_a_token_that_invokeai_made_without_a_login_is_refused(accounts, database, ann):
    """Its sliding window hands out one-day tokens after every change, which no logout would end."""
    from invokeai.app.services.auth import token_service

    token_service.set_jwt_secret(secret_of(database))
    data = token_service.TokenData(user_id=ann.user_id, email=ANN, is_admin=False)
    token = token_service.create_access_token(data)

    assert token_service.verify_token(token) is not None
    with pytest.raises(NotSignedIn):
        identify(accounts, token)


def test_signing_out_everywhere_ends_every_login_and_no_key(accounts, ann):
    heard = []
    _, other = service.login(accounts, email=ANN, password=PASSWORD)
    _, key = keys.create(accounts, ann.principal, name="k", scopes=["read"], lifetime=None)
    service.logout_everywhere(replace(accounts, access_changed=heard.append), ann.principal)

    for token in (ann.tokens, other):
        with pytest.raises(NotSignedIn):
            identify(accounts, token.access_token)
        with pytest.raises(NotSignedIn):
            tokens.refresh(accounts, token.refresh_token)
    assert identify(accounts, key).user_id == ann.user_id
    assert [(change.is_active, change.token_epoch) for change in heard] == [(True, 1)]


def test_an_internal_token_stands_for_its_credential_and_no_more(accounts, ann):
    limited = replace(ann.principal, kind="api_key", scopes=("read",))
    stands_for = identify(accounts, internal_token(accounts, limited))

    assert (stands_for.kind, stands_for.scopes, stands_for.family_id) == ("api_key", ("read",), ann.principal.family_id)


def test_the_secret_is_made_once_and_hidden_from_tenants(accounts, database, ann):
    with ThreadPoolExecutor(4) as pool:
        secrets = set(pool.map(lambda _: secret_of(database), range(8)))
    with tenancy.as_user(ann.user_id), database.postgres() as cursor:
        seen = cursor.execute("SELECT key FROM app_settings").fetchall()

    assert len(secrets) == 1
    assert not {row["key"] for row in seen} & {"jwt_secret", "saas_secret_address_marks"}


def test_spent_tokens_are_remembered_until_they_would_have_expired(accounts, database, ann):
    tokens.refresh(accounts, ann.tokens.refresh_token)
    tokens.forget_expired(accounts)
    kept = rows(database, "SELECT count(*) AS n FROM refresh_tokens")
    rows(database, "UPDATE refresh_tokens SET expires_at = now() - interval '2 days'")
    rows(database, "UPDATE refresh_families SET created_at = now() - interval '40 days'")
    tokens.forget_expired(accounts)

    assert kept == [{"n": 2}]
    assert rows(database, "SELECT 1 FROM refresh_families") == []
