"""The page of plan and credits as a customer uses it: buy at Stripe's double, come back, change, cancel, go on."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from live_interface import PATIENCE_MS
from playwright.sync_api import Browser, Dialog, Page, Route, expect
from saas import books
from saas.billed import POLICY, Shop, open_shop
from saas.conftest import cluster, database, dsn, open_database  # noqa: F401 - fixtures
from saas.people import Person, join

from invokeai_saas.accounts import api
from invokeai_saas.accounts.model import AccountPolicy, Accounts
from invokeai_saas.accounts.rate_limits import RateLimiter
from invokeai_saas.billing import api as billing_api
from invokeai_saas.billing import customers
from invokeai_saas.billing.model import Billing
from invokeai_saas.credits import api as credits_api
from invokeai_saas.plans import api as plans_api
from invokeai_saas.web.pages import pages_router


def application(billing: Billing) -> FastAPI:
    app = FastAPI()
    limits = RateLimiter()
    many = RateLimiter(rules={**limits.rules, ("account", "*"): "1000/minute"})
    api.install(app, api.Web(billing.accounts, many))
    billing_api.install(app, billing)
    for router in (api.auth_router, *billing_api.ROUTERS, *plans_api.ROUTERS, *credits_api.ROUTERS):
        app.include_router(router, prefix="/api")
    app.include_router(pages_router)
    return app


class Stand:
    """A shop behind a server at `url`, and Ann."""

    def __init__(self, url: str, shop: Shop, ann: Person, context: Any) -> None:
        self.url, self.shop, self.ann, self.context = url, shop, ann, context

    def open(self, query: str = "") -> Page:
        page: Page = self.context.new_page()
        page.goto(f"{self.url}/account/billing{query}")
        page.get_by_role("heading", name="Last movements").or_(page.get_by_role("heading", name="최근 내역")).wait_for()
        return page


@pytest.fixture
def stand(request: Any, database: Any, browser: Browser) -> Iterator[Stand]:  # noqa: F811
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        accounts = Accounts(database, AccountPolicy(answer_seconds=0.0, public_url=url))
        shop, ann = open_shop(accounts), join(accounts, "ann@example.com")
        billing = shop.billing if getattr(request, "param", True) else Billing(accounts, None, POLICY)
        server = uvicorn.Server(uvicorn.Config(application(billing), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        context = browser.new_context(viewport={"width": 1280, "height": 1000}, locale="en-US")
        context.set_default_timeout(PATIENCE_MS)
        context.add_init_script(f"localStorage.setItem('auth_token', '{ann.tokens.access_token}')")
        context.route("https://checkout.stripe.com/**", lambda route: pay(route, shop))
        yield Stand(url, shop, ann, context)
        context.close()
        server.should_exit = True
        thread.join(10)


def pay(route: Route, shop: Shop) -> None:
    """Stripe's page: the customer pays and is sent back."""
    sold = next(each for each in shop.double.all("checkout.session") if each["url"] == route.request.url)
    shop.double.pay(sold["id"])
    shop.bring()
    route.fulfill(status=302, headers={"Location": sold["success_url"]})


def agree(dialog: Dialog) -> None:
    dialog.accept()


def test_a_plan_is_bought_changed_canceled_and_gone_on_with(stand: Stand, screenshots: Path) -> None:
    page = stand.open()
    expect(page.get_by_text("No plan", exact=True)).to_be_visible()
    expect(page.get_by_text("choose a plan first")).to_be_visible()
    page.screenshot(path=screenshots / "billing-1-no-plan.png", full_page=True)
    page.get_by_role("listitem").filter(has_text="Starter").get_by_role("button", name="Subscribe").click()
    page.get_by_text("Thank you.").wait_for()
    expect(page.locator("#plan-name")).to_have_text("Starter")
    books.hold(stand.shop.billing.database, stand.ann.user_id, 60)
    page.reload()
    expect(page.locator("#available")).to_have_text("4,940")
    expect(page.locator("#held")).to_have_text("60")
    page.screenshot(path=screenshots / "billing-2-starter.png", full_page=True)
    page.on("dialog", agree)
    page.get_by_role("button", name="Change to Pro").click()
    expect(page.locator("#plan-name")).to_have_text("Pro")
    stand.shop.bring()
    page.get_by_role("button", name="Change to Starter").click()
    expect(page.locator("#notices")).to_contain_text("you are on Starter")
    page.get_by_role("button", name="Keep Pro").click()
    expect(page.locator("#notices")).to_be_hidden()
    page.get_by_role("button", name="Cancel the plan").click()
    expect(page.locator("#notices")).to_contain_text("It is canceled and ends on")
    expect(page.get_by_role("button", name="Change to Studio")).to_be_disabled()
    page.screenshot(path=screenshots / "billing-3-canceled.png", full_page=True)
    page.get_by_role("button", name="Go on with the plan").click()
    expect(page.locator("#notices")).to_be_hidden()
    page.locator("[data-pack=small]").click()
    page.get_by_text("Thank you.").wait_for()
    expect(page.locator("#movements")).to_contain_text("+1,000")
    expect(page.locator("#grants tbody tr")).to_have_count(3)


def test_a_declined_upgrade_and_a_payment_left_are_said_in_words(stand: Stand, screenshots: Path) -> None:
    page = stand.open()
    page.get_by_role("listitem").filter(has_text="Starter").get_by_role("button", name="Subscribe").click()
    page.get_by_text("Thank you.").wait_for()
    customer = customers.known(stand.shop.billing, stand.ann.user_id)
    assert customer is not None
    stand.shop.double.cards[customer] = "declined"
    page.on("dialog", agree)
    page.get_by_role("button", name="Change to Pro").click()
    expect(page.get_by_text("The payment did not go through, so the change waits.")).to_be_visible()
    expect(page.locator("#notices")).to_contain_text("The change to Pro waits for its payment.")
    page.screenshot(path=screenshots / "billing-4-declined.png", full_page=True)
    left = stand.open("?checkout=canceled&lang=ko")

    expect(left.get_by_text("결제하지 않고 돌아오셨습니다.")).to_be_visible()
    expect(left.locator("#notices")).to_contain_text("결제를 기다리고 있습니다")
    left.screenshot(path=screenshots / "billing-5-korean.png", full_page=True)


def test_a_click_without_an_answer_is_asked_again_with_the_same_key(stand: Stand) -> None:
    page, keys = stand.open(), []

    def fail_once(route: Route) -> None:
        keys.append(route.request.headers["idempotency-key"])
        if len(keys) == 1:
            route.abort()
        else:
            route.continue_()

    page.route("**/subscriptions/subscribe", fail_once)
    subscribe = page.get_by_role("listitem").filter(has_text="Starter").get_by_role("button", name="Subscribe")
    subscribe.click()
    page.get_by_text("The server did not answer.").wait_for()
    subscribe.click()
    page.get_by_text("Thank you.").wait_for()

    assert len(keys) == 2 and len(set(keys)) == 1 and len(keys[0]) == 32


@pytest.mark.parametrize("stand", [False], indirect=True)
def test_without_stripe_the_page_says_so_and_has_nothing_to_buy(stand: Stand, screenshots: Path) -> None:
    page = stand.open()

    expect(page.locator("#not-sold")).to_be_visible()
    expect(page.get_by_role("button")).to_have_count(0)
    page.screenshot(path=screenshots / "billing-6-not-set-up.png", full_page=True)
