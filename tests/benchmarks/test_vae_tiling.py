"""The short form of benchmarks/vae_tiling.py: 33 frames, without times."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

# One worker makes the fixture, which takes over a minute of two cores: tiles are tested against whole decodes in tests/pipelines as well.
pytestmark = [pytest.mark.xdist_group("vae_tiling"), pytest.mark.soak]
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "vae_tiling.py"


def measure(*options):
    command = [sys.executable, str(SCRIPT), "--frames", "33", "--turns", "0", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    figures = r"difference ([+-][\d.]+) dB.*clip: whole ([\d.]+),.*in time ([\d.]+), .*across ([\d.]+) .* frames ([\d.]+) levels"
    found = re.search(figures, done.stdout, re.DOTALL)
    assert found, done.stdout
    return done.returncode, *map(float, found.groups())


@pytest.fixture(scope="module")
def tiled():
    return measure()


def test_our_tiles_are_no_worse_than_diffusers_own_and_show_no_seam(tiled):
    status, difference, rebuilt, in_time, across, line = tiled

    assert rebuilt >= 30, "the VAE no longer knows the clip, so seams could hide"
    assert difference >= -0.1 and max(in_time, across) <= 3 and line <= 0.25 and status == 0


def test_the_tiling_test_bites_on_hard_cuts(tiled):
    status, difference, _, in_time, across, _ = measure("--hard-cuts")

    assert status == 1 and min(in_time, across) > 3 and difference < tiled[1]
