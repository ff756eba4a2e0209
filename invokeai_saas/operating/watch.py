"""Each request in, what is known of it when it ended out: to the access log and the metrics.

The route is its template (/api/v1/images/i/{image_name}), never the path: names and tokens stay out of both.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# What an endpoint of operating/ answers to; set on the scope by endpoints.py.
ROUTE_KEY = "invokeai_saas.route"
NO_ROUTE = "(none)"
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
access_logger = logging.getLogger("invokeai_saas.access")


@dataclass(frozen=True, slots=True)
class Seen:
    """One request that ended. `status` is 499 where the client left before an answer began; `bytes` are of the answer's body."""

    method: str
    route: str
    status: int
    seconds: float
    bytes: int
    user_id: str | None


class Watch:
    """Pure-ASGI; sockets pass."""

    def __init__(self, app: ASGIApp, *tell: Callable[[Seen], None]) -> None:
        self._app, self._tell = app, tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, sent = time.perf_counter(), 0, 0

        async def counting(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
            await send(message)

        failed = False
        try:
            await self._app(scope, receive, counting)
        except Exception:
            failed = True
            raise
        finally:
            seen = Seen(
                method=scope["method"] if scope["method"] in _METHODS else "OTHER",
                route=route_of(scope),
                status=status or (500 if failed else 499),
                seconds=time.perf_counter() - started,
                bytes=sent,
                user_id=_user_of(scope),
            )
            for tell in self._tell:
                tell(seen)


def log_access(seen: Seen) -> None:
    """One line per request; those of probes only when they fail."""
    quiet = seen.route in ("/healthz", "/readyz", "/metrics") and seen.status < 400
    access_logger.log(
        logging.DEBUG if quiet else logging.INFO,
        "%s %s %d",
        seen.method,
        seen.route,
        seen.status,
        extra={
            "method": seen.method,
            "route": seen.route,
            "status": seen.status,
            "ms": round(seen.seconds * 1000, 1),
            "bytes": seen.bytes,
            **({} if seen.user_id is None else {"user_id": seen.user_id}),
        },
    )


def route_of(scope: Scope) -> str:
    """The template that the router left on the scope; of a mounted application its prefix."""
    if ROUTE_KEY in scope:
        return str(scope[ROUTE_KEY])
    context = route_context(scope)
    if context is not None:
        return str(context.path)
    if scope.get("endpoint") is not None:
        return f"{scope.get('root_path', '')}/*"
    return NO_ROUTE


def route_context(scope: Scope) -> Any:
    """The route that was matched, with its whole template as `path`; None before that, and for mounted applications."""
    # FastAPI's routers keep their own template; the whole one is in what it notes beside.
    return (scope.get("fastapi") or {}).get("effective_route_context") or scope.get("route")


def _user_of(scope: Scope) -> str | None:
    principal = (scope.get("state") or {}).get("principal")
    user_id = getattr(principal, "user_id", None)
    return user_id if isinstance(user_id, str) else None
