"""Synthetic clips: one coloured shape on a soft pale background, moving at a constant pace.

A `Subject` (shape, colour, motion) and a seed go in; `[24, 64, 64, 3]` uint8 frames come out. The pace is constant, the
whole track stays inside the picture and passes near its middle, so every window of a clip is itself a valid clip of the same
subject. Turning shapes start upright.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

SIZE = 64  # pixels
FRAMES = 24
OFF_CENTRE = 7.0  # pixels that a track's middle may be away from the picture's, in x and in y

SHAPES = ("circle", "square", "triangle", "star")

# Far apart in RGB, so that the nearest name is never a close call.
COLOURS = {
    "red": (214, 32, 44),
    "green": (40, 160, 70),
    "blue": (36, 84, 214),
    "yellow": (250, 222, 48),
    "purple": (142, 54, 186),
    "orange": (246, 138, 24),
}

# Unit steps in pixels: x to the right, y downwards. The diagonals run as fast as the straight moves.
_D = math.sqrt(0.5)
DIRECTIONS = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up-left": (-_D, -_D),
    "up-right": (_D, -_D),
    "down-left": (-_D, _D),
    "down-right": (_D, _D),
}
MOTIONS = (*DIRECTIONS, "growing", "shrinking", "rotating")

# Played backwards a clip shows the opposite motion. A backwards rotation would turn the other way, so it has no entry.
REVERSED = {
    "left": "right",
    "right": "left",
    "up": "down",
    "down": "up",
    "up-left": "down-right",
    "down-right": "up-left",
    "up-right": "down-left",
    "down-left": "up-right",
    "growing": "shrinking",
    "shrinking": "growing",
}

HELD_OUT_SHARE = 5  # one combination in five is kept out of training
HELD_OUT_SEED = 2026


@dataclass(frozen=True, order=True)
class Subject:
    """What a clip shows. Raises ValueError for an unknown word or for a circle that rotates (nothing would be seen)."""

    shape: str
    colour: str
    motion: str

    def __post_init__(self) -> None:
        for word, known in ((self.shape, SHAPES), (self.colour, tuple(COLOURS)), (self.motion, MOTIONS)):
            if word not in known:
                raise ValueError(f"expected one of {', '.join(known)}, got {word!r}")
        if self.shape == "circle" and self.motion == "rotating":
            raise ValueError("expected a shape whose turning can be seen, got a rotating circle")


def all_subjects() -> list[Subject]:
    """Every combination, 258 of them, in a fixed order."""
    return [
        Subject(shape, colour, motion)
        for shape in SHAPES
        for colour in COLOURS
        for motion in MOTIONS
        if not (shape == "circle" and motion == "rotating")
    ]


def split_subjects() -> tuple[list[Subject], list[Subject]]:
    """`(training, held out)`: a fifth is held out, spread so that every pair of words stays well represented.

    A seeded Latin square: for each (shape, motion) the held-out colours are drawn in turn from a shuffled deck.
    """
    generator = np.random.default_rng(HELD_OUT_SEED)
    colours = list(COLOURS)
    held: set[Subject] = set()
    deck: list[str] = []
    pairs = [(s, m) for s in SHAPES for m in MOTIONS if not (s == "circle" and m == "rotating")]
    for index in generator.permutation(len(pairs)):
        shape, motion = pairs[index]
        # 6 colours / 5 is 1.2 for each pair: one everywhere, a second one in every fifth pair.
        for _ in range(2 if len(held) % 6 == 0 else 1):
            if not deck:
                deck = [colours[i] for i in generator.permutation(len(colours))]
            colour = next((c for c in deck if Subject(shape, c, motion) not in held), deck[0])
            deck.remove(colour)
            held.add(Subject(shape, colour, motion))
    subjects = all_subjects()
    return [s for s in subjects if s not in held], sorted(held)


@dataclass(frozen=True)
class Track:
    """Where the shape is in each frame: centres [F, 2] in pixels (x, y), radii [F] in pixels, turns [F] in radians."""

    centres: np.ndarray
    radii: np.ndarray
    turns: np.ndarray


def outline(shape: str) -> np.ndarray | None:
    """The corners [V, 2] of a shape of radius 1, clockwise on the screen; None for the circle.

    The shapes are scaled to look equally large, not to share one circumscribed circle.
    """
    if shape == "circle":
        return None
    if shape == "square":
        angles, lengths = np.arange(4) * math.pi / 2 + math.pi / 4, np.full(4, 1.25)
    elif shape == "triangle":
        angles, lengths = np.arange(3) * 2 * math.pi / 3 - math.pi / 2, np.full(3, 1.4)
    else:
        angles = np.arange(10) * math.pi / 5 - math.pi / 2
        lengths = np.where(np.arange(10) % 2 == 0, 1.5, 0.62)
    return np.stack([np.cos(angles) * lengths, np.sin(angles) * lengths], axis=1)


REACH = {"circle": 1.0, "square": 1.25, "triangle": 1.4, "star": 1.5}  # largest distance from the centre, in radii


def coverage(shape: str, *, centre: np.ndarray, radius: float, turn: float) -> np.ndarray:
    """How much of each pixel the shape covers, [64, 64] in 0..1, antialiased over one pixel from the exact distance."""
    grid = np.arange(SIZE) + 0.5
    x, y = np.meshgrid(grid - centre[0], grid - centre[1])
    corners = outline(shape)
    if corners is None:
        distance = np.hypot(x, y) - radius
    else:
        c, s = math.cos(turn), math.sin(turn)
        distance = _polygon_distance(x, y, corners @ np.array([[c, s], [-s, c]]) * radius)
    return np.clip(0.5 - distance, 0.0, 1.0)


def _polygon_distance(x: np.ndarray, y: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Signed distance to a polygon in pixels, negative inside: the nearest edge, and the even-odd rule for the sign."""
    nearest = np.full(x.shape, np.inf)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0.0, 1.0)
        nearest = np.minimum(nearest, np.hypot(x - ax - along * ex, y - ay - along * ey))
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < ex * (y - ay) / (by - ay) + ax)
    return np.where(inside, -nearest, nearest)


def draw_track(subject: Subject, generator: np.random.Generator) -> Track:
    """A random track of `subject` that stays inside the picture for all 24 frames, half-way through near its middle."""
    time = np.arange(FRAMES)
    radii = np.full(FRAMES, generator.uniform(9.5, 10.5))
    turns = np.zeros(FRAMES)
    step = np.zeros(2)
    if subject.motion in DIRECTIONS:
        step = np.array(DIRECTIONS[subject.motion]) * generator.uniform(1.1, 1.35)
    elif subject.motion == "rotating":
        radii = radii + 1.0
        turns = time * math.radians(generator.uniform(6.0, 8.0))
    else:
        radii = generator.uniform(6.5, 7.5) + time * generator.uniform(0.3, 0.38)
        if subject.motion == "shrinking":
            radii = radii[::-1].copy()
    margin = radii.max() * REACH[subject.shape] + 0.5
    room = np.clip(SIZE / 2 - margin - np.abs(step) * (FRAMES - 1) / 2, 0.0, OFF_CENTRE)
    middle = SIZE / 2 + generator.uniform(-room, room)
    return Track(centres=middle + (time - (FRAMES - 1) / 2)[:, None] * step, radii=radii, turns=turns)


def draw_background(generator: np.random.Generator) -> np.ndarray:
    """A still, pale, nearly neutral gradient [64, 64, 3] in 0..255."""
    ends = generator.uniform(212.0, 250.0, size=(2, 1)) + generator.uniform(-4.0, 4.0, size=(2, 3))
    angle = generator.uniform(0.0, 2 * math.pi)
    grid = (np.arange(SIZE) + 0.5) / SIZE - 0.5
    x, y = np.meshgrid(grid, grid)
    ramp = np.clip((x * math.cos(angle) + y * math.sin(angle)) / math.sqrt(2) + 0.5, 0.0, 1.0)[..., None]
    return ends[0] * (1 - ramp) + ends[1] * ramp


def render(subject: Subject, *, seed: int, frames: int = FRAMES) -> np.ndarray:
    """The first `frames` frames of one clip of `subject`, [frames, 64, 64, 3] uint8."""
    generator = np.random.default_rng([seed, all_subjects().index(subject)])
    track = draw_track(subject, generator)
    background = draw_background(generator)
    colour = np.array(COLOURS[subject.colour]) + generator.uniform(-6.0, 6.0, size=3)
    clip = np.empty((frames, SIZE, SIZE, 3), dtype=np.uint8)
    still: np.ndarray | None = None
    for index in range(frames):
        mask = coverage(subject.shape, centre=track.centres[index], radius=float(track.radii[index]), turn=float(track.turns[index]))[
            ..., None
        ]
        still = background * (1 - mask) + colour * mask
        clip[index] = np.clip(np.rint(still), 0, 255).astype(np.uint8)
    return clip
