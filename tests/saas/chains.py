"""Items in the middle of their lives, single and in chains of calls: claimed, suspended, with outputs; and what became of them."""

import json
from typing import Any
from uuid import UUID, uuid4

from saas.books import new_item
from saas.people import rows

from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.jobs.lease import Attempt, claim

RAN = {"id": "s", "graph": {"nodes": {"a": {"id": "a", "type": "add"}}, "edges": []}, "executed": ["a"], "results": {"a": {"value": 3}}}
FRESH = {"id": "s", "graph": RAN["graph"]}
ALIVE = """
INSERT INTO gpu_instances (name, incarnation, worker_id, tiers, device, status, alive_until, wanted)
VALUES (%s, %s, 'w', '{basic}', 'cuda:0', %s, clock_timestamp() + make_interval(secs => %s), %s)
"""


def claimed(database: PostgresDatabase, user_id: str = "ann", *, lease_seconds: float = 60.0) -> Attempt:
    """The user's next item, with a session that has run halfway."""
    attempt = claim(database, worker_id="w", lease_seconds=lease_seconds)
    assert attempt is not None and attempt.user_id == user_id
    rows(database, "UPDATE session_queue SET session = %s WHERE item_id = %s", json.dumps(RAN), attempt.item_id)
    return attempt


def item_of(database: PostgresDatabase, item_id: int) -> dict[str, Any]:
    """The row, with how long it still waits."""
    query = "SELECT *, extract(epoch FROM not_before - clock_timestamp())::float AS waits FROM session_queue WHERE item_id = %s"
    return rows(database, query, item_id)[0]


def attempts_of(database: PostgresDatabase, item_id: int) -> list[str]:
    """States of an item's attempts, in order."""
    return [row["state"] for row in rows(database, "SELECT state FROM job_attempts WHERE item_id = %s ORDER BY attempt_no", item_id)]


def suspend(database: PostgresDatabase, attempt: Attempt, *, seconds: float = 0.0) -> None:
    """The item called a workflow and waits."""
    finish = "UPDATE job_attempts SET state = 'finished', ended_at = now(), gpu_seconds = %s WHERE item_id = %s AND state = 'running'"
    rows(database, finish, seconds, attempt.item_id)
    rows(database, "UPDATE session_queue SET status = 'waiting' WHERE item_id = %s", attempt.item_id)


def call(database: PostgresDatabase, root: int, *, pin: UUID | None = None, user_id: str = "ann") -> int:
    """A workflow that `root` called."""
    child = new_item(database, user_id, root=root)
    rows(database, "UPDATE session_queue SET pinned_to = %s WHERE item_id = %s", pin, child)
    return child


def worker(database: PostgresDatabase, *, status: str = "busy", alive_seconds: float = 60.0, wanted: str | None = None) -> UUID:
    """A worker in the registry; its incarnation."""
    incarnation = uuid4()
    rows(database, ALIVE, f"gpu-{incarnation}", incarnation, status, alive_seconds, wanted)
    return incarnation


def pictures(database: PostgresDatabase) -> int:
    """How many images and videos there are."""
    return int(rows(database, "SELECT (SELECT count(*) FROM images) + (SELECT count(*) FROM videos) AS n")[0]["n"])
