"""What a user does with money: subscribe, change the plan, cancel, go on, buy a pack, open the portal (S3-164..167, S3-170).

A verb looks under the customer's lease, asks Stripe for the change, and brings what Stripe made of it in: rows are written from what
Stripe says and never from what was asked. Each takes `key`, from which Stripe's idempotency keys are made.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from invokeai_saas.accounts.model import Principal
from invokeai_saas.billing import customers, plans_of
from invokeai_saas.billing.errors import BadBillingInput, NoSubscription, PaymentOpen, SubscriptionRuns
from invokeai_saas.billing.inbox import Ref
from invokeai_saas.billing.model import LIVE, PACKS, UNPAID, Billing, SubscriptionFacts
from invokeai_saas.billing.plans_of import PlansByPrice
from invokeai_saas.billing.process import holding
from invokeai_saas.db import tenancy
from invokeai_saas.plans import catalog, gate
from invokeai_saas.plans.errors import NoSuchPlan
from invokeai_saas.plans.model import Plan

# The page of web/pages.py; what it says when somebody comes back from Stripe stands in the query.
PAGE = "/account/billing"
PAID, NOT_PAID = f"{PAGE}?checkout=success", f"{PAGE}?checkout=canceled"


@dataclass(frozen=True, slots=True)
class Checkout:
    """Where to send the customer to pay."""

    session_id: str
    url: str


def subscribe(billing: Billing, caller: Principal, *, plan_id: str, key: str) -> Checkout:
    """A checkout of a plan. Raises SubscriptionRuns while a paid one runs; a trial ends when the new one is paid."""
    caller.demand_login()
    gateway = customers.gateway_of(billing)
    plan, _ = _sellable(billing, plan_id)
    _demand_nothing_by_hand(billing, caller)
    customer = customers.ensure(billing, caller.user_id)
    with holding(billing, customer):
        if any(each.status in LIVE for each in gateway.subscriptions(customer)):
            raise SubscriptionRuns("a subscription runs already: change its plan, or pay its open invoice in the portal")
        public_url = billing.accounts.policy.public_url
        session_id, url = gateway.sell_plan(
            customer=customer,
            user_id=caller.user_id,
            price=str(plan.stripe_price_monthly),
            plan=plan.slug,
            success_url=public_url + PAID,
            cancel_url=public_url + NOT_PAID,
            key=f"subscribe-{key}",
        )
    return Checkout(session_id, url)


def change_plan(billing: Billing, caller: Principal, *, plan_id: str, key: str) -> dict[str, Any]:
    """Up: at once, for the difference. Down: at the end of the period. The plan that counts, while a downgrade waits: undoes it.

    Raises PaymentOpen for an upgrade whose payment did not go through: the plan of before goes on.
    """
    caller.demand_login()
    gateway = customers.gateway_of(billing)
    plan, plans = _sellable(billing, plan_id)
    customer = _customer(billing, caller.user_id)
    with holding(billing, customer) as bring_in:
        held = _running(gateway.subscriptions(customer))
        _demand_changeable(held, plans)
        now, following = plans.counting(held)
        if plan.slug == (following or now).slug:
            raise BadBillingInput(f"plan_id: expected another plan than {plan.slug}, which it is or becomes already")
        price, unpaid = str(plan.stripe_price_monthly), None
        if following is not None:
            # What waits is taken back first, so that an upgrade is charged from the plan that counts.
            current = catalog_price(billing, now.slug)
            gateway.undo_downgrade(held, price=current, key=f"undo-{key}")
        if plan.slug != now.slug and _dearer(billing, plan, now.slug):
            unpaid = gateway.upgrade(held, price=price, key=f"upgrade-{key}")
        elif plan.slug != now.slug:
            gateway.downgrade(held, price=price, plan=now.slug, key=f"downgrade-{key}")
        bring_in(*([] if unpaid is None else [Ref("invoice", unpaid)]))
    if unpaid is not None:
        raise PaymentOpen(plan.slug)
    return mine(billing, caller)


def cancel(billing: Billing, caller: Principal, *, key: str) -> dict[str, Any]:
    """Let the subscription end with its period. Asked twice it is the same."""
    return _ending(billing, caller, ending=True, key=f"cancel-{key}")


def reactivate(billing: Billing, caller: Principal, *, key: str) -> dict[str, Any]:
    """Undo a cancellation that has not come into effect."""
    return _ending(billing, caller, ending=False, key=f"reactivate-{key}")


def purchase(billing: Billing, caller: Principal, *, pack: str, key: str) -> Checkout:
    """A checkout of a pack of credits; they come when it is paid, once per payment. Raises PlanForbids for who could not spend them."""
    caller.demand_login()
    gateway = customers.gateway_of(billing)
    if pack not in PACKS:
        raise BadBillingInput(f"pack: expected one of {', '.join(PACKS)}, got {pack!r}")
    _demand_plan(billing, caller)
    customer = customers.ensure(billing, caller.user_id)
    public_url = billing.accounts.policy.public_url
    session_id, url = gateway.sell_pack(
        customer=customer,
        user_id=caller.user_id,
        pack=PACKS[pack],
        currency=billing.policy.currency,
        success_url=public_url + PAID,
        cancel_url=public_url + NOT_PAID,
        key=f"pack-{key}",
    )
    return Checkout(session_id, url)


def pack_of(amount: int) -> str:
    """The pack of so many credits; raises BadBillingInput."""
    for pack in PACKS.values():
        if pack.credits == amount:
            return pack.name
    raise BadBillingInput(f"amount: expected one of {', '.join(str(pack.credits) for pack in PACKS.values())} credits, got {amount}")


def portal(billing: Billing, caller: Principal) -> str:
    """Where cards are changed and invoices read: Stripe's own pages."""
    caller.demand_login()
    gateway = customers.gateway_of(billing)
    customer = customers.ensure(billing, caller.user_id)
    return gateway.portal(customer=customer, return_url=billing.accounts.policy.public_url + PAGE)


def mine(billing: Billing, caller: Principal) -> dict[str, Any]:
    """The subscription as it is now, read as its owner."""
    with tenancy.as_user(caller.user_id), billing.database.postgres() as cursor:
        found = catalog.subscription_of(cursor, caller.user_id)
    if found is None:
        raise NoSubscription
    return found


def _demand_plan(billing: Billing, caller: Principal) -> None:
    with tenancy.as_user(caller.user_id), billing.database.postgres() as cursor:
        gate.demand_plan(catalog.entitlement_of(cursor, caller.user_id))


def _demand_nothing_by_hand(billing: Billing, caller: Principal) -> None:
    """What an operator agreed by contract has no checkout beside it."""
    with tenancy.as_user(caller.user_id), billing.database.postgres() as cursor:
        found = catalog.subscription_of(cursor, caller.user_id)
    if found is not None and found["status"] in ("active", "past_due") and found["stripe_subscription_id"] is None:
        raise SubscriptionRuns("a subscription by contract runs: write to us to change it")


def catalog_price(billing: Billing, slug: str) -> str:
    """The monthly price at Stripe of a plan, sold or not any more."""
    with tenancy.as_system("prices are the same for all"), billing.database.postgres() as cursor:
        price = catalog.plan_by_slug(cursor, slug).stripe_price_monthly
    if price is None:
        raise BadBillingInput(f"plan {slug} has no price at Stripe any more: ask for help")
    return price


def _ending(billing: Billing, caller: Principal, *, ending: bool, key: str) -> dict[str, Any]:
    caller.demand_login()
    gateway = customers.gateway_of(billing)
    customer = _customer(billing, caller.user_id)
    with holding(billing, customer) as bring_in:
        held = _running(gateway.subscriptions(customer))
        if held.cancel_at_period_end != ending:
            gateway.cancel_at_period_end(held.id, ending=ending, key=key)
        bring_in()
    return mine(billing, caller)


def _sellable(billing: Billing, plan_id: str) -> tuple[Plan, PlansByPrice]:
    """The plan by id or slug, if it is sold here; raises BadBillingInput."""
    with tenancy.as_system("plans are the same for all"), billing.database.postgres() as cursor:
        try:
            plan = catalog.plan_by_id(cursor, UUID(plan_id)) if _is_uuid(plan_id) else catalog.plan_by_slug(cursor, plan_id)
        except NoSuchPlan as error:
            raise BadBillingInput(f"plan_id: expected a plan that is sold, got {plan_id!r}") from error
        plans = plans_of.read(cursor)
    if not plan.is_active or plan.plan_type != "paid":
        raise BadBillingInput(f"plan_id: expected a plan that is sold, got {plan.slug}")
    if plan.stripe_price_monthly is None:
        raise BadBillingInput(f"plan {plan.slug} is agreed by contract, or not set up yet: write to us")
    return plan, plans


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _customer(billing: Billing, user_id: str) -> str:
    """Of who never bought anything there is none."""
    customer = customers.known(billing, user_id)
    if customer is None:
        raise NoSubscription
    return customer


def _running(found: list[SubscriptionFacts]) -> SubscriptionFacts:
    living = sorted((each for each in found if each.status in LIVE), key=lambda each: (each.created, each.id))
    if not living:
        raise NoSubscription
    return living[0]


def _demand_changeable(held: SubscriptionFacts, plans: PlansByPrice) -> None:
    if held.status in UNPAID:
        raise SubscriptionRuns("expected a subscription that is paid: pay its open invoice in the portal first")
    if held.cancel_at_period_end:
        raise SubscriptionRuns("expected a subscription that goes on: reactivate it first")
    if held.pending_price is not None:
        waiting = plans.prices.get(held.pending_price)
        raise PaymentOpen(waiting.slug if waiting else None)


def _dearer(billing: Billing, plan: Plan, than: str) -> bool:
    with tenancy.as_system("plans are the same for all"), billing.database.postgres() as cursor:
        before = catalog.plan_by_slug(cursor, than)
    return (plan.monthly_price or 0) > (before.monthly_price or 0)
