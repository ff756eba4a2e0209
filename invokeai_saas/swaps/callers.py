"""Who calls InvokeAI's routes: the account that the middleware proved a moment ago, not a second look at the token and the database.

Put in before the routers are imported, because each of them copies the annotations; `demand_ours` then looks at every route.
"""

from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import Cookie, Depends, HTTPException
from fastapi.security import HTTPAuthorizationCredentials
from invokeai.app.api import auth_dependencies as upstream
from invokeai.app.services.auth.token_service import TokenData

from invokeai_saas.accounts.identify import caller_now
from invokeai_saas.errors import SaasError

# Named in /openapi.json; the credential itself was read before any route.
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(upstream.security)]
MediaToken = Annotated[str | None, Cookie(alias=upstream.MEDIA_TOKEN_COOKIE)]
ANNOTATIONS = ("CurrentUser", "CurrentUserOrDefault", "CurrentMediaUserOrDefault", "AdminUser", "AdminUserOrDefault")


async def get_current_user(credentials: Credentials) -> TokenData:
    """The caller; 401 without one."""
    return _caller()


async def get_current_user_or_default(credentials: Credentials) -> TokenData:
    """The same: upstream's default is for one user without a login."""
    return _caller()


async def get_current_media_user_or_default(credentials: Credentials, media_token: MediaToken = None) -> TokenData:
    """The caller of a picture or video, proved by the header or the cookie."""
    return _caller()


async def require_admin(current_user: Annotated[TokenData, Depends(get_current_user)]) -> TokenData:
    """A super_admin; 403 for everybody else."""
    if not current_user.is_admin:
        raise HTTPException(status_code=403, detail="Admin privileges required")
    return current_user


def install_callers() -> None:
    """InvokeAI's annotations ask for our callers from here on."""
    asked = (get_current_user, get_current_user_or_default, get_current_media_user_or_default, require_admin, require_admin)
    for name, dependency in zip(ANNOTATIONS, asked, strict=True):
        if not hasattr(upstream, name):
            raise SaasError(f"expected {name} in {upstream.__name__}, which ours replaces")
        setattr(upstream, name, Annotated[TokenData, Depends(dependency)])


def demand_ours(routes: Iterable[Any]) -> None:
    """Raise where a route still asks InvokeAI's own dependencies who is calling."""
    for route in routes:
        asked = _upstreams_own(route.dependant)
        if asked:
            raise SaasError(f"expected {route.path} to ask for our callers, got {', '.join(sorted(asked))}")


def _upstreams_own(dependant: Any) -> set[str]:
    own = {dependant.call.__name__} if getattr(dependant.call, "__module__", None) == upstream.__name__ else set()
    return own.union(*(_upstreams_own(each) for each in dependant.dependencies))


def _caller() -> TokenData:
    caller = caller_now.get()
    if caller is None:
        raise HTTPException(status_code=401, detail="Authentication required", headers={"WWW-Authenticate": "Bearer"})
    account = caller.account
    return TokenData(
        user_id=account.user_id,
        email=account.email,
        is_admin=bool(account.is_admin),
        token_epoch=account.token_epoch,
    )
