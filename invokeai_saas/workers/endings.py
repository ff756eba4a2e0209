"""How an attempt ends when its runner cannot end it: the runner is gone, or the failure is the worker's own. Pure SQL, no InvokeAI.

Owners hear of it from a server: it tells what became of items whose rows were changed behind InvokeAI's back (`untold`).
"""

import logging
from contextlib import suppress
from threading import Event

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.jobs import lease
from invokeai_saas.jobs.holding import is_outage
from invokeai_saas.jobs.lease import Attempt, LeaseLost
from invokeai_saas.workers.shared_meter import Reading

logger = logging.getLogger(__name__)
TRIES, RETRY_SECONDS = 30, 1.0
# Item before attempt, as everywhere.
LOCK_ITEM = "SELECT 1 FROM session_queue WHERE item_id = %s FOR UPDATE"
FAIL_OVER_PRICE = """
UPDATE session_queue SET status = 'failed', status_sequence = COALESCE(status_sequence, 0) + 1, untold = true, error_type = 'RanOverPrice',
    error_message = %(message)s
WHERE item_id = %(item_id)s AND status = 'in_progress'
"""
EXPIRE = """
UPDATE job_attempts SET lease_until = clock_timestamp() - interval '1 second'
WHERE item_id = %(item_id)s AND attempt_no = %(attempt_no)s AND state = 'running'
"""


def lose(database: PostgresDatabase, attempt: Attempt, *, why: str, until: Event) -> None:
    """The attempt is over without a result: the item comes back, or fails for good, at once. A database that is away is waited for a bit;
    then the lease runs out and the reaper does the same.
    """
    for _ in range(TRIES):
        try:
            with tenancy.as_system("a worker gives up an attempt"), database.postgres() as cursor:
                cursor.execute(EXPIRE, attempt.key)
            return
        except LeaseLost:
            return
        except Exception as error:
            if not is_outage(error):
                raise
            if until.wait(RETRY_SECONDS):
                return


def hand_back(database: PostgresDatabase, attempt: Attempt, *, gpu_seconds: float) -> None:
    """The worker ends and its runner did not stop in time: nobody's failure."""
    with suppress(LeaseLost):
        lose(database, attempt, why="the worker ends", until=Event())


def fail_over_price(database: PostgresDatabase, attempt: Attempt, reading: Reading) -> None:
    """The item worked for longer than its price allows and did not stop by itself; its owner pays the price at most."""
    limit = reading.limit_seconds or 0.0
    message = f"stopped: expected at most {limit:.0f} seconds for the price that was held, got {reading.worked_seconds:.0f}"
    with suppress(LeaseLost), tenancy.as_system("a worker stops an item at its limit"), database.postgres() as cursor:
        cursor.execute(LOCK_ITEM, (attempt.item_id,))
        lease.finish(database, attempt, gpu_seconds=reading.seconds)
        cursor.execute(FAIL_OVER_PRICE, {"item_id": attempt.item_id, "message": message})
