"""Stripe's API as the few questions and requests that billing has: facts out, our errors instead of the SDK's. Never inside a transaction.

Every request that changes something carries an idempotency key, so that the SDK's own retries, and ours after a crash, do it once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any

import stripe

from invokeai_saas.billing import facts
from invokeai_saas.billing.errors import PaymentDeclined, StripeObjectGone, StripeRefused, StripeUnavailable
from invokeai_saas.billing.model import InvoiceFacts, Pack, PaymentFacts, SubscriptionFacts

TIMEOUT_SECONDS = 20.0
RETRIES = 2
PAGE = 100
# What the webhook endpoint is set up for (docs/billing.md).
EVENT_TYPES = (
    "checkout.session.completed",
    "checkout.session.async_payment_succeeded",
    "checkout.session.async_payment_failed",
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.deleted",
    "invoice.payment_succeeded",
    "invoice.payment_failed",
    "payment_intent.succeeded",
    "charge.refunded",
    "charge.dispute.created",
    "charge.dispute.closed",
)


def client_of(key: str, *, api_base: str | None = None) -> stripe.StripeClient:
    """The official client, with a timeout and retries; `api_base` for a proxy or a double."""
    bases: Any = {} if api_base is None else {"base_addresses": {"api": api_base}}
    return stripe.StripeClient(key, http_client=stripe.RequestsClient(timeout=TIMEOUT_SECONDS), max_network_retries=RETRIES, **bases)


class Gateway:
    """One Stripe account. `in_transaction` says whether a transaction is open: then nothing may be asked."""

    def __init__(self, client: stripe.StripeClient, *, in_transaction: Callable[[], bool] = lambda: False) -> None:
        self._v1, self._in_transaction = client.v1, in_transaction

    # questions

    def check(self) -> None:
        """Raises what is the matter with the key or the way to Stripe; reads one event."""
        with self._translated():
            self._v1.events.list({"limit": 1})

    def price(self, name: str) -> tuple[bool, Decimal, str]:
        """Whether a price can be bought, what it asks and in which currency. Raises StripeObjectGone."""
        with self._translated():
            made = self._v1.prices.retrieve(name).to_dict()
        return bool(made["active"]), facts.money_of(made["unit_amount"] or 0, made["currency"]), str(made["currency"])

    def subscriptions(self, customer: str) -> list[SubscriptionFacts]:
        """Every subscription that the customer has or had."""
        wanted: Any = {"customer": customer, "status": "all", "limit": PAGE, "expand": ["data.latest_invoice"]}
        with self._translated():
            return [facts.subscription(each.to_dict()) for each in self._v1.subscriptions.list(wanted).auto_paging_iter()]

    def invoice(self, name: str) -> InvoiceFacts:
        """An invoice as it is now."""
        with self._translated():
            return facts.invoice(self._v1.invoices.retrieve(name, {"expand": ["payments"]}).to_dict())

    def invoices(self, customer: str) -> list[InvoiceFacts]:
        """Every invoice of the customer but drafts."""
        wanted: Any = {"customer": customer, "limit": PAGE, "expand": ["data.payments"]}
        with self._translated():
            found = self._v1.invoices.list(wanted).auto_paging_iter()
            return [facts.invoice(each.to_dict()) for each in found if each["status"] != "draft"]

    def payment(self, name: str) -> PaymentFacts:
        """A payment as it is now, with what it paid and what went back of it."""
        with self._translated():
            return self._payment(self._v1.payment_intents.retrieve(name, {"expand": ["latest_charge"]}).to_dict())

    def payments(self, customer: str) -> list[PaymentFacts]:
        """Every payment that the customer made or tried."""
        wanted: Any = {"customer": customer, "limit": PAGE, "expand": ["data.latest_charge"]}
        with self._translated():
            return [self._payment(each.to_dict()) for each in self._v1.payment_intents.list(wanted).auto_paging_iter()]

    def session_payment(self, name: str) -> str | None:
        """The PaymentIntent of a checkout, None for a subscription's."""
        with self._translated():
            session = self._v1.checkout.sessions.retrieve(name)
        return facts.id_of(session["payment_intent"]) if session["mode"] == "payment" else None

    def events(self, since: datetime) -> Iterator[Any]:
        """What happened since, newest first; Stripe remembers 30 days."""
        wanted: Any = {"created": {"gte": int(since.timestamp())}, "types": list(EVENT_TYPES), "limit": PAGE}
        with self._translated():
            for event in self._v1.events.list(wanted).auto_paging_iter():
                yield event.to_dict()

    def _payment(self, made: Any) -> PaymentFacts:
        charge, paid = made["latest_charge"], None
        refunds: list[facts.Object] = []
        disputes: list[facts.Object] = []
        if "pack" not in made["metadata"] and made["status"] == "succeeded":
            asked: Any = {"payment": {"type": "payment_intent", "payment_intent": made["id"]}}
            paying = self._v1.invoice_payments.list(asked).data
            paid = self.invoice(str(facts.id_of(paying[0]["invoice"]))) if paying else None
        if charge is not None and charge["amount_refunded"]:
            found = self._v1.refunds.list({"payment_intent": made["id"], "limit": PAGE})
            refunds = [each.to_dict() for each in found.auto_paging_iter()]
        if charge is not None and charge["disputed"]:
            listed = self._v1.disputes.list({"payment_intent": made["id"], "limit": PAGE})
            disputes = [each.to_dict() for each in listed.auto_paging_iter()]
        return facts.payment(made, paid=paid, refunds=refunds, disputes=disputes)

    # requests

    def make_customer(self, *, user_id: str, email: str, name: str | None, key: str) -> str:
        """A customer for a user; the same one again for the same key."""
        params: Any = {"email": email, "metadata": {"user_id": user_id}, **({"name": name} if name else {})}
        with self._translated():
            made: str = self._v1.customers.create(params, {"idempotency_key": key}).id
        return made

    def customer_is_there(self, customer: str) -> bool:
        """False for one that was deleted, or never was."""
        try:
            with self._translated():
                return not getattr(self._v1.customers.retrieve(customer), "deleted", False)
        except StripeObjectGone:
            return False

    def delete_customer(self, customer: str) -> None:
        """Ends everything of the customer at once; one that is gone already stays gone."""
        try:
            with self._translated():
                self._v1.customers.delete(customer)
        except StripeObjectGone:
            pass

    def sell_plan(
        self, *, customer: str, user_id: str, price: str, plan: str, success_url: str, cancel_url: str, key: str
    ) -> tuple[str, str]:
        """A checkout of a subscription: its id and the address to send the customer to. Checkouts that are open already are closed."""
        with self._translated():
            for open_one in self._v1.checkout.sessions.list({"customer": customer, "status": "open", "limit": PAGE}).data:
                if open_one["mode"] == "subscription":
                    self._v1.checkout.sessions.expire(open_one.id)
            params: Any = {
                "mode": "subscription",
                "customer": customer,
                "client_reference_id": user_id,
                "line_items": [{"price": price, "quantity": 1}],
                "subscription_data": {"metadata": {"user_id": user_id, "plan": plan}},
                "success_url": success_url,
                "cancel_url": cancel_url,
            }
            session = self._v1.checkout.sessions.create(params, {"idempotency_key": key})
        return session.id, str(session.url)

    def sell_pack(
        self, *, customer: str, user_id: str, pack: Pack, currency: str, success_url: str, cancel_url: str, key: str
    ) -> tuple[str, str]:
        """A checkout of a pack: its id and address. The PaymentIntent carries what to grant."""
        metadata = {"kind": facts.PACK_KIND, "pack": pack.name, "credits": str(pack.credits), "user_id": user_id}
        price = {
            "currency": currency,
            "unit_amount": facts.minor_of(pack.price, currency),
            "product_data": {"name": f"{pack.credits:,} credits"},
        }
        params: Any = {
            "mode": "payment",
            "customer": customer,
            "client_reference_id": user_id,
            "line_items": [{"price_data": price, "quantity": 1}],
            "payment_intent_data": {"metadata": metadata},
            "success_url": success_url,
            "cancel_url": cancel_url,
        }
        with self._translated():
            session = self._v1.checkout.sessions.create(params, {"idempotency_key": key})
        return session.id, str(session.url)

    def portal(self, *, customer: str, return_url: str) -> str:
        """Where the customer changes cards and reads invoices."""
        with self._translated():
            url: str = self._v1.billing_portal.sessions.create({"customer": customer, "return_url": return_url}).url
        return url

    def upgrade(self, held: SubscriptionFacts, *, price: str, key: str) -> str | None:
        """A dearer price now, the difference invoiced and charged at once. The invoice's id if it is not paid: the old price stays."""
        params: Any = {
            "items": [{"id": held.item_id, "price": price}],
            "proration_behavior": "always_invoice",
            "payment_behavior": "pending_if_incomplete",
        }
        changed = self._update(held.id, params, key)
        return None if changed["pending_update"] is None else facts.id_of(changed["latest_invoice"])

    def downgrade(self, held: SubscriptionFacts, *, price: str, plan: str, key: str) -> None:
        """A cheaper price from the next invoice on; the metadata say which plan counts until then."""
        until = str(int(held.period_end.timestamp()))
        metadata = {facts.HELD_PLAN: plan, facts.HELD_UNTIL: until}
        self._update(held.id, {"items": [{"id": held.item_id, "price": price}], "proration_behavior": "none", "metadata": metadata}, key)

    def undo_downgrade(self, held: SubscriptionFacts, *, price: str, key: str) -> None:
        """The price of the plan that counts, again; nothing is invoiced."""
        metadata = {facts.HELD_PLAN: "", facts.HELD_UNTIL: ""}
        self._update(held.id, {"items": [{"id": held.item_id, "price": price}], "proration_behavior": "none", "metadata": metadata}, key)

    def cancel_at_period_end(self, subscription: str, *, ending: bool, key: str) -> None:
        """Let it end with its period, or not."""
        self._update(subscription, {"cancel_at_period_end": ending}, key)

    def undo_duplicate(self, subscription: str, payment_intents: list[str]) -> None:
        """End a second subscription that was bought beside a running one, and give all of its money back."""
        with self._translated():
            for intent in payment_intents:
                params: Any = {"payment_intent": intent, "reason": "duplicate"}
                try:
                    self._v1.refunds.create(params, {"idempotency_key": f"duplicate-{intent}"})
                except stripe.InvalidRequestError as error:
                    if error.code != "charge_already_refunded":
                        raise
            self._v1.subscriptions.cancel(subscription, {}, {"idempotency_key": f"duplicate-{subscription}"})

    def _update(self, subscription: str, params: Any, key: str) -> Any:
        with self._translated():
            return self._v1.subscriptions.update(subscription, params, {"idempotency_key": key}).to_dict()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """The SDK's errors as ours; what it does not know goes on as it is."""
        if self._in_transaction():
            raise RuntimeError("expected no open transaction around a call to Stripe")
        try:
            yield
        except (stripe.APIConnectionError, stripe.RateLimitError) as error:
            raise StripeUnavailable from error
        except stripe.CardError as error:
            raise PaymentDeclined(str(error.user_message or "the card was declined")) from error
        except stripe.InvalidRequestError as error:
            gone = error.code == "resource_missing"
            raise (StripeObjectGone if gone else StripeRefused)(str(error.user_message or error)) from error
        except stripe.APIError as error:
            raise StripeUnavailable from error
        except (stripe.AuthenticationError, stripe.PermissionError, stripe.IdempotencyError) as error:
            raise StripeRefused(str(error.user_message or error)) from error
