"""What the verbs of plans share: a plan as stored, and what one user may do now."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

PlanType = Literal["paid", "internal", "trial"]
GpuTier = Literal["basic", "high_performance", "dedicated"]
ModelAccess = Literal["sd_only", "flux_included", "full"]
# Each level holds what the ones before it hold.
ACCESS_ORDER: tuple[ModelAccess, ...] = ("sd_only", "flux_included", "full")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A row of subscription_plans. None in a limit: unlimited; in a price or a credit count: agreed by contract."""

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
    cost_per_gpu_second: Decimal
    max_queues: int | None
    max_storage_gb: int | None
    plan_priority: int
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
    stripe_product: str | None
    stripe_price_monthly: str | None
    stripe_price_annual: str | None
    features: Mapping[str, Any]
    is_active: bool
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Plan":
        """From a row that has all the table's columns, and perhaps more."""
        bases = row["video_bases"]
        values = {name: row[name] for name in cls.__dataclass_fields__ if name != "video_bases"}
        return cls(**values, video_bases=None if bases is None else tuple(bases))

    @property
    def storage_bytes(self) -> int | None:
        """The quota; 1 GB is 10^9 bytes."""
        return None if self.max_storage_gb is None else self.max_storage_gb * 1_000_000_000

    @property
    def for_sale(self) -> bool:
        """Whether a checkout of it can be opened where Stripe is set up."""
        return self.is_active and self.plan_type == "paid" and self.stripe_price_monthly is not None

    @property
    def monthly_margin(self) -> Decimal | None:
        """What a month's price leaves when all its credits are used (S3-034); None where price or credits are agreed by contract."""
        if self.monthly_price is None or self.monthly_credits is None:
            return None
        return self.monthly_price - self.monthly_credits * self.cost_per_gpu_second


@dataclass(frozen=True, slots=True)
class Entitlement:
    """What counts for one user now. `plan` is None without a subscription or after its end; `suspended` says that one is over or unpaid.

    `catalog` holds the active plans, so that a refusal can name the one that would allow it, and `access_levels` what each model
    base asks for. `status`: trialing, active, past_due, canceled, expired, none.
    """

    plan: Plan | None
    status: str
    suspended: bool
    catalog: tuple[Plan, ...] = ()
    access_levels: Mapping[str, ModelAccess] = field(default_factory=dict)
