"""A Stripe for tests: prices, Checkout, subscriptions, invoices, payments, refunds, disputes, portal, events and a clock, in memory.

The official SDK talks to it, over HTTP or in process (stripe_serving.py); what customers and banks do (pay, fail, dispute, wait) are its
methods. It refuses parameters that Stripe's SDK does not know, keeps idempotency keys and can be told to fail.

    request ─► fault? ─► key known? ─► idempotency key? ─► endpoint ─► objects + events ─► answer
"""

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import stripe
from saas.stripe_money import Money
from saas.stripe_objects import Object, Refused, listed

KEY = "sk_test_double"
RESOURCES = {
    "customers": "customer",
    "products": "product",
    "prices": "price",
    "checkout/sessions": "checkout.session",
    "subscriptions": "subscription",
    "invoices": "invoice",
    "invoice_payments": "invoice_payment",
    "payment_intents": "payment_intent",
    "charges": "charge",
    "refunds": "refund",
    "disputes": "dispute",
    "events": "event",
    "test_helpers/test_clocks": "test_helpers.test_clock",
}
# Whose parameters an endpoint takes, by the SDK.
PARAMETERS: dict[str, Any] = {
    "POST customers": stripe.params.CustomerCreateParams,
    "POST products": stripe.params.ProductCreateParams,
    "POST prices": stripe.params.PriceCreateParams,
    "POST checkout/sessions": stripe.params.checkout.SessionCreateParams,
    "GET checkout/sessions": stripe.params.checkout.SessionListParams,
    "POST subscriptions/": stripe.params.SubscriptionUpdateParams,
    "GET subscriptions": stripe.params.SubscriptionListParams,
    "DELETE subscriptions/": stripe.params.SubscriptionCancelParams,
    "GET invoices": stripe.params.InvoiceListParams,
    "GET invoice_payments": stripe.params.InvoicePaymentListParams,
    "GET payment_intents": stripe.params.PaymentIntentListParams,
    "GET charges": stripe.params.ChargeListParams,
    "GET disputes": stripe.params.DisputeListParams,
    "GET events": stripe.params.EventListParams,
    "POST refunds": stripe.params.RefundCreateParams,
    "POST billing_portal/sessions": stripe.params.billing_portal.SessionCreateParams,
    "POST test_helpers/test_clocks": stripe.params.test_helpers.TestClockCreateParams,
}


class TimedOut(Exception):
    """No answer comes; the request was carried out if `done`."""


@dataclass
class Fault:
    """What goes wrong with the next `count` requests whose 'METHOD path' matches: 500, 429, timeout, done_then_timeout."""

    kind: str
    count: int = 1
    match: str = ""


@dataclass
class StripeDouble(Money):
    """One account in test mode. Thread-safe: one request at a time."""

    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    _answers: dict[str, tuple[str, int, str]] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def handle(self, method: str, target: str, headers: dict[str, str], body: str) -> tuple[int, str]:
        """A request's status and body. Raises TimedOut for the fault of that name."""
        path, _, query = target.partition("?")
        path = path.removeprefix("/v1/").strip("/")
        with self._lock:
            self.requests.append(f"{method} {path}")
            fault = self._fault(f"{method} {path}")
            if fault in ("500", "429"):
                return self._failed(fault)
            if fault == "timeout":
                raise TimedOut
            status, answer = self._once(method, path, headers, body if method == "POST" else query)
            if fault == "done_then_timeout":
                raise TimedOut
            return status, answer

    def fail(self, kind: str, count: int = 1, match: str = "") -> None:
        """Let requests fail."""
        self.faults.append(Fault(kind, count, match))

    def _fault(self, what: str) -> str | None:
        for fault in self.faults:
            if fault.count > 0 and re.search(fault.match, what):
                fault.count -= 1
                return fault.kind
        return None

    @staticmethod
    def _failed(kind: str) -> tuple[int, str]:
        if kind == "429":
            return 429, json.dumps({"error": {"type": "invalid_request_error", "code": "rate_limit", "message": "Too many requests"}})
        return 500, json.dumps({"error": {"type": "api_error", "message": "Something went wrong"}})

    def _once(self, method: str, path: str, headers: dict[str, str], encoded: str) -> tuple[int, str]:
        lower = {name.lower(): value for name, value in headers.items()}
        if lower.get("authorization") != f"Bearer {KEY}":
            return self._answer(lambda: _refuse(401, "Invalid API Key provided"))
        key, asked = lower.get("idempotency-key"), f"{method} {path} {encoded}"
        known = self._answers.get(key) if key and method == "POST" else None
        if known is not None:
            if known[0] != asked:
                again = "Keys for idempotent requests can only be used with the same parameters they were first used with."
                return self._answer(lambda: _refuse(400, again, type="idempotency_error"))
            return known[1], known[2]
        answered = self._answer(lambda: self._route(method, path, decode(encoded)))
        # Requests that were refused before they began are not kept, as Stripe's documents say.
        if key and method == "POST" and answered[0] not in (400, 401, 404):
            self._answers[key] = (asked, *answered)
        return answered

    @staticmethod
    def _answer(endpoint: Callable[[], Any]) -> tuple[int, str]:
        try:
            return 200, json.dumps(endpoint())
        except Refused as refused:
            return refused.status, json.dumps({"error": refused.error})

    def _route(self, method: str, path: str, given: Object) -> Any:
        resource = next((name for name in (*RESOURCES, "billing_portal/sessions") if path == name or path.startswith(name + "/")), None)
        if resource is None:
            raise Refused(404, f"Unrecognized request URL ({method}: /v1/{path}).")
        rest = path[len(resource) :].strip("/")
        _demand_known(f"{method} {resource}{'/' if rest else ''}", rest, given)
        expand = given.pop("expand", [])
        if method == "GET":
            return self._expanded(self._retrieve(resource, rest), expand) if rest else self._list(resource, given, expand)
        verb = f"{method} {resource}" + ("" if not rest else "/{id}" if "/" not in rest else "/{id}/" + rest.split("/")[1])
        endpoint = self.endpoints().get(verb)
        if endpoint is None:
            raise Refused(404, f"Unrecognized request URL ({method}: /v1/{path}).")
        return self._expanded(endpoint(rest.split("/")[0], given) if rest else endpoint(given), expand)

    def _retrieve(self, resource: str, name: str) -> Object:
        found = self.find(RESOURCES[resource], name)
        return {key: found[key] for key in ("id", "object", "deleted")} if found.get("deleted") else found

    def _list(self, resource: str, given: Object, expand: list[str]) -> Object:
        kind, limit = RESOURCES[resource], int(given.pop("limit", 10))
        after, since, kinds = given.pop("starting_after", None), given.pop("created", {}), given.pop("types", None)
        status = given.pop("status", None)
        payment = given.pop("payment", None)
        found = [each for each in reversed(self.all(kind)) if not each.get("deleted")]
        if kind == "subscription":
            found = [
                each for each in found if status == "all" or each["status"] == status or (status is None and each["status"] != "canceled")
            ]
        elif status is not None:
            found = [each for each in found if each["status"] == status]
        if kinds is not None:
            found = [each for each in found if each["type"] in kinds]
        if payment is not None:
            found = [each for each in found if each["payment"]["payment_intent"] == payment["payment_intent"]]
        for name, value in given.items():
            found = [each for each in found if _value(each, name) == value]
        found = [each for each in found if _within(each["created"], since)]
        if after is not None:
            ids = [each["id"] for each in found]
            found = found[ids.index(after) + 1 :] if after in ids else []
        inner = [path.removeprefix("data.") for path in expand]
        page = [self._expanded(each, inner) for each in found[:limit]]
        return listed(page, f"/v1/{resource}", has_more=len(found) > limit)

    def _expanded(self, made: Object, paths: list[str]) -> Object:
        shown = dict(made)
        for path in paths:
            name, _, inner = path.partition(".")
            if name == "payments" and made["object"] == "invoice":
                belonging = [each for each in self.all("invoice_payment") if each["invoice"] == made["id"]]
                shown[name] = listed(belonging, "/v1/invoice_payments")
            elif isinstance(shown.get(name), str):
                shown[name] = self._expanded(self.by_id(shown[name]), [inner] if inner else [])
        return shown


def decode(encoded: str) -> Object:
    """Stripe's form encoding: a[b][0][c]=v into nested objects and lists."""
    tree: Object = {}
    for name, value in parse_qsl(encoded, keep_blank_values=True):
        keys = re.findall(r"[^\[\]]+", name)
        if name.endswith("[]"):
            tree.setdefault(keys[0], []).append(value)
            continue
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = value
    return {name: _lists(value) for name, value in tree.items()}


def _lists(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if node and all(key.isdigit() for key in node):
        return [_lists(node[key]) for key in sorted(node, key=int)]
    return {key: _lists(value) for key, value in node.items()}


def _value(made: Object, name: str) -> Any:
    if name == "subscription" and made["object"] == "invoice":
        return made["parent"]["subscription_details"]["subscription"]
    return made.get(name)


def _within(created: int, since: Object) -> bool:
    checks = {
        "gte": lambda at: created >= at,
        "gt": lambda at: created > at,
        "lte": lambda at: created <= at,
        "lt": lambda at: created < at,
    }
    return all(checks[name](int(at)) for name, at in since.items())


def _demand_known(endpoint: str, rest: str, given: Object) -> None:
    params = PARAMETERS.get(endpoint) if "/" not in rest else None
    if params is None or (rest and endpoint.startswith("GET")):
        return
    for name in given:
        if name not in params.__annotations__:
            raise Refused(400, f"Received unknown parameter: {name}", code="parameter_unknown", param=name)


def _refuse(status: int, message: str, **more: Any) -> None:
    raise Refused(status, message, **more)
