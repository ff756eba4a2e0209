"""Accounts as a person meets them: sign up by letter, log in on InvokeAI's own page, stay signed in, keys, and the end of it all."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import uvicorn
from fastapi import FastAPI
from live_interface import PATIENCE_MS
from playwright.sync_api import Browser, BrowserContext, Page, expect
from saas.conftest import cluster, database, dsn, open_database  # noqa: F401 - fixtures
from saas.patience import until
from saas.people import OTHER_PASSWORD, PASSWORD, join, letters, rows

from invokeai_saas.accounts import api
from invokeai_saas.accounts.admin_api import admin_router
from invokeai_saas.accounts.cookies import REFRESH_COOKIE
from invokeai_saas.accounts.model import AccountPolicy, Accounts
from invokeai_saas.accounts.rate_limits import RateLimiter
from invokeai_saas.accounts.store import kept_signing_secret
from invokeai_saas.accounts.tokens import ALGORITHM
from invokeai_saas.web.pages import pages_router
from invokeai_saas.web.session_script import SessionScript

ANN = "ann@example.com"
DIST = Path(next(iter(importlib.util.find_spec("invokeai").submodule_search_locations or []))) / "frontend" / "web" / "dist"  # type: ignore[union-attr]
MANY = {"login": "1000/minute", "refresh": "1000/minute", "account": "1000/minute"}


class LateAnswers:
    """Refreshes are done at once, and answered when they are no longer `held`."""

    def __init__(self, app: Any) -> None:
        self.app, self.held = app, False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def late(message: Any) -> None:
            while self.held and scope["path"].endswith("/auth/refresh"):
                await asyncio.sleep(0.05)
            await send(message)

        await self.app(scope, receive, late if scope["type"] == "http" else send)


def make_app(accounts: Accounts) -> LateAnswers:
    """Our routes and pages, and InvokeAI's interface with what its login page asks for."""
    from invokeai.app.api.no_cache_staticfiles import NoCacheStaticFiles

    app = FastAPI()
    limits = RateLimiter()
    api.install(app, api.Web(accounts, RateLimiter(rules={**limits.rules, **{(name, "*"): rule for name, rule in MANY.items()}})))
    for router in (api.auth_router, api.keys_router, admin_router):
        app.include_router(router, prefix="/api")
    app.include_router(pages_router)

    @app.get("/api/v1/auth/status")
    def status() -> dict[str, Any]:
        return {"setup_required": False, "multiuser_enabled": True, "strict_password_checking": True, "admin_email": None}

    app.mount("/", NoCacheStaticFiles(directory=DIST, html=True))
    return LateAnswers(SessionScript(app, signup_open=True))


class Site:
    """The server at `url`, and whoever it knows."""

    def __init__(self, url: str, accounts: Accounts, answers: LateAnswers) -> None:
        self.answers = answers
        self.url, self.accounts, self.database = url, accounts, accounts.database

    def link_of(self, kind: str) -> str:
        match = re.search(r"http\S+token=\S+", letters(self.database, kind, ANN)[-1]["text_body"])
        assert match
        return match[0]


@pytest.fixture
def site(database: Any) -> Iterator[Site]:  # noqa: F811
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        accounts = Accounts(database, AccountPolicy(answer_seconds=0.0, public_url=url))
        app = make_app(accounts)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield Site(url, accounts, app)
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    opened = browser.new_context(viewport={"width": 1280, "height": 860}, locale="en-US")
    opened.set_default_timeout(PATIENCE_MS)
    yield opened
    opened.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    opened = context.new_page()
    opened.problems = []  # type: ignore[attr-defined]
    opened.on("console", lambda said: opened.problems.append(said.text) if "Content Security Policy" in said.text else None)  # type: ignore[attr-defined]
    return opened


def token_of(page: Page) -> str | None:
    return page.evaluate("localStorage.getItem('auth_token')")  # type: ignore[no-any-return]


def run_out(page: Page, site: Site) -> str:
    """The page's token is over, as after a night: the server refuses it from now on. Returns it."""
    claims = jwt.decode(token_of(page) or "", options={"verify_signature": False})
    token = jwt.encode({**claims, "exp": int(time.time()) - 1}, kept_signing_secret(site.database), algorithm=ALGORITHM)
    page.evaluate("token => localStorage.setItem('auth_token', token)", token)
    return token


def refresh_cookie(context: BrowserContext) -> str:
    return next(cookie["value"] for cookie in context.cookies() if cookie["name"] == REFRESH_COOKIE)


def ask_me(page: Page, token: str | None) -> int:
    """What InvokeAI's interface does with the token that it has in its hands."""
    script = "token => fetch('/api/v1/auth/me', {headers: {Authorization: `Bearer ${token}`}}).then(answer => answer.status)"
    return page.evaluate(script, token)  # type: ignore[no-any-return]


def log_in(page: Page, site: Site, password: str = PASSWORD) -> None:
    page.goto(f"{site.url}/login")
    page.locator("input[type=email]").fill(ANN)
    page.locator("input[type=password]").fill(password)
    page.locator("button[type=submit]").click()
    page.wait_for_url("**/app")


def test_a_stranger_signs_up_by_the_letter_and_is_in(site: Site, page: Page, screenshots: Path) -> None:
    page.goto(f"{site.url}/login")
    page.get_by_role("link", name="Create an account").wait_for()
    page.screenshot(path=screenshots / "accounts-1-login.png")
    page.get_by_role("link", name="Create an account").click()
    page.get_by_label("E-mail address").fill("ann at home")
    page.get_by_label("Password", exact=True).fill("short")
    page.get_by_role("button", name="Create account").click()
    expect(page.get_by_text("Expected an address such as ann@example.com, got “ann at home”.")).to_be_visible()
    expect(page.get_by_text("Expected a password with at least 8 characters, an upper-case letter, a digit.")).to_be_visible()
    page.screenshot(path=screenshots / "accounts-2-sign-up.png")
    page.get_by_label("E-mail address").fill(ANN)
    page.get_by_label("Name (optional)").fill("Ann")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Create account").click()
    expect(page.get_by_role("heading", name="Look into your mail")).to_be_visible()
    page.screenshot(path=screenshots / "accounts-3-check-mail.png")
    link = site.link_of("verify")
    page.goto(link)
    page.get_by_role("button", name="Confirm and sign in").wait_for()
    assert "token" not in page.url
    page.get_by_role("button", name="Confirm and sign in").click()
    page.wait_for_url("**/app")

    assert ask_me(page, token_of(page)) == 200
    page.goto(link)
    page.get_by_role("button", name="Confirm and sign in").click()
    expect(page.get_by_text("This address is confirmed already: you can log in.")).to_be_visible()
    assert page.problems == []  # type: ignore[attr-defined]


def test_who_forgot_the_password_sets_a_new_one_in_korean(site: Site, page: Page, screenshots: Path) -> None:
    join(site.accounts, ANN)
    page.goto(f"{site.url}/account/forgot-password?lang=ko")
    page.get_by_label("이메일 주소").fill(ANN)
    page.get_by_role("button", name="링크 보내기").click()
    expect(page.get_by_role("heading", name="메일을 확인하세요")).to_be_visible()
    page.goto(site.link_of("reset"))
    page.get_by_role("link", name="한국어").click()
    page.get_by_label("새 비밀번호").fill(OTHER_PASSWORD)
    page.get_by_label("비밀번호 표시").check()
    page.screenshot(path=screenshots / "accounts-4-reset-ko.png")
    page.get_by_role("button", name="비밀번호 설정").click()
    expect(page.get_by_text("비밀번호를 설정했습니다.")).to_be_visible()
    page.get_by_role("link", name="로그인").click()
    log_in(page, site, OTHER_PASSWORD)

    assert ask_me(page, token_of(page)) == 200


def test_an_account_is_looked_after_on_its_page(site: Site, page: Page, screenshots: Path) -> None:
    join(site.accounts, ANN)
    log_in(page, site)
    page.goto(f"{site.url}/account")
    page.get_by_label("Name").fill("Anna")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Saved.")).to_be_visible()
    page.get_by_label("What the key is for").fill("my script")
    page.get_by_label("It may").select_option("read and write")
    page.get_by_role("button", name="Make a key").click()
    expect(page.locator("#new-key code")).to_have_text(re.compile(r"iv_\w+\..+"))
    key = page.locator("#new-key code").text_content()
    expect(page.locator("#keys li")).to_contain_text("read and write")
    page.screenshot(path=screenshots / "accounts-5-account.png", full_page=True)
    assert ask_me(page, key) == 200
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Revoke: my script").click()
    expect(page.locator("#keys li")).to_contain_text("revoked")
    assert ask_me(page, key) == 401
    page.get_by_label("Current password").first.fill(OTHER_PASSWORD)
    page.get_by_label("New password").fill(OTHER_PASSWORD)
    page.get_by_role("button", name="Change password").click()
    expect(page.get_by_text("The current password is not right.")).to_be_visible()
    page.get_by_label("Current password").first.fill(PASSWORD)
    page.get_by_role("button", name="Change password").click()
    expect(page.get_by_text("Your password is changed.")).to_be_visible()
    page.locator("#delete_password").fill(OTHER_PASSWORD)
    page.get_by_role("button", name="Delete my account").click()
    expect(page.get_by_text("Expected the box to be ticked.")).to_be_visible()
    page.get_by_label("I know that this cannot be undone").check()
    page.get_by_role("button", name="Delete my account").click()
    page.wait_for_url("**/login")

    assert token_of(page) is None
    assert rows(site.database, "SELECT display_name, is_active FROM users WHERE user_id <> 'system'") == [
        {"display_name": None, "is_active": 0}
    ]
    assert page.problems == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("locks", [True, False])
def test_tabs_that_stay_open_go_on_with_one_refresh_at_a_time(site: Site, context: BrowserContext, locks: bool) -> None:
    """A second use of a refresh token would end the login: here six tabs wake up at once, four times, after their token is over."""
    join(site.accounts, ANN)
    if not locks:
        # What a browser has on http addresses other than localhost.
        context.add_init_script("delete Navigator.prototype.locks")
    pages = [context.new_page() for _ in range(6)]
    log_in(pages[0], site)
    for page in pages:
        page.goto(f"{site.url}/account/check-mail")
    assert pages[0].evaluate("'locks' in navigator") is locks
    for _ in range(4):
        stale = run_out(pages[0], site)
        for page in pages:
            page.evaluate("""token => { window.asked = fetch('/api/v1/auth/me', {headers: {Authorization: `Bearer ${token}`}}) }""", stale)
        assert [page.evaluate("window.asked.then(answer => answer.status)") for page in pages] == [200] * 6

    spent = rows(site.database, "SELECT count(*) AS n FROM refresh_tokens WHERE used_at IS NOT NULL")[0]["n"]
    assert spent >= 4
    assert rows(site.database, "SELECT 1 FROM refresh_families WHERE revoked_at IS NOT NULL") == []
    assert rows(site.database, "SELECT 1 FROM audit_log WHERE action = 'refresh_token_reused'") == []
    # A tab reads another tab's writes to the storage a moment later, wherever the tabs are processes of their own.
    until(lambda: len({token_of(page) for page in pages}) == 1)
    assert token_of(pages[0]) != stale


def test_a_page_that_is_left_in_the_middle_of_a_refresh_stays_signed_in(site: Site, context: BrowserContext, page: Page) -> None:
    join(site.accounts, ANN)
    log_in(page, site)
    page.goto(f"{site.url}/account/check-mail")
    # How long the next page waits for the answer to this one is not this machine's to say.
    context.clock.install()
    context.clock.pause_at(time.time() + 1)
    stale, first, site.answers.held = run_out(page, site), refresh_cookie(context), True
    page.evaluate("token => void fetch('/api/v1/auth/me', {headers: {Authorization: `Bearer ${token}`}})", stale)
    until(lambda: rows(site.database, "SELECT 1 FROM refresh_tokens WHERE used_at IS NOT NULL"))
    page.goto(f"{site.url}/account/forgot-password")
    assert token_of(page) == stale
    site.answers.held = False
    until(lambda: refresh_cookie(context) != first)
    second = refresh_cookie(context)
    context.clock.fast_forward(8_000)

    assert ask_me(page, stale) == 200
    assert refresh_cookie(context) != second
    assert rows(site.database, "SELECT 1 FROM audit_log WHERE action = 'refresh_token_reused'") == []


def test_a_tab_hears_of_its_new_token_as_invokeais_interface_listens(site: Site, page: Page) -> None:
    join(site.accounts, ANN)
    log_in(page, site)
    page.goto(f"{site.url}/account/check-mail")
    page.evaluate("window.heard = []; addEventListener('storage', e => { if (e.key === 'auth_token') heard.push(e.newValue) })")
    ask_me(page, run_out(page, site))

    assert page.evaluate("heard.at(-1)") == token_of(page)


def test_a_clock_that_goes_wrong_throws_nobody_out(site: Site, context: BrowserContext) -> None:
    join(site.accounts, ANN)
    page = context.new_page()
    log_in(page, site)
    context.add_init_script("const now = Date.now; Date.now = () => now() - 5 * 3600 * 1000")
    page.evaluate("localStorage.removeItem('invokeai_session_deadline')")
    page.goto(f"{site.url}/account/check-mail")

    assert ask_me(page, run_out(page, site)) == 200


def test_a_login_that_was_ended_elsewhere_stays_ended(site: Site, page: Page) -> None:
    ann = join(site.accounts, ANN)
    log_in(page, site)
    page.goto(f"{site.url}/account/check-mail")
    rows(site.database, "UPDATE users SET is_active = 0 WHERE user_id = %s", ann.user_id)
    asked = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/auth/refresh") else None)
    run_out(page, site)

    assert [ask_me(page, token_of(page)) for _ in range(5)] == [401] * 5
    assert len(asked) <= 2
    assert token_of(page) is None


def test_a_token_without_a_cookie_is_good_until_the_server_refuses_it(site: Site, context: BrowserContext, page: Page) -> None:
    """As one that an identity provider made, where there is nothing to exchange."""
    ann = join(site.accounts, ANN)
    log_in(page, site)
    context.clear_cookies()
    page.evaluate("localStorage.setItem('invokeai_session_deadline', `${localStorage.auth_token.slice(-16)}:${Date.now()}`)")
    with page.expect_response("**/api/v1/auth/me"), page.expect_response("**/api/v1/auth/refresh") as refused:
        page.goto(f"{site.url}/account/check-mail")

    assert refused.value.status == 401
    token = token_of(page)
    assert token and ask_me(page, token) == 200
    rows(site.database, "UPDATE users SET is_active = 0 WHERE user_id = %s", ann.user_id)
    assert ask_me(page, token) == 401
    assert token_of(page) is None
