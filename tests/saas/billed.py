"""Billing on the double: plans with prices, a shop that users buy from, and what the books say afterwards."""

import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from saas.people import Person, rows
from saas.stripe_double import StripeDouble
from saas.stripe_serving import SECRET, direct
from saas.subscribed import entitled
from saas.subscribed import grant as lend

from invokeai_saas.accounts.model import Accounts
from invokeai_saas.billing import inbox, process, service
from invokeai_saas.billing.gateway import EVENT_TYPES, Gateway
from invokeai_saas.billing.model import Billing, BillingPolicy

PRICES = {"starter": 2500, "pro": 7500, "studio": 15000}
CREDITS = {"starter": 5000, "pro": 15000, "studio": 30000}
DAY = 86400
POLICY = BillingPolicy(webhook_secrets=(SECRET,), wait=timedelta(seconds=0.3))


@dataclass
class Shop:
    """A double, billing on it, and the events that it sent. `sent` are those of our endpoint, oldest first."""

    billing: Billing
    double: StripeDouble
    sent: list[dict[str, Any]] = field(default_factory=list)
    told: list[tuple[str, str, Any]] = field(default_factory=list)

    def events(self) -> list[dict[str, Any]]:
        """What was sent since the last time."""
        taken, self.sent[:] = list(self.sent), []
        return taken

    def bring(self, *events: dict[str, Any]) -> None:
        """Deliver events, all that were sent without any, and process them."""
        for event in events or self.events():
            inbox.record(self.billing, event)
        process.process_waiting(self.billing)

    def pay(self, checkout: Any, **how: Any) -> Any:
        """The customer pays a checkout, and its events come."""
        paid = self.double.pay(checkout.session_id, **how)
        self.bring()
        return paid

    def wait(self, days: float) -> None:
        """Time passes at Stripe, and its events come."""
        self.double.wait(int(days * DAY))
        self.bring()


def open_shop(accounts: Accounts, *, policy: BillingPolicy = POLICY) -> Shop:
    """A shop whose plans have prices at Stripe."""
    double = StripeDouble()
    client = direct(double)
    gateway = Gateway(client, in_transaction=lambda: accounts.database.in_transaction)
    told: list[tuple[str, str, Any]] = []
    billing = Billing(accounts, gateway, policy, lambda *news: told.append(news))
    shop = Shop(billing, double, told=told)
    for slug, amount in PRICES.items():
        product = client.v1.products.create({"name": slug})
        recurring: Any = {"interval": "month"}
        price = client.v1.prices.create({"unit_amount": amount, "currency": "usd", "product": product.id, "recurring": recurring})
        rows(
            accounts.database,
            "UPDATE subscription_plans SET stripe_price_monthly = %s, stripe_product = %s WHERE slug = %s",
            price.id,
            product.id,
            slug,
        )
    double.deliver = lambda event: _sent(shop, event)
    return shop


def _sent(shop: Shop, body: str) -> None:
    event = json.loads(body)
    if event["type"] in EVENT_TYPES:
        shop.sent.append(event)


def pack_for(shop: Shop, person: Person, pack: str = "small") -> Any:
    """A checkout of a pack for somebody who is lent a plan, if none runs: nobody else is sold one."""
    if entitled(shop.billing.database, person.user_id).plan is None:
        lend(shop.billing.database, person.user_id)
    return service.purchase(shop.billing, person.principal, pack=pack, key="p")


def subscription(shop: Shop, user_id: str) -> dict[str, Any]:
    """The running subscription, or the one that ended last, by plan_of's order."""
    found = rows(
        shop.billing.database,
        """SELECT held.*, plans.slug, next_plans.slug AS next_slug FROM user_subscriptions AS held JOIN subscription_plans AS plans
        ON plans.plan_id = held.plan_id LEFT JOIN subscription_plans AS next_plans ON next_plans.plan_id = held.next_plan_id
        WHERE user_id = %s ORDER BY held.status IN ('trialing', 'active', 'past_due') DESC, held.created_at DESC""",
        user_id,
    )
    return found[0]


def grants(shop: Shop, user_id: str) -> list[dict[str, Any]]:
    """The user's grants, oldest first."""
    return rows(shop.billing.database, "SELECT * FROM credits WHERE user_id = %s ORDER BY valid_from, created_at", user_id)


def totals(shop: Shop, user_id: str) -> list[tuple[str, int, int]]:
    """(source, granted, taken back) of each grant."""
    return [(row["source"], row["total_credits"], row["revoked_credits"]) for row in grants(shop, user_id)]


def letters_to(shop: Shop, user_id: str) -> list[str]:
    """Kinds of the letters to a user, oldest first."""
    found = rows(shop.billing.database, "SELECT kind FROM mail_outbox WHERE user_id = %s ORDER BY mail_id", user_id)
    return [row["kind"] for row in found]


def state_of(shop: Shop, user_id: str) -> dict[str, Any]:
    """What must come out the same whatever way the events came: ids are replaced by their order."""
    database = shop.billing.database
    held = rows(
        database,
        """SELECT plans.slug, next_plans.slug AS following, status, current_period_start, current_period_end, cancel_at_period_end,
            past_due_since, grace_until FROM user_subscriptions AS held JOIN subscription_plans AS plans ON plans.plan_id = held.plan_id
            LEFT JOIN subscription_plans AS next_plans ON next_plans.plan_id = held.next_plan_id
        WHERE user_id = %s ORDER BY held.created_at, stripe_subscription_id""",
        user_id,
    )
    given = rows(
        database,
        """SELECT total_credits, held_credits, consumed_credits, expired_credits, revoked_credits, owed_credits, source, valid_from,
            valid_until FROM credits WHERE user_id = %s ORDER BY source, valid_from, valid_until, total_credits, revoked_credits""",
        user_id,
    )
    paid = rows(
        database,
        """SELECT kind, amount, amount_refunded, currency, status, disputed, credits, plan_slug, description, created_at FROM payments
        WHERE user_id = %s ORDER BY created_at, kind, amount, credits, description, amount_refunded, disputed, status""",
        user_id,
    )
    return {"subscriptions": held, "credits": given, "payments": paid}
