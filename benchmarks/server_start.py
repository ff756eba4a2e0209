"""What the pack costs a server's start: paired starts of `invokeai-web` with the pack and with its kill switch on.

Each start gets an empty root and a free port of its own and counts until the server says that it answers; the order alternates.
Prints the differences in seconds, of wall time and of processor time (which a busy machine disturbs less).

    python benchmarks/server_start.py [--pairs 3]
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import psutil

ANSWERS = "Invoke running on"
RUN = "from invokeai_video_patches import bootstrap; bootstrap.install(); from invokeai.app.run_app import run_app; run_app()"
LIMIT_SECONDS = 1800


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_seconds(*, disabled: bool) -> tuple[float, float]:
    """Start a server, wait for its word, stop it; returns (wall, processor) seconds."""
    with tempfile.TemporaryDirectory(prefix="server-start-") as root:
        settings = {"INVOKEAI_ROOT": root, "INVOKEAI_HOST": "127.0.0.1", "INVOKEAI_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
        settings["INVOKEAI_VIDEO_DISABLE"] = "1" if disabled else ""
        started = time.perf_counter()
        server = subprocess.Popen(
            [sys.executable, "-c", RUN],
            env=os.environ | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            _wait_for_word(server, started)
            wall = time.perf_counter() - started
            used = psutil.Process(server.pid).cpu_times()
            return wall, used.user + used.system
        finally:
            server.terminate()
            server.wait(timeout=60)


def _wait_for_word(server: subprocess.Popen[str], started: float) -> None:
    assert server.stdout is not None
    seen = []
    for line in server.stdout:
        seen.append(line)
        if ANSWERS in line:
            return
        if time.perf_counter() - started > LIMIT_SECONDS:
            break
    raise RuntimeError(f"expected '{ANSWERS}' from the server, got: {''.join(seen[-20:])}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    pairs = parser.parse_args().pairs
    start_seconds(disabled=True)  # the first start reads the libraries from disk
    differences = []
    for index in range(pairs):
        order = (True, False) if index % 2 else (False, True)
        times = {disabled: start_seconds(disabled=disabled) for disabled in order}
        differences.append(tuple(times[False][i] - times[True][i] for i in range(2)))
        print(
            f"pair {index + 1}: with {times[False][0]:.1f} s ({times[False][1]:.1f} s of processor), "
            f"without {times[True][0]:.1f} s ({times[True][1]:.1f} s of processor)",
            flush=True,
        )
    for index, name in enumerate(("wall time", "processor time")):
        values = [difference[index] for difference in differences]
        print(f"server start, {name}: {statistics.median(values):+.2f} s ({min(values):+.2f} to {max(values):+.2f}), {pairs} pairs")


if __name__ == "__main__":
    main()
