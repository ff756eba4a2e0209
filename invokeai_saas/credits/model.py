"""The words of the books: a balance, a grant's source, what a job is held for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Literal

Source = Literal["subscription", "purchase", "admin_grant", "promotion", "trial"]
SOURCES: tuple[Source, ...] = ("subscription", "purchase", "admin_grant", "promotion", "trial")
TRANSACTION_TYPES = ("generation", "subscription_renewal", "purchase", "admin_grant", "refund", "trial", "expiry", "promotion")
# More than any plan or pack; a typing error is larger.
MOST_CREDITS = 10_000_000
# C-01, in US dollars.
VALUE_OF_A_CREDIT = Decimal("0.005")
LOW_BALANCE = 10


@dataclass(frozen=True, slots=True)
class Balance:
    """C-01: credits whose time is now, in three parts: used up by jobs that ended, held by jobs at the moment, and what remains."""

    total_credits: int
    used_credits: int
    held_credits: int

    @property
    def remaining_credits(self) -> int:
        """What a new job may hold."""
        return self.total_credits - self.used_credits - self.held_credits

    @property
    def remaining_minutes(self) -> float:
        """A credit is a second of GPU time."""
        return round(self.remaining_credits / 60, 1)

    @property
    def remaining_value_usd(self) -> Decimal:
        """To the cent."""
        return (self.remaining_credits * VALUE_OF_A_CREDIT).quantize(Decimal("0.01"), ROUND_HALF_UP)


@dataclass(frozen=True, slots=True)
class JobHold:
    """What one root item is held for. `provider_credits` is the part of `amount` that external providers charge, whatever the seconds.

    `detail` goes into the usage record: action_type, model_used, steps, width, height, batch_size, and whatever else explains the price.
    """

    amount: int
    provider_credits: int = 0
    gpu_tier: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TakenBack:
    """What a refund took: at once, and from what jobs hold as soon as they let go of it. The rest had been used and is forgiven."""

    first: bool
    taken: int
    owed: int
