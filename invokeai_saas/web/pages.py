"""The pages of accounts under /account: sign up, look into your mail, verify, forgot, reset, one's own account, plan and credits.

A page holds no one's data: its script asks the API for it, with the token that InvokeAI's interface keeps in localStorage. Mount
`pages_router` before InvokeAI's "/" and after accounts.api.install(), whose policy says whether signup is open.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from invokeai_saas.accounts.api import web_of
from invokeai_saas.billing.model import PACKS, Billing
from invokeai_saas.web import billing_texts
from invokeai_saas.web.texts import LANGUAGES, SCRIPT_WORDS, WORDS

FOLDER = Path(__file__).parent
STATIC = {"account.css": "text/css", "account.js": "text/javascript", "billing.js": "text/javascript", "session.js": "text/javascript"}
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


def _page(request: Request, lang: str | None, name: str, **more: Any) -> HTMLResponse:
    language = language_of(request, lang)
    own = billing_texts if name == "billing" else None
    html = templates.get_template(f"{name}.html").render(
        page=name,
        language=language,
        languages=LANGUAGES,
        # Kept from page to page when it was asked for.
        suffix=f"?lang={lang}" if lang in LANGUAGES else "",
        words=WORDS[language] | (own.WORDS[language] if own else {}),
        script_words=json.dumps(SCRIPT_WORDS[language] | (own.SCRIPT_WORDS[language] if own else {}), ensure_ascii=False),
        root=str(request.scope.get("root_path", "")),
        signup_open=web_of(request).accounts.policy.signup_open,
        **more,
    )
    return HTMLResponse(html, headers={**HEADERS, "Content-Language": language})


@pages_router.get("")
def account(request: Request, lang: Lang = None) -> HTMLResponse:
    """Name, password, API keys, sign out everywhere, delete."""
    return _page(request, lang, "account")


@pages_router.get("/billing")
def billing(request: Request, lang: Lang = None) -> HTMLResponse:
    """One's plan and credits, and what can be bought. Stripe sends customers back to it, and letters lead to it."""
    shop: Billing = request.app.state.saas_billing
    sold = {"sells": shop.gateway is not None, "currency": shop.policy.currency, "packs": PACKS.values()}
    return _page(request, lang, "billing", metered=request.app.state.saas_metering, **sold)


@pages_router.get("/subscription")
def subscription(request: Request) -> RedirectResponse:
    """Where letters of earlier versions lead."""
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"{request.scope.get('root_path', '')}/account/billing{query}")


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
