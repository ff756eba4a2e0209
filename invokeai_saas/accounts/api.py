"""The routes of accounts: HTTP in, one verb each, HTTP out. Mount the routers under /api after taking InvokeAI's own away.

`install()` puts what they need on the application. Whoever identified the caller before (the application's middleware) leaves the
Principal in `request.state.principal`; otherwise the Authorization header is read here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Path, Request, Response, status
from fastapi.exception_handlers import request_validation_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from invokeai_saas.accounts import cookies, erase, forms, keys, service, tokens
from invokeai_saas.accounts.cookies import MEDIA_COOKIE as MEDIA_COOKIE
from invokeai_saas.accounts.errors import NotSignedIn, TooManyRequests
from invokeai_saas.accounts.identify import identify
from invokeai_saas.accounts.model import Accounts, Principal
from invokeai_saas.accounts.rate_limits import RateLimiter, network_of
from invokeai_saas.errors import SaasError

# InvokeAI's routes that these replace: (method, path under /api). Its /status and /media-cookie stay.
REPLACED = (
    ("POST", "/v1/auth/login"),
    ("POST", "/v1/auth/logout"),
    ("GET", "/v1/auth/me"),
    ("PATCH", "/v1/auth/me"),
    ("POST", "/v1/auth/setup"),
    ("GET", "/v1/auth/generate-password"),
    ("GET", "/v1/auth/users"),
    ("POST", "/v1/auth/users"),
    ("GET", "/v1/auth/users/{user_id}"),
    ("PATCH", "/v1/auth/users/{user_id}"),
    ("DELETE", "/v1/auth/users/{user_id}"),
)
UNAVAILABLE = "the service cannot answer now"
# One text for known and unknown addresses.
LETTER_SENT = "If the address can be used, a letter is on its way."

auth_router = APIRouter(prefix="/v1/auth", tags=["authentication"])
keys_router = APIRouter(prefix="/v1/auth/api-keys", tags=["authentication"])
bearer = HTTPBearer(auto_error=False)


@dataclass(frozen=True)
class Web:
    """What the routes find on the application."""

    accounts: Accounts
    limiter: RateLimiter
    plan_of: Callable[[Principal], str] = lambda principal: "*"


def install(app: FastAPI, web: Web) -> None:
    """Give the application what the routes need, and its answer to our errors."""
    app.state.saas_accounts = web
    app.add_exception_handler(SaasError, answer_error)
    app.add_exception_handler(RequestValidationError, answer_invalid)


async def answer_error(_request: Request, error: Exception) -> JSONResponse:
    """The status that the error's class names; a 5xx does not say what happened inside."""
    return _answer(error)


def _answer(error: Exception) -> JSONResponse:
    code = getattr(error, "status", 500)
    headers = {"WWW-Authenticate": "Bearer"} if code == status.HTTP_401_UNAUTHORIZED else {}
    if isinstance(error, TooManyRequests):
        headers["Retry-After"] = str(error.retry_after_seconds)
    return JSONResponse({**body_of(error), "detail": str(error) if code < 500 else UNAVAILABLE}, status_code=code, headers=headers)


def body_of(error: Exception) -> dict[str, Any]:
    """What a refusal says beside its text: the limit, the value, the plan that would allow it; the credits that are missing."""
    body = getattr(error, "body", None)
    told: dict[str, Any] = body() if callable(body) else body or {}
    return told


async def answer_invalid(request: Request, error: Exception) -> Response:
    """A 422 without the input where the input may be a password; InvokeAI's routes answer as they did."""
    assert isinstance(error, RequestValidationError)
    if not any(part in request.url.path for part in ("/v1/auth/", "/v1/admin/")):
        return await request_validation_exception_handler(request, error)
    problems = [{name: problem[name] for name in ("type", "loc", "msg")} for problem in error.errors()]
    return JSONResponse({"detail": problems}, status_code=422)


def web_of(request: Request) -> Web:
    """What install() left."""
    web: Web = request.app.state.saas_accounts
    return web


def caller_of(request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> Principal:
    """Who is calling; raises NotSignedIn."""
    known: Principal | None = getattr(request.state, "principal", None)
    return known or identify(web_of(request).accounts, credentials.credentials if credentials else None)


Caller = Annotated[Principal, Depends(caller_of)]


def limited(endpoint: str) -> Any:
    """Counts by the client's address, before anything else is done."""

    def count(request: Request) -> None:
        web_of(request).limiter.hit(endpoint, network_of(request.client.host if request.client else None))

    return Depends(count)


def limited_caller(endpoint: str) -> Any:
    """Counts by the caller, as the caller's plan allows."""

    def count(request: Request, caller: Caller) -> None:
        web = web_of(request)
        web.limiter.hit(endpoint, caller.user_id, plan=web.plan_of(caller))

    return Depends(count)


@auth_router.post("/signup", status_code=status.HTTP_202_ACCEPTED, dependencies=[limited("signup")])
def signup(body: forms.SignupRequest, request: Request) -> forms.SignupResponse:
    """Begin an account (S3-154); a letter finishes it."""
    web = web_of(request)
    web.limiter.hit("letter_account", body.email)
    service.signup(web.accounts, email=body.email, password=body.password, name=body.name)
    return forms.SignupResponse(message=LETTER_SENT)


@auth_router.post("/verify-email", dependencies=[limited("verify")])
def verify_email(body: forms.TokenRequest, request: Request, response: Response) -> forms.VerifiedSession:
    """Follow a signup's link; answers as a login does."""
    done = service.verify_email(web_of(request).accounts, body.token)
    _set_cookies(request, response, done.tokens)
    return forms.VerifiedSession(**forms.Session.of(done.account, done.tokens).model_dump(), first_time=done.first_time)


@auth_router.post("/login", dependencies=[limited("login")])
def login(body: forms.LoginRequest, request: Request, response: Response) -> forms.Session:
    """Address and password for tokens (S3-155)."""
    web = web_of(request)
    web.limiter.hit("login_account", body.email)
    account, issued = service.login(web.accounts, email=body.email, password=body.password)
    _set_cookies(request, response, issued)
    return forms.Session.of(account, issued)


@auth_router.post("/refresh", dependencies=[limited("refresh")], response_model=forms.Session)
def refresh(request: Request, response: Response, body: forms.RefreshRequest | None = None) -> Any:
    """A refresh token for the next pair (S3-157); one that comes twice ends its login. Without a body the cookie's token is spent."""
    accounts = web_of(request).accounts
    if body is not None:
        account, issued = tokens.refresh(accounts, body.refresh_token)
        _set_cookies(request, response, issued)
        return forms.Session.of(account, issued)
    try:
        account, issued = tokens.refresh(accounts, cookies.refresh_token_of(request, accounts.policy.public_url))
    except NotSignedIn as error:
        refused = _answer(error)
        cookies.end_login(request, refused)
        return refused
    _set_cookies(request, response, issued)
    # No script needs to see it: the cookie has it.
    return forms.Session.of(account, issued).model_copy(update={"refresh_token": None})


@auth_router.post("/logout")
def logout(caller: Caller, request: Request, response: Response) -> forms.Done:
    """End this login (S3-156)."""
    service.logout(web_of(request).accounts, caller)
    cookies.end_login(request, response)
    return forms.Done()


@auth_router.post("/logout-everywhere", dependencies=[limited_caller("account")])
def logout_everywhere(caller: Caller, request: Request, response: Response) -> forms.Done:
    """End every login, this one included; API keys go on."""
    service.logout_everywhere(web_of(request).accounts, caller)
    cookies.end_login(request, response)
    return forms.Done()


@auth_router.post("/forgot-password", status_code=status.HTTP_202_ACCEPTED, dependencies=[limited("forgot")])
def forgot_password(body: forms.AddressRequest, request: Request) -> forms.Done:
    """Ask for a link by letter (S3-158)."""
    web = web_of(request)
    web.limiter.hit("letter_account", body.email)
    service.forgot_password(web.accounts, email=body.email)
    return forms.Done(message=LETTER_SENT)


@auth_router.post("/reset-password", dependencies=[limited("reset")])
def reset_password(body: forms.ResetRequest, request: Request) -> forms.Done:
    """Set a password by a link (S3-159); every login ends."""
    service.reset_password(web_of(request).accounts, secret=body.token, password=body.password)
    return forms.Done()


@auth_router.get("/me")
def get_me(caller: Caller) -> forms.UserDTO:
    """Oneself (S3-160)."""
    return forms.UserDTO.of(caller.account)


@auth_router.patch("/me", dependencies=[limited_caller("account")])
def patch_me(body: forms.UserUpdate, caller: Caller, request: Request, response: Response) -> forms.UserDTO:
    """Change name, picture or password (S3-161). A new password ends all logins; the headers carry this one's next tokens."""
    accounts, account = web_of(request).accounts, caller.account
    if body.new_password is not None:
        account, issued = service.change_password(accounts, caller, old=body.current_password or "", new=body.new_password)
        response.headers["X-Refreshed-Token"] = issued.access_token
        response.headers["X-Refresh-Token"] = issued.refresh_token
        _set_cookies(request, response, issued)
    if body.profile():
        account = service.change_me(accounts, caller, body.profile())
    return forms.UserDTO.of(account)


@auth_router.delete("/me", dependencies=[limited_caller("account")])
def delete_me(body: forms.DeleteMeRequest, caller: Caller, request: Request, response: Response) -> forms.Done:
    """Erase one's account and everything in it."""
    erase.delete_me(web_of(request).accounts, caller, password=body.password)
    cookies.end_login(request, response)
    return forms.Done()


@keys_router.get("")
def list_keys(caller: Caller, request: Request) -> list[forms.KeyDTO]:
    """One's API keys, without their secrets."""
    return [forms.KeyDTO.model_validate(row) for row in keys.list_keys(web_of(request).accounts, caller)]


@keys_router.post("", status_code=status.HTTP_201_CREATED, dependencies=[limited_caller("account")])
def create_key(body: forms.KeyRequest, caller: Caller, request: Request) -> forms.NewKeyDTO:
    """A new API key, shown this once."""
    lifetime = None if body.expires_in_days is None else timedelta(days=body.expires_in_days)
    row, text = keys.create(web_of(request).accounts, caller, name=body.name, scopes=list(body.scopes), lifetime=lifetime)
    made: forms.NewKeyDTO = forms.NewKeyDTO.model_validate({**row, "key": text})
    return made


@keys_router.delete("/{key_id}", dependencies=[limited_caller("account")])
def revoke_key(key_id: Annotated[str, Path(max_length=64, pattern=r"^[\w.-]+$")], caller: Caller, request: Request) -> forms.Done:
    """End an API key at once."""
    keys.revoke(web_of(request).accounts, caller, key_id)
    return forms.Done()


def _set_cookies(request: Request, response: Response, issued: tokens.Tokens) -> None:
    cookies.set_login(request, response, issued, web_of(request).accounts.policy.public_url)
