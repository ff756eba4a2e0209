"""What Stripe does with money: checkouts are paid, subscriptions renew, cards fail and are tried again, charges go back.

Store: objects by id, the clock, events     Money: endpoints of the API     customers, banks and time: pay(), wait(), dispute() ...
"""

import heapq
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from saas.stripe_objects import Object, Refused, listed, make
from stripe._api_version import _ApiVersion

DAY = 86400
MONTH = 30 * DAY
# A renewal's invoice is a draft for an hour; a failed card is tried again at these days, then the subscription ends.
DRAFT_SECONDS = 3600
RETRY_DAYS = (3, 5, 7)
PENDING_UPDATE_SECONDS = 23 * 3600
LIVE = ("active", "past_due", "trialing", "unpaid")
PREFIXES = {
    "billing_portal.session": "bps", "charge": "ch", "checkout.session": "cs_test", "customer": "cus", "dispute": "dp", "event": "evt",
    "invoice": "in", "invoice_payment": "inpay", "line_item": "il", "payment_intent": "pi", "price": "price", "product": "prod",
    "refund": "re", "subscription": "sub", "subscription_item": "si", "test_helpers.test_clock": "clock",
}  # fmt: skip


@dataclass
class Money:
    """Objects, clock and events of one account, and what moves them."""

    now: int = field(default_factory=lambda: int(time.time()))
    cards: dict[str, str] = field(default_factory=dict)
    # Called with every event's JSON, as it happens; the list keeps them all, as GET /v1/events shows them.
    deliver: Callable[[str], None] = lambda event: None
    _kinds: dict[str, dict[str, Object]] = field(default_factory=dict)
    _numbers: Any = field(default_factory=lambda: itertools.count(1))
    _wanted: dict[str, Object] = field(default_factory=dict)
    _on_paid: dict[str, Callable[[], None]] = field(default_factory=dict)
    _due: list[tuple[int, int, Callable[[], None]]] = field(default_factory=list)

    # objects

    def put(self, kind: str, **values: Any) -> Object:
        """A new object with an id of its kind."""
        name = f"{PREFIXES[kind]}_{next(self._numbers):06d}"
        stamped = {} if kind in ("line_item", "test_helpers.test_clock") else {"created": self.now}
        made = make(kind, **{"id": name, **stamped, **values})
        self._kinds.setdefault(kind, {})[name] = made
        return made

    def find(self, kind: str, name: str) -> Object:
        """The object, or Stripe's 404."""
        found = self._kinds.get(kind, {}).get(name)
        if found is None:
            raise Refused(404, f"No such {kind}: '{name}'", code="resource_missing", param="id")
        return found

    def all(self, kind: str) -> list[Object]:
        """Oldest first."""
        return list(self._kinds.get(kind, {}).values())

    def by_id(self, name: str) -> Object:
        """An object of whatever kind."""
        return next(objects[name] for objects in self._kinds.values() if name in objects)

    def emit(self, type: str, about: Object) -> None:
        """Record an event with the object as it is now, and send it."""
        event = self.put("event", type=type, api_version=_ApiVersion.CURRENT, data={"object": json.loads(json.dumps(about))})
        self.deliver(json.dumps(event))

    # time

    def at(self, when: int, what: Callable[[], None]) -> None:
        """Do `what` once the clock gets there."""
        heapq.heappush(self._due, (when, next(self._numbers), what))

    def wait(self, seconds: int) -> None:
        """Let time pass; what falls due happens at its time, in order."""
        until = self.now + seconds
        while self._due and self._due[0][0] <= until:
            when, _, what = heapq.heappop(self._due)
            self.now = max(self.now, when)
            what()
        self.now = until

    # endpoints

    def endpoints(self) -> dict[str, Callable[..., Object]]:
        """'METHOD resource' -> what it does."""
        return {
            "POST customers": lambda given: self._new_customer(given),
            "DELETE customers/{id}": self.delete_customer,
            "POST products": lambda given: self.put("product", updated=self.now, **given),
            "POST prices": self._new_price,
            "POST checkout/sessions": self._new_session,
            "POST checkout/sessions/{id}/expire": self._expire_session,
            "POST subscriptions/{id}": self._update_subscription,
            "DELETE subscriptions/{id}": self._cancel_subscription,
            "POST invoices/{id}/pay": self._pay_invoice,
            "POST invoices/{id}/void": self._void_invoice,
            "POST refunds": self._refund,
            "POST billing_portal/sessions": self._portal,
            "POST test_helpers/test_clocks": lambda given: self.put(
                "test_helpers.test_clock",
                created=self.now,
                deletes_after=self.now + 30 * DAY,
                frozen_time=int(given["frozen_time"]),
                name=given.get("name"),
            ),
            "POST test_helpers/test_clocks/{id}/advance": self._advance,
        }

    def _new_customer(self, given: Object) -> Object:
        customer = self.put("customer", **given)
        self.cards[customer["id"]] = "ok"
        self.emit("customer.created", customer)
        return customer

    def delete_customer(self, name: str, given: Object | None = None) -> Object:
        """Its subscriptions end at once."""
        customer = self._customer(name)
        for subscription in self.all("subscription"):
            if subscription["customer"] == name and subscription["status"] in LIVE:
                self._end(subscription)
        customer["deleted"] = True
        self.emit("customer.deleted", customer)
        return {"id": name, "object": "customer", "deleted": True}

    def _customer(self, name: str) -> Object:
        found = self._kinds.get("customer", {}).get(name)
        if found is None or found.get("deleted"):
            raise Refused(400, f"No such customer: '{name}'", code="resource_missing", param="customer")
        return found

    def _new_price(self, given: Object) -> Object:
        interval = given.get("recurring", {}).get("interval", "month")
        recurring = {"interval": interval, "interval_count": 1, "meter": None, "trial_period_days": None, "usage_type": "licensed"}
        amount = int(given["unit_amount"])
        self.find("product", given["product"])
        return self.put(
            "price",
            currency=given["currency"],
            product=given["product"],
            unit_amount=amount,
            unit_amount_decimal=str(amount),
            recurring=recurring,
            metadata=given.get("metadata", {}),
        )

    def _new_session(self, given: Object) -> Object:
        self._customer(given["customer"])
        lines, mode = given["line_items"], given["mode"]
        amounts = [
            (self.find("price", line["price"]) if "price" in line else {"unit_amount": int(line["price_data"]["unit_amount"])})[
                "unit_amount"
            ]
            * int(line.get("quantity", 1))
            for line in lines
        ]
        session = self.put(
            "checkout.session",
            customer=given["customer"],
            mode=mode,
            status="open",
            payment_status="unpaid",
            amount_subtotal=sum(amounts),
            amount_total=sum(amounts),
            currency="usd",
            cancel_url=given.get("cancel_url"),
            success_url=given["success_url"],
            client_reference_id=given.get("client_reference_id"),
            metadata=given.get("metadata", {}),
            expires_at=self.now + DAY,
        )
        session["url"] = f"https://checkout.stripe.com/c/pay/{session['id']}"
        self._wanted[session["id"]] = given
        return session

    def _expire_session(self, name: str, given: Object) -> Object:
        session = self.find("checkout.session", name)
        if session["status"] != "open":
            raise Refused(400, 'Only Checkout Sessions with a status in ["open"] can be expired.')
        session.update(status="expired", url=None)
        self.emit("checkout.session.expired", session)
        return session

    def _update_subscription(self, name: str, given: Object) -> Object:
        subscription = self.find("subscription", name)
        if subscription["status"] == "canceled":
            raise Refused(404, f"No such subscription: '{name}'", code="resource_missing", param="id")
        if given.get("payment_behavior") == "pending_if_incomplete" and {"metadata", "cancel_at_period_end"} & set(given):
            raise Refused(400, "When `payment_behavior` is `pending_if_incomplete` you can only pass supported params.")
        if "cancel_at_period_end" in given:
            ending = given["cancel_at_period_end"] == "true"
            end = self._item(subscription)["current_period_end"]
            reason = {"comment": None, "feedback": None, "reason": "cancellation_requested" if ending else None}
            subscription.update(
                cancel_at_period_end=ending,
                cancel_at=end if ending else None,
                canceled_at=self.now if ending else None,
                cancellation_details=reason,
            )
        for key, value in given.get("metadata", {}).items():
            subscription["metadata"] = {k: v for k, v in {**subscription["metadata"], key: value}.items() if v != ""}
        for wanted in given.get("items", []):
            self._change_price(subscription, self.find("price", wanted["price"]), given)
        self.emit("customer.subscription.updated", subscription)
        return subscription

    def _change_price(self, subscription: Object, price: Object, given: Object) -> None:
        item, behavior = self._item(subscription), given.get("proration_behavior", "create_prorations")
        if behavior == "none":
            item["price"] = price
            return
        if behavior != "always_invoice":
            raise Refused(400, f"the double does not do proration_behavior {behavior}")
        old, (start, end) = item["price"], (item["current_period_start"], item["current_period_end"])
        rest = max(0, end - self.now) / (end - start)
        lines = [(old, -round(old["unit_amount"] * rest), True), (price, round(price["unit_amount"] * rest), False)]
        invoice = self._invoice(subscription, "subscription_update", [(*line, self.now, end, True) for line in lines])
        apply = lambda: item.update(price=price)  # noqa: E731
        self._finalize(invoice, on_paid=apply if given.get("payment_behavior") == "pending_if_incomplete" else lambda: None)
        if given.get("payment_behavior") != "pending_if_incomplete":
            apply()
        elif invoice["status"] != "paid":
            self._keep_pending(subscription, invoice, price)

    def _keep_pending(self, subscription: Object, invoice: Object, price: Object) -> None:
        expires = self.now + PENDING_UPDATE_SECONDS
        wanted = {**self._item(subscription), "price": price}
        nothing = ("billing_cycle_anchor", "cancel_at_period_end", "discount", "discounts", "metadata", "trial_end", "trial_from_plan")
        subscription["pending_update"] = {**dict.fromkeys(nothing), "expires_at": expires, "subscription_items": [wanted]}

        def give_up() -> None:
            if invoice["status"] == "open":
                self._void_invoice(invoice["id"], {})
                subscription["pending_update"] = None
                self.emit("customer.subscription.pending_update_expired", subscription)

        self.at(expires, give_up)

    def _cancel_subscription(self, name: str, given: Object) -> Object:
        subscription = self.find("subscription", name)
        if subscription["status"] == "canceled":
            raise Refused(404, f"No such subscription: '{name}'", code="resource_missing", param="id")
        self._end(subscription)
        return subscription

    def _pay_invoice(self, name: str, given: Object) -> Object:
        invoice = self.find("invoice", name)
        if invoice["status"] != "open":
            raise Refused(400, "Invoice is already paid")
        if not self._attempt(invoice):
            raise Refused(402, "Your card was declined.", type="card_error", code="card_declined")
        return invoice

    def _void_invoice(self, name: str, given: Object) -> Object:
        invoice = self.find("invoice", name)
        invoice.update(status="void", status_transitions={**invoice["status_transitions"], "voided_at": self.now})
        self.emit("invoice.voided", invoice)
        return invoice

    def _refund(self, given: Object) -> Object:
        intent = self.find("payment_intent", given["payment_intent"])
        charge = self.find("charge", intent["latest_charge"])
        amount = int(given.get("amount", charge["amount"] - charge["amount_refunded"]))
        if charge["refunded"] or amount > charge["amount"] - charge["amount_refunded"] or amount <= 0:
            raise Refused(400, f"Charge {charge['id']} has already been refunded.", code="charge_already_refunded")
        reason = given.get("reason")
        refund = self.put("refund", amount=amount, charge=charge["id"], currency="usd", payment_intent=intent["id"], reason=reason)
        charge["amount_refunded"] += amount
        charge["refunded"] = charge["amount_refunded"] == charge["amount"]
        self.emit("charge.refunded", charge)
        return refund

    def _portal(self, given: Object) -> Object:
        self._customer(given["customer"])
        session = self.put("billing_portal.session", customer=given["customer"], return_url=given.get("return_url"))
        session["url"] = f"https://billing.stripe.com/p/session/{session['id']}"
        return session

    def _advance(self, name: str, given: Object) -> Object:
        clock = self.find("test_helpers.test_clock", name)
        if int(given["frozen_time"]) <= clock["frozen_time"]:
            raise Refused(400, "A test clock only moves forward")
        self.wait(int(given["frozen_time"]) - clock["frozen_time"])
        clock["frozen_time"] = int(given["frozen_time"])
        return clock

    # what customers and banks do

    def pay(self, session_id: str, *, later: bool = False) -> Object:
        """The customer fills in the checkout. `later`: a bank debit that settle() ends."""
        session = self.find("checkout.session", session_id)
        if session["status"] != "open":
            raise Refused(400, "the checkout is not open")
        given = self._wanted[session_id]
        session.update(status="complete", url=None, payment_status="unpaid" if later else "paid")
        if session["mode"] == "subscription":
            subscription = self._subscribe(session["customer"], given)
            session.update(subscription=subscription["id"], invoice=subscription["latest_invoice"])
        else:
            intent = self._intent(session["customer"], session["amount_total"], given.get("payment_intent_data", {}).get("metadata", {}))
            session["payment_intent"] = intent["id"]
            if later:
                intent["status"] = "processing"
            else:
                self._charge(intent)
        self.emit("checkout.session.completed", session)
        return session

    def settle(self, session_id: str, *, ok: bool) -> None:
        """The bank debit of a pay(later=True) arrives, or bounces."""
        session = self.find("checkout.session", session_id)
        intent = self.find("payment_intent", session["payment_intent"])
        if ok:
            session["payment_status"] = "paid"
            self._charge(intent)
        else:
            intent["status"] = "requires_payment_method"
            self.emit("payment_intent.payment_failed", intent)
        self.emit(f"checkout.session.async_payment_{'succeeded' if ok else 'failed'}", session)

    def dispute(self, intent_id: str, *, status: str = "needs_response") -> Object:
        """The customer's bank takes the money back for now; an inquiry (warning_needs_response) only asks."""
        charge = self.find("charge", self.find("payment_intent", intent_id)["latest_charge"])
        dispute = self.put("dispute", amount=charge["amount"], charge=charge["id"], currency="usd", payment_intent=intent_id, status=status)
        charge["disputed"] = True
        self.emit("charge.dispute.created", dispute)
        return dispute

    def close_dispute(self, dispute_id: str, status: str) -> None:
        """won, lost or warning_closed."""
        dispute = self.find("dispute", dispute_id)
        dispute["status"] = status
        self.emit("charge.dispute.closed", dispute)

    # subscriptions, invoices, charges

    def _subscribe(self, customer: str, given: Object) -> Object:
        price = self.find("price", given["line_items"][0]["price"])
        end = self.now + (MONTH if price["recurring"]["interval"] == "month" else 365 * DAY)
        subscription = self.put(
            "subscription",
            customer=customer,
            currency="usd",
            status="incomplete",
            start_date=self.now,
            billing_cycle_anchor=self.now,
            metadata=given.get("subscription_data", {}).get("metadata", {}),
        )
        item = self.put(
            "subscription_item",
            price=price,
            subscription=subscription["id"],
            current_period_start=self.now,
            current_period_end=end,
        )
        subscription["items"] = listed([item], f"/v1/subscription_items?subscription={subscription['id']}")
        line = (price, price["unit_amount"], False, self.now, end, False)
        self._finalize(self._invoice(subscription, "subscription_create", [line]))
        self.emit("customer.subscription.created", subscription)
        self.at(end, lambda: self._renew(subscription))
        return subscription

    @staticmethod
    def _item(subscription: Object) -> Object:
        item: Object = subscription["items"]["data"][0]
        return item

    def _renew(self, subscription: Object) -> None:
        if subscription["status"] not in LIVE:
            return
        item = self._item(subscription)
        if subscription["cancel_at_period_end"]:
            self._end(subscription)
            return
        start, price = item["current_period_end"], item["price"]
        end = start + (MONTH if price["recurring"]["interval"] == "month" else 365 * DAY)
        item.update(current_period_start=start, current_period_end=end)
        self.at(end, lambda: self._renew(subscription))
        invoice = self._invoice(subscription, "subscription_cycle", [(price, price["unit_amount"], False, start, end, False)])
        self.emit("customer.subscription.updated", subscription)
        self.at(start + DRAFT_SECONDS, lambda: self._finalize(invoice))

    def _end(self, subscription: Object) -> None:
        subscription.update(status="canceled", ended_at=self.now, canceled_at=subscription["canceled_at"] or self.now)
        self.emit("customer.subscription.deleted", subscription)

    def _invoice(self, subscription: Object, reason: str, lines: list[tuple[Object, int, bool, int, int, bool]]) -> Object:
        total = sum(amount for _, amount, *_ in lines)
        invoice = self.put(
            "invoice",
            customer=subscription["customer"],
            currency="usd",
            billing_reason=reason,
            status="draft",
            period_start=self.now,
            period_end=self.now,
            parent={
                "quote_details": None,
                "subscription_details": {"metadata": subscription["metadata"], "subscription": subscription["id"]},
                "type": "subscription_details",
            },
            status_transitions=dict.fromkeys(("finalized_at", "marked_uncollectible_at", "paid_at", "voided_at")),
            amount_due=total,
            amount_paid=0,
            amount_remaining=total,
            subtotal=total,
            total=total,
        )
        made = [self._line(invoice, subscription, *line) for line in lines]
        invoice["lines"] = listed(made, f"/v1/invoices/{invoice['id']}/lines")
        subscription["latest_invoice"] = invoice["id"]
        return invoice

    def _line(
        self, invoice: Object, subscription: Object, price: Object, amount: int, credit: bool, start: int, end: int, proration: bool
    ) -> Object:
        credited = {"invoice": "in_000000", "invoice_line_items": ["il_000000"]} if credit else None
        details = {
            "invoice_item": None,
            "proration": proration,
            "proration_details": {"credited_items": credited},
            "subscription": subscription["id"],
            "subscription_item": self._item(subscription)["id"],
        }
        return self.put(
            "line_item",
            amount=amount,
            subtotal=amount,
            currency="usd",
            invoice=invoice["id"],
            period={"start": start, "end": end},
            parent={"invoice_item_details": None, "subscription_item_details": details, "type": "subscription_item_details"},
            pricing={
                "price_details": {"price": price["id"], "product": price["product"]},
                "type": "price_details",
                "unit_amount_decimal": str(price["unit_amount"]),
            },
        )

    def _finalize(self, invoice: Object, on_paid: Callable[[], None] = lambda: None) -> None:
        subscription = self._subscription_of(invoice)
        if invoice["status"] != "draft" or subscription["status"] == "canceled":
            return
        invoice["status"] = "open"
        invoice["status_transitions"]["finalized_at"] = self.now
        self._on_paid[invoice["id"]] = on_paid
        if invoice["total"] > 0:
            intent = self._intent(invoice["customer"], invoice["total"], {})
            self.put(
                "invoice_payment",
                amount_requested=invoice["total"],
                currency="usd",
                invoice=invoice["id"],
                payment={"payment_intent": intent["id"], "type": "payment_intent"},
                status="open",
                status_transitions={"canceled_at": None, "paid_at": None},
            )
        if not self._attempt(invoice) and invoice["billing_reason"] != "subscription_update":
            for nth, days in enumerate(RETRY_DAYS, start=1):
                self.at(self.now + days * DAY, lambda last=nth == len(RETRY_DAYS): self._try_again(invoice, last=last))

    def _try_again(self, invoice: Object, *, last: bool) -> None:
        if invoice["status"] == "open" and not self._attempt(invoice) and last:
            self._end(self._subscription_of(invoice))

    def _subscription_of(self, invoice: Object) -> Object:
        return self.find("subscription", invoice["parent"]["subscription_details"]["subscription"])

    def _attempt(self, invoice: Object) -> bool:
        subscription = self._subscription_of(invoice)
        if subscription["status"] == "canceled":
            return False
        invoice.update(attempted=True, attempt_count=invoice["attempt_count"] + 1)
        if invoice["total"] > 0 and self.cards[invoice["customer"]] != "ok":
            if invoice["billing_reason"] != "subscription_update" and subscription["status"] == "active":
                subscription["status"] = "past_due"
                self.emit("customer.subscription.updated", subscription)
            self.emit("invoice.payment_failed", invoice)
            return False
        self._paid(invoice, subscription)
        return True

    def _paid(self, invoice: Object, subscription: Object) -> None:
        invoice.update(status="paid", amount_paid=invoice["total"], amount_remaining=0)
        invoice["status_transitions"]["paid_at"] = self.now
        for payment in self.all("invoice_payment"):
            if payment["invoice"] == invoice["id"]:
                payment.update(status="paid", amount_paid=invoice["total"], status_transitions={"canceled_at": None, "paid_at": self.now})
                self._charge(self.find("payment_intent", payment["payment"]["payment_intent"]))
        self._on_paid[invoice["id"]]()
        changed = subscription["status"] in ("past_due", "incomplete") or subscription["pending_update"] is not None
        fresh = subscription["status"] == "incomplete"
        subscription.update(status="active", pending_update=None)
        self.emit("invoice.paid", invoice)
        self.emit("invoice.payment_succeeded", invoice)
        if changed and not fresh:
            self.emit("customer.subscription.updated", subscription)

    def _intent(self, customer: str, amount: int, metadata: Object) -> Object:
        return self.put(
            "payment_intent", amount=amount, currency="usd", customer=customer, metadata=metadata, status="requires_payment_method"
        )

    def _charge(self, intent: Object) -> None:
        about = {"amount": intent["amount"], "amount_captured": intent["amount"], "currency": "usd", "customer": intent["customer"]}
        charge = self.put("charge", **about, payment_intent=intent["id"], metadata=intent["metadata"])
        intent.update(status="succeeded", amount_received=intent["amount"], latest_charge=charge["id"])
        self.emit("charge.succeeded", charge)
        self.emit("payment_intent.succeeded", intent)
