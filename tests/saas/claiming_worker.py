"""One worker process of test_lease.py: claims until nothing is left, completes what it got and prints what became of it."""

import sys

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.jobs.lease import Attempt, LeaseLost, claim, fenced, finish

# Item before attempt, as everywhere.
LOCK = "SELECT 1 FROM session_queue WHERE item_id = %s FOR UPDATE"
COMPLETE = "UPDATE session_queue SET status = 'completed' WHERE item_id = %s"


def main() -> None:
    """argv: DSN, worker's name."""
    database = PostgresDatabase(sys.argv[1], pool_size=1)
    while (attempt := claim(database, worker_id=sys.argv[2], lease_seconds=60)) is not None:
        print(attempt.item_id, attempt.attempt_no, complete(database, attempt))
    database.close()


def complete(database: PostgresDatabase, attempt: Attempt) -> str:
    """Settle the item if the attempt still counts."""
    try:
        with tenancy.as_system("a worker in a test"), database.postgres() as cursor:
            cursor.execute(LOCK, (attempt.item_id,))
            with fenced(database, attempt):
                cursor.execute(COMPLETE, (attempt.item_id,))
                finish(database, attempt)
    except LeaseLost:
        return "discarded"
    return "completed"


if __name__ == "__main__":
    main()
