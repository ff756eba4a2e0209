"""A request that came before is answered as before: `Idempotency-Key` of every POST that spends, grants or enqueues (decision 28).

    handler(once: OnceDep) ─► once.in_transaction(work)   database only: key and effect commit together, a second request waits on the row
                           ─► once.outside(work)          talks to others: announced, done outside of any transaction, then remembered

Same user, route, key and body: the same answer, also while the first still runs. Another body: 409. What was refused changed nothing and
is not remembered: with credits bought meanwhile the same request may succeed. Without the header every request is a new one.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID, uuid4

import psycopg
from fastapi import Depends, Header, Request
from fastapi.encoders import jsonable_encoder
from fastapi.responses import Response
from psycopg.rows import DictRow
from pydantic import BaseModel

from invokeai_saas.accounts.api import Caller, web_of
from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.errors import SaasError

KEPT_DAYS = 2
# Longer than any call to others may take; after it a second request takes over from one that died.
LEASE_SECONDS = 120.0
# Shorter than a client waits.
WAIT_SECONDS = 60.0
POLL_SECONDS = 0.05
REPLAYED = {"Idempotent-Replayed": "true"}
# Waits for whoever is inserting the same key: after it the row is there, or was never there.
FIRST = """
INSERT INTO idempotency_keys (user_id, route, key, body_hash, step_key, state, status, lease_until)
VALUES (%(user_id)s, %(route)s, %(key)s, %(body_hash)s, %(step_key)s, %(state)s, %(status)s,
    clock_timestamp() + make_interval(secs => %(lease)s))
ON CONFLICT ON CONSTRAINT idempotency_keys_pkey DO NOTHING
RETURNING step_key
"""
READ = """
SELECT body_hash, step_key, state, status, answer, lease_until < clock_timestamp() AS abandoned
FROM idempotency_keys WHERE user_id = %(user_id)s AND route = %(route)s AND key = %(key)s
"""
TAKE_OVER = """
UPDATE idempotency_keys SET lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
WHERE user_id = %(user_id)s AND route = %(route)s AND key = %(key)s AND body_hash = %(body_hash)s
  AND state = 'running' AND lease_until < clock_timestamp()
RETURNING step_key
"""
REMEMBER = """
UPDATE idempotency_keys SET state = 'done', lease_until = NULL, status = %(status)s, answer = %(answer)s
WHERE user_id = %(user_id)s AND route = %(route)s AND key = %(key)s
"""
# Whoever took over meanwhile keeps it.
FORGET = """
DELETE FROM idempotency_keys
WHERE user_id = %(user_id)s AND route = %(route)s AND key = %(key)s AND state = 'running' AND step_key = %(step_key)s
"""
FORGET_OLD = "DELETE FROM idempotency_keys WHERE created_at < clock_timestamp() - make_interval(days => %s)"

Cursor = psycopg.Cursor[DictRow]


class KeyReused(SaasError):
    """The key came before, with another body."""

    status = 409

    def __init__(self) -> None:
        super().__init__("expected the body that came with this Idempotency-Key before, got another one")


class StillRunning(SaasError):
    """The first request with this key is not done yet; the answer will be there later."""

    status = 409

    def __init__(self) -> None:
        super().__init__("the first request with this Idempotency-Key still runs: try again later")


@dataclass(frozen=True, slots=True)
class Once:
    """One request. `key` is None where the client sent none; `asked` is a digest of method, path, query and body."""

    database: PostgresDatabase
    user_id: str
    route: str
    key: str | None
    asked: str

    def in_transaction(self, work: Callable[[], Any], *, status: int = 200) -> Any:
        """What `work` returns, or returned before. It must not talk to anybody but the database; what it raises undoes it and its key."""
        with tenancy.as_user(self.user_id), self.database.postgres() as cursor:
            if self.key is None:
                return _response(status, _text(work()))
            if self._first(cursor, "done", status) is None:
                return self._before(_existing(cursor.execute(READ, self._row).fetchone()))
            answer = _text(work())
            cursor.execute(REMEMBER, {**self._row, "status": status, "answer": answer})
        return _response(status, answer)

    def outside(self, work: Callable[[str], Any], *, status: int = 200) -> Any:
        """As in_transaction(), for work that talks to others. It gets a key for them: the same one when a first try died half-way."""
        if self.database.in_transaction:
            raise RuntimeError("expected no open transaction around work that talks to others")
        with tenancy.as_user(self.user_id):
            return _response(status, _text(work(str(uuid4())))) if self.key is None else self._announced(work, status)

    def _announced(self, work: Callable[[str], Any], status: int) -> Response:
        begun = self._begin()
        if isinstance(begun, Response):
            return begun
        try:
            answer = _text(work(str(begun)))
        except Exception:
            with self.database.postgres() as cursor:
                cursor.execute(FORGET, {**self._row, "step_key": begun})
            raise
        with self.database.postgres() as cursor:
            cursor.execute(REMEMBER, {**self._row, "status": status, "answer": answer})
        return _response(status, answer)

    @property
    def _row(self) -> dict[str, Any]:
        return {"user_id": self.user_id, "route": self.route, "key": self.key, "body_hash": self.asked}

    def _first(self, cursor: Cursor, state: str, status: int | None) -> UUID | None:
        """The step key, for whoever is first with this key."""
        lease = None if state == "done" else LEASE_SECONDS
        values = {**self._row, "step_key": uuid4(), "state": state, "status": status, "lease": lease}
        row = cursor.execute(FIRST, values).fetchone()
        return None if row is None else row["step_key"]

    def _begin(self) -> UUID | Response:
        """The step key of work that is ours to do, or the answer of who did it; waits for who is doing it."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            with self.database.postgres() as cursor:
                step_key = self._first(cursor, "running", None)
                row = None if step_key is not None else cursor.execute(READ, self._row).fetchone()
                if row is not None and row["abandoned"] and row["body_hash"] == self.asked:
                    taken = cursor.execute(TAKE_OVER, {**self._row, "lease": LEASE_SECONDS}).fetchone()
                    step_key = None if taken is None else taken["step_key"]
            if step_key is not None:
                return step_key
            # None: it was refused and forgotten in between, so that the next round is the first.
            if row is not None and (row["state"] == "done" or row["body_hash"] != self.asked):
                return self._before(row)
            if time.monotonic() > deadline:
                raise StillRunning
            time.sleep(POLL_SECONDS)

    def _before(self, row: DictRow) -> Response:
        if row["body_hash"] != self.asked:
            raise KeyReused
        if row["state"] != "done":
            raise StillRunning
        return _response(row["status"], row["answer"], REPLAYED)


async def once_of(
    request: Request,
    caller: Caller,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=255, description="Sent again with the same body, the request is done once.")
    ] = None,
) -> Once:
    """What a handler takes as `once: OnceDep`."""
    path = request.scope["route"].path if "route" in request.scope else request.url.path
    asked = b"" if idempotency_key is None else await request.body()
    return Once(
        database=web_of(request).accounts.database,
        user_id=caller.user_id,
        route=f"{request.method} {path}",
        key=idempotency_key,
        asked=digest(request.method, request.url.path, request.url.query, asked),
    )


OnceDep = Annotated[Once, Depends(once_of)]


def digest(method: str, path: str, query: str, body: bytes) -> str:
    """SHA-256 of what is asked; JSON counts by its meaning, so that a client may write it anew."""
    try:
        said = json.dumps(json.loads(body), sort_keys=True, separators=(",", ":")).encode()
    except ValueError:
        said = body
    return hashlib.sha256("\n".join((method, path, query, "")).encode() + said).hexdigest()


def forget_old(database: PostgresDatabase) -> int:
    """Drop keys that nobody will send again; returns how many."""
    with tenancy.as_system("forgetting old idempotency keys"), database.postgres() as cursor:
        cursor.execute(FORGET_OLD, (KEPT_DAYS,))
        return cursor.rowcount


def _existing(row: DictRow | None) -> DictRow:
    # The insert met it, and rows are deleted after days.
    if row is None:
        raise StillRunning
    return row


def _text(answer: Any) -> str:
    """The answer as it is sent and kept."""
    if isinstance(answer, BaseModel):
        return str(answer.model_dump_json(by_alias=True))
    return json.dumps(jsonable_encoder(answer), separators=(",", ":"))


def _response(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    return Response(text, status_code=status, media_type="application/json", headers=headers)
