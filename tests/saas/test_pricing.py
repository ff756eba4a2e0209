"""Prices: pictures by C-10, videos by formula B, both exact; seconds into credits."""

import math
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from invokeai_saas.credits import pricing
from invokeai_saas.credits.pricing import Factors, TooDear, actual_credits, image_credits, price, provider_credits, video_credits
from invokeai_saas.plans.demands import Demands, JobDemand, ProviderCall


def job(kind, base, width, height, **numbers):
    return JobDemand(kind=kind, node_type="denoise", node_path="d", base=base, width=width, height=height, **numbers)


def price_of(*jobs, calls=()):
    return price(Demands(jobs=jobs, provider_calls=calls))


def call(node_type, pictures=1, times=1):
    return ProviderCall(node_type=node_type, node_path="c", model=None, pictures=pictures, width=None, height=None, times=times)


@pytest.mark.parametrize(
    ("name", "base", "frames", "width", "height", "expected"),
    [
        ("T-01", "animatediff", 16, 512, 512, 32),
        ("T-02", "animatediff", 32, 512, 512, 64),
        ("T-03", "animatediff", 48, 512, 512, 96),
        ("T-04", "svd", 16, 512, 512, 64),
        ("T-05", "svd", 25, 576, 1024, 225),
        ("T-05", "svd", 25, 1024, 576, 225),
        ("T-06", "svd", 14, 576, 1024, 126),
        ("T-07", "z-image-video", 16, 512, 512, 96),
        ("T-08", "z-image-video", 48, 1280, 720, 1012),
        ("T-09", "hunyuan-video", 16, 512, 512, 160),
        ("T-10", "hunyuan-video", 128, 1280, 720, 4500),
        ("T-11", "hunyuan-video", 128, 1920, 1080, 10125),
        ("T-12", "animatediff", 4, 256, 256, 2),
        ("T-13", "a model of tomorrow", 16, 512, 512, 64),
    ],
)
def test_a_video_costs_what_formula_b_says(name, base, frames, width, height, expected):
    assert video_credits(base, frames, width, height) == expected


@pytest.mark.parametrize(
    ("name", "base", "frames", "width", "height", "expected"),
    [
        ("T-01", "animatediff", 16, 512, 512, "38.4"),
        ("T-05", "svd", 25, 576, 1024, "270.0"),
        ("T-07", "z-image-video", 16, 512, 512, "115.2"),
        ("T-10", "hunyuan-video", 128, 1280, 720, "5400.0"),
    ],
)
def test_the_seconds_that_are_told_are_a_fifth_more_than_the_estimate(name, base, frames, width, height, expected):
    assert price_of(job("video", base, width, height, frames=frames)).estimated_seconds == Decimal(expected)


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, 1), (0.2, 1), (80.0, 80), (80.1, 81)])
def test_t_15_measured_seconds_are_rounded_up_and_cost_at_least_one(seconds, expected):
    assert actual_credits(seconds) == expected


@pytest.mark.parametrize("seconds", [-0.1, float("nan")])
def test_seconds_that_cannot_be_are_refused(seconds):
    with pytest.raises(ValueError, match="expected 0 or more"):
        actual_credits(seconds)


@pytest.mark.parametrize(
    ("base", "size", "steps", "expected"), [("sd-1", 512, 20, 5), ("flux", 1024, 20, 52), ("z-image", 1024, 20, 92), ("sdxl", 1024, 30, 47)]
)
def test_t_34_a_picture_costs_what_c_10_says(base, size, steps, expected):
    assert image_credits(base, size, size, steps) == expected


def test_a_batch_of_pictures_costs_less_than_its_pictures_alone():
    assert image_credits("sdxl", 1024, 1024, 20, batch_size=4) == math.floor(12 * 4**0.7 * 4**0.7) == 83
    assert image_credits("sdxl", 1024, 1024, 20) * 4 == 124


def test_a_picture_below_the_reference_size_is_not_cheaper():
    assert image_credits("sd-1", 64, 64, 20) == image_credits("sd-1", 512, 512, 20) == 5


def test_an_unknown_model_has_the_tables_default():
    assert image_credits("a model of tomorrow", 512, 512, 20) == 10


def test_nothing_costs_nothing():
    assert (image_credits("sd-1", 512, 512, 1), video_credits("animatediff", 1, 64, 64)) == (1, 1)


def test_a_power_that_is_a_whole_number_is_not_rounded_below_it():
    # 12 x 2^7: a float's 1024^0.7 is 127.99999999999997.
    assert pricing.floor_of_power(Fraction(12), Fraction(1024), (7, 10)) == 1536
    assert math.floor(12 * 1024**0.7) == 1535


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 100), st.integers(1, 16384), st.integers(1, 16384), st.integers(1, 500), st.integers(1, 64))
def test_the_exact_price_is_the_floor_of_the_real_one(base, width, height, steps, batch):
    factors = replace(pricing.FACTORS, image_seconds={"x": Fraction(base)})
    credits = image_credits("x", width, height, steps, batch, factors=factors)
    tenth = (Fraction(base) * steps / 20) ** 10 * (max(Fraction(1), Fraction(width * height, 262144)) * batch) ** 7

    assert credits == 1 or credits**10 <= tenth < (credits + 1) ** 10
    assert credits > 1 or tenth < 2**10


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["animatediff", "svd", "z-image-video", "hunyuan-video"]), st.integers(1, 129), st.integers(16, 2048))
def test_a_larger_video_is_never_cheaper(base, frames, side):
    assert video_credits(base, frames, side, side) <= video_credits(base, frames + 1, side, side)
    assert video_credits(base, frames, side, side) <= video_credits(base, frames, side + 16, side)
    assert video_credits(base, frames, side, side + 16) == video_credits(base, frames, side + 16, side)


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"width": 0}, {"height": -16}])
def test_a_size_that_cannot_be_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected 1 or more, got"):
        video_credits("svd", **{"frames": 14, "width": 512, "height": 512, **wrong})


def test_a_price_adds_its_jobs_and_keeps_a_line_of_each():
    whole = price_of(job("image", "sdxl", 1024, 1024, steps=30), job("video", "svd", 1024, 576, frames=25, times=3))

    assert (whole.estimate, whole.provider, whole.hold) == (47 + 3 * 225, 0, 722)
    assert [line.as_json() for line in whole.lines] == [
        {"kind": "image", "base": "sdxl", "credits": 47, "times": 1, "width": 1024, "height": 1024, "steps": 30, "batch_size": 1},
        {"kind": "video", "base": "svd", "credits": 675, "times": 3, "width": 1024, "height": 576, "frames": 25, "batch_size": 1},
    ]


def test_calls_of_a_provider_carry_their_own_price():
    whole = price_of(calls=[call("gemini_image_generation", pictures=2, times=3), call("somebody")])

    assert (whole.estimate, whole.provider, whole.hold) == (1, 6 * 8 + 50, 99)
    assert provider_credits("gemini_image_generation", 2) == 16


def test_where_the_running_graph_chooses_between_models_the_dearest_counts():
    [line] = price_of(job("image", "sd-1", 1024, 1024, steps=20, other_bases=("flux", "sdxl"))).lines

    assert (line.base, line.credits) == ("flux", 52)


def test_a_graph_without_a_priced_job_holds_one_credit():
    assert price_of().hold == 1


def test_each_model_may_be_loaded_once_however_often_it_runs():
    one, many = (price_of(job("image", "flux", 512, 512, steps=20, times=times)).load_seconds for times in (1, 50))

    assert one == many == 300


def test_a_price_that_no_account_can_hold_is_refused():
    with pytest.raises(TooDear, match="expected at most 10000000 credits"):
        price_of(job("video", "hunyuan-video", 8192, 8192, frames=100_000, times=1000))


@pytest.mark.parametrize(
    "wrong",
    [{"other_video_seconds": Fraction(0)}, {"exponent": (0, 10)}, {"exponent": (11, 10)}, {"other_provider_credits": -1}],
)
def test_factors_that_would_give_work_away_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        Factors(**wrong)


def test_recalibrated_factors_change_the_price():
    dearer = Factors(video_seconds={"svd": Fraction("4.5")})

    assert video_credits("svd", 25, 1024, 576, factors=dearer) == 253
