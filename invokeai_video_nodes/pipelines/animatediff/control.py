"""What steers the frames: ControlNets with one picture per frame, and SparseCtrl with pictures for some of them.

Both give residuals for the video UNet's down and mid blocks; several of them add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..errors import BadInput
from .per_step import Weight, check_span, check_weight, weight_at
from .unet import compute_dtype

# One residual per down layer, each [B * n, C, h, w] for n frames, and the mid block's.
Residuals = tuple[list[torch.Tensor], torch.Tensor]

_CELL = 8  # pixels of a control picture's side per latent cell


class Control(Protocol):
    """Something that gives residuals."""

    def check(self, *, frames: int, height: int, width: int, text_width: int, steps: Sequence[int]) -> None:
        """Raise BadInput unless it suits a clip of these latent sizes, and runs of so many steps."""

    def residuals(
        self, seen: torch.Tensor, timestep: torch.Tensor, *, prompts: Sequence[torch.Tensor], frames: Sequence[int], step: int, total: int
    ) -> Residuals | None:
        """For one call of the model; None where it has no say in this step.

        `seen` [1, C, n, h, w] are the latents as the model sees them, `frames` which of the clip's frames they are, `prompts`
        [negative, positive] or [positive], each [n, tokens, width]; `step` of `total` counts model calls from 0.
        """


@dataclass(frozen=True)
class ControlNet:
    """A ControlNet of SD1.5 and one control picture per frame."""

    model: Any
    """diffusers' ControlNetModel."""
    pictures: torch.Tensor
    """[F, 3, H, W] in pixels: uint8, or numbers in 0..1."""
    weight: Weight = 1.0
    """One number, or one per step that runs, whatever `start` and `end` are."""
    start: float = 0.0
    end: float = 1.0
    """The part of the steps in which it has a say, 0 to 1."""
    positive_only: bool = False
    """Only the positive prompt's half is steered: InvokeAI's modes more_control and unbalanced."""
    soft: bool = False
    """Outer layers steer less than inner ones: InvokeAI's modes more_prompt and more_control."""

    def check(self, *, frames: int, height: int, width: int, text_width: int, steps: Sequence[int]) -> None:
        """Raise BadInput unless there is one picture of the clip's size for each frame."""
        if self.pictures.ndim != 4 or self.pictures.shape[1] != 3:
            raise BadInput.expected("control_frames", "[frames, 3, height, width]", list(self.pictures.shape))
        if len(self.pictures) != frames:
            raise BadInput.expected("control_frames", f"{frames} images, one per frame", len(self.pictures), frames)
        if tuple(self.pictures.shape[2:]) != (height * _CELL, width * _CELL):
            got = f"{self.pictures.shape[3]}x{self.pictures.shape[2]}"
            raise BadInput.expected("control_frames", "pictures of the clip's size", got, f"{width * _CELL}x{height * _CELL}")
        check_span("control steps", self.start, self.end)
        check_weight("ControlNet", self.weight, steps=steps)
        _check_text_width("ControlNet", self.model, text_width)

    def residuals(
        self, seen: torch.Tensor, timestep: torch.Tensor, *, prompts: Sequence[torch.Tensor], frames: Sequence[int], step: int, total: int
    ) -> Residuals | None:
        """See `Control`."""
        weight = weight_at(self.weight, step=step, total=total)
        if weight == 0.0 or step / total < self.start or (step + 1) / total > self.end:
            return None
        # As diffusers: a model that pools its answer over the picture steers the positive half only.
        alone = self.positive_only or self.model.config.global_pool_conditions
        halves = list(prompts[-1:] if alone else prompts)
        dtype = compute_dtype(self.model)
        pictures = _pixels(self.pictures[list(frames)].to(seen.device)).to(dtype)
        down, mid = self.model(
            torch.cat([seen] * len(halves)).transpose(1, 2).flatten(0, 1).to(dtype),
            timestep,
            encoder_hidden_states=torch.cat(halves).to(dtype),
            controlnet_cond=torch.cat([pictures] * len(halves)),
            conditioning_scale=weight,
            guess_mode=self.soft,
            return_dict=False,
        )
        missing = len(prompts) - len(halves)
        return [_after_zeros(residual, missing) for residual in down], _after_zeros(mid, missing)


@dataclass(frozen=True)
class SparseCtrl:
    """SparseCtrl (https://arxiv.org/abs/2311.16933): pictures for some of the frames."""

    model: Any
    """diffusers' SparseControlNetModel."""
    pictures: torch.Tensor
    """[n, C, H, W]: scaled latents of the keyframes where `reads_latents(model)`, else pixels, uint8 or in 0..1."""
    frames: Sequence[int]
    """Which frames they are for, counted from 0."""
    weight: float = 1.0

    def check(self, *, frames: int, height: int, width: int, text_width: int, steps: Sequence[int]) -> None:
        """Raise BadInput unless the keyframes are of the clip, each with one picture of its size."""
        if len(self.frames) != len(self.pictures) or not self.frames:
            got = f"{len(self.pictures)} pictures and {len(self.frames)} numbers"
            raise BadInput.expected("keyframes", "1 or more pictures and one frame number for each", got)
        outside = [frame for frame in self.frames if not 0 <= frame < frames]
        if outside or len(set(self.frames)) != len(self.frames):
            nearest = min(max(outside[0], 0), frames - 1) if outside else sorted(set(self.frames))
            raise BadInput.expected("keyframes", f"different numbers from 0 to {frames - 1}", list(self.frames), nearest)
        cell, channels = (1, 4) if reads_latents(self.model) else (_CELL, 3)
        fitting = [channels, height * cell, width * cell]
        if list(self.pictures.shape[1:]) != fitting:
            raise BadInput.expected("keyframe pictures", fitting, list(self.pictures.shape[1:]), fitting)
        _check_text_width("SparseCtrl", self.model, text_width)

    def residuals(
        self, seen: torch.Tensor, timestep: torch.Tensor, *, prompts: Sequence[torch.Tensor], frames: Sequence[int], step: int, total: int
    ) -> Residuals | None:
        """See `Control`. A window without a keyframe is steered too: by the mask that says that there is none."""
        if self.weight == 0.0:
            return None
        dtype = compute_dtype(self.model)
        condition = torch.zeros(1, self.pictures.shape[1], len(frames), *self.pictures.shape[2:], device=seen.device, dtype=dtype)
        mask = torch.zeros_like(condition[:, :1])
        for place, frame in enumerate(frames):
            if frame in self.frames:
                condition[:, :, place] = _pixels(self.pictures[list(self.frames).index(frame)]).to(condition)
                mask[:, :, place] = 1.0
        down, mid = self.model(
            torch.cat([seen] * len(prompts)).to(dtype),
            timestep,
            encoder_hidden_states=torch.cat(list(prompts)).to(dtype),
            controlnet_cond=condition,
            conditioning_mask=mask,
            conditioning_scale=self.weight,
            return_dict=False,
        )
        return list(down), mid


def reads_latents(model: Any) -> bool:
    """Whether this SparseCtrl wants its keyframes as latents (the public rgb model) or as pixels (the scribble model)."""
    wants: bool = model.config.use_simplified_condition_embedding
    return wants


def summed(residuals: Sequence[Residuals | None]) -> Residuals | None:
    """All residuals of one call of the model as one; None where there are none."""
    total: Residuals | None = None
    for given in residuals:
        if given is not None and total is not None:
            down = [first + second for first, second in zip(total[0], given[0], strict=True)]
            total = down, total[1] + given[1]
        elif given is not None:
            total = given
    return total


def _pixels(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures of 8 bits as numbers in 0..1, float32; others as they are."""
    return pictures.float() / 255.0 if pictures.dtype == torch.uint8 else pictures


def _after_zeros(residual: torch.Tensor, halves: int) -> torch.Tensor:
    return residual if halves == 0 else torch.cat([torch.zeros_like(residual)] * halves + [residual])


def _check_text_width(what: str, model: Any, text_width: int) -> None:
    width = model.config.cross_attention_dim
    if width != text_width:
        raise BadInput.expected(what, f"one of the main model's base (text width {text_width})", f"text width {width}")
