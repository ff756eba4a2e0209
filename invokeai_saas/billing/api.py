"""The routes of billing: HTTP in, one verb each, HTTP out. `install()` puts what they need on the application."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, FastAPI, Query, Request, status

from invokeai_saas.accounts.admin_api import ADMINS_ONLY
from invokeai_saas.accounts.api import Caller, limited_caller
from invokeai_saas.billing import forms, service, testers
from invokeai_saas.billing.model import Billing
from invokeai_saas.billing.webhooks import billing_of, webhooks_router
from invokeai_saas.web.idempotency import OnceDep

LIMITED = [limited_caller("account")]
subscriptions_router = APIRouter(prefix="/v1/subscriptions", tags=["billing"], dependencies=LIMITED)
purchase_router = APIRouter(prefix="/v1/credits", tags=["billing"], dependencies=LIMITED)
testers_router = APIRouter(prefix="/v1/admin/tester-plan", tags=["admin"], dependencies=ADMINS_ONLY)
# For app.include_router(..., prefix="/api").
ROUTERS = (subscriptions_router, purchase_router, testers_router, webhooks_router)


def install(app: FastAPI, billing: Billing, *, metering: bool = True) -> None:
    """Give the application what the routes and the page need; without `metering` plans and credits count for nothing."""
    app.state.saas_billing, app.state.saas_metering = billing, metering


@subscriptions_router.post("/subscribe", response_model=forms.CheckoutDTO)
def subscribe(body: forms.PlanRequest, caller: Caller, once: OnceDep, request: Request) -> Any:
    """A checkout of a plan (S3-164): send the browser to its address. 409 while a paid subscription runs."""
    billing = billing_of(request)
    return once.outside(lambda key: _checkout(service.subscribe(billing, caller, plan_id=body.plan_id, key=key)))


@subscriptions_router.put("/change-plan", response_model=forms.SubscriptionDTO)
def change_plan(body: forms.PlanRequest, caller: Caller, once: OnceDep, request: Request) -> Any:
    """Up at once, down at the end of the period (S3-165)."""
    billing = billing_of(request)
    return once.outside(lambda key: _subscription(service.change_plan(billing, caller, plan_id=body.plan_id, key=key)))


@subscriptions_router.post("/cancel", response_model=forms.SubscriptionDTO)
def cancel(caller: Caller, once: OnceDep, request: Request) -> Any:
    """End with the period (S3-166)."""
    billing = billing_of(request)
    return once.outside(lambda key: _subscription(service.cancel(billing, caller, key=key)))


@subscriptions_router.post("/reactivate", response_model=forms.SubscriptionDTO)
def reactivate(caller: Caller, once: OnceDep, request: Request) -> Any:
    """Go on after a cancellation that has not come into effect (S3-167)."""
    billing = billing_of(request)
    return once.outside(lambda key: _subscription(service.reactivate(billing, caller, key=key)))


@subscriptions_router.post("/portal")
def portal(caller: Caller, request: Request) -> forms.PortalDTO:
    """Stripe's pages for cards and invoices."""
    return forms.PortalDTO(url=service.portal(billing_of(request), caller))


@purchase_router.post("/purchase", response_model=forms.CheckoutDTO)
def purchase(body: forms.PurchaseRequest, caller: Caller, once: OnceDep, request: Request) -> Any:
    """A checkout of a pack of credits (S3-170)."""
    billing = billing_of(request)
    pack = body.pack if body.pack is not None else service.pack_of(body.amount or 0)
    return once.outside(lambda key: _checkout(service.purchase(billing, caller, pack=pack, key=key)))


@testers_router.post("/grant", status_code=status.HTTP_201_CREATED, response_model=forms.TesterGrantDTO)
def grant_tester(body: forms.TesterGrantRequest, caller: Caller, once: OnceDep, request: Request) -> Any:
    """Lend a user the tester plan and credits (S3-176)."""
    billing = billing_of(request)

    def work() -> forms.TesterGrantDTO:
        row = testers.grant(billing, caller, user_id=body.user_id, days=body.duration_days, reason=body.reason, amount=body.credits)
        return forms.TesterGrantDTO.of(row)

    return once.in_transaction(work, status=status.HTTP_201_CREATED)


@testers_router.delete("/grant/{grant_id}")
def revoke_tester(grant_id: UUID, caller: Caller, request: Request) -> forms.TesterGrantDTO:
    """End it and take back what is not spent (S3-177)."""
    return forms.TesterGrantDTO.of(testers.revoke(billing_of(request), caller, grant_id))


@testers_router.get("/grants")
def list_testers(
    caller: Caller,
    request: Request,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    active_only: bool = False,
) -> forms.TesterGrantPage:
    """Tester grants, newest first (S3-178)."""
    rows, total = testers.listed(billing_of(request), caller, page=page, limit=limit, active_only=active_only)
    items = [forms.TesterGrantDTO.of(row) for row in rows]
    return forms.TesterGrantPage(items=items, page=page, pages=-(-total // limit), per_page=limit, total=total)


def _checkout(made: service.Checkout) -> forms.CheckoutDTO:
    return forms.CheckoutDTO(session_id=made.session_id, url=made.url)


def _subscription(row: dict[str, Any]) -> forms.SubscriptionDTO:
    return forms.SubscriptionDTO(**{name: row[name] for name in forms.SubscriptionDTO.model_fields})
