"""Workers of the registry for tests, and a queue with routes."""

from uuid import UUID

from saas.people import rows
from saas.rows import add_items

from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.workers import registry
from invokeai_saas.workers.registry import Instance, Status

ROUTE = "UPDATE session_queue SET tiers = %s WHERE item_id = ANY(%s)"


def worker(name: str = "gpu1/cuda:0", *tiers: str, **more: object) -> Instance:
    """What a worker says of itself; of tier basic."""
    told = {"worker_id": name.partition("/")[0], "device": "cuda:0", "gpu_name": "T4", "memory_mb": 16_000} | more
    return Instance(name=name, tiers=tiers or ("basic",), **told)  # type: ignore[arg-type]


def joined(database: PostgresDatabase, name: str, *tiers: str, status: Status = "available", alive_seconds: float = 60) -> UUID:
    """A worker that registered and said what it does."""
    incarnation = registry.register(database, worker(name, *tiers), alive_seconds=alive_seconds)
    registry.beat(database, incarnation, status=status, alive_seconds=alive_seconds)
    return incarnation


def ages(database: PostgresDatabase, name: str, seconds: float) -> None:
    """The worker was last heard of so long ago, and its word no longer counts."""
    rows(
        database,
        "UPDATE gpu_instances SET last_heartbeat = clock_timestamp() - make_interval(secs => %s),"
        " alive_until = clock_timestamp() - make_interval(secs => %s) WHERE name = %s",
        seconds,
        seconds - 0.001,
        name,
    )


def waiting(database: PostgresDatabase, owner: str, count: int, *tiers: str) -> list[int]:
    """Pending items that may run on these tiers; on any without."""
    items = add_items(database, owner, count, priority=len(rows(database, "SELECT 1 FROM session_queue WHERE user_id = %s", owner)))
    rows(database, ROUTE, list(tiers) or None, items)
    return items
