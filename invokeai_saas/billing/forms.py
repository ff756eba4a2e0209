"""What the routes of billing take and show."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator


class PlanRequest(BaseModel):
    """A plan, by its id or its slug. `payment_method_id` of S3 is not asked: cards are given to Stripe's own page (X-43)."""

    plan_id: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w-]+$")]


class PurchaseRequest(BaseModel):
    """A pack, by its name or by its credits."""

    pack: Annotated[str, Field(max_length=20)] | None = None
    amount: Annotated[int, Field(strict=True)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "PurchaseRequest":
        if (self.pack is None) == (self.amount is None):
            raise ValueError("expected either pack (small, medium, large) or amount (1000, 5000, 15000)")
        return self


class CheckoutDTO(BaseModel):
    """Where to send the browser."""

    session_id: str
    url: str


class PortalDTO(BaseModel):
    """Where to send the browser."""

    url: str


class SubscriptionDTO(BaseModel):
    """A subscription as its owner sees it."""

    model_config = ConfigDict(from_attributes=True)

    subscription_id: UUID
    plan_slug: str
    next_plan_slug: str | None
    status: Literal["trialing", "active", "past_due", "canceled", "expired"]
    current_period_start: datetime
    current_period_end: datetime
    trial_end: datetime | None
    cancel_at_period_end: bool
    grace_until: datetime | None
    # An invoice waits for its money, and what it would buy.
    payment_open: bool
    pending_plan_slug: str | None


class TesterGrantRequest(BaseModel):
    """Decision 17. What is out of bounds is answered by testers.py, in words."""

    user_id: Annotated[str, Field(max_length=64, pattern=r"^[\w.-]+$")]
    credits: Annotated[int, Field(strict=True)] = 50_000
    duration_days: Annotated[int, Field(strict=True)]
    reason: Annotated[str, Field(max_length=1000)]


class TesterGrantDTO(BaseModel):
    """A tester grant as admins see it."""

    id: UUID
    user_id: str
    admin_user_id: str
    credits_granted: int
    valid_from: datetime
    valid_until: datetime
    reason: str
    revoked: bool
    revoked_at: datetime | None
    created_at: datetime

    @classmethod
    def of(cls, row: dict[str, Any]) -> "TesterGrantDTO":
        """From its row."""
        return cls(**{name: row["grant_id" if name == "id" else name] for name in cls.model_fields})


class TesterGrantPage(BaseModel):
    """S3's form of pages."""

    items: list[TesterGrantDTO]
    page: int
    pages: int
    per_page: int
    total: int
