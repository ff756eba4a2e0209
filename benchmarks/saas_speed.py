"""What tenants cost: the same requests to stock InvokeAI on SQLite and to our server, on one machine in one run.

Both run with several users and the same pictures in the gallery. The blocks of requests alternate between the two; of every kind of
request, at 1 and at 32 clients, prints p50 and p95 in ms and their ratios (bounds: 1.5 at 1 client, 1.3 at 32; the goal is below 1).

    python benchmarks/saas_speed.py [--rounds 5] [--requests 60] [--pictures 200]
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests")]

from live_server import Server, make_environment  # noqa: E402
from saas.live_saas import SaasServer, multipart  # noqa: E402

PASSWORD = "Right-Horse-7"
CLIENTS = (1, 32)
BOUNDS = {1: 1.5, 32: 1.3}
JSON = {"Content-Type": "application/json"}


@dataclass
class Side:
    """One of the two servers: where it listens, who asks, and how long the answers took, by request and clients."""

    name: str
    port: int
    token: str
    seconds: dict[tuple[str, int], list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What a client sends again and again."""

    name: str
    method: str
    path: str
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)


def requests() -> list[Request]:
    """The four that a gallery and a queue live from."""
    picture = io.BytesIO()
    Image.effect_noise((512, 512), 40).convert("RGB").save(picture, "PNG")
    form, kind = multipart("speed.png", picture.getvalue(), "image/png")
    graph = {"id": "g", "nodes": {"n": {"id": "n", "type": "integer", "value": 1}}, "edges": []}
    batch = json.dumps({"batch": {"graph": graph, "runs": 1}, "prepend": False}).encode()
    return [
        Request("image list", "GET", "/api/v1/images/?limit=100&offset=0&is_intermediate=false"),
        Request("image upload", "POST", "/api/v1/images/upload?image_category=user&is_intermediate=false", form, {"Content-Type": kind}),
        Request("enqueue", "POST", "/api/v1/queue/default/enqueue_batch", batch, JSON),
        Request("queue status", "GET", "/api/v1/queue/default/status"),
    ]


def measure(side: Side, request: Request, *, clients: int, count: int) -> None:
    """Send `count` requests over `clients` connections that stay open, and note each answer's seconds."""
    taken: list[float] = []
    gate = threading.Barrier(clients)
    failures: list[str] = []

    def client(share: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", side.port, timeout=120)
        connection.connect()
        gate.wait()
        for _ in range(share):
            seconds, problem = _ask(connection, side, request)
            taken.append(seconds)
            if problem:
                failures.append(problem)
                return
        connection.close()

    threads = [threading.Thread(target=client, args=(max(1, count // clients),)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(f"{side.name}: expected every {request.name} to succeed, got: {failures[0]}")
    side.seconds.setdefault((request.name, clients), []).extend(taken)


def _ask(connection: http.client.HTTPConnection, side: Side, request: Request) -> tuple[float, str | None]:
    headers = {"Authorization": f"Bearer {side.token}", **request.headers}
    started = time.perf_counter()
    connection.request(request.method, request.path, request.body, headers)
    answer = connection.getresponse()
    content = answer.read()
    return time.perf_counter() - started, None if answer.status < 300 else f"{answer.status} {content[:300]!r}"


def compare(stock: Side, ours: Side, *, rounds: int, count: int) -> bool:
    """Measure in alternating blocks and print; whether every ratio is within its bound."""
    within = True
    for clients in CLIENTS:
        for request in requests():
            for turn in range(rounds):
                for side in (stock, ours) if turn % 2 else (ours, stock):
                    measure(side, request, clients=clients, count=max(count, 4 * clients))
            within &= _report(stock, ours, request.name, clients)
    return within


def _report(stock: Side, ours: Side, name: str, clients: int) -> bool:
    p50, p95 = (
        tuple(_percentile(side.seconds[name, clients], part) * 1000 for side in (stock, ours)) for part in (0.50, 0.95)
    )
    ratios = p50[1] / p50[0], p95[1] / p95[0]
    print(
        f"{name:13} {clients:3} clients: p50 {p50[0]:7.1f} -> {p50[1]:7.1f} ms, ratio {ratios[0]:.2f};"
        f"  p95 {p95[0]:7.1f} -> {p95[1]:7.1f} ms, ratio {ratios[1]:.2f}  (bound {BOUNDS[clients]})",
        flush=True,
    )
    return max(ratios) <= BOUNDS[clients]


def _percentile(values: list[float], part: float) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[round(part * 100) - 1]


def stock_side(server: Server) -> Side:
    """Its first administrator signs in."""
    account = {"email": "admin@localhost", "password": PASSWORD}
    server.post("/api/v1/auth/setup", {**account, "display_name": "Admin"})
    token = server.post("/api/v1/auth/login", {**account, "remember_me": True})["token"]
    return Side("stock", server.port, token)


def main() -> int:
    """Start both, fill both galleries, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=60, help="of one block, over all its clients")
    parser.add_argument("--pictures", type=int, default=200, help="in either gallery before the first measurement")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="saas-speed-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        environment = make_environment(folder / "environment", wheel=None)
        stock_server = Server(environment, folder / "stock", variables={"INVOKEAI_MULTIUSER": "true"})
        with stock_server, SaasServer(folder / "ours") as our_server:
            stock, ours = stock_side(stock_server), Side("ours", our_server.port, our_server.admin().token)
            for side in (stock, ours):
                # Requests are measured, not the nodes that would run beside them.
                measure(side, Request("pause", "PUT", "/api/v1/queue/default/processor/pause"), clients=1, count=1)
                measure(side, requests()[1], clients=1, count=arguments.pictures)
                side.seconds.clear()
            return 0 if compare(stock, ours, rounds=arguments.rounds, count=arguments.requests) else 1


if __name__ == "__main__":
    sys.exit(main())
