"""A worker of another process, as tests start and end it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """holding_worker.py as a child process."""

    def __init__(self, dsn: str, name: str, *, lease_seconds: float, steps: int) -> None:
        command = [sys.executable, str(Path(__file__).with_name("holding_worker.py")), dsn, name, str(lease_seconds), str(steps)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def says(self, word: str) -> list[str]:
        """Wait for a line that begins with `word`; its words."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.split()[0] == word:
                return line.split()
        raise AssertionError(f"expected {word!r}, got the end: {self.process.stderr.read() if self.process.stderr else ''}")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def rest(self) -> list[str]:
        """Everything it still says until it ends by itself."""
        output, errors = self.process.communicate(timeout=300)
        assert errors == ""
        return output.splitlines()
