"""What it costs to get an item to a worker and its result into the books: items per second of a graph that is one cheap node.

Stock InvokeAI, one process on SQLite, against our server without a worker inside and 1, 2 and 4 `invokeai-saas worker --devices cpu`, on
one machine in one run; the blocks alternate. In every block items are enqueued while nobody works (stock: paused; ours: drained), then all
workers begin, and the clock runs until the last item has ended. Reported: items per second, and what an item costs beyond stock
InvokeAI. No bound: a real item computes for seconds to minutes. On few cores workers, server and Postgres share what there is.

    python benchmarks/saas_dispatch.py [--items 300] [--stock-items 40] [--rounds 3] [--workers 1,2,4] [--users 6] [--wakeups procrastinate]
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests"), str(Path(__file__).resolve().parents[1])]

from live_server import Server, make_environment  # noqa: E402
from saas.live_saas import Person, SaasServer  # noqa: E402
from saas.people import rows  # noqa: E402

PASSWORD = "Right-Horse-7"
ENQUEUE, STATUS = "/api/v1/queue/default/enqueue_batch", "/api/v1/queue/default/status"
START_SECONDS, BLOCK_SECONDS = 600.0, 600.0
# Of one block of ours: from when the last worker had begun (each sees within two seconds that it may) to the end of the last item.
PACE = """
WITH mine AS (SELECT worker_id, started_at, ended_at FROM job_attempts WHERE item_id > %s),
     begun AS (SELECT max(first) AS at, count(*) AS workers FROM (SELECT min(started_at) AS first FROM mine GROUP BY worker_id) AS firsts)
SELECT begun.workers, (SELECT count(*) FROM mine) AS attempts, count(*) AS items,
       extract(epoch FROM max(ended_at) - begun.at)::float AS seconds
FROM mine, begun WHERE mine.ended_at > begun.at GROUP BY begun.workers, begun.at
"""
OPEN = "SELECT count(*) AS items FROM session_queue WHERE item_id > %s AND status NOT IN ('completed', 'failed', 'canceled')"
FAILED = "SELECT count(*) AS items FROM session_queue WHERE item_id > %s AND status <> 'completed'"
NEWEST = "SELECT COALESCE(max(item_id), 0) AS item_id FROM session_queue"
HALT = "UPDATE gpu_instances SET wanted = %s WHERE status <> 'terminated'"
READY = "SELECT count(*) AS workers FROM gpu_instances WHERE status = ANY(%s) AND alive_until > clock_timestamp()"


@dataclass
class Side:
    """Seconds per item of each block."""

    name: str
    seconds: list[float] = field(default_factory=list)

    def report(self, stock: Side | None) -> None:
        """One line."""
        each = statistics.median(self.seconds)
        more = "" if stock is None else f", {1000 * (each - statistics.median(stock.seconds)):+6.1f} ms an item against stock"
        spread = f"{1 / max(self.seconds):.1f} to {1 / min(self.seconds):.1f}"
        print(f"{self.name:10} {1 / each:7.1f} items/s ({spread}), {1000 * each:6.1f} ms an item{more}", flush=True)


def batch(items: int) -> dict[str, Any]:
    """So many items of one node that adds nothing to a number."""
    graph = {"id": "g", "nodes": {"n": {"id": "n", "type": "integer", "value": 1, "use_cache": False}}, "edges": []}
    return {"batch": {"graph": graph, "runs": items}, "prepend": False}


def stock_block(server: Server, token: str, items: int) -> float:
    """Seconds per item."""
    ask(server.url, token, "PUT", "/api/v1/queue/default/processor/pause")
    ask(server.url, token, "POST", ENQUEUE, batch(items))
    began = time.time()
    ask(server.url, token, "PUT", "/api/v1/queue/default/processor/resume")
    until(lambda: count_open(ask(server.url, token, "GET", STATUS)) == 0, every=0.25)
    took = time.time() - began
    ask(server.url, token, "PUT", "/api/v1/queue/default/clear")
    return took / items


def count_open(status: dict[str, Any]) -> int:
    """Items that are not done."""
    queue = status["queue"]
    return int(queue["pending"]) + int(queue["in_progress"])


def our_block(server: SaasServer, people: list[Person], workers: int, items: int) -> float:
    """Seconds per item."""
    with server.database() as database:
        rows(database, HALT, "drain")
        until(lambda: rows(database, READY, ["draining"])[0]["workers"] >= workers)
        newest = rows(database, NEWEST)[0]["item_id"]
        for person in people:
            status, answer = person.ask("POST", ENQUEUE, batch(items // len(people)))
            assert status == 201 or status == 200, answer
        rows(database, HALT, None)
        until(lambda: rows(database, OPEN, newest)[0]["items"] == 0, every=0.25)
        assert rows(database, FAILED, newest)[0]["items"] == 0
        pace = rows(database, PACE, newest)[0]
        expected = items // len(people) * len(people)
        assert pace["attempts"] == expected, f"expected {expected} attempts, got {pace['attempts']}"
        assert pace["workers"] == workers, f"expected {workers} workers to take part, got {pace['workers']}: more --items"
        return float(pace["seconds"] / pace["items"])


@contextmanager
def workers_of(server: SaasServer, count: int) -> Iterator[None]:
    """So many worker processes beside a server, ready."""
    started = [start_worker(server, number) for number in range(count)]
    try:
        with server.database() as database:
            until(lambda: _ended(started) or rows(database, READY, ["available", "busy"])[0]["workers"] >= count, seconds=START_SECONDS)
        if _ended(started):
            raise RuntimeError("a worker ended: " + (server.folder / "worker-0.log").read_text()[-2000:])
        yield
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
        for process in started:
            process.wait()


def _ended(processes: list[subprocess.Popen[bytes]]) -> bool:
    return any(process.poll() is not None for process in processes)


def start_worker(server: SaasServer, number: int) -> subprocess.Popen[bytes]:
    """`invokeai-saas worker` on the embedded database of a server that runs."""
    with (server.folder / f"worker-{number}.log").open("ab") as log:
        return server.run("worker", "--devices", "cpu", "--name", f"bench-{number}", output=log)


def ask(url: str, token: str, method: str, path: str, body: Any = None) -> Any:
    """A request to stock InvokeAI that must succeed."""
    request = urllib.request.Request(url + path, data=None if body is None else json.dumps(body).encode(), method=method)
    request.add_header("Authorization", f"Bearer {token}")
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.loads(response.read() or b"null")


def until(holds: Callable[[], bool], *, seconds: float = BLOCK_SECONDS, every: float = 0.05) -> None:
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise RuntimeError(f"expected an end within {seconds:.0f} s, got none")
        time.sleep(every)


def stock_token(server: Server) -> str:
    """Its first administrator signs in."""
    account = {"email": "admin@localhost", "password": PASSWORD}
    server.post("/api/v1/auth/setup", {**account, "display_name": "Admin"})
    return str(server.post("/api/v1/auth/login", {**account, "remember_me": True})["token"])


def main() -> int:
    """Start both, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=300, help="of one block of ours")
    parser.add_argument("--stock-items", type=int, default=40, help="of one block of stock, which takes most of a second for each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", default="1,2,4", help="how many at a time, commas between")
    parser.add_argument("--users", type=int, default=6, help="whose items take turns")
    parser.add_argument("--wakeups", default="procrastinate", help="as SAAS_WAKEUPS")
    asked = parser.parse_args()
    crews = [int(word) for word in asked.workers.split(",")]
    variables = {"SAAS_WAKEUPS": asked.wakeups, "SAAS_LOG_LEVEL": "warning"}
    stock = Side("stock")
    ours = {count: Side(f"{count} worker{'s' if count > 1 else ''}") for count in crews}
    with tempfile.TemporaryDirectory(prefix="saas-dispatch-") as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        environment = make_environment(folder / "environment", wheel=None)
        stock_server = stack.enter_context(Server(environment, folder / "stock", variables={"INVOKEAI_MULTIUSER": "true"}))
        server = stack.enter_context(SaasServer(folder / "ours", variables=variables, arguments=("--no-worker",)))
        token = stock_token(stock_server)
        people = [server.person(f"bench-{number}@example.org") for number in range(asked.users)]
        stock_block(stock_server, token, 10)
        for count in crews:
            with workers_of(server, count):
                our_block(server, people, count, 60)
                for _ in range(asked.rounds):
                    stock.seconds.append(stock_block(stock_server, token, asked.stock_items))
                    ours[count].seconds.append(our_block(server, people, count, asked.items))
    stock.report(None)
    for side in ours.values():
        side.report(stock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
