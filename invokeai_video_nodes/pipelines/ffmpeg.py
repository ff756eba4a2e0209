"""Running the ffmpeg that imageio-ffmpeg ships: arguments, its error text, and its end."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Sequence
from typing import IO

import imageio_ffmpeg

_ADDRESS = re.compile(r" @ 0x[0-9a-f]+")
# swscale's defaults shift colours by rounding; these cost little and keep 8-bit RGB within one step per pass.
EXACT_SCALING = "flags=bicubic+accurate_rnd+full_chroma_int"


class Ffmpeg:
    """One ffmpeg process with a pipe on one side; stderr is drained so that it can never block."""

    def __init__(self, arguments: Sequence[str], *, feed: bool) -> None:
        """`feed`: we write to its stdin; otherwise we read from its stdout."""
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostats", "-loglevel", "error", *arguments]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if feed else subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._messages: list[str] = []
        self._drain = threading.Thread(target=self._read_messages, daemon=True)
        self._drain.start()

    @property
    def pipe(self) -> IO[bytes]:
        """Its stdin or stdout, whichever was asked for."""
        pipe = self.process.stdin or self.process.stdout
        assert pipe is not None
        return pipe

    def finish(self) -> int:
        """Close the pipe, wait for the end and return the exit status."""
        try:
            self.pipe.close()
        except BrokenPipeError:
            # It ended before it took everything; the exit status and its own words say why.
            pass
        status = self.process.wait()
        self._drain.join()
        return status

    def kill(self) -> None:
        """End it now, finished or not."""
        self.process.kill()
        self.finish()

    def last_words(self) -> str:
        """The end of what it wrote to stderr, one line, without addresses in memory."""
        return _ADDRESS.sub("", " / ".join(self._messages[-3:])) or "no message"

    def _read_messages(self) -> None:
        stderr = self.process.stderr
        assert stderr is not None
        with stderr:
            for line in stderr:
                self._messages.append(line.decode("utf-8", "replace").strip())
                del self._messages[:-20]
