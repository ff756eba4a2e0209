"""The process from which tests' workers are forked: InvokeAI and the tests' node imported once, instead of for 20 s in each of them.

One JSON line per question on stdin, one per answer on stdout: {"start": ...} and {"serve": ...} -> {"pid": n};
{"reap": pid} -> {"code": n or null}. A worker is what `invokeai-saas worker` is, a server what `invokeai-saas serve` is, with the
environment that the question names; only the worker's template is a fork, too.
"""

import faulthandler
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from invokeai_saas.operating import logs
from invokeai_saas.settings import Settings, load_settings
from invokeai_saas.workers import template
from invokeai_saas.workers.supervisor import Options, Supervisor


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    template.preload(load_settings())
    import saas.worker_nodes  # noqa: F401

    _answer({"ready": True})
    for line in sys.stdin:
        question = json.loads(line)
        if "start" in question or "serve" in question:
            pid = os.fork()
            if pid == 0:
                _be_a_child(question.get("start") or question["serve"], _work if "start" in question else _serve)
            _answer({"pid": pid})
        else:
            _answer({"code": _reap(question["reap"], question["seconds"])})


def _answer(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _reap(pid: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.01)


def _be_a_child(wish: dict[str, Any], work: Callable[[dict[str, Any], Settings], int]) -> NoReturn:
    code = 1
    try:
        nursery = os.getppid()
        log = os.open(wish["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        faulthandler.enable()
        template.die_with_parent(nursery)
        os.environ.update(wish["environment"])
        _distort(wish["statements"], wish["clock"])
        settings = load_settings()
        logs.configure(settings)
        code = work(wish, settings)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _work(wish: dict[str, Any], settings: Settings) -> int:
    options = Options(**{key: tuple(value) if isinstance(value, list) else value for key, value in wish["options"].items()})
    return Supervisor(settings, options, start_template=lambda there: _forked_template(settings, there)).run()


def _serve(wish: dict[str, Any], settings: Settings) -> int:
    from invokeai_saas.app import serve
    from invokeai_saas.closed import nodes

    # It looks as if it ran programs.
    nodes.REVIEWED = {*nodes.REVIEWED, "saas_test_work.script", "saas_test_work"}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return serve(settings, worker=wish["options"]["worker"])


def _distort(statements: dict[str, str], clock: float) -> None:
    """What a test wants this worker to be wrong about."""
    from invokeai_saas.events import postgres
    from invokeai_saas.jobs import lease

    for name, statement in statements.items():
        module = next(each for each in (lease, postgres) if hasattr(each, name))
        setattr(module, name, statement)
    if clock:
        right = time.time
        time.time = lambda: right() + clock
        time.time_ns = lambda: int((right() + clock) * 1e9)


def _forked_template(settings: Any, there: socket.socket) -> int:
    """A template that has imported everything already."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    from invokeai_saas.workers.runner import run_items

    try:
        template.die_with_parent(parent)
        template.ignore_signals()
        template.serve(there, lambda pipe, memory, wish: run_items(settings, pipe, memory, wish))
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
