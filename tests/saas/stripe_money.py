"""What the double of Stripe does with money: checkouts are paid, subscriptions renew, cards fail and are tried again, charges go back.

endpoints of the API     what customers and banks do: pay(), settle(), dispute() ...     subscriptions, invoices, charges
"""

from collections.abc import Callable
from dataclasses import dataclass

from saas.stripe_objects import Object, Refused, listed
from saas.stripe_store import DAY, Store

MONTH = 30 * DAY
# A renewal's invoice is a draft for an hour; a failed card is tried again at these days, then the subscription ends.
DRAFT_SECONDS = 3600
RETRY_DAYS = (3, 5, 7)
PENDING_UPDATE_SECONDS = 23 * 3600
LIVE = ("active", "past_due", "trialing", "unpaid")


@dataclass
class Money(Store):
    """What moves money."""

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

    def delete_customer(self, name: str, given: Object | None = None) -> Object:
        """Its subscriptions end at once."""
        customer = self._customer(name)
        for subscription in self.all("subscription"):
            if subscription["customer"] == name and subscription["status"] in LIVE:
                self._end(subscription)
        customer["deleted"] = True
        self.emit("customer.deleted", customer)
        return {"id": name, "object": "customer", "deleted": True}

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
