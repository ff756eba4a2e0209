"""FreeNoise (https://arxiv.org/abs/2310.15169): a long clip in one call of the model, whose motion modules look at it in windows.

    noise of one window -> `FreeNoise.noise` -> noise of the whole clip (section 3.2)
    video UNet -> `in_windows` -> its temporal attention works window by window, and blends where they overlap (section 3.3)

Other than context windows (pipelines/windows.py), which call the whole model for each window, the spatial layers see all frames
once: fewer calculations, but memory that grows with the clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from diffusers.models.attention import BasicTransformerBlock, FreeNoiseTransformerBlock
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D

from ..errors import BadInput
from ..windows import FreeNoiseKind, free_noise

FreeNoiseWeights = Literal["pyramid", "flat", "delayed_reverse_sawtooth"]

# The layers that a temporal block has in both of its kinds.
_LAYERS = ("pos_embed", "norm1", "attn1", "norm2", "attn2", "norm3", "ff")


@dataclass(frozen=True)
class FreeNoise:
    """How a clip of more than `length` frames is made; settings that exist are valid (BadInput otherwise)."""

    length: int = 16
    """Frames that a motion module sees at once, 2 or more."""
    stride: int = 4
    """Frames from one window's start to the next, 1 to `length`."""
    weights: FreeNoiseWeights = "pyramid"
    """How a window's frames count where windows overlap: most in its middle, all alike, or falling after a late rise."""
    kind: FreeNoiseKind = "shuffle_context"
    """How one window's noise becomes the clip's: shuffled, repeated, or not at all."""

    def __post_init__(self) -> None:
        if self.length < 2:
            raise BadInput.expected("FreeNoise context length", "at least 2 frames", self.length, 2)
        if not 1 <= self.stride <= self.length:
            expected = f"1 to {self.length}, no more than the context length"
            raise BadInput.expected("FreeNoise context stride", expected, self.stride, min(max(self.stride, 1), self.length))
        for what, got, allowed in (("weights", self.weights, FreeNoiseWeights), ("noise type", self.kind, FreeNoiseKind)):
            if got not in get_args(allowed):
                raise BadInput.expected(f"FreeNoise {what}", f"one of {', '.join(get_args(allowed))}", repr(got))

    def check_limit(self, limit: int) -> None:
        """Raise BadInput where a window is longer than the `limit` of frames that the motion module has positions for."""
        if self.length > limit:
            raise BadInput.expected("FreeNoise context length", f"at most {limit} frames, the motion module's limit", self.length, limit)

    def noise(self, noise: torch.Tensor, *, generator: torch.Generator | None = None) -> torch.Tensor:
        """Noise [1, C, F, h, w] -> the clip's noise of that shape; `generator`: the CPU one that drew it, as in diffusers."""
        return free_noise(noise, length=self.length, stride=self.stride, kind=self.kind, generator=generator)


@contextmanager
def in_windows(unet: Any, settings: FreeNoise | None, *, frames: int) -> Iterator[None]:
    """Let the motion modules of `unet` (a UNetMotionModel) look at clips of `frames` frames in windows; restored afterwards.

    A clip that one window holds is left to the modules themselves, bit for bit.
    """
    if settings is None or frames <= settings.length:
        yield
        return
    with ExitStack() as restore:
        for module in unet.modules():
            if isinstance(module, AnimateDiffTransformer3D):
                for place, block in enumerate(module.transformer_blocks):
                    restore.callback(module.transformer_blocks.__setitem__, place, block)
                    module.transformer_blocks[place] = _in_windows(block, settings)
        yield


class _InWindows(FreeNoiseTransformerBlock):
    """diffusers' own block with complete windows: it weights a part of a last window by one number for all of its frames."""

    def _get_frame_indices(self, num_frames: int) -> list[tuple[int, int]]:
        windows: list[tuple[int, int]] = super()._get_frame_indices(num_frames)
        return windows if windows[-1][1] == num_frames else [*windows, (num_frames - self.context_length, num_frames)]


def _in_windows(block: BasicTransformerBlock, settings: FreeNoise) -> FreeNoiseTransformerBlock:
    """A block of the layers of `block`."""
    with torch.device("meta"):
        windowed = _InWindows(
            dim=block.dim,
            num_attention_heads=block.num_attention_heads,
            attention_head_dim=block.attention_head_dim,
            cross_attention_dim=block.cross_attention_dim,
            double_self_attention=block.double_self_attention,
            only_cross_attention=block.only_cross_attention,
            positional_embeddings=block.positional_embeddings,
            num_positional_embeddings=block.num_positional_embeddings,
            context_length=settings.length,
            context_stride=settings.stride,
            weighting_scheme=settings.weights,
        )
    for name in _LAYERS:
        setattr(windowed, name, getattr(block, name))
    windowed.set_chunk_feed_forward(block._chunk_size, block._chunk_dim)
    # Of the frame alone: eval() would set it on the borrowed layers too.
    windowed.training = block.training
    return windowed
