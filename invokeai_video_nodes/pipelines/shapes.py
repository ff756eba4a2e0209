"""Every rule between pixels, frames, latents and tokens, once, for all model families.

Worked example: Z-Image Video, 16 frames of 512x512 at f_patch_size 2.
    pixels  [1, 3, 16, 512, 512]
    latents [1, 16, 16, 64, 64]      one latent frame per frame, 8x8 pixels per latent cell
    tokens  8 x 32 x 32 = 8192       each 2 frames x 2 x 2 cells x 16 channels = 128 features
    seconds 16 / 8 fps = 2.0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from .errors import BadInput

Family = Literal["z-image-video", "hunyuan-video", "hunyuan-video-1.5", "animatediff", "svd"]

F_PATCH_SIZES = (1, 2, 4)


@dataclass(frozen=True)
class FrameRule:
    """Which frame counts and sizes a family delivers. Counts are n * frame_step + frame_offset between the limits.

    Widths and heights are multiples of `size_step` up to `max_size` pixels, several times what any of the models was trained on.
    """

    min_frames: int
    max_frames: int
    size_step: int
    spatial_factor: int = 8
    patch_size: int = 1
    frame_step: int = 1
    frame_offset: int = 0
    temporal_factor: int = 1
    trained_frames: tuple[int, ...] = ()
    max_size: int = 4096

    def nearest_frames(self, num_frames: int, f_patch_size: int = 1) -> int:
        """The valid frame count closest to `num_frames`; of two equally close ones the smaller (and cheaper)."""
        return min(self._counts(f_patch_size), key=lambda count: (abs(count - num_frames), count))

    def most_frames(self, available: int) -> int | None:
        """The largest valid frame count of a clip cut from `available` frames; None where they are too few."""
        return max((count for count in self._counts(1) if count <= available), default=None)

    def nearest_size(self, pixels: int) -> int:
        """The valid width or height closest to `pixels`; of two equally close ones the smaller."""
        lower = max(pixels // self.size_step, 1) * self.size_step
        if lower >= self.max_size:
            return self.max_size
        return min((lower, lower + self.size_step), key=lambda size: (abs(size - pixels), size))

    def check_frames(self, num_frames: int, f_patch_size: int = 1, *, what: str = "num_frames") -> None:
        """Raise BadInput, which names `what`, unless the family delivers `num_frames`."""
        if num_frames not in self._counts(f_patch_size):
            expected = f"{self.min_frames} to {self.max_frames}"
            if f_patch_size > 1:
                expected += f" and divisible by f_patch_size {f_patch_size}"
            if self.frame_step > 1:
                expected += f" and of the form {self.frame_step}n+{self.frame_offset}"
            raise BadInput.expected(what, expected, num_frames, self.nearest_frames(num_frames, f_patch_size))

    def check_size(self, name: str, pixels: int) -> None:
        """Raise BadInput unless `pixels` is a positive multiple of the family's grid, and no more than `max_size`."""
        if pixels > self.max_size:
            raise BadInput.expected(name, f"at most {self.max_size} pixels", pixels, self.max_size)
        if pixels <= 0 or pixels % self.size_step:
            expected = f"a positive multiple of {self.size_step} pixels"
            raise BadInput.expected(name, expected, pixels, self.nearest_size(pixels))

    def frames_warning(self, num_frames: int) -> str | None:
        """A plain sentence where the count is allowed but the model was not trained on it, else None."""
        if not self.trained_frames or num_frames in self.trained_frames:
            return None
        trained = " or ".join(str(count) for count in self.trained_frames)
        return f"This model was trained on {trained} frames; {num_frames} frames may move poorly."

    def latent_frames(self, num_frames: int) -> int:
        """Frames -> latent frames. A 3D VAE keeps the first one and folds the rest: 16 -> (16-1)//4+1 = 4, 17 -> 5."""
        return (num_frames - 1) // self.temporal_factor + 1

    def frames(self, latent_frames: int) -> int:
        """Latent frames -> the frames that they decode to: 3 -> (3-1)*4+1 = 9."""
        return (latent_frames - 1) * self.temporal_factor + 1

    def _counts(self, f_patch_size: int) -> list[int]:
        counts = range(self.min_frames, self.max_frames + 1)
        return [n for n in counts if n % f_patch_size == 0 and (n - self.frame_offset) % self.frame_step == 0]


FRAME_RULES: dict[Family, FrameRule] = {
    "z-image-video": FrameRule(min_frames=4, max_frames=128, size_step=16, patch_size=2),
    "hunyuan-video": FrameRule(min_frames=5, max_frames=129, size_step=16, patch_size=2, frame_step=4, frame_offset=1, temporal_factor=4),
    "hunyuan-video-1.5": FrameRule(
        min_frames=5, max_frames=129, size_step=16, spatial_factor=16, frame_step=4, frame_offset=1, temporal_factor=4
    ),
    "animatediff": FrameRule(min_frames=4, max_frames=128, size_step=8),
    "svd": FrameRule(min_frames=4, max_frames=128, size_step=8, trained_frames=(14, 25)),
}


@dataclass(frozen=True)
class ClipShape:
    """One clip's sizes; a shape that exists is valid (BadInput otherwise). Pixels and delivered frames, not latents."""

    family: Family
    num_frames: int
    height: int
    width: int
    f_patch_size: int = 1
    latent_channels: int = 16

    def __post_init__(self) -> None:
        if self.family not in FRAME_RULES:
            raise BadInput.expected("family", f"one of {', '.join(FRAME_RULES)}", repr(self.family))
        check_f_patch_size(self.f_patch_size, F_PATCH_SIZES)
        self.rule.check_frames(self.num_frames, self.f_patch_size)
        self.rule.check_size("height", self.height)
        self.rule.check_size("width", self.width)

    @property
    def rule(self) -> FrameRule:
        """The family's row of the table."""
        return FRAME_RULES[self.family]

    @property
    def latent_frames(self) -> int:
        """Frames on the latents' time axis."""
        return self.rule.latent_frames(self.num_frames)

    @property
    def latent_height(self) -> int:
        """Latent cells from top to bottom."""
        return self.height // self.rule.spatial_factor

    @property
    def latent_width(self) -> int:
        """Latent cells from left to right."""
        return self.width // self.rule.spatial_factor

    @property
    def latent_shape(self) -> tuple[int, int, int, int, int]:
        """[1, C, F, h, w] of the clip's latents."""
        return (1, self.latent_channels, self.latent_frames, self.latent_height, self.latent_width)

    @property
    def image_tokens(self) -> int:
        """Tokens of one frame: what a resolution-dependent schedule goes by. The frame count never enters it."""
        return (self.latent_height // self.rule.patch_size) * (self.latent_width // self.rule.patch_size)

    @property
    def tokens(self) -> int:
        """Tokens of the whole clip."""
        return (self.latent_frames // self.f_patch_size) * self.image_tokens

    @property
    def token_features(self) -> int:
        """Values that one token holds."""
        return self.f_patch_size * self.rule.patch_size**2 * self.latent_channels

    def check_clip(self, latents: torch.Tensor) -> None:
        """Raise BadInput, in frames and pixels, unless `latents` [1, C, F, h, w] are of a clip of this shape."""
        check_latents(latents, channels=self.latent_channels)
        if tuple(latents.shape) != self.latent_shape:
            frames, (height, width) = self.rule.frames(latents.shape[2]), (n * self.rule.spatial_factor for n in latents.shape[3:])
            expected = f"a clip of {self.num_frames} frames of {self.width}x{self.height}, as this node has"
            raise BadInput.expected("latents", expected, f"{frames} frames of {width}x{height}")

    def noise(self, seed: int) -> torch.Tensor:
        """Seeded Gaussian noise of `latent_shape`, float32 on the CPU, the same on every machine."""
        return seeded_noise(self.latent_shape, seed)


def seeded_noise(shape: Sequence[int], seed: int) -> torch.Tensor:
    """Gaussian float32 noise from a CPU generator, so that one seed gives one clip on every device."""
    return torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)


def check_f_patch_size(value: int, supported: Sequence[int]) -> None:
    """Raise BadInput unless the checkpoint has layers for this frame patch size."""
    if value not in supported:
        known = sorted(supported)
        nearest = min(known, key=lambda size: (abs(size - value), size)) if known else None
        raise BadInput.expected("f_patch_size", f"one of {', '.join(map(str, known))}", value, nearest)


def check_latents(latents: torch.Tensor, *, channels: int | None = None, what: str = "latents") -> None:
    """Raise BadInput unless `latents` is [1, C, F, h, w], with C == `channels` where that is given."""
    if latents.ndim != 5 or latents.shape[0] != 1:
        wanted = f"5-D [1, {channels or 'C'}, frames, height/8, width/8]"
        raise BadInput.expected(what, wanted, f"{latents.ndim}-D {list(latents.shape)}")
    if channels is not None and latents.shape[1] != channels:
        raise BadInput.expected(f"{what}: channels", channels, latents.shape[1], channels)


def duration_seconds(num_frames: int, fps: float) -> float:
    """How long the clip plays: 16 frames at 8 fps are 2.0 seconds."""
    if fps <= 0:
        raise BadInput.expected("fps", "more than 0", fps, 1)
    return num_frames / fps
