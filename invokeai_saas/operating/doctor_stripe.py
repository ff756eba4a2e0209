"""What doctor says of Stripe: whether the key works, the webhook's secret is there, and what is for sale can be bought."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from invokeai_saas.billing.errors import StripeObjectGone
from invokeai_saas.db import tenancy
from invokeai_saas.db.opening import open_database
from invokeai_saas.errors import SaasError
from invokeai_saas.plans import catalog
from invokeai_saas.plans.model import Plan
from invokeai_saas.settings import Settings

if TYPE_CHECKING:
    from invokeai_saas.billing.gateway import Gateway

Found = tuple[Literal["ok", "warning", "error"], str, str]
WEBHOOK = "/api/v1/webhooks/stripe"
ONE_WAY = "set its stripe_price_monthly (docs/billing.md), or make the plan inactive"


def check_stripe(settings: Settings) -> Iterator[Found]:
    """Asks Stripe for nothing but to read: one event and the prices of plans."""
    if settings.stripe_secret_key is None:
        yield "ok", "STRIPE_SECRET_KEY is not set: nothing can be bought; plans and credits are given by whoever runs the server", ""
        return
    from invokeai_saas.billing.gateway import Gateway, client_of

    gateway = Gateway(client_of(settings.stripe_secret_key.get_secret_value(), api_base=settings.stripe_api_base))
    try:
        gateway.check()
    except SaasError as error:
        yield "error", f"the key does not work: {error}", "look at STRIPE_SECRET_KEY and STRIPE_API_BASE"
        return
    yield "ok", "the key works, in " + ("live" if "_live_" in settings.stripe_secret_key.get_secret_value() else "test") + " mode", ""
    yield "ok", f"{len(settings.stripe_webhook_secret)} webhook secrets; the endpoint is {settings.public_url}{WEBHOOK}", ""
    yield from _plans(settings, gateway)


def _plans(settings: Settings, gateway: "Gateway") -> Iterator[Found]:
    sold = 0
    for plan in _active(settings):
        if plan.plan_type != "paid" or plan.monthly_price is None:
            continue
        if plan.stripe_price_monthly is None:
            yield "warning", f"plan {plan.slug} has no price at Stripe: nobody can subscribe to it", ONE_WAY
            continue
        sold += 1
        wrong = _wrong(settings, gateway, plan, plan.stripe_price_monthly)
        if wrong is not None:
            yield "error", f"plan {plan.slug}: {wrong}", ONE_WAY
    if sold:
        yield "ok", f"{sold} plans are for sale", ""
    else:
        yield "warning", "no plan is for sale", "give plans their stripe_price_monthly (docs/billing.md)"


def _wrong(settings: Settings, gateway: "Gateway", plan: Plan, price: str) -> str | None:
    try:
        active, amount, currency = gateway.price(price)
    except StripeObjectGone:
        return f"its price {price} is not there at Stripe"
    if not active:
        return f"its price {price} is archived at Stripe"
    if currency != settings.stripe_currency:
        return f"its price {price} is in {currency}, STRIPE_CURRENCY says {settings.stripe_currency}"
    if amount != plan.monthly_price:
        return f"its price {price} asks {amount} {currency}, its row says {plan.monthly_price}"
    return None


def _active(settings: Settings) -> tuple[Plan, ...]:
    database = open_database(settings, migrate_first=False)
    try:
        with tenancy.as_system("doctor reads the plans"), database.postgres() as cursor:
            return catalog.list_active(cursor)
    finally:
        database.close()
