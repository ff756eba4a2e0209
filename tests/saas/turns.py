"""Turns of the queue for tests: who is served, and clocks that are set back instead of waiting."""

from invokeai_saas.db import tenancy
from invokeai_saas.jobs.lease import claim


def claim_one(database):
    return claim(database, worker_id="w", lease_seconds=60)


def served(database, times: int) -> list[str]:
    """Whose items the next claims take."""
    return [attempt.user_id for attempt in (claim_one(database) for _ in range(times)) if attempt is not None]


def system(database, statement: str, *values) -> None:
    with tenancy.as_system("a test sets the scene"), database.postgres() as cursor:
        cursor.execute(statement.encode(), values)


def waits(database, user: str, *, minutes: float) -> None:
    """The user's items were enqueued and the user last served so long ago."""
    system(
        database,
        "UPDATE session_queue SET created_at = to_char(now() AT TIME ZONE 'UTC' - make_interval(secs => %s), 'YYYY-MM-DD HH24:MI:SS.MS')"
        " WHERE user_id = %s",
        minutes * 60,
        user,
    )
    system(database, "UPDATE queue_turns SET served_at = now() - make_interval(secs => %s) WHERE user_id = %s", minutes * 60, user)


def plan(database, user: str, priority: int) -> None:
    system(database, "UPDATE queue_turns SET plan_priority = %s WHERE user_id = %s", priority, user)


def pass_time(database, seconds: float) -> None:
    """Everybody waited so much longer."""
    system(database, "UPDATE queue_turns SET served_at = served_at - make_interval(secs => %s)", seconds)
    system(
        database,
        "UPDATE session_queue SET created_at = to_char(created_at::timestamp - make_interval(secs => %s), 'YYYY-MM-DD HH24:MI:SS.MS')"
        " WHERE status = 'pending'",
        seconds,
    )


def claims_until_served(database, user: str, *, seconds_per_claim: float, most: int) -> int:
    """How many claims others have before the user's first one."""
    for number in range(most):
        if served(database, 1) == [user]:
            return number
        pass_time(database, seconds_per_claim)
    return most
