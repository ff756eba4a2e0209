"""An automatic judge: decoded frames and the subject that was asked for go in, a verdict comes out.

It knows nothing of the model. The shape is what differs from the background; its centroid track tells directions, its
area's slope growth, a template's angle rotation (only for triangle and star: a circle has no angle and a square's repeats
every 90 degrees and is blurred by its own symmetry, so a rotating square is judged as one that stays and keeps its size).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from training.toy_model.clips import COLOURS, DIRECTIONS, SHAPES, SIZE, Subject, coverage

PATCH = 25  # pixels on a side of the normalised shape that templates are compared in
PATCH_RADIUS = 8.0  # every shape is scaled to the area of a disc of this radius
MIN_TRAVEL = 0.4  # pixels per frame below which nothing moves
MIN_GROWTH = 0.012  # relative change of the diameter per frame below which nothing grows
MIN_TURN = math.radians(2.5)  # per frame


@dataclass
class Seen:
    """What the judge saw. Tracks have one entry per frame."""

    centres: np.ndarray  # [F, 2] pixels
    areas: np.ndarray  # [F] pixels
    colours: np.ndarray  # [F, 3] mean colour of the shape's inside
    shapes: list[str] = field(default_factory=list)
    turns: np.ndarray | None = None  # [F] radians, unwrapped


@dataclass(frozen=True)
class Verdict:
    """Right or wrong against the request, and how steady the clip is."""

    colour: bool
    shape: bool
    motion: bool
    shape_steady: bool  # the same shape in every frame
    colour_drift: float  # largest distance of a frame's colour from the clip's mean, as a share of 255
    track_r2: float  # of the centroid (directions), the diameter (growth) or the angle (rotation) against a straight line
    jump: float  # largest step over the median step, for directions

    @property
    def all_right(self) -> bool:
        return self.colour and self.shape and self.motion


def object_mask(frame: np.ndarray) -> np.ndarray:
    """How much of each pixel is shape [64, 64] in 0..1: how far its saturation is above the pale background's."""
    pixels = frame.astype(np.float32)
    chroma = pixels.max(axis=2) - pixels.min(axis=2)
    full = np.percentile(chroma, 99.5)
    floor = 20.0  # the backgrounds stay below this
    if full < 2 * floor:
        return np.zeros(frame.shape[:2], dtype=np.float32)
    mask = np.clip((chroma - floor) / (0.9 * full - floor), 0.0, 1.0)
    return mask.astype(np.float32)


def nearest_colour(rgb: np.ndarray) -> str:
    """The palette's name nearest to `rgb` [3] in 0..255."""
    return min(COLOURS, key=lambda name: float(np.square(rgb - np.array(COLOURS[name])).sum()))


@cache
def templates(shape: str) -> tuple[np.ndarray, np.ndarray]:
    """`(patches [N, PATCH * PATCH], angles [N])` of a shape at unit area, over one period of its symmetry."""
    period = {"circle": 0.0, "square": math.pi / 2, "triangle": 2 * math.pi / 3, "star": 2 * math.pi / 5}[shape]
    count = 1 if shape == "circle" else 24
    angles = np.arange(count) * period / count
    patches = []
    for angle in angles:
        area = coverage(shape, centre=np.full(2, SIZE / 2), radius=8.0, turn=0.0).sum()
        radius = 8.0 * math.sqrt(math.pi * PATCH_RADIUS**2 / area)
        picture = coverage(shape, centre=np.full(2, SIZE / 2), radius=radius, turn=float(angle))
        patches.append(normalised_patch(picture).ravel())
    return np.stack(patches), angles


def normalised_patch(mask: np.ndarray) -> np.ndarray:
    """The mask [64, 64] resampled so that its centroid is in the middle and its area is the templates': [PATCH, PATCH]."""
    area = mask.sum()
    grid = np.arange(SIZE) + 0.5
    cx, cy = (mask.sum(axis=0) * grid).sum() / area, (mask.sum(axis=1) * grid).sum() / area
    scale = math.sqrt(area / (math.pi * PATCH_RADIUS**2))
    offsets = (np.arange(PATCH) - (PATCH - 1) / 2) * scale
    patch = _sample_rows(_sample_rows(mask, cy + offsets - 0.5).T, cx + offsets - 0.5).T
    centred = patch - patch.mean()
    return centred / (np.linalg.norm(centred) + 1e-6)


def _sample_rows(picture: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Rows of `picture` at fractional `places`, linear between rows, zero outside."""
    padded = np.pad(picture, ((PATCH, PATCH), (0, 0)))
    places = np.clip(places + PATCH, 0, len(padded) - 1.001)
    below = places.astype(int)
    part = (places - below)[:, None]
    return padded[below] * (1 - part) + padded[below + 1] * part


def match_shape(mask: np.ndarray) -> tuple[str, dict[str, float]]:
    """`(best shape, its best angle by shape)` of a mask, by correlation with every template."""
    patch = normalised_patch(mask).ravel()
    scores, angles = {}, {}
    for shape in SHAPES:
        patches, turns = templates(shape)
        correlation = patches @ patch
        best = int(correlation.argmax())
        scores[shape], angles[shape] = float(correlation[best]), float(turns[best])
    return max(scores, key=lambda name: scores[name]), angles


def look(clip: np.ndarray, *, shape: str) -> Seen | None:
    """Measure every frame of `clip` [F, 64, 64, 3] uint8; `shape` says whose angle to follow. None when a frame is empty."""
    centres, areas, colours, shapes, turns = [], [], [], [], []
    grid = np.arange(SIZE) + 0.5
    for frame in clip:
        mask = object_mask(frame)
        if mask.sum() < 20:
            return None
        centres.append([(mask.sum(axis=0) * grid).sum() / mask.sum(), (mask.sum(axis=1) * grid).sum() / mask.sum()])
        areas.append(mask.sum())
        colours.append(frame[mask > 0.95].mean(axis=0) if (mask > 0.95).any() else frame[mask > 0.5].mean(axis=0))
        best, angles = match_shape(mask)
        shapes.append(best)
        turns.append(angles[shape])
    period = {"triangle": 2 * math.pi / 3, "star": 2 * math.pi / 5}.get(shape)
    unwrapped = np.unwrap(np.array(turns), period=period) if period else None
    return Seen(np.array(centres), np.array(areas), np.array(colours), shapes, unwrapped)


def seen_motion(seen: Seen, *, turning_visible: bool) -> str:
    """The name of the motion that the tracks show, or "none"."""
    velocity = _slope(seen.centres)
    diameters = 2 * np.sqrt(seen.areas / math.pi)
    growth = float(_slope(diameters)) / float(diameters.mean())
    if np.hypot(*velocity) >= MIN_TRAVEL:
        return max(DIRECTIONS, key=lambda name: float(velocity @ np.array(DIRECTIONS[name])))
    if abs(growth) >= MIN_GROWTH:
        return "growing" if growth > 0 else "shrinking"
    if turning_visible and seen.turns is not None and float(_slope(seen.turns)) >= MIN_TURN:
        return "rotating"
    return "none"


def judge(clip: np.ndarray, subject: Subject) -> Verdict:
    """Compare `clip` [F, 64, 64, 3] uint8 with what `subject` asks for."""
    seen = look(clip, shape=subject.shape)
    if seen is None:
        return Verdict(False, False, False, False, 1.0, 0.0, math.inf)
    turning_visible = subject.shape in ("triangle", "star")
    expected = subject.motion if turning_visible or subject.motion != "rotating" else "none"
    mean = seen.colours.mean(axis=0)
    track_r2, jump = _track(seen, expected)
    return Verdict(
        colour=nearest_colour(mean) == subject.colour,
        shape=seen.shapes.count(subject.shape) > len(seen.shapes) / 2,
        motion=seen_motion(seen, turning_visible=turning_visible) == expected,
        shape_steady=len(set(seen.shapes)) == 1,
        colour_drift=float(np.abs(seen.colours - mean).max()) / 255.0,
        track_r2=track_r2,
        jump=jump,
    )


def _track(seen: Seen, motion: str) -> tuple[float, float]:
    """`(R² of the track that the motion is about, largest over median step)`; (1, 1) where nothing should change."""
    if motion in DIRECTIONS:
        steps = np.hypot(*np.diff(seen.centres, axis=0).T)
        return _r_squared(seen.centres @ np.array(DIRECTIONS[motion])), float(steps.max() / max(np.median(steps), 1e-6))
    if motion in ("growing", "shrinking"):
        return _r_squared(np.sqrt(seen.areas)), 1.0
    if motion == "rotating" and seen.turns is not None:
        return _r_squared(seen.turns), 1.0
    return 1.0, 1.0


def _slope(track: np.ndarray) -> np.ndarray:
    """Least-squares change per frame of `track` [F] or [F, k]."""
    time = np.arange(len(track)) - (len(track) - 1) / 2
    return (time @ track) / (time @ time)


def _r_squared(track: np.ndarray) -> float:
    time = np.arange(len(track)) - (len(track) - 1) / 2
    centred = track - track.mean()
    total = float(centred @ centred)
    return 1.0 if total < 1e-9 else float(np.square(time @ centred) / ((time @ time) * total))


def wilson_lower(right: int, total: int, *, z: float = 1.959964) -> float:
    """The lower end of Wilson's 95% interval for `right` of `total` (Wilson 1927)."""
    share = right / total
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return (share + z * z / (2 * total) - spread) / (1 + z * z / total)
