"""The end of a process: what runs is finished, what is new is refused, the exit code says whether all went in order."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from invokeai_saas.operating.shutdown import Shutdown

SCRIPT = Path(__file__).parent / "operated_process.py"
TESTS = SCRIPT.parents[1]


@contextmanager
def server(dsn, *, worker_seconds=0.0, drain_seconds=0.0, grace_seconds=10):
    """A process that answers; killed at the end if it still lives."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(SCRIPT), dsn, str(worker_seconds), str(drain_seconds), str(grace_seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        deadline = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"{url}/healthz")
                break
            except httpx.TransportError:
                assert process.poll() is None and time.monotonic() < deadline, "the server did not start"
                time.sleep(0.05)
        yield process, url
    finally:
        process.kill()
        process.wait()


def end_of(process):
    """What it printed until it ended, and its exit code."""
    said, _ = process.communicate(timeout=350)
    return said, process.returncode


def slow_request(url, seconds, into):
    """A request that the server has begun and not ended when this returns; its status, or its error, goes `into`."""

    def get():
        try:
            into.append(httpx.get(f"{url}/api/v1/slow?seconds={seconds}", timeout=seconds + 60).status_code)
        except httpx.TransportError as error:
            into.append(error)

    thread = threading.Thread(target=get)
    thread.start()
    while httpx.get(f"{url}/api/v1/under-way", timeout=60).json() == 0:
        time.sleep(0.05)
    return thread


def test_a_running_request_is_finished_and_the_exit_code_is_0(dsn):
    answers = []
    with server(dsn) as (process, url):
        asking = slow_request(url, 3, answers)
        process.send_signal(signal.SIGTERM)
        said, code = end_of(process)
        asking.join()

    assert (answers, code) == ([200], 0)
    assert said.index("worker stopped") < said.index("pool closed") < said.index("threads that did not end: endless")
    assert said.endswith("exit functions ran\n")


def test_while_it_drains_the_balancer_is_told_and_requests_are_served(dsn):
    with server(dsn, drain_seconds=8) as (process, url):
        before = httpx.get(f"{url}/readyz").status_code
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        draining, served = httpx.get(f"{url}/readyz"), httpx.get(f"{url}/api/v1/items/a").status_code
        _, code = end_of(process)

    assert (before, draining.status_code, served, code) == (200, 503, 200, 0)
    assert draining.json()["parts"]["process"] == "shutting down"


def test_the_worker_is_waited_for(dsn):
    with server(dsn, worker_seconds=1.5) as (process, _url):
        process.send_signal(signal.SIGTERM)
        said, code = end_of(process)

    assert "worker stopped" in said and code == 0


def test_a_worker_that_does_not_stop_holds_the_end_up_no_longer_than_the_grace(dsn):
    with server(dsn, worker_seconds=400, grace_seconds=1) as (process, _url):
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        said, code = end_of(process)

    assert "pool closed" in said and "worker stopped" not in said.replace("did not stop", "")
    assert code == 1 and time.monotonic() - started < 300


def test_a_request_longer_than_the_grace_is_cut_off(dsn):
    answers = []
    with server(dsn, grace_seconds=1) as (process, url):
        asking = slow_request(url, 60, answers)
        process.send_signal(signal.SIGTERM)
        _, code = end_of(process)
        asking.join()

    assert code == 0 and answers != [200]


def test_a_second_signal_ends_the_wait(dsn):
    answers = []
    with server(dsn, grace_seconds=400) as (process, url):
        asking = slow_request(url, 390, answers)
        started = time.monotonic()
        # Two that come while a busy process looks away are one.
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        asking.join()

    # Far from the request's end, on a machine however busy.
    assert time.monotonic() - started < 300


def test_the_logs_of_a_real_server_are_json_lines_without_queries(dsn):
    with server(dsn) as (process, url):
        httpx.get(f"{url}/api/v1/items/ann?token=TOPSECRET", headers={"X-Request-ID": "r-1"})
        httpx.get(f"{url}/api/v1/broken")
        process.send_signal(signal.SIGTERM)
        said, _ = end_of(process)
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]

    assert len(lines) == len(said.splitlines()) - len(["worker stopped", "pool closed", "exit functions ran"])
    (asked,) = [line for line in lines if line["logger"] == "invokeai_saas.access" and line.get("request_id") == "r-1"]
    assert (asked["route"], asked["status"], asked["user_id"]) == ("/api/v1/items/{name}", 200, "user-ann")
    # uvicorn's line about the error, from its own logger, with our redaction and its traceback inside.
    (failed,) = [line for line in lines if line["logger"] == "uvicorn.error" and "exception" in line]
    assert "RuntimeError" in failed["exception"]
    assert "TOPSECRET" not in said and "abcdefghijk" not in said


def test_work_is_told_to_stop_once():
    stopped = []
    shutdown = Shutdown(grace_seconds=5, stop_work=lambda: stopped.append(True))
    shutdown.begin()
    shutdown.begin()

    assert (shutdown.finish(), stopped) == (True, [True])


@pytest.mark.parametrize("fails", ["work", "close"])
def test_a_step_that_fails_keeps_no_other_from_running(fails):
    closed = []

    def fail():
        raise OSError("no")

    steps = {"work": (fail, []), "close": (None, [fail])}
    stop_work, first = steps[fails]
    shutdown = Shutdown(grace_seconds=5, stop_work=stop_work, close=[*first, lambda: closed.append("pool")])

    assert (shutdown.finish(), closed) == (False, ["pool"])


@pytest.mark.parametrize("begun", [True, False])
def test_draining_begins_with_the_first_signal(begun):
    shutdown = Shutdown(grace_seconds=1)
    if begun:
        shutdown.begin()

    assert shutdown.draining() is begun
