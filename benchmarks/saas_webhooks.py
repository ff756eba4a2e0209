"""How fast a webhook is answered, and how soon it is processed: signed events at a steady rate against uvicorn with our middleware.

One server process with the inbox's worker in it, a Postgres of its own, Stripe's double over HTTP. Customers pay checkouts at the double;
every event of theirs is sent when its turn has come, not when the one before was answered. Prints p50, p95 and p99 of the answers in ms
(bound: p95 30 ms at 20 a second), the lag from the answer until the event is processed, and whether everything was granted once.

    python benchmarks/saas_webhooks.py [--rate 20] [--seconds 60]
"""

from __future__ import annotations

import argparse
import http.client
import json
import logging
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "patches"), str(ROOT / "tests")]

BOUND_MS = 30.0
PATH = "/api/v1/webhooks/stripe"
CUSTOMERS = """
SELECT count(*) AS n FROM credits WHERE source = 'purchase'
"""
LAG = """
SELECT extract(epoch FROM processed_at - received_at)::float8 AS lag FROM stripe_events WHERE state = 'done'
"""
LEFT = "SELECT count(*) AS n FROM stripe_events WHERE state IN ('waiting', 'failed')"


def main() -> int:
    """Prints one block of figures; exit code 1 when the bound is missed or something was not granted once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=20.0, help="events a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--serve", nargs=4, metavar=("DSN", "STRIPE", "FOLDER", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        dsn, address, where, port = options.serve
        serve(dsn, address, Path(where), int(port))
        return 0
    with tempfile.TemporaryDirectory(prefix="saas-webhooks-") as folder:
        return measure(Path(folder), rate=options.rate, seconds=options.seconds)


def measure(folder: Path, *, rate: float, seconds: float) -> int:
    """Start everything, send, wait for the inbox to empty, print."""
    from saas.billed import open_shop
    from saas.people import rows
    from saas.stripe_serving import serving

    from invokeai_saas.accounts.model import AccountPolicy, Accounts
    from invokeai_saas.db.database import PostgresDatabase
    from invokeai_saas.db.embedded import start_embedded, stop_embedded
    from invokeai_saas.db.migrate import migrate

    dsn = start_embedded(folder / "postgres")
    migrate(dsn)
    database = PostgresDatabase(dsn, pool_size=4)
    shop = open_shop(Accounts(database, AccountPolicy(answer_seconds=0.0)))
    try:
        bodies, packs = events_of(shop, int(rate * seconds))
        with serving(shop.double) as address:
            answers = serve_and_send(dsn, address, folder, bodies, rate)
        lags = sorted(row["lag"] for row in rows(database, LAG))
        granted, left = rows(database, CUSTOMERS)[0]["n"], rows(database, LEFT)[0]["n"]
    finally:
        database.close()
        stop_embedded(folder / "postgres")
    return report(answers, lags, rate=rate, granted=(granted, packs), left=left)


def events_of(shop: Any, number: int) -> tuple[list[str], int]:
    """Bodies of events of customers who each bought a pack: two events per customer."""
    from saas.people import rows

    from invokeai_saas.billing.model import PACKS

    for each in range((number + 1) // 2):
        user_id = f"buyer-{each}"
        rows(
            shop.billing.database,
            "INSERT INTO users (user_id, email, password_hash) VALUES (%s, %s, '')",
            user_id,
            f"{user_id}@example.com",
        )
        customer = shop.billing.gateway.make_customer(user_id=user_id, email="b@example.com", name=None, key=user_id)
        rows(shop.billing.database, "INSERT INTO billing_customers (stripe_customer_id, user_id) VALUES (%s, %s)", customer, user_id)
        urls = {"success_url": "https://x.example/", "cancel_url": "https://x.example/"}
        sold = shop.billing.gateway.sell_pack(
            customer=customer, user_id=user_id, pack=PACKS["small"], currency="usd", key=f"p-{each}", **urls
        )
        shop.double.pay(sold[0])
    events = shop.events()
    return [json.dumps(event) for event in events][:number], (number + 1) // 2


def serve(dsn: str, address: str, folder: Path, port: int) -> None:
    """What the child process does until it is killed: routes, middleware and the inbox's worker, as the real server has them."""
    import uvicorn
    from fastapi import FastAPI
    from saas.billed import POLICY
    from saas.stripe_double import KEY

    from invokeai_saas.accounts import api as accounts_api
    from invokeai_saas.accounts.model import AccountPolicy, Accounts
    from invokeai_saas.accounts.setup import limiter_of
    from invokeai_saas.billing import api
    from invokeai_saas.billing.gateway import Gateway, client_of
    from invokeai_saas.billing.model import Billing
    from invokeai_saas.billing.worker import InboxWorker
    from invokeai_saas.db.database import PostgresDatabase
    from invokeai_saas.operating.install import install, uvicorn_options
    from invokeai_saas.settings import Settings

    database = PostgresDatabase(dsn, pool_size=10)
    gateway = Gateway(client_of(KEY, api_base=address), in_transaction=lambda: database.in_transaction)
    worker = InboxWorker(Billing(Accounts(database, AccountPolicy()), gateway, POLICY))
    app = FastAPI()
    accounts_api.install(app, accounts_api.Web(worker.billing.accounts, limiter_of(database)))
    api.install(app, worker.billing)
    for router in api.ROUTERS:
        app.include_router(router, prefix="/api")
    settings = Settings(data_dir=folder / "data", port=port)
    operated = install(app, settings=settings, database=database)
    logging.getLogger("uvicorn.access").setLevel("WARNING")
    worker.start()
    uvicorn.run(operated.app, port=port, log_level="warning", **{**uvicorn_options(settings), "log_config": None})


def serve_and_send(dsn: str, address: str, folder: Path, bodies: list[str], rate: float) -> list[float]:
    """Seconds that each answer took, from the moment it was due."""
    port = free_port()
    child = subprocess.Popen([sys.executable, __file__, "--serve", dsn, address, str(folder), str(port)])
    try:
        deadline = time.monotonic() + 60
        while not listens(port):
            if child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("expected a server that listens within a minute")
            time.sleep(0.1)
        return send_all(port, bodies, rate)
    finally:
        wait_until_empty(dsn)
        child.terminate()
        child.wait(30)


def listens(port: int) -> bool:
    """Whether somebody does."""
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def send_all(port: int, bodies: list[str], rate: float) -> list[float]:
    """One request every 1/rate seconds, whatever became of those before; a few are sent first, to warm up."""
    from saas.stripe_serving import signature

    local = threading.local()
    begun = time.perf_counter() + 0.5

    def send(numbered: tuple[int, str]) -> float:
        number, body = numbered
        due = begun + number / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        connection = getattr(local, "connection", None) or http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        local.connection = connection
        headers = {"Stripe-Signature": signature(body), "Content-Type": "application/json"}
        connection.request("POST", PATH, body, headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"expected 200, got {answer.status}")
        return time.perf_counter() - due

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(send, enumerate(bodies)))[10:]


def wait_until_empty(dsn: str) -> None:
    """Until no event waits; at most two minutes."""
    deadline = time.monotonic() + 120
    with psycopg.connect(dsn, autocommit=True) as connection:
        while time.monotonic() < deadline:
            row = connection.execute(LEFT.encode()).fetchone()
            if row is not None and not row[0]:
                return
            time.sleep(0.2)


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def report(answers: list[float], lags: list[float], *, rate: float, granted: tuple[int, int], left: int) -> int:
    """Figures to stdout."""
    took = [1000 * seconds for seconds in answers]
    print(f"{len(took)} webhooks at {rate:g}/s: " + quantiles(took, "ms"))
    print(f"until processed, {len(lags)} events: " + quantiles([1000 * lag for lag in lags], "ms"))
    print(f"granted {granted[0]} packs of {granted[1]} paid, {left} events left over")
    fast, right = statistics.quantiles(took, n=20)[18] <= BOUND_MS, granted[0] == granted[1] and not left
    print(f"p95 of the answers {'within' if fast else 'NOT within'} {BOUND_MS:g} ms; everything granted once: {right}")
    return 0 if fast and right else 1


def quantiles(values: list[float], unit: str) -> str:
    """p50, p95, p99 and the longest."""
    cuts = statistics.quantiles(values, n=100)
    return f"p50 {cuts[49]:.1f}, p95 {cuts[94]:.1f}, p99 {cuts[98]:.1f}, longest {max(values):.1f} {unit}"


if __name__ == "__main__":
    sys.exit(main())
