"""InvokeAI's index.html in, the same page with our script in its head out (decision 33); and no token but ours to the interface.

InvokeAI answers changes with a one-day token of its own in X-Refreshed-Token, behind which no login stands: it is taken away.
"""

import jwt
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATH = "/account/static/session.js"
# Where InvokeAI's page is told from any other HTML.
MARK = b'<div id="root">'
MAX_PAGE_BYTES = 1_000_000
REFRESHED = "x-refreshed-token"
# What would let an answer be "unchanged", or be something else than the page's own bytes.
NOT_ASKED = (b"if-none-match", b"if-modified-since", b"accept-encoding", b"range")


class SessionScript:
    """Pure ASGI, outside of InvokeAI's application and its compression. `signup_open` shows the way to the sign-up page."""

    def __init__(self, app: ASGIApp, *, signup_open: bool) -> None:
        self._app, self._signup = app, "open" if signup_open else "closed"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Everything but pages and API answers passes as it is."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif _wants_page(scope):
            asked = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] not in NOT_ASKED]}
            await self._app(asked, receive, _Page(send, self._tag(scope)))
        else:
            await self._app(scope, receive, _without_foreign_token(send))

    def _tag(self, scope: Scope) -> bytes:
        root = str(scope.get("root_path", ""))
        # InvokeAI names its files relative to the page; on a page further down (/admin/users) they would be looked for there.
        deeper = str(scope["path"]).removeprefix(root).count("/") > 1
        base = f'<base href="{root}/">' if deeper else ""
        return f'{base}<script src="{root}{PATH}" data-signup="{self._signup}"></script>'.encode()


class _Page:
    """Holds an HTML answer back until it is whole; anything else goes through at once."""

    def __init__(self, send: Send, tag: bytes) -> None:
        self._send, self._tag = send, tag
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_whole_page(message):
            self._start = message
        elif self._start is None or message["type"] != "http.response.body":
            await self._send(message)
        else:
            await self._collect(message)

    async def _collect(self, message: Message) -> None:
        self._body += message.get("body", b"")
        if message.get("more_body") and len(self._body) <= MAX_PAGE_BYTES:
            return
        start, self._start = self._start, None
        assert start is not None
        body = self._body if message.get("more_body") else self._rewritten(start)
        await self._send(start)
        await self._send({**message, "body": body})

    def _rewritten(self, start: Message) -> bytes:
        place = self._body.find(b"<script")
        if MARK not in self._body or place < 0:
            return self._body
        body = self._body[:place] + self._tag + b"\n  " + self._body[place:]
        headers = MutableHeaders(raw=start["headers"])
        headers["content-length"] = str(len(body))
        # They name the stock page.
        del headers["etag"], headers["last-modified"]
        return body


def _wants_page(scope: Scope) -> bool:
    path = str(scope["path"]).removeprefix(str(scope.get("root_path", "")))
    html = "text/html" in Headers(scope=scope).get("accept", "")
    return scope["method"] == "GET" and html and not path.startswith(("/api/", "/account/"))


def _is_whole_page(message: Message) -> bool:
    headers = Headers(raw=message["headers"])
    is_html = headers.get("content-type", "").startswith("text/html")
    return message["status"] == 200 and is_html and "content-encoding" not in headers


def _without_foreign_token(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            if REFRESHED in headers and not _has_login(headers[REFRESHED]):
                del headers[REFRESHED]
        await send(message)

    return sending


def _has_login(token: str) -> bool:
    try:
        return "sid" in jwt.decode(token, options={"verify_signature": False})
    except jwt.InvalidTokenError:
        return False
