"""Which plan a price sells, and how many credits a paid invoice grants. Pure, but for reading the plans' rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from invokeai_saas.accounts.store import Cursor
from invokeai_saas.billing.errors import UnknownPrice
from invokeai_saas.billing.model import InvoiceFacts, LineFacts, SubscriptionFacts

ALL = """
SELECT plan_id, slug, monthly_credits, validity_days, monthly_price, stripe_product, stripe_price_monthly, stripe_price_annual
FROM subscription_plans
"""
MONTHS_OF_A_YEAR = 12


@dataclass(frozen=True, slots=True)
class SoldPlan:
    """What billing knows of a plan. `months`: what one payment of the price covers."""

    plan_id: UUID
    slug: str
    monthly_credits: int | None
    validity_days: int
    months: int = 1


@dataclass(frozen=True, slots=True)
class PlansByPrice:
    """Prices first: a product keeps its old prices after a new one is set, so the product is the second way to its plan."""

    prices: Mapping[str, SoldPlan]
    products: Mapping[str, SoldPlan]
    slugs: Mapping[str, SoldPlan]

    def sold(self, price: str, product: str) -> SoldPlan:
        """The plan of a price; raises UnknownPrice."""
        found = self.prices.get(price) or self.products.get(product)
        if found is None:
            raise UnknownPrice(f"price {price} of product {product} belongs to no plan")
        return found

    def counting(self, held: SubscriptionFacts) -> tuple[SoldPlan, SoldPlan | None]:
        """The plan that counts now, and the one that follows at the end of the period when a downgrade waits."""
        priced = self.sold(held.price, held.product)
        before = self.slugs.get(held.held_plan or "")
        if before is None or held.held_until is None or held.period_start >= held.held_until:
            return priced, None
        return before, priced


def read(cursor: Cursor) -> PlansByPrice:
    """All plans, inactive ones too: who is on one stays on it."""
    prices, products, slugs = {}, {}, {}
    for row in cursor.execute(ALL).fetchall():
        plan = SoldPlan(row["plan_id"], row["slug"], row["monthly_credits"], row["validity_days"])
        slugs[plan.slug] = plan
        if row["stripe_product"]:
            products[row["stripe_product"]] = plan
        if row["stripe_price_monthly"]:
            prices[row["stripe_price_monthly"]] = plan
        if row["stripe_price_annual"]:
            prices[row["stripe_price_annual"]] = _yearly(row)
    return PlansByPrice(prices, products, slugs)


def credits_of(plans: PlansByPrice, invoice: InvoiceFacts) -> tuple[int, SoldPlan | None, LineFacts | None]:
    """What a paid invoice grants, the plan that it is for, and the line that says so.

    A period's invoice grants the plan's credits. An upgrade's has two lines, the old plan's rest back and the new plan's rest: it grants
    the difference of the two plans' credits (Q-21).
    """
    whole = [line for line in invoice.lines if not line.proration]
    lines = whole or [line for line in invoice.lines if line.proration]
    total, bought = 0, None
    for line in lines:
        amount = _month(plans.sold(line.price, line.product), invoice)
        total += -amount if line.credit else amount
        bought = bought if line.credit else line
    return max(0, total), plans.sold(bought.price, bought.product) if bought else None, bought


def _month(plan: SoldPlan, invoice: InvoiceFacts) -> int:
    credits = plan.monthly_credits if plan.monthly_credits is not None else invoice.contract_credits
    return (credits or 0) * plan.months


def _yearly(row: Mapping[str, Any]) -> SoldPlan:
    return SoldPlan(row["plan_id"], row["slug"], row["monthly_credits"], 365, MONTHS_OF_A_YEAR)
