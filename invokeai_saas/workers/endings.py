"""How an attempt ends when its runner cannot end it: the runner is gone, or the failure is the worker's own. Pure SQL, no InvokeAI.

    gone, or the worker's fault ─► lose: back in the queue, after the third time failed        (jobs/lost.py)
    did not stop for the drain  ─► hand_back: back in the queue, nobody's failure
    worked past its limit       ─► fail_over_price: failed, charged its price at most

Owners hear of it from a server: it tells what became of items whose rows were changed behind InvokeAI's back (`untold`).
"""

import logging
from collections.abc import Callable
from threading import Event

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.jobs import lease, lost
from invokeai_saas.jobs.holding import is_outage
from invokeai_saas.jobs.lease import Attempt, LeaseLost
from invokeai_saas.workers.shared_meter import Reading

logger = logging.getLogger(__name__)
# A database that is away is waited for a bit; then the lease runs out, and the reaper does what it does.
TRIES, RETRY_SECONDS = 30, 1.0
ROOT_OF = "SELECT COALESCE(root_item_id, item_id) AS root FROM session_queue WHERE item_id = %s"
# The last word on what is charged.
LAST_SECONDS = """
UPDATE job_attempts SET gpu_seconds = GREATEST(gpu_seconds, %(gpu_seconds)s)
WHERE item_id = %(item_id)s AND attempt_no = %(attempt_no)s AND state = 'running'
"""


def lose(database: PostgresDatabase, attempt: Attempt, *, why: str, until: Event) -> None:
    """The attempt is over without a result. `until`: the worker ends, and waits for no database."""
    _insist(lambda: lost.lose(database, attempt, why=why), attempt, until)


def hand_back(database: PostgresDatabase, attempt: Attempt, *, gpu_seconds: float, until: Event) -> None:
    """The worker ends, and its runner did not stop in time."""
    _insist(lambda: lost.give_back(database, attempt, gpu_seconds=gpu_seconds), attempt, until)


def fail_over_price(database: PostgresDatabase, attempt: Attempt, reading: Reading, *, until: Event) -> None:
    """The item worked for longer than its price allows and did not stop by itself."""
    limit = reading.limit_seconds or 0.0
    message = f"stopped: expected at most {limit:.0f} seconds for the price that was held, got {reading.worked_seconds:.0f}"

    def fail() -> None:
        with tenancy.as_system("a worker stops an item at its limit"), lease.unguarded(), database.postgres() as cursor:
            found = cursor.execute(ROOT_OF, (attempt.item_id,)).fetchone()
            chain = [] if found is None else lost.lock(cursor, found["root"])
            if cursor.execute(LAST_SECONDS, {**attempt.key, "gpu_seconds": reading.seconds}).rowcount and found is not None:
                lost.fail_chain(cursor, found["root"], chain, error_type="RanOverPrice", error_message=message)

    _insist(fail, attempt, until)


def _insist(end: Callable[[], object], attempt: Attempt, until: Event) -> None:
    for _ in range(TRIES):
        try:
            end()
            return
        except LeaseLost:
            return
        except Exception as error:
            if not is_outage(error):
                raise
            if until.wait(RETRY_SECONDS):
                break
    logger.warning("attempt %s of item %s is left to the reaper: the database does not answer", attempt.attempt_no, attempt.item_id)
