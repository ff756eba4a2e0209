"""The queue's rows where InvokeAI asks one question after the other: how many there are, and new ones, in one statement each."""

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from invokeai.app.services.session_queue.session_queue_common import SessionQueueStatus
from psycopg.rows import DictRow

from invokeai_saas.errors import SaasError
from invokeai_saas.jobs.batch_values import MOST_MEGABYTES
from invokeai_saas.jobs.routing import ANYWHERE, Route
from invokeai_saas.wakeups.port import MOST, Wakeup

Cursor = psycopg.Cursor[DictRow]
# One enqueue per user at a time: the count of pending items and the insert after it belong together.
LOCK_USER = "SELECT pg_advisory_xact_lock(hashtextextended('enqueue ' || %s, 0))"
# In all their queues: InvokeAI's interface has one, a caller of the API names as many as they like.
PENDING = "SELECT count(*) AS pending FROM session_queue WHERE user_id = %s AND status = 'pending'"
# The columns in the order of InvokeAI's prepare_values_to_insert(), and the item's route: its tiers and models as lists with commas.
INSERT = """
INSERT INTO session_queue
    (queue_id, session, session_id, batch_id, field_values, priority, workflow, origin, destination, retried_from_item_id, user_id,
     tiers, needs_memory_mb, needs_models)
SELECT queue_id, session, session_id, batch_id, field_values, priority, workflow, origin, destination, retried_from_item_id, user_id,
    string_to_array(tiers, ','), needs_memory_mb, string_to_array(needs_models, ',')
FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::int[], %s::text[], %s::text[], %s::text[], %s::bigint[],
            %s::text[], %s::text[], %s::int[], %s::text[])
    WITH ORDINALITY AS new (queue_id, session, session_id, batch_id, field_values, priority, workflow, origin, destination,
                            retried_from_item_id, user_id, tiers, needs_memory_mb, needs_models, place)
ORDER BY place
RETURNING item_id
"""
# Of items that InvokeAI inserted. System work: tenants do not choose their workers.
SET_ROUTES = """
UPDATE session_queue AS item
SET tiers = string_to_array(new.tiers, ','), needs_memory_mb = new.needs_memory_mb, needs_models = string_to_array(new.needs_models, ',')
FROM unnest(%s::bigint[], %s::text[], %s::int[], %s::text[]) AS new (item_id, tiers, needs_memory_mb, needs_models)
WHERE item.item_id = new.item_id
"""
# Items that this transaction made for a user: whoever else enqueues for them waits.
LAST_ITEM = "SELECT COALESCE(max(item_id), 0) AS item_id FROM session_queue"
SESSIONS_SINCE = """
SELECT item_id, session FROM session_queue
WHERE user_id = %s AND item_id > %s AND status = 'pending' AND retried_from_item_id IS NOT NULL ORDER BY item_id
"""
# What idle workers are told of. Somebody else's new item among them is told of twice: one look too many.
NEW_ITEMS = "SELECT item_id, user_id, tiers FROM session_queue WHERE item_id > %s AND status = 'pending' ORDER BY item_id LIMIT %s"
# How many items a request means and how large they are; one counts as often as it is named, for so often is it answered. The lengths are
# known without reading what is stored apart.
_TOLD = ("queue_id", "batch_id", "origin", "destination", "field_values")
_KEPT = (*_TOLD, "session", "workflow", "error_message", "error_traceback")
_SUMMARY, _WHOLE = (" + ".join(f"COALESCE(octet_length(item.{column}), 0)" for column in columns) for columns in (_TOLD, _KEPT))
_SIZES = "SELECT count(*) AS items, COALESCE(sum({}), 0)::bigint AS bytes FROM "
_NAMED = "unnest(%(item_ids)s::bigint[]) AS named (item_id) JOIN session_queue AS item USING (item_id) WHERE item.queue_id = %(queue_id)s"
_OF_DESTINATION = "item.queue_id = %(queue_id)s AND (%(destination)s::text IS NULL OR item.destination = %(destination)s)"
LISTED = f"{_SIZES.format(_WHOLE)} session_queue AS item WHERE {_OF_DESTINATION}"
NAMED = f"{_SIZES.format(_WHOLE)} {_NAMED}"
SUMMARIES = f"{_SIZES.format(_SUMMARY)} {_NAMED}"
# A called workflow's item is repeated by its root's, and each root once.
REPEATED = f"""
{_SIZES.format(_WHOLE)} session_queue AS item WHERE item.item_id IN (
    SELECT COALESCE(own.root_item_id, own.item_id) FROM session_queue AS own
    WHERE own.item_id = ANY (%(item_ids)s::bigint[]) AND own.queue_id = %(queue_id)s
)
"""
# The item of `current` is any one that runs: InvokeAI takes the first that it finds.
STATUS = """
WITH counted AS (
    SELECT status, count(*) AS items, count(*) FILTER (WHERE user_id = %(user_id)s) AS own, min(item_id) AS first_item
    FROM session_queue WHERE queue_id = %(queue_id)s GROUP BY status
)
SELECT counted.status, items, own, current.item_id, current.session_id, current.batch_id, current.user_id
FROM counted LEFT JOIN session_queue AS current ON counted.status = 'in_progress' AND current.item_id = first_item
"""


class ListTooLarge(SaasError):
    """What was asked for would fill the memory of the process that answers: every item comes with its whole graph."""

    status = 400

    def __init__(self, items: int, size: int, instead: str) -> None:
        got = f"{items} items with {size / (1 << 20):.1f} MB"
        super().__init__(f"expected at most {MOST_MEGABYTES} MB of items at once, got {got}: {instead}")


class QueueFull(SaasError):
    """The items of a request do not all fit; none was enqueued."""

    status = 409

    def __init__(self, *, most: int, would_be: int) -> None:
        super().__init__(f"expected at most {most} pending items, got {would_be}")


def demand_list_fits(cursor: Cursor, sizes: str, instead: str, **values: Any) -> None:
    """Raise ListTooLarge, which says what to do `instead`, where LISTED, NAMED, SUMMARIES or REPEATED counts too much for one answer."""
    row = cursor.execute(sizes.encode(), values).fetchone()
    if row is not None and row["bytes"] > MOST_MEGABYTES << 20:
        raise ListTooLarge(row["items"], row["bytes"], instead)


def demand_room(cursor: Cursor, *, user_id: str, wanted: int, most: int) -> None:
    """Raise QueueFull unless `wanted` more items fit. Holds the user's lock until the end of the transaction."""
    cursor.execute(LOCK_USER, (user_id,))
    row = cursor.execute(PENDING, (user_id,)).fetchone()
    would_be = wanted + (row["pending"] if row is not None else 0)
    if would_be > most:
        raise QueueFull(most=most, would_be=would_be)


def insert(cursor: Cursor, rows: list[Any], routes: Sequence[Route] = ()) -> list[int]:
    """Rows as prepare_values_to_insert() makes them, each with its route (none: anywhere); returns their item_ids in that order."""
    if not rows:
        return []
    columns = [list(column) for column in zip(*rows, strict=True)] + _columns(routes or [ANYWHERE] * len(rows))
    inserted = cursor.execute(INSERT, columns).fetchall()
    return sorted(row["item_id"] for row in inserted)


def set_routes(cursor: Cursor, routes: Mapping[int, Route]) -> None:
    """item_id -> route, in the caller's transaction and system context."""
    cursor.execute(SET_ROUTES, [list(routes), *_columns(list(routes.values()))])


def _columns(routes: Sequence[Route]) -> list[list[Any]]:
    """tiers, needs_memory_mb and needs_models of each; lists with commas, since arrays of arrays have no NULL rows."""
    return [
        [None if route.tiers is None else ",".join(route.tiers) for route in routes],
        [route.memory_mb for route in routes],
        [None if route.models is None else ",".join(route.models) for route in routes],
    ]


def last_item(cursor: Cursor) -> int:
    """The highest item_id that the caller sees."""
    row = cursor.execute(LAST_ITEM).fetchone()
    return 0 if row is None else int(row["item_id"])


def sessions_since(cursor: Cursor, user_id: str, item_id: int) -> dict[int, str]:
    """item_id -> session (JSON) of what this transaction retried after `item_id`."""
    return {row["item_id"]: row["session"] for row in cursor.execute(SESSIONS_SINCE, (user_id, item_id)).fetchall()}


def wakeups(cursor: Cursor, since: int) -> list[Wakeup]:
    """Whom the items enqueued after `since` are for."""
    rows = cursor.execute(NEW_ITEMS, (since, MOST)).fetchall()
    return [Wakeup(row["item_id"], row["user_id"], None if row["tiers"] is None else tuple(row["tiers"])) for row in rows]


def status(cursor: Cursor, queue_id: str, *, user_id: str | None, owner: str | None, sees_all: bool) -> SessionQueueStatus:
    """What InvokeAI's get_queue_status answers. `user_id` adds that user's own counts; the running item is named to its `owner`."""
    rows = cursor.execute(STATUS, {"queue_id": queue_id, "user_id": user_id}).fetchall()
    counts, own = {row["status"]: row["items"] for row in rows}, {row["status"]: row["own"] for row in rows}
    current = next((row for row in rows if row["item_id"] is not None), None)
    if current is None or not (sees_all or owner is None or current["user_id"] == owner):
        current = {"item_id": None, "session_id": None, "batch_id": None}
    return SessionQueueStatus(
        queue_id=queue_id,
        item_id=current["item_id"],
        session_id=current["session_id"],
        batch_id=current["batch_id"],
        **{name: counts.get(name, 0) for name in ("pending", "in_progress", "waiting", "completed", "failed", "canceled")},
        total=sum(counts.values()),
        user_pending=None if user_id is None else own.get("pending", 0),
        user_in_progress=None if user_id is None else own.get("in_progress", 0),
    )
