"""Stripe's objects in, facts out: the only place that knows where a field stands at the pinned API version (2026-10-28.endive).

Since 2025-03-31 a subscription's period stands on its item, an invoice's subscription in its parent, its payments in a list.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from invokeai_saas.billing.model import (
    MONEY_GONE,
    DisputeFacts,
    InvoiceFacts,
    LineFacts,
    PaymentFacts,
    RefundFacts,
    SubscriptionFacts,
)

Object = Mapping[str, Any]
PACK_KIND = "credit_pack"
HELD_PLAN, HELD_UNTIL = "held_plan", "held_until"
# Currencies without a minor unit: 500 is 500 yen.
WHOLE = frozenset({"bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "ugx", "vnd", "vuv", "xaf", "xof", "xpf"})


def time_of(seconds: int) -> datetime:
    """Stripe's seconds as a time."""
    return datetime.fromtimestamp(seconds, UTC)


def money_of(minor: int, currency: str) -> Decimal:
    """Stripe's minor units as money: 2500 of usd is 25.00."""
    return Decimal(minor) if currency in WHOLE else Decimal(minor) / 100


def minor_of(amount: Decimal, currency: str) -> int:
    """Money in Stripe's minor units."""
    return int(amount if currency in WHOLE else amount * 100)


def id_of(value: Any) -> str | None:
    """The id of a field that may be expanded."""
    return None if value is None else value if isinstance(value, str) else str(value["id"])


def subscription(made: Object) -> SubscriptionFacts:
    """From a subscription with its `latest_invoice` expanded."""
    item = made["items"]["data"][0]
    metadata, invoice, pending = made["metadata"], made["latest_invoice"], made["pending_update"]
    start = time_of(item["current_period_start"])
    finalized = None if invoice is None or isinstance(invoice, str) else invoice["status_transitions"]["finalized_at"]
    wanted = (pending or {}).get("subscription_items") or []
    return SubscriptionFacts(
        id=made["id"],
        customer=str(id_of(made["customer"])),
        status=made["status"],
        created=time_of(made["created"]),
        item_id=item["id"],
        price=item["price"]["id"],
        product=str(id_of(item["price"]["product"])),
        period_start=start,
        period_end=time_of(item["current_period_end"]),
        cancel_at_period_end=bool(made["cancel_at_period_end"] or made["cancel_at"]),
        unpaid_since=time_of(finalized) if finalized else start,
        held_plan=metadata.get(HELD_PLAN),
        held_until=time_of(int(metadata[HELD_UNTIL])) if HELD_UNTIL in metadata else None,
        pending_price=wanted[0]["price"]["id"] if wanted else None,
    )


def invoice(made: Object) -> InvoiceFacts:
    """From an invoice with its `payments` expanded."""
    details = (made["parent"] or {}).get("subscription_details") or {}
    credits = (details.get("metadata") or {}).get("credits", "")
    paid_at = made["status_transitions"]["paid_at"]
    return InvoiceFacts(
        id=made["id"],
        customer=str(id_of(made["customer"])),
        subscription=id_of(details.get("subscription")),
        status=made["status"],
        attempted=made["attempted"],
        created=time_of(made["created"]),
        paid_at=time_of(paid_at) if paid_at else None,
        amount=money_of(made["amount_paid"] if made["status"] == "paid" else made["amount_due"], made["currency"]),
        currency=made["currency"],
        payment_intent=_intent_of(made),
        lines=tuple(_line(each) for each in made["lines"]["data"] if _sells(each)),
        contract_credits=int(credits) if str(credits).isdigit() else None,
    )


def _intent_of(made: Object) -> str | None:
    """Of several payments the one that was paid, else the default one."""
    payments = sorted((made.get("payments") or {"data": []})["data"], key=lambda each: (each["status"] != "paid", not each["is_default"]))
    return next((id_of(each["payment"].get("payment_intent")) for each in payments), None)


def _sells(line: Object) -> bool:
    return bool((line["parent"] or {}).get("subscription_item_details")) and bool((line["pricing"] or {}).get("price_details"))


def _line(made: Object) -> LineFacts:
    details, price = made["parent"]["subscription_item_details"], made["pricing"]["price_details"]
    credited = (details["proration_details"] or {}).get("credited_items")
    return LineFacts(
        price=str(id_of(price["price"])),
        product=str(id_of(price["product"])),
        proration=bool(details["proration"]),
        credit=bool(details["proration"]) and (credited is not None or made["amount"] < 0),
        period_end=time_of(made["period"]["end"]),
    )


def payment(made: Object, *, paid: InvoiceFacts | None, refunds: Sequence[Object], disputes: Sequence[Object]) -> PaymentFacts:
    """From a PaymentIntent with its `latest_charge` expanded."""
    metadata, charge, currency = made["metadata"], made["latest_charge"], made["currency"]
    pack = metadata.get("pack") if metadata.get("kind") == PACK_KIND else None
    return PaymentFacts(
        id=made["id"],
        customer=id_of(made["customer"]),
        status=made["status"],
        amount=money_of(made["amount_received"] or made["amount"], currency),
        currency=currency,
        paid_at=time_of(made["created"] if charge is None else charge["created"]),
        pack=pack,
        pack_credits=int(metadata["credits"]) if pack else 0,
        invoice=paid,
        refunds=tuple(
            RefundFacts(
                id=each["id"],
                amount=money_of(each["amount"], currency),
                created=time_of(each["created"]),
                counts=each["status"] not in ("failed", "canceled"),
            )
            for each in refunds
        ),
        disputes=tuple(
            DisputeFacts(id=each["id"], amount=money_of(each["amount"], currency), money_gone=each["status"] in MONEY_GONE)
            for each in disputes
        ),
    )
