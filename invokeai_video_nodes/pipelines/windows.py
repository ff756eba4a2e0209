"""Clips longer than the model's limit: frames -> context windows -> one model call each -> one blended prediction.

Which frames a window holds and how much each of its frames counts are plain numbers; only `predict_in_windows` touches
tensors. Three kinds of windows:

    static    the same windows in every step, spread evenly from the first frame to the last
    standard  their borders move from step to step, so that no frame is a border all the time
    looped    they also move, and run over the end into the beginning: the last frame then leads into the first

Worked example: 32 frames, length 16, overlap 4. Static windows start at 0, 8, 16; looped ones of step 0 at 0, 10, 21 where
the last holds the frames 21..31 and 0..4.

A stride of 2 or 4 adds windows of every 2nd (and every 4th) frame, which tie frames together that no plain window holds both.

FreeNoise (https://arxiv.org/abs/2310.15169) makes the noise of a long clip out of the noise of one window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch

from .errors import BadInput, Canceled, Stop
from .shapes import check_latents

WindowKind = Literal["standard", "looped", "static"]
WindowWeights = Literal["pyramid", "flat", "linear"]
FreeNoiseKind = Literal["shuffle_context", "repeat_context", "random"]

STRIDES = (1, 2, 4, 8)

# The frames of one window, in the order in which the model sees them; each is named once.
Frames = tuple[int, ...]


class WindowModel(Protocol):
    """Latents [B, C, n, h, w] of the named frames -> prediction [B', C', n, h, w]; controls and prompts go by `frames`."""

    def __call__(self, latents: torch.Tensor, frames: Frames) -> torch.Tensor: ...


@dataclass(frozen=True)
class ContextWindows:
    """How a clip of more than `length` frames is cut; settings that exist are valid (BadInput otherwise)."""

    length: int = 16
    """Frames that the model sees at once, 2 or more."""
    overlap: int = 4
    """Frames that neighbours share at least: 0 to length - 1."""
    stride: int = 1
    """1: neighbouring frames only. 2, 4, 8: also windows of every 2nd, 4th, 8th frame."""
    kind: WindowKind = "standard"
    weights: WindowWeights = "pyramid"
    """How a window's frames count: most in its middle, all alike, or rising over the overlap only."""

    def __post_init__(self) -> None:
        _check_choice("window kind", self.kind, get_args(WindowKind))
        _check_choice("window weights", self.weights, get_args(WindowWeights))
        if self.length < 2:
            raise BadInput.expected("window length", "at least 2 frames", self.length, 2)
        if not 0 <= self.overlap < self.length:
            expected = f"0 to {self.length - 1}, fewer than the window length"
            raise BadInput.expected("window overlap", expected, self.overlap, min(max(self.overlap, 0), self.length - 1))
        if self.stride not in STRIDES:
            nearest = min(STRIDES, key=lambda stride: (abs(stride - self.stride), stride))
            raise BadInput.expected("window stride", f"one of {', '.join(map(str, STRIDES))}", self.stride, nearest)
        if self.kind == "static" and self.stride != 1:
            raise BadInput.expected("window stride", "1, because static windows never move", self.stride, 1)

    def check_limit(self, limit: int) -> None:
        """Raise BadInput where a window is longer than the `limit` of frames that the model has positions for."""
        if self.length > limit:
            raise BadInput.expected("window length", f"at most {limit} frames, the motion module's limit", self.length, limit)

    def are_needed(self, num_frames: int) -> bool:
        """True where a clip is longer than one window."""
        return num_frames > self.length

    def frames_at_once(self, num_frames: int) -> int:
        """The most frames that one model call sees: what its memory goes by."""
        return min(num_frames, self.length)

    def of_step(self, num_frames: int, step: int) -> list[Frames]:
        """The windows of 0-based `step`: every frame lies in one of them or more, none holds more than `length` frames."""
        if not self.are_needed(num_frames):
            return [tuple(range(num_frames))]
        strides = [stride for stride in STRIDES if stride <= self.stride]
        if self.kind == "looped":
            return [w for stride in strides for w in looped_windows(num_frames, self, stride=stride, phase=phase_of(step))]
        return [w for stride in strides for w in self._open_windows(num_frames, stride=stride, step=step)]

    def _open_windows(self, num_frames: int, *, stride: int, step: int) -> list[Frames]:
        """Windows of every `stride`-th frame; which of them comes first changes with the step."""
        members = range(step % stride, num_frames, stride)
        if len(members) <= self.length:
            return [tuple(members)]
        phase = None if self.kind == "static" else phase_of(step)
        starts = open_starts(len(members), length=self.length, overlap=self.overlap, phase=phase)
        return [tuple(members[start : start + self.length]) for start in starts]


def phase_of(step: int) -> float:
    """0-based step -> 0..1, each as far from those before it as can be: 0, 1/2, 1/4, 3/4, 1/8 (van der Corput's sequence)."""
    return int(f"{step:b}"[::-1], 2) / 2 ** step.bit_length()


def open_starts(num_frames: int, *, length: int, overlap: int, phase: float | None) -> list[int]:
    """First frames of the windows of a clip with two ends, all `length` frames long.

    None spreads the fewest possible windows evenly; a `phase` of 0..1 moves those between the first and the last one.
    """
    hop, last = length - overlap, num_frames - length
    if phase is not None:
        return sorted({0, last, *range(int(phase * hop), last, hop)})
    gaps = -(-last // hop)
    return [index * last // gaps for index in range(gaps + 1)]


def looped_windows(
    num_frames: int, settings: ContextWindows, *, stride: int = 1, phase: float = 0.0, shift: int = 0
) -> list[Frames]:
    """Windows on a ring, spread evenly; `phase` 0..1 moves them by up to one gap, `shift` by so many frames.

    Rolling the clip by n frames and adding n to `shift` gives the same windows of the same content.
    """
    length = min(settings.length, num_frames // stride)
    hop = (settings.length - settings.overlap) * stride
    count = 1 if num_frames // stride <= settings.length else -(-num_frames // hop)
    first = shift + int(phase * num_frames / count)
    starts = (first + index * num_frames // count for index in range(count))
    return [tuple((start + position * stride) % num_frames for position in range(length)) for start in starts]


def position_weights(count: int, *, weights: WindowWeights, overlap: int) -> list[float]:
    """How much each of a window's `count` frames counts against the same frame in other windows; all above 0.

    Four frames: pyramid 1 3 3 1, flat 1 1 1 1, linear with an overlap of two 0.25 0.75 0.75 0.25. The slopes begin half a step
    in, so that a frame where one window ends and the next begins changes no more than any other.
    """
    if weights == "flat" or (weights == "linear" and overlap == 0):
        return [1.0] * count
    to_the_edge = [min(position, count - 1 - position) + 0.5 for position in range(count)]
    if weights == "pyramid":
        return [2.0 * distance for distance in to_the_edge]
    return [min(1.0, distance / overlap) for distance in to_the_edge]


def normalized_weights(windows: Sequence[Frames], *, num_frames: int, settings: ContextWindows) -> list[torch.Tensor]:
    """One float64 [n] for each window, such that the weights of every frame add up to 1 over all windows."""
    raw = [position_weights(len(frames), weights=settings.weights, overlap=settings.overlap) for frames in windows]
    total = torch.zeros(num_frames, dtype=torch.float64)
    for frames, values in zip(windows, raw, strict=True):
        total[list(frames)] += torch.tensor(values, dtype=torch.float64)
    return [torch.tensor(values, dtype=torch.float64) / total[list(frames)] for frames, values in zip(windows, raw, strict=True)]


def predict_in_windows(
    model: WindowModel,
    latents: torch.Tensor,
    *,
    settings: ContextWindows,
    step: int,
    stop: Stop | None = None,
) -> torch.Tensor:
    """Call `model` once per window of `latents` [B, C, F, h, w] and blend what it predicts into [B', C', F, h, w].

    A clip of no more than `length` frames goes to the model as it is, and its prediction comes back as it is. Sums are
    float32 at least. `stop` is asked before every window; True raises Canceled. Of the tensors made here only the sum is as
    long as the clip; a window's own are gone before the next window starts.
    """
    num_frames = latents.shape[2]
    windows = settings.of_step(num_frames, step)
    weights = normalized_weights(windows, num_frames=num_frames, settings=settings)
    total, dtype = None, latents.dtype
    for frames, shares in zip(windows, weights, strict=True):
        if stop is not None and stop():
            raise Canceled
        if len(windows) == 1:
            return model(latents, frames)
        index = torch.tensor(frames, device=latents.device)
        # Nothing here keeps a name for the window's latents or prediction, else they would live on beside the next one's.
        total, dtype = _added(
            total, model(latents.index_select(2, index), frames), index=index, shares=shares, num_frames=num_frames
        )
    assert total is not None
    return total.to(dtype)


def _added(
    total: torch.Tensor | None, prediction: torch.Tensor, *, index: torch.Tensor, shares: torch.Tensor, num_frames: int
) -> tuple[torch.Tensor, torch.dtype]:
    """The sum with one window's prediction added in place at its frames, and the prediction's own dtype."""
    assert prediction.shape[2] == len(shares), "a model call returns as many frames as it was given"
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    if total is None:
        shape = (*prediction.shape[:2], num_frames, *prediction.shape[3:])
        total = torch.zeros(shape, dtype=dtype, device=prediction.device)
    share = shares.to(prediction.device, dtype)[:, None, None]
    return total.index_add_(2, index.to(prediction.device), prediction.to(dtype) * share), prediction.dtype


def free_noise(
    noise: torch.Tensor,
    *,
    length: int,
    stride: int,
    kind: FreeNoiseKind = "shuffle_context",
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Noise [1, C, F, h, w] -> noise of the same shape that is made of its first `length` frames (FreeNoise, section 3.2).

    shuffle_context: each `stride` frames after the first `length` are those of `length` frames before, in an order drawn from
    the CPU `generator`. repeat_context: the first `length` frames again and again. random: the noise as it is. A clip of no
    more than `length` frames keeps its noise. Raises BadInput for settings that cannot be.
    """
    check_latents(noise, what="noise")
    _check_choice("FreeNoise noise type", kind, get_args(FreeNoiseKind))
    if length < 2:
        raise BadInput.expected("FreeNoise context length", "at least 2 frames", length, 2)
    if not 1 <= stride <= length:
        expected = f"1 to {length}, no more than the context length"
        raise BadInput.expected("FreeNoise context stride", expected, stride, min(max(stride, 1), length))
    num_frames = noise.shape[2]
    if kind == "random" or num_frames <= length:
        return noise
    if kind == "repeat_context":
        return noise[:, :, [frame % length for frame in range(num_frames)]]
    return noise[:, :, _shuffled_sources(num_frames, length=length, stride=stride, generator=generator)]


def _shuffled_sources(num_frames: int, *, length: int, stride: int, generator: torch.Generator | None) -> list[int]:
    """For each frame of the clip, the frame of the first `length` ones whose noise it takes."""
    sources = list(range(length))
    for start in range(length, num_frames, stride):
        order = torch.randperm(stride, generator=generator).tolist()
        sources += [sources[start - length + position] for position in order[: num_frames - start]]
    return sources


def _check_choice(what: str, got: str, allowed: tuple[str, ...]) -> None:
    if got not in allowed:
        raise BadInput.expected(what, f"one of {', '.join(allowed)}", repr(got))
