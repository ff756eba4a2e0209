"""The routes of the dashboards (S3-179, S3-180): JSON for pages, CSV for spreadsheets."""

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from invokeai_saas.accounts.admin_api import ADMINS_ONLY
from invokeai_saas.accounts.api import Caller, web_of
from invokeai_saas.admin import dashboards
from invokeai_saas.admin.dashboards import Period, Window

dashboards_router = APIRouter(prefix="/v1/admin/dashboard", tags=["admin"], dependencies=ADMINS_ONLY)
Asked = Annotated[Period, Query(description="How far back: 1, 7, 30, 91 or 365 days, today included")]
# A spreadsheet takes a cell that begins so for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Subscriptions(BaseModel):
    """Who runs on a plan now, and how many of them Stripe bills; the price is None where it is agreed by contract."""

    slug: str
    plan_type: str
    users: int
    billed: int
    currency: str
    monthly_revenue: Decimal | None


class Payments(BaseModel):
    """Of one kind and currency."""

    currency: str
    kind: str
    payments: int
    paid: Decimal
    refunded: Decimal
    credits: int


class Money(BaseModel):
    """An amount."""

    currency: str
    amount: Decimal


class Tier(BaseModel):
    """Work on one kind of GPU, and what its seconds cost us."""

    gpu_tier: str
    jobs: int
    seconds: float
    credits: int
    provider_credits: int
    cost: Decimal


class RevenueDay(BaseModel):
    """Payments of a day in UTC."""

    day: date
    currency: str
    paid: Decimal
    refunded: Decimal
    payments: int


class RevenueDashboard(BaseModel):
    """S3-179."""

    period: str
    since: datetime
    until: datetime
    monthly_recurring_revenue: Decimal
    subscriptions: list[Subscriptions]
    payments: list[Payments]
    net: list[Money]
    gpu_cost_usd: Decimal
    margin_usd: Decimal
    tiers: list[Tier]
    outstanding_credits: int
    days: list[RevenueDay]


class Action(BaseModel):
    """Jobs of one kind that ended one way. `overrun_seconds` ran beyond what was held: what recalibrates the prices."""

    action_type: str
    outcome: str
    jobs: int
    users: int
    seconds: float
    credits: int
    held: int
    overrun_seconds: float


class Model(BaseModel):
    """Jobs of one model."""

    model_used: str
    jobs: int
    seconds: float
    credits: int


class UsageDay(BaseModel):
    """A day in UTC."""

    day: date
    jobs: int
    users: int
    seconds: float
    credits: int


class UsageDashboard(BaseModel):
    """S3-180."""

    period: str
    since: datetime
    until: datetime
    active_users: int
    images: int
    videos: int
    images_per_hour: float
    jobs: int
    credits: int
    compute_seconds: float
    actions: list[Action]
    models: list[Model]
    days: list[UsageDay]


@dashboards_router.get("/revenue", response_model=RevenueDashboard)
def revenue(caller: Caller, request: Request, period: Asked = "month") -> Any:
    """What came in, what it cost, what is owed."""
    return dashboards.revenue(web_of(request).accounts, caller, Window.of(period))


@dashboards_router.get("/revenue.csv", response_class=Response)
def revenue_csv(caller: Caller, request: Request, period: Asked = "month") -> Response:
    """Payments per day and currency."""
    found = dashboards.revenue(web_of(request).accounts, caller, Window.of(period))
    return as_csv("revenue", list(RevenueDay.model_fields), found["days"])


@dashboards_router.get("/usage", response_model=UsageDashboard)
def usage(caller: Caller, request: Request, period: Asked = "month") -> Any:
    """Who worked with what, how long, and how it ended."""
    return dashboards.usage(web_of(request).accounts, caller, Window.of(period))


@dashboards_router.get("/usage.csv", response_class=Response)
def usage_csv(caller: Caller, request: Request, period: Asked = "month") -> Response:
    """Jobs, users, seconds and credits per day."""
    found = dashboards.usage(web_of(request).accounts, caller, Window.of(period))
    return as_csv("usage", list(UsageDay.model_fields), found["days"])


def as_csv(name: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Response:
    """A file with a heading line; no cell is a formula."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([_cell(row[column]) for column in columns] for row in rows)
    headers = {"Content-Disposition": f'attachment; filename="{name}.csv"', "Cache-Control": "no-store"}
    return Response(text.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
