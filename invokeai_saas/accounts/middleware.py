"""Where a request gets its tenant: the credential is proved once, before any route, and the whole request works as that user.

    Authorization: Bearer <login | API key | provider's token>      any route under /api
    cookie invokeai_media_token                                      pictures and videos only: <img> and <video> send no header

InvokeAI's own routes know nothing of keys and providers: they are handed a short token of the same account. A request without a
credential goes on without a context, in which the database answers nothing.
"""

import re
from collections.abc import Iterable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from invokeai_saas.accounts.cookies import MEDIA_COOKIE
from invokeai_saas.accounts.errors import NotSignedIn
from invokeai_saas.accounts.identify import caller_now, identify, internal_token
from invokeai_saas.accounts.model import Accounts, Principal
from invokeai_saas.db import tenancy
from invokeai_saas.errors import SaasError

READING = ("GET", "HEAD", "OPTIONS")
# A stale credential must not keep anybody from getting a fresh one.
OPEN = frozenset(
    f"/api/v1/auth/{name}"
    for name in ("status", "signup", "verify-email", "login", "refresh", "forgot-password", "reset-password")
)


class IdentityMiddleware:
    """Pure ASGI, outside of InvokeAI's application. Answers 401 for a Bearer credential that proves nothing."""

    def __init__(self, app: ASGIApp, accounts: Accounts, media: Iterable[str] = ()) -> None:
        """`media` are the paths, as in OpenAPI, that take the cookie."""
        self._app, self._accounts = app, accounts
        self._media = re.compile("|".join(_pattern(path) for path in media) or r"(?!)")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sockets prove themselves in their handshake (swaps/sockets.py); nothing inherits the context of whoever started the server."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        with tenancy.as_nobody():
            if not _needs_a_caller(scope):
                await self._app(scope, receive, send)
                return
            try:
                caller = await run_in_threadpool(self._caller, scope)
            except SaasError as error:
                await _refusal(error)(scope, receive, send)
                return
            await self._as(caller, scope, receive, send)

    async def _as(self, caller: Principal | None, scope: Scope, receive: Receive, send: Send) -> None:
        if caller is None:
            await self._app(scope, receive, send)
            return
        proved = caller_now.set(caller)
        try:
            with tenancy.as_user(caller.user_id):
                await self._app(scope, receive, send)
        finally:
            caller_now.reset(proved)

    def _caller(self, scope: Scope) -> Principal | None:
        headers, reading = Headers(scope=scope), scope["method"] in READING
        bearer = _bearer(headers)
        if bearer is None:
            return self._of_cookie(scope, headers) if reading and self._media.fullmatch(_path(scope)) else None
        caller = identify(self._accounts, bearer)
        caller.demand_scope("read" if reading else "write")
        if caller.kind != "login":
            _say(scope, internal_token(self._accounts, caller))
        _remember(scope, caller)
        return caller

    def _of_cookie(self, scope: Scope, headers: Headers) -> Principal | None:
        """None for a stale cookie: the route then says what it wants."""
        token = cookie_parser(headers.get("cookie", "")).get(MEDIA_COOKIE)
        if not token:
            return None
        try:
            caller = identify(self._accounts, token)
        except NotSignedIn:
            return None
        # Some of InvokeAI's routes of pictures want a header, which <img> cannot send.
        _say(scope, token)
        return caller


def _pattern(path: str) -> str:
    """A path as in OpenAPI, as a regular expression: {name} is one step, {name:path} any number."""
    steps = re.split(r"(\{[^{}]+\})", path)
    return "".join((".+" if step.endswith(":path}") else "[^/]+") if step.startswith("{") else re.escape(step) for step in steps)


def _needs_a_caller(scope: Scope) -> bool:
    """Pages and sockets prove nobody here."""
    return scope["type"] == "http" and _path(scope).startswith("/api/") and _path(scope) not in OPEN


def _path(scope: Scope) -> str:
    return str(scope.get("path", "")).removeprefix(str(scope.get("root_path", "")))


def _say(scope: Scope, token: str) -> None:
    """What InvokeAI reads. A copy: whoever logs the request sees what was sent."""
    scope["headers"] = list(scope["headers"])
    MutableHeaders(scope=scope)["authorization"] = f"Bearer {token}"


def _bearer(headers: Headers) -> str | None:
    given = headers.getlist("authorization")
    if len(given) > 1:
        raise NotSignedIn("expected one Authorization header, got several")
    scheme, _, credential = (given[0] if given else "").partition(" ")
    return credential.strip() if scheme.lower() == "bearer" else None


def _remember(scope: Scope, caller: Principal) -> None:
    state: dict[str, Any] = scope.setdefault("state", {})
    state["principal"] = caller


def _refusal(error: SaasError) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {"Retry-After": "1"} if error.status == 503 else {}
    detail = str(error) if error.status < 500 else "the service cannot answer now"
    return JSONResponse({"detail": detail}, status_code=error.status, headers=headers)
