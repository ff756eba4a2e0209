import pytest
import torch

from invokeai_video_nodes.pipelines.errors import BadInput, Canceled, NotFinite
from invokeai_video_nodes.pipelines.guidance import guide, is_guided
from invokeai_video_nodes.pipelines.sampling import HeldFrame, sample
from invokeai_video_nodes.pipelines.schedules import flow_match_scheduler

NOISE = torch.randn(1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
CLEAN = torch.full((1, 2, 1, 4, 4), 0.25)


def curved(latents, *, timestep, step, total):
    """dx/dsigma = x: the exact solution shrinks by e from sigma 1 to 0."""
    return latents


def scheduler(name="euler", steps=8, **settings):
    return flow_match_scheduler(name, steps=steps, image_tokens=16, shift=1.0, **settings)


@pytest.mark.parametrize(("name", "worst"), [("euler", 0.1), ("heun", 0.02)])
def test_samplers_follow_a_flow_with_a_known_end(name, worst):
    result = sample(curved, latents=NOISE, scheduler=scheduler(name))

    assert (result / NOISE - torch.exp(torch.tensor(-1.0))).abs().max() < worst


def test_heun_is_the_textbook_method():
    sigmas = scheduler().sigmas
    x = NOISE
    for now, later in zip(sigmas[:-2], sigmas[1:-1], strict=True):
        predicted = x + (later - now) * x
        x = x + (later - now) * (x + predicted) / 2
    x = x + (sigmas[-1] - sigmas[-2]) * x

    assert torch.allclose(sample(curved, latents=NOISE, scheduler=scheduler("heun")), x, atol=1e-6)


def test_lcm_is_reproducible_with_a_seeded_generator_and_not_without_its_seed():
    def run(seed):
        return sample(curved, latents=NOISE, scheduler=scheduler("lcm"), generator=torch.Generator("cpu").manual_seed(seed))

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


@pytest.mark.parametrize("name", ["euler", "heun", "lcm"])
def test_every_step_is_reported_once_with_an_estimate_of_the_end(name):
    target = torch.full_like(NOISE, 0.5)

    def straight(latents, *, timestep, step, total):
        return (latents - target) / (timestep / 1000)

    seen = []
    sample(
        straight,
        latents=NOISE,
        scheduler=scheduler(name, steps=4),
        on_step=lambda step, total, x0, latents: seen.append((step, total, x0)),
    )

    assert [(step, total) for step, total, _ in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(torch.allclose(x0, target, atol=1e-5) for _, _, x0 in seen)


@pytest.mark.parametrize("name", ["euler", "heun", "lcm"])
@pytest.mark.parametrize("stop_after", [0, 1, 3])
def test_a_stopped_run_makes_no_further_call(name, stop_after):
    calls = []

    def counted(latents, **_):
        calls.append(1)
        return latents

    with pytest.raises(Canceled):
        sample(counted, latents=NOISE, scheduler=scheduler(name), stop=lambda: len(calls) >= stop_after)

    assert len(calls) == stop_after


def held_run(strength, *, name="euler", steps=10, **settings):
    seen = []

    def watched(latents, *, timestep, step, total):
        seen.append((step, float(timestep / 1000), latents[:, :, :1].clone()))
        return latents * 0.9

    schedule = scheduler(name, steps, **settings)
    held = HeldFrame.build(clean=CLEAN, latents=NOISE, sigma=float(schedule.sigmas[0]), strength=strength, total=steps)
    result = sample(watched, latents=NOISE, scheduler=schedule, held=held)
    return seen, result


@pytest.mark.parametrize("name", ["euler", "heun", "lcm"])
def test_motion_strength_zero_holds_frame_zero_exactly_to_the_end(name):
    seen, result = held_run(0.0, name=name)

    assert all(torch.equal(frame, CLEAN) for _, _, frame in seen)
    assert torch.equal(result[:, :, :1], CLEAN)
    assert not torch.equal(result[:, :, 1:], NOISE[:, :, 1:])


@pytest.mark.parametrize(("strength", "held_steps"), [(1.0, 1), (0.7, 3), (0.5, 5), (0.1, 9)])
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_motion_strength_says_how_long_frame_zero_is_held(strength, held_steps, name):
    seen, result = held_run(strength, name=name)

    assert {step for step, _, frame in seen if torch.equal(frame, CLEAN)} == set(range(held_steps))
    assert not torch.equal(result[:, :, :1], CLEAN)


def test_a_released_frame_comes_back_at_the_noise_level_of_its_step():
    seen, _ = held_run(0.7)

    _, sigma, frame = next(entry for entry in seen if entry[0] == 3)
    assert torch.allclose(frame, (1 - sigma) * CLEAN + sigma * NOISE[:, :, :1], atol=1e-6)


def test_motion_strength_outside_its_range_is_refused():
    with pytest.raises(BadInput, match=r"motion_strength: expected 0.0 to 1.0, got 1.2 \(nearest valid value: 1.0\)"):
        held_run(1.2)


def test_guidance_counts_from_the_negative_side():
    positive, negative = torch.tensor([2.0]), torch.tensor([1.0])

    assert guide(positive, negative, 3.0).item() == 4.0
    assert guide(positive, negative, 1.0).item() == 2.0


def test_guidance_needs_a_scale_above_one_and_a_negative():
    negative = torch.zeros(1, 1)

    assert is_guided(1.5, negative)
    assert not is_guided(1.0, negative) and not is_guided(5.0, None)
    with pytest.raises(BadInput, match=r"guidance_scale: expected 1.0 or more, got 0.5"):
        is_guided(0.5, negative)


@pytest.mark.parametrize("name", ["euler", "heun", "lcm"])
@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_a_step_that_gives_no_numbers_ends_the_run_and_says_which(name, number):
    seen = []

    def breaks(latents, *, timestep, step, total):
        return torch.full_like(latents, number if step == 2 else 0.0)

    with pytest.raises(NotFinite, match="expected numbers after step 3 of 8, got inf or nan"):
        sample(breaks, latents=NOISE, scheduler=scheduler(name), on_step=lambda step, *_: seen.append(step))
    assert seen == [1, 2]
