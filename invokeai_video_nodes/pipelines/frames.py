"""A video file -> its frames, one at a time: memory does not grow with the length of the video."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from .errors import BadInput
from .ffmpeg import EXACT_SCALING, Ffmpeg


def read_frames(
    path: Path | str,
    *,
    every_nth: int = 1,
    skip: int = 0,
    limit: int | None = None,
    size: tuple[int, int] | None = None,
) -> Iterator[np.ndarray]:
    """Yield frames of `path` as uint8 [H, W, 3] RGB arrays: without the first `skip`, then every nth, at most `limit`.

    `size` is (width, height) in pixels; None keeps the video's. Colours are converted as the file is tagged. Settings
    are checked at once; a file that holds no readable video raises BadInput at the first frame.
    """
    if every_nth < 1:
        raise BadInput.expected("every_nth", "1 or more", every_nth, 1)
    if skip < 0:
        raise BadInput.expected("skip", "0 or more frames", skip, 0)
    if limit is not None and limit < 1:
        raise BadInput.expected("limit", "1 or more frames, or none", limit, 1)
    if size is not None and min(size) < 1:
        raise BadInput.expected("size", "positive width and height", size, (max(size[0], 1), max(size[1], 1)))
    path = Path(path)
    if not path.is_file():
        raise BadInput.expected("video", "an existing file", path)
    return _read(path, every_nth=every_nth, skip=skip, limit=limit, size=size)


def count_frames(path: Path | str) -> int:
    """How many frames `read_frames` yields of `path`; they are decoded but not converted. Raises BadInput where it is no video."""
    path = Path(path)
    if not path.is_file():
        raise BadInput.expected("video", "an existing file", path)
    # One line of text per frame, beside comments; containers' own counts are guesses.
    ffmpeg = Ffmpeg(["-i", str(path), "-map", "0:v:0", "-fps_mode", "passthrough", "-f", "framecrc", "pipe:1"], feed=False)
    try:
        count = sum(not line.startswith(b"#") for line in ffmpeg.pipe)
        if ffmpeg.finish() != 0 or not count:
            raise BadInput.expected(f"video {path}", "a file that ffmpeg can read", ffmpeg.last_words())
        return count
    finally:
        ffmpeg.kill()


def _read(
    path: Path, *, every_nth: int, skip: int, limit: int | None, size: tuple[int, int] | None
) -> Iterator[np.ndarray]:
    scale = "scale=" if size is None else f"scale={size[0]}:{size[1]}:"
    chosen = f"select='gte(n,{skip})*not(mod(n-{skip},{every_nth}))'"
    arguments = ["-i", str(path), "-map", "0:v:0", "-vf", f"{chosen},{scale}{EXACT_SCALING},format=rgb24"]
    if limit is not None:
        arguments += ["-frames:v", str(limit)]
    # PPM says each frame's size, so rotated and rescaled videos need no second look at the file.
    ffmpeg = Ffmpeg([*arguments, "-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "pipe:1"], feed=False)
    count = 0
    try:
        while (frame := _next_frame(ffmpeg.pipe)) is not None:
            count += 1
            yield frame
        status = ffmpeg.finish()
        if status != 0:
            raise BadInput.expected(f"video {path}", "a file that ffmpeg can read", ffmpeg.last_words())
        if not count:
            raise BadInput.expected(f"video {path}", f"more than {skip} frames", "none after the skipped ones")
    finally:
        ffmpeg.kill()


def _next_frame(pipe: IO[bytes]) -> np.ndarray | None:
    """The next binary PPM of the stream ("P6\\nW H\\n255\\n" and the bytes), or None at its end."""
    if not pipe.readline():
        return None
    width, height = (int(number) for number in pipe.readline().split())
    pipe.readline()
    frame = np.empty((height, width, 3), dtype=np.uint8)
    view, filled = memoryview(frame).cast("B"), 0
    while filled < len(view):
        got = pipe.readinto(view[filled:])  # type: ignore[attr-defined]
        if not got:
            return None
        filled += got
    return frame
