"""The routes of plans (S3-162, S3-163, S3-182, S3-183): HTTP in, one verb each, HTTP out. Mount them under /api."""

from uuid import UUID

from fastapi import APIRouter, Request, status

from invokeai_saas.accounts.admin_api import ADMINS_ONLY
from invokeai_saas.accounts.api import Caller, web_of
from invokeai_saas.db import tenancy
from invokeai_saas.plans import catalog
from invokeai_saas.plans.forms import AdminPlanDTO, PlanCreate, PlanDTO, PlanUpdate, SubscriptionDTO

plans_router = APIRouter(prefix="/v1/subscriptions", tags=["subscriptions"])
admin_plans_router = APIRouter(prefix="/v1/admin/plans", tags=["admin"], dependencies=ADMINS_ONLY)


@plans_router.get("/plans")
def list_plans(caller: Caller, request: Request) -> list[PlanDTO]:
    """What is for sale and the trial, cheapest first; what only admins give is not shown."""
    with tenancy.as_user(caller.user_id), web_of(request).accounts.database.postgres() as cursor:
        return [PlanDTO.of(plan) for plan in catalog.list_active(cursor) if plan.plan_type != "internal"]


@plans_router.get("/my")
def my_subscription(caller: Caller, request: Request) -> SubscriptionDTO:
    """The plan that counts for the caller now; status "none" without one."""
    with tenancy.as_user(caller.user_id), web_of(request).accounts.database.postgres() as cursor:
        entitlement = catalog.entitlement_of(cursor, caller.user_id)
        return SubscriptionDTO.of(entitlement, catalog.subscription_of(cursor, caller.user_id))


@admin_plans_router.get("")
def list_all_plans(caller: Caller, request: Request) -> list[AdminPlanDTO]:
    """Every plan with its cost and margin, inactive ones too."""
    return [AdminPlanDTO.of(plan) for plan in catalog.list_all(web_of(request).accounts, caller)]


@admin_plans_router.post("", status_code=status.HTTP_201_CREATED)
def create_plan(body: PlanCreate, caller: Caller, request: Request) -> AdminPlanDTO:
    """A new plan."""
    made = catalog.create(web_of(request).accounts, caller, body.values(), currency=_currency(request))
    return AdminPlanDTO.of(made)


@admin_plans_router.patch("/{plan_id}")
def change_plan(plan_id: UUID, body: PlanUpdate, caller: Caller, request: Request) -> AdminPlanDTO:
    """Change some fields; who is on the plan gets the new limits at once."""
    changed = catalog.change(web_of(request).accounts, caller, plan_id, body.values(), currency=_currency(request))
    return AdminPlanDTO.of(changed)


def _currency(request: Request) -> str | None:
    """What Stripe is asked in; None where nothing is sold."""
    billing = getattr(request.app.state, "saas_billing", None)
    return None if billing is None or billing.gateway is None else str(billing.policy.currency)


ROUTERS = (plans_router, admin_plans_router)
