"""Prompts over time: the text "0: a cat\\n12: a dog" -> prompts with their frames -> shares per frame -> embeddings per frame.

Worked example: 24 frames of the text above. Frame 0 is all cat, frame 6 half cat and half dog, frame 12 and those after it
are all dog. Frames before the first line take its prompt, frames after the last one take the last. In a loop the last prompt
goes back to the first: frame 18 is half dog and half cat.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .errors import BadInput

_LINE = re.compile(r"\s*([+-]?\d{1,18}(?:\.\d{1,18})?)\s*:(.*)", re.ASCII | re.DOTALL)
# As other tools write it: "0": "a cat",
_QUOTED = re.compile(r'\s*"([^"]*)"\s*:\s*"(.*)"\s*,?\s*', re.DOTALL)


@dataclass(frozen=True)
class ScheduledPrompt:
    """A prompt that rules its frame alone."""

    frame: int
    """0-based."""
    prompt: str


class FrameBlend(NamedTuple):
    """One frame's mix: (1 - weight) of prompt `a` and `weight`, 0 to below 1, of prompt `b`; both are 0-based indices."""

    a: int
    b: int
    weight: float


def parse_schedule(text: str, *, num_frames: int) -> list[ScheduledPrompt]:
    """Lines of "frame: prompt" in the order of their frames; lines of white space only count but say nothing.

    A line may have its frame and prompt in quotes and a comma at its end, as other tools write it.

    Raises BadInput, which names the line (from 1) and the nearest valid frame, for a line of another form, an empty prompt, a
    frame outside the clip, one that comes twice and one that comes before the line above it; also for a text without prompts.
    """
    schedule: list[ScheduledPrompt] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            after = schedule[-1].frame if schedule else -1
            schedule.append(_parsed_line(line, what=f"prompt schedule, line {number}", after=after, num_frames=num_frames))
    if not schedule:
        raise BadInput.expected("prompt schedule", 'at least one line "frame: prompt"', "none", '"0: a cat"')
    return schedule


def _parsed_line(line: str, *, what: str, after: int, num_frames: int) -> ScheduledPrompt:
    quoted = _QUOTED.fullmatch(line)
    match = _LINE.fullmatch(line if quoted is None else f"{quoted[1]}: {quoted[2]}")
    if match is None:
        raise BadInput.expected(what, '"frame: prompt", such as "0: a cat"', repr(line.strip()))
    written, prompt = match[1], match[2].strip()
    frame = _checked_frame(written, what=what, after=after, last=num_frames - 1)
    if not prompt:
        raise BadInput.expected(what, f'a prompt after "{frame}:"', "nothing", "the line with a prompt, or no such line")
    return ScheduledPrompt(frame=frame, prompt=prompt)


def _checked_frame(written: str, *, what: str, after: int, last: int) -> int:
    """The frame that a line names, if it lies behind frame `after` of the line above and not behind the clip's `last`."""
    number = float(written) if "." in written else int(written)
    nearest = min(max(round(number), after + 1), last) if after < last else "no such line, as the line above has the last frame"
    if not isinstance(number, int):
        raise BadInput.expected(what, "a whole frame number", written, nearest)
    if not 0 <= number <= last:
        raise BadInput.expected(what, f"a frame from 0 to {last}", number, nearest)
    if number <= after:
        got = f"{number} again" if number == after else number
        raise BadInput.expected(what, f"a frame after {after}, which the line above has", got, nearest)
    return number


def frame_blends(schedule: Sequence[ScheduledPrompt], *, num_frames: int, loop: bool = False) -> list[FrameBlend]:
    """For each of `num_frames` frames the two scheduled prompts that it lies between, and how far it is on the way (linear).

    `schedule` is as `parse_schedule` gives it. `loop` leads from the last prompt back to the first, over the end of the clip.
    """
    return [_blend_at(frame, schedule=schedule, num_frames=num_frames, loop=loop) for frame in range(num_frames)]


def _blend_at(frame: int, *, schedule: Sequence[ScheduledPrompt], num_frames: int, loop: bool) -> FrameBlend:
    last = len(schedule) - 1
    a = sum(prompt.frame <= frame for prompt in schedule) - 1
    if 0 <= a < last:
        start, end = schedule[a].frame, schedule[a + 1].frame
        return FrameBlend(a, a + 1, (frame - start) / (end - start))
    if not loop or last == 0:
        return FrameBlend(max(a, 0), max(a, 0), 0.0)
    way = schedule[0].frame + num_frames - schedule[last].frame
    return FrameBlend(last, 0, (frame - schedule[last].frame) % num_frames / way)


def blend_embeddings(embeddings: torch.Tensor, blends: Sequence[FrameBlend]) -> torch.Tensor:
    """Embeddings [P, tokens, dim] of the scheduled prompts -> [F, tokens, dim], one for each frame, of the same dtype.

    A frame that is all one prompt has that prompt's embedding bit for bit. Raises BadInput where a blend names a prompt that
    has no embedding.
    """
    if embeddings.ndim != 3:
        raise BadInput.expected("prompt embeddings", "3-D [prompts, tokens, dim]", f"{embeddings.ndim}-D {list(embeddings.shape)}")
    needed = 1 + max((max(blend.a, blend.b) for blend in blends), default=-1)
    if needed > embeddings.shape[0]:
        raise BadInput.expected("prompt embeddings", f"one for each of {needed} prompts", embeddings.shape[0], needed)
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    share = torch.tensor([blend.weight for blend in blends], dtype=torch.float64)[:, None, None]
    a = embeddings[[blend.a for blend in blends]].to(dtype)
    b = embeddings[[blend.b for blend in blends]].to(dtype)
    blended = (1.0 - share).to(embeddings.device, dtype) * a + share.to(embeddings.device, dtype) * b
    return blended.to(embeddings.dtype)
