"""InvokeAI's own page of users: its requests, its fields, its errors, over our accounts."""

import ast
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from saas.people import OTHER_PASSWORD, PASSWORD, join, letters, rows

from invokeai_saas.accounts import admin, admin_api, api, forms, passwords, service, stock_api
from invokeai_saas.accounts.errors import NotAllowed
from invokeai_saas.accounts.rate_limits import DEFAULT_RULES, RateLimiter

ANN, BOB = "ann@example.com", "bob@example.com"
USERS = "/api/v1/auth/users"


@pytest.fixture
def client(accounts):
    app = FastAPI()
    api.install(app, api.Web(accounts, RateLimiter()))
    for router in (api.auth_router, api.keys_router, admin_api.admin_router, stock_api.stock_router):
        app.include_router(router, prefix="/api")
    with TestClient(app, base_url="https://invoke.example") as opened:
        yield opened


def ask(client, person, method, path=USERS, body=None):
    token = person if isinstance(person, str) else person.tokens.access_token
    return client.request(method, path, json=body, headers={"Authorization": f"Bearer {token}"})


def new_user(**changed):
    """What the page's form sends."""
    return {"email": BOB, "display_name": "Bob", "password": OTHER_PASSWORD, "is_admin": False, **changed}


def actions(database, user_id):
    """The audit log's lines about somebody: who, what."""
    found = rows(database, "SELECT actor_id, action FROM audit_log WHERE target_id = %s ORDER BY audit_id", user_id)
    return [(line["actor_id"], line["action"]) for line in found]


def upstream_source():
    folder = Path(next(iter(importlib.util.find_spec("invokeai").submodule_search_locations)))
    return ast.parse((folder / "app" / "api" / "routers" / "auth.py").read_text())


def test_the_operations_are_those_that_invokeai_had(client):
    """Paths, methods, codes and the names that operation ids are made of."""
    wanted = {}
    for function in upstream_source().body:
        for route in getattr(function, "decorator_list", []):
            if isinstance(route, ast.Call) and "user" in ast.unparse(route.args[0]) or function.name == "generate_password":
                code = next((ast.unparse(one.value).split("_")[1] for one in route.keywords if one.arg == "status_code"), "200")
                path = "/api/v1/auth" + ast.literal_eval(route.args[0])
                wanted[route.func.attr.upper(), path] = (function.name, code)
    ours = {
        (method, f"/api{route.path}"): (route.name, str(route.status_code or 200))
        for route in stock_api.stock_router.routes
        for method in route.methods
    }

    assert ours == wanted and len(ours) == 6
    assert {(method, f"/api{path}") for method, path in api.REPLACED} >= set(ours)


@pytest.mark.parametrize("form", [forms.AdminUserCreateRequest, forms.AdminUserUpdateRequest, forms.GeneratePasswordResponse])
def test_the_forms_have_the_fields_that_invokeais_had(form):
    theirs = next(node for node in upstream_source().body if isinstance(node, ast.ClassDef) and node.name == form.__name__)
    fields = {node.target.id for node in theirs.body if isinstance(node, ast.AnnAssign)}

    assert set(form.model_fields) == fields


def test_a_super_admin_walks_through_the_page(client, accounts, database, root):
    made = ask(client, root, "POST", body=new_user())
    bob = f"{USERS}/{made.json()['user_id']}"
    listed = ask(client, root, "GET")
    entered = client.post("/api/v1/auth/login", json={"email": BOB, "password": OTHER_PASSWORD}).json()
    raised = ask(client, root, "PATCH", bob, {"display_name": "Robert", "is_admin": True})
    lowered = ask(client, root, "PATCH", bob, {"display_name": "Robert", "is_admin": False})
    closed = ask(client, root, "PATCH", bob, {"is_active": False})
    refused = client.post("/api/v1/auth/login", json={"email": BOB, "password": OTHER_PASSWORD})
    opened = ask(client, root, "PATCH", bob, {"is_active": True})
    seen = ask(client, root, "GET", bob)
    erased = ask(client, root, "DELETE", bob)

    assert (made.status_code, made.json()["email_verified"], made.json()["display_name"]) == (201, True, "Bob")
    assert [user["email"] for user in listed.json()] == [BOB, "root@example.com"]
    assert listed.headers["X-Total-Count"] == "2" and entered["user"]["email"] == BOB
    assert (raised.json()["role"], raised.json()["is_admin"], raised.json()["display_name"]) == ("super_admin", True, "Robert")
    assert (lowered.json()["role"], lowered.json()["is_admin"]) == ("user", False)
    assert (closed.json()["is_active"], refused.status_code, opened.json()["is_active"]) == (False, 401, True)
    assert seen.json() == opened.json()
    assert (erased.status_code, erased.content) == (204, b"") and ask(client, root, "GET", bob).status_code == 404
    assert [action for _actor, action in actions(database, made.json()["user_id"])] == [
        "user_added", "role_changed", "user_renamed", "role_changed", "user_renamed", "user_deactivated", "user_activated",
        "user_viewed", "user_deleted",
    ]  # fmt: skip
    assert {actor for actor, _action in actions(database, made.json()["user_id"])} == {root.user_id}


def test_the_page_s_save_button_leaves_the_role_of_an_admin_alone(client, clerk, root):
    """It always sends is_admin, which is false for an admin."""
    saved = ask(client, root, "PATCH", f"{USERS}/{clerk.user_id}", {"display_name": None, "is_admin": False})

    assert (saved.status_code, saved.json()["role"], saved.json()["display_name"]) == (200, "admin", None)


def test_an_admin_looks_after_plain_users_here_too(client, ann, clerk):
    made = ask(client, clerk, "POST", body=new_user())
    renamed = ask(client, clerk, "PATCH", f"{USERS}/{ann.user_id}", {"display_name": "Anna", "is_admin": False})
    closed = ask(client, clerk, "PATCH", f"{USERS}/{ann.user_id}", {"is_active": False})

    assert made.status_code == 201 and len(ask(client, clerk, "GET").json()) == 3
    assert (renamed.json()["display_name"], renamed.json()["role"], closed.json()["is_active"]) == ("Anna", "user", False)


def test_an_admin_gives_no_roles_and_sets_no_passwords(client, database, ann, clerk, root):
    person = f"{USERS}/{ann.user_id}"
    answers = [
        ask(client, clerk, "POST", body=new_user(is_admin=True)),
        ask(client, clerk, "PATCH", person, {"is_admin": True}),
        ask(client, clerk, "PATCH", person, {"password": OTHER_PASSWORD}),
        ask(client, clerk, "PATCH", f"{USERS}/{root.user_id}", {"display_name": "x"}),
        ask(client, clerk, "PATCH", f"{USERS}/{root.user_id}", {"is_active": False}),
        ask(client, clerk, "DELETE", f"{USERS}/{root.user_id}"),
    ]

    assert [answer.status_code for answer in answers] == [403] * 6
    assert all("super_admin" in answer.json()["detail"] for answer in answers)
    assert rows(database, "SELECT 1 FROM users WHERE email = %s", BOB) == []
    assert client.post("/api/v1/auth/login", json={"email": ANN, "password": PASSWORD}).status_code == 200


def test_an_admin_who_was_demoted_meanwhile_makes_nobody(accounts, clerk, root):
    before = clerk.principal
    admin.change(accounts, root.principal, clerk.user_id, {"role": "user"})

    with pytest.raises(NotAllowed):
        admin.create(accounts, before, email=BOB, name=None, password=PASSWORD)


def test_users_and_keys_reach_nothing_and_strangers_are_asked_to_sign_in(client, ann, root):
    key = client.post(
        "/api/v1/auth/api-keys",
        json={"name": "n", "scopes": ["read", "write"]},
        headers={"Authorization": f"Bearer {root.tokens.access_token}"},
    ).json()["key"]
    person = f"{USERS}/{root.user_id}"
    requests = [("GET", USERS, None), ("POST", USERS, new_user()), ("GET", person, None), ("PATCH", person, {}), ("DELETE", person, None)]

    assert {ask(client, who, *request).status_code for who in (ann, key) for request in requests} == {403}
    assert {ask(client, "x", *request).status_code for request in requests} == {401}
    assert ask(client, "x", "GET", "/api/v1/auth/generate-password").status_code == 401


def test_the_last_super_admin_stays(client, root):
    person = f"{USERS}/{root.user_id}"
    answers = [
        ask(client, root, "PATCH", person, {"is_admin": False}),
        ask(client, root, "PATCH", person, {"is_active": False}),
        ask(client, root, "DELETE", person),
    ]

    assert [answer.status_code for answer in answers] == [409] * 3
    assert {answer.json()["detail"] for answer in answers} == {"expected at least one active super_admin to remain"}


def test_a_password_that_is_set_ends_logins_and_is_told_to_its_owner(client, database, ann, root):
    answer = ask(client, root, "PATCH", f"{USERS}/{ann.user_id}", {"password": OTHER_PASSWORD})
    old, new = (
        client.post("/api/v1/auth/login", json={"email": ANN, "password": password}).status_code
        for password in (PASSWORD, OTHER_PASSWORD)
    )

    assert answer.status_code == 200 and ask(client, ann, "GET", "/api/v1/auth/me").status_code == 401
    assert (old, new) == (401, 200)
    assert len(letters(database, "password_changed", ANN)) == 1
    assert actions(database, ann.user_id) == [(root.user_id, "password_replaced")]


def test_a_password_that_is_set_closes_sockets_once(client, accounts, ann, root):
    heard = []
    api.install(client.app, api.Web(replace(accounts, access_changed=heard.append), RateLimiter()))
    ask(client, root, "PATCH", f"{USERS}/{ann.user_id}", {"password": OTHER_PASSWORD})

    assert [change.user_id for change in heard] == [ann.user_id]


def test_one_s_own_password_is_not_set_without_the_current_one(client, root):
    answer = ask(client, root, "PATCH", f"{USERS}/{root.user_id}", {"password": OTHER_PASSWORD})

    assert (answer.status_code, "profile" in answer.json()["detail"]) == (400, True)
    assert ask(client, root, "GET", "/api/v1/auth/me").status_code == 200


def test_a_generated_password_can_be_used_by_whoever_asks(client, ann):
    first, second = (ask(client, ann, "GET", "/api/v1/auth/generate-password") for _ in range(2))

    passwords.demand_strong(first.json()["password"])
    assert first.json() != second.json() and first.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(("body", "expected"), [
    (new_user(email="no address"), "email: "), (new_user(email="ann\n@example.com"), "email: "), ({}, "email: "),
    (new_user(email="ROOT@example.com"), "email: expected an address"), (new_user(display_name="nul\0"), "display_name: "),
    (new_user(password="weakweak"), "password: "), (new_user(password=[PASSWORD]), "password: "),
    (new_user(role="admin"), "role: "), (new_user(**{"\ud800": 1}), "unicode"),
])  # fmt: skip
def test_errors_are_sentences_which_the_page_can_show(client, database, root, body, expected):
    headers = {"Authorization": f"Bearer {root.tokens.access_token}", "Content-Type": "application/json"}
    answer = client.post(USERS, content=json.dumps(body), headers=headers)

    assert answer.status_code == 400 and isinstance(answer.json()["detail"], str)
    assert expected in answer.json()["detail"]
    assert PASSWORD not in answer.text and OTHER_PASSWORD not in answer.text
    assert rows(database, "SELECT 1 FROM users WHERE email = %s", BOB) == []


def test_every_route_has_its_limit(client, accounts, root):
    never = {("account", "*"): "1/hour", ("admin", "*"): "1/hour"}
    api.install(client.app, api.Web(accounts, RateLimiter(rules={**DEFAULT_RULES, **never})))
    person = f"{USERS}/{root.user_id}"
    requests = [("GET", USERS, None), ("POST", USERS, new_user()), ("GET", person, None), ("PATCH", person, {}), ("DELETE", person, None)]
    ask(client, root, "GET")
    ask(client, root, "GET", "/api/v1/auth/generate-password")
    answers = [ask(client, root, *request) for request in (*requests, ("GET", "/api/v1/auth/generate-password", None))]

    assert [answer.status_code for answer in answers] == [429] * 6
    assert all(isinstance(answer.json()["detail"], str) for answer in answers)


def test_the_list_ends_somewhere_and_says_how_many_there_are(client, monkeypatch, ann, clerk, root):
    monkeypatch.setattr(stock_api, "MOST_LISTED", 2)
    answer = ask(client, root, "GET")

    assert (len(answer.json()), answer.headers["X-Total-Count"]) == (2, "3")


def test_an_account_is_made_while_signup_is_closed(client, accounts, database, clerk, root):
    shut = replace(accounts, policy=replace(accounts.policy, signup_open=False))
    api.install(client.app, api.Web(shut, RateLimiter()))
    path = "/api/v1/admin/users"
    made = ask(client, clerk, "POST", path, {"email": "Ann@Example.com"})
    chosen = ask(client, root, "POST", path, {"email": BOB, "display_name": "Bob", "role": "admin", "password": PASSWORD})
    signed_up = client.post("/api/v1/auth/signup", json={"email": "c@example.com", "password": PASSWORD})
    entered = client.post("/api/v1/auth/login", json={"email": ANN, "password": made.json()["password"]})

    assert (made.status_code, made.json()["email"], made.json()["role"]) == (201, ANN, "user")
    assert (chosen.status_code, chosen.json()["role"], chosen.json()["password"]) == (201, "admin", None)
    assert (signed_up.status_code, entered.status_code) == (400, 200)
    assert actions(database, made.json()["user_id"]) == [(clerk.user_id, "user_added")]


def test_an_admin_makes_no_admins(client, database, clerk):
    answers = [ask(client, clerk, "POST", "/api/v1/admin/users", {"email": BOB, "role": role}) for role in ("admin", "super_admin")]

    assert [answer.status_code for answer in answers] == [403, 403]
    assert rows(database, "SELECT 1 FROM users WHERE email = %s", BOB) == []


@pytest.mark.parametrize("state", ["verified", "unverified", "capitalised"])
def test_an_address_has_one_account(client, accounts, database, root, state):
    if state == "unverified":
        service.signup(accounts, email=BOB, password=PASSWORD, name=None)
    else:
        join(accounts, BOB)
    answer = ask(client, root, "POST", "/api/v1/admin/users", {"email": BOB.upper() if state == "capitalised" else BOB})

    assert answer.status_code == 400 and "no account has" in answer.json()["detail"]
    assert len(rows(database, "SELECT 1 FROM users WHERE lower(email) = %s", BOB)) == 1
