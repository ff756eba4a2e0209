"""A copy of a small clip with every pixel repeated N x N times: bigger to look at, with nothing invented."""

from __future__ import annotations

import subprocess
from pathlib import Path

from invokeai_video_nodes.pipelines.errors import OutputError


def enlarge(path: Path, times: int) -> Path:
    """Write NAME-xN.mp4 beside `path` and return it; OutputError with ffmpeg's last line when that fails.

    Repeating pixels happens in the clip's own YUV, so colours and their BT.709 tags stay as they are.
    """
    from imageio_ffmpeg import get_ffmpeg_exe

    target = path.with_name(f"{path.stem}-x{times}{path.suffix}")
    partial = target.with_name(f".{target.stem}.part{target.suffix}")
    command = [get_ffmpeg_exe(), "-y", "-v", "error", "-i", str(path)]
    command += ["-vf", f"scale=iw*{times}:ih*{times}:flags=neighbor", "-c:v", "libx264", "-crf", "12"]
    command += ["-pix_fmt", "yuv420p", "-movflags", "+faststart", str(partial)]
    command[-1:-1] = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise OutputError(f"expected ffmpeg to enlarge {path.name}, got: {last}")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target
