"""One real InvokeAI for the whole folder, and small host environments that cost nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker asks InvokeAI, once."""
    for item in items:
        if "answers" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("inside-invokeai"))


@pytest.fixture(scope="session")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `inside_invokeai.py` found out in a fresh interpreter."""
    folder = tmp_path_factory.mktemp("inside")
    command = [sys.executable, str(HERE / "inside_invokeai.py"), str(folder / "answers.json"), str(folder)]
    environment = {name: value for name, value in os.environ.items() if name != "INVOKEAI_VIDEO_DISABLE"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=880, check=False)

    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads((folder / "answers.json").read_text())
