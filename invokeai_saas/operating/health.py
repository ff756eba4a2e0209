"""Does the process live, and may it be given requests: /healthz asks nobody, /readyz asks the database, the store and the loops.

Answers say which part and no more: addresses, versions and errors are for the log.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.db.migrate import READ_HISTORY, read_migrations
from invokeai_saas.errors import SaasError
from invokeai_saas.operating.endpoints import NO_STORE
from invokeai_saas.operating.probes import Probe
from invokeai_saas.storage.files import Files

ANSWER_SECONDS = 2.0
# S3 is billed by the question.
STORAGE_KEEP_SECONDS = 10.0
logger = logging.getLogger(__name__)


class NotReady(SaasError):
    """A part says no; the message is what strangers may read."""

    status = 503


class Pulse:
    """What a loop beats at every turn, and readiness reads. A loop has `limit_seconds` for its first turn too."""

    def __init__(self, limit_seconds: float) -> None:
        self.limit_seconds = limit_seconds
        self._beat_at = time.monotonic()

    def beat(self) -> None:
        """The loop turned."""
        self._beat_at = time.monotonic()

    def check(self) -> None:
        """Raise NotReady when the last turn is too long ago."""
        age = time.monotonic() - self._beat_at
        if age > self.limit_seconds:
            raise NotReady(f"last turn {age:.0f} s ago, expected one every {self.limit_seconds:.0f} s")


class Readiness:
    """All parts, asked at once; remembers what was last said so that the log has changes only."""

    def __init__(self, parts: Mapping[str, Probe[None]], *, draining: Callable[[], bool] = lambda: False) -> None:
        self._parts, self._draining = dict(parts), draining
        self._said: dict[str, str] = {}

    async def answer(self, _request: Request) -> Response:
        """200 with all parts ok, else 503; one line per part."""
        names = list(self._parts)
        said = dict(zip(names, await asyncio.gather(*(self._ask(name) for name in names)), strict=True))
        if self._draining():
            said["process"] = "shutting down"
        ready = all(line == "ok" for line in said.values())
        return JSONResponse({"ready": ready, "parts": said}, status_code=200 if ready else 503, headers=NO_STORE)

    async def _ask(self, name: str) -> str:
        reason: BaseException | None = None
        probe = self._parts[name]
        try:
            await probe.ask_async()
            said = "ok"
        except TimeoutError:
            said = f"no answer within {probe.seconds:g} s"
        except NotReady as error:
            said = str(error)
        except Exception as error:
            said, reason = "failed", error
        if (said == "ok") != (self._said.get(name, "ok") == "ok"):
            logger.log(logging.INFO if said == "ok" else logging.ERROR, "readiness of %s: %s", name, said, exc_info=reason)
        self._said[name] = said
        return said


async def healthz(_request: Request) -> Response:
    """The event loop turns; nothing else is asked, so that a database's bad day restarts no process."""
    return JSONResponse({"alive": True}, headers=NO_STORE)


def parts_of(database: PostgresDatabase, files: Files | None, pulses: Mapping[str, Pulse]) -> dict[str, Probe[None]]:
    """The usual parts."""
    expected = [(migration.version, migration.checksum) for migration in read_migrations()]
    parts = {"database": Probe(lambda: check_database(database, expected), seconds=ANSWER_SECONDS)}
    if files is not None:
        parts["storage"] = Probe(files.store.check, seconds=ANSWER_SECONDS, keep_seconds=STORAGE_KEEP_SECONDS)
    return parts | {name: Probe(pulse.check, seconds=ANSWER_SECONDS, keep_seconds=0.0) for name, pulse in pulses.items()}


def check_database(database: PostgresDatabase, expected: Sequence[tuple[int, str]]) -> None:
    """The database answers and has exactly this code's migrations."""
    with tenancy.as_system("readiness reads the migrations"), database.postgres() as cursor:
        found = [(row["version"], row["checksum"]) for row in cursor.execute(READ_HISTORY).fetchall()]
    if found != list(expected):
        raise NotReady("another version of the database than of the code")
