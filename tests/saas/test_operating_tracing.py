"""Traces: requests and their transactions, to a collector that is named; nothing at all without one."""

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from saas.operated import ANN, PUBLIC_URL, client_of, operated, small_app

from invokeai_saas.db import tenancy
from invokeai_saas.operating.tracing import Tracing, tracing_of
from invokeai_saas.settings import Settings

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def client(database, exporter):
    app = small_app()

    @app.get("/api/v1/rows/{name}")
    def rows(name: str) -> int:
        with tenancy.as_user(ANN), database.postgres() as cursor, database.postgres():
            return cursor.execute("SELECT count(*) AS n FROM images").fetchone()["n"]

    @app.get("/api/v1/bad-rows")
    def bad_rows() -> None:
        with tenancy.as_user(ANN), database.postgres() as cursor:
            cursor.execute("SELECT 'private words' FROM nowhere")

    tracing = Tracing([SimpleSpanProcessor(exporter)])
    return client_of(operated(database, app, parts={"tracing": tracing}))


def test_a_request_and_its_transaction_are_one_trace(client, exporter):
    client.get("/api/v1/rows/ann.png?token=abc", headers={"X-Request-ID": "r-1"})
    transaction, request = exporter.get_finished_spans()

    assert (request.name, transaction.name) == ("GET /api/v1/rows/{name}", "transaction")
    assert transaction.parent.span_id == request.context.span_id
    assert dict(request.attributes) == {
        "http.request.method": "GET", "http.route": "/api/v1/rows/{name}", "http.response.status_code": 200, "invokeai.request_id": "r-1",
    }  # fmt: skip
    assert dict(transaction.attributes) == {"db.system": "postgresql", "invokeai.context": "user"}


def test_a_callers_trace_is_continued(client, exporter):
    client.get("/api/v1/items/a", headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"})
    (span,) = exporter.get_finished_spans()

    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, "b7ad6b7169203331")


def test_errors_are_marked_and_say_nothing_private(client, exporter):
    client.get("/api/v1/bad-rows")
    spans = exporter.get_finished_spans()

    assert [span.status.status_code.name for span in spans] == ["ERROR", "ERROR"]
    assert "private words" not in "".join(span.to_json() for span in spans)


def test_no_user_path_or_query_is_in_a_span(client, exporter):
    client.get("/api/v1/rows/ann.png?token=abc", headers={"Authorization": "Bearer abc"})
    text = "".join(span.to_json() for span in exporter.get_finished_spans())

    assert "transaction" in text
    for private in (ANN, "ann.png", "token", "abc", "SELECT"):
        assert private not in text


def test_the_loops_own_transactions_are_not_traced(client, database, exporter):
    with tenancy.as_system("a loop asks"), database.postgres():
        pass

    assert exporter.get_finished_spans() == ()


class Collector(BaseHTTPRequestHandler):
    """A collector of traces that keeps what it is sent."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append((self.path, body))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_given: object) -> None:
        """Silent."""


@pytest.fixture
def collector():
    server = HTTPServer(("127.0.0.1", 0), Collector)
    server.received = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_spans_reach_a_collector_at_the_latest_when_the_server_ends(database, collector, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_address[1]}/")
    installed = operated(database)
    client_of(installed).get("/api/v1/items/a")
    installed.close()
    ((path, body),) = collector.received
    sent = ExportTraceServiceRequest.FromString(body).resource_spans[0]

    assert path == "/v1/traces"
    assert [span.name for span in sent.scope_spans[0].spans] == ["GET /api/v1/items/{name}"]
    assert {entry.key: entry.value.string_value for entry in sent.resource.attributes}["service.name"] == "invokeai-saas"


def test_a_collector_that_is_away_harms_no_request(database, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    installed = operated(database)

    assert client_of(installed).get("/api/v1/items/a").status_code == 200


def test_without_a_collector_there_is_no_tracing(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")

    assert tracing_of(Settings(public_url=PUBLIC_URL)) is None


def test_without_a_collector_nothing_of_opentelemetry_is_imported(dsn):
    script = f"""
import sys
sys.path.insert(0, "tests")
from saas.operated import client_of, operated
from invokeai_saas.db.database import PostgresDatabase
database = PostgresDatabase({dsn!r}, pool_size=1)
assert client_of(operated(database)).get("/api/v1/items/a").status_code == 200
database.close()
print([name for name in sys.modules if name.startswith("opentelemetry")], "torch" in sys.modules, "invokeai" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)

    assert done.stdout.strip() == "[] False False", done.stderr
