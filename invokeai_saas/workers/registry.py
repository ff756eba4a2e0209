"""Which GPU workers there are: each keeps its own row of gpu_instances, everybody else reads them or asks for something.

    register ─► beat, beat, beat (what it does, and back: what an admin wants of it) ─► retire
                 `alive_until` passes without a beat ─► dead ─► after a day forgotten

A row is a worker's word about itself and counts until `alive_until`. Its key is a name that stays over restarts; the incarnation is one
life of it: who finds that the name belongs to another incarnation stops (TakenOver). Leases, not this table, decide who may write what.
Imports neither InvokeAI nor torch.
"""

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from typing import Literal
from uuid import UUID, uuid4

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.errors import BadSettings, SaasError

Status = Literal["starting", "available", "busy", "draining", "quarantined", "terminated"]
Wanted = Literal["drain", "resume"]
REASON = "the registry of GPU workers"
TIERS = ("basic", "high_performance", "dedicated")
# A worker beats every two seconds; seven missed beats are its end for the others.
BEAT_SECONDS, ALIVE_SECONDS = 2.0, 15.0
FORGET_AFTER_HOURS = 24
LONGEST_REASON = 500
# How the reason of a worker begins that was told to end: no resume brings it back.
ENDING = "it is ending"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:/-]{0,199}")
logger = logging.getLogger(__name__)

# A name is free when nobody has it, its worker ended, or was not heard of for as long as it said itself.
REGISTER = """
INSERT INTO gpu_instances AS known (name, incarnation, worker_id, tiers, device, gpu_name, memory_mb, model_keys, status, failures_in_a_row,
    started_at, last_heartbeat, alive_until)
VALUES (%(name)s, %(incarnation)s, %(worker_id)s, %(tiers)s, %(device)s, %(gpu_name)s, %(memory_mb)s, %(model_keys)s, 'starting', 0,
    clock_timestamp(), clock_timestamp(), clock_timestamp() + make_interval(secs => %(alive_seconds)s))
ON CONFLICT (name) DO UPDATE
SET incarnation = excluded.incarnation, worker_id = excluded.worker_id, tiers = excluded.tiers, device = excluded.device,
    gpu_name = excluded.gpu_name, memory_mb = excluded.memory_mb, used_memory_mb = NULL, utilization = NULL, status = 'starting',
    wanted = NULL, current_item_id = NULL, current_user_id = NULL, model_keys = excluded.model_keys, failures_in_a_row = 0, reason = NULL,
    started_at = excluded.started_at, last_heartbeat = excluded.last_heartbeat, alive_until = excluded.alive_until
WHERE known.status = 'terminated' OR known.alive_until < clock_timestamp()
RETURNING incarnation
"""
HOLDER = """
SELECT incarnation, last_heartbeat, extract(epoch FROM alive_until - clock_timestamp())::float AS counts_for
FROM gpu_instances WHERE name = %(name)s
"""
# A 'resume' was heard once the worker is out of quarantine.
BEAT = """
UPDATE gpu_instances
SET status = %(status)s, current_item_id = %(current_item)s, current_user_id = %(current_user)s, used_memory_mb = %(used_memory_mb)s,
    utilization = %(utilization)s, failures_in_a_row = %(failures_in_a_row)s, reason = %(reason)s,
    model_keys = CASE WHEN %(keep_models)s THEN model_keys ELSE %(model_keys)s END,
    wanted = CASE WHEN wanted = 'resume' AND %(status)s <> 'quarantined' THEN NULL ELSE wanted END,
    last_heartbeat = clock_timestamp(), alive_until = clock_timestamp() + make_interval(secs => %(alive_seconds)s)
WHERE incarnation = %(incarnation)s AND name = COALESCE(%(name)s::text, name)
RETURNING wanted
"""
RETIRE = """
UPDATE gpu_instances
SET status = 'terminated', current_item_id = NULL, current_user_id = NULL, used_memory_mb = NULL, utilization = NULL, reason = %(reason)s,
    last_heartbeat = clock_timestamp(), alive_until = clock_timestamp()
WHERE incarnation = %(incarnation)s AND name = COALESCE(%(name)s::text, name)
"""
COLUMNS = """
SELECT name, incarnation, worker_id, tiers, device, gpu_name, memory_mb, used_memory_mb, utilization, status, wanted, current_item_id,
    current_user_id, model_keys, failures_in_a_row, reason, started_at, last_heartbeat, alive_until,
    status <> 'terminated' AND alive_until > clock_timestamp() AS alive,
    extract(epoch FROM clock_timestamp() - last_heartbeat)::float AS silent_seconds
FROM gpu_instances
"""
ALL = COLUMNS + "ORDER BY name"
LIVE = COLUMNS + "WHERE status <> 'terminated' AND alive_until > clock_timestamp() ORDER BY name"
# For who enqueues: a worker that restarts, or whose machine is busy, is not gone yet.
SEEN = COLUMNS + "WHERE status <> 'terminated' AND last_heartbeat > clock_timestamp() - make_interval(secs => %s) ORDER BY name"
ONE = COLUMNS + "WHERE name = %s"
DRAIN = "UPDATE gpu_instances SET wanted = 'drain' WHERE name = %(name)s AND status <> 'terminated' AND alive_until > clock_timestamp()"
RESUME = """
UPDATE gpu_instances SET wanted = CASE WHEN status = 'quarantined' THEN 'resume' END
WHERE name = %(name)s AND status <> 'terminated' AND alive_until > clock_timestamp() AND NOT starts_with(COALESCE(reason, ''), %(ending)s)
"""
FORGET = "DELETE FROM gpu_instances WHERE alive_until < clock_timestamp() - make_interval(hours => %s)"


class NameTaken(SaasError):
    """A living worker has this name: the second one does not start."""

    status = 409


class TakenOver(SaasError):
    """Another incarnation has this worker's name, or the row is gone: this one was given up and stops."""

    status = 409


class WorkerEnds(SaasError):
    """It was told to end, by whoever runs its process: it takes nothing any more."""

    status = 409


class NoSuchWorker(SaasError):
    """No living worker has this name; the message has the nearest."""

    status = 404


@dataclass(frozen=True, slots=True)
class Instance:
    """What a worker says of itself when it starts: one device. `model_keys` None: it has, or can fetch, every model."""

    name: str
    worker_id: str
    tiers: tuple[str, ...]
    device: str
    gpu_name: str | None = None
    memory_mb: int | None = None
    model_keys: frozenset[str] | None = None

    def __post_init__(self) -> None:
        # It stands in addresses, in logs and, for good, in the audit log.
        if not _NAME.fullmatch(self.name):
            raise BadSettings(f"--name: expected up to 200 letters, digits and . _ - : /, got {self.name[:80]!r}")
        unknown = [tier for tier in self.tiers if tier not in TIERS]
        if unknown or not self.tiers:
            raise BadSettings(f"--tier: expected one or more of {', '.join(TIERS)}, got {unknown[0] if unknown else 'none'!r}")


@dataclass(frozen=True, slots=True)
class Registered:
    """A row: what the worker said last, and whether its word still counts (`alive`)."""

    name: str
    incarnation: UUID
    worker_id: str
    tiers: list[str]
    device: str
    gpu_name: str | None
    memory_mb: int | None
    used_memory_mb: int | None
    utilization: float | None
    status: Status
    wanted: Wanted | None
    current_item_id: int | None
    current_user_id: str | None
    model_keys: list[str] | None
    failures_in_a_row: int
    reason: str | None
    started_at: datetime
    last_heartbeat: datetime
    alive_until: datetime
    alive: bool
    silent_seconds: float

    @property
    def claims(self) -> bool:
        """Whether it takes new items, or will once it has started or is done with the one it has."""
        return self.alive and self.wanted != "drain" and self.status in ("starting", "available", "busy")

    @property
    def is_up(self) -> bool:
        """Whether it claims and has started: one that starts may need minutes, or never come up."""
        return self.claims and self.status != "starting"

    @property
    def shown_status(self) -> str:
        """The worker's own word while it counts, else `dead`."""
        return self.status if self.alive or self.status == "terminated" else "dead"


def register(
    database: PostgresDatabase,
    instance: Instance,
    *,
    incarnation: UUID | None = None,
    alive_seconds: float = ALIVE_SECONDS,
    look_seconds: float = 0.5,
) -> UUID:
    """Take the name and return the incarnation; raises NameTaken as soon as a heartbeat shows that the one who has it lives.

    A predecessor that was killed is waited for, until its word no longer counts: so a worker with a fixed name comes back by itself.
    `incarnation` is given where one process has several devices and lives as one.
    """
    values = {
        "name": instance.name,
        "incarnation": incarnation or uuid4(),
        "worker_id": instance.worker_id,
        "tiers": list(instance.tiers),
        "device": instance.device,
        "gpu_name": instance.gpu_name,
        "memory_mb": instance.memory_mb,
        "model_keys": None if instance.model_keys is None else sorted(instance.model_keys),
        "alive_seconds": alive_seconds,
    }
    first: tuple[UUID, datetime] | None = None
    while True:
        with tenancy.as_system(REASON), database.postgres() as cursor:
            row = cursor.execute(REGISTER, values).fetchone()
            holder = None if row is not None else cursor.execute(HOLDER, values).fetchone()
        if row is not None:
            taken: UUID = row["incarnation"]
            return taken
        if holder is not None:
            heard = (holder["incarnation"], holder["last_heartbeat"])
            if first is not None and heard != first:
                raise NameTaken(f"expected a name that no living worker has, got {instance.name}: give this one another with --name")
            if first is None:
                logger.info("%s is a worker's name: waiting up to %.0f s whether it lives", instance.name, max(holder["counts_for"], 0.0))
            first = heard
        time.sleep(look_seconds)


def beat(
    database: PostgresDatabase,
    incarnation: UUID,
    *,
    name: str | None = None,
    status: Status,
    current_item: int | None = None,
    current_user: str | None = None,
    used_memory_mb: int | None = None,
    utilization: float | None = None,
    failures_in_a_row: int = 0,
    reason: str | None = None,
    model_keys: frozenset[str] | Literal["as before"] | None = "as before",
    alive_seconds: float = ALIVE_SECONDS,
) -> Wanted | None:
    """Say what the worker does and hear what an admin wants of it; raises TakenOver.

    'drain': claim nothing more until it is None again. 'resume': leave the quarantine. `utilization` is 0.0 to 1.0. `name` is needed where
    several devices share the incarnation.
    """
    values = {
        "incarnation": incarnation,
        "name": name,
        "status": status,
        "current_item": current_item,
        "current_user": current_user,
        "used_memory_mb": used_memory_mb,
        "utilization": utilization,
        "failures_in_a_row": failures_in_a_row,
        "reason": None if reason is None else reason[:LONGEST_REASON],
        "keep_models": model_keys == "as before",
        "model_keys": sorted(model_keys) if isinstance(model_keys, frozenset) else None,
        "alive_seconds": alive_seconds,
    }
    with tenancy.as_system(REASON), database.postgres() as cursor:
        row = cursor.execute(BEAT, values).fetchone()
    if row is None:
        raise TakenOver("expected to have this worker's name, got another one that has it now")
    wanted: Wanted | None = row["wanted"]
    return wanted


def retire(database: PostgresDatabase, incarnation: UUID, *, name: str | None = None, reason: str | None = None) -> None:
    """The worker ends; its name is free at once. One that was taken over has nothing to say any more."""
    with tenancy.as_system(REASON), database.postgres() as cursor:
        cursor.execute(RETIRE, {"incarnation": incarnation, "name": name, "reason": None if reason is None else reason[:LONGEST_REASON]})


def live(database: PostgresDatabase) -> list[Registered]:
    """Workers whose word counts now, by name."""
    with tenancy.as_system(REASON), database.postgres() as cursor:
        return _rows(cursor.execute(LIVE).fetchall())


def seen_within(database: PostgresDatabase, *, seconds: float) -> list[Registered]:
    """Workers that beat within so many seconds and did not say that they ended, dead or alive, by name."""
    with tenancy.as_system(REASON), database.postgres() as cursor:
        return _rows(cursor.execute(SEEN, (seconds,)).fetchall())


def everybody(database: PostgresDatabase) -> list[Registered]:
    """The dead of the last day too, by name."""
    with tenancy.as_system(REASON), database.postgres() as cursor:
        return _rows(cursor.execute(ALL).fetchall())


def ask_to_drain(database: PostgresDatabase, name: str) -> Registered:
    """Have a worker claim nothing more; it hears of it at its next beat. Raises NoSuchWorker."""
    return _ask(database, name, DRAIN)


def ask_to_resume(database: PostgresDatabase, name: str) -> Registered:
    """Have a worker that drains, or is quarantined, claim again. Raises NoSuchWorker, WorkerEnds."""
    return _ask(database, name, RESUME)


def forget_dead(database: PostgresDatabase, *, hours: int = FORGET_AFTER_HOURS) -> int:
    """Remove the rows of workers that nobody heard of for a day; returns how many."""
    with tenancy.as_system(REASON), database.postgres() as cursor:
        return cursor.execute(FORGET, (hours,)).rowcount


def _ask(database: PostgresDatabase, name: str, statement: str) -> Registered:
    with tenancy.as_system(REASON), database.postgres() as cursor:
        changed = cursor.execute(statement.encode(), {"name": name, "ending": ENDING}).rowcount
        found = _rows(cursor.execute(ONE, (name,)).fetchall())
        if changed:
            return found[0]
        if found and found[0].alive:
            raise WorkerEnds(f"expected a worker that stays, got {name}: {found[0].reason}")
        near = _nearest(name, [row.name for row in _rows(cursor.execute(LIVE).fetchall())])
        raise NoSuchWorker(f"expected the name of a living worker, got {name!r}" + (f": {near}?" if near else ""))


def _nearest(name: str, living: Sequence[str]) -> str | None:
    """A device of the worker that was started under this name, else the name that looks most like it."""
    devices = [each for each in living if each.startswith(f"{name}/")]
    return next(iter(devices or get_close_matches(name, living, n=1)), None)


def _rows(rows: Sequence[dict[str, object]]) -> list[Registered]:
    return [Registered(**row) for row in rows]  # type: ignore[arg-type]
