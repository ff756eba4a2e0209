"""T2I-Adapter (https://arxiv.org/abs/2302.08453): features of a picture, added once after each down block's layers.

    picture -> the adapter (the caller's, run once for all steps) -> one feature map per down block -> here: added in every step

diffusers' UNetMotionModel has no such argument, so hooks add them where UNet2DConditionModel adds its
`down_intrablock_additional_residuals`. They come after the motion module: motion moves the picture's content, not its outline.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import BadInput
from .per_step import Weight, check_span, check_weight, weight_between


@dataclass(frozen=True)
class T2IAdapter:
    """What one T2I-Adapter made of its picture or pictures."""

    features: Sequence[torch.Tensor]
    """For each down block [1 or F, C, h, w], one for all frames or one per frame; a smaller map is followed by zeros."""
    weight: Weight = 1.0
    start: float = 0.0
    end: float = 1.0
    """The part of the steps in which it has a say, 0 to 1."""

    def check(self, config: Any, *, frames: int, height: int, width: int, steps: Sequence[int]) -> None:
        """Raise BadInput unless it suits a UNetMotionModel of this config and a clip of these latent sizes."""
        widths = list(config["block_out_channels"])
        got = [feature.shape[1] for feature in self.features]
        if got != widths:
            raise BadInput.expected("T2I-Adapter", f"one of the main model's base (channels {widths})", got)
        for level, feature in enumerate(self.features):
            if feature.shape[0] not in (1, frames):
                raise BadInput.expected("T2I-Adapter pictures", f"1, or {frames}: one per frame", feature.shape[0], frames)
            most = [-(-side // 2**level) for side in (height, width)]
            # What the adapter's own rounding leaves out at the right and the bottom is less than half of it.
            if not all(limit / 2 < side <= limit for side, limit in zip(feature.shape[2:], most, strict=True)):
                raise BadInput.expected(f"T2I-Adapter features {level}", f"at most {most}, as the clip", list(feature.shape[2:]), most)
        check_span("T2I-Adapter steps", self.start, self.end, point=True)
        check_weight("T2I-Adapter", self.weight, steps=steps)


@contextmanager
def added_features(
    unet: Any, adapters: Sequence[T2IAdapter], *, frames: Sequence[int], step: int, total: int
) -> Iterator[None]:
    """Add the adapters' weighted features in calls of `unet` (a UNetMotionModel) for these frames of the clip.

    Enter it after `unet.motion_scale`, whose hooks would scale what is added here.
    """
    weights = [weight_between(adapter.weight, adapter.start, adapter.end, step=step, total=total) for adapter in adapters]
    acting = [(adapter, weight) for adapter, weight in zip(adapters, weights, strict=True) if weight != 0.0]
    if not acting:
        yield
        return
    with ExitStack() as hooks:
        for level, block in enumerate(unet.down_blocks):
            added = _summed([_of_frames(adapter.features[level], frames) * weight for adapter, weight in acting])
            crossed = getattr(block, "has_cross_attention", False)
            # With attention: before the downsampler. Without: after all of the block.
            place, hook = (block.motion_modules[-1], _on_features) if crossed else (block, _on_block)
            hooks.callback(place.register_forward_hook(hook(added)).remove)
        yield


def _of_frames(feature: torch.Tensor, frames: Sequence[int]) -> torch.Tensor:
    return feature if feature.shape[0] == 1 else feature[list(frames)]


def _summed(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _on_features(added: torch.Tensor) -> Any:
    def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output + _fitting(added, output)

    return hook


def _on_block(added: torch.Tensor) -> Any:
    def hook(_module: Any, _inputs: Any, output: tuple[torch.Tensor, tuple[torch.Tensor, ...]]) -> Any:
        features, kept = output
        features = features + _fitting(added, features)
        # The last of what the up blocks get is this same map: diffusers adds to it in place.
        return features, (*kept[:-1], features)

    return hook


def _fitting(added: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """[1 or n, C, h', w'] -> [1 or B * n, C, h, w] like `features` [B * n, C, h, w], with zeros at the right and the bottom."""
    height, width = features.shape[2:]
    fitting = torch.nn.functional.pad(added.to(features), (0, width - added.shape[3], 0, height - added.shape[2]))
    return fitting if fitting.shape[0] == 1 else fitting.repeat(features.shape[0] // fitting.shape[0], 1, 1, 1)
