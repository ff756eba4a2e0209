"""The short form of benchmarks/step_cache.py: presets skip more and lose more in their order."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "step_cache.py"


@pytest.mark.soak
def test_each_preset_skips_calls_and_says_what_it_lost():
    done = subprocess.run([sys.executable, str(SCRIPT), "--steps", "16"], stdout=subprocess.PIPE, text=True)
    rows = dict(re.findall(r"^ *(\w[\w ]*): +(\d+)% of the", done.stdout, re.MULTILINE))

    assert done.returncode == 0, done.stdout
    assert int(rows["off"]) == 0 < int(rows["safe"]) <= int(rows["fast"])
