"""Real media for tests: a PNG of one colour, and an MP4 that is as big as asked and plays."""

import io
import subprocess
from pathlib import Path

import imageio_ffmpeg
from PIL import Image

_BLOCK = 1 << 20


def png(color: tuple[int, int, int]) -> bytes:
    """64x48 pixels of it."""
    output = io.BytesIO()
    Image.new("RGB", (64, 48), color).save(output, "PNG")
    return output.getvalue()


def color_of(content: bytes) -> tuple[int, int, int]:
    """The one colour of png(); fails for a picture of several."""
    colors = Image.open(io.BytesIO(content)).convert("RGB").getcolors()
    assert colors is not None and len(colors) == 1 and colors[0][0] == 64 * 48
    return colors[0][1]


def clip(path: Path, *, megabytes: int = 0, seed: int = 0) -> Path:
    """Half a second of H.264 at `path`; a box that players skip makes it `megabytes` larger, and each `seed` another file."""
    source = ["-f", "lavfi", "-i", "testsrc2=size=64x48:rate=8:duration=0.5"]
    encoded = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-metadata", f"comment={seed}"]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *source, *encoded, str(path)], check=True)
    if megabytes:
        with path.open("ab") as file:
            file.write((8 + megabytes * _BLOCK).to_bytes(4, "big") + b"free")
            for number in range(megabytes):
                # No two blocks alike, so that a part in the wrong place is seen.
                file.write(f"{seed} {number:8d} ".encode().ljust(32, b".") * (_BLOCK // 32))
    return path
