"""Frames -> an MP4 file: streamed into ffmpeg, tagged and converted as BT.709, there whole or not at all.

The file grows under a temporary name beside its final one and is renamed when ffmpeg has closed it, so nobody ever sees
half a video. The name carries the writer's process, so that `clean_stale` can tell leftovers of a killed one.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import psutil

from .errors import BadInput, Canceled, OutputError, Stop
from .ffmpeg import EXACT_SCALING, Ffmpeg

Codec = Literal["h264", "h265"]
# The H.265 file that lies beside a video of the gallery has its name with this ending.
H265_SUFFIX = ".h265.mp4"

_ENCODERS = {
    "h264": ["-c:v", "libx264"],
    # hvc1: Apple's players refuse the default tag. x265 has a log of its own.
    "h265": ["-c:v", "libx265", "-tag:v", "hvc1", "-x265-params", "log-level=error"],
}
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
_MAX_CRF = 51
_CLOCK_TOLERANCE_SECONDS = 5
_DISK_FULL = os.strerror(errno.ENOSPC)
_UNITS = ((30, "GiB"), (20, "MiB"), (10, "KiB"))

_TEMPORARY = re.compile(r"^\.invokeai-video-(?P<pid>\d+)-(?P<started>\d+)-[0-9a-f]+\.part$")


def write_mp4(
    frames: Iterator[np.ndarray],
    path: Path | str,
    *,
    fps: float,
    width: int,
    height: int,
    codec: Codec = "h264",
    crf: int = 18,
    preset: str = "medium",
    stop: Stop | None = None,
    copies: Mapping[Codec, Path] | None = None,
) -> int:
    """Write `frames`, uint8 [height, width, 3] RGB, to `path` and return how many there were.

    8-bit 4:2:0, moov atom first. `crf` 0 (lossless) to 51, as x264 and x265 count. Takes one frame at a time from
    `frames` and closes it. `copies` are further files of the same frames in other codecs, written in the same pass by
    the same ffmpeg. Raises BadInput for sizes and settings before the first frame is asked for, Canceled between frames
    where `stop()` answers True, OutputError where the file cannot be written; then nothing is left in the folder.
    """
    check_mp4_settings(fps=fps, width=width, height=height, codec=codec, crf=crf, preset=preset)
    path = Path(path)
    targets = {path: codec, **{Path(copy): other for other, copy in (copies or {}).items()}}
    for target in targets:
        if not target.parent.is_dir():
            raise OutputError(f"Writing {target}: expected an existing folder, got {target.parent}")
    growing = {target: target.with_name(temporary_name()) for target in targets}
    outputs = [_output(growing[target], codec, crf, preset) for target, codec in targets.items()]
    free = shutil.disk_usage(path.parent).free
    ffmpeg = Ffmpeg([*_input(fps, width, height), *chain.from_iterable(outputs)], feed=True)
    try:
        written = _feed(ffmpeg, frames, width=width, height=height, stop=stop)
        if ffmpeg.finish() != 0:
            raise _output_error(path.parent, growing, ffmpeg, frames=written, free=free)
        if not written:
            raise BadInput.expected("frames to write", "at least 1", 0)
        _put_in_place(growing)
    except BaseException:
        ffmpeg.kill()
        raise
    finally:
        for temporary in growing.values():
            temporary.unlink(missing_ok=True)
        close = getattr(frames, "close", None)
        if close is not None:
            close()
    return written


def check_mp4_settings(*, fps: float, width: int, height: int, codec: str, crf: int, preset: str = "medium") -> None:
    """Raise BadInput for what cannot be encoded: call it before the model runs, so that nothing is lost at the end."""
    for name, size in (("video width", width), ("video height", height)):
        if size < 2 or size % 2:
            # 4:2:0 stores colour once for each 2x2 pixels.
            raise BadInput.expected(name, "an even number of pixels", size, max(size - size % 2, 2))
    if codec not in get_args(Codec):
        raise BadInput.expected("codec", f"one of {', '.join(get_args(Codec))}", repr(codec), "h264")
    if not 0 <= crf <= _MAX_CRF:
        raise BadInput.expected("crf", f"0 to {_MAX_CRF}", crf, min(max(crf, 0), _MAX_CRF))
    if preset not in PRESETS:
        raise BadInput.expected("preset", f"one of {', '.join(PRESETS)}", repr(preset), "medium")
    if fps <= 0:
        raise BadInput.expected("fps", "more than 0", fps, 1)


def clean_stale(folder: Path | str) -> list[Path]:
    """Remove the temporary files in `folder` whose writers are gone, and return their paths."""
    removed = []
    for path in Path(folder).glob(".invokeai-video-*.part"):
        name = _TEMPORARY.match(path.name)
        if name and not _is_running(int(name["pid"]), int(name["started"])):
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def temporary_name() -> str:
    """A file name that `clean_stale` removes once this process has ended."""
    return f".invokeai-video-{os.getpid()}-{_started(psutil.Process())}-{secrets.token_hex(4)}.part"


def _input(fps: float, width: int, height: int) -> list[str]:
    return ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-framerate", f"{fps:g}", "-i", "pipe:0"]


def _output(temporary: Path, codec: Codec, crf: int, preset: str) -> list[str]:
    # Full-range RGB is converted with the matrix that the tags name; players that ignore tags guess BT.709 for most
    # sizes.
    convert = f"scale=out_color_matrix=bt709:out_range=tv:{EXACT_SCALING},format=yuv420p"
    tags = "setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709"
    return [
        *("-vf", f"{convert},{tags}"),
        *(*_ENCODERS[codec], "-crf", str(crf), "-preset", preset),
        *("-color_range", "tv", "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"),
        *("-movflags", "+faststart", "-f", "mp4", "-y", str(temporary)),
    ]


def _feed(ffmpeg: Ffmpeg, frames: Iterator[np.ndarray], *, width: int, height: int, stop: Stop | None) -> int:
    """Write every frame into ffmpeg's pipe; stops quietly where ffmpeg has ended, its exit status tells the rest."""
    written = 0
    for frame in frames:
        if stop is not None and stop():
            raise Canceled
        if frame.shape != (height, width, 3) or frame.dtype != np.uint8:
            expected = f"uint8 [{height}, {width}, 3]"
            raise BadInput.expected(f"frame {written}", expected, f"{frame.dtype} {list(frame.shape)}")
        try:
            ffmpeg.pipe.write(memoryview(np.ascontiguousarray(frame)).cast("B"))
        except BrokenPipeError:
            return written
        written += 1
        # Gone before the next one is made.
        del frame
    return written


def _put_in_place(growing: Mapping[Path, Path]) -> None:
    """Give the finished files their names, all of them or none."""
    done: list[Path] = []
    try:
        for target, temporary in growing.items():
            os.replace(temporary, target)
            done.append(target)
    except OSError as error:
        for target in done:
            target.unlink(missing_ok=True)
        raise OutputError(f"Naming the finished video failed: {error}; the video was removed") from error


def _output_error(folder: Path, growing: Mapping[Path, Path], ffmpeg: Ffmpeg, *, frames: int, free: int) -> OutputError:
    """What could not be written: how far it came, of the bytes that were `free` when it began. The unfinished files go."""
    size = sum(temporary.stat().st_size for temporary in growing.values() if temporary.exists())
    for temporary in growing.values():
        temporary.unlink(missing_ok=True)
    words = ffmpeg.last_words()
    why = "the disk is full" if _DISK_FULL in words else f"ffmpeg says: {words}"
    return OutputError(
        f"Writing the video to {folder} failed after {frames} frames: {why}. {_bytes(free)} were free when it began, "
        f"{_bytes(size)} were written; the unfinished video was removed."
    )


def _bytes(size: int) -> str:
    power, unit = next((step for step in _UNITS if size >= 2 ** step[0]), _UNITS[-1])
    return f"{size / 2**power:.1f} {unit}"


def _is_running(pid: int, started: int) -> bool:
    # Numbers of processes are used again, so the start time is compared too; it is counted from a boot time that the
    # system's clock corrections move, and the file of a writer at work must never go.
    try:
        return abs(_started(psutil.Process(pid)) - started) <= _CLOCK_TOLERANCE_SECONDS
    except psutil.Error:
        return False


def _started(process: psutil.Process) -> int:
    return int(process.create_time())
