"""Prompt embeddings of a text encoder (Compel's: 77 tokens a chunk) -> a pair of one length, and one row per frame."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..errors import BadInput


def equally_long(positive: torch.Tensor, negative: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Repeat each of [F, tokens, width] along its tokens until both are of one length.

    Attention over tokens that all stand there n times gives what it gives over the tokens themselves, so that neither prompt
    changes its meaning; padding with an empty prompt or with zeros would take weight from the shorter one.
    """
    length = math.lcm(positive.shape[1], negative.shape[1])
    first, second = (prompt.repeat(1, length // prompt.shape[1], 1) for prompt in (positive, negative))
    return first, second


def check_prompts(prompts: Sequence[torch.Tensor | None], *, frames: int, width: int) -> None:
    """Raise BadInput unless each is [1 or frames, tokens, width] and all have one number of tokens."""
    given = [prompt for prompt in prompts if prompt is not None]
    for prompt in given:
        if prompt.ndim != 3 or prompt.shape[0] not in (1, frames) or prompt.shape[2] != width:
            raise BadInput.expected("prompt embeddings", f"[1 or {frames}, tokens, {width}]", list(prompt.shape))
    lengths = {prompt.shape[1] for prompt in given}
    if len(lengths) > 1:
        expected = "as many for the negative prompt as for the positive"
        raise BadInput.expected("prompt embeddings: tokens", expected, sorted(lengths), max(lengths))


def per_frame(prompt: torch.Tensor, frames: Sequence[int]) -> torch.Tensor:
    """[1 or F, tokens, width] -> [n, tokens, width] for these n frames."""
    return prompt.repeat_interleave(len(frames), dim=0) if prompt.shape[0] == 1 else prompt[list(frames)]
