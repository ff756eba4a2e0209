"""Paths of the operator (/healthz, /readyz, /metrics) answered before anybody is identified; everything else passes."""

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from invokeai_saas.operating.watch import ROUTE_KEY

NO_STORE = {"Cache-Control": "no-store"}
Endpoint = Callable[[Request], Awaitable[Response]]


class Endpoints:
    """Pure-ASGI. GET and HEAD of exact paths."""

    def __init__(self, app: ASGIApp, endpoints: Mapping[str, Endpoint]) -> None:
        self._app, self._endpoints = app, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            endpoint = self._endpoints.get(path)
            if endpoint is not None:
                scope[ROUTE_KEY] = path
                response = await endpoint(Request(scope))
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)
