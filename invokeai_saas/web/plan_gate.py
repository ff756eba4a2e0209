"""What a plan says of every request, before any route is asked: API keys need a plan with API access, uploads room in the storage.

    IdentityMiddleware ─► PlanGate ─► the interface's script ─► InvokeAI's application

Pure ASGI: InvokeAI's own upload routes turn every error into a 500, so the answer is given here. Jobs are gated where they are
enqueued (jobs/admission.py).
"""

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from invokeai_saas.accounts.api import body_of
from invokeai_saas.accounts.identify import caller_now
from invokeai_saas.accounts.model import Principal
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.jobs.admission import storage_used
from invokeai_saas.plans import gate
from invokeai_saas.plans.catalog import entitlement_of
from invokeai_saas.plans.errors import PlanRefused

# What somebody whose plan has ended still needs: to see who they are, what there is to choose, and to pay.
ALWAYS = ("/api/v1/auth/", "/api/v1/subscriptions/", "/api/v1/credits/")
WRITING = frozenset({"POST", "PUT", "PATCH"})
FORM = "multipart/form-data"


class PlanGate:
    """`app` for those whose plan allows it."""

    def __init__(self, app: ASGIApp, database: PostgresDatabase) -> None:
        self._app, self._database = app, database

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Costs nothing but a look at the headers where there is nothing to ask."""
        caller = caller_now.get() if scope["type"] == "http" else None
        if caller is not None:
            by_key, bytes_to_come = _by_key(scope, caller), _uploaded_bytes(scope)
            if by_key or bytes_to_come is not None:
                try:
                    await run_in_threadpool(self._check, caller, by_key, bytes_to_come)
                except PlanRefused as error:
                    await JSONResponse({**body_of(error), "detail": str(error)}, status_code=error.status)(scope, receive, send)
                    return
        await self._app(scope, receive, send)

    def _check(self, caller: Principal, by_key: bool, bytes_to_come: int | None) -> None:
        with self._database.postgres() as cursor:
            entitlement = entitlement_of(cursor, caller.user_id)
            used = 0 if bytes_to_come is None else storage_used(cursor, caller.user_id)
        if by_key:
            gate.check_api_key(entitlement)
        if bytes_to_come is not None:
            gate.check_upload(entitlement, storage_used_bytes=used, adding_bytes=bytes_to_come)


def _by_key(scope: Scope, caller: Principal) -> bool:
    return caller.kind == "api_key" and not str(scope["path"]).startswith(ALWAYS)


def _uploaded_bytes(scope: Scope) -> int | None:
    """How many bytes of files come with a request: files come in forms, and nothing else does. None for every other request."""
    if scope["method"] not in WRITING or not str(scope["path"]).startswith("/api/"):
        return None
    headers = Headers(scope=scope)
    if not headers.get("content-type", "").lower().startswith(FORM):
        return None
    length = headers.get("content-length", "")
    return int(length) if length.isdecimal() else 0
