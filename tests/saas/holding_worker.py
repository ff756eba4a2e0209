"""A worker process without InvokeAI: claims one item, works in steps that each save a board, and prints what became of each.

argv: DSN, worker's name, seconds of the lease, number of steps. SIGTERM gives the item back after the step.
"""

import signal
import sys
import time
from threading import Event

from claiming_worker import complete

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.jobs.holding import Holding
from invokeai_saas.jobs.lease import Attempt, LeaseLost, claim, guarding

STEP_SECONDS = 0.1
INSERT = "INSERT INTO boards (board_id, board_name, user_id) VALUES (%s, %s, %s)"


def say(*words: object) -> None:
    print(*words, flush=True)


def main() -> None:
    """Work until the steps are done or somebody says stop."""
    dsn, name, lease_seconds, steps = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    database, stop = PostgresDatabase(dsn, pool_size=2), Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    while (attempt := claim(database, worker_id=name, lease_seconds=lease_seconds)) is None:
        time.sleep(0.05)
    say("claimed", attempt.item_id, attempt.attempt_no)
    began = time.monotonic()
    with Holding(database, attempt, stop=stop, seconds=lambda: time.monotonic() - began, lease_seconds=lease_seconds) as holding:
        for step in range(steps):
            if stop.is_set():
                break
            time.sleep(STEP_SECONDS)
            save(database, attempt, f"{name}-{step}")
        stopped_after = time.monotonic() - began
    say("lost" if holding.lost else "ran", f"{stopped_after:.2f}")
    save(database, attempt, f"{name}-late" if holding.lost else f"{name}-last")
    say(complete(database, attempt))
    database.close()


def save(database: PostgresDatabase, attempt: Attempt, board: str) -> None:
    """What a node's output is: a row of the item's owner."""
    try:
        with tenancy.as_user(attempt.user_id), guarding(attempt), database.postgres() as cursor:
            cursor.execute(INSERT, (board, board, attempt.user_id))
        say("saved", board)
    except LeaseLost:
        say("refused", board)


if __name__ == "__main__":
    main()
