"""What a hold of credits costs: 32 connections that hold, against 32 that insert one bare row each, on one server, in alternating blocks.

Both commit each of their transactions (fsync on), send it in one message through the same driver and prepare nothing. The hold is a
tenant's: the connection has the tenants' role, as the pool's have, the transaction enters the user's context, policies apply, the grant of
one of many users is updated, the hold is inserted. Prints transactions/s, p50, p95, p99 of each and the ratio (bound: 0.5); then, without
bound, the same for one user whose holds all wait for one row, and for users who draw from ten grants.

    python benchmarks/saas_credits.py [--rounds 9] [--seconds 2] [--connections 32]
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg.pq import ExecStatus

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from invokeai_saas.db.embedded import start_embedded, stop_embedded  # noqa: E402
from invokeai_saas.db.migrate import migrate  # noqa: E402

BOUND = 0.5
USERS = 1000
PROCESSES = 2
WARM = 20
BARE_TABLE = "CREATE TABLE bare (id bigint PRIMARY KEY, user_id text NOT NULL, amount integer NOT NULL)"
GRANTS = """
INSERT INTO credits (user_id, total_credits, available_credits, source, valid_from, valid_until)
SELECT 'user-' || number, %(credits)s, %(credits)s, 'purchase', now() - interval '1 minute', now() + interval '1 day' * part
FROM generate_series(1, %(users)s) AS number, generate_series(1, %(parts)s) AS part
"""
ITEMS = """
INSERT INTO session_queue (queue_id, batch_id, session, session_id, user_id)
SELECT 'default', 'b', '{}', gen_random_uuid()::text, 'user-' || (1 + number %% %(users)s) FROM generate_series(1, %(count)s) AS number
RETURNING item_id, user_id
"""
Commands = Iterator[bytes]


def bare_commands(start: int) -> Commands:
    """One row, one commit."""
    for number in itertools.count(start):
        yield b"INSERT INTO bare (id, user_id, amount) VALUES (%d, 'user-%d', 25)" % (number, 1 + number % USERS)


def hold_commands(items: list[tuple[int, str]]) -> Commands:
    """Each queue item's hold, as its owner: the context is entered and left with the statement, the role is the connection's."""
    template = b"SELECT set_config('app.current_user_id', '%s', true), credits_hold('%s', '{%d}', '{25}', '{}', '{}', '{}')"
    for item, user in items:
        yield template % (user.encode(), user.encode(), item)


def _client(dsn: str, options: str, commands: Commands, gate: Any, seconds: float, taken: list[float]) -> None:
    """A connection as a server's pool has it: it has done a few before."""
    with psycopg.connect(dsn, autocommit=True, options=options) as connection:
        for command in itertools.islice(commands, WARM):
            _send(connection, command)
        gate.wait()
        until = time.perf_counter() + seconds
        for command in commands:
            started = time.perf_counter()
            if started >= until:
                return
            _send(connection, command)
            taken.append(time.perf_counter() - started)
        raise RuntimeError("expected more queue items than the seconds need")


def _send(connection: psycopg.Connection[Any], command: bytes) -> None:
    result = connection.pgconn.exec_(command)
    if result.status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
        raise RuntimeError(result.error_message.decode())


def _process(dsn: str, options: str, shares: list[Any], make: Callable[[Any], Commands], gate: Any, seconds: float, out: Any) -> None:
    taken: list[list[float]] = [[] for _ in shares]
    threads = [
        threading.Thread(target=_client, args=(dsn, options, make(share), gate, seconds, mine))
        for share, mine in zip(shares, taken, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    out.put([each for mine in taken for each in mine])


def block(dsn: str, options: str, make: Callable[[Any], Commands], shares: list[Any], seconds: float) -> list[float]:
    """All shares at once, a connection each, for so many seconds; the seconds of every transaction."""
    out: Any = multiprocessing.Queue()
    gate = multiprocessing.Barrier(len(shares))
    workers = [
        multiprocessing.Process(target=_process, args=(dsn, options, shares[n::PROCESSES], make, gate, seconds, out))
        for n in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    found = [each for _ in workers for each in out.get()]
    for worker in workers:
        worker.join()
    return found


class Bench:
    """A database with many users, their grants, and queue items that wait for their holds."""

    def __init__(self, dsn: str, *, connections: int, seconds: float) -> None:
        self.dsn, self.connections, self.seconds, self._next = dsn, connections, seconds, 1
        self._owner = psycopg.connect(dsn, autocommit=True)
        self._owner.execute(BARE_TABLE)
        self._items: list[tuple[int, str]] = []

    def grant(self, *, users: int, parts: int, credits: int, blocks: int) -> None:
        """Every user gets so many grants of so many credits, and so many blocks' worth of items wait for holds."""
        self._owner.execute("TRUNCATE credits, credit_holds")
        self._owner.execute("DELETE FROM session_queue")
        self._owner.execute(GRANTS, {"users": users, "parts": parts, "credits": credits})
        count = blocks * self._per_block
        self._items = self._owner.execute(ITEMS, {"users": users, "count": count}).fetchall()
        for table in ("session_queue", "credits", "credit_holds"):
            self._owner.execute(f"VACUUM ANALYZE {table}".encode())

    def bare(self) -> list[float]:
        """The other side."""
        shares = [self._next + 10**6 * number for number in range(self.connections)]
        self._next += 10**6 * self.connections
        return self._block("", bare_commands, shares)

    def holds(self) -> list[float]:
        """Ours."""
        items, self._items = self._items[: self._per_block], self._items[self._per_block :]
        shares = [items[number :: self.connections] for number in range(self.connections)]
        return self._block("-c role=invokeai_app", hold_commands, shares)

    def _block(self, options: str, make: Callable[[Any], Commands], shares: list[Any]) -> list[float]:
        # What the preparations left to write is not this block's to pay.
        self._owner.execute("CHECKPOINT")
        return block(self.dsn, options, make, shares, self.seconds)

    @property
    def _per_block(self) -> int:
        return int(9000 * self.seconds) + (WARM + 1) * self.connections


def figures(name: str, seconds: float, taken: list[list[float]]) -> None:
    """Print the median of the blocks' rates, and the transactions' seconds."""
    rates = [len(each) / seconds for each in taken]
    cuts = statistics.quantiles([1000 * each for block in taken for each in block], n=100)
    print(f"{name:28} {statistics.median(rates):7.0f} tx/s   p50 {cuts[49]:6.2f}  p95 {cuts[94]:6.2f}  p99 {cuts[98]:6.2f} ms", flush=True)


def main() -> int:
    """Measure and print; 1 where the bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--connections", type=int, default=32)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="saas-bench-") as folder:
        dsn = start_embedded(Path(folder), database="bench")
        try:
            migrate(dsn)
            return _measure(Bench(dsn, connections=asked.connections, seconds=asked.seconds), asked.rounds)
        finally:
            stop_embedded(Path(folder))


def _measure(bench: Bench, rounds: int) -> int:
    bench.grant(users=USERS, parts=1, credits=10_000_000, blocks=rounds)
    bare, holds = [], []
    for turn in range(rounds):
        for side in ("bare", "hold") if turn % 2 else ("hold", "bare"):
            (bare if side == "bare" else holds).append(bench.bare() if side == "bare" else bench.holds())
    figures("one hold, many users", bench.seconds, holds)
    figures("one bare row", bench.seconds, bare)
    # Of neighbours in time: whatever else the machine does, it does to both.
    ratios = sorted(len(ours) / len(theirs) for ours, theirs in zip(holds, bare, strict=True))
    ratio = statistics.median(ratios)
    print(f"ratio {ratio:.2f}, of single pairs {ratios[0]:.2f} to {ratios[-1]:.2f} (bound {BOUND})")
    bench.grant(users=1, parts=1, credits=10_000_000, blocks=1)
    figures("one hold, one user", bench.seconds, [bench.holds()])
    bench.grant(users=USERS, parts=10, credits=60, blocks=1)
    figures("one hold over small grants", bench.seconds, [bench.holds()])
    return 0 if ratio >= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
