"""Settings in; accounts, their limits and the way of their letters out."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from invokeai_saas.accounts.mail import SmtpTransport
from invokeai_saas.accounts.model import AccessChange, AccountPolicy, Accounts
from invokeai_saas.accounts.oidc import OidcVerifier
from invokeai_saas.accounts.rate_limits import PostgresStorage, RateLimiter
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.settings import Settings


def accounts_of(
    settings: Settings,
    database: PostgresDatabase,
    *,
    access_changed: Callable[[AccessChange], None] = lambda change: None,
    erasers: tuple[Callable[[str], None], ...] = (),
) -> Accounts:
    """`access_changed` tells live sockets and running jobs; `erasers` remove what no row of a user knows.

    Whoever's address is proved gets a trial, where plans count.
    """
    policy = AccountPolicy(
        access=timedelta(seconds=settings.access_token_seconds),
        public_url=settings.public_url,
        signup_open=settings.signup_open,
        oidc_role_claim=settings.oidc_role_claim,
    )
    accounts = Accounts(database, policy, access_changed, erasers, verifier_of(settings))
    if not settings.metering:
        return accounts
    from invokeai_saas.billing import trial

    return replace(accounts, verified=lambda cursor, account: trial.begin(accounts, cursor, account))


def verifier_of(settings: Settings) -> OidcVerifier | None:
    """None where no identity provider is set."""
    if settings.oidc_issuer is None or settings.oidc_audience is None:
        return None
    keys = settings.oidc_jwks_url or settings.oidc_issuer.rstrip("/") + "/.well-known/jwks.json"
    return OidcVerifier(settings.oidc_issuer, settings.oidc_audience, keys)


def limiter_of(database: PostgresDatabase) -> RateLimiter:
    """Counters in Postgres, so that all processes count together."""
    return RateLimiter(PostgresStorage(database))


def transport_of(settings: Settings) -> SmtpTransport | None:
    """None where no mail server is set: letters wait in the outbox."""
    if settings.smtp_host is None:
        return None
    password = settings.smtp_password.get_secret_value() if settings.smtp_password else None
    return SmtpTransport(settings.smtp_host, settings.smtp_port, settings.smtp_security, settings.smtp_username, password)
