import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.sampling import steps_of
from invokeai_video_nodes.pipelines.schedules import MAX_SHIFT, MIN_SHIFT, flow_match_scheduler, resolution_shift

DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}


def diffusers_schedule(config, steps, mu=None):
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1], mu=mu)
    return scheduler


@pytest.mark.parametrize("steps", [1, 4, 8, 50])
def test_the_checkpoints_schedule_is_diffusers_own(steps):
    ours = flow_match_scheduler("euler", steps=steps, image_tokens=16, config={"shift": 5.0})

    theirs = diffusers_schedule({"shift": 5.0}, steps)
    assert torch.equal(ours.timesteps, theirs.timesteps) and torch.equal(ours.sigmas, theirs.sigmas)


def test_a_resolution_dependent_schedule_goes_by_the_tokens_of_one_frame():
    ours = flow_match_scheduler("euler", steps=8, image_tokens=1024, config=DYNAMIC)

    theirs = diffusers_schedule(DYNAMIC, 8, mu=resolution_shift(1024, DYNAMIC))
    assert torch.equal(ours.sigmas, theirs.sigmas)
    assert resolution_shift(256, {}) == pytest.approx(0.5) and resolution_shift(4096, {}) == pytest.approx(1.15)


def test_a_shift_overrides_the_checkpoints_even_a_resolution_dependent_one():
    ours = flow_match_scheduler("euler", steps=8, image_tokens=1024, config=DYNAMIC, shift=7.0)

    assert torch.equal(ours.sigmas, diffusers_schedule({"shift": 7.0}, 8).sigmas)


def test_no_config_means_the_public_shift_of_three():
    assert flow_match_scheduler("euler", steps=4, image_tokens=16).sigmas.tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])


@pytest.mark.parametrize("name", ["euler", "heun", "lcm"])
def test_all_samplers_walk_the_same_noise_levels(name):
    scheduler = flow_match_scheduler(name, steps=4, image_tokens=16)

    assert sorted(set(scheduler.sigmas.tolist()), reverse=True) == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    assert steps_of(scheduler) == 4


@pytest.mark.parametrize("name", ["euler", "heun", "lcm"])
def test_a_part_of_the_schedule_is_a_slice_of_it(name):
    whole = flow_match_scheduler("euler", steps=10, image_tokens=16)
    part = flow_match_scheduler(name, steps=10, image_tokens=16, denoising_start=0.3, denoising_end=0.8)

    assert steps_of(part) == 5
    assert part.sigmas[0] == whole.sigmas[3] and part.sigmas[-1] == whole.sigmas[8]


def test_fractions_that_binary_cannot_hold_still_hit_their_step():
    part = flow_match_scheduler("euler", steps=100, image_tokens=16, denoising_start=0.29)

    assert steps_of(part) == 71


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, r"steps: expected 1 or more, got 0 \(nearest valid value: 1\)"),
        ({"shift": 1e-9}, r"shift: expected 0.01 to 100, got 1e-09 \(nearest valid value: 0.01\)"),
        ({"shift": float("inf")}, r"shift: expected 0.01 to 100, got inf \(nearest valid value: 100\)"),
        ({"shift": float("nan")}, "shift: expected 0.01 to 100, got nan"),
        ({"denoising_start": 1.5}, r"denoising_start: expected 0.0 to 1.0, got 1.5 \(nearest valid value: 1.0\)"),
        ({"denoising_start": 0.5, "denoising_end": 0.5}, r"got 0.5 to 0.5 \(nearest valid value: 0.5 to 0.75\)"),
        ({"denoising_start": 1.0}, r"got 1 to 1 \(nearest valid value: 0.75 to 1\)"),
    ],
)
def test_settings_that_leave_no_schedule_are_refused(settings, message):
    with pytest.raises(BadInput, match=message):
        flow_match_scheduler("euler", **{"steps": 4, "image_tokens": 16, **settings})


def test_an_unknown_scheduler_is_refused_with_the_known_ones():
    with pytest.raises(BadInput, match="one of euler, heun, lcm, got 'ddim'"):
        flow_match_scheduler("ddim", steps=4, image_tokens=16)


@pytest.mark.parametrize("shift", [MIN_SHIFT, MAX_SHIFT])
def test_the_least_and_the_greatest_shift_give_noise_levels_that_fall_from_one_to_zero(shift):
    sigmas = flow_match_scheduler("euler", steps=50, image_tokens=16, shift=shift).sigmas

    assert sigmas[0] == pytest.approx(1.0, abs=1e-4) and sigmas[-1] == 0.0
    assert (sigmas[1:] < sigmas[:-1]).all()
