"""The shapes of Stripe's objects at the SDK's pinned API version: every field that the SDK's classes know, then the values that matter.

What a server leaves out unless it is asked to expand it is left out here too. A test compares the shapes with Stripe's published fixtures.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

import stripe

Object = dict[str, Any]
# Sent on request, in later versions or for other kinds of account only.
LEFT_OUT = {
    "checkout.session": {"line_items", "branding_settings", "excluded_payment_method_types", "name_collection", "optional_items",
                         "presentment_details", "redirect_on_completion", "return_url",
                         "tax_id_collection", "allowed_payment_method_types"},
    "charge": {"refunds", "level3", "transfer", "presentment_details", "radar_options", "authorization_code"},
    "customer": {"sources", "subscriptions", "tax", "tax_ids", "cash_balance", "invoice_credit_balance", "business_name",
                 "individual_name"},
    "dispute": {"network_reason_code", "intended_submission_method"},
    "event": {"account", "context"},
    "invoice": {"payments", "confirmation_secret", "threshold_reason", "amount_paid_off_stripe", "status_details"},
    "payment_intent": {"allowed_payment_method_types", "hooks", "payment_details", "payment_record", "presentment_details"},
    "price": {"currency_options", "tiers"},
    "product": {"package_dimensions", "type", "tax_details"},
    "refund": {"instructions_email", "failure_balance_transaction", "failure_reason", "next_action", "pending_reason",
               "presentment_details", "customer", "customer_account", "payment_method", "description"},
    "subscription": {"presentment_details", "status_details"},
    "subscription_item": {"billed_until", "current_trial", "plan"},
    "test_helpers.test_clock": set(),
}  # fmt: skip
CLASSES: dict[str, Any] = {
    "billing_portal.session": stripe.billing_portal.Session,
    "charge": stripe.Charge,
    "checkout.session": stripe.checkout.Session,
    "customer": stripe.Customer,
    "dispute": stripe.Dispute,
    "event": stripe.Event,
    "invoice": stripe.Invoice,
    "invoice_payment": stripe.InvoicePayment,
    "line_item": stripe.InvoiceLineItem,
    "payment_intent": stripe.PaymentIntent,
    "price": stripe.Price,
    "product": stripe.Product,
    "refund": stripe.Refund,
    "subscription": stripe.Subscription,
    "subscription_item": stripe.SubscriptionItem,
    "test_helpers.test_clock": stripe.test_helpers.TestClock,
}
# What is never null, where a builder below does not say it.
SET: dict[str, Object] = {
    "billing_portal.session": {"flow": None, "configuration": "bpc_1"},
    "charge": {
        "amount_refunded": 0,
        "billing_details": {"address": None, "email": None, "name": None, "phone": None, "tax_id": None},
        "captured": True,
        "disputed": False,
        "fraud_details": {},
        "metadata": {},
        "paid": True,
        "refunded": False,
        "status": "succeeded",
    },
    "checkout.session": {
        "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
        "custom_fields": [],
        "custom_text": {"after_submit": None, "shipping_address": None, "submit": None, "terms_of_service_acceptance": None},
        "metadata": {},
        "payment_method_options": {},
        "payment_method_types": ["card"],
        "permissions": None,
        "shipping_options": [],
    },
    "customer": {
        "balance": 0,
        "delinquent": False,
        "invoice_settings": {"custom_fields": None, "default_payment_method": None, "footer": None, "rendering_options": None},
        "metadata": {},
        "next_invoice_sequence": 1,
        "preferred_locales": [],
        "tax_exempt": "none",
    },
    "dispute": {
        "balance_transactions": [],
        "enhanced_eligibility_types": [],
        "evidence": {},
        "evidence_details": {"due_by": None, "has_evidence": False, "past_due": False, "submission_count": 0},
        "is_charge_refundable": False,
        "metadata": {},
        "reason": "fraudulent",
    },
    "event": {"pending_webhooks": 1, "request": {"id": None, "idempotency_key": None}},
    "invoice": {
        "amount_overpaid": 0,
        "amount_shipping": 0,
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": True,
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None, "provider": None, "status": None},
        "collection_method": "charge_automatically",
        "customer_tax_ids": [],
        "default_tax_rates": [],
        "discounts": [],
        "issuer": {"type": "self"},
        "metadata": {},
        "payment_settings": {"default_mandate": None, "payment_method_options": None, "payment_method_types": None},
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "starting_balance": 0,
        "total_discount_amounts": [],
        "total_taxes": [],
    },
    "invoice_payment": {"is_default": True},
    "line_item": {
        "discount_amounts": [],
        "discountable": True,
        "discounts": [],
        "metadata": {},
        "pretax_credit_amounts": [],
        "quantity": 1,
        "quantity_decimal": "1",
        "taxes": [],
    },
    "payment_intent": {
        "amount_capturable": 0,
        "amount_received": 0,
        "capture_method": "automatic",
        "confirmation_method": "automatic",
        "metadata": {},
        "payment_method_options": {},
        "payment_method_types": ["card"],
    },
    "price": {"active": True, "billing_scheme": "per_unit", "metadata": {}, "tax_behavior": "unspecified", "type": "recurring"},
    "product": {"active": True, "images": [], "marketing_features": [], "metadata": {}},
    "refund": {"metadata": {}, "status": "succeeded"},
    "subscription": {
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_mode": {"flexible": {"proration_discounts": "included"}, "type": "flexible"},
        "billing_schedules": [],
        "cancel_at_period_end": False,
        "cancellation_details": {"comment": None, "feedback": None, "reason": None},
        "collection_method": "charge_automatically",
        "default_tax_rates": [],
        "discounts": [],
        "invoice_settings": {
            "account_tax_ids": None, "custom_fields": None, "description": None, "footer": None, "issuer": {"type": "self"},
        },
        "metadata": {},
        "payment_settings": {
            "payment_method_options": None, "payment_method_types": None, "save_default_payment_method": "on_subscription",
        },
        "trial_settings": {"end_behavior": {"missing_payment_method": "create_invoice"}},
    },
    "subscription_item": {"billing_thresholds": None, "discounts": [], "metadata": {}, "quantity": 1, "tax_rates": []},
    "test_helpers.test_clock": {"status": "ready", "status_details": {}},
}  # fmt: skip
# Objects that say nothing of the mode that they live in.
WITHOUT_MODE = {"subscription_item", "refund"}


class Refused(Exception):
    """What Stripe answers with an error object."""

    def __init__(self, status: int, message: str, *, type: str = "invalid_request_error", **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"type": type, "message": message, **{name: value for name, value in more.items() if value is not None}}


@cache
def fields(kind: str) -> tuple[str, ...]:
    """The fields of an object of `kind` as a server sends it."""
    known = set(CLASSES[kind].__annotations__) - {"OBJECT_NAME", "deleted"}
    return tuple(sorted(known - LEFT_OUT.get(kind, set())))


def make(kind: str, **values: Any) -> Object:
    """An object of `kind`: all its fields, null unless something is said of them. A field that does not exist is an error."""
    made: Object = dict.fromkeys(fields(kind))
    for name, value in {**SET[kind], **values, "object": kind}.items():
        if name not in made:
            raise KeyError(f"Stripe's {kind} has no field {name}")
        made[name] = value.copy() if isinstance(value, dict | list) else value
    if kind not in WITHOUT_MODE:
        made["livemode"] = False
    return made


def listed(items: Iterable[Object], url: str, *, has_more: bool = False) -> Object:
    """A list as Stripe sends it."""
    return {"object": "list", "data": list(items), "has_more": has_more, "url": url}
