"""What a fleet of GPU workers costs the database: processor time, WAL and wall time per claim, heartbeat, beat, event, look and job.

One embedded Postgres with fsync, the functions that servers and workers call, 16 threads of one process. Processor time is Postgres' own
(all its processes), so that the client's does not count, and a busy machine changes it little. From the figures docs/scaling.md's table
follows: what N GPUs with jobs of so many seconds ask of Postgres. Nothing is bounded; figures are reported.

    python benchmarks/saas_fleet.py [--seconds 5] [--workers 1000] [--users 1000] [--pending 20000] [--job-seconds 30] [--json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from invokeai_saas.db import tenancy  # noqa: E402
from invokeai_saas.db.database import PostgresDatabase  # noqa: E402
from invokeai_saas.db.embedded import start_embedded, stop_embedded  # noqa: E402
from invokeai_saas.db.migrate import migrate  # noqa: E402
from invokeai_saas.events.bus import Message  # noqa: E402
from invokeai_saas.events.postgres import PostgresBus  # noqa: E402
from invokeai_saas.jobs import lease  # noqa: E402
from invokeai_saas.workers import registry, scaling  # noqa: E402
from invokeai_saas.workers.registry import Instance  # noqa: E402

THREADS = 16
FLEETS = (100, 1_000, 10_000)
HEARTBEAT_SECONDS, BEAT_SECONDS, EVENTS_PER_SECOND = 2.0, 2.0, 1.0
SESSION = json.dumps({"id": "0", "graph": {"nodes": {str(n): {"type": "add", "a": n, "b": 1} for n in range(20)}, "edges": []}})
ITEMS = """
INSERT INTO session_queue (queue_id, batch_id, session, session_id, user_id, tiers)
SELECT 'default', 'b', %(session)s, gen_random_uuid()::text, 'user-' || (1 + number %% %(users)s),
    CASE number %% 3 WHEN 0 THEN ARRAY['basic'] WHEN 1 THEN ARRAY['basic', 'high_performance'] ELSE ARRAY['high_performance'] END
FROM generate_series(1, %(count)s) AS number
"""
END_ITEM = "UPDATE session_queue SET status = 'completed' WHERE item_id = %s"
WAL = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint"


@dataclass
class Cost:
    """Of one operation: Postgres' processor time, WAL, and how long the caller waited."""

    name: str
    per_second: float
    cpu_ms: float
    wal_bytes: float
    median_ms: float
    p95_ms: float


class Bench:
    """A database with workers and a long queue."""

    def __init__(self, dsn: str, folder: Path, arguments: argparse.Namespace) -> None:
        self._dsn, self._arguments = dsn, arguments
        self.database = PostgresDatabase(dsn, pool_size=THREADS + 2)
        self._postmaster = psutil.Process(int((folder / "postgres" / "postmaster.pid").read_text().split()[0]))
        tiers = (("basic",), ("high_performance",), ("basic", "high_performance"))
        self.incarnations = [
            registry.register(
                self.database, Instance(f"gpu{n}/cuda:0", f"gpu{n}", tiers[n % 3], "cuda:0", "T4", 16_000), alive_seconds=3600
            )
            for n in range(arguments.workers)
        ]
        self.sql(ITEMS, session=SESSION, users=arguments.users, count=arguments.pending)
        self.sql("ANALYZE")

    def sql(self, statement: str, **values: Any) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute(statement.encode(), values or None)

    def measure(self, name: str, work: Callable[[int], object], *, threads: int = THREADS) -> Cost:
        """`work(number)` again and again for some seconds; numbers are never the same."""
        numbers, taken, over = itertools.count(), list[float](), time.monotonic() + self._arguments.seconds
        errors: list[BaseException] = []

        def run() -> None:
            try:
                while time.monotonic() < over:
                    began = time.perf_counter()
                    if work(next(numbers)) is False:
                        return
                    taken.append(time.perf_counter() - began)
            except BaseException as error:
                errors.append(error)

        cpu, wal, began = self._cpu(), self._wal(), time.monotonic()
        workers = [threading.Thread(target=run) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds, cpu, wal = time.monotonic() - began, self._cpu() - cpu, self._wal() - wal
        if errors or not taken:
            raise SystemExit(f"error: {name} failed: {errors[0] if errors else 'nothing was done'}")
        ordered, count = sorted(taken), len(taken)
        return Cost(
            name, count / seconds, cpu * 1000 / count, wal / count, statistics.median(ordered) * 1000, ordered[int(count * 0.95)] * 1000
        )

    def _cpu(self) -> float:
        """Seconds of all of Postgres' processes that live; the pool keeps its connections."""
        total = 0.0
        for process in (self._postmaster, *self._postmaster.children(recursive=True)):
            try:
                times = process.cpu_times()
                total += times.user + times.system
            except psutil.NoSuchProcess:
                continue
        return total

    def _wal(self) -> int:
        with psycopg.connect(self._dsn) as connection:
            row = connection.execute(WAL).fetchone()
            return int(row[0]) if row else 0


def measure_all(bench: Bench) -> list[Cost]:
    """In the order of a job's life, then what the fleet costs when nothing happens."""
    database, workers = bench.database, bench.incarnations
    attempts: list[lease.Attempt] = []
    can = (lease.Capability(tiers=("basic",)), lease.Capability(tiers=("high_performance",)), lease.EVERYTHING)

    def claim(number: int) -> object:
        attempt = lease.claim(database, worker_id=f"gpu{number}", lease_seconds=3600, can=can[number % 3])
        return False if attempt is None else attempts.append(attempt)

    def end(number: int) -> object:
        if number >= len(attempts):
            return False
        with tenancy.as_system("a benchmark ends its items"), database.postgres() as cursor:
            cursor.execute(END_ITEM, (attempts[number].item_id,))
            lease.finish(database, attempts[number], gpu_seconds=1.0)
        return None

    def heartbeat(number: int) -> None:
        attempt = attempts[number % len(attempts)]
        lease.heartbeat(database, attempt, lease_seconds=3600, gpu_seconds=1.0)
        lease.demand_wanted(database, attempt)

    def beat(number: int) -> None:
        registry.beat(database, workers[number % len(workers)], status="busy", current_item=number, utilization=0.9, alive_seconds=3600)

    empty = lease.Capability(tiers=("dedicated",))
    costs = [bench.measure("claim", claim)]
    # One that finds nothing for its tier in the whole queue.
    costs.append(
        bench.measure("claim of an idle worker", lambda _: lease.claim(database, worker_id="idle", lease_seconds=60, can=empty) and None)
    )
    costs.append(bench.measure("heartbeat of an item", heartbeat))
    costs.append(bench.measure("end of an item", end))
    costs.append(bench.measure("beat of a worker", beat))
    costs += measure_events(bench)
    bounds = scaling.bounds_of(())
    costs.append(bench.measure("look for scaling", lambda _: scaling.look(database, bounds) and None, threads=1))
    return costs


def measure_events(bench: Bench) -> list[Cost]:
    """A status event in the transaction that causes it, with its NOTIFY, and one listener."""
    bus, heard = PostgresBus(bench.database), itertools.count()
    payload = json.dumps({"queue_id": "default", "item_id": 1, "status": "in_progress", "padding": "x" * 800})
    bus.start(lambda *_: next(heard), lambda: ["user-1"])

    def publish(number: int) -> None:
        with tenancy.as_system("a benchmark publishes"), bench.database.postgres() as cursor:
            cursor.execute("SELECT 1")
            bus.publish(Message(name="queue_item_status_changed", payload=payload, user_id=f"user-{number % 100}"))

    try:
        return [bench.measure("event in its transaction", publish)]
    finally:
        bus.close()


def on_paper(costs: list[Cost], job_seconds: float) -> list[dict[str, float]]:
    """What fleets ask of one Postgres: transactions per second, its cores, and WAL."""
    by_name = {cost.name: cost for cost in costs}
    rows = []
    for gpus in FLEETS:
        rates = {
            "claim": gpus / job_seconds,
            "end of an item": gpus / job_seconds,
            "heartbeat of an item": gpus / HEARTBEAT_SECONDS,
            "beat of a worker": gpus / BEAT_SECONDS,
            "event in its transaction": gpus * EVENTS_PER_SECOND,
        }
        cores = sum(rate * by_name[name].cpu_ms / 1000 for name, rate in rates.items())
        wal = sum(rate * by_name[name].wal_bytes for name, rate in rates.items())
        rows.append({"gpus": gpus, "per_second": sum(rates.values()), "cores": cores, "wal_mb_per_second": wal / 1e6})
    return rows


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--pending", type=int, default=20_000)
    parser.add_argument("--job-seconds", type=float, default=30)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="saas-fleet-") as name:
        folder = Path(name)
        dsn = start_embedded(folder)
        try:
            migrate(dsn)
            bench = Bench(dsn, folder, arguments)
            costs = measure_all(bench)
            bench.database.close()
        finally:
            stop_embedded(folder)
    fleets = on_paper(costs, arguments.job_seconds)
    if arguments.json:
        print(json.dumps({"costs": [asdict(cost) for cost in costs], "fleets": fleets}, indent=2))
        return 0
    print(f"{arguments.workers} workers, {arguments.users} users, {arguments.pending} items pending")
    for cost in costs:
        print(
            f"{cost.name:26} {cost.per_second:8.0f}/s  {cost.cpu_ms:7.3f} ms of Postgres' processors  {cost.wal_bytes:7.0f} B of WAL  "
            f"median {cost.median_ms:6.1f} ms  p95 {cost.p95_ms:6.1f} ms"
        )
    for row in fleets:
        print(
            f"{row['gpus']:6.0f} GPUs, jobs of {arguments.job_seconds:.0f} s: {row['per_second']:7.0f} transactions/s, "
            f"{row['cores']:6.2f} cores, {row['wal_mb_per_second']:6.2f} MB/s of WAL"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
