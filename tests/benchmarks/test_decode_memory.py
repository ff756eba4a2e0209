"""The short form of the decode-memory benchmarks: without weights, for a VAE's own memory is the same for every frame or tile."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = pytest.mark.parametrize("script", ["decode_memory.py", pytest.param("vae_memory.py", marks=pytest.mark.soak)])


def measure(script, *options):
    command = [sys.executable, str(BENCHMARKS / script), "--vae", "plain", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    return done.returncode, float(re.search(r"difference (-?[\d.]+) MiB", done.stdout)[1])


@SCRIPTS
def test_a_long_clip_needs_no_more_memory_than_a_short_one(script):
    status, difference = measure(script)

    assert difference <= 16 and status == 0


@pytest.mark.soak
@SCRIPTS
def test_the_memory_test_bites_on_a_decode_that_hoards_frames(script):
    status, difference = measure(script, "--hoard")

    assert difference > 32 and status == 1
