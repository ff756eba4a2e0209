"""What a graph asks for in, credits out: estimates for pictures (C-10) and videos (formula B), providers' calls, measured seconds.

    Demands ─► price(): one line per job ─► estimate, provider's calls ─► what is held
    GPU seconds ─► actual_credits()

Pure and exact: integers and fractions, also under the roots of C-10, so that no price depends on how a machine rounds. The tables are
data (`Factors`); measured runs recalibrate them. One credit is one second of a GPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor
from types import MappingProxyType

from invokeai_saas.errors import SaasError
from invokeai_saas.plans.demands import Demands, JobDemand, ProviderCall

# The area that the tables' seconds are for: 512 x 512.
REFERENCE_PIXELS = 262_144
REFERENCE_STEPS = 20
# What one hold can be: credit_holds_amount_in_bounds.
MOST_CREDITS = 10_000_000
SECONDS_OVER_ESTIMATE = Decimal("1.2")


class TooDear(SaasError):
    """More than any account can hold: numbers that no plan allows, or a mistake in the graph."""

    status = 400


@dataclass(frozen=True, slots=True)
class Factors:
    """Everything that is measured and may change. Seconds are of the tier that the tables were measured on."""

    # Seconds per frame of 512 x 512.
    video_seconds: Mapping[str, Fraction] = field(
        default_factory=lambda: _fractions({"animatediff": 2, "svd": 4, "z-image-video": 6, "hunyuan-video": 10})
    )
    other_video_seconds: Fraction = Fraction(4)
    # Seconds per picture of 512 x 512 with 20 steps.
    image_seconds: Mapping[str, Fraction] = field(
        default_factory=lambda: _fractions(
            {
                "sd-1": 5,
                "sd-2": 6,
                "sdxl": 12,
                "sdxl-refiner": 8,
                "flux": 20,
                "flux2": 22,
                "sd-3": 18,
                "cogview4": 25,
                "z-image": 35,
            }  # fmt: skip
        )
    )
    other_image_seconds: Fraction = Fraction(10)
    # How time grows with area and batch: 0.7, as numerator and denominator.
    exponent: tuple[int, int] = (7, 10)
    # Seconds that loading a model may take and that are not charged; what a run may last beyond its hold.
    load_seconds: Mapping[str, int] = field(
        default_factory=lambda: MappingProxyType(
            {
                "sd-1": 60,
                "sd-2": 60,
                "sdxl": 120,
                "sdxl-refiner": 120,
                "animatediff": 90,
                "svd": 180,
                "flux": 300,
                "flux2": 300,
                "z-image": 240,
                "z-image-video": 240,
                "hunyuan-video": 600,
            }  # fmt: skip
        )
    )
    other_load_seconds: int = 300
    # What a provider takes for one picture, in credits, by the node that calls it; an unknown one costs as much as the dearest.
    provider_credits: Mapping[str, int] = field(
        default_factory=lambda: MappingProxyType(
            {
                "gemini_image_generation": 8,
                "openai_image_generation": 50,
                "seedream_image_generation": 8,
                "alibabacloud_image_generation": 10,
            }  # fmt: skip
        )
    )
    other_provider_credits: int = 50

    def __post_init__(self) -> None:
        seconds = [*self.video_seconds.values(), *self.image_seconds.values(), self.other_video_seconds, self.other_image_seconds]
        if min(seconds) <= 0:
            raise ValueError(f"seconds: expected more than 0 everywhere, got {min(seconds)}")
        if not 0 < self.exponent[0] <= self.exponent[1]:
            raise ValueError(f"exponent: expected a fraction in (0, 1], got {self.exponent}")
        least = min(self.provider_credits.values(), default=0)
        if least < 0 or self.other_provider_credits < 0 or self.other_load_seconds < 0:
            raise ValueError("provider credits and load seconds: expected nothing negative")


@dataclass(frozen=True, slots=True)
class Line:
    """One job of a price: `credits` for all of its `times`."""

    kind: str
    base: str
    credits: int
    times: int
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    steps: int | None = None
    batch_size: int | None = None

    def as_json(self) -> dict[str, object]:
        """For the books: without what does not apply."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True)
class Price:
    """What one queue item holds. `load_seconds`: how much longer than twice its hold it may run, for loading its models."""

    estimate: int
    provider: int
    lines: tuple[Line, ...]
    load_seconds: int

    @property
    def hold(self) -> int:
        """Everything that is set aside: a ceiling, more is never charged."""
        return self.estimate + self.provider

    @property
    def estimated_seconds(self) -> Decimal:
        """What the person who waits is told."""
        return self.estimate * SECONDS_OVER_ESTIMATE


def _fractions(table: Mapping[str, int | str]) -> Mapping[str, Fraction]:
    return MappingProxyType({base: Fraction(seconds) for base, seconds in table.items()})


FACTORS = Factors()


def video_credits(base: str, frames: int, width: int, height: int, *, factors: Factors = FACTORS) -> int:
    """Formula B: max(1, floor(seconds per frame x frames x w x h / 262144)); 48 frames of 1280x720 in Z-Image are 1,012."""
    _demand_positive(frames=frames, width=width, height=height)
    seconds = factors.video_seconds.get(base, factors.other_video_seconds)
    return max(1, floor(seconds * frames * width * height / REFERENCE_PIXELS))


def image_credits(base: str, width: int, height: int, steps: int, batch_size: int = 1, *, factors: Factors = FACTORS) -> int:
    """C-10: max(1, floor(base x max(1, (w x h / 262144)^0.7) x steps / 20 x batch^0.7)); Flux, 1024x1024, 20 steps: 52."""
    _demand_positive(width=width, height=height, steps=steps, batch_size=batch_size)
    linear = factors.image_seconds.get(base, factors.other_image_seconds) * steps / REFERENCE_STEPS
    area = max(Fraction(1), Fraction(width * height, REFERENCE_PIXELS))
    return max(1, floor_of_power(linear, area * batch_size, factors.exponent))


def floor_of_power(linear: Fraction, grown: Fraction, exponent: tuple[int, int]) -> int:
    """floor(linear x grown^(p/q)) without a float: the largest n with n^q <= linear^q x grown^p."""
    power, root = exponent
    target = linear**root * grown**power
    low, high = 0, 1
    while high**root <= target:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**root <= target else (low, middle)
    return low


def provider_credits(node_type: str, pictures: int, *, factors: Factors = FACTORS) -> int:
    """What so many pictures of an external provider are charged."""
    _demand_positive(pictures=pictures)
    return factors.provider_credits.get(node_type, factors.other_provider_credits) * pictures


def actual_credits(gpu_seconds: float | Decimal | Fraction) -> int:
    """max(1, ceil(seconds)): 80.0 are 80, 80.1 are 81."""
    if not gpu_seconds >= 0:
        raise ValueError(f"gpu_seconds: expected 0 or more, got {gpu_seconds}")
    return max(1, ceil(gpu_seconds))


def price(demands: Demands, *, factors: Factors = FACTORS) -> Price:
    """The price of one queue item, whose numbers gate.fill_maxima() has completed; at least 1 credit.

    Raises TooDear beyond what an account can hold.
    """
    lines = tuple(_line(job, factors) for job in demands.jobs)
    calls = sum(_call(call, factors) for call in demands.provider_calls)
    estimate = max(1, sum(line.credits for line in lines))
    if estimate + calls > MOST_CREDITS:
        raise TooDear(f"expected at most {MOST_CREDITS} credits for one job, got {estimate + calls}")
    # Each model is loaded once however often it runs.
    bases = {base for job in demands.jobs for base in (job.base, *job.other_bases)}
    loading = sum(factors.load_seconds.get(base, factors.other_load_seconds) for base in bases) or factors.other_load_seconds
    return Price(estimate=estimate, provider=calls, lines=lines, load_seconds=loading)


def _line(job: JobDemand, factors: Factors) -> Line:
    """Where the running graph chooses between models, the dearest counts."""
    width, height, times, batch = _known(job.width), _known(job.height), _known(job.times), _known(job.batch_size)
    if job.kind == "video":
        frames = _known(job.frames)
        prices = {base: video_credits(base, frames, width, height, factors=factors) * batch for base in (job.base, *job.other_bases)}
        numbers: dict[str, int] = {"frames": frames}
    else:
        steps = job.steps or REFERENCE_STEPS
        prices = {base: image_credits(base, width, height, steps, batch, factors=factors) for base in (job.base, *job.other_bases)}
        numbers = {"steps": steps}
    base = max(prices, key=prices.__getitem__)
    return Line(job.kind, base, prices[base] * times, times, width=width, height=height, batch_size=batch, **numbers)


def _call(call: ProviderCall, factors: Factors) -> int:
    return provider_credits(call.node_type, _known(call.pictures), factors=factors) * _known(call.times)


def _known(value: int | None) -> int:
    # gate.fill_maxima() has put the plan's maximum there, or the graph was refused.
    assert value is not None, "a price needs the plan's maximum where a running node decides"
    return value


def _demand_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}: expected 1 or more, got {value}")
