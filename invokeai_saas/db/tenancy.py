"""Who is asking: the tenant context of the current thread or task, entered explicitly and never guessed.

Tenant = user. Work for nobody in particular (migrations, reapers, logins) enters the system context with a reason; a test lists
those call sites. Threads of an executor do not inherit the context: hand them `carry(function)`.
"""

import contextvars
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import ParamSpec, TypeVar

from psycopg import sql

from invokeai_saas.errors import TenantContextClash, TenantContextMissing

APP_ROLE, SYSTEM_ROLE = "invokeai_app", "invokeai_system"
# Upstream's owner of defaults; nobody logs in as it.
SYSTEM_USER_ID = "system"
# Both last until the end of the transaction; the settings then read as '', which the policies take for nobody.
ENTER_CONTEXT = """SET LOCAL ROLE {role};
SELECT set_config('app.current_user_id', {user_id}, true), set_config('app.sharing', {sharing}, true)"""

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Context:
    """A user, or the system with a reason; never both, never neither."""

    user_id: str | None = None
    reason: str | None = None

    @property
    def is_system(self) -> bool:
        """True for work that sees all tenants."""
        return self.user_id is None

    def enter_sql(self, *, sharing: bool) -> bytes:
        """What a transaction sends before anything else."""
        return _enter_sql(SYSTEM_ROLE if self.is_system else APP_ROLE, self.user_id or "", "on" if sharing else "off")


@lru_cache(maxsize=4096)
def _enter_sql(role: str, user_id: str, sharing: str) -> bytes:
    """Composed once per user: every transaction begins with it."""
    composed = sql.SQL(ENTER_CONTEXT).format(role=sql.Identifier(role), user_id=sql.Literal(user_id), sharing=sql.Literal(sharing))
    return composed.as_bytes()


_context: contextvars.ContextVar[Context | None] = contextvars.ContextVar("invokeai_saas_tenant", default=None)


def current() -> Context:
    """The context of this thread or task; raises TenantContextMissing, before any SQL, when none was entered."""
    context = _context.get()
    if context is None:
        raise TenantContextMissing("expected a tenant context, got none: enter as_user(user_id) or as_system(reason) first")
    return context


def current_or_none() -> Context | None:
    """The context, or None outside of any."""
    return _context.get()


@contextmanager
def as_user(user_id: str) -> Iterator[None]:
    """Work for one user. Inside another user's context it is refused: one request has one tenant."""
    if not user_id or user_id == SYSTEM_USER_ID:
        raise TenantContextClash(f"expected the id of a real user, got {user_id!r}")
    outer = _context.get()
    if outer is not None and outer.user_id not in (None, user_id):
        raise TenantContextClash("expected the tenant of the surrounding context, got another user")
    with _entered(Context(user_id=user_id)):
        yield


@contextmanager
def as_system(reason: str) -> Iterator[None]:
    """Work across tenants; `reason` says why in a few words."""
    if not reason.strip():
        raise TenantContextClash("expected a reason for system work, got none")
    with _entered(Context(reason=reason)):
        yield


@contextmanager
def as_nobody() -> Iterator[None]:
    """No context, whatever the task was started in: where a request begins, before anybody is known."""
    with _entered(None):
        yield


def carry(function: Callable[P, R]) -> Callable[P, R]:
    """`function` bound to a copy of the current context, for threads of an executor."""
    copied = contextvars.copy_context()

    def carried(*args: P.args, **kwargs: P.kwargs) -> R:
        return copied.copy().run(function, *args, **kwargs)

    return carried


@contextmanager
def _entered(context: Context | None) -> Iterator[None]:
    outer = _context.get()
    _context.set(context)
    try:
        yield
    finally:
        _context.set(outer)
