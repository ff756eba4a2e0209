"""A real `invokeai-web` in a process of its own, in an environment that holds InvokeAI with or without our pack.

An environment here is a bare venv whose site-packages names the running one's on `sys.path`. Only the venv's own `.pth` files are
executed, so our start-up hook is there exactly when our wheel was unpacked into it, whatever the running environment has.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
START_SECONDS = 600
STOP_SECONDS = 40


def make_environment(folder: Path, *, wheel: Path | None) -> Path:
    """A venv with InvokeAI, and with our pack if `wheel` is given; returns its folder."""
    venv.create(folder, symlinks=True)
    site = Path(folder, "lib", f"python{sys.version_info.major}.{sys.version_info.minor}", "site-packages")
    host = sysconfig.get_path("purelib")
    (site / "host_packages.pth").write_text(f"{host}\n")
    if wheel is not None:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    script = Path(sys.executable).parent / "invokeai-web"
    body = script.read_text().split("\n", 1)[1]
    web = folder / "bin" / "invokeai-web"
    web.write_text(f"#!{folder / 'bin' / 'python'}\n{body}")
    web.chmod(0o755)
    return folder


def build_wheel(folder: Path) -> Path:
    """Build our wheel with the backend that is installed and return its path."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def copy_repository(folder: Path) -> Path:
    """Copy what a clone of the working tree would hold and return `folder`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    return folder


def free_port() -> int:
    """A TCP port of this host that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """One running `invokeai-web`; a context manager that stops it and leaves its log in `root`.

    `environment` is a folder from `make_environment`, `root` InvokeAI's root folder (made when missing).
    """

    def __init__(self, environment: Path, root: Path, *, variables: Mapping[str, str] | None = None) -> None:
        self.environment = environment
        self.root = root
        self.variables = dict(variables or {})
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_file = root / f"server-{self.port}.log"
        self.start_seconds = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.root.mkdir(parents=True, exist_ok=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "INVOKEAI"))}
        variables = {
            **kept,
            "INVOKEAI_ROOT": str(self.root),
            "INVOKEAI_HOST": "127.0.0.1",
            "INVOKEAI_PORT": str(self.port),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            **self.variables,
        }
        started = time.monotonic()
        with self.log_file.open("wb") as log:
            command = [str(self.environment / "bin" / "invokeai-web")]
            self._process = subprocess.Popen(command, env=variables, cwd=self.root, stdout=log, stderr=subprocess.STDOUT)
        try:
            self._wait_until_up(started)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait_until_up(self, started: float) -> None:
        while time.monotonic() - started < START_SECONDS:
            assert self._process is not None
            if self._process.poll() is not None:
                raise AssertionError(f"invokeai-web ended with {self._process.returncode}:\n{self.log()[-4000:]}")
            try:
                self.get("/api/v1/app/version")
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
                continue
            self.start_seconds = time.monotonic() - started
            return
        raise AssertionError(f"invokeai-web did not answer within {START_SECONDS} s:\n{self.log()[-4000:]}")

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    def log(self) -> str:
        """Everything that the server has printed so far, without terminal colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log_file.read_text(errors="replace"))

    def our_log_lines(self) -> list[str]:
        """The log lines of our pack."""
        return [line for line in self.log().splitlines() if "invokeai-video:" in line]

    def request(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """Send one request and return status and body; an HTTP error is a status like any other."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)
        request.add_header("Content-Type", "application/json")
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=180) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def get(self, path: str) -> Any:
        """GET one JSON document; anything but 200 fails."""
        return self._json("GET", path)

    def post(self, path: str, body: Any = None) -> Any:
        """POST one JSON document and return the JSON answer; anything but 2xx fails."""
        return self._json("POST", path, body)

    def _json(self, method: str, path: str, body: Any = None) -> Any:
        status, content = self.request(method, path, body)
        assert 200 <= status < 300, f"{method} {path}: {status} {content[:2000].decode(errors='replace')}"
        return json.loads(content) if content else None

    def queue(self) -> dict[str, int]:
        """How many queue items there are of each kind."""
        return self.get("/api/v1/queue/default/status")["queue"]

    def models(self) -> list[dict[str, Any]]:
        """All model records."""
        return self.get("/api/v2/models/")["models"]

    def install(self, path: Path, *, inplace: bool = True, **config: Any) -> dict[str, Any]:
        """Install a model, wait for it, and return its record; `config` holds the fields that override identification."""
        job = self.post(f"/api/v2/models/install?source={path}&inplace={str(inplace).lower()}", config)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            job = self.get(f"/api/v2/models/install/{job['id']}")
            if job["status"] in ("completed", "error", "cancelled"):
                break
            time.sleep(1)
        assert job["status"] == "completed", job.get("error_reason")
        return next(model for model in self.models() if model["key"] == job["config_out"]["key"])

    def run(self, graph: dict[str, Any], *, seconds: float = 180) -> dict[str, Any]:
        """Queue a graph, wait for it, and return the queue item; a failed item fails the test with the node's message."""
        answer = self.post("/api/v1/queue/default/enqueue_batch", {"batch": {"graph": graph, "runs": 1}, "prepend": False})
        item_id = answer["item_ids"][0]
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            item = self.get(f"/api/v1/queue/default/i/{item_id}")
            if item["status"] in ("completed", "failed", "canceled"):
                break
            time.sleep(1)
        assert item["status"] == "completed", f"{item['status']}: {item.get('error_message')}"
        return item
