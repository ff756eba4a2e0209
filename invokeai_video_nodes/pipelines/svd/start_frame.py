"""A picture of any size -> the size that SVD knows best, and the picture cropped or fitted to it.

Both public checkpoints were trained on 1024x576. Other shapes with as many pixels work, in steps of 64.
"""

from __future__ import annotations

import math
from typing import Literal

from PIL import Image

from ..errors import BadInput

Fit = Literal["crop", "fit", "stretch"]

TRAINED_SIZES = ((1024, 576), (576, 1024))
_STEP = 64  # pixels
_PIXELS = 1024 * 576
_MIN_SIDE = 320


def trained_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) that the model was trained on, lying or standing as the picture does."""
    _check_positive(width, height)
    return TRAINED_SIZES[0] if width >= height else TRAINED_SIZES[1]


def ideal_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) in multiples of 64 with about 1024x576 pixels, closest in shape to the picture.

    768x768 for a square, 1024x576 for 16:9, 896x640 for 4:3. Of two equally close shapes the larger one. Shapes beyond about 6:1
    get the longest size that there is.
    """
    _check_positive(width, height)
    shape = math.log(width / height)

    def badness(size: tuple[int, int]) -> tuple[float, int]:
        return (abs(math.log(size[0] / size[1]) - shape), -size[0] * size[1])

    return min(_sizes(), key=badness)


def fit_picture(picture: Image.Image, *, width: int, height: int, how: Fit = "crop") -> Image.Image:
    """The picture as RGB of exactly width x height.

    crop cuts off what stands over at both ends, fit leaves black bars, stretch changes the shape. Resampled with Lanczos, as
    diffusers' pipeline does; a picture of that size already is not resampled. Raises BadInput for another `how`.
    """
    if how not in ("crop", "fit", "stretch"):
        raise BadInput.expected("how", "one of crop, fit, stretch", repr(how), "crop")
    _check_positive(width, height)
    picture = picture.convert("RGB")
    if picture.size == (width, height):
        return picture
    if how == "stretch":
        return picture.resize((width, height), Image.Resampling.LANCZOS)
    scales = width / picture.width, height / picture.height
    scale = max(scales) if how == "crop" else min(scales)
    inner = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
    canvas = Image.new("RGB", (width, height))
    canvas.paste(picture.resize(inner, Image.Resampling.LANCZOS), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas


def _sizes() -> list[tuple[int, int]]:
    """All widths and heights, each with the other side that comes closest to the trained number of pixels from below."""
    most = _PIXELS // _MIN_SIDE // _STEP * _STEP
    sizes = []
    for width in range(_MIN_SIDE, most + 1, _STEP):
        sizes.append((width, _PIXELS // width // _STEP * _STEP))
    return sorted({*sizes, *((height, width) for width, height in sizes)})


def _check_positive(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise BadInput.expected("size", "positive width and height", f"{width}x{height}", f"{max(width, 1)}x{max(height, 1)}")
