"""What the startup file costs every interpreter of the environment: paired starts with and without it.

Each pair starts two bare interpreters, one with an empty site folder, one with a folder that holds our `.pth`; the order alternates.
Prints the median difference in milliseconds, of wall time and of processor time, with a 95% bootstrap interval. Claim: under 5 ms.

    python benchmarks/interpreter_start.py [--pairs 100]
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
STARTUP_FILE = REPOSITORY / "patches" / "invokeai_video_startup.pth"
LIMIT_MS = 5.0


def start_ms(site_folder: Path) -> tuple[float, float]:
    """Start an interpreter that reads one site folder; returns (wall, processor) milliseconds."""
    code = (
        f"import sys, site, time; sys.path.insert(0, {str(REPOSITORY / 'patches')!r}); "
        f"site.addsitedir({str(site_folder)!r}); print(time.process_time())"
    )
    started = time.perf_counter()
    result = subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, capture_output=True, text=True)
    return (time.perf_counter() - started) * 1000, float(result.stdout) * 1000


def interval(differences: list[float]) -> tuple[float, float]:
    """95% bootstrap interval of the median."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(differences, k=len(differences))) for _ in range(2000))
    return medians[50], medians[1949]


def measure(pairs: int) -> list[tuple[float, float]]:
    """Differences (with - without) of wall and processor milliseconds, one for each pair."""
    with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryDirectory() as ours:
        (Path(ours) / STARTUP_FILE.name).write_text(STARTUP_FILE.read_text())
        folders = {"without": Path(empty), "with": Path(ours)}
        for folder in folders.values():  # the first start of each reads the disk and writes bytecode
            start_ms(folder)
        differences = []
        for index in range(pairs):
            order = ("without", "with") if index % 2 else ("with", "without")
            times = {name: start_ms(folders[name]) for name in order}
            differences.append((times["with"][0] - times["without"][0], times["with"][1] - times["without"][1]))
        return differences


def main() -> int:
    """Measure and print; 1 when the processor time (which a busy machine disturbs less) misses the bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100)
    pairs = parser.parse_args().pairs
    differences = measure(pairs)
    for index, name in enumerate(("wall time", "processor time")):
        values = [difference[index] for difference in differences]
        low, high = interval(values)
        median = statistics.median(values)
        verdict = "below" if median < LIMIT_MS else "NOT below"
        print(f"interpreter start, {name}: {median:+.2f} ms (95% {low:.2f} to {high:.2f}), {verdict} {LIMIT_MS:g} ms, {pairs} pairs")
    return 0 if median < LIMIT_MS else 1


if __name__ == "__main__":
    sys.exit(main())
