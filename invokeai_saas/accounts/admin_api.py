"""The routes of admins (S3-172..175): HTTP in, one verb each, HTTP out."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response, status

from invokeai_saas.accounts import admin, audit, forms
from invokeai_saas.accounts.api import Caller, limited_caller, web_of


def admins_only(caller: Caller) -> None:
    """Asked before the body is looked at: who may not be here learns nothing of its form."""
    caller.demand_admin()


ADMINS_ONLY = [limited_caller("admin"), Depends(admins_only)]
admin_router = APIRouter(prefix="/v1/admin", tags=["admin"], dependencies=ADMINS_ONLY)
UserId = Annotated[str, Path(max_length=64, pattern=r"^[\w.-]+$")]


@admin_router.get("/users")
def list_users(
    caller: Caller,
    request: Request,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    search: Annotated[str | None, Query(max_length=255)] = None,
) -> forms.UserPage:
    """Accounts, newest first; `search` looks into address and name (S3-172)."""
    # Postgres takes no NUL, and nobody's name has one.
    found, total = admin.list_users(web_of(request).accounts, caller, page=page, limit=limit, search=(search or "").replace("\0", ""))
    items = [forms.UserDTO.of(account) for account in found]
    return forms.UserPage(items=items, page=page, pages=-(-total // limit), per_page=limit, total=total)


@admin_router.post("/users", status_code=status.HTTP_201_CREATED)
def create_user(body: forms.NewUser, caller: Caller, request: Request, response: Response) -> forms.NewUserDTO:
    """Make a verified account, also while signup is closed; only super_admins give roles."""
    account, made = admin.create(
        web_of(request).accounts, caller, email=body.email, name=body.display_name, role=body.role, password=body.password
    )
    response.headers["Cache-Control"] = "no-store"
    shown: forms.NewUserDTO = forms.NewUserDTO.model_validate({**forms.UserDTO.of(account).model_dump(), "password": made})
    return shown


@admin_router.get("/users/{user_id}")
def get_user(user_id: UserId, caller: Caller, request: Request) -> forms.UserDetailDTO:
    """An account and what it holds (S3-173)."""
    account, counts = admin.detail(web_of(request).accounts, caller, user_id)
    shown: forms.UserDetailDTO = forms.UserDetailDTO.model_validate({**forms.UserDTO.of(account).model_dump(), **counts})
    return shown


@admin_router.patch("/users/{user_id}")
def patch_user(user_id: UserId, body: forms.AdminUserUpdate, caller: Caller, request: Request) -> forms.UserDTO:
    """Change name, role, state (S3-174); only super_admins give roles."""
    return forms.UserDTO.of(admin.change(web_of(request).accounts, caller, user_id, body.sent()))


@admin_router.post("/users/{user_id}/deactivate")
def deactivate_user(user_id: UserId, caller: Caller, request: Request) -> forms.Done:
    """End the account's logins and cancel its jobs, running ones too (S3-175)."""
    admin.deactivate(web_of(request).accounts, caller, user_id)
    return forms.Done()


@admin_router.delete("/users/{user_id}")
def delete_user(user_id: UserId, caller: Caller, request: Request) -> forms.Done:
    """Erase an account and everything in it."""
    admin.delete(web_of(request).accounts, caller, user_id)
    return forms.Done()


@admin_router.get("/audit-log")
def read_audit_log(
    caller: Caller,
    request: Request,
    target_id: Annotated[str | None, Query(max_length=64, pattern=r"^[\w.-]+$")] = None,
    before: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> list[forms.AuditEntry]:
    """The newest lines of the audit log; `before` is the last line of the page before."""
    rows = audit.read(web_of(request).accounts, caller, target_id=target_id, before=before, limit=limit)
    return [forms.AuditEntry.model_validate(row) for row in rows]
