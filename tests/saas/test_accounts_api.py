"""The routes, as InvokeAI's interface and as strangers call them."""

import importlib.util
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from psycopg.conninfo import make_conninfo
from saas.people import OTHER_PASSWORD, PASSWORD, join, letters, rows, secret_of

from invokeai_saas.accounts import api
from invokeai_saas.accounts.admin_api import admin_router
from invokeai_saas.accounts.model import Accounts
from invokeai_saas.accounts.rate_limits import DEFAULT_RULES, RateLimiter
from invokeai_saas.db.database import PostgresDatabase

ANN, BOB = "ann@example.com", "bob@example.com"
INVOKEAIS_USER = {
    "user_id", "email", "display_name", "is_admin", "is_active", "created_at", "updated_at", "last_login_at", "token_epoch",
}  # fmt: skip


@pytest.fixture
def limiter():
    return RateLimiter()


@pytest.fixture
def client(accounts, limiter):
    app = FastAPI()
    api.install(app, api.Web(accounts, limiter))
    for router in (api.auth_router, api.keys_router, admin_router):
        app.include_router(router, prefix="/api")
    with TestClient(app, base_url="https://invoke.example") as opened:
        yield opened


def as_bearer(token):
    return {"Authorization": f"Bearer {token}"}


def post(client, path, bearer=None, **body):
    return client.post(f"/api/v1/{path}", json=body, headers=as_bearer(bearer) if bearer else {})


def test_from_signup_to_a_picture_cookie(client, database):
    began = post(client, "auth/signup", email="Ann@Example.com", password=PASSWORD, name="Ann")
    finished = post(client, "auth/verify-email", token=secret_of(letters(database, "verify", ANN)[0]))
    answer = post(client, "auth/login", email=ANN, password=PASSWORD, remember_me=True)
    session = answer.json()

    assert (began.status_code, began.json()) == (202, {"message": api.LETTER_SENT, "user": None, "tokens": None})
    assert finished.status_code == 200 and finished.json()["first_time"] is True
    assert INVOKEAIS_USER <= set(session["user"]) and {"role", "email_verified", "avatar_url"} <= set(session["user"])
    assert session["token"] == session["access_token"] and session["expires_in"] == 900
    cookie, _ = answer.headers.get_list("set-cookie")
    assert cookie.startswith(f"{api.MEDIA_COOKIE}={session['token']}")
    assert all(part in cookie for part in ("HttpOnly", "Secure", "Path=/api/v1;", "SameSite=lax", "Max-Age=900"))


def test_invokeais_interface_finds_the_fields_that_it_reads():
    from invokeai.app.services.users.users_common import UserDTO

    folder = Path(next(iter(importlib.util.find_spec("invokeai").submodule_search_locations))) / "app" / "api"

    assert set(UserDTO.model_fields) == INVOKEAIS_USER
    assert f'MEDIA_TOKEN_COOKIE = "{api.MEDIA_COOKIE}"' in (folder / "auth_dependencies.py").read_text()
    routes = (folder / "routers" / "auth.py").read_text()
    for method, path in api.REPLACED:
        assert f'@auth_router.{method.lower()}("{path.removeprefix("/v1/auth")}"' in routes, path


def test_answers_are_the_same_for_known_and_unknown_addresses(client, accounts):
    join(accounts, ANN)
    for path, body in (
        ("auth/signup", {"password": PASSWORD}),
        ("auth/forgot-password", {}),
        ("auth/login", {"password": OTHER_PASSWORD}),
    ):
        known, unknown = (post(client, path, email=email, **body) for email in (ANN, BOB))
        assert (known.status_code, known.content) == (unknown.status_code, unknown.content), path
        assert {n: v for n, v in known.headers.items() if n != "date"} == {n: v for n, v in unknown.headers.items() if n != "date"}


def test_me_is_read_and_changed(client, accounts):
    token = join(accounts, ANN).tokens.access_token
    changed = client.patch("/api/v1/auth/me", json={"name": "Anna", "avatar_url": "https://a.example/b.png"}, headers=as_bearer(token))
    read = client.get("/api/v1/auth/me", headers=as_bearer(token))

    assert changed.json() == {**read.json(), "updated_at": changed.json()["updated_at"]}
    assert (read.json()["display_name"], read.json()["avatar_url"]) == ("Anna", "https://a.example/b.png")


def test_a_changed_password_hands_over_the_next_tokens(client, accounts):
    token = join(accounts, ANN).tokens.access_token
    body = {"current_password": PASSWORD, "new_password": OTHER_PASSWORD}
    answer = client.patch("/api/v1/auth/me", json=body, headers=as_bearer(token))
    old, new = (client.get("/api/v1/auth/me", headers=as_bearer(t)) for t in (token, answer.headers["X-Refreshed-Token"]))

    assert (old.status_code, new.status_code) == (401, 200)
    assert post(client, "auth/refresh", refresh_token=answer.headers["X-Refresh-Token"]).status_code == 200


def test_a_wrong_current_password_is_no_401_which_would_log_the_interface_out(client, accounts):
    token = join(accounts, ANN).tokens.access_token
    body = {"current_password": OTHER_PASSWORD, "new_password": OTHER_PASSWORD}

    assert client.patch("/api/v1/auth/me", json=body, headers=as_bearer(token)).status_code == 400


@pytest.mark.parametrize("field", ["email", "role", "is_admin", "is_active", "user_id", "email_verified", "token_epoch", "cognito_sub"])
def test_nobody_changes_what_is_not_theirs_to_change(client, accounts, field):
    token = join(accounts, ANN).tokens.access_token

    assert client.patch("/api/v1/auth/me", json={field: "super_admin"}, headers=as_bearer(token)).status_code == 422


def test_refresh_and_logout(client, accounts):
    ann = join(accounts, ANN)
    second = post(client, "auth/refresh", refresh_token=ann.tokens.refresh_token).json()
    out = post(client, "auth/logout", second["access_token"])
    after = post(client, "auth/refresh", refresh_token=second["refresh_token"])

    assert out.json()["success"] is True and f'{api.MEDIA_COOKIE}=""' in out.headers["set-cookie"]
    assert (after.status_code, after.headers["WWW-Authenticate"]) == (401, "Bearer")


def test_forgot_and_reset(client, accounts, database):
    join(accounts, ANN)
    post(client, "auth/forgot-password", email=ANN)
    secret = secret_of(letters(database, "reset", ANN)[0])
    weak = post(client, "auth/reset-password", token=secret, password="weak")
    done = post(client, "auth/reset-password", token=secret, password=OTHER_PASSWORD)
    twice = post(client, "auth/reset-password", token=secret, password=OTHER_PASSWORD)

    assert (weak.status_code, done.status_code, twice.status_code) == (400, 200, 400)
    assert post(client, "auth/login", email=ANN, password=OTHER_PASSWORD).status_code == 200


def test_keys_are_made_used_and_revoked(client, accounts):
    token = join(accounts, ANN).tokens.access_token
    made = post(client, "auth/api-keys", token, name="laptop", scopes=["read"], expires_in_days=7)
    key = made.json()["key"]
    listed = client.get("/api/v1/auth/api-keys", headers=as_bearer(key)).json()
    by_key = post(client, "auth/api-keys", key, name="more")
    gone = client.delete(f"/api/v1/auth/api-keys/{made.json()['key_id']}", headers=as_bearer(token))

    assert made.status_code == 201 and [set(row) & {"key", "key_hash", "user_id"} for row in listed] == [set()]
    assert (by_key.status_code, gone.status_code) == (403, 200)
    assert client.get("/api/v1/auth/me", headers=as_bearer(key)).status_code == 401


def test_admins_use_their_routes(client, accounts):
    ann, root = join(accounts, ANN), join(accounts, "root@example.com", role="super_admin")
    token = root.tokens.access_token
    listed = client.get("/api/v1/admin/users", params={"search": "ann"}, headers=as_bearer(token)).json()
    patched = client.patch(f"/api/v1/admin/users/{ann.user_id}", json={"role": "admin"}, headers=as_bearer(token)).json()
    ended = post(client, f"admin/users/{ann.user_id}/deactivate", token)
    seen = client.get(f"/api/v1/admin/users/{ann.user_id}", headers=as_bearer(token)).json()
    log = client.get("/api/v1/admin/audit-log", headers=as_bearer(token)).json()
    removed = client.delete(f"/api/v1/admin/users/{ann.user_id}", headers=as_bearer(token))

    assert (listed["total"], listed["items"][0]["email"], listed["pages"]) == (1, ANN, 1)
    assert (patched["role"], ended.status_code, seen["is_active"], seen["logins"]) == ("admin", 200, False, 0)
    assert [line["action"] for line in log] == ["user_viewed", "user_deactivated", "role_changed"]
    assert removed.status_code == 200
    assert client.get(f"/api/v1/admin/users/{ann.user_id}", headers=as_bearer(token)).status_code == 404


def requests(client):
    """Every route that wants a caller, with a body that would do."""
    bodies = {"/api/v1/auth/me": {}, "/api/v1/auth/api-keys": {"name": "n"}}
    public = {"signup", "verify-email", "login", "refresh", "forgot-password", "reset-password"}
    for path, verbs in client.app.openapi()["paths"].items():
        if path.rsplit("/", 1)[1] not in public:
            for verb in verbs:
                yield verb.upper(), path.replace("{user_id}", "someone").replace("{key_id}", "some"), bodies.get(path, {})


def test_no_route_answers_without_a_valid_credential(client, accounts, database):
    ann = join(accounts, ANN)
    rows(database, "UPDATE refresh_families SET revoked_at = now(), revoked_because = 'logout'")
    wanted = list(requests(client))

    assert len(wanted) == 15
    for method, path, body in wanted:
        for headers in ({}, as_bearer("x"), as_bearer("iv_x.y"), as_bearer(ann.tokens.access_token), {"Authorization": "Basic eDp5"}):
            assert client.request(method, path, json=body, headers=headers).status_code == 401, (method, path, headers)


def test_admin_routes_answer_users_and_keys_alike_with_403(client, accounts):
    ann, root = join(accounts, ANN), join(accounts, "root@example.com", role="super_admin")
    key = post(client, "auth/api-keys", root.tokens.access_token, name="n", scopes=["read", "write"]).json()["key"]
    for method, path, body in requests(client):
        if "/admin/" in path:
            for credential in (ann.tokens.access_token, key):
                assert client.request(method, path, json=body, headers=as_bearer(credential)).status_code == 403, path


@pytest.mark.parametrize("body", [
    {"email": "no address", "password": PASSWORD}, {"email": ANN}, {"email": ANN, "password": PASSWORD, "role": "admin"},
    {"email": ANN, "password": PASSWORD, "name": "nul\0"}, {"email": "a" * 300 + "@example.com", "password": PASSWORD},
    {"email": ANN, "password": PASSWORD, "name": "\ud800"}, {"email": "ann\n@example.com", "password": PASSWORD},
    {"email": ANN, "password": ["x"]},
])  # fmt: skip
def test_odd_signups_are_refused_and_nothing_is_written(client, database, body):
    import json

    answer = client.post("/api/v1/auth/signup", content=json.dumps(body), headers={"Content-Type": "application/json"})

    assert answer.status_code == 422
    assert PASSWORD not in answer.text
    assert rows(database, "SELECT 1 FROM mail_outbox") == []


@pytest.mark.parametrize("path", [
    "users/%00", "users/a%2Fb", "users/" + "x" * 99, "users?page=0", "users?limit=1000", "audit-log?target_id=%00",
])  # fmt: skip
def test_odd_admin_requests_are_refused(client, accounts, path):
    token = join(accounts, "root@example.com", role="super_admin").tokens.access_token

    assert client.get(f"/api/v1/admin/{path}", headers=as_bearer(token)).status_code in (404, 422)


def test_too_many_tries_are_told_when_to_come_back(client, accounts, limiter):
    join(accounts, ANN)
    answers = [post(client, "auth/login", email=ANN, password=OTHER_PASSWORD) for _ in range(11)]

    assert [answer.status_code for answer in answers] == [401] * 10 + [429]
    assert 0 < int(answers[-1].headers["Retry-After"]) <= 60


def test_one_account_is_not_tried_from_many_addresses(accounts, client):
    rules = {**DEFAULT_RULES, ("login", "*"): "1000/minute", ("login_account", "*"): "3/minute"}
    api.install(client.app, api.Web(accounts, RateLimiter(rules=rules)))
    codes = [post(client, "auth/login", email=ANN, password=OTHER_PASSWORD).status_code for _ in range(4)]

    assert codes == [401, 401, 401, 429]


def test_a_failing_database_says_nothing_about_itself(client, dsn):
    nowhere = PostgresDatabase(make_conninfo(dsn, host="/nonexistent"), timeout_seconds=0.5)
    api.install(client.app, api.Web(Accounts(nowhere), RateLimiter()))
    answer = post(client, "auth/login", email=ANN, password=PASSWORD)
    nowhere.close()

    assert (answer.status_code, answer.json()) == (503, {"detail": "the service cannot answer now"})


OPEN_ROUTES = [
    ("signup", "signup", {"email": ANN, "password": PASSWORD}),
    ("signup", "letter_account", {"email": ANN, "password": PASSWORD}),
    ("verify-email", "verify", {"token": "x"}),
    ("login", "login", {"email": ANN, "password": PASSWORD}),
    ("login", "login_account", {"email": ANN, "password": PASSWORD}),
    ("refresh", "refresh", {"refresh_token": "x"}),
    ("forgot-password", "forgot", {"email": ANN}),
    ("forgot-password", "letter_account", {"email": ANN}),
    ("reset-password", "reset", {"token": "x", "password": PASSWORD}),
]


@pytest.mark.parametrize(("path", "endpoint", "body"), OPEN_ROUTES)
def test_every_open_route_has_its_limit(client, accounts, path, endpoint, body):
    api.install(client.app, api.Web(accounts, RateLimiter(rules={**DEFAULT_RULES, (endpoint, "*"): "1/minute"})))
    first, second = (post(client, f"auth/{path}", **body).status_code for _ in range(2))

    assert first != 429 and second == 429


def test_every_route_of_a_caller_that_changes_something_has_a_limit(client, accounts):
    """A logout stays possible."""
    token = join(accounts, ANN, role="super_admin").tokens.access_token
    never = {("account", "*"): "1/hour", ("admin", "*"): "1/hour"}
    api.install(client.app, api.Web(accounts, RateLimiter(rules={**DEFAULT_RULES, **never})))
    client.patch("/api/v1/auth/me", json={}, headers=as_bearer(token))
    client.get("/api/v1/admin/users", headers=as_bearer(token))
    codes = {
        (method, path): client.request(method, path, json=body, headers=as_bearer(token)).status_code
        for method, path, body in requests(client)
        if path != "/api/v1/auth/logout" and (method != "GET" or "/admin/" in path)
    }

    assert len(codes) == 12
    assert set(codes.values()) == {429}, codes
