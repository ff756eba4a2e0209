"""The synthetic clips, their captions and the split that is held out of training."""

from collections import Counter

import numpy as np
import pytest

from training.toy_model.captions import caption, motion_phrases, phrasings
from training.toy_model.clips import (
    COLOURS,
    MOTIONS,
    REACH,
    REVERSED,
    SHAPES,
    SIZE,
    Subject,
    all_subjects,
    draw_track,
    render,
    split_subjects,
)


def test_there_are_enough_shapes_colours_and_motions():
    assert len(SHAPES) >= 4
    assert len(COLOURS) >= 6
    assert len(MOTIONS) >= 8


def test_a_fifth_of_the_combinations_is_held_out_and_every_word_stays_well_represented():
    training, held_out = split_subjects()

    assert len(held_out) == pytest.approx(len(all_subjects()) / 5, abs=1)
    assert not set(training) & set(held_out)
    for word in ("shape", "colour", "motion"):
        seen, everything = (Counter(getattr(s, word) for s in half) for half in (training, all_subjects()))
        assert all(seen[name] >= 0.65 * everything[name] for name in everything)


@pytest.mark.parametrize("subject", all_subjects()[::5], ids=str)
def test_the_whole_track_stays_inside_the_picture(subject):
    for seed in range(5):
        track = draw_track(subject, np.random.default_rng(seed))

        reach = track.radii[:, None] * REACH[subject.shape]
        assert (track.centres - reach >= 0).all()
        assert (track.centres + reach <= SIZE).all()


def test_the_same_seed_renders_the_same_clip_and_another_seed_another():
    subject = Subject("star", "blue", "up-left")

    assert np.array_equal(render(subject, seed=3), render(subject, seed=3))
    assert not np.array_equal(render(subject, seed=3), render(subject, seed=4))


def test_every_motion_but_rotation_has_an_opposite_and_it_is_mutual():
    assert set(MOTIONS) - set(REVERSED) == {"rotating"}
    assert all(REVERSED[REVERSED[motion]] == motion for motion in REVERSED)


def test_unknown_words_and_a_rotating_circle_are_refused():
    with pytest.raises(ValueError, match="expected one of circle"):
        Subject("hexagon", "red", "left")
    with pytest.raises(ValueError, match="turning"):
        Subject("circle", "red", "rotating")


def test_every_caption_names_the_shape_and_the_colour_and_no_two_motions_share_a_phrase():
    generator = np.random.default_rng(0)

    for subject in all_subjects():
        assert len(phrasings(subject)) >= 8
        text = caption(subject, generator).lower()
        assert subject.shape in text and subject.colour in text
    phrases = [phrase for motion in MOTIONS for phrase in motion_phrases(motion)]
    assert len(phrases) == len(set(phrases))
