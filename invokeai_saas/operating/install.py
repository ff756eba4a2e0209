"""An application with its identity middleware in, the same one watched and guarded out. Outermost first:

    RequestIds ─► TracedRequests ─► Watch ─► SecurityHeaders ─► CORS ─► SocketOrigins ─► Endpoints ─► Limits ─► (who is calling ─► routes)

What is outside of Limits also covers the answers that it makes; what is outside of the application covers its 500s, which Starlette
answers around all middleware of its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp

from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.operating.endpoints import Endpoints
from invokeai_saas.operating.headers import SecurityHeaders
from invokeai_saas.operating.health import Pulse, Readiness, healthz, parts_of
from invokeai_saas.operating.limits import Limits
from invokeai_saas.operating.metrics import Metrics
from invokeai_saas.operating.origins import SocketOrigins, with_cors
from invokeai_saas.operating.request_ids import RequestIds
from invokeai_saas.operating.tracing import TracedRequests, Tracing, tracing_of
from invokeai_saas.operating.watch import Watch, log_access
from invokeai_saas.settings import Settings
from invokeai_saas.storage.files import Files


@dataclass(frozen=True)
class Operated:
    """`app` is what uvicorn serves. `start()` opens the metrics port; `close()` ends it and sends the last traces."""

    app: ASGIApp
    metrics: Metrics
    start: Callable[[], None]
    close: Callable[[], None]


def install(
    app: ASGIApp,
    *,
    settings: Settings,
    database: PostgresDatabase,
    files: Files | None = None,
    pulses: Mapping[str, Pulse] | None = None,
    draining: Callable[[], bool] = lambda: False,
    tracing: Tracing | None = None,
) -> Operated:
    """Wrap `app`. `pulses` are the loops that readiness asks for, by name; `draining` is Shutdown.draining."""
    metrics, tracing = Metrics(database), tracing or tracing_of(settings)
    readiness = Readiness(parts_of(database, files, pulses or {}), draining=draining)
    app = Limits(app, max_upload_bytes=settings.max_upload_bytes, max_body_bytes=settings.max_body_bytes)
    app = Endpoints(app, {"/healthz": healthz, "/readyz": readiness.answer, "/metrics": metrics.endpoint(settings)})
    app = SecurityHeaders(with_cors(SocketOrigins(app, settings), settings), settings)
    app = Watch(app, metrics.observe, log_access)
    if tracing is not None:
        tracing.watch(database)
        app = TracedRequests(app, tracing)
    return Operated(RequestIds(app), metrics, *_running(metrics, tracing, settings))


def uvicorn_options(settings: Settings) -> dict[str, Any]:
    """Keyword arguments of uvicorn.Config: our logs instead of its own, and X-Forwarded-* from trusted proxies only."""
    return {
        "log_config": None,
        "access_log": False,
        "server_header": False,
        # uvicorn's default trusts this machine, and so every program on it.
        "proxy_headers": bool(settings.trusted_proxies),
        "forwarded_allow_ips": ",".join(settings.trusted_proxies),
        "timeout_graceful_shutdown": settings.shutdown_grace_seconds,
    }


def _running(metrics: Metrics, tracing: Tracing | None, settings: Settings) -> tuple[Callable[[], None], Callable[[], None]]:
    stops: list[Callable[[], None]] = []

    def start() -> None:
        stop = metrics.listen(settings)
        if stop is not None:
            stops.append(stop)

    def close() -> None:
        while stops:
            stops.pop()()
        if tracing is not None:
            tracing.close()

    return start, close
