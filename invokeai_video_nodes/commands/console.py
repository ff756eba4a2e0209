"""What the person sees: results on stdout, progress and notes on stderr, and nothing of InvokeAI's own log.

InvokeAI, its libraries and ffmpeg write to file descriptors 1 and 2 from Python and C alike, so the descriptors
themselves are pointed at a log file while a verb runs. The log is kept, and named, only when something went wrong.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO


@dataclass
class Console:
    """The person's stdout and stderr. With `as_json`, stdout carries exactly one JSON object and nothing else."""

    out: TextIO
    err: TextIO
    as_json: bool = False
    log: Path | None = None
    keep_log: bool = False

    def result(self, kind: str, path: Path) -> None:
        """One result line, "video: PATH" or "image: PATH"; in JSON mode the object at the end tells it."""
        if not self.as_json:
            print(f"{kind}: {path}", file=self.out, flush=True)

    def answer(self, content: dict[str, Any]) -> None:
        """The JSON object, in JSON mode only."""
        if self.as_json:
            print(json.dumps(content), file=self.out, flush=True)

    def note(self, text: str) -> None:
        """A sentence on stderr."""
        print(text, file=self.err, flush=True)

    def error(self, text: str, **facts: Any) -> None:
        """One line on stderr, in JSON mode also the object {"error": {"message": …, **facts}}."""
        one_line = " ".join(text.split())
        self.note(f"error: {one_line}")
        self.answer({"error": {"message": one_line, **facts}})


@contextmanager
def own_streams(*, verbose: bool = False, as_json: bool = False) -> Iterator[Console]:
    """Keep stdout and stderr for ourselves in the block; everybody else writes to a log (to stderr if `verbose`)."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    log = None if verbose else Path(_new_log())
    target = os.dup(2) if log is None else os.open(log, os.O_WRONLY | os.O_APPEND)
    console = Console(_text(os.dup(kept[0])), _text(os.dup(kept[1])), as_json=as_json, log=log)
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        yield console
    finally:
        _flush_quietly(sys.stdout, sys.stderr)
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for descriptor in (target, *kept):
            os.close(descriptor)
        if log is not None and console.keep_log:
            console.note(f"log: {log}")
        elif log is not None:
            log.unlink(missing_ok=True)
        _flush_quietly(console.out, console.err)
        console.out.close()
        console.err.close()


def _new_log() -> str:
    descriptor, path = tempfile.mkstemp(prefix="invokeai-video-", suffix=".log")
    os.close(descriptor)
    return path


def _text(descriptor: int) -> TextIO:
    return os.fdopen(descriptor, "w", encoding="utf-8", errors="replace", buffering=1)


def _flush_quietly(*streams: TextIO) -> None:
    for stream in streams:
        try:
            stream.flush()
        except (OSError, ValueError):
            pass  # the reader has gone, or the stream was closed by the program that ran


class ProgressBar:
    """InvokeAI's events -> one bar over the whole graph: finished nodes plus the running node's share.

    Where stderr is no terminal, one line per node is printed instead.
    """

    def __init__(self, console: Console, *, nodes: int) -> None:
        self._console = console
        self._finished = 0
        self._share = 0.0
        self._title = ""
        self._bar: Any = None
        if console.err.isatty():
            from tqdm import tqdm

            form = "{percentage:3.0f}%|{bar:28}| {elapsed} {desc}"
            self._bar = tqdm(total=nodes, file=console.err, bar_format=form, leave=False, dynamic_ncols=True)

    def __call__(self, event: Any) -> None:
        """Take one event of the run."""
        name = type(event).__event_name__
        if name == "invocation_started":
            self._title = type(event.invocation).UIConfig.title or event.invocation.get_type()
            self._share = 0.0
            self._show(self._title)
            if self._bar is None:
                self._console.note(f"  {self._title}")
        elif name == "invocation_progress":
            self._share = event.percentage or self._share
            self._show(f"{self._title}: {event.message}" if event.message else self._title)
        elif name == "invocation_complete":
            self._finished += 1
            self._share = 0.0
            self._show(self._title)

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.close()

    def _show(self, text: str) -> None:
        if self._bar is None:
            return
        # Iterating nodes run more often than the graph has nodes; the bar grows rather than overflow.
        self._bar.total = max(self._bar.total, self._finished + 1)
        self._bar.n = min(self._finished + self._share, self._bar.total)
        self._bar.set_description_str(text, refresh=True)
