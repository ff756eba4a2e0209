"""What the verbs of accounts share: the policy's numbers, an account as stored, who is calling, and the bundle they all take first."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from invokeai_saas.accounts.errors import NotAllowed
from invokeai_saas.db.database import PostgresDatabase

Role = Literal["user", "admin", "super_admin"]
ROLES: tuple[Role, ...] = ("user", "admin", "super_admin")
SCOPES = ("read", "write")


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountPolicy:
    """Lifetimes and addresses. `answer_seconds` is the least time that an answer about an address takes, known or unknown."""

    access: timedelta = timedelta(minutes=15)
    refresh: timedelta = timedelta(days=30)
    verify_link: timedelta = timedelta(days=2)
    reset_link: timedelta = timedelta(hours=1)
    # Data of an ended subscription: readable this long, announced this long before it goes.
    readable_after_end: timedelta = timedelta(days=30)
    notice_before_erasure: timedelta = timedelta(days=7)
    answer_seconds: float = 0.4
    public_url: str = "http://localhost:9090"
    signup_open: bool = True
    # "custom:role" for Cognito. Off unless set: by default Cognito lets users write their own custom attributes.
    oidc_role_claim: str = ""


@dataclass(frozen=True, slots=True)
class AccessChange:
    """What live connections must hear: InvokeAI's event of the same content is sent from it."""

    user_id: str
    is_admin: bool
    is_active: bool
    token_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """InvokeAI's user and ours in one; times of `users` are text in UTC, as InvokeAI keeps them."""

    user_id: str
    email: str
    display_name: str | None
    password_hash: str = field(repr=False)
    is_admin: int
    is_active: int
    created_at: str
    updated_at: str
    last_login_at: str | None
    token_epoch: int
    role: Role
    avatar_url: str | None
    email_verified_at: datetime | None
    access_ended_at: datetime | None
    deleted_at: datetime | None

    @property
    def may_enter(self) -> bool:
        """Active, not deleted, address verified."""
        return bool(self.is_active) and self.deleted_at is None and self.email_verified_at is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who is calling, proved on this request. `family_id` is set for logins, `key_id` for API keys."""

    account: Account
    kind: Literal["login", "api_key", "oidc"]
    scopes: tuple[str, ...] = SCOPES
    family_id: str | None = None
    key_id: str | None = None

    @property
    def user_id(self) -> str:
        """The tenant."""
        return self.account.user_id

    @property
    def role(self) -> Role:
        """As the database says now, not as a token said once."""
        return self.account.role

    def demand_scope(self, scope: str) -> None:
        """Raise NotAllowed unless the credential carries `scope`."""
        if scope not in self.scopes:
            raise NotAllowed(f"expected a key with scope {scope!r}")

    def demand_login(self) -> None:
        """Raise NotAllowed for API keys: a leaked key must not become a password, another key or an admin."""
        if self.kind == "api_key":
            raise NotAllowed("expected a login, got an API key")

    def demand_admin(self) -> None:
        """Raise NotAllowed below admin."""
        self.demand_login()
        if self.role == "user":
            raise NotAllowed("expected an admin")


@dataclass(frozen=True, slots=True)
class Accounts:
    """What every verb takes first. `erasers` run last inside the deleting transaction, and remove what no row knows."""

    database: PostgresDatabase
    policy: AccountPolicy = AccountPolicy()
    access_changed: Callable[[AccessChange], None] = lambda change: None
    erasers: tuple[Callable[[str], None], ...] = ()
    verify_oidc: Callable[[str], dict[str, Any]] | None = None
    # Runs inside the transaction that proves an account's address for the first time: a trial begins.
    verified: Callable[[Any, Account], object] = lambda cursor, account: None
