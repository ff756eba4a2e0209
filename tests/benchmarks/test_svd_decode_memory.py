"""The short form of SVD's decode-memory benchmark: without weights, for the decoder's own memory is the same on both sides."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

# A minute; that decodes stream is seen in test_decode_memory.py, and SVD's chunks in tests/pipelines/test_svd_decode.py.
pytestmark = pytest.mark.soak
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "svd_decode_memory.py"


def measure(*options):
    command = [sys.executable, str(SCRIPT), "--vae", "plain", "--size", "384", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    return done.returncode, float(re.search(r"ratio ([\d.]+)", done.stdout)[1])


def test_a_streaming_decode_to_mp4_needs_less_memory_than_diffusers_decode():
    status, ratio = measure()

    assert ratio <= 1.0 and status == 0


def test_the_memory_test_bites_on_a_decode_that_hoards_frames():
    status, ratio = measure("--hoard")

    assert ratio > 1.05 and status == 1
