"""Which pages may talk to this server: exact origins for the API (CORS), and the same ones for sockets, which CORS does not cover.

InvokeAI's socket server takes every origin. The credential is in the handshake, not in a cookie, yet a page that is nobody's business has
no business with a socket either.
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from invokeai_saas.settings import Settings

SOCKET_PATH = "/ws/"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
ASKED = ("Authorization", "Content-Type", "Idempotency-Key", "Range", "X-Request-ID")
SHOWN = ("X-Refreshed-Token", "X-Refresh-Token", "X-Request-ID", "Retry-After", "Accept-Ranges", "Content-Range", "Content-Disposition")


def with_cors(app: ASGIApp, settings: Settings) -> ASGIApp:
    """`app` for pages of `cors_origins`; nothing is added, and so nothing allowed, without any. Outside of whoever asks for credentials:
    a browser's preflight has none."""
    if not settings.cors_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=list(settings.cors_origins),
        allow_credentials=True,
        allow_methods=list(METHODS),
        allow_headers=list(ASKED),
        expose_headers=list(SHOWN),
        max_age=600,
    )


class SocketOrigins:
    """Pure-ASGI: a socket, or its polling, from a page of another origin is refused with 403. Programs send no Origin and pass."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._known = {settings.public_url.lower(), *(origin.lower() for origin in settings.cors_origins)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] in ("http", "websocket") and self._is_foreign(scope):
            if scope["type"] == "websocket":
                # Before the handshake is accepted this is a 403.
                await send({"type": "websocket.close", "code": 1008})
            else:
                await JSONResponse({"detail": "This origin may not connect"}, status_code=403)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_foreign(self, scope: Scope) -> bool:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if scope["type"] == "http" and not path.startswith(SOCKET_PATH):
            return False
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is None or origin.lower() in self._known:
            return False
        # The same server under another of its names.
        return urlsplit(str(origin)).netloc.lower() != str(headers.get("host", "")).lower()
