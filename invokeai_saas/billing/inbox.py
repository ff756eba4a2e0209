"""Stripe's events: proved, written down once by their id, taken by customer, ended. No event is processed here.

body ─► verify ─► record (the insert decides who was first) ─► 200          take ─► events of one customer, leased and fenced
                                                                          finish / postpone ─► done, later, or failed
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import stripe

from invokeai_saas.accounts.store import Cursor
from invokeai_saas.billing.errors import BadWebhook, Fenced
from invokeai_saas.billing.facts import id_of, time_of
from invokeai_saas.billing.gateway import EVENT_TYPES
from invokeai_saas.billing.model import Billing, BillingPolicy
from invokeai_saas.db import tenancy

TOLERANCE_SECONDS = 300
# Where the object that an event is about is named: its own id, or the payment that it belongs to.
KINDS = {
    "checkout.session": ("checkout_session", "id"),
    "customer.subscription": ("subscription", "id"),
    "invoice": ("invoice", "id"),
    "payment_intent": ("payment_intent", "id"),
    "charge": ("payment_intent", "payment_intent"),
    "charge.dispute": ("payment_intent", "payment_intent"),
}
# Events of customers that are not ours are kept as ignored: somebody may ask later why nothing happened.
RECORD = """
INSERT INTO stripe_events (event_id, type, customer, object_kind, object_id, happened_at, state, processed_at)
SELECT %(event_id)s, %(type)s, %(customer)s, %(object_kind)s, %(object_id)s, %(happened_at)s, state,
    CASE WHEN state = 'ignored' THEN clock_timestamp() END
FROM (SELECT CASE WHEN %(customer)s::text IS NULL OR EXISTS (SELECT FROM billing_customers WHERE stripe_customer_id = %(customer)s)
    THEN 'waiting' ELSE 'ignored' END AS state) AS decided
ON CONFLICT (event_id) DO NOTHING RETURNING state
"""
# The customer whose event waits longest, unless somebody looks after them; %(customer)s NULL means any.
DUE = """
SELECT customer FROM stripe_events
WHERE state = 'waiting' AND customer IS NOT NULL AND not_before <= clock_timestamp()
    AND NOT EXISTS (SELECT FROM customer_leases AS held WHERE held.customer = stripe_events.customer AND leased_until > clock_timestamp())
ORDER BY not_before LIMIT 1
"""
LEASE = """
INSERT INTO customer_leases AS held (customer, fence, leased_until) VALUES (%(customer)s, 1, clock_timestamp() + %(lease)s)
ON CONFLICT (customer) DO UPDATE SET fence = held.fence + 1, leased_until = EXCLUDED.leased_until
    WHERE held.leased_until <= clock_timestamp()
RETURNING fence
"""
TAKE = """
UPDATE stripe_events SET attempts = attempts + 1 WHERE customer = %s AND state = 'waiting' AND not_before <= clock_timestamp()
RETURNING event_id, object_kind, object_id
"""
# Held until the end of the transaction: nobody takes the customer over while what was fetched is applied.
FENCE = "SELECT FROM customer_leases WHERE customer = %s AND fence = %s FOR UPDATE"
RELEASE = "UPDATE customer_leases SET leased_until = '-infinity' WHERE customer = %s AND fence = %s"
FINISH = "UPDATE stripe_events SET state = 'done', processed_at = clock_timestamp(), error = NULL WHERE event_id = ANY(%s)"
# 10 s, 20 s, 40 s ... an hour.
POSTPONE = """
UPDATE stripe_events SET error = %(error)s, state = CASE WHEN attempts >= %(most)s THEN 'failed' ELSE 'waiting' END,
    not_before = clock_timestamp() + least(interval '1 hour', interval '5 seconds' * power(2, least(attempts, 20)))
WHERE event_id = ANY(%(events)s) RETURNING event_id, state
"""
UNRESOLVED = """
UPDATE stripe_events SET attempts = attempts + 1, not_before = clock_timestamp() + interval '2 minutes'
WHERE event_id = (SELECT event_id FROM stripe_events WHERE state = 'waiting' AND customer IS NULL AND not_before <= clock_timestamp()
    ORDER BY not_before LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING event_id, object_id
"""
RESOLVE = """
UPDATE stripe_events SET customer = %(customer)s, not_before = clock_timestamp(),
    state = CASE WHEN known THEN 'waiting' ELSE 'ignored' END, processed_at = CASE WHEN known THEN NULL ELSE clock_timestamp() END
FROM (SELECT EXISTS (SELECT FROM billing_customers WHERE stripe_customer_id = %(customer)s) AS known) AS asked
WHERE event_id = %(event_id)s AND state = 'waiting'
"""
LIST = """
SELECT event_id, type, customer, object_id, state, attempts, received_at, not_before, error FROM stripe_events
WHERE state = ANY(%s) ORDER BY received_at DESC LIMIT %s
"""
COUNTS = "SELECT state, count(*) AS n, min(received_at) AS oldest FROM stripe_events GROUP BY state"
RETRY = """
UPDATE stripe_events SET state = 'waiting', attempts = 0, not_before = clock_timestamp(), processed_at = NULL
WHERE state IN ('failed', 'ignored', 'waiting', 'done') AND event_id = %s
"""
RETRY_FAILED = """
UPDATE stripe_events SET state = 'waiting', attempts = 0, not_before = clock_timestamp() WHERE state = 'failed' OR
    (state = 'waiting' AND error IS NOT NULL)
"""
FORGET = "DELETE FROM stripe_events WHERE processed_at < clock_timestamp() - %s"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ref:
    """An object that is to be looked at, and the events that asked for it."""

    kind: str
    id: str
    events: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Taken:
    """A customer that is ours for a while, and what is to be looked at."""

    customer: str
    fence: int
    refs: tuple[Ref, ...]


def verified(policy: BillingPolicy, body: bytes, header: str | None) -> dict[str, Any]:
    """The event, if Stripe signed exactly these bytes within 300 s; raises BadWebhook. Several secrets: one is being replaced."""
    if header is not None and not header.isascii():
        # The SDK compares it as text and would raise something else.
        raise BadWebhook
    for secret in policy.webhook_secrets:
        try:
            stripe.WebhookSignature.verify_header(body, header, secret, TOLERANCE_SECONDS)
            event = json.loads(body)
        except (stripe.SignatureVerificationError, ValueError, RecursionError):
            continue
        if _is_event(event):
            return dict(event)
    raise BadWebhook


def _is_event(event: Any) -> bool:
    if not isinstance(event, dict) or event.get("object") != "event" or not isinstance(event.get("data"), dict):
        return False
    kinds = {"id": str, "type": str, "created": int, "livemode": bool}
    return isinstance(event["data"].get("object"), dict) and all(isinstance(event.get(name), kind) for name, kind in kinds.items())


def record(billing: Billing, event: Mapping[str, Any]) -> str:
    """Write the event down, once; what became of it: waiting, known, ignored."""
    if event["type"] not in EVENT_TYPES:
        return "ignored"
    account = event.get("account")
    if event["livemode"] != billing.policy.livemode or (account is not None and account != billing.policy.account):
        logger.warning("event %s is of another account or mode and was ignored: livemode %s", event["id"], event["livemode"])
        return "ignored"
    about = event["data"]["object"]
    kind, field = KINDS[event["type"].rpartition(".")[0]]
    name = id_of(about.get(field))
    if name is None:
        return "ignored"
    values = {
        "event_id": event["id"],
        "type": event["type"],
        "customer": id_of(about.get("customer")),
        "object_kind": kind,
        "object_id": name,
        "happened_at": time_of(event["created"]),
    }
    with tenancy.as_system("events come from Stripe, for whomever"), billing.database.postgres() as cursor:
        row = cursor.execute(RECORD, values).fetchone()
    if row is not None and row["state"] == "ignored":
        logger.warning("event %s is of a customer that nobody here has and was ignored", event["id"])
    return "known" if row is None else str(row["state"])


def take(billing: Billing, customer: str | None = None, *, extra: tuple[Ref, ...] = ()) -> Taken | None:
    """Lease a customer, and with it all of its events that are due; None when nothing is due or the customer is looked after."""
    with tenancy.as_system("the inbox is everybody's"), billing.database.postgres() as cursor:
        if customer is None:
            due = cursor.execute(DUE).fetchone()
            if due is None:
                return None
            customer = due["customer"]
        leased = cursor.execute(LEASE, {"customer": customer, "lease": billing.policy.lease}).fetchone()
        if leased is None:
            return None
        refs: dict[tuple[str, str], list[str]] = {(ref.kind, ref.id): [] for ref in extra}
        for row in cursor.execute(TAKE, (customer,)).fetchall():
            refs.setdefault((row["object_kind"], row["object_id"]), []).append(row["event_id"])
    return Taken(customer, leased["fence"], tuple(Ref(kind, name, tuple(events)) for (kind, name), events in refs.items()))


def demand_fence(cursor: Cursor, taken: Taken) -> None:
    """Raise Fenced when somebody else has the customer now; else nobody gets it before the end of the transaction."""
    if cursor.execute(FENCE, (taken.customer, taken.fence)).fetchone() is None:
        raise Fenced("this customer is looked after by somebody else now")


def finish(cursor: Cursor, events: Iterable[str]) -> None:
    """These events are done."""
    cursor.execute(FINISH, (list(events),))


def postpone(cursor: Cursor, events: Iterable[str], *, error: str, most: int) -> None:
    """Try these later; after `most` tries they wait for a person, and the log says so."""
    rows = cursor.execute(POSTPONE, {"events": list(events), "error": error[:1000], "most": most}).fetchall()
    for row in rows:
        if row["state"] == "failed":
            logger.error("event %s was given up after %d tries: %s", row["event_id"], most, error)


def release(cursor: Cursor, taken: Taken) -> None:
    """The next one may have the customer."""
    cursor.execute(RELEASE, (taken.customer, taken.fence))


def next_unresolved(billing: Billing) -> tuple[str, str] | None:
    """An event that does not say whose it is, and its payment."""
    with tenancy.as_system("the inbox is everybody's"), billing.database.postgres() as cursor:
        row = cursor.execute(UNRESOLVED).fetchone()
    return None if row is None else (row["event_id"], row["object_id"])


def resolve(billing: Billing, event_id: str, customer: str) -> None:
    """Now it is known whose event it is."""
    with tenancy.as_system("the inbox is everybody's"), billing.database.postgres() as cursor:
        cursor.execute(RESOLVE, {"event_id": event_id, "customer": customer})


def listed(billing: Billing, states: Iterable[str], *, limit: int = 100) -> list[dict[str, Any]]:
    """The newest events in these states."""
    with tenancy.as_system("an operator looks into the inbox"), billing.database.postgres() as cursor:
        return cursor.execute(LIST, (list(states), limit)).fetchall()


def counts(billing: Billing) -> dict[str, tuple[int, datetime]]:
    """How many events are in each state, and since when the oldest is."""
    with tenancy.as_system("an operator looks into the inbox"), billing.database.postgres() as cursor:
        return {row["state"]: (int(row["n"]), row["oldest"]) for row in cursor.execute(COUNTS).fetchall()}


def retry(billing: Billing, event_id: str | None) -> int:
    """Process an event again, whatever became of it, or (None) all that failed; returns how many. What was applied stays applied once."""
    with tenancy.as_system("an operator retries events"), billing.database.postgres() as cursor:
        if event_id is None:
            cursor.execute(RETRY_FAILED)
        else:
            cursor.execute(RETRY, (event_id,))
        return cursor.rowcount


def forget(billing: Billing, *, older: timedelta = timedelta(days=90)) -> int:
    """Drop what was processed long ago; Stripe sends nothing again after 30 days."""
    with tenancy.as_system("the inbox is everybody's"), billing.database.postgres() as cursor:
        cursor.execute(FORGET, (older,))
        return cursor.rowcount
