"""How much something counts in each step: one number, or one per step, within a part of the steps.

`step` of `total` counts calls of the model from 0; a scheduler of second order calls it twice for each of the user's steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from ..errors import BadInput

# 1 is full strength; a sequence has one number for each step that runs.
Weight: TypeAlias = float | Sequence[float]


def check_weight(what: str, weight: Weight, *, steps: Sequence[int]) -> None:
    """Raise BadInput unless `weight` is finite and a sequence has as many numbers as each run has `steps`."""
    if not all(math.isfinite(value) for value in _values(weight)):
        raise BadInput.expected(f"{what}: weight", "finite numbers", weight, 1.0)
    for count in steps:
        if isinstance(weight, Sequence) and len(weight) != count:
            raise BadInput.expected(f"{what}: weights", f"one number, or {count}: one per step that runs", len(weight), count)


def check_span(what: str, start: float, end: float, *, point: bool = False) -> None:
    """Raise BadInput unless `start` lies below `end`, both in 0..1; with `point` they may be the same."""
    if not 0.0 <= start <= end <= 1.0 or (start == end and not point):
        expected = f"a begin {'not above' if point else 'below'} the end, both 0.0 to 1.0"
        raise BadInput.expected(what, expected, f"{start:g} to {end:g}", "0 to 1")


def weight_at(weight: Weight, *, step: int, total: int) -> float:
    """The weight of one call of the model."""
    if not isinstance(weight, Sequence):
        return weight
    # n steps of second order are 2n - 1 calls; this gives each step both of its calls, and the last its one.
    return weight[step * len(weight) // total]


def weight_between(weight: Weight, start: float, end: float, *, step: int, total: int) -> float:
    """The weight of one call, 0.0 outside of `start`..`end` as InvokeAI rounds them: the step that an end falls on still counts."""
    if not math.floor(start * total) <= step <= math.ceil(end * total):
        return 0.0
    return weight_at(weight, step=step, total=total)


def _values(weight: Weight) -> Sequence[float]:
    return weight if isinstance(weight, Sequence) else [weight]
