"""Counts for Prometheus: requests as they end, the queue, the store and the pool when somebody scrapes. No label names a tenant.

/metrics answers on a port of its own (SAAS_METRICS_PORT) or to a bearer token (SAAS_METRICS_TOKEN); else the path does not exist.
"""

import hmac
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.operating.endpoints import NO_STORE, Endpoint
from invokeai_saas.operating.probes import Probe
from invokeai_saas.operating.watch import Seen
from invokeai_saas.settings import Settings

LIVE = ("pending", "in_progress", "waiting")
# One index or one small table each: cheap enough for every scrape.
QUEUE = "SELECT status, count(*) AS items FROM session_queue WHERE status IN ('pending', 'in_progress', 'waiting') GROUP BY status"
# sqlite_now() writes UTC without saying so.
OLDEST_PENDING = """
SELECT COALESCE(extract(epoch FROM clock_timestamp() - min(created_at)::timestamp AT TIME ZONE 'UTC'), 0)::float AS seconds
FROM session_queue WHERE status = 'pending'
"""
RUNNING = """
SELECT count(*) AS running, COALESCE(max(CASE WHEN attempt_no = 1
    THEN extract(epoch FROM attempt.started_at - item.created_at::timestamp AT TIME ZONE 'UTC') END), 0)::float AS longest_wait
FROM job_attempts AS attempt JOIN session_queue AS item USING (item_id) WHERE state = 'running'
"""
STORAGE = "SELECT COALESCE(sum(bytes), 0)::float AS bytes FROM storage_used"
OUTBOX = "SELECT count(*) AS letters FROM mail_outbox WHERE done_at IS NULL"
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the database says at one moment."""

    items: dict[str, int]
    oldest_pending_seconds: float
    running: int
    longest_claim_wait_seconds: float
    storage_bytes: float
    letters: int


class Metrics:
    """One registry per application, so that two in a process do not add up."""

    def __init__(self, database: PostgresDatabase, *, scrape_seconds: float = 2.0) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "invokeai_http_requests", "Requests that ended.", ("method", "route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "invokeai_http_request_seconds", "How long they took.", ("method", "route"), buckets=_BUCKETS, registry=self.registry
        )
        Info("invokeai_build", "What runs here.", registry=self.registry).info(_versions())
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.registry.register(_AtScrape(database, scrape_seconds))

    def observe(self, seen: Seen) -> None:
        """A request ended."""
        self._requests.labels(seen.method, seen.route, f"{seen.status // 100}xx").inc()
        self._seconds.labels(seen.method, seen.route).observe(seen.seconds)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return bytes(generate_latest(self.registry))

    def endpoint(self, settings: Settings) -> Endpoint:
        """/metrics for whoever knows the token; 404 for everybody else."""
        token = None if settings.metrics_token is None else settings.metrics_token.get_secret_value()

        async def answer(request: Request) -> Response:
            given = request.headers.get("authorization", "")
            if token is None or not hmac.compare_digest(given.encode("latin-1", "replace"), f"Bearer {token}".encode()):
                return JSONResponse({"detail": "Not Found"}, status_code=404, headers=NO_STORE)
            text = await run_in_threadpool(self.text)
            return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST, **NO_STORE})

        return answer

    def listen(self, settings: Settings) -> Callable[[], None] | None:
        """Serve on the metrics port, if one is set; returns what shuts it down, or None."""
        if settings.metrics_port is None:
            return None
        server, _thread = start_http_server(settings.metrics_port, addr=settings.metrics_address, registry=self.registry)
        logger.info("metrics on %s:%d", settings.metrics_address, settings.metrics_port)

        def stop() -> None:
            server.shutdown()
            server.server_close()

        return stop


class _AtScrape(Collector):
    """Asks the pool and the database when somebody scrapes. A database that does not answer is a metric, not an error."""

    def __init__(self, database: PostgresDatabase, seconds: float) -> None:
        self._database = database
        self._probe = Probe(lambda: snapshot(database), seconds=seconds)

    def describe(self) -> list[Any]:
        # Registering must ask nobody.
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        in_use, opened, waiting = self._database.pool_counts()
        yield _gauge("invokeai_db_pool_in_use", "Database connections in use.", in_use)
        yield _gauge("invokeai_db_pool_open", "Database connections open.", opened)
        yield _gauge("invokeai_db_pool_waiting", "Requests that wait for a connection.", waiting)
        try:
            found = self._probe.ask()
        except Exception as error:
            logger.warning("the database did not answer a scrape: %s", type(error).__name__)
            yield _gauge("invokeai_database_up", "Whether the database answered this scrape.", 0)
            return
        yield _gauge("invokeai_database_up", "Whether the database answered this scrape.", 1)
        items = GaugeMetricFamily("invokeai_queue_items", "Items of the queue that are not finished.", labels=("status",))
        for status in LIVE:
            items.add_metric((status,), found.items.get(status, 0))
        yield items
        yield _gauge("invokeai_queue_oldest_pending_seconds", "Age of the oldest pending item.", found.oldest_pending_seconds)
        yield _gauge("invokeai_queue_running", "Items that a worker holds a lease on.", found.running)
        yield _gauge(
            "invokeai_queue_claim_wait_seconds", "Longest wait for a worker among running items.", found.longest_claim_wait_seconds
        )
        yield _gauge("invokeai_storage_bytes", "Bytes that all users hold.", found.storage_bytes)
        yield _gauge("invokeai_mail_outbox", "Letters that wait to be sent.", found.letters)


def snapshot(database: PostgresDatabase) -> Snapshot:
    """All counts in one transaction."""
    with tenancy.as_system("metrics count for all tenants together"), database.postgres() as cursor:
        items = {row["status"]: row["items"] for row in cursor.execute(QUEUE).fetchall()}
        running = _row(cursor, RUNNING)
        return Snapshot(
            items=items,
            oldest_pending_seconds=_row(cursor, OLDEST_PENDING)["seconds"],
            running=running["running"],
            longest_claim_wait_seconds=running["longest_wait"],
            storage_bytes=_row(cursor, STORAGE)["bytes"],
            letters=_row(cursor, OUTBOX)["letters"],
        )


def _row(cursor: Any, statement: str) -> dict[str, Any]:
    row: dict[str, Any] = cursor.execute(statement).fetchone()
    return row


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _versions() -> dict[str, str]:
    found = {}
    for label, distribution in (("version", "invokeai-video"), ("invokeai", "invokeai")):
        try:
            found[label] = version(distribution)
        except PackageNotFoundError:
            found[label] = "unknown"
    return found
