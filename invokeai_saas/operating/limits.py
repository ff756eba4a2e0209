"""Requests in, those of a bearable size and shape out: the rest is refused before its route runs and before anything is written.

A route that takes forms or files may be sent `max_upload_bytes`, every other one `max_body_bytes`; which it is is asked when the route
first reads, and is then known. InvokeAI's own limit of video uploads (their number, their pace, 1 GiB and a bit) stays in force inside.
"""

from dataclasses import dataclass, field
from typing import Any

from fastapi import params
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from invokeai_saas.operating.plain_text import refusal
from invokeai_saas.operating.watch import route_context

# An unread rest of this size is not worth a kept connection.
KEEP_BYTES = 1024 * 1024
_CONTROL = frozenset(map(chr, (*range(32), 127)))


class _Refused(Exception):
    """Ends the route that reads."""


@dataclass
class _Request:
    """One request under way: its limit once the route is known, what was read, what was answered."""

    scope: Scope
    declared: int | None
    limit: int = 0
    forms: bool = False
    read: int = 0
    complete: bool = False
    # Of a JSON text, until it is complete.
    chunks: list[bytes] = field(default_factory=list)
    refused: JSONResponse | None = None
    answered: bool = False


class Limits:
    """Pure-ASGI; sockets have limits of their own."""

    def __init__(self, app: ASGIApp, *, max_upload_bytes: int, max_body_bytes: int) -> None:
        self._app, self._max_upload, self._max_body = app, max_upload_bytes, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        lengths = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
        if _is_tricky(scope) or len(lengths) > 1 or any(not value.isdigit() or len(value) > 18 for value in lengths):
            await JSONResponse({"detail": "Bad request"}, status_code=400, headers=_close(scope))(scope, receive, send)
            return
        request = _Request(scope, declared=int(lengths[0]) if lengths else None)
        try:
            await self._app(scope, self._reading(request, receive), _sending(request, send))
        except Exception:
            # InvokeAI's middleware may have wrapped what ended the route.
            if request.refused is None or request.answered:
                raise
        if request.refused is not None and not request.answered:
            await request.refused(scope, receive, send)

    def _reading(self, request: _Request, receive: Receive) -> Receive:
        async def read() -> Message:
            if not request.limit:
                request.forms = takes_forms(request.scope)
                request.limit = self._max_upload if request.forms else self._max_body
            if (request.declared or 0) > request.limit:
                _refuse(request, 413, f"Expected a request of {request.limit} bytes or less")
            message = await receive()
            if message["type"] == "http.request":
                request.read += len(message.get("body", b""))
                request.complete = not message.get("more_body", False)
                if request.read > request.limit:
                    _refuse(request, 413, f"Expected a request of {request.limit} bytes or less")
                if (expected := _wrong_text(request, message.get("body", b""))) is not None:
                    _refuse(request, 422, expected)
            return message

        return read


def _refuse(request: _Request, status: int, detail: str) -> None:
    request.refused = JSONResponse({"detail": detail}, status_code=status, headers=_close(request.scope))
    raise _Refused


def _wrong_text(request: _Request, chunk: bytes) -> str | None:
    """Asked when the text is complete: no route acts on less. Files and forms are bytes and pass."""
    if request.forms:
        return None
    request.chunks.append(chunk)
    if not request.complete:
        return None
    text, request.chunks = b"".join(request.chunks), []
    return refusal(text)


def _sending(request: _Request, send: Send) -> Send:
    async def answer(message: Message) -> None:
        if request.refused is not None and not request.answered:
            # Whatever the application makes of the broken body; ours follows when it is done.
            return
        if message["type"] == "http.response.start":
            request.answered = True
            unread = not request.complete and (_is_chunked(request.scope) or (request.declared or 0) - request.read > KEEP_BYTES)
            if unread:
                others = [(name, value) for name, value in message.get("headers", []) if name.lower() != b"connection"]
                closing = [(name.encode(), value.encode()) for name, value in _close(request.scope).items()]
                message = {**message, "headers": [*others, *closing]}
        await send(message)

    return answer


def takes_forms(scope: Scope) -> bool:
    """Whether the route that was matched declares form fields or files, or documents a form that it reads by hand (uploads of videos)."""
    route = route_context(scope)
    body: Any = getattr(route, "body_field", None)
    documented = (getattr(route, "openapi_extra", None) or {}).get("requestBody", {}).get("content", {})
    return isinstance(getattr(body, "field_info", None), params.Form) or "multipart/form-data" in documented


def _is_tricky(scope: Scope) -> bool:
    """Control characters, and steps out of a folder that the client hid from its own normalisation."""
    path = scope["path"]
    steps = path.replace("\\", "/").split("/")
    return not _CONTROL.isdisjoint(path) or ".." in steps or b"%00" in scope.get("query_string", b"")


def _is_chunked(scope: Scope) -> bool:
    return any(name.lower() == b"transfer-encoding" for name, _value in scope["headers"])


def _close(scope: Scope) -> dict[str, str]:
    # Illegal from HTTP/2 on.
    return {"connection": "close"} if str(scope.get("http_version", "1.1")).startswith("1") else {}
