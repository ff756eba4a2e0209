"""What the verbs of billing share: what Stripe's objects say, as far as it matters here, the policy's numbers and the bundle they take.

Facts are read from one object each and say what is true now, never what changed: to apply them twice, or an old event's after a new
one's, comes to the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from invokeai_saas.accounts.model import Accounts
from invokeai_saas.db.database import PostgresDatabase

if TYPE_CHECKING:
    from invokeai_saas.billing.gateway import Gateway

# Stripe's states in which a subscription is owed or paid; `incomplete` was never paid.
LIVE = frozenset({"active", "past_due", "unpaid", "trialing", "paused"})
UNPAID = frozenset({"past_due", "unpaid", "paused"})
NEVER_BEGAN = frozenset({"incomplete", "incomplete_expired"})
# A dispute in these states has taken the money; an inquiry (warning_...) has not, a won one has brought it back.
MONEY_GONE = frozenset({"needs_response", "under_review", "lost", "appeal_needs_response", "appeal_under_review"})
MAX_GRACE_DAYS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionFacts:
    """A subscription at Stripe. The period is its item's. `held_plan` counts until `held_until`: a downgrade that waits."""

    id: str
    customer: str
    status: str
    created: datetime
    item_id: str
    price: str
    product: str
    period_start: datetime
    period_end: datetime
    cancel_at_period_end: bool
    unpaid_since: datetime
    held_plan: str | None
    held_until: datetime | None
    pending_price: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LineFacts:
    """A line of an invoice that sells a plan. `credit`: it gives back the unused rest of the plan before."""

    price: str
    product: str
    proration: bool
    credit: bool
    period_end: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceFacts:
    """An invoice. `contract_credits`: what the subscription's metadata say that a month grants, for plans that do not."""

    id: str
    customer: str
    subscription: str | None
    status: str
    attempted: bool
    created: datetime
    paid_at: datetime | None
    amount: Decimal
    currency: str
    payment_intent: str | None
    lines: tuple[LineFacts, ...]
    contract_credits: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundFacts:
    """A refund; a failed or canceled one gives nothing back."""

    id: str
    amount: Decimal
    created: datetime
    counts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DisputeFacts:
    """A dispute and whether it holds the money."""

    id: str
    amount: Decimal
    money_gone: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentFacts:
    """A PaymentIntent with its charge, what went back of it, and what it paid: an invoice, a pack, or nothing of ours."""

    id: str
    customer: str | None
    status: str
    amount: Decimal
    currency: str
    paid_at: datetime
    pack: str | None
    pack_credits: int
    invoice: InvoiceFacts | None
    refunds: tuple[RefundFacts, ...]
    disputes: tuple[DisputeFacts, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """Credits to buy at once (C-21)."""

    name: str
    credits: int
    price: Decimal
    valid: timedelta = timedelta(days=60)


PACKS = {
    pack.name: pack
    for pack in (
        Pack(name="small", credits=1000, price=Decimal("5.00")),
        Pack(name="medium", credits=5000, price=Decimal("25.00")),
        Pack(name="large", credits=15000, price=Decimal("75.00")),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingPolicy:
    """`livemode` and `account` say whose events count. `grace` is how long an unpaid subscription goes on."""

    grace: timedelta = timedelta(days=7)
    currency: str = "usd"
    livemode: bool = False
    account: str | None = None
    lease: timedelta = timedelta(seconds=120)
    # A verb waits this long for whoever is changing the same customer.
    wait: timedelta = timedelta(seconds=10)
    max_attempts: int = 16
    webhook_secrets: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not timedelta(0) <= self.grace <= timedelta(days=MAX_GRACE_DAYS):
            raise ValueError(f"grace: expected 0 to {MAX_GRACE_DAYS} days, got {self.grace}")


Tell = Callable[[str, str, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Billing:
    """What every verb takes first. `gateway` is None without Stripe keys. `tell(user_id, event, data)` reaches the user's open pages."""

    accounts: Accounts
    gateway: "Gateway | None" = None
    policy: BillingPolicy = BillingPolicy()
    tell: Tell = lambda user_id, event, data: None
    # Called after an event was written down: whoever processes the inbox need not wait for the next round.
    wake: Callable[[], None] = lambda: None

    @property
    def database(self) -> PostgresDatabase:
        """Where everything is."""
        return self.accounts.database


Interval = Literal["month", "year"]
