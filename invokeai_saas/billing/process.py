"""The inbox emptied, one customer at a time, by as many processes as there are:

    take (lease in one transaction) ─► fetch from Stripe, outside of any ─► apply in a second transaction, if the lease's fence still stands

What cannot be fetched or applied is tried again later; what can be is not held up by it.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from invokeai_saas.accounts.store import Cursor
from invokeai_saas.billing import apply, customers, inbox
from invokeai_saas.billing.errors import Busy, Fenced, StripeObjectGone, StripeUnavailable
from invokeai_saas.billing.gateway import Gateway
from invokeai_saas.billing.inbox import Ref, Taken
from invokeai_saas.billing.model import Billing, InvoiceFacts, PaymentFacts, SubscriptionFacts
from invokeai_saas.db import tenancy
from invokeai_saas.errors import SaasError

# A customer's whole state is asked for by this; no event does.
EVERYTHING = Ref("everything", "")
SUBSCRIPTIONS = Ref("subscription", "")
POLL_SECONDS = 0.1

logger = logging.getLogger(__name__)


@dataclass
class Snapshot:
    """What Stripe said of a customer. `wrong`: what could not be asked, and why."""

    subscriptions: list[SubscriptionFacts] | None = None
    invoices: dict[str, InvoiceFacts] = field(default_factory=dict)
    payments: dict[str, PaymentFacts] = field(default_factory=dict)
    wrong: dict[Ref, Exception] = field(default_factory=dict)
    # What an object's facts are for: the events that end with it.
    of: dict[tuple[str, str], list[Ref]] = field(default_factory=dict)


def process_waiting(billing: Billing, *, at_most: int = 1000) -> int:
    """Empty the inbox as far as it is due; returns how many customers were looked after."""
    done = 0
    _resolve(billing)
    while done < at_most:
        taken = inbox.take(billing)
        if taken is None:
            break
        _look_after(billing, taken)
        done += 1
    return done


def process_customer(billing: Billing, customer: str, *extra: Ref) -> bool:
    """Look after one customer now, with whatever waits for them; False when somebody else is at it."""
    taken = inbox.take(billing, customer, extra=extra)
    if taken is None:
        return False
    _look_after(billing, taken)
    return True


@contextmanager
def holding(billing: Billing, customer: str) -> Iterator[Callable[..., None]]:
    """Keep everybody else off a customer while a verb changes it at Stripe; call what is yielded to bring the change in, and what else
    the change touched. Raises Busy.
    """
    deadline = time.monotonic() + billing.policy.wait.total_seconds()
    while (taken := inbox.take(billing, customer, extra=(SUBSCRIPTIONS,))) is None:
        if time.monotonic() >= deadline:
            raise Busy
        time.sleep(POLL_SECONDS)
    brought_in = False

    def bring_in(*extra: Ref) -> None:
        nonlocal brought_in
        brought_in = True
        _look_after(billing, replace(taken, refs=(*taken.refs, *extra)))

    try:
        yield bring_in
    finally:
        if not brought_in:
            _give_up(billing, taken)


def _look_after(billing: Billing, taken: Taken) -> None:
    snapshot = fetch(billing, taken)
    try:
        duplicates = _apply(billing, taken, snapshot)
    except Fenced:
        logger.warning("customer %s was taken over meanwhile: what was fetched is discarded", taken.customer)
        return
    for held in duplicates:
        _undo_duplicate(billing, held)


def fetch(billing: Billing, taken: Taken) -> Snapshot:
    """Ask Stripe for each object once, as it is now. No transaction is open."""
    gateway, snapshot = customers.gateway_of(billing), Snapshot()
    for ref in taken.refs:
        try:
            _fetch(gateway, taken.customer, ref, snapshot)
        except StripeObjectGone as error:
            logger.warning("%s %s of customer %s is gone at Stripe", ref.kind, ref.id, taken.customer, exc_info=error)
        except Exception as error:
            # Whatever is the matter with one object, the others are brought in.
            snapshot.wrong[ref] = error
    return snapshot


def _fetch(gateway: Gateway, customer: str, ref: Ref, snapshot: Snapshot) -> None:
    if ref.kind == "everything":
        for invoice in gateway.invoices(customer):
            snapshot.invoices[invoice.id] = invoice
        for payment in gateway.payments(customer):
            snapshot.payments[payment.id] = payment
    elif ref.kind == "invoice" and ref.id not in snapshot.invoices:
        snapshot.invoices[ref.id] = gateway.invoice(ref.id)
    elif ref.kind == "payment_intent":
        _fetch_payment(gateway, ref.id, ref, snapshot)
    elif ref.kind == "checkout_session":
        intent = gateway.session_payment(ref.id)
        if intent is not None:
            _fetch_payment(gateway, intent, ref, snapshot)
            return
    # Any of them may have changed what runs; asked once.
    snapshot.of.setdefault((ref.kind, ref.id), []).append(ref)
    if ref.kind != "payment_intent" and snapshot.subscriptions is None:
        snapshot.subscriptions = gateway.subscriptions(customer)


def _fetch_payment(gateway: Gateway, intent: str, ref: Ref, snapshot: Snapshot) -> None:
    if intent not in snapshot.payments:
        snapshot.payments[intent] = gateway.payment(intent)
    snapshot.of.setdefault(("payment_intent", intent), []).append(ref)


def _apply(billing: Billing, taken: Taken, snapshot: Snapshot) -> list[SubscriptionFacts]:
    """Everything in one transaction, behind the fence; returns the subscriptions that must be undone at Stripe."""
    wrong = dict(snapshot.wrong)
    with tenancy.as_system("what Stripe says of a customer becomes rows"), billing.database.postgres() as cursor:
        inbox.demand_fence(cursor, taken)
        user_id = customers.user_of(cursor, taken.customer)
        if user_id is None:
            inbox.finish(cursor, [event for ref in taken.refs for event in ref.events])
            inbox.release(cursor, taken)
            return []
        turn = apply.begin(billing, cursor, user_id)
        if snapshot.subscriptions is not None:
            everybody = [ref for ref in taken.refs if ref.kind in ("subscription", "invoice", "checkout_session", "everything")]
            with apply.in_savepoint(cursor, lambda error: wrong.update(dict.fromkeys(everybody, error))):
                apply.subscriptions(turn, snapshot.subscriptions)
        for payment in sorted(snapshot.payments.values(), key=lambda each: (each.paid_at, each.id)):
            refs = snapshot.of.get(("payment_intent", payment.id), [])
            with apply.in_savepoint(cursor, lambda error, refs=refs: wrong.update(dict.fromkeys(refs, error))):  # type: ignore[misc]
                apply.payment(turn, payment)
        for invoice in sorted(snapshot.invoices.values(), key=lambda each: (each.created, each.id)):
            refs = snapshot.of.get(("invoice", invoice.id), [])
            with apply.in_savepoint(cursor, lambda error, refs=refs: wrong.update(dict.fromkeys(refs, error))):  # type: ignore[misc]
                apply.invoice(turn, invoice)
        inbox.finish(cursor, [event for ref in taken.refs if ref not in wrong for event in ref.events])
        for ref, error in wrong.items():
            _postpone(billing, cursor, ref, error)
        inbox.release(cursor, taken)
        for name, data in turn.news:
            billing.database.on_commit(lambda name=name, data=data: billing.tell(user_id, name, data))  # type: ignore[misc]
    return turn.duplicates


def _postpone(billing: Billing, cursor: Cursor, ref: Ref, error: Exception) -> None:
    if ref.events:
        inbox.postpone(cursor, ref.events, error=f"{type(error).__name__}: {error}", most=billing.policy.max_attempts)
    # An outage of Stripe is no news; what a person must look at is.
    level = logging.INFO if isinstance(error, StripeUnavailable) else logging.ERROR
    logger.log(level, "%s %s could not be brought in and will be tried again", ref.kind, ref.id, exc_info=error)


def _give_up(billing: Billing, taken: Taken) -> None:
    """Leave the customer as it is; the events that were taken with it are due again."""
    with tenancy.as_system("the inbox is everybody's"), billing.database.postgres() as cursor:
        try:
            inbox.demand_fence(cursor, taken)
        except Fenced:
            return
        inbox.release(cursor, taken)


def _undo_duplicate(billing: Billing, held: SubscriptionFacts) -> None:
    """Two checkouts were paid: the later subscription ends, its money goes back. The events of that take its credits back."""
    gateway = customers.gateway_of(billing)
    logger.warning("subscription %s was bought beside a running one: it is ended and refunded", held.id)
    try:
        paid = [each for each in gateway.invoices(held.customer) if each.subscription == held.id and each.payment_intent]
        gateway.undo_duplicate(held.id, [str(each.payment_intent) for each in paid if each.status == "paid"])
    except SaasError:
        logger.exception("subscription %s could not be ended: the next event of its customer tries again", held.id)


def _resolve(billing: Billing) -> None:
    """Disputes do not say whose they are: their payment does."""
    while (found := inbox.next_unresolved(billing)) is not None:
        event_id, intent = found
        try:
            customer = customers.gateway_of(billing).payment(intent).customer
        except SaasError as error:
            _postpone_one(billing, event_id, error)
        else:
            inbox.resolve(billing, event_id, customer or "")


def _postpone_one(billing: Billing, event_id: str, error: Exception) -> None:
    with tenancy.as_system("the inbox is everybody's"), billing.database.postgres() as cursor:
        inbox.postpone(cursor, [event_id], error=f"{type(error).__name__}: {error}", most=billing.policy.max_attempts)
