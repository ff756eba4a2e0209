"""The judge is right about clips whose truth is known, and it bites."""

import numpy as np
import pytest

from training.toy_model.clips import COLOURS, FRAMES, MOTIONS, SHAPES, Subject, all_subjects, render
from training.toy_model.judge import judge, wilson_lower

LENGTHS = (8, 16, 24)


def window(subject: Subject, *, seed: int, frames: int) -> np.ndarray:
    begin = seed % (FRAMES - frames + 1)
    return render(subject, seed=seed)[begin : begin + frames]


@pytest.mark.parametrize("frames", LENGTHS)
def test_rendered_clips_are_judged_right_and_steady(frames):
    for index, subject in enumerate(all_subjects()[LENGTHS.index(frames) :: 9]):
        verdict = judge(window(subject, seed=5000 + index, frames=frames), subject)

        assert verdict.all_right and verdict.shape_steady, (subject, verdict)
        assert verdict.colour_drift <= 0.05 and verdict.track_r2 >= 0.95 and verdict.jump <= 2.0, (subject, verdict)


def test_a_wrong_colour_shape_or_motion_is_seen():
    for index, subject in enumerate(all_subjects()[::17]):
        clip = window(subject, seed=index, frames=16)

        for colour in set(COLOURS) - {subject.colour}:
            assert not judge(clip, Subject(subject.shape, colour, subject.motion)).colour
        for shape in set(SHAPES) - {subject.shape}:
            if not (shape == "circle" and subject.motion == "rotating"):
                assert not judge(clip, Subject(shape, subject.colour, subject.motion)).shape
        for motion in set(MOTIONS) - {subject.motion, "rotating"}:
            assert not judge(clip, Subject(subject.shape, subject.colour, motion)).motion


def test_a_still_triangle_does_not_pass_for_a_rotating_one():
    still = np.repeat(render(Subject("triangle", "red", "rotating"), seed=1, frames=1), 16, axis=0)

    assert not judge(still, Subject("triangle", "red", "rotating")).motion


def test_a_jump_a_change_of_colour_and_a_change_of_shape_are_seen():
    subject = Subject("square", "green", "right")
    clip = render(subject, seed=2)
    jumping = np.concatenate([clip[:8], clip[12:20]])
    recoloured, reshaped = clip.copy(), clip.copy()
    recoloured[12:] = render(Subject("square", "yellow", "right"), seed=2)[12:]
    reshaped[12:] = render(Subject("star", "green", "right"), seed=2)[12:]

    assert judge(jumping, subject).jump > 2.0
    assert judge(recoloured, subject).colour_drift > 0.05
    assert not judge(reshaped, subject).shape_steady


def test_an_empty_clip_is_wrong_in_everything():
    verdict = judge(np.full((8, 64, 64, 3), 230, dtype=np.uint8), Subject("star", "red", "up"))

    assert not (verdict.colour or verdict.shape or verdict.motion or verdict.shape_steady)


def test_the_lower_bound_is_wilsons():
    assert wilson_lower(200, 200) == pytest.approx(0.9812, abs=1e-4)
    assert wilson_lower(95, 100) == pytest.approx(0.8882, abs=1e-4)
