"""Answers in, the same answers with what browsers should be told out: what a page may load, who may frame it, what may be stored.

The policy is what InvokeAI's own interface needs and no more: its scripts are files of this server, its styles are made at run time
(hence 'unsafe-inline' for styles alone), pictures come as blob:, data:, from here and from the store. One of its libraries tries whether it
may compile code, is refused, and goes on without: browsers report that one violation, of eval, per page.
"""

from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from invokeai_saas.settings import Settings

HSTS_SECONDS = 365 * 24 * 3600
PERMISSIONS = "camera=(), microphone=(), geolocation=(), payment=(), usb=(), serial=(), midi=(), display-capture=()"
# InvokeAI's API pages: FastAPI takes their code from this host, started by an inline script.
API_PAGES = ("/docs", "/redoc")
_CDN = "https://cdn.jsdelivr.net"
# An answer of the API that is opened as a page is data: it runs nothing.
API_POLICY = (
    "default-src 'none'; img-src 'self' data:; media-src 'self'; style-src 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
# A cache between us and the browser serves one person's answer to another unless it is told not to.
NO_STORE = "private, no-store"
_SAID = ("private", "no-store", "public")


class SecurityHeaders:
    """Pure-ASGI. A header that the route set itself stays."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        stores = storage_origins(settings)
        self._page = page_policy(settings.public_url, stores)
        self._api_page = api_page_policy()
        self._always = {
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            # Not no-referrer: forms of our own pages would come with Origin: null.
            "Referrer-Policy": "same-origin",
            "Permissions-Policy": PERMISSIONS,
            "Cross-Origin-Opener-Policy": "same-origin",
        }
        if settings.public_url.startswith("https://"):
            self._always["Strict-Transport-Security"] = f"max-age={HSTS_SECONDS}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._add(MutableHeaders(scope=message), path)
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _add(self, headers: MutableHeaders, path: str) -> None:
        for name, value in self._always.items():
            headers.setdefault(name, value)
        headers.setdefault("Content-Security-Policy", self._policy(path))
        if path.startswith("/api/"):
            said = headers.get("cache-control")
            if said is None:
                headers["Cache-Control"] = NO_STORE
            elif not any(word in said.lower() for word in _SAID):
                headers["Cache-Control"] = f"private, {said}"

    def _policy(self, path: str) -> str:
        if path.startswith("/api/"):
            return API_POLICY
        return self._api_page if path in API_PAGES else self._page


def page_policy(public_url: str, stores: Iterable[str]) -> str:
    """For InvokeAI's interface and our own pages. `stores` are the origins that signed addresses point to."""
    here = urlsplit(public_url)
    # Older browsers do not take 'self' for the socket's scheme.
    sockets = f"{'wss' if here.scheme == 'https' else 'ws'}://{here.netloc}"
    stored = "".join(f" {origin}" for origin in stores)
    return "; ".join(
        (
            "default-src 'self'",
            "script-src 'self'",
            "style-src 'self' 'unsafe-inline'",
            f"img-src 'self' data: blob:{stored}",
            f"media-src 'self' data: blob:{stored}",
            "font-src 'self' data:",
            f"connect-src 'self' data: blob: {sockets}{stored}",
            "worker-src 'self' blob:",
            "object-src 'none'",
            "base-uri 'self'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        )
    )


def api_page_policy() -> str:
    """For /docs and /redoc: no data of anybody is on them."""
    return (
        f"default-src 'self'; script-src 'self' 'unsafe-inline' {_CDN}; "
        f"style-src 'self' 'unsafe-inline' {_CDN} https://fonts.googleapis.com; "
        "font-src https://fonts.gstatic.com data:; img-src 'self' data: https://fastapi.tiangolo.com; worker-src blob:; "
        "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def storage_origins(settings: Settings) -> tuple[str, ...]:
    """Where signed addresses of the store point: nowhere else for files on disk, which this server hands out."""
    if settings.s3_bucket is None:
        return ()
    if settings.s3_endpoint_url is not None:
        there = urlsplit(settings.s3_endpoint_url)
        return (f"{there.scheme}://{there.netloc.rpartition('@')[2]}",)
    host = f"{settings.s3_bucket}.s3"
    if "." in settings.s3_bucket:
        # The SDK puts such a bucket into the path: its name would not match the certificate.
        return (f"https://s3.{settings.s3_region}.amazonaws.com", "https://s3.amazonaws.com")
    return (f"https://{host}.{settings.s3_region}.amazonaws.com", f"https://{host}.amazonaws.com")
