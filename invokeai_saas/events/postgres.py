"""The bus over the database that is there anyway: rows of bus_events, and NOTIFY, which only says that there are some.

    in a transaction ─► row, with it ─► commit ─┐
    outside of one ─► outbox ─► row ────────────┴─► NOTIFY ─► every listener: SELECT what its last snapshot did not show

A NOTIFY holds a lock that stops all other NOTIFYs' commits, and only 8 kB: it goes out after the commit, from the outbox' own thread, many
at a time and without payload. A lost one costs a second: each listener looks that often anyway. Rows are found by their transaction, not
by their number: a commit that took long is found when it is there, and nothing is handed on twice.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from threading import Event, Thread
from typing import Any

import psycopg

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.db.pool import why_of
from invokeai_saas.events.bus import KEPT_SECONDS, PASSING_SECONDS, Message, Receive, Received, UsersHere, Wanted
from invokeai_saas.events.outbox import Outbox

CHANNEL, WANTED_CHANNEL = "saas_events", "saas_wanted"
POLL_SECONDS = 1.0
# How soon a listener sees that it shall end.
STOP_SECONDS = 0.2
# How long a transaction waits for what its process published before it.
FLUSH_SECONDS = 2.0
# A NOTIFY takes 8,000 bytes.
MOST_IDS = 400
REASON = "events on their way to all users, each to its own"
# As part of a transaction; and many at once, counted.
INSERT = "INSERT INTO bus_events (name, user_id, payload) VALUES (%s, %s, %s)"
SEND = """
INSERT INTO bus_events (name, user_id, passing, payload, sender, number)
SELECT * FROM unnest(%s::text[], %s::text[], %s::bool[], %s::text[], %s::text[], %s::bigint[])
"""
NOTIFY = "SELECT pg_notify(channel, payload) FROM unnest(%s::text[], %s::text[]) AS said (channel, payload)"
LISTEN = {CHANNEL: "LISTEN saas_events", WANTED_CHANNEL: "LISTEN saas_wanted"}
SNAPSHOT = "SELECT pg_current_snapshot()::text AS snapshot"
# Visible now and not then. The first comparison is for the index, the second decides. Progress only for who looks at it.
READ = """
SELECT pg_current_snapshot()::text AS snapshot, pg_snapshot_xmax(%(since)s::pg_snapshot) > pg_snapshot_xmax(pg_current_snapshot()) AS ahead,
    event.id, event.name, event.user_id, event.passing, event.payload, COALESCE(event.sender, '') AS sender,
    COALESCE(event.number, 0) AS number
FROM (VALUES (1)) AS always LEFT JOIN bus_events AS event
    ON event.xact >= pg_snapshot_xmin(%(since)s::pg_snapshot) AND NOT pg_visible_in_snapshot(event.xact, %(since)s::pg_snapshot)
    AND (NOT event.passing OR ((event.user_id IS NULL OR event.user_id = ANY(%(here)s))
        AND event.created_at > clock_timestamp() - make_interval(secs => %(passing_seconds)s)))
ORDER BY event.id
"""
FORGET = """
DELETE FROM bus_events
WHERE created_at < clock_timestamp() - make_interval(secs => CASE WHEN passing THEN %(passing_seconds)s * 2 ELSE %(kept_seconds)s END)
"""
logger = logging.getLogger(__name__)


class PostgresBus:
    """See EventBus."""

    def __init__(self, database: PostgresDatabase, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._database, self._poll_seconds = database, poll_seconds
        self._outbox = Outbox(self._send, name="saas-events-out")
        self._stop = Event()
        self._threads: list[Thread] = []

    def publish(self, message: Message) -> None:
        """A row in the open transaction, or one from the outbox."""
        if not self._database.in_transaction or message.is_passing:
            self._database.on_commit(lambda: self._outbox.put(message))
            return
        # What was published before must not come after.
        self._outbox.flush(FLUSH_SECONDS)
        self._insert(message)
        # The row is there; the listeners are told with whatever else waits.
        self._database.on_commit(lambda: self._outbox.put(Message(name="", payload="", stops=message.stops)))

    def start(self, receive: Receive, users_here: UsersHere) -> None:
        """From here on; `receive` must not raise."""
        self._begin("saas-events-in", _Reader(self._database, receive, users_here).read, CHANNEL, None)

    def subscribe_wanted(self, callback: Wanted) -> None:
        """See EventBus."""
        self._begin("saas-events-wanted", None, WANTED_CHANNEL, callback)

    def close(self) -> None:
        """See EventBus."""
        self._stop.set()
        self._outbox.close()
        for thread in self._threads:
            thread.join(2 * self._poll_seconds)

    def forget(self) -> int:
        """Remove what everybody has read; returns how many rows."""
        with tenancy.as_system(REASON), self._database.postgres() as cursor:
            cursor.execute(FORGET, {"passing_seconds": PASSING_SECONDS, "kept_seconds": KEPT_SECONDS})
            return cursor.rowcount

    def _insert(self, message: Message) -> None:
        context = tenancy.current_or_none()
        own = context is not None and context.user_id is not None and context.user_id == message.user_id
        with nullcontext() if own else tenancy.as_system(REASON), self._database.postgres() as cursor:
            cursor.execute(INSERT, (message.name, message.user_id, message.payload))

    def _send(self, messages: Sequence[Message]) -> None:
        rows = [each for each in messages if each.name]
        said = [(CHANNEL, ""), *((WANTED_CHANNEL, ids) for ids in _wanted(messages))]
        with tenancy.as_system(REASON), self._database.postgres() as cursor:
            if rows:
                columns = ("name", "user_id", "is_passing", "payload", "sender", "number")
                cursor.execute(SEND, [[getattr(each, column) for each in rows] for column in columns])
            cursor.execute(NOTIFY, [list(column) for column in zip(*said, strict=True)])

    def _begin(self, name: str, look: Callable[[], None] | None, channel: str, callback: Wanted | None) -> None:
        listener = _Listener(self._database, channel, self._stop, self._poll_seconds)

        def told(payloads: list[str]) -> None:
            if look is not None:
                look()
            if callback is not None and payloads:
                callback(_ids(payloads))

        thread = Thread(target=listener.run, args=(told,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()


class _Reader:
    """Hands on what is new, in order."""

    def __init__(self, database: PostgresDatabase, receive: Receive, users_here: UsersHere) -> None:
        self._database, self._receive, self._users_here = database, receive, users_here
        self._received = Received()
        self._since = self._now()

    def read(self) -> None:
        """Everything that was committed since the last time."""
        values = {"since": self._since, "here": list(self._users_here()), "passing_seconds": PASSING_SECONDS}
        with tenancy.as_system(REASON), self._database.postgres() as cursor:
            rows = cursor.execute(READ, values).fetchall()
        # Also of a database that was set back to an earlier state, and counts its transactions from there again.
        self._since = rows[0]["snapshot"]
        for row in rows:
            if row["id"] is not None and not row["ahead"]:
                self._hand_on(row)

    def _hand_on(self, row: dict[str, Any]) -> None:
        message = Message(
            name=row["name"],
            payload=row["payload"],
            user_id=row["user_id"],
            replaces=row["name"] if row["passing"] else None,
            sender=row["sender"],
            number=row["number"],
        )
        if self._received.is_new(message):
            self._receive(message)

    def _now(self) -> str:
        with tenancy.as_system(REASON), self._database.postgres() as cursor:
            return str(cursor.execute(SNAPSHOT).fetchall()[0]["snapshot"])


class _Listener:
    """Listens on a channel with a connection of its own, and says every `poll_seconds` that there may be something."""

    def __init__(self, database: PostgresDatabase, channel: str, stop: Event, poll_seconds: float) -> None:
        self._database, self._channel, self._stop, self._poll_seconds = database, channel, stop, poll_seconds
        self._failing = False

    def run(self, told: Callable[[list[str]], None]) -> None:
        """`told` gets the payloads that came. Lost connections are made again; without one it still looks now and then."""
        while not self._stop.is_set():
            try:
                with self._database.connect_alone() as connection:
                    connection.execute(LISTEN[self._channel])
                    self._works()
                    # Whatever was said while nobody listened.
                    told([""])
                    while not self._stop.is_set():
                        told(self._heard(connection))
            except Exception as error:
                self._fails(error)
                self._look(told)
                self._stop.wait(self._poll_seconds)

    def _heard(self, connection: psycopg.Connection[Any]) -> list[str]:
        """Waits for the first, then takes all that are there; nothing when none came in time, or at the end."""
        deadline = time.monotonic() + self._poll_seconds
        while not self._stop.is_set() and (left := deadline - time.monotonic()) > 0:
            if first := [each.payload for each in connection.notifies(timeout=min(left, STOP_SECONDS), stop_after=1)]:
                return first + [each.payload for each in connection.notifies(timeout=0)]
        return []

    def _look(self, told: Callable[[list[str]], None]) -> None:
        """A pooler that lets nobody listen still answers."""
        try:
            told([""])
        except Exception:
            logger.debug("no events without the database")

    def _works(self) -> None:
        if self._failing:
            logger.info("events are heard again")
        self._failing = False

    def _fails(self, error: Exception) -> None:
        if not self._failing:
            known = isinstance(error, psycopg.Error)
            logger.error("events are not heard until the database answers: %s", why_of(error) if known else error, exc_info=not known)
        self._failing = True


def _wanted(messages: Sequence[Message]) -> list[str]:
    """What is said about items whose work ends, in NOTIFYs' payloads; '' says that some end."""
    if any(each.stops is None for each in messages):
        return [""]
    ids = sorted({item_id for each in messages for item_id in each.stops or ()})
    return [",".join(map(str, ids[start : start + MOST_IDS])) for start in range(0, len(ids), MOST_IDS)]


def _ids(payloads: list[str]) -> frozenset[int] | None:
    if "" in payloads:
        return None
    return frozenset(int(number) for payload in payloads for number in payload.split(","))
