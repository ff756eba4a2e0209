"""The routes of credits (S3-168, 169, 171), and an administrator's: adjust, export. HTTP in, one verb each, HTTP out."""

from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from invokeai_saas.accounts.admin_api import admins_only
from invokeai_saas.accounts.api import Caller, limited_caller, web_of
from invokeai_saas.credits import adjust, service, statistics
from invokeai_saas.credits.model import MOST_CREDITS, Balance, Source
from invokeai_saas.credits.statistics import Period
from invokeai_saas.db import tenancy
from invokeai_saas.web.idempotency import OnceDep

credits_router = APIRouter(prefix="/v1/credits", tags=["credits"])
admin_credits_router = APIRouter(prefix="/v1/admin/credits", tags=["admin"], dependencies=[limited_caller("admin"), Depends(admins_only)])
ROUTERS = (credits_router, admin_credits_router)
TransactionType = Literal["generation", "subscription_renewal", "purchase", "admin_grant", "refund", "trial", "expiry", "promotion"]


class CreditBalance(BaseModel):
    """C-01, of credits whose time is now: total = used up + held (by jobs at the moment) + remaining."""

    total_credits: int
    used_credits: int
    held_credits: int
    remaining_credits: int
    remaining_minutes: float
    remaining_value_usd: Decimal

    @classmethod
    def of(cls, balance: Balance) -> "CreditBalance":
        """As the books have it."""
        return cls(
            total_credits=balance.total_credits,
            used_credits=balance.used_credits,
            held_credits=balance.held_credits,
            remaining_credits=balance.remaining_credits,
            remaining_minutes=balance.remaining_minutes,
            remaining_value_usd=balance.remaining_value_usd,
        )


class CreditGrant(BaseModel):
    """A part of the balance: what is left of it goes at `valid_until`."""

    source: Source
    total_credits: int
    available_credits: int
    held_credits: int
    valid_from: datetime
    valid_until: datetime


class CreditTransaction(BaseModel):
    """A line of the ledger; `amount` is what came, negative what went."""

    id: UUID
    credit_id: UUID
    amount: int
    transaction_type: TransactionType
    description: str
    reference_id: str | None
    created_at: datetime


class TransactionPage(BaseModel):
    """Newest first."""

    items: list[CreditTransaction]
    page: int
    pages: int
    per_page: int
    total: int


class Used(BaseModel):
    """Jobs that ended, what they cost and how long they computed."""

    jobs: int = 0
    credits_consumed: int = 0
    compute_seconds: float = 0.0


class UsedByAction(Used):
    action_type: str


class UsedByModel(Used):
    model_used: str


class UsedByDay(Used):
    day: date


class UsageStats(Used):
    """From `start_date` to `end_date`, both days in UTC and both counted."""

    start_date: datetime
    end_date: datetime
    by_action: list[UsedByAction]
    by_model: list[UsedByModel]
    by_day: list[UsedByDay]


class Adjustment(BaseModel):
    """Credits to give for so many days, or to take when negative."""

    model_config = ConfigDict(extra="forbid", strict=True)
    user_id: str = Field(max_length=64, pattern=r"^[\w.-]+$")
    credits: int = Field(ge=-MOST_CREDITS, le=MOST_CREDITS)
    reason: str = Field(min_length=adjust.SHORTEST_REASON, max_length=1000)
    days: int = Field(default=30, ge=1, le=adjust.LONGEST_DAYS)


@credits_router.get("/balance")
def get_balance(caller: Caller, request: Request) -> CreditBalance:
    """What the caller has (S3-168)."""
    with tenancy.as_user(caller.user_id), web_of(request).accounts.database.postgres() as cursor:
        return CreditBalance.of(service.balance(cursor, caller.user_id))


@credits_router.get("/grants")
def list_grants(caller: Caller, request: Request) -> list[CreditGrant]:
    """What the balance is made of, the part that is drawn first first."""
    with tenancy.as_user(caller.user_id), web_of(request).accounts.database.postgres() as cursor:
        return [CreditGrant.model_validate(row) for row in service.grants(cursor, caller.user_id)]


@credits_router.get("/transactions")
def list_transactions(
    caller: Caller,
    request: Request,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    kind: Annotated[TransactionType | None, Query(alias="type")] = None,
) -> TransactionPage:
    """The caller's ledger, newest first (S3-169)."""
    with tenancy.as_user(caller.user_id), web_of(request).accounts.database.postgres() as cursor:
        found, total = statistics.transactions(cursor, user_id=caller.user_id, page=page, limit=limit, kind=kind)
    items = [CreditTransaction.model_validate(row) for row in found]
    return TransactionPage(items=items, page=page, pages=-(-total // limit), per_page=limit, total=total)


@credits_router.get("/usage")
def get_usage(
    caller: Caller,
    request: Request,
    period: Period = "month",
    start_date: date | None = None,
    end_date: date | None = None,
) -> UsageStats:
    """What the caller's jobs used (S3-171)."""
    since, until = statistics.window(period, start_date, end_date)
    with tenancy.as_user(caller.user_id), web_of(request).accounts.database.postgres() as cursor:
        found = statistics.usage(cursor, user_id=caller.user_id, since=since, until=until)
    shown: UsageStats = UsageStats.model_validate({**found, "start_date": since, "end_date": until})
    return shown


@admin_credits_router.post("/adjust", response_model=CreditBalance)
def adjust_credits(body: Adjustment, caller: Caller, request: Request, once: OnceDep) -> Any:
    """Give somebody credits or take them, with a reason; the audit log keeps it."""
    accounts = web_of(request).accounts
    wanted = body.model_dump()
    return once.in_transaction(lambda: CreditBalance.of(adjust.adjust(accounts, caller, **wanted)))


@admin_credits_router.get("/{table}.csv", response_class=StreamingResponse)
def export_csv(
    table: Annotated[Literal["transactions", "usage"], Path()],
    request: Request,
    period: Period = "month",
    start_date: date | None = None,
    end_date: date | None = None,
) -> StreamingResponse:
    """Everybody's ledger or usage as CSV, oldest first."""
    since, until = statistics.window(period, start_date, end_date)
    lines = statistics.export(web_of(request).accounts.database, table, since=since, until=until)
    headers = {"Content-Disposition": f'attachment; filename="{table}.csv"', "Cache-Control": "no-store"}
    return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=headers)
