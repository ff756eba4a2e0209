"""Spans of requests and database transactions to an OpenTelemetry collector, where OTEL_EXPORTER_OTLP_ENDPOINT names one.

Nothing of OpenTelemetry is imported otherwise. Spans carry route templates and tenant kinds, never paths, queries, SQL or users.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.operating.request_ids import current_request_id
from invokeai_saas.operating.watch import route_of
from invokeai_saas.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

SERVICE_NAME = "invokeai-saas"


class Tracing:
    """A provider of its own, not the process' global one. `close()` sends what is left."""

    def __init__(self, processors: Sequence["SpanProcessor"]) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        # The operator's OTEL_SERVICE_NAME wins; OTEL_RESOURCE_ATTRIBUTES are added.
        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": SERVICE_NAME}
        self._provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        for processor in processors:
            self._provider.add_span_processor(processor)
        self.tracer = self._provider.get_tracer("invokeai_saas")

    def watch(self, database: PostgresDatabase) -> None:
        """A span around every outermost transaction of `database` that belongs to a traced request."""
        database.around_transaction = self._transaction

    def close(self) -> None:
        """Send what is left and stop."""
        self._provider.shutdown()  # type: ignore[no-untyped-call]

    @contextmanager
    def _transaction(self, context: tenancy.Context) -> Iterator[None]:
        from opentelemetry.trace import SpanKind, get_current_span

        if not get_current_span().get_span_context().is_valid:
            # Loops ask every second or two; their transactions alone are no trace worth keeping.
            yield
            return
        attributes = {"db.system": "postgresql", "invokeai.context": "system" if context.is_system else "user"}
        # Messages of errors may hold what a row holds.
        with self.tracer.start_as_current_span(
            "transaction", kind=SpanKind.CLIENT, attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span, _error_on(span):
            yield


class TracedRequests:
    """Pure-ASGI: one span per request, named after its route, continuing the caller's trace."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app, self._tracer = app, tracing.tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        carrier = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        carrier = {name: carrier[name] for name in ("traceparent", "tracestate") if name in carrier}
        with self._tracer.start_as_current_span(
            scope["method"], context=extract(carrier), kind=SpanKind.SERVER, record_exception=False, set_status_on_exception=False
        ) as span, _error_on(span):
            try:
                await self._app(scope, receive, _noting_status(span, send))
            finally:
                route = route_of(scope)
                span.update_name(f"{scope['method']} {route}")
                span.set_attributes({"http.request.method": scope["method"], "http.route": route, **_request_id()})


def tracing_of(settings: Settings) -> Tracing | None:
    """None, and nothing imported, where no collector is named."""
    if settings.traces_endpoint is None:
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return Tracing([BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.traces_endpoint.rstrip("/") + "/v1/traces"))])


def _noting_status(span: Any, send: Send) -> Send:
    from opentelemetry.trace import StatusCode

    async def noting(message: Message) -> None:
        if message["type"] == "http.response.start":
            span.set_attribute("http.response.status_code", message["status"])
            if message["status"] >= 500:
                span.set_status(StatusCode.ERROR)
        await send(message)

    return noting


@contextmanager
def _error_on(span: Any) -> Iterator[None]:
    from opentelemetry.trace import StatusCode

    try:
        yield
    except BaseException as error:
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(StatusCode.ERROR)
        raise


def _request_id() -> dict[str, str]:
    request_id = current_request_id()
    return {} if request_id is None else {"invokeai.request_id": request_id}

