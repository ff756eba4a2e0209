"""A request in, the same request with an id out: the caller's X-Request-ID where it is a plain word, else a new one.

The id is in a context variable while the request runs, so that every log line of it carries the id, and on the answer.
"""

import re
import uuid
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = b"x-request-id"
_PLAIN = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_ANSWERS = ("http.response.start", "websocket.accept", "websocket.http.response.start")
_request_id: ContextVar[str | None] = ContextVar("invokeai_saas_request_id", default=None)


def current_request_id() -> str | None:
    """The id of the request that this thread or task works for."""
    return _request_id.get()


class RequestIds:
    """Pure-ASGI, for requests and sockets alike; a socket has one id for as long as it is open."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        request_id = _given(scope) or uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] in _ANSWERS:
                others = [(name, value) for name, value in message.get("headers", []) if name.lower() != HEADER]
                message = {**message, "headers": [*others, (HEADER, request_id.encode())]}
            await send(message)

        before = _request_id.set(request_id)
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            _request_id.reset(before)


def _given(scope: Scope) -> str | None:
    values = [value for name, value in scope["headers"] if name.lower() == HEADER]
    return values[0].decode() if len(values) == 1 and _PLAIN.fullmatch(values[0]) else None
