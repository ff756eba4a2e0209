"""InvokeAI's own index.html, served by its own class, with our script in it; and its own one-day tokens taken away."""

import importlib.util
import time
from pathlib import Path

import jwt
import pytest
from fastapi import FastAPI, Response
from fastapi.testclient import TestClient
from starlette.middleware.gzip import GZipMiddleware

from invokeai_saas.web.session_script import PATH, SessionScript

DIST = Path(next(iter(importlib.util.find_spec("invokeai").submodule_search_locations))) / "frontend" / "web" / "dist"
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Accept-Encoding": "gzip"}
KEY = "k" * 40


def app_of(signup_open=True, **options):
    from invokeai.app.api.no_cache_staticfiles import NoCacheStaticFiles

    app = FastAPI(**options)

    @app.post("/api/v1/changes")
    def change(token: str, response: Response):
        response.headers["X-Refreshed-Token"] = token

    @app.get("/api/v1/page")
    def page():
        return Response('<div id="root"><script></script>', media_type="text/html")

    app.mount("/", NoCacheStaticFiles(directory=DIST, html=True))
    app.add_middleware(GZipMiddleware, minimum_size=10)
    return SessionScript(app, signup_open=signup_open)


@pytest.fixture
def client():
    with TestClient(app_of()) as opened:
        yield opened


def test_the_script_comes_first_in_invokeais_page(client):
    stock = (DIST / "index.html").read_text()
    page = client.get("/", headers=BROWSER)
    tag = f'<script src="{PATH}" data-signup="open"></script>\n  '

    assert page.text == stock.replace("<script", tag + "<script", 1)
    assert int(page.headers["content-length"]) == len(page.content)
    assert not {"etag", "last-modified", "content-encoding"} & set(page.headers)


def test_a_page_further_down_finds_its_files_and_the_others_are_as_they_were(client):
    paths = ("/", "/app", "/admin/users")
    shown = {path: '<base href="/"><script src="/account' in client.get(path, headers=BROWSER).text for path in paths}

    assert shown == {"/": False, "/app": False, "/admin/users": True}


def test_a_page_that_was_kept_from_before_is_not_called_unchanged(client):
    stock = client.get("/", headers={"Accept": "*/*"})
    asked = {**BROWSER, "If-None-Match": stock.headers["etag"], "If-Modified-Since": stock.headers["last-modified"]}

    assert PATH not in stock.text
    assert PATH in client.get("/", headers=asked).text


def test_all_else_is_served_as_it_is(client):
    script = next((DIST / "assets").glob("chunk-*.js")).name

    assert client.get(f"/assets/{script}", headers=BROWSER).content == (DIST / "assets" / script).read_bytes()
    assert PATH not in client.get("/api/v1/page", headers=BROWSER).text
    assert client.head("/", headers=BROWSER).status_code == 200


def test_a_prefix_and_a_closed_signup_are_told():
    outer = FastAPI()
    outer.mount("/tools", app_of(signup_open=False))
    page = TestClient(outer).get("/tools/", headers=BROWSER).text

    assert f'<script src="/tools{PATH}" data-signup="closed"></script>' in page


@pytest.mark.parametrize(("claims", "left"), [({}, False), ({"sid": "f"}, True), (None, False)])
def test_only_tokens_with_a_login_behind_them_reach_the_interface(client, claims, left):
    token = "nonsense" if claims is None else jwt.encode({"user_id": "a", "exp": int(time.time()) + 60, **claims}, KEY)
    answer = client.post("/api/v1/changes", params={"token": token})

    assert ("x-refreshed-token" in answer.headers) is left
