"""The GPU benchmark's own plumbing, at tiny size on whatever is here: both sides run and give the same latents."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "svd.py"


def test_both_sides_run_and_agree_bit_for_bit():
    command = [sys.executable, str(SCRIPT), "--config", "tiny", "--steps", "3", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report = json.loads(done.stdout)

    assert report["difference"] == 0.0
    assert set(report["rows"]) == {"denoise, diffusers", "denoise, ours", "decode, diffusers", "decode, ours"}
    assert all(row["seconds"] > 0 for row in report["rows"].values())
