"""The routes that InvokeAI's own page of users calls (/admin/users), over our verbs: same paths, names and fields as InvokeAI's.

InvokeAI's `is_admin` is our super_admin (decision 21); admins reach plain users here as everywhere. The page shows `detail` as it
comes, so an error's is always a sentence: where FastAPI would answer a list of problems, these routes answer 400 and a sentence.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response, status
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from invokeai_saas.accounts import admin, forms, passwords
from invokeai_saas.accounts.admin_api import ADMINS_ONLY, UserId
from invokeai_saas.accounts.api import Caller, limited_caller, web_of

# The page has no pages and no search: the newest, and in X-Total-Count how many there are. /api/v1/admin/users finds the others.
MOST_LISTED = 1000


class SentenceRoute(APIRoute):
    """Answers a request that does not fit with a sentence: names of fields and what was expected, never their values."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As FastAPI's, but for validation."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                problems = [f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors()]
                return JSONResponse({"detail": "; ".join(problems)}, status_code=status.HTTP_400_BAD_REQUEST)

        return answer


stock_router = APIRouter(prefix="/v1/auth", tags=["authentication"], route_class=SentenceRoute)


@stock_router.get("/generate-password", dependencies=[limited_caller("account")])
def generate_password(_caller: Caller, response: Response) -> forms.GeneratePasswordResponse:
    """A password that meets the rules, for whoever is signed in; nothing is changed."""
    response.headers["Cache-Control"] = "no-store"
    return forms.GeneratePasswordResponse(password=passwords.random_password())


@stock_router.get("/users", dependencies=ADMINS_ONLY)
def list_users(caller: Caller, request: Request, response: Response) -> list[forms.UserDTO]:
    """The newest accounts, 1,000 at most; X-Total-Count says how many there are."""
    found, total = admin.list_users(web_of(request).accounts, caller, page=1, limit=MOST_LISTED, search=None)
    response.headers["X-Total-Count"] = str(total)
    return [forms.UserDTO.of(account) for account in found]


@stock_router.post("/users", status_code=status.HTTP_201_CREATED, dependencies=ADMINS_ONLY)
def create_user(body: forms.AdminUserCreateRequest, caller: Caller, request: Request) -> forms.UserDTO:
    """Make a verified account, also while signup is closed."""
    account, _none = admin.create(
        web_of(request).accounts,
        caller,
        email=body.email,
        name=body.display_name,
        role="super_admin" if body.is_admin else "user",
        password=body.password,
    )
    return forms.UserDTO.of(account)


@stock_router.get("/users/{user_id}", dependencies=ADMINS_ONLY)
def get_user(user_id: UserId, caller: Caller, request: Request) -> forms.UserDTO:
    """One account."""
    account, _counts = admin.detail(web_of(request).accounts, caller, user_id)
    return forms.UserDTO.of(account)


@stock_router.patch("/users/{user_id}", dependencies=ADMINS_ONLY)
def update_user(user_id: UserId, body: forms.AdminUserUpdateRequest, caller: Caller, request: Request) -> forms.UserDTO:
    """Change name, password, super_admin or not, active or not."""
    return forms.UserDTO.of(admin.change(web_of(request).accounts, caller, user_id, body.sent()))


@stock_router.delete("/users/{user_id}", status_code=status.HTTP_204_NO_CONTENT, dependencies=ADMINS_ONLY)
def delete_user(user_id: UserId, caller: Caller, request: Request) -> None:
    """Erase an account and everything in it."""
    admin.delete(web_of(request).accounts, caller, user_id)
