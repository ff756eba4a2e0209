"""The double is Stripe enough: shapes of the SDK and of the published fixtures, idempotency keys, refusals, failures on demand.

SAAS_STRIPE_FIXTURES names a fixtures3.json of github.com/stripe/openapi, SAAS_LOCALSTRIPE the package's folder of an unpacked
localstripe 1.15; without them those comparisons are skipped.
"""

import asyncio
import hashlib
import hmac
import importlib.util
import json
import os
import sys
import time
import types
from pathlib import Path

import pytest
import stripe
from saas.stripe_double import KEY, StripeDouble
from saas.stripe_objects import CLASSES, LEFT_OUT, fields
from saas.stripe_serving import SECRET, direct, serving, signature

from invokeai_saas.billing import inbox
from invokeai_saas.billing.errors import BadWebhook
from invokeai_saas.billing.model import BillingPolicy

LOCALSTRIPE = os.environ.get("SAAS_LOCALSTRIPE")
FIXTURES = os.environ.get("SAAS_STRIPE_FIXTURES")
# Fixtures of later or private versions, and of fields that the SDK dropped.
OTHER_VERSIONS = {
    "invoice": {"subscription"},
    "subscription": {"application_fee_percent"},
    "payment_intent": {"application_fee_amount"},
}


@pytest.fixture
def double():
    return StripeDouble()


@pytest.fixture
def client(double):
    return direct(double)


def sell(client, *, price=2500):
    """A customer, a monthly price, and a checkout of it."""
    customer = client.v1.customers.create({"email": "ann@example.com"})
    product = client.v1.products.create({"name": "Starter"})
    recurring = {"interval": "month"}
    price = client.v1.prices.create({"unit_amount": price, "currency": "usd", "product": product.id, "recurring": recurring})
    line = {"price": price.id, "quantity": 1}
    session = client.v1.checkout.sessions.create(
        {"mode": "subscription", "customer": customer.id, "line_items": [line], "success_url": "https://x.example/"}
    )
    return customer, price, session


def every_object(double, client):
    """A double in which one object of every kind was made."""
    customer, price, session = sell(client)
    double.pay(session.id)
    intent = double.all("payment_intent")[0]["id"]
    client.v1.refunds.create({"payment_intent": intent, "amount": 100})
    double.dispute(intent)
    client.v1.billing_portal.sessions.create({"customer": customer.id})
    client.v1.test_helpers.test_clocks.create({"frozen_time": double.now})
    return {kind: double.all(kind)[0] for kind in CLASSES}


def test_every_object_has_the_fields_that_the_sdks_version_knows(double, client):
    for kind, made in every_object(double, client).items():
        assert set(made) == set(fields(kind)), kind


@pytest.mark.skipif(FIXTURES is None, reason="SAAS_STRIPE_FIXTURES is not set")
def test_every_object_has_the_shape_of_the_published_fixtures(double, client):
    published = json.loads(Path(str(FIXTURES)).read_text())["resources"]
    wrong = []
    for kind, made in every_object(double, client).items():
        fixture = published[kind]
        missing = set(fixture) - set(made) - LEFT_OUT.get(kind, set()) - OTHER_VERSIONS.get(kind, set())
        wrong += [f"{kind} lacks {name}" for name in sorted(missing)]
        wrong += [f"{kind}.{path}" for path in differences(made, fixture)]

    assert wrong == []


def differences(made, fixture, path=""):
    """Where two values have other JSON types; what is null on a side says nothing."""
    if made is None or fixture is None:
        return []
    if isinstance(made, dict) and isinstance(fixture, dict):
        return [found for name in made.keys() & fixture.keys() for found in differences(made[name], fixture[name], f"{path}.{name}")]
    if isinstance(made, list) and isinstance(fixture, list):
        return differences(made[0], fixture[0], f"{path}[0]") if made and fixture else []
    same = type(made) is type(fixture) or {type(made), type(fixture)} == {int, float}
    return [] if same else [f"{path}: expected {type(fixture).__name__}, got {type(made).__name__}"]


def test_the_sdk_reads_the_period_from_the_item_and_the_subscription_from_the_invoices_parent(double, client):
    _, price, session = sell(client)
    paid = double.pay(session.id)
    subscription = client.v1.subscriptions.retrieve(paid["subscription"])
    invoice = client.v1.invoices.retrieve(paid["invoice"], {"expand": ["payments"]})

    assert subscription["items"].data[0].current_period_end == double.now + 30 * 86400
    assert "current_period_end" not in subscription
    assert invoice.parent.subscription_details.subscription == subscription.id
    assert invoice.payments.data[0].payment.payment_intent.startswith("pi_")
    assert invoice.lines.data[0].pricing.price_details.price == price.id


def test_the_official_sdk_talks_to_it_over_http(double):
    with serving(double) as address:
        client = stripe.StripeClient(KEY, base_addresses={"api": address})
        made = client.v1.customers.create({"email": "ann@example.com", "metadata": {"user_id": "ann"}})
        read = client.v1.customers.retrieve(made.id)

    assert (read.email, read.metadata["user_id"]) == ("ann@example.com", "ann")


def test_a_key_is_carried_out_once_and_refuses_another_body(double, client):
    options = {"idempotency_key": "k"}
    ids = {client.v1.customers.create({"email": "a@example.com"}, options).id for _ in range(3)}

    assert len(ids) == len(double.all("customer")) == 1
    with pytest.raises(stripe.IdempotencyError):
        client.v1.customers.create({"email": "b@example.com"}, options)


@pytest.mark.parametrize("kind", ["500", "429", "timeout", "done_then_timeout"])
def test_what_fails_is_tried_again_by_the_sdk_and_carried_out_once(double, client, kind):
    double.fail(kind, 2 if kind != "429" else 0)
    client.v1.customers.create({"email": "a@example.com"})

    assert len(double.all("customer")) == 1


def test_a_429_reaches_the_caller(double, client):
    double.fail("429")

    with pytest.raises(stripe.RateLimitError):
        client.v1.customers.create({})


def test_unknown_parameters_objects_and_keys_are_refused(double, client):
    with pytest.raises(stripe.InvalidRequestError, match="unknown parameter: colour"):
        client.v1.customers.create({"colour": "red"})
    with pytest.raises(stripe.InvalidRequestError, match="No such customer"):
        client.v1.customers.retrieve("cus_none")
    with pytest.raises(stripe.AuthenticationError):
        direct_with_key(double, "sk_test_other").v1.customers.create({})


def direct_with_key(double, key):
    from saas.stripe_serving import DirectClient

    return stripe.StripeClient(key, http_client=DirectClient(double))


def test_time_renews_then_fails_then_ends_a_subscription(double, client):
    customer, _, session = sell(client)
    name = double.pay(session.id)["subscription"]
    double.wait(31 * 86400)
    renewed = client.v1.subscriptions.retrieve(name).status
    double.cards[customer.id] = "declined"
    double.wait(30 * 86400)
    failed = client.v1.subscriptions.retrieve(name).status
    double.wait(8 * 86400)
    reasons = [each.billing_reason for each in client.v1.invoices.list({"subscription": name}).data]

    assert (renewed, failed, client.v1.subscriptions.retrieve(name).status) == ("active", "past_due", "canceled")
    assert reasons == ["subscription_cycle", "subscription_cycle", "subscription_create"]


def test_an_upgrade_that_is_not_paid_stays_pending_until_it_is(double, client):
    customer, price, session = sell(client)
    name = double.pay(session.id)["subscription"]
    dear = client.v1.prices.create({"unit_amount": 7500, "currency": "usd", "product": price.product, "recurring": {"interval": "month"}})
    item = client.v1.subscriptions.retrieve(name)["items"].data[0].id
    double.cards[customer.id] = "declined"
    double.wait(15 * 86400)
    changed = client.v1.subscriptions.update(
        name,
        {"items": [{"id": item, "price": dear.id}], "proration_behavior": "always_invoice", "payment_behavior": "pending_if_incomplete"},
    )
    double.cards[customer.id] = "ok"
    paid = client.v1.invoices.pay(changed.latest_invoice)
    after = client.v1.subscriptions.retrieve(name)

    assert (changed["items"].data[0].price.id, changed.pending_update.subscription_items[0].price.id) == (price.id, dear.id)
    assert (after["items"].data[0].price.id, after.pending_update, paid.amount_paid) == (dear.id, None, 2500)


def test_lists_come_in_pages_newest_first(double, client):
    for number in range(5):
        client.v1.customers.create({"email": f"{number}@example.com"})
    found = client.v1.customers.list({"limit": 2})

    assert [each.email[0] for each in found.auto_paging_iter()] == ["4", "3", "2", "1", "0"]


def test_its_webhooks_carry_the_signature_that_stripes_documents_describe(double):
    body = json.dumps({"id": "evt_1", "object": "event"})
    header = signature(body)
    at, _, signed = header.removeprefix("t=").partition(",v1=")

    assert stripe.Webhook.construct_event(body, header, SECRET).id == "evt_1"
    assert signed == hmac.new(SECRET.encode(), f"{at}.{body}".encode(), hashlib.sha256).hexdigest()


class Recorder:
    """In place of the HTTP client that localstripe sends its webhooks with."""

    sent: list = []

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        return None

    def post(self, url, *, data, headers):
        self.sent.append((data, headers["Stripe-Signature"]))
        return self

    status = 200


@pytest.mark.skipif(LOCALSTRIPE is None, reason="SAAS_LOCALSTRIPE is not set")
def test_what_localstripe_signs_is_taken_and_what_changed_on_the_way_is_not(monkeypatch):
    client = types.ModuleType("aiohttp")
    client.ClientSession = Recorder
    client.client_exceptions = types.SimpleNamespace(ClientError=OSError)
    monkeypatch.setitem(sys.modules, "aiohttp", client)
    spec = importlib.util.spec_from_file_location("localstripe_webhooks", Path(str(LOCALSTRIPE)) / "webhooks.py")
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    exported = {"id": "evt_1", "object": "event", "type": "invoice.paid", "created": 1, "livemode": False, "data": {"object": {}}}
    event = types.SimpleNamespace(created=int(time.time()), type="invoice.paid", _export=lambda: exported)
    theirs.register_webhook("w", "http://x.example", SECRET, None)
    asyncio.run(theirs._send_webhook(event))
    body, header = Recorder.sent[-1]
    policy = BillingPolicy(webhook_secrets=(SECRET,))

    assert inbox.verified(policy, body, header)["id"] == "evt_1"
    with pytest.raises(BadWebhook):
        inbox.verified(policy, json.dumps(json.loads(body)).encode(), header)
