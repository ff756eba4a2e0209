"""The short form of benchmarks/decode_memory.py: without weights, for a VAE's own memory is the same for every frame."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "decode_memory.py"


def measure(*options):
    command = [sys.executable, str(SCRIPT), "--vae", "plain", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    return done.returncode, float(re.search(r"difference (-?[\d.]+) MiB", done.stdout)[1])


def test_a_long_clip_needs_no_more_memory_than_a_short_one():
    status, difference = measure()

    assert difference <= 16 and status == 0


def test_the_memory_test_bites_on_a_decode_that_hoards_frames():
    status, difference = measure("--hoard")

    assert difference > 16 and status == 1
