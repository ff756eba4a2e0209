"""A real `invokeai-saas serve` in a process of its own, and the people who use it.

The environment is the running one with the working tree in front; the database is the embedded one under `folder` unless DATABASE_URL
is among the variables.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from live_server import REPOSITORY, free_port

from invokeai_saas.accounts import operator
from invokeai_saas.accounts.model import Accounts, Role
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.db.embedded import start_embedded

START_SECONDS, STOP_SECONDS = 300, 60
ADMIN = "admin@localhost"


class SaasServer:
    """One running server; a context manager that stops it and leaves its log in `folder`."""

    # Of the command `serve`.
    arguments: tuple[str, ...] = ()

    def __init__(self, folder: Path, *, variables: Mapping[str, str] | None = None, arguments: Sequence[str] = ()) -> None:
        self.folder, self.variables, self.arguments = folder, dict(variables or {}), tuple(arguments)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_file = folder / f"server-{self.port}.log"
        self.start_seconds = 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SaasServer:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.start()
        return self

    def start(self) -> None:
        """Start and wait for the first page."""
        started = time.monotonic()
        self.launch()
        try:
            self._wait(started)
        except BaseException:
            self.stop()
            raise

    def launch(self) -> None:
        """Start and wait for nothing."""
        with self.log_file.open("ab") as log:
            self.process = self.run("serve", *self.arguments, output=log)

    def run(self, *words: str, output: Any) -> subprocess.Popen[bytes]:
        """`invokeai-saas` with these words, with the server's environment."""
        dropped = ("PYTHON", "VIRTUAL_ENV", "INVOKEAI", "SAAS_", "DATABASE_", "S3_", "AWS_", "OTEL_", "STRIPE_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
        ours = {
            "SAAS_DATA_DIR": str(self.folder),
            "SAAS_PORT": str(self.port),
            "SAAS_PUBLIC_URL": self.url,
            "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'patches'}",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            # Most tests are about something else than plans.
            "SAAS_METERING": "off",
        }
        command = [sys.executable, "-m", "invokeai_saas.cli", *words]
        environment = {**kept, **ours, **self.variables}
        return subprocess.Popen(command, env=environment, cwd=self.folder, stdout=output, stderr=subprocess.STDOUT)

    def _wait(self, started: float) -> None:
        while time.monotonic() - started < START_SECONDS:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log()[-4000:]}")
            try:
                self.request("GET", "/")
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
                continue
            self.start_seconds = time.monotonic() - started
            return
        raise AssertionError(f"the server did not answer within {START_SECONDS} s:\n{self.log()[-4000:]}")

    def kill(self) -> None:
        """SIGKILL to the process and to nothing that it started; start() starts it again."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def stop(self) -> int | None:
        """SIGTERM as an operator's process manager sends it; returns the exit code."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        code, self.process = self.process.returncode, None
        return code

    def __exit__(self, *_: object) -> None:
        self.stop()

    def log(self) -> str:
        """Everything printed so far, without terminal colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log_file.read_text(errors="replace"))

    def admin_password(self) -> str:
        """The one-time password that the first start printed."""
        found = re.search(r"^  password  (\S+)$", self.log(), re.MULTILINE)
        assert found, self.log()[-2000:]
        return found[1]

    def request(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """One request; an HTTP error is a status like any other. `body` is JSON, or bytes as they are."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)
        if data is not None and not isinstance(body, bytes):
            request.add_header("Content-Type", "application/json")
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, response.read(), response.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers

    def sign_in(self, email: str, password: str) -> Person:
        """A login; fails unless it succeeds."""
        status, content, _ = self.request("POST", "/api/v1/auth/login", {"email": email, "password": password})
        assert status == 200, content
        answer = json.loads(content)
        return Person(self, email, answer["token"], answer["user"]["user_id"], answer.get("refresh_token"))

    @contextmanager
    def database(self) -> Iterator[PostgresDatabase]:
        """The embedded database of the running server."""
        database = PostgresDatabase(start_embedded(self.folder), pool_size=2)
        try:
            yield database
        finally:
            database.close()

    def person(self, email: str, *, role: Role = "user") -> Person:
        """Somebody new whom the operator let in, signed in."""
        with self.database() as database:
            password = operator.add(Accounts(database), email=email, role=role)
        assert password is not None
        return self.sign_in(email, password)

    def admin(self) -> Person:
        """The first administrator, signed in."""
        return self.sign_in(ADMIN, self.admin_password())


class Person:
    """Somebody who is signed in."""

    def __init__(self, server: SaasServer, email: str, token: str, user_id: str, refresh_token: str | None) -> None:
        self.server, self.email, self.token, self.user_id, self.refresh_token = server, email, token, user_id, refresh_token

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """A request as this person: status, and the JSON or bytes."""
        status, content, _ = self.server.request(method, path, body, token=self.token, headers=headers)
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content

    def get(self, path: str) -> Any:
        """GET that must succeed."""
        status, content = self.ask("GET", path)
        assert status == 200, (path, status, content)
        return content

    def upload(self, name: str, content: bytes, content_type: str = "image/png", *, category: str = "user") -> dict[str, Any]:
        """Put a picture into the gallery."""
        body, kind = multipart(name, content, content_type)
        path = f"/api/v1/images/upload?image_category={category}&is_intermediate=false"
        status, answer = self.ask("POST", path, body, **{"Content-Type": kind})
        assert status == 201, (status, answer)
        return dict(answer)

    def upload_video(self, video: Path) -> tuple[int, dict[str, Any]]:
        """Put an MP4 of any size into the gallery, read as it goes; status and answer."""
        head, tail, kind = multipart_edges(video.name, "video/mp4")
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=300)
        try:
            connection.putrequest("POST", "/api/v1/videos/upload?video_category=user&is_intermediate=false")
            connection.putheader("Authorization", f"Bearer {self.token}")
            connection.putheader("Content-Type", kind)
            connection.putheader("Content-Length", str(len(head) + video.stat().st_size + len(tail)))
            connection.endheaders(head)
            with video.open("rb") as file:
                while block := file.read(1 << 20):
                    connection.send(block)
            connection.send(tail)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()


def multipart(name: str, content: bytes, content_type: str) -> tuple[bytes, str]:
    """One file as a form sends it: body and content type."""
    head, tail, kind = multipart_edges(name, content_type)
    return head + content + tail, kind


def multipart_edges(name: str, content_type: str) -> tuple[bytes, bytes, str]:
    """What goes before and after the file, and the content type of it all."""
    edge = "----saas-tests"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: {content_type}\r\n\r\n'
    return head.encode(), f"\r\n--{edge}--\r\n".encode(), f"multipart/form-data; boundary={edge}"
