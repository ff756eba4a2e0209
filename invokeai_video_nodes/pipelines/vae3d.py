"""Latents -> 8-bit frames through a 3D VAE and back, in tiles: frames leave as soon as their temporal tile is done.

A 3D VAE of the HunyuanVideo kind folds time by 4: latent frame 0 is frame 0, latent frame j is frames 4j-3 .. 4j. A temporal
tile that begins at latent frame b > 0 sees that latent as a first frame, so what it says of frame 4b is dropped, and the
frames that two tiles share are faded from one into the other.

    latents   0 1 2 3 4 5 6 7 8          TilePlan(frames=4, overlap=1)
    tile 0    [0 1 2 3 4]                frames  0 .. 16, hands on 0 .. 12
    tile 1          [3 4 5 6 7]          frames 13 .. 28, fades 13 .. 16, hands on 13 .. 24
    tile 2                [6 7 8]        frames 25 .. 32, fades 25 .. 28

Encoding goes the same way: a tile reads frames 4b .. 4e, and the latent that it makes of its own first frame is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from .decode import latent_scale, to_uint8, vae_dtype
from .errors import BadInput, Canceled, OutOfMemory, Stop
from .out_of_memory import free_cached, tried
from .shapes import check_latents


@dataclass(frozen=True)
class TilePlan:
    """How much is decoded at once, in latent frames and cells.

    `frames` latent frames beside the one that a tile starts from, `height` x `width` cells; neighbours share `overlap`
    latent frames and `margin` cells. Raises BadInput where tiles would not advance.
    """

    frames: int
    height: int
    width: int
    overlap: int = 1
    margin: int = 8

    def __post_init__(self) -> None:
        if self.frames < 1 or self.height < 1 or self.width < 1:
            raise BadInput.expected("tile", "at least 1 latent frame of 1x1 cells", f"{self.frames} of {self.height}x{self.width}")
        if not 0 <= self.overlap < max(self.frames, 1):
            raise BadInput.expected("tile: overlap", f"0 to {self.frames - 1} latent frames", self.overlap, self.frames - 1)
        smallest = min(self.height, self.width)
        if not 0 <= self.margin < smallest:
            raise BadInput.expected("tile: margin", f"0 to {smallest - 1} cells", self.margin, smallest - 1)

    @property
    def cells(self) -> int:
        """Latent cells of one tile, which its memory follows."""
        return (self.frames + 1) * self.height * self.width

    def halved(self) -> TilePlan | None:
        """The next smaller plan: half the frames while they are many, else half the longer side. None at the smallest."""
        return self.with_fewer_frames() or self.with_smaller_area()

    def with_fewer_frames(self) -> TilePlan | None:
        """Half the frames, or None where that is too few."""
        if self.frames <= MIN_FRAMES:
            return None
        frames = max(MIN_FRAMES, self.frames // 2)
        return replace(self, frames=frames, overlap=min(self.overlap, frames - 1))

    def with_smaller_area(self) -> TilePlan | None:
        """Half the longer side, or None where that is too short."""
        longer = max(self.height, self.width)
        if longer <= MIN_CELLS:
            return None
        smaller = max(MIN_CELLS, -(-longer // 2))
        height, width = min(self.height, smaller), min(self.width, smaller)
        return replace(self, height=height, width=width, margin=min(self.margin, _margin(height, width)))


MIN_FRAMES = 2  # latent frames: one is shared, so that there is always a fade
MIN_CELLS = 8
# unit, smallest tile in latents, finest compression of any video VAE
_TILES = {"tile_frames": ("frames", MIN_FRAMES, 4), "tile_size": ("pixels", MIN_CELLS, 8)}

MAX_FRAMES = 17  # latent frames: the longest clip, 129 frames, is two tiles; a larger tile is hardly faster

# Bytes per output pixel, frame, channel of the last block and byte of an element. "768x512: 64-frame tiles take 24 GB, 16-frame
# tiles 8 GB" (diffusers PR #10295, 2 bytes, 128 channels) is 3.7 to 5.
_BYTES_PER_VALUE = 5
_SHARE_OF_FREE = 0.8


def plan_for(
    vae: Any, latents_shape: tuple[int, ...], *, free_bytes: int, tile_frames: int = 0, tile_size: int = 0
) -> TilePlan:
    """The largest plan whose working set fits into `free_bytes`, for latents of shape [1, C, T, h, w]; the smallest if none does.

    `tile_frames` in frames and `tile_size` in pixels set by hand what is not 0; the rest follows. Raises BadInput where they are
    too small or off the grid.
    """
    by_hand = _by_hand(vae, tile_frames, tile_size)
    height, width = (min(size, by_hand[1] or size) for size in latents_shape[-2:])
    frames = by_hand[0] or min(MAX_FRAMES, latents_shape[2] - 1)
    plan = TilePlan(frames=max(MIN_FRAMES, frames), height=height, width=width, margin=_margin(height, width))
    while working_bytes(vae, plan) > _SHARE_OF_FREE * free_bytes:
        smaller = (None if tile_frames else plan.with_fewer_frames()) or (None if tile_size else plan.with_smaller_area())
        if smaller is None:
            break
        plan = smaller
    return plan


def _by_hand(vae: Any, tile_frames: int, tile_size: int) -> tuple[int, int]:
    """Pixels -> latents: (latent frames, cells), 0 where automatic."""
    frames, pixels = int(vae.config.temporal_compression_ratio), int(vae.config.spatial_compression_ratio)
    check_tile("tile_frames", tile_frames, step=frames)
    check_tile("tile_size", tile_size, step=pixels)
    return tile_frames // frames, tile_size // pixels


def check_tile(name: Literal["tile_frames", "tile_size"], value: int, *, step: int | None = None) -> None:
    """Raise BadInput unless `value`, in frames or pixels, is 0 or a multiple of the VAE's `step` and no smaller than the smallest tile.

    Without a `step`: unless some VAE could take it, so that plain mistakes are found before there is one.
    """
    unit, least, finest = _TILES[name]
    step = step or finest
    if value and (value % step or value < least * step):
        nearest = max(round(value / step), least) * step
        raise BadInput.expected(name, f"0 or a multiple of {step} {unit} from {least * step} on", value, nearest)


def _margin(height: int, width: int) -> int:
    """Cells that neighbours share: 8, less where tiles are small."""
    smallest = min(height, width)
    return min(8, max(smallest // 4, 1)) if smallest > 1 else 0


def working_bytes(vae: Any, plan: TilePlan) -> int:
    """Peak of decoding one tile, beside the weights."""
    per_cell = int(vae.config.spatial_compression_ratio) ** 2 * int(vae.config.temporal_compression_ratio)
    width = int(vae.config.block_out_channels[0])
    return plan.cells * per_cell * width * vae_dtype(vae).itemsize * _BYTES_PER_VALUE


PlanAt = Callable[[int], TilePlan]
Shrink = Callable[[int, TilePlan, TilePlan], None]
OnTile = Callable[[int, int], None]


def decode_video(
    vae: Any,
    latents: torch.Tensor,
    *,
    plan: TilePlan | PlanAt,
    stop: Stop | None = None,
    on_tile: OnTile | None = None,
    on_shrink: Shrink | None = None,
    device: torch.device | None = None,
) -> Iterator[np.ndarray]:
    """Yield the 4(T-1)+1 frames of `latents` [1, C, T, h, w] as uint8 [8h, 8w, 3] RGB arrays.

    Takes diffusers' AutoencoderKLHunyuanVideo. `plan` may be a function of the latent frame that a tile begins at. Where memory
    runs out, the tile that failed and all later ones go on with
    `plan.halved()`, no frame repeated or missing; `on_shrink(latent_frame, before, after)` is told. `on_tile(done, total)`
    counts latent frames. Raises BadInput at once where the channels differ, Canceled between tiles where `stop()` answers
    True, and OutOfMemory where the smallest tile does not fit.
    """
    check_latents(latents)
    channels = int(vae.config.latent_channels)
    if latents.shape[1] != channels:
        raise BadInput.expected("VAE: latent channels", f"{latents.shape[1]} as the latents have", channels, latents.shape[1])
    plan_at = plan if callable(plan) else lambda _: plan
    return _stream(vae, latents, plan_at, stop=stop, on_tile=on_tile, on_shrink=on_shrink, device=device or latents.device)


def encode_video(
    vae: Any,
    frames: Iterator[np.ndarray],
    *,
    num_frames: int,
    plan: TilePlan,
    stop: Stop | None = None,
    on_tile: OnTile | None = None,
    on_shrink: Shrink | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Scaled latents [1, C, T, h, w], float32 on the CPU, of `num_frames` = 4(T-1)+1 uint8 [8h, 8w, 3] RGB frames.

    One temporal tile of frames is in memory at a time; where memory runs out, smaller tiles go on as in `decode_video`. The
    distribution's mean is taken, not a sample. Raises BadInput where `frames` has fewer, or for a count or size off the grid,
    Canceled between tiles where `stop()` answers True, OutOfMemory where the smallest tile does not fit.
    """
    place = device or torch.device("cpu")
    factor, step = int(vae.config.spatial_compression_ratio), int(vae.config.temporal_compression_ratio)
    if num_frames < 1 or (num_frames - 1) % step:
        nearest = max(round((num_frames - 1) / step), 0) * step + 1
        raise BadInput.expected("num_frames", f"of the form {step}n+1", num_frames, nearest)
    total, begin, known = (num_frames - 1) // step + 1, 0, 0
    buffer: list[np.ndarray] = []
    latents: torch.Tensor | None = None
    while True:
        end = min(begin + plan.frames + 1, total)
        wanted = (end - 1 - begin) * step + 1
        buffer += [_checked_frame(frames, factor, len(buffer) + index + begin * step, num_frames) for index in range(wanted - len(buffer))]
        tile = tried(partial(_encode_tile, vae, buffer[:wanted], plan, stop=stop, device=place))
        if tile is None:
            plan = _smaller(plan, begin, on_shrink)
            continue
        if latents is None:
            latents = tile.new_zeros(1, tile.shape[1], total, *tile.shape[-2:])
        first = begin + 1 if begin > 0 else 0
        shared = max(min(known, end) - first, 0)
        weights = torch.ones(end - first)
        weights[:shared] = (torch.arange(shared) + 0.5) / max(shared, 1)
        latents[:, :, first:end].lerp_(tile[:, :, first - begin :], weights[:, None, None])
        known = end
        if on_tile is not None:
            on_tile(end, total)
        if end == total:
            return latents
        advance = end - 1 - plan.overlap - begin
        buffer = buffer[advance * step :]
        begin += advance


def _checked_frame(frames: Iterator[np.ndarray], factor: int, index: int, num_frames: int) -> np.ndarray:
    frame = next(frames, None)
    if frame is None:
        raise BadInput.expected("video", f"{num_frames} frames", index)
    for size, name in zip(frame.shape[:2], ("height", "width"), strict=True):
        if size % factor:
            raise BadInput.expected(name, f"a multiple of {factor} pixels", size, max(round(size / factor), 1) * factor)
    return frame


def _encode_tile(vae: Any, frames: list[np.ndarray], plan: TilePlan, *, stop: Stop | None, device: torch.device) -> torch.Tensor:
    """One temporal tile's latents [1, C, n, h, w], in spatial tiles where the frame is larger than the plan's."""
    factor = int(vae.config.spatial_compression_ratio)
    height, width = (size // factor for size in frames[0].shape[:2])
    pixels = torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2)[None]

    def encode(rows: slice, columns: slice) -> torch.Tensor:
        if stop is not None and stop():
            raise Canceled
        piece = pixels[..., rows.start * factor : rows.stop * factor, columns.start * factor : columns.stop * factor]
        with torch.no_grad():
            moments = vae.encoder(piece.to(device=device, dtype=vae_dtype(vae)) / 127.5 - 1.0)
            if (after := getattr(vae, "quant_conv", None)) is not None:  # the first generation's
                moments = after(moments)
        mean: torch.Tensor = moments.chunk(2, dim=1)[0]
        return mean.float().cpu()

    means = _in_spatial_tiles(height, width, plan, encode, enlarged=1)
    scale = latent_scale(vae)
    assert scale is not None
    return (means - scale.shift) * scale.factor


def _stream(
    vae: Any,
    latents: torch.Tensor,
    plan_at: PlanAt,
    *,
    stop: Stop | None,
    on_tile: OnTile | None,
    on_shrink: Shrink | None,
    device: torch.device,
) -> Iterator[np.ndarray]:
    total, begin = latents.shape[2], 0
    tail: torch.Tensor | None = None
    smaller: TilePlan | None = None
    while True:
        plan = smaller or plan_at(begin)
        end = min(begin + plan.frames + 1, total)
        tile = tried(partial(_decode_tile, vae, latents[:, :, begin:end], plan, stop=stop, device=device))
        if tile is None:
            smaller = _smaller(plan, begin, on_shrink)
            continue
        if begin > 0:
            tile = tile[:, 1:]
        if tail is not None:
            weights = (torch.arange(tail.shape[1]) + 0.5) / tail.shape[1]
            tile[:, : tail.shape[1]] = tail.lerp(tile[:, : tail.shape[1]], weights[:, None, None])
        held = 0 if end == total else plan.overlap * vae.config.temporal_compression_ratio
        if on_tile is not None:
            on_tile(end if end == total else end - plan.overlap, total)
        for index in range(tile.shape[1] - held):
            yield to_uint8(tile[:, index])
        if end == total:
            return
        tail = tile[:, tile.shape[1] - held :].clone() if held else None
        del tile  # before the next one is decoded
        begin = end - 1 - plan.overlap


def _smaller(plan: TilePlan, begin: int, on_shrink: Shrink | None) -> TilePlan:
    free_cached()
    smaller = plan.halved()
    if smaller is None:
        smallest = f"{plan.frames} frames of {plan.height}x{plan.width}"
        raise OutOfMemory(f"out of memory at latent frame {begin}, with the smallest tile of {smallest}")
    if on_shrink is not None:
        on_shrink(begin, plan, smaller)
    return smaller


def _decode_tile(vae: Any, latents: torch.Tensor, plan: TilePlan, *, stop: Stop | None, device: torch.device) -> torch.Tensor:
    """Decode one temporal tile, in spatial tiles where the frame is larger than the plan's."""
    height, width = latents.shape[-2:]

    def decode(rows: slice, columns: slice) -> torch.Tensor:
        return _decode_piece(vae, latents[..., rows, columns], stop=stop, device=device)

    return _in_spatial_tiles(height, width, plan, decode, enlarged=int(vae.config.spatial_compression_ratio))


def _in_spatial_tiles(
    height: int, width: int, plan: TilePlan, one: Callable[[slice, slice], torch.Tensor], *, enlarged: int
) -> torch.Tensor:
    """What `one(rows, columns)` makes of each tile of the height x width cells, faded into each other where tiles overlap.

    It gives [..., rows * enlarged, columns * enlarged].
    """
    tops, lefts = _starts(height, plan.height, plan.margin), _starts(width, plan.width, plan.margin)
    if len(tops) == len(lefts) == 1:
        return one(slice(0, height), slice(0, width))
    canvas: torch.Tensor | None = None
    done_bottom = 0
    for top in tops:
        bottom, done_right = min(top + plan.height, height), 0
        rows = _ramp(bottom - top, done_bottom - top, enlarged)
        for left in lefts:
            right = min(left + plan.width, width)
            piece = one(slice(top, bottom), slice(left, right))
            if canvas is None:
                canvas = torch.zeros(*piece.shape[:-2], height * enlarged, width * enlarged)
            target = canvas[..., top * enlarged : bottom * enlarged, left * enlarged : right * enlarged]
            target.lerp_(piece, rows[:, None] * _ramp(right - left, done_right - left, enlarged))
            done_right = right
        done_bottom = bottom
    assert canvas is not None
    return canvas


def _ramp(cells: int, shared: int, factor: int) -> torch.Tensor:
    """Weights of a tile's pixels along one side: rising over the `shared` cells, then 1."""
    weights = torch.ones(cells * factor)
    if shared > 0:
        weights[: shared * factor] = (torch.arange(shared * factor) + 0.5) / (shared * factor)
    return weights


def _decode_piece(vae: Any, latents: torch.Tensor, *, stop: Stop | None, device: torch.device) -> torch.Tensor:
    if stop is not None and stop():
        raise Canceled
    scale = latent_scale(vae)
    assert scale is not None
    with torch.no_grad():
        scaled = latents.to(device=device, dtype=vae_dtype(vae)) / scale.factor + scale.shift
        if (before := getattr(vae, "post_quant_conv", None)) is not None:  # the first generation's
            scaled = before(scaled)
        pixels: torch.Tensor = vae.decoder(scaled)
    return pixels[0].float().cpu()


def _starts(size: int, tile: int, margin: int) -> list[int]:
    """Where tiles begin so that they cover `size` cells, all of one size, evenly spread, sharing at least `margin`."""
    if size <= tile:
        return [0]
    count = -(-(size - margin) // (tile - margin))
    return [round(index * (size - tile) / (count - 1)) for index in range(count)]
