"""A Bearer credential in, who is calling out: our access token, an API key, or an identity provider's token.

Asked on every request, and answered from the database: a logout, a deactivation or another role counts from the next request on.
"""

from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import jwt

from invokeai_saas.accounts import federation, keys, store, tokens
from invokeai_saas.accounts.errors import NotSignedIn
from invokeai_saas.accounts.model import SCOPES, Accounts, Principal
from invokeai_saas.db import tenancy

# Who the current request was proved to come from; a request's services need not ask the database again.
caller_now: ContextVar[Principal | None] = ContextVar("invokeai_saas_caller", default=None)
INTERNAL_LIFETIME = timedelta(minutes=5)
# Credentials without a login, which internal_token() makes short tokens for.
STANDS_IN_FOR = ("api_key", "oidc")


def identify(accounts: Accounts, credential: str | None) -> Principal:
    """Raises NotSignedIn, with one text, for everything that does not prove a live account."""
    if not credential:
        raise NotSignedIn
    if keys.looks_like_key(credential):
        account, key_id, scopes = keys.owner_of(accounts, credential)
        return Principal(account=account, kind="api_key", scopes=scopes, key_id=key_id)
    if accounts.verify_oidc is not None and _algorithm(credential) != tokens.ALGORITHM:
        return Principal(account=federation.account_of(accounts, accounts.verify_oidc(credential)), kind="oidc")
    return _from_access_token(accounts, credential)


def internal_token(accounts: Accounts, caller: Principal) -> str:
    """A short access token that InvokeAI's own routes and sockets take for the caller's credential."""
    secret = store.kept_signing_secret(accounts.database)
    # What the credential could not do, the token that stands in for it cannot do either.
    claims: dict[str, Any] = {"kind": caller.kind, "scopes": list(caller.scopes)}
    if caller.family_id is not None:
        claims["sid"] = caller.family_id
    return tokens.sign_access(caller.account, secret, lifetime=INTERNAL_LIFETIME, **claims)


def _from_access_token(accounts: Accounts, token: str) -> Principal:
    claims = tokens.read_access(token, store.kept_signing_secret(accounts.database))
    user_id, family_id = str(claims["user_id"]), claims.get("sid")
    with tenancy.as_system("a token says whose it is"), accounts.database.postgres() as cursor:
        account, login_stands = store.by_login(cursor, user_id, None if family_id is None else str(family_id))
    if account is None or not account.may_enter or account.token_epoch != claims["token_epoch"]:
        raise NotSignedIn
    # A login's token is as good as its login. InvokeAI makes tokens too, for a day and without a login behind them: no.
    if not (login_stands if family_id is not None else claims.get("kind") in STANDS_IN_FOR):
        raise NotSignedIn
    return Principal(
        account=account, kind=claims.get("kind", "login"), scopes=tuple(claims.get("scopes", SCOPES)), family_id=family_id
    )


def _algorithm(token: str) -> str | None:
    try:
        return jwt.get_unverified_header(token).get("alg")
    except jwt.InvalidTokenError:
        return None
