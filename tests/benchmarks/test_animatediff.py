"""The short forms of AnimateDiff's benchmarks: what they bound holds, and each bites on what it is there to find."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script, *options):
    done = subprocess.run([sys.executable, str(BENCHMARKS / script), *options], stdout=subprocess.PIPE, text=True)
    return done.returncode, done.stdout


def grown(*options):
    status, text = run("animatediff_memory.py", "--size", "128", "--frames", "64", *options)
    return status, float(re.search(r"ratio ([\d.]+)", text)[1])


def test_a_long_clip_in_windows_needs_hardly_more_memory_than_one_window():
    status, ratio = grown()

    assert ratio <= 1.2 and status == 0


@pytest.mark.soak
def test_the_memory_test_bites_on_a_long_clip_without_windows():
    status, ratio = grown("--without-windows")

    assert ratio > 2 and status == 1


@pytest.mark.soak
def test_a_long_clip_is_decoded_in_the_memory_of_a_short_one():
    status, text = run("animatediff_decode_memory.py", "--vae", "plain")

    assert status == 0, text


@pytest.mark.soak
def test_the_decode_test_bites_on_a_decode_that_hoards_frames():
    status, text = run("animatediff_decode_memory.py", "--vae", "plain", "--hoard")

    assert status == 1, text


def test_both_sides_of_the_gpu_benchmark_run_and_agree_bit_for_bit():
    status, text = run("animatediff.py", "--config", "tiny", "--steps", "3", "--windows", "--json")
    report = json.loads(text)

    assert status == 0 and report["furthest"] == 0
    assert len(report["rows"]) == 5
    assert all(row["seconds"] > 0 for row in report["rows"].values())
