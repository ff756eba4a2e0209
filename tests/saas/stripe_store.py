"""What the double of Stripe keeps: objects by id, a clock on which things fall due, events; and what needs nothing else.

Store: customers, prices, checkouts, portal, clock     Money (stripe_money.py): subscriptions, invoices, charges
"""

import heapq
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from saas.stripe_objects import Object, Refused, make
from stripe._api_version import _ApiVersion

DAY = 86400
PREFIXES = {
    "billing_portal.session": "bps", "charge": "ch", "checkout.session": "cs_test", "customer": "cus", "dispute": "dp", "event": "evt",
    "invoice": "in", "invoice_payment": "inpay", "line_item": "il", "payment_intent": "pi", "price": "price", "product": "prod",
    "refund": "re", "subscription": "sub", "subscription_item": "si", "test_helpers.test_clock": "clock",
}  # fmt: skip


@dataclass
class Store:
    """Objects, clock and events of one account."""

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

    def _new_customer(self, given: Object) -> Object:
        customer = self.put("customer", **given)
        self.cards[customer["id"]] = "ok"
        self.emit("customer.created", customer)
        return customer

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
