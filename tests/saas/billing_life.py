"""A customer's life for the soak: what they do is drawn from a seed, how the events of it arrive from another.

The same seed lives the same life at a double of its own; the books must come out the same however its events came.
"""

import contextlib
import itertools
import json
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from saas.billed import DAY, POLICY, PRICES, Shop
from saas.people import rows
from saas.stripe_double import StripeDouble
from saas.stripe_objects import Refused
from saas.stripe_serving import direct

from invokeai_saas.accounts.model import Accounts
from invokeai_saas.billing import inbox, process, reconcile
from invokeai_saas.billing.errors import SaasError
from invokeai_saas.billing.gateway import EVENT_TYPES, Gateway
from invokeai_saas.billing.model import LIVE, PACKS, Billing

BEGIN = 1_900_000_000
_numbers = itertools.count(1)


@dataclass
class Post:
    """How events arrive. `ordered`: each at once and once. Else: late, in any order, 1 to 5 times, one in ten never."""

    rng: random.Random | None
    shop: Shop
    waiting: list[dict[str, Any]]
    lost: int = 0

    def arrives(self, body: str) -> None:
        event = json.loads(body)
        if event["type"] not in EVENT_TYPES:
            return
        if self.rng is None:
            self.waiting.append(event)
        elif self.rng.random() < 0.1:
            self.lost += 1
        else:
            self.waiting += [event] * self.rng.randint(1, 5)

    def some(self) -> None:
        """Between two steps of the life: all of them, or a few of any age."""
        if self.rng is None:
            chosen, self.waiting[:] = list(self.waiting), []
        else:
            self.rng.shuffle(self.waiting)
            number = self.rng.choice((0, 0, 1, 3, len(self.waiting) // 2))
            chosen, self.waiting[:] = self.waiting[:number], self.waiting[number:]
        self._deliver(chosen)

    def rest(self) -> None:
        """At the end everything that was not lost; then what was is looked for."""
        if self.rng is not None:
            self.rng.shuffle(self.waiting)
        while self.waiting:
            chosen, self.waiting[:] = self.waiting[:7], self.waiting[7:]
            self._deliver(chosen)

    def _deliver(self, events: list[dict[str, Any]]) -> None:
        for event in events:
            inbox.record(self.shop.billing, event)
        if events:
            process.process_waiting(self.shop.billing)


def new_shop(accounts: Accounts, prices: dict[str, dict[str, Any]]) -> Shop:
    """A double of its own, with the prices that the plans have."""
    double = StripeDouble(now=BEGIN)
    # Ids are unique over all lives: the database is one.
    double._numbers = itertools.count(next(_numbers) * 10_000)
    double._kinds["price"] = {price["id"]: price for price in prices.values()}
    gateway = Gateway(direct(double), in_transaction=lambda: accounts.database.in_transaction)
    return Shop(Billing(accounts, gateway, POLICY), double)


def set_prices(accounts: Accounts) -> dict[str, dict[str, Any]]:
    """Prices for every life, made once."""
    double = StripeDouble(now=BEGIN)
    made = {}
    for slug, amount in PRICES.items():
        product = double.put("product", updated=BEGIN, name=slug)
        made[slug] = double._new_price({"unit_amount": amount, "currency": "usd", "product": product["id"]})
        statement = "UPDATE subscription_plans SET stripe_price_monthly = %s, stripe_product = %s WHERE slug = %s"
        rows(accounts.database, statement, made[slug]["id"], product["id"], slug)
    return made


def live(accounts: Accounts, prices: dict[str, dict[str, Any]], *, seed: int, shuffle: int | None) -> tuple[Shop, str, int]:
    """One life; the shop, the user and how many events were lost."""
    shop = new_shop(accounts, prices)
    post = Post(None if shuffle is None else random.Random(f"{seed}/{shuffle}"), shop, [])
    shop.double.deliver = post.arrives
    user_id = f"life-{seed}-{shuffle}"
    rows(accounts.database, "INSERT INTO users (user_id, email, password_hash) VALUES (%s, %s, '')", user_id, f"{user_id}@example.com")
    gateway = shop.billing.gateway
    assert gateway is not None
    customer = gateway.make_customer(user_id=user_id, email="l@example.com", name=None, key="c")
    rows(accounts.database, "INSERT INTO billing_customers (stripe_customer_id, user_id) VALUES (%s, %s)", customer, user_id)
    rng = random.Random(seed)
    for _ in range(rng.randint(10, 18)):
        with contextlib.suppress(SaasError, Refused):
            _step(shop, gateway, customer, user_id, prices, rng)
        post.some()
    shop.double.cards[customer] = "ok" if rng.random() < 0.7 else "declined"
    shop.double.wait(20 * DAY)
    post.rest()
    if shuffle is not None:
        _reconcile(shop)
    return shop, user_id, post.lost


def _reconcile(shop: Shop) -> None:
    """Stripe's list of what happened since the life began."""
    reconcile.reconcile(shop.billing, since=datetime.fromtimestamp(BEGIN - 1, UTC))


def _step(shop: Shop, gateway: Gateway, customer: str, user_id: str, prices: dict[str, Any], rng: random.Random) -> None:
    """One thing that a customer, a bank or time does; drawn first, so that every life draws the same."""
    action = rng.choice(
        ("subscribe", "subscribe", "wait", "wait", "month", "up", "down", "cancel", "go_on", "card", "pack", "refund", "dispute")
    )
    slug, part, number = rng.choice(list(PRICES)), rng.random(), rng.randrange(1_000_000)
    double, key = shop.double, f"{action}-{number}"
    asks = action in ("subscribe", "up", "down", "cancel", "go_on")
    held = next((each for each in gateway.subscriptions(customer) if each.status in LIVE), None) if asks else None
    urls = {"success_url": "https://x.example/", "cancel_url": "https://x.example/"}
    if action == "wait":
        double.wait(int(part * 12 * DAY))
    elif action == "month":
        double.wait(31 * DAY)
    elif action == "card":
        double.cards[customer] = "declined" if double.cards[customer] == "ok" else "ok"
    elif action == "subscribe" and held is None and double.cards[customer] == "ok":
        sold = gateway.sell_plan(customer=customer, user_id=user_id, price=prices[slug]["id"], plan=slug, key=key, **urls)
        double.pay(sold[0])
    elif action == "pack":
        pack = list(PACKS.values())[number % 3]
        bought = gateway.sell_pack(customer=customer, user_id=user_id, pack=pack, currency="usd", key=key, **urls)
        double.pay(bought[0], later=part < 0.3)
        if part < 0.3:
            double.wait(3 * DAY)
            double.settle(bought[0], ok=part < 0.15)
    elif action in ("up", "down") and held is not None and held.status == "active" and held.pending_price is None:
        _change(gateway, held, slug, prices, key)
    elif action in ("cancel", "go_on") and held is not None:
        gateway.cancel_at_period_end(held.id, ending=action == "cancel", key=key)
    elif action in ("refund", "dispute"):
        _back(double, action, part, number)


def _change(gateway: Gateway, held: Any, slug: str, prices: dict[str, Any], key: str) -> None:
    """As service.change_plan decides, without its lease: events of it arrive when they like."""
    by_id = {price["id"]: name for name, price in prices.items()}
    waits = held.held_plan is not None and held.held_until is not None and held.period_start < held.held_until
    now = held.held_plan if waits else by_id[held.price]
    if waits:
        gateway.undo_downgrade(held, price=prices[now]["id"], key=f"undo-{key}")
    if PRICES[slug] > PRICES[now]:
        gateway.upgrade(held, price=prices[slug]["id"], key=key)
    elif PRICES[slug] < PRICES[now]:
        gateway.downgrade(held, price=prices[slug]["id"], plan=now, key=key)


def _back(double: StripeDouble, action: str, part: float, number: int) -> None:
    paid = [each for each in double.all("payment_intent") if each["status"] == "succeeded"]
    if not paid:
        return
    intent = paid[number % len(paid)]
    if action == "refund":
        double._refund({"payment_intent": intent["id"], **({} if part < 0.5 else {"amount": str(int(intent["amount"] * part / 2))})})
        return
    if double.find("charge", intent["latest_charge"])["disputed"]:
        return
    dispute = double.dispute(intent["id"], status="warning_needs_response" if part < 0.2 else "needs_response")
    if part > 0.4:
        double.wait(DAY)
        double.close_dispute(dispute["id"], "warning_closed" if part < 0.2 else "won" if part < 0.7 else "lost")
