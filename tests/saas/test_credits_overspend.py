"""Nobody spends what they do not have, however many ask at once; and each guard is shown to be what stops it.

SAAS_SOAK_HOLDS sets how many holds race (10,000 in the soak form).
"""

import os
import random
import threading

import psycopg
import pytest
from saas.books import as_owner, drift, give, hold, remaining
from saas.people import rows

from invokeai_saas.credits import service
from invokeai_saas.credits.errors import AlreadyHeld, BadCredits, InsufficientCredits
from invokeai_saas.credits.model import JobHold
from invokeai_saas.db import tenancy

HOLDS = int(os.environ.get("SAAS_SOAK_HOLDS", "1000"))
CONNECTIONS = 64
OPEN_SUM = "SELECT COALESCE(sum(amount), 0)::int AS held, count(*)::int AS holds FROM credit_holds WHERE state = 'held'"
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
CALL = "SELECT set_config('app.current_user_id', 'ann', true), credits_hold('ann', %s, %s, '{}', '{}', '{}')"


def race(dsn: str, amounts: list[int], *, connections: int = CONNECTIONS) -> list[str]:
    """All of these holds for ann from so many connections at once; each one's outcome: held, insufficient, or the error's class."""
    outcomes: list[str] = []
    gate = threading.Barrier(connections)
    numbered = list(enumerate(amounts, start=1))

    def caller(share: list[tuple[int, int]]) -> None:
        with psycopg.connect(dsn, autocommit=True, options="-c role=invokeai_app") as connection:
            gate.wait()
            for item, amount in share:
                outcomes.append(attempt(connection, item, amount))

    threads = [threading.Thread(target=caller, args=(numbered[n::connections],)) for n in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def attempt(connection: psycopg.Connection, item: int, amount: int) -> str:
    try:
        connection.execute(CALL, ([item], [amount]))
    except psycopg.Error as error:
        return "insufficient" if error.diag.constraint_name == "credits_insufficient" else type(error).__name__
    return "held"


def test_of_a_hundred_callers_one_gets_the_last_credit(database, dsn):
    give(database, "ann", 1)
    outcomes = race(dsn, [1] * 100)

    assert (outcomes.count("held"), outcomes.count("insufficient")) == (1, 99)
    assert rows(database, OPEN_SUM) == [{"held": 1, "holds": 1}]
    assert remaining(database, "ann") == 0


def test_as_many_holds_succeed_as_can_be_paid(database, dsn):
    for part in range(5):
        give(database, "ann", HOLDS // 10, days=part + 1)
    outcomes = race(dsn, [1] * HOLDS)

    assert (outcomes.count("held"), outcomes.count("insufficient")) == (HOLDS // 2, HOLDS // 2)
    assert rows(database, OPEN_SUM) == [{"held": HOLDS // 2, "holds": HOLDS // 2}]


def test_holds_of_many_sizes_over_many_grants_never_overdraw(database, dsn):
    dice = random.Random(20)
    for part in range(7):
        give(database, "ann", 37, days=part + 1)
    amounts = [dice.randint(1, 40) for _ in range(200)]
    outcomes = race(dsn, amounts, connections=16)
    found = rows(database, OPEN_SUM)[0]

    assert set(outcomes) == {"held", "insufficient"}
    assert found["held"] <= 7 * 37 and found["holds"] == outcomes.count("held")
    # What was refused last asked for more than is left.
    assert remaining(database, "ann") == 7 * 37 - found["held"]
    assert grants_add_up(database)


def grants_add_up(database) -> bool:
    query = """SELECT bool_and(held_credits = COALESCE(held, 0) AND available_credits = total_credits - held_credits) AS right
        FROM credits LEFT JOIN (SELECT credit_id, sum(part)::int AS held
            FROM credit_holds, unnest(drawn, drawn_amounts) AS d (credit_id, part)
            GROUP BY credit_id) AS open USING (credit_id)"""
    return bool(rows(database, query)[0]["right"])


def without(dsn: str, function: str, *edits: tuple[str, str]) -> None:
    """The function as it is in this database, with these pieces replaced."""
    with psycopg.connect(dsn, autocommit=True) as owner:
        [text] = owner.execute("SELECT pg_get_functiondef(%s::regproc)", (function,)).fetchone()
        for piece, other in edits:
            assert piece in text, piece
            text = text.replace(piece, other)
        owner.execute(text.encode())


# Long enough that two callers have read the same row.
SLOW = "PERFORM pg_sleep(0.05); UPDATE credits SET held_credits = held_credits + take.amount"


def one_statement_off(dsn: str) -> None:
    """All holds take the way over several grants."""
    without(dsn, "credits_hold", ("cardinality(p_item) = 1 AND", "false AND"))
    without(dsn, "credits_hold_across_grants", ("UPDATE credits SET held_credits = held_credits + take.amount", SLOW))


def test_with_the_row_lock_the_slow_way_too_gives_one_credit_once(database, dsn):
    one_statement_off(dsn)
    give(database, "ann", 1)

    assert sorted(race(dsn, [1] * 8, connections=8)) == ["held"] + ["insufficient"] * 7


def test_without_the_row_lock_callers_run_into_the_check(database, dsn):
    one_statement_off(dsn)
    without(dsn, "credits_hold_across_grants", ("credit_id FOR UPDATE", "credit_id"))
    give(database, "ann", 1)
    outcomes = race(dsn, [1] * 8, connections=8)

    assert "CheckViolation" in outcomes


def test_without_the_row_lock_and_the_check_credits_are_spent_twice(database, dsn):
    one_statement_off(dsn)
    without(dsn, "credits_hold_across_grants", ("credit_id FOR UPDATE", "credit_id"))
    as_owner(dsn, "ALTER TABLE credits DROP CONSTRAINT credits_never_overdrawn")
    give(database, "ann", 1)
    outcomes = race(dsn, [1] * 8, connections=8)

    assert outcomes.count("held") > 1
    assert rows(database, OPEN_SUM)[0]["held"] > 1


def waits_for_another(dsn: str) -> str:
    """The outcome of a hold of the last credit that waited for somebody else's of the same."""
    outcome: list[str] = []

    def second() -> None:
        with psycopg.connect(dsn, autocommit=True, options="-c role=invokeai_app") as connection:
            outcome.append(attempt(connection, 2, 1))

    with psycopg.connect(dsn, options="-c role=invokeai_app") as first, psycopg.connect(dsn, autocommit=True) as looking:
        first.execute(CALL, ([1], [1]))
        waiting = threading.Thread(target=second)
        waiting.start()
        while not looking.execute(WAITING).fetchone()[0]:
            assert waiting.is_alive()
        first.commit()
        waiting.join()
    return outcome[0]


def test_a_hold_that_waited_looks_at_what_the_other_left(database, dsn):
    give(database, "ann", 1)

    assert waits_for_another(dsn) == "insufficient"


def test_without_looking_again_a_hold_that_waited_runs_into_the_check(database, dsn):
    without(dsn, "credits_hold", (") AND available_credits >= wanted", ")"))
    give(database, "ann", 1)

    assert waits_for_another(dsn) == "CheckViolation"


OVERDRAW = "UPDATE credits SET available_credits = available_credits - 6, held_credits = held_credits + 6"


def test_the_check_refuses_to_overdraw_whoever_writes(database, dsn):
    give(database, "ann", 5)
    with psycopg.connect(dsn) as owner, pytest.raises(psycopg.errors.CheckViolation) as refused:
        owner.execute(OVERDRAW)

    assert refused.value.diag.constraint_name == "credits_never_overdrawn"


def test_without_the_check_a_grant_is_overdrawn_and_the_books_notice(database, dsn):
    give(database, "ann", 5)
    as_owner(dsn, "ALTER TABLE credits DROP CONSTRAINT credits_never_overdrawn")
    as_owner(dsn, OVERDRAW)

    assert drift(database) != []


def test_a_batch_is_held_whole_or_not_at_all(database):
    give(database, "ann", 100)
    with pytest.raises(InsufficientCredits) as refused:
        hold(database, "ann", 60, 41)

    assert (refused.value.remaining, refused.value.required, refused.value.status) == (100, 101, 402)
    assert remaining(database, "ann") == 100
    assert rows(database, "SELECT item_id FROM credit_holds") == []


def test_a_shortage_is_told_in_the_documents_words(database):
    give(database, "ann", 90)
    with pytest.raises(InsufficientCredits) as refused:
        hold(database, "ann", 100)
    body = refused.value.body()

    assert {name: body[name] for name in ("error", "remaining_credits", "remaining_minutes", "required_credits")} == {
        "error": "insufficient_credits",
        "remaining_credits": 90,
        "remaining_minutes": 1.5,
        "required_credits": 100,
    }


def test_a_job_has_one_hold(database):
    give(database, "ann", 100)
    [item] = hold(database, "ann", 10)
    with pytest.raises(AlreadyHeld), tenancy.as_user("ann"), database.postgres() as cursor:
        service.hold(cursor, user_id="ann", amounts={item: 10})

    assert remaining(database, "ann") == 90


@pytest.mark.parametrize("amount", [0, -5, 10_000_001, True, 1.5])
def test_an_absurd_hold_changes_nothing(database, amount):
    give(database, "ann", 100)
    with pytest.raises(BadCredits):
        hold(database, "ann", amount)

    assert remaining(database, "ann") == 100


def test_a_hold_draws_from_what_ends_soonest_and_gives_back_in_reverse(database):
    give(database, "ann", 100, days=30, reference="B")
    give(database, "ann", 10, days=1, reference="A")
    [item] = hold(database, "ann", JobHold(30))
    held = dict_of(database, "held_credits")
    rows(
        database,
        "INSERT INTO job_attempts (item_id, attempt_no, user_id, worker_id, lease_until, gpu_seconds)"
        " VALUES (%s, 1, 'ann', 'w', now(), 25)",
        item,
    )
    rows(database, "UPDATE session_queue SET status = 'in_progress' WHERE item_id = %s", item)
    rows(database, "UPDATE session_queue SET status = 'completed' WHERE item_id = %s", item)

    assert held == {"A": 10, "B": 20}
    assert dict_of(database, "consumed_credits") == {"A": 10, "B": 15}
    assert dict_of(database, "available_credits") == {"A": 0, "B": 85}


def test_credits_of_another_time_are_not_drawn(database, dsn):
    give(database, "ann", 50, reference="ended")
    give(database, "ann", 50, reference="begins")
    give(database, "ann", 5, reference="now")
    as_owner(
        dsn,
        "UPDATE credits SET valid_until = now() - interval '1 second', valid_from = now() - interval '1 day' WHERE reference_id = 'ended'",
    )
    as_owner(dsn, "UPDATE credits SET valid_from = now() + interval '1 day' WHERE reference_id = 'begins'")
    with pytest.raises(InsufficientCredits) as refused:
        hold(database, "ann", 6)

    assert refused.value.remaining == 5


def dict_of(database, column: str) -> dict[str, int]:
    return {row["reference_id"]: row["n"] for row in rows(database, f"SELECT reference_id, {column} AS n FROM credits")}
