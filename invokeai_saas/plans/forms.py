"""What the routes of plans take and answer (S3-016, S3-162, S3-163, S3-182, S3-183)."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from invokeai_saas.accounts.forms import Name, Strict
from invokeai_saas.plans.model import Entitlement, GpuTier, ModelAccess, Plan, PlanType

Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,49}$")]
Price = Annotated[Decimal, Field(ge=0, max_digits=10, decimal_places=2)]
PerSecond = Annotated[Decimal, Field(ge=0, max_digits=10, decimal_places=6)]
# A limit: 1 or more, null for none.
Limit = Annotated[int, Field(ge=1, lt=2**31)]
# 0 where there is no video at all.
VideoLimit = Annotated[int, Field(ge=0, lt=2**31)]
StripeId = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[\w-]+$")]
Family = Annotated[str, Field(min_length=1, max_length=50, pattern=r"^[\w-]+$")]


class _Limits(Strict):
    """What both forms share; the defaults are those of a new plan."""

    annual_price: Price | None = None
    monthly_price: Price | None = None
    monthly_credits: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    validity_days: Annotated[int, Field(ge=1, le=366)] = 30
    currency: Annotated[str, Field(pattern=r"^[a-z]{3}$")] = "usd"
    max_queues: Limit | None = 1
    max_storage_gb: Limit | None = None
    plan_priority: Annotated[int, Field(ge=0, le=1000)] = 0
    third_party_api_access: bool = False
    lora_training: bool = False
    collaboration: bool = False
    node_editor_access: bool = False
    api_access: bool = False
    can_generate_video: bool = False
    max_video_frames: VideoLimit | None = 0
    max_video_long_side: VideoLimit | None = 0
    max_video_short_side: VideoLimit | None = 0
    video_bases: Annotated[tuple[Family, ...], Field(max_length=50)] | None = ()
    max_image_long_side: Limit | None = 2048
    max_image_short_side: Limit | None = 2048
    max_steps: Limit | None = 100
    max_repeats: Limit | None = 50
    stripe_product: StripeId | None = None
    stripe_price_monthly: StripeId | None = None
    stripe_price_annual: StripeId | None = None
    features: dict[str, Any] = Field(default_factory=dict)
    is_active: bool = True


class PlanCreate(_Limits):
    """S3-182. A price or credits of null: agreed by contract."""

    slug: Slug
    name: Annotated[Name, Field(max_length=50)]
    plan_type: PlanType
    gpu_tier: GpuTier
    model_access: ModelAccess
    price_per_gpu_second: PerSecond
    cost_per_gpu_second: PerSecond

    def values(self) -> dict[str, Any]:
        """All the fields."""
        values: dict[str, Any] = self.model_dump()
        return values


class PlanUpdate(_Limits):
    """S3-183: what is not sent stays. The slug stays always."""

    slug: Slug | None = None
    name: Annotated[Name, Field(max_length=50)] | None = None
    plan_type: PlanType | None = None
    gpu_tier: GpuTier | None = None
    model_access: ModelAccess | None = None
    price_per_gpu_second: PerSecond | None = None
    cost_per_gpu_second: PerSecond | None = None

    def values(self) -> dict[str, Any]:
        """The fields that were sent."""
        values: dict[str, Any] = self.model_dump(exclude_unset=True)
        return values


class PlanDTO(BaseModel):
    """A plan as customers see it: not what it costs us."""

    model_config = ConfigDict(from_attributes=True)

    plan_id: UUID
    slug: str
    name: str
    plan_type: PlanType
    monthly_price: Decimal | None
    annual_price: Decimal | None
    currency: str
    monthly_credits: int | None
    validity_days: int
    gpu_tier: GpuTier
    price_per_gpu_second: Decimal
    max_queues: int | None
    max_storage_gb: int | None
    model_access: ModelAccess
    third_party_api_access: bool
    lora_training: bool
    collaboration: bool
    node_editor_access: bool
    api_access: bool
    can_generate_video: bool
    max_video_frames: int | None
    max_video_long_side: int | None
    max_video_short_side: int | None
    video_bases: tuple[str, ...] | None
    max_image_long_side: int | None
    max_image_short_side: int | None
    max_steps: int | None
    max_repeats: int | None
    features: dict[str, Any]
    # Without a price at Stripe a plan is agreed by contract, or not set up yet.
    for_sale: bool

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """From a plan as stored."""
        shown: Self = cls.model_validate(plan)
        return shown


class AdminPlanDTO(PlanDTO):
    """A plan as admins see it: with its cost, its margin and Stripe's names."""

    cost_per_gpu_second: Decimal
    monthly_margin: Decimal | None
    plan_priority: int
    stripe_product: str | None
    stripe_price_monthly: str | None
    stripe_price_annual: str | None
    is_active: bool
    created_at: datetime
    updated_at: datetime


class SubscriptionDTO(BaseModel):
    """S3-163: what counts now, and the subscription that it comes from. `plan` is null where none counts.

    `billed`: a subscription at Stripe runs. `payment_open`: it waits for money, and `pending_plan_slug` for the plan that the money buys.
    """

    status: str
    suspended: bool
    plan: PlanDTO | None
    subscription_id: UUID | None = None
    plan_slug: str | None = None
    current_period_start: datetime | None = None
    current_period_end: datetime | None = None
    trial_end: datetime | None = None
    cancel_at_period_end: bool = False
    grace_until: datetime | None = None
    next_plan_slug: str | None = None
    billed: bool = False
    payment_open: bool = False
    pending_plan_slug: str | None = None

    @classmethod
    def of(cls, entitlement: Entitlement, held: dict[str, Any] | None) -> "SubscriptionDTO":
        """The entitlement first: a tester's window or the clock may say otherwise than the subscription's row."""
        told = {name: value for name, value in (held or {}).items() if name in cls.model_fields}
        plan = None if entitlement.plan is None else PlanDTO.of(entitlement.plan)
        shown: SubscriptionDTO = cls.model_validate(
            {**told, "status": entitlement.status, "suspended": entitlement.suspended, "plan": plan}
        )
        return shown
