"""Who calls InvokeAI's routes: the account that the middleware proved, super_admin as the database says, nobody else."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from saas.people import join

from invokeai_saas.accounts import tokens
from invokeai_saas.accounts.errors import NotSignedIn
from invokeai_saas.accounts.identify import caller_now, identify
from invokeai_saas.accounts.middleware import IdentityMiddleware
from invokeai_saas.closed.routes import upstream_routes
from invokeai_saas.errors import SaasError
from invokeai_saas.swaps import callers

ASKS = {"get_current_user", "get_current_user_or_default", "get_current_media_user_or_default"}


@pytest.fixture
def annotated(monkeypatch):
    """The module of InvokeAI's annotations with ours in it, for the test's time."""
    for name in callers.ANNOTATIONS:
        monkeypatch.setattr(callers.upstream, name, getattr(callers.upstream, name))
    callers.install_callers()
    return callers.upstream


@pytest.fixture
def app(annotated):
    made = FastAPI()

    @made.get("/api/me")
    def me(user: annotated.CurrentUserOrDefault):
        return user

    @made.get("/api/media")
    def media(user: annotated.CurrentMediaUserOrDefault):
        return user.user_id

    @made.get("/api/admin")
    def admin(user: annotated.AdminUserOrDefault):
        return user.user_id

    return made


@pytest.fixture
def client(app, accounts):
    return TestClient(IdentityMiddleware(app, accounts, media=["/api/media"]))


def bearer(person):
    return {"Authorization": f"Bearer {person.tokens.access_token}"}


def test_a_route_is_told_the_account_as_the_database_has_it(client, accounts):
    ann = join(accounts, "ann@example.com")
    told = client.get("/api/me", headers=bearer(ann)).json()

    assert (told["user_id"], told["email"], told["is_admin"]) == (ann.user_id, "ann@example.com", False)


@pytest.mark.parametrize("path", ["/api/me", "/api/media", "/api/admin"])
def test_nobody_is_refused(client, path):
    assert client.get(path).status_code == 401


@pytest.mark.parametrize("role,status", [("user", 403), ("admin", 403), ("super_admin", 200)])
def test_only_a_super_admin_is_invokeais_admin(role, status, client, accounts):
    assert client.get("/api/admin", headers=bearer(join(accounts, "boss@example.com", role=role))).status_code == status


def test_the_media_cookie_proves_its_owner_on_media_only(client, accounts):
    ann = join(accounts, "ann@example.com")
    client.cookies.set("invokeai_media_token", ann.tokens.access_token)

    assert client.get("/api/media").json() == ann.user_id
    assert client.get("/api/me").status_code == 401


def test_one_request_does_not_inherit_the_caller_of_another(client, accounts):
    ann = join(accounts, "ann@example.com")

    assert client.get("/api/me", headers=bearer(ann)).status_code == 200
    assert client.get("/api/me").status_code == 401
    assert caller_now.get() is None


def test_a_route_that_asks_invokeais_own_dependencies_stops_the_start():
    # The routers of this process were imported without ours.
    route = next(route for (_method, path), (_router, route) in upstream_routes() if path == "/api/v1/images/")

    with pytest.raises(SaasError, match="expected .* to ask for our callers, got .*get_current_user_or_default"):
        callers.demand_ours([route])


def test_a_route_that_asks_ours_is_fine(app):
    routes = [route for route in app.routes if route.path.startswith("/api/")]

    callers.demand_ours(routes)
    asked = {each.call.__name__ for route in routes for each in route.dependant.dependencies}
    assert asked <= ASKS | {"require_admin"}


def test_a_token_that_was_proved_once_still_ends(accounts, monkeypatch):
    ann = join(accounts, "ann@example.com")
    token = ann.tokens.access_token
    assert ann.principal.user_id == ann.user_id
    now = tokens.time.time()
    monkeypatch.setattr(tokens.time, "time", lambda: now + 16 * 60)

    with pytest.raises(NotSignedIn):
        identify(accounts, token)
