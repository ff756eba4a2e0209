"""Real GPU workers for tests, without a GPU: forked from one process that has InvokeAI (worker_nursery.py), on a test's own database.

    with nursery() as made:
        worker = made.worker(dsn, folder)          # `invokeai-saas worker --devices cpu`: supervisor, template, runner
        item = enqueue(database, "ann", "sleep 1; save")

What a server's background does is done by Server: it reaps and puts files right, every few tenths of a second.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil
from psycopg.conninfo import conninfo_to_dict
from saas.patience import PATIENCE_SECONDS, until
from saas.people import rows

from invokeai_saas.accounts.model import Accounts
from invokeai_saas.billing import by_hand
from invokeai_saas.credits import service
from invokeai_saas.credits.model import JobHold
from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.jobs import lease
from invokeai_saas.jobs.reaper import reap
from invokeai_saas.storage.files import Files

ROOT = Path(__file__).resolve().parents[2]
INSERT = """
INSERT INTO session_queue (queue_id, batch_id, session, session_id, user_id, device, tiers)
VALUES ('default', 'b', %s, %s, %s, NULL, %s) RETURNING item_id
"""
_DROPPED = ("PYTHON", "INVOKEAI", "SAAS_", "DATABASE_", "S3_", "AWS_", "OTEL_", "STRIPE_")


class Worker:
    """One forked `invokeai-saas worker`."""

    def __init__(self, nursery: "Nursery", pid: int, log: Path) -> None:
        self._nursery, self.pid, self._log, self.code = nursery, pid, log, None

    def signal(self, number: int) -> None:
        """To the supervisor only."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL; its processes die with it."""
        self.signal(signal.SIGKILL)
        self.wait(PATIENCE_SECONDS)

    def wait(self, seconds: float) -> int | None:
        """Its exit code, None when it still runs."""
        if self.code is None:
            self.code = self._nursery.ask({"reap": self.pid, "seconds": seconds})["code"]
        return self.code

    def processes(self) -> list[psutil.Process]:
        """The supervisor, its template, and the runners."""
        supervisor = psutil.Process(self.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def runners(self) -> list[int]:
        """Process numbers of the runners."""
        return [process.pid for template in psutil.Process(self.pid).children() for process in template.children()]

    def log(self) -> str:
        """What it said."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def story(self) -> str:
        """What it said, and how it ended."""
        return f"{self.log()}\n(exit code {self.wait(0)})"

    def await_log(self, text: str, *, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until it has said something."""
        until(lambda: text in self.log(), f"{text!r} in the worker's log", seconds=seconds, told=self.story)

    def end(self) -> None:
        """Whatever is left of it."""
        if self.code is None:
            self.kill()


class Nursery:
    """The preloaded process; `worker` forks from it."""

    def __init__(self, folder: Path) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(_DROPPED)}
        ours = {
            "PYTHONPATH": f"{ROOT}:{ROOT / 'patches'}:{ROOT / 'tests'}",
            "SAAS_DATA_DIR": str(folder / "nursery"),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self._folder, self._workers = folder, list[Worker]()
        self._log = (folder / "nursery.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker_nursery.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**kept, **ours},
            cwd=folder,
        )
        self._lock = threading.Lock()
        assert self._answer() == {"ready": True}

    def worker(
        self,
        dsn: str,
        folder: Path,
        *,
        options: dict[str, Any] | None = None,
        statements: dict[str, str] | None = None,
        clock: float = 0.0,
        **variables: Any,
    ) -> Worker:
        """A worker of the CPU on this database, its files under `folder`; `variables` are settings without SAAS_.

        `statements` replace those of jobs/lease.py and events/postgres.py; `clock` is how many seconds its clock is off.
        """
        environment = {
            "DATABASE_URL": as_address(dsn),
            "SAAS_DATA_DIR": str(folder),
            "SAAS_METERING": "off",
            "SAAS_LOG_FORMAT": "text",
            **{f"SAAS_{name.upper()}": str(value) for name, value in variables.items()},
        }
        (folder / "invokeai" / "models").mkdir(parents=True, exist_ok=True)
        log = self._folder / f"worker-{len(self._workers)}-{time.monotonic_ns()}.log"
        wish = {
            "environment": environment,
            "options": {"devices": ["cpu"], **(options or {})},
            "log": str(log),
            "statements": statements or {},
            "clock": clock,
        }
        made = Worker(self, self.ask({"start": wish})["pid"], log)
        self._workers.append(made)
        return made

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """One question, one answer."""
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.write((json.dumps(question) + "\n").encode())
            self._process.stdin.flush()
            return self._answer()

    def end_workers(self) -> None:
        """Those of the last test."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def close(self) -> None:
        """End everything."""
        self.end_workers()
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(f"the nursery ended:\n{(self._folder / 'nursery.log').read_text()[-4000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Server:
    """What a server's background does for workers, in a thread: it reaps, and puts files right."""

    def __init__(self, database: PostgresDatabase, files: Files | None = None, *, every_seconds: float = 0.3) -> None:
        self._database, self._files, self._every, self._over = database, files, every_seconds, threading.Event()
        self.errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._over.wait(self._every):
            try:
                reap(self._database)
                if self._files is not None:
                    self._files.recover()
            except Exception as error:
                self.errors.append(error)


@contextmanager
def nursery(folder: Path) -> Iterator[Nursery]:
    """Takes half a minute to start, so one per session."""
    made = Nursery(folder)
    try:
        yield made
    finally:
        made.close()


def subscribe(accounts: Accounts, email: str, *, credits: int = 100_000) -> None:
    """A plan that allows everything, with credits."""
    by_hand.give(accounts, email=email, slug="enterprise", days=30, amount=credits, reason="tests of workers")


def enqueue(database: PostgresDatabase, owner: str, script: str, *, credits: int = 0, tiers: list[str] | None = None, **detail: Any) -> int:
    """An item of one node that does what `script` says (worker_nodes.py), with so many credits held."""
    node = {"id": "work", "type": "saas_test_work", "script": script, "is_intermediate": False, "use_cache": False}
    session_id = f"session-{time.monotonic_ns()}"
    session = {"id": session_id, "graph": {"id": f"graph-{session_id}", "nodes": {"work": node}, "edges": []}}
    with tenancy.as_system("a test enqueues"), database.postgres() as cursor:
        found = cursor.execute(INSERT, (json.dumps(session), session_id, owner, tiers)).fetchone()
        assert found is not None
        item = int(found["item_id"])
        if credits:
            books = {"action_type": "other", "model_used": "none", "lines": [{"times": 1}], "load_seconds": 0, **detail}
            service.hold(cursor, user_id=owner, amounts={item: JobHold(credits, 0, "basic", books)})
    return item


def cancel(database: PostgresDatabase, item: int) -> None:
    """What a server does when the owner cancels: the row, and the attempt, in one transaction."""
    with tenancy.as_system("a test cancels"), database.postgres() as cursor:
        cursor.execute("SELECT 1 FROM session_queue WHERE item_id = %s FOR UPDATE", (item,))
        lease.revoke(database, item)
        cursor.execute("UPDATE session_queue SET status = 'canceled' WHERE item_id = %s AND status IN ('pending', 'in_progress')", (item,))


def as_address(dsn: str) -> str:
    """A DSN in words as an address, as settings want it."""
    parts = conninfo_to_dict(dsn)
    name = parts.pop("dbname")
    return f"postgresql:///{name}?{urlencode({key: str(value) for key, value in parts.items()})}"


def status_of(database: PostgresDatabase, item: int) -> str:
    """The item's status."""
    return str(rows(database, "SELECT status FROM session_queue WHERE item_id = %s", item)[0]["status"])


def await_status(
    database: PostgresDatabase, item: int, *wanted: str, seconds: float = PATIENCE_SECONDS, told: Callable[[], str] = lambda: ""
) -> str:
    """Wait until the item has one of these statuses; which."""
    until(lambda: status_of(database, item) in wanted, f"item {item} to be {' or '.join(wanted)}", seconds=seconds, told=told)
    return status_of(database, item)
