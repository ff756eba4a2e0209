"""The pages of accounts under /account: sign up, look into your mail, verify, forgot, reset, and one's own account.

A page holds no one's data: its script asks the API for it, with the token that InvokeAI's interface keeps in localStorage. Mount
`pages_router` before InvokeAI's "/" and after accounts.api.install(), whose policy says whether signup is open.
"""

import json
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from invokeai_saas.accounts.api import web_of
from invokeai_saas.web.texts import LANGUAGES, SCRIPT_WORDS, WORDS

FOLDER = Path(__file__).parent
STATIC = {"account.css": "text/css", "account.js": "text/javascript", "session.js": "text/javascript"}
# Nothing inline, nothing from elsewhere, no form that a browser would send by itself (with a password in it).
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Vary": "Accept-Language",
}

pages_router = APIRouter(prefix="/account", include_in_schema=False)
templates = Environment(
    loader=FileSystemLoader(FOLDER / "templates"), autoescape=select_autoescape(), undefined=StrictUndefined, auto_reload=False
)
Lang = Annotated[Literal["en", "ko"] | None, Query()]


def language_of(request: Request, lang: str | None) -> str:
    """What ?lang= says, else the most wanted of Accept-Language that there is, else English."""
    if lang in LANGUAGES:
        return str(lang)
    wanted = [_weighed(part) for part in request.headers.get("accept-language", "").split(",")]
    for weight, name in sorted(wanted, key=lambda pair: -pair[0]):
        if weight > 0 and name in LANGUAGES:
            return name
    return "en"


def _weighed(part: str) -> tuple[float, str]:
    name, _, weight = part.partition(";q=")
    try:
        return float(weight or 1), name.strip().lower().partition("-")[0]
    except ValueError:
        return 0.0, ""


def _page(request: Request, lang: str | None, name: str) -> HTMLResponse:
    language = language_of(request, lang)
    html = templates.get_template(f"{name}.html").render(
        page=name,
        language=language,
        languages=LANGUAGES,
        # Kept from page to page when it was asked for.
        suffix=f"?lang={lang}" if lang in LANGUAGES else "",
        words=WORDS[language],
        script_words=json.dumps(SCRIPT_WORDS[language], ensure_ascii=False),
        root=str(request.scope.get("root_path", "")),
        signup_open=web_of(request).accounts.policy.signup_open,
    )
    return HTMLResponse(html, headers={**HEADERS, "Content-Language": language})


@pages_router.get("")
def account(request: Request, lang: Lang = None) -> HTMLResponse:
    """Name, password, API keys, sign out everywhere, delete."""
    return _page(request, lang, "account")


@pages_router.get("/sign-up")
def sign_up(request: Request, lang: Lang = None) -> HTMLResponse:
    """The form that begins an account."""
    return _page(request, lang, "sign-up")


@pages_router.get("/check-mail")
def check_mail(request: Request, lang: Lang = None) -> HTMLResponse:
    """Look into your mail: the same for known and unknown addresses."""
    return _page(request, lang, "check-mail")


@pages_router.get("/verify-email")
def verify_email(request: Request, lang: Lang = None) -> HTMLResponse:
    """A button that follows a letter's link: programs that open links in letters do not spend it."""
    return _page(request, lang, "verify-email")


@pages_router.get("/forgot-password")
def forgot_password(request: Request, lang: Lang = None) -> HTMLResponse:
    """Asks for a letter."""
    return _page(request, lang, "forgot-password")


@pages_router.get("/reset-password")
def reset_password(request: Request, lang: Lang = None) -> HTMLResponse:
    """Sets a password by a letter's link."""
    return _page(request, lang, "reset-password")


@pages_router.get("/static/{name}")
def static(name: str) -> Response:
    """Our style and scripts; browsers ask each time whether they are still the same."""
    if name not in STATIC:
        raise HTTPException(404, "expected one of this package's files")
    headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    return FileResponse(FOLDER / "static" / name, media_type=STATIC[name], headers=headers)
