"""Web processes of a deployment for tests: `invokeai-saas serve --no-worker`, forked from the nursery, on one database and one store.

    with Deployment(nursery, cluster.clone(), folder) as there:
        web = there.web()                 # a SaasServer
        there.worker()                    # beside it, `invokeai-saas worker`
        ann = there.person("ann@example.org")          # their password is known; sign_in() at any web process
"""

import contextlib
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saas.ears import Ears
from saas.live_saas import Person, SaasServer
from saas.worker_fleet import Nursery, Worker, as_address

from invokeai_saas.accounts import operator
from invokeai_saas.accounts.model import Accounts, Role
from invokeai_saas.db.database import PostgresDatabase

# What NOTIFY is in a process whose notifications all get lost.
UNSAID = {"NOTIFY": "SELECT %s::text[], %s::text[]"}


class ForkedProcess:
    """As much of a Popen as SaasServer uses."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery, self.pid = nursery, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._reaped(0)

    def wait(self, timeout: float = 30) -> int:
        code = self._reaped(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("serve", timeout)
        return code

    def _reaped(self, seconds: float) -> int | None:
        if self.returncode is None:
            self.returncode = self._nursery.ask({"reap": self.pid, "seconds": seconds})["code"]
        return self.returncode

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(9)


class WebProcess(SaasServer):
    """One `invokeai-saas serve --no-worker`."""

    def __init__(self, nursery: Nursery, dsn: str, folder: Path, *, statements: dict[str, str], variables: dict[str, str]) -> None:
        super().__init__(folder, variables=variables)
        self._nursery, self._dsn, self._statements = nursery, dsn, statements

    def launch(self) -> None:
        """Fork it."""
        environment = {
            "DATABASE_URL": as_address(self._dsn),
            "SAAS_DATA_DIR": str(self.folder),
            "SAAS_PORT": str(self.port),
            "SAAS_PUBLIC_URL": self.url,
            "SAAS_METERING": "off",
            "SAAS_LOG_FORMAT": "text",
            **self.variables,
        }
        wish = {
            "environment": environment, "options": {"worker": False}, "log": str(self.log_file), "statements": self._statements, "clock": 0,
        }  # fmt: skip
        self.process = ForkedProcess(self._nursery, self._nursery.ask({"serve": wish})["pid"])  # type: ignore[assignment]


@dataclass
class Deployment:
    """Web processes and workers on one database and one folder. Closed at the end, processes and sockets."""

    nursery: Nursery
    dsn: str
    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    statements: dict[str, str] = field(default_factory=dict)
    webs: list[WebProcess] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)
    sockets: list[Ears] = field(default_factory=list)

    def __enter__(self) -> "Deployment":
        self.folder.mkdir(parents=True, exist_ok=True)
        self.database = PostgresDatabase(self.dsn, pool_size=2)
        return self

    def web(self) -> WebProcess:
        """One more, ready."""
        made = WebProcess(self.nursery, self.dsn, self.folder, statements=self.statements, variables=self.variables)
        made.start()
        self.webs.append(made)
        return made

    def worker(self, **options: Any) -> Worker:
        """One more; it may not be ready yet."""
        settings = {name.removeprefix("SAAS_").lower(): value for name, value in self.variables.items()}
        made = self.nursery.worker(self.dsn, self.folder, statements=self.statements, options=options, **settings)
        self.workers.append(made)
        return made

    def add(self, email: str, *, role: Role = "user") -> str:
        """An account; its password."""
        password = operator.add(Accounts(self.database), email=email, role=role)
        assert password is not None
        return password

    def listen(self, person: Person, at: WebProcess) -> Ears:
        """A socket of this person at that web process."""
        ears = Ears(person, at)
        self.sockets.append(ears)
        return ears

    def __exit__(self, *_: object) -> None:
        for web in self.webs:
            # An orderly end is tested elsewhere.
            web.kill()
        for ears in self.sockets:
            ears.close()
        for worker in self.workers:
            worker.end()
        self.database.close()


def work(script: str, runs: int = 1) -> dict[str, Any]:
    """A batch of the tests' node."""
    node = {"id": "work", "type": "saas_test_work", "script": script, "is_intermediate": False, "use_cache": False}
    return {"batch": {"graph": {"nodes": {"work": node}, "edges": []}, "runs": runs}, "prepend": False}


