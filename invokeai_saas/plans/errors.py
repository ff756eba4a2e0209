"""Errors of plans. A refusal has one body for all limits: a page says from it what was asked, what is allowed, and which plan allows it."""

from typing import Any

from invokeai_saas.errors import SaasError


class PlanRefused(SaasError):
    """What was asked is more than the plan allows. `body()` is the answer's JSON."""

    status = 403

    def __init__(
        self,
        code: str,
        message: str,
        *,
        limit_type: str,
        limit: Any = None,
        value: Any = None,
        allowed_by: str | None = None,
        nearest: Any = None,
    ) -> None:
        super().__init__(message)
        self.code, self.limit_type, self.limit, self.value = code, limit_type, limit, value
        self.allowed_by, self.nearest = allowed_by, nearest

    def body(self) -> dict[str, Any]:
        """{"error", "message", "limit_type", "limit", "value", "allowed_by"} and, where there is one, "nearest"."""
        told = {
            "error": self.code,
            "message": str(self),
            "limit_type": self.limit_type,
            "limit": self.limit,
            "value": self.value,
            "allowed_by": self.allowed_by,
        }
        return told if self.nearest is None else {**told, "nearest": self.nearest}


class PlanForbids(PlanRefused):
    """The plan does not have the feature or the model, its storage is full, or there is no plan."""


class OverLimit(PlanRefused):
    """A number is above the plan's, or no plan could know it beforehand."""

    status = 400


class UnreadableGraph(OverLimit):
    """A graph whose demands cannot be told: an unknown model, a workflow that calls itself, a number where none fits."""


class BadPlanInput(SaasError):
    """A field of a plan is wrong; the message says what was expected."""

    status = 400


class NoSuchPlan(SaasError):
    """No plan of this name or id, or not one that can be chosen."""

    status = 404

    def __init__(self, wanted: str) -> None:
        super().__init__(f"expected the slug or id of a plan that is there, got {wanted!r}")


class PlanExists(SaasError):
    """Another plan has this slug, or this product or price of Stripe's."""

    status = 409
