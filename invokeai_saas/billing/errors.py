"""What can go wrong with money, with the status that a route answers. After any of them but PaymentOpen nothing was changed here."""

from typing import Any

from invokeai_saas.errors import SaasError


class BillingNotSetUp(SaasError):
    """The server has no Stripe keys. Said plainly: whoever runs it for themself needs none."""

    status = 503

    def __init__(self) -> None:
        super().__init__("billing is not set up on this server")

    def body(self) -> dict[str, str]:
        """A 5xx that may say what is the matter."""
        return {"error": "billing_not_set_up", "message": str(self)}


class StripeUnavailable(SaasError):
    """Stripe did not answer, or not in time; the same request may be sent again."""

    status = 503

    def __init__(self) -> None:
        super().__init__("the payment provider does not answer: try again in a minute")

    def body(self) -> dict[str, str]:
        """A 5xx that may say what is the matter."""
        return {"error": "payment_provider_unavailable", "message": str(self)}


class StripeRefused(SaasError):
    """Stripe said no to something that it should have taken; the message holds its words."""

    status = 502


class StripeObjectGone(SaasError):
    """Stripe has no such object, or it was deleted."""

    status = 404


class PaymentDeclined(SaasError):
    """The card was declined."""

    status = 402


class PaymentOpen(SaasError):
    """An upgrade waits at Stripe for its payment: the card was declined, or its owner has to confirm. The old plan goes on."""

    status = 402

    def __init__(self, pending_plan: str | None) -> None:
        super().__init__("the upgrade waits for its payment: pay its invoice in the portal, or wait a day and it is taken back")
        self._pending_plan = pending_plan

    def body(self) -> dict[str, Any]:
        """As /subscriptions/my says it."""
        told = {"payment_open": True, "pending_plan_slug": self._pending_plan}
        return {"error": "payment_open", "message": str(self), **told}


class BadBillingInput(SaasError):
    """A field is wrong; the message says what was expected."""

    status = 400


class NoSubscription(SaasError):
    """There is no paid subscription that runs."""

    status = 404

    def __init__(self) -> None:
        super().__init__("expected a paid subscription that runs: choose a plan first")


class SubscriptionRuns(SaasError):
    """A second subscription was asked for while one runs."""

    status = 409


class Busy(SaasError):
    """Another change of the same customer is under way."""

    status = 409

    def __init__(self) -> None:
        super().__init__("another change of this subscription is under way: try again in a moment")


class BadWebhook(SaasError):
    """Not signed by Stripe, too old, changed on the way, or not an event. One text: which it was helps only a forger."""

    status = 400

    def __init__(self) -> None:
        super().__init__("expected an event signed by the payment provider within the last 300 s")


class Fenced(SaasError):
    """Somebody else took over this customer meanwhile; nothing was written."""

    status = 409


class UnknownPrice(SaasError):
    """A subscription's price belongs to no plan: an operator has to say which (docs/billing.md)."""


class NoSuchGrant(SaasError):
    """No such tester grant."""

    status = 404


class AlreadyRevoked(SaasError):
    """The tester grant was revoked before, or is over."""

    status = 409
