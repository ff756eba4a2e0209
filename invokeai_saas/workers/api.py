"""The routes of the fleet for admins: what every GPU worker does (S3-181), and drain and resume, which the audit log keeps."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field

from invokeai_saas.accounts import audit
from invokeai_saas.accounts.admin_api import ADMINS_ONLY
from invokeai_saas.accounts.api import Caller, web_of
from invokeai_saas.accounts.model import Accounts, Principal
from invokeai_saas.db import tenancy
from invokeai_saas.workers import registry, scaling
from invokeai_saas.workers.registry import Registered

gpu_router = APIRouter(prefix="/v1/admin/gpu", tags=["admin"], dependencies=ADMINS_ONLY)
# Names hold a host and a device with a slash between.
Name = Annotated[str, Path(max_length=200, pattern=r"^[A-Za-z0-9_][A-Za-z0-9._:/-]*$")]


class GPUInstance(BaseModel):
    """A worker: one device. `status` is `dead` where its last word does not count any more."""

    name: str
    status: str
    wanted: str | None = Field(description="What an admin asked and the worker has not come back from: drain or resume")
    reason: str | None
    tiers: list[str]
    device: str
    gpu_name: str | None
    memory_mb: int | None
    used_memory_mb: int | None
    utilization: float | None = Field(description="0.0 to 1.0")
    current_item_id: int | None
    current_user_id: str | None
    models: int | None = Field(description="How many models it has or can fetch; null: all")
    failures_in_a_row: int
    started_at: datetime
    last_heartbeat: datetime
    silent_seconds: float

    @classmethod
    def of(cls, row: Registered) -> "GPUInstance":
        """As the registry has it."""
        return cls(
            name=row.name,
            status=row.shown_status,
            wanted=row.wanted,
            reason=row.reason,
            tiers=row.tiers,
            device=row.device,
            gpu_name=row.gpu_name,
            memory_mb=row.memory_mb,
            used_memory_mb=row.used_memory_mb,
            utilization=row.utilization,
            # A dead worker's last word: the item runs elsewhere by now, or is done.
            current_item_id=row.current_item_id if row.alive else None,
            current_user_id=row.current_user_id if row.alive else None,
            models=None if row.model_keys is None else len(row.model_keys),
            failures_in_a_row=row.failures_in_a_row,
            started_at=row.started_at,
            last_heartbeat=row.last_heartbeat,
            silent_seconds=round(row.silent_seconds, 1),
        )


class GPUTier(BaseModel):
    """A tier's queue and workers, and how many workers it should have (C-41)."""

    tier: str
    pending: int
    runnable: int
    oldest_wait_seconds: float
    alive: int
    idle: int
    busy: int
    wanted: int
    step: int
    why: str
    looked_at: datetime


class GPUPoolStatus(BaseModel):
    """S3-181."""

    total: int = Field(description="Workers that live, whatever they do")
    statuses: dict[str, int] = Field(description="How many workers per status, dead ones of the last day too")
    tiers: list[GPUTier]
    instances: list[GPUInstance]


@gpu_router.get("/status")
def gpu_status(request: Request) -> GPUPoolStatus:
    """All workers and all tiers."""
    database = web_of(request).accounts.database
    return pool_status(registry.everybody(database), scaling.last(database))


@gpu_router.post("/{name:path}/drain")
def drain(name: Name, caller: Caller, request: Request) -> GPUInstance:
    """Have a worker finish what it runs and claim nothing more, until it is resumed."""
    return GPUInstance.of(ask(web_of(request).accounts, caller, name, "drain"))


@gpu_router.post("/{name:path}/resume")
def resume(name: Name, caller: Caller, request: Request) -> GPUInstance:
    """Have a worker that drains, or that quarantined itself, claim again."""
    return GPUInstance.of(ask(web_of(request).accounts, caller, name, "resume"))


def ask(accounts: Accounts, caller: Principal, name: str, what: str) -> Registered:
    """Ask a worker for something and write down who did, both or neither. Raises NoSuchWorker."""
    caller.demand_admin()
    with tenancy.as_system("an admin drains or resumes a worker"), accounts.database.postgres() as cursor:
        asked = registry.ask_to_drain if what == "drain" else registry.ask_to_resume
        row = asked(accounts.database, name)
        audit.append(cursor, caller.user_id, f"gpu.{what}", details={"worker": name, "was": row.status})
    return row


def pool_status(workers: Sequence[Registered], advice: Sequence[scaling.Advice]) -> GPUPoolStatus:
    """What the route answers."""
    statuses: Counter[str] = Counter(row.shown_status for row in workers)
    tiers: list[Any] = [GPUTier.model_validate(each, from_attributes=True) for each in advice]
    return GPUPoolStatus(
        total=sum(row.alive for row in workers), statuses=dict(statuses), tiers=tiers, instances=[GPUInstance.of(row) for row in workers]
    )
