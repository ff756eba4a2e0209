"""The cookies of a login: one that pictures are authenticated by, and one that lets a page go on without seeing its refresh token.

The refresh cookie travels to the refresh route only (path), from our own pages only (SameSite, and the request's Origin), and no
script can read it. It is as good as the token in it: spent at every use.
"""

from urllib.parse import urlsplit

from fastapi import Request, Response

from invokeai_saas.accounts.errors import NotAllowed, NotSignedIn
from invokeai_saas.accounts.tokens import Tokens

# InvokeAI's name of the cookie that <img> and <video> are authenticated by.
MEDIA_COOKIE = "invokeai_media_token"
REFRESH_COOKIE = "invokeai_refresh_token"
# What a client without an Origin header (not a browser) says to use the cookie all the same.
REFRESH_HEADER = "X-Session-Refresh"


def set_login(request: Request, response: Response, issued: Tokens, public_url: str) -> None:
    """Both cookies, for as long as their tokens last."""
    secure = request.url.scheme == "https" or public_url.startswith("https://")
    response.set_cookie(
        MEDIA_COOKIE,
        issued.access_token,
        max_age=issued.expires_in,
        httponly=True,
        secure=secure,
        samesite="lax",
        path=_media_path(request),
    )
    response.set_cookie(
        REFRESH_COOKIE,
        issued.refresh_token,
        max_age=issued.refresh_expires_in,
        httponly=True,
        secure=secure,
        samesite="strict",
        path=_refresh_path(request),
    )


def end_login(request: Request, response: Response) -> None:
    """Take both cookies back."""
    response.delete_cookie(MEDIA_COOKIE, path=_media_path(request))
    response.delete_cookie(REFRESH_COOKIE, path=_refresh_path(request))


def refresh_token_of(request: Request, public_url: str) -> str:
    """The refresh token that the cookie carries; raises NotAllowed for another site's page, NotSignedIn without a cookie."""
    token: str | None = request.cookies.get(REFRESH_COOKIE)
    if not token:
        raise NotSignedIn
    if not _is_own_page(request, public_url):
        raise NotAllowed("expected a request of this server's own pages")
    return token


def _is_own_page(request: Request, public_url: str) -> bool:
    origin = request.headers.get("origin")
    if origin is None:
        return REFRESH_HEADER in request.headers
    # The host as the browser knows it: behind a proxy only the public address says it.
    own = {request.headers.get("host"), urlsplit(public_url).netloc} - {"", None}
    return urlsplit(origin).netloc in own


def _media_path(request: Request) -> str:
    # Behind a proxy's prefix the browser knows the routes by the longer path.
    return str(request.scope.get("root_path", "")) + "/api/v1"


def _refresh_path(request: Request) -> str:
    return _media_path(request) + "/auth/refresh"
