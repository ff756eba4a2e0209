"""Facts in, rows out: subscriptions, payments and grants become what Stripe says now.

Inside one fenced transaction, each fact in a savepoint. Nothing here asks what happened before at Stripe: to apply a fact twice, late or
after a newer one of another object changes nothing.
"""

import logging
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from invokeai_saas.accounts import erase, letters, mail, store
from invokeai_saas.accounts.store import Cursor
from invokeai_saas.billing import plans_of
from invokeai_saas.billing.errors import UnknownPrice
from invokeai_saas.billing.model import LIVE, NEVER_BEGAN, PACKS, UNPAID, Billing, InvoiceFacts, PaymentFacts, SubscriptionFacts
from invokeai_saas.billing.plans_of import PlansByPrice
from invokeai_saas.credits import service as credits

SUBSCRIBED = """
INSERT INTO user_subscriptions AS held (user_id, plan_id, next_plan_id, stripe_subscription_id, stripe_customer_id, status,
    current_period_start, current_period_end, cancel_at_period_end, past_due_since, grace_until, created_at)
VALUES (%(user_id)s, %(plan_id)s, %(next_plan_id)s, %(id)s, %(customer)s, %(status)s, %(period_start)s, %(period_end)s,
    %(cancel_at_period_end)s, %(past_due_since)s, %(grace_until)s, %(created)s)
ON CONFLICT (stripe_subscription_id) DO UPDATE SET plan_id = EXCLUDED.plan_id, next_plan_id = EXCLUDED.next_plan_id,
    status = EXCLUDED.status, current_period_start = EXCLUDED.current_period_start, current_period_end = EXCLUDED.current_period_end,
    cancel_at_period_end = EXCLUDED.cancel_at_period_end, past_due_since = EXCLUDED.past_due_since, grace_until = EXCLUDED.grace_until,
    told_of = CASE WHEN EXCLUDED.status = 'past_due' THEN held.told_of END, updated_at = clock_timestamp()
RETURNING xmax = 0 AS fresh
"""
# A trial ends with the first subscription; what an operator gave by hand ends when a paid one runs.
END_TRIAL = """
UPDATE user_subscriptions SET status = 'canceled', updated_at = clock_timestamp()
WHERE user_id = %s AND stripe_subscription_id IS NULL AND status = 'trialing'
"""
END_OTHERS = """
UPDATE user_subscriptions SET status = 'canceled', past_due_since = NULL, grace_until = NULL, updated_at = clock_timestamp()
WHERE user_id = %s AND stripe_subscription_id IS DISTINCT FROM %s AND status IN ('trialing', 'active', 'past_due')
"""
BEFORE = "SELECT status, credits FROM payments WHERE stripe_invoice_id = %s FOR UPDATE"
INVOICE_PAYMENT = """
INSERT INTO payments AS paid (user_id, kind, stripe_payment_intent_id, stripe_invoice_id, amount, currency, status, credits, plan_slug,
    description, created_at)
VALUES (%(user_id)s, 'subscription', %(payment_intent)s, %(id)s, %(amount)s, %(currency)s, %(status)s, %(credits)s, %(plan_slug)s,
    %(description)s, %(created)s)
ON CONFLICT (stripe_invoice_id) DO UPDATE SET stripe_payment_intent_id = COALESCE(EXCLUDED.stripe_payment_intent_id,
    paid.stripe_payment_intent_id), amount = EXCLUDED.amount, status = EXCLUDED.status, credits = EXCLUDED.credits,
    plan_slug = EXCLUDED.plan_slug, description = EXCLUDED.description, created_at = EXCLUDED.created_at, updated_at = clock_timestamp()
    WHERE paid.status IN ('pending', 'failed')
"""
PACK_BEFORE = "SELECT status, credits FROM payments WHERE stripe_payment_intent_id = %s FOR UPDATE"
PACK_PAYMENT = """
INSERT INTO payments AS paid (user_id, kind, stripe_payment_intent_id, amount, currency, status, credits, description, created_at)
VALUES (%(user_id)s, 'pack', %(id)s, %(amount)s, %(currency)s, %(status)s, %(credits)s, %(description)s, %(created)s)
ON CONFLICT (stripe_payment_intent_id) DO UPDATE SET status = EXCLUDED.status, credits = EXCLUDED.credits, amount = EXCLUDED.amount,
    created_at = EXCLUDED.created_at, updated_at = clock_timestamp() WHERE paid.status IN ('pending', 'failed')
"""
MONEY_BACK = """
UPDATE payments SET amount_refunded = %(refunded)s, disputed = %(disputed)s, updated_at = clock_timestamp(),
    status = CASE WHEN %(refunded)s >= amount AND amount > 0 THEN 'refunded' ELSE 'succeeded' END
WHERE stripe_payment_intent_id = %(id)s AND status IN ('succeeded', 'refunded')
RETURNING credits, amount, kind, stripe_invoice_id
"""
PACK_STATUS = {"succeeded": "succeeded", "processing": "pending", "requires_payment_method": "failed", "canceled": "failed"}

logger = logging.getLogger(__name__)


@dataclass
class Applying:
    """One user's turn: the open transaction, the plans, and what is to be said after the commit."""

    billing: Billing
    cursor: Cursor
    user_id: str
    plans: PlansByPrice
    now: datetime
    news: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    # A second subscription bought beside a running one, with what it cost: undone at Stripe afterwards.
    duplicates: list[SubscriptionFacts] = field(default_factory=list)

    def write(self, kind: letters.Kind) -> None:
        """A letter to the user, in this transaction; nobody writes to who is gone."""
        account = store.by_id(self.cursor, self.user_id)
        if account is not None and account.deleted_at is None:
            mail.enqueue(self.cursor, account, kind, self.billing.accounts.policy, "")


def begin(billing: Billing, cursor: Cursor, user_id: str) -> Applying:
    """Everything that applying needs to read first."""
    return Applying(billing, cursor, user_id, plans_of.read(cursor), datetime.now(UTC))


def subscriptions(turn: Applying, found: Iterable[SubscriptionFacts]) -> None:
    """All of a customer's subscriptions: at most one runs here, the oldest of those that live at Stripe."""
    held = sorted((each for each in found if each.status not in NEVER_BEGAN), key=lambda each: (each.created, each.id))
    if not held:
        return
    living = [each for each in held if each.status in LIVE]
    runs = living[0] if living else None
    turn.duplicates = living[1:]
    turn.cursor.execute(END_TRIAL, (turn.user_id,))
    for each in held:
        if each is not runs:
            _subscribed(turn, each, "canceled")
    if runs is not None:
        turn.cursor.execute(END_OTHERS, (turn.user_id, runs.id))
        _subscribed(turn, runs, "past_due" if runs.status in UNPAID else "active")
        turn.cursor.execute(erase.RESUME_ACCESS, (turn.user_id,))


def _subscribed(turn: Applying, held: SubscriptionFacts, status: str) -> None:
    plan, following = turn.plans.counting(held)
    unpaid = status == "past_due"
    row = turn.cursor.execute(
        SUBSCRIBED,
        {
            "user_id": turn.user_id,
            "plan_id": plan.plan_id,
            "next_plan_id": following.plan_id if following and status != "canceled" else None,
            "id": held.id,
            "customer": held.customer,
            "status": status,
            "period_start": held.period_start,
            "period_end": held.period_end,
            "cancel_at_period_end": held.cancel_at_period_end,
            "past_due_since": held.unpaid_since if unpaid else None,
            "grace_until": held.unpaid_since + turn.billing.policy.grace if unpaid else None,
            "created": held.created,
        },
    ).fetchone()
    if row is not None and row["fresh"] and status == "active":
        turn.news.append(("subscription_activated", {"plan": plan.slug}))


def invoice(turn: Applying, found: InvoiceFacts) -> None:
    """A paid invoice grants once, whatever the plan grants by then; an unpaid one is a failed payment."""
    before = turn.cursor.execute(BEFORE, (found.id,)).fetchone()
    if before is not None and before["status"] in ("succeeded", "refunded"):
        return
    if found.status == "paid" and found.paid_at is not None:
        _paid(turn, found, found.paid_at)
    elif found.attempted:
        _invoice_payment(turn, found, status="failed", granted=0, plan_slug=_wanted(turn, found), description="Invoice not paid")
        if before is None:
            turn.write("payment_failed")


def _paid(turn: Applying, found: InvoiceFacts, paid_at: datetime) -> None:
    granted, plan, line = plans_of.credits_of(turn.plans, found)
    slug = plan.slug if plan else None
    what = "Invoice" if plan is None else f"Upgrade to {slug}" if line and line.proration else f"Plan {slug}"
    _invoice_payment(turn, found, status="succeeded", granted=granted, plan_slug=slug, description=what)
    if granted and plan and line:
        # An upgrade belongs to the period that runs; a period's credits outlive a renewal that is paid a little later.
        until = line.period_end if line.proration else max(line.period_end, paid_at + timedelta(days=plan.validity_days))
        _grant(turn, granted, "subscription", paid_at, until, f"{what}: {granted:,} credits", found.id)
        turn.write("renewed")


def _wanted(turn: Applying, found: InvoiceFacts) -> str | None:
    """The plan that an unpaid invoice would pay."""
    try:
        plan = plans_of.credits_of(turn.plans, found)[1]
    except UnknownPrice:
        return None
    return plan.slug if plan else None


def _invoice_payment(turn: Applying, found: InvoiceFacts, *, status: str, granted: int, plan_slug: str | None, description: str) -> None:
    turn.cursor.execute(
        INVOICE_PAYMENT,
        {
            "user_id": turn.user_id,
            "payment_intent": found.payment_intent,
            "id": found.id,
            "amount": found.amount,
            "currency": found.currency,
            "status": status,
            "credits": granted,
            "plan_slug": plan_slug,
            "description": description,
            "created": found.paid_at or found.created,
        },
    )


def payment(turn: Applying, found: PaymentFacts) -> None:
    """A PaymentIntent: a pack that it bought, or the invoice that it paid; then what went back of it."""
    if found.pack is not None:
        _pack(turn, found)
    elif found.invoice is not None:
        invoice(turn, found.invoice)
    else:
        return
    _money_back(turn, found)


def _pack(turn: Applying, found: PaymentFacts) -> None:
    before = turn.cursor.execute(PACK_BEFORE, (found.id,)).fetchone()
    status = PACK_STATUS.get(found.status)
    if status is None or (before is not None and before["status"] in ("succeeded", "refunded", status)):
        return
    paid = status == "succeeded"
    what = f"Pack {found.pack}: {found.pack_credits:,} credits"
    turn.cursor.execute(
        PACK_PAYMENT,
        {
            "user_id": turn.user_id,
            "id": found.id,
            "amount": found.amount,
            "currency": found.currency,
            "status": status,
            "credits": found.pack_credits if paid else 0,
            "description": what,
            "created": found.paid_at,
        },
    )
    if paid:
        valid = PACKS[found.pack].valid if found.pack in PACKS else timedelta(days=60)
        _grant(turn, found.pack_credits, "purchase", found.paid_at, found.paid_at + valid, what, found.id)
        turn.news.append(("credits_purchased", {"credits": found.pack_credits}))
    turn.write({"succeeded": "pack_bought", "pending": "pack_pending", "failed": "pack_failed"}[status])  # type: ignore[arg-type]


def _grant(turn: Applying, amount: int, source: Any, since: datetime, until: datetime, what: str, reference: str) -> None:
    if until <= turn.now:
        # Paid long ago and never heard of: our delay is not theirs.
        since, until = turn.now, turn.now + (until - since)
    credits.grant(
        turn.cursor,
        user_id=turn.user_id,
        credits=amount,
        source=source,
        valid_from=since,
        valid_until=until,
        description=what,
        reference_id=reference,
    )


def _money_back(turn: Applying, found: PaymentFacts) -> None:
    """Refunds and disputes, each once by its id, in parts of the whole; a refund that failed or a dispute that was won gives back."""
    counted = sorted((each for each in found.refunds if each.counts), key=lambda each: (each.created, each.id))
    refunded = sum((each.amount for each in counted), start=found.amount * 0)
    disputed = any(each.money_gone for each in found.disputes)
    row = turn.cursor.execute(MONEY_BACK, {"refunded": refunded, "disputed": disputed, "id": found.id}).fetchone()
    if row is None or not row["credits"]:
        return
    source, reference = ("purchase", found.id) if row["kind"] == "pack" else ("subscription", row["stripe_invoice_id"])

    def part(amount: Any) -> int:
        return min(int(row["credits"]), int(row["credits"] * amount // row["amount"]))

    before = found.amount * 0
    for each in counted:
        _take_back(turn, part(before + each.amount) - part(before), source, reference, each.id, "Refund")
        before += each.amount
    for refund in found.refunds:
        if not refund.counts:
            _give_back(turn, refund.id, "Refund failed")
    for dispute in found.disputes:
        if dispute.money_gone:
            _take_back(turn, part(dispute.amount), source, reference, dispute.id, "Disputed payment")
        else:
            _give_back(turn, dispute.id, "Dispute settled")


def _take_back(turn: Applying, amount: int, source: Any, reference: str, key: str, reason: str) -> None:
    if amount > 0:
        taken = credits.take_back(
            turn.cursor, user_id=turn.user_id, credits=amount, source_reference=reference, source=source, key=key, reason=reason
        )
        if taken.first:
            turn.write("money_back")


def _give_back(turn: Applying, key: str, reason: str) -> None:
    if credits.give_back(turn.cursor, key=key, reason=reason) > 0:
        turn.write("credits_back")


@contextmanager
def in_savepoint(cursor: Cursor, failed: Callable[[Exception], None]) -> Any:
    """What fails in the block is undone and reported; the rest of the transaction goes on."""
    try:
        with cursor.connection.transaction():
            yield
    except Exception as error:
        failed(error)
