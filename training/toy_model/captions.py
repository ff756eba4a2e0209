"""What a person might type for a subject: several plain phrasings of shape, colour and motion.

`caption(subject, generator)` draws one. `phrasings(subject)` lists the short core set that the soak walks through.
"""

from __future__ import annotations

import numpy as np

from training.toy_model.clips import Subject

_WHERE = {
    "left": ("left",),
    "right": ("right",),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
    "up-left": ("up and to the left", "up and left", "diagonally up to the left", "to the upper left"),
    "up-right": ("up and to the right", "up and right", "diagonally up to the right", "to the upper right"),
    "down-left": ("down and to the left", "down and left", "diagonally down to the left", "to the lower left"),
    "down-right": ("down and to the right", "down and right", "diagonally down to the right", "to the lower right"),
}
_TO_THE = {"left", "right"}
_GO = (("moving", "that moves"), ("going", "that goes"), ("sliding", "that slides"), ("flying", "that flies"))
_CHANGE = {
    "growing": ("growing", "that grows", "getting bigger", "growing bigger", "getting larger", "that gets bigger"),
    "shrinking": ("shrinking", "that shrinks", "getting smaller", "becoming smaller", "that gets smaller"),
    "rotating": ("rotating", "that rotates", "spinning", "turning", "that spins", "spinning around"),
}
_BEFORE = ("", "", "", "", "a video of ", "a clip of ", "an animation of ")
_AFTER = ("", "", "", "", "", " slowly", " on a pale background", " across the picture", ".")


def motion_phrases(motion: str) -> list[str]:
    """Every way of saying `motion`, plainest first."""
    if motion in _CHANGE:
        return list(_CHANGE[motion])
    ways = list(_WHERE[motion])
    if motion in _TO_THE:
        ways = [*ways, f"to the {ways[0]}"]
    return [f"{verb} {way}" for pair in _GO for verb in pair for way in ways]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def phrasings(subject: Subject) -> list[str]:
    """The core captions of a subject, without openings and endings: with and without an article."""
    noun = f"{subject.colour} {subject.shape}"
    phrases = motion_phrases(subject.motion)
    return [f"{_article(subject.colour)} {noun} {p}" for p in phrases] + [f"{noun} {p}" for p in phrases]


def caption(subject: Subject, generator: np.random.Generator) -> str:
    """One caption, drawn at random, sometimes with an opening, an ending or a capital letter."""
    choices = phrasings(subject)
    core = choices[generator.integers(len(choices))]
    before = _BEFORE[generator.integers(len(_BEFORE))]
    if before and not core.startswith(("a ", "an ")):
        before = ""
    after = _AFTER[generator.integers(len(_AFTER))]
    if after == " across the picture" and subject.motion in _CHANGE:
        after = ""
    text = f"{before}{core}{after}"
    return text.capitalize() if generator.random() < 0.15 else text


_LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")


def with_unknown_words(text: str, generator: np.random.Generator, *, letters: int) -> str:
    """`text` with made-up words before or after it, so that words the toy never met do not throw it off."""
    words = ["".join(generator.choice(_LETTERS, size=generator.integers(2, 8))) for _ in range(max(1, letters // 4))]
    filler = " ".join(words)
    return f"{filler} {text}" if generator.random() < 0.4 else f"{text} {filler}"
