"""Whose turn it is: plan priority and minutes waited first, then who was served longest ago; and what a claim costs."""

import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import sql
from saas.rows import add_items, add_user
from saas.turns import claim_one, plan, served, system, waits

from invokeai_saas.db import tenancy
from invokeai_saas.jobs import lease
from invokeai_saas.jobs.lease import claim

PENDING = 10_000
CLAIMS = int(os.environ.get("SAAS_SOAK_ITEMS", "50"))
# Index pages from the root down, of each waiting user one head; the rest is the claimed item's own rows.
PAGES_PER_CLAIM, PAGES_PER_USER = 150, 12
SEARCHED_INDEXES = "SELECT indexname FROM pg_indexes WHERE tablename = 'session_queue' AND (indexdef ~ 'user_id' OR indexdef ~ 'status')"
COLD = {"worker_id": "w", "lease_seconds": 60, "device": None, "busy": [], **lease.looks(), **lease.EVERYTHING.values}


def test_a_user_with_a_thousand_items_does_not_starve_the_next(database):
    add_items(database, "hog", 1000)
    served(database, 3)
    add_items(database, "ann", 2)

    assert served(database, 6) == ["ann", "hog", "ann", "hog", "hog", "hog"]


def test_a_user_with_a_thousand_items_that_waited_for_minutes_does_not_starve_the_next(database):
    add_items(database, "hog", 1000)
    waits(database, "hog", minutes=30)
    add_items(database, "ann", 2)

    assert served(database, 4) == ["hog", "ann", "hog", "ann"]


def test_among_equals_the_user_served_longest_ago_goes_first(database):
    for user in ("cem", "ann", "bob"):
        add_items(database, user, 3)

    assert served(database, 9) == ["cem", "ann", "bob"] * 3


def test_a_users_own_items_go_by_priority_then_age(database):
    old, urgent = add_items(database, "ann", 2), add_items(database, "ann", 1, priority=5)

    assert [claim_one(database).item_id for _ in range(3)] == [*urgent, *old]
    assert claim_one(database) is None


def test_the_plan_goes_first_until_somebody_waited_for_longer_than_it_is_worth(database):
    add_items(database, "free", 5)
    add_items(database, "studio", 5)
    plan(database, "studio", 10)
    first = served(database, 2)
    waits(database, "free", minutes=11)

    assert first == ["studio", "studio"]
    assert served(database, 2) == ["free", "studio"]


def test_minutes_count_from_when_the_user_was_last_served(database):
    add_items(database, "ann", 5)
    add_items(database, "bob", 5)
    waits(database, "ann", minutes=90)
    waits(database, "bob", minutes=60)

    assert served(database, 4) == ["ann", "bob", "ann", "bob"]


def test_items_of_a_closed_account_stay_where_they_are(database):
    for user in ("ann", "bob"):
        add_user(database, user)
        add_items(database, user, 2)
    system(database, "UPDATE users SET is_active = 0 WHERE user_id = 'bob'")

    assert served(database, 4) == ["ann", "ann"]


def test_a_claim_that_is_not_committed_sends_the_next_one_to_the_next_user(database, dsn):
    add_items(database, "ann", 2)
    add_items(database, "bob", 2)
    with tenancy.as_system("first worker, not committed yet"), database.transaction():
        first = claim_one(database)
        with psycopg.connect(dsn) as other:
            row = other.execute(lease.CLAIM, {**COLD, "worker_id": "w2"}).fetchone()

    assert (first.user_id, row[0]) == ("ann", "bob")


WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


def test_two_claims_at_once_for_the_only_user_both_get_an_item(open_database, dsn):
    database = open_database(pool_size=4)
    first, second = add_items(database, "ann", 2)
    with ThreadPoolExecutor(1) as pool, psycopg.connect(dsn, autocommit=True) as looking:
        with tenancy.as_system("first worker, not committed yet"), database.transaction():
            assert claim_one(database).item_id == first
            other = pool.submit(claim_one, database)
            while not other.done() and not looking.execute(WAITING).fetchone()[0]:
                time.sleep(0.02)
            early = other.done()

        assert (early, other.result(timeout=120).item_id) == (False, second)


def test_a_turn_that_a_stopped_process_holds_is_not_waited_for(database, dsn):
    """Its connection ends by itself after a while (idle_in_transaction_session_timeout), and then it is anybody's turn again."""
    add_items(database, "ann", 1)
    with psycopg.connect(dsn) as stopped:
        stopped.execute("SELECT 1 FROM queue_turns FOR UPDATE")
        began = time.monotonic()
        nothing = claim_one(database)
        waited = time.monotonic() - began

    assert (nothing, claim_one(database) is None) == (None, False)
    assert 1 < waited < 45


def test_items_that_somebody_is_canceling_are_passed_over(database, dsn):
    held, free = add_items(database, "ann", 2)
    bobs = add_items(database, "bob", 1)[0]
    with psycopg.connect(dsn) as canceling:
        canceling.execute("SELECT 1 FROM session_queue WHERE item_id = %s FOR UPDATE", (held,))
        canceling.execute("SET LOCAL lock_timeout = '1s'")
        claimed = [claim_one(database).item_id for _ in range(2)]
        none_left = claim_one(database)

    assert (claimed, none_left) == ([free, bobs], None)
    assert claim_one(database).item_id == held


@pytest.mark.parametrize("lock", ["FOR UPDATE OF turn SKIP LOCKED", "FOR UPDATE OF item SKIP LOCKED"])
def test_without_its_row_locks_a_claim_waits_for_others(database, dsn, monkeypatch, lock):
    monkeypatch.setattr(lease, "CLAIM", lease.CLAIM.replace(lock, lock.replace(" SKIP LOCKED", "")))
    item = add_items(database, "ann", 1)[0]
    locked = {
        "FOR UPDATE OF turn SKIP LOCKED": "SELECT 1 FROM queue_turns WHERE user_id = 'ann' FOR UPDATE",
        "FOR UPDATE OF item SKIP LOCKED": f"SELECT 1 FROM session_queue WHERE item_id = {item} FOR UPDATE",
    }
    with psycopg.connect(dsn) as other, psycopg.connect(dsn) as claiming:
        other.execute(locked[lock].encode())
        claiming.execute("SET LOCAL lock_timeout = '200ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            claiming.execute(lease.CLAIM, COLD)


def test_of_a_users_next_items_the_one_whose_model_is_loaded_goes_first_and_no_other_users(database):
    cold, warm, _ = add_items(database, "ann", 3)
    bobs = add_items(database, "bob", 1)[0]
    system(database, "UPDATE session_queue SET session = 'key-1' WHERE item_id = %s", warm)
    system(database, "UPDATE session_queue SET session = 'key-0 key-1' WHERE item_id = %s", bobs)
    taken = [claim(database, worker_id="w", lease_seconds=60, warm=["key-0", "key-1"]).item_id for _ in range(3)]

    assert taken == [warm, bobs, cold]


def test_a_loaded_model_overtakes_so_many_items_at_most_and_none_of_higher_priority(database):
    items = add_items(database, "ann", lease.LOOKAHEAD + 2)
    system(database, "UPDATE session_queue SET session = 'key-1' WHERE item_id = %s", items[-1])
    first = claim(database, worker_id="w", lease_seconds=60, warm=["key-1"]).item_id
    system(database, "UPDATE session_queue SET priority = 1 WHERE item_id = %s", items[5])
    then = [claim(database, worker_id="w", lease_seconds=60, warm=["key-1"]).item_id for _ in range(2)]

    assert (first, then) == (items[0], [items[5], items[-1]])


def test_a_tenants_item_makes_their_turn_and_nobody_elses(database):
    insert = "INSERT INTO session_queue (queue_id, batch_id, session, session_id, user_id) VALUES ('default', 'b', '{}', %s, %s)"
    with tenancy.as_user("ann"), database.postgres() as cursor:
        cursor.execute(insert, ("s1", "ann"))
    for owner in ("bob", "system"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            with tenancy.as_user("ann"), database.postgres() as cursor:
                cursor.execute(insert, ("s2", owner))
    with tenancy.as_system("look"), database.postgres() as cursor:
        turns = [row["user_id"] for row in cursor.execute("SELECT user_id FROM queue_turns").fetchall()]

    assert turns == ["ann"]


def limit(database, user: str, parallel: int | None) -> None:
    system(database, "UPDATE queue_turns SET max_parallel = %s WHERE user_id = %s", parallel, user)


def ends(database, attempt, status: str = "completed") -> None:
    """The attempt's worker is done with it; `waiting`: it called workflows."""
    with tenancy.as_system("a worker settles"), database.postgres() as cursor:
        cursor.execute("UPDATE session_queue SET status = %s WHERE item_id = %s", (status, attempt.item_id))
        lease.finish(database, attempt)


def test_a_user_at_the_limit_of_their_plan_waits_and_nobody_else_does(database):
    add_items(database, "ann", 3)
    add_items(database, "bob", 3)
    limit(database, "ann", 1)
    first = [claim_one(database) for _ in range(4)]
    ends(database, first[0])

    assert [attempt.user_id for attempt in first] == ["ann", "bob", "bob", "bob"]
    assert claim_one(database).user_id == "ann"
    assert claim_one(database) is None


@pytest.mark.parametrize(("parallel", "running"), [(1, 1), (3, 3), (10, 5), (None, 5)])
def test_as_many_jobs_run_at_once_as_the_plan_allows(database, parallel, running):
    add_items(database, "ann", 5)
    limit(database, "ann", parallel)

    assert len(served(database, 6)) == running


def test_a_chain_of_calls_counts_once_because_waiting_parents_take_no_slot(database):
    add_items(database, "ann", 1)
    limit(database, "ann", 1)
    parent = claim_one(database)
    child = add_items(database, "ann", 1, priority=1)[0]
    while_it_runs = claim_one(database)
    ends(database, parent, "waiting")

    assert while_it_runs is None
    assert claim_one(database).item_id == child
    assert claim_one(database) is None


def test_a_limit_that_is_raised_counts_from_the_next_claim_on(database):
    add_items(database, "ann", 3)
    limit(database, "ann", 1)
    before = served(database, 2)
    limit(database, "ann", 2)

    assert (before, served(database, 2)) == (["ann"], ["ann"])


# Sleeps between what the statement sees and what it locks.
HEADS = "FROM waiting WHERE fits"
SLEEPING = lease.CLAIM.replace(HEADS, f"{HEADS} AND pg_sleep(0.5) IS NOT NULL")
SLEEPS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
TURN_UNUSED = "AND seen.served_at IS NOT DISTINCT FROM turn.served_at"


def claims_of_one_slot(database, dsn, statement: str) -> int:
    """How many items run when a claim counts, another one takes the only slot and commits, and the first goes on."""
    add_items(database, "ann", 4)
    limit(database, "ann", 1)
    with ThreadPoolExecutor(1) as pool, psycopg.connect(dsn) as counting:
        late = pool.submit(lambda: counting.execute(statement, {**COLD, "worker_id": "w2"}).fetchone())
        with psycopg.connect(dsn, autocommit=True) as looking:
            while not looking.execute(SLEEPS).fetchone()[0]:
                time.sleep(0.01)
        assert claim_one(database) is not None
        return 1 + (late.result(timeout=120)[1] is not None)


def test_a_claim_that_counted_before_another_one_committed_takes_nothing(database, dsn):
    assert SLEEPING != lease.CLAIM
    assert claims_of_one_slot(database, dsn, SLEEPING) == 1


def test_without_the_look_at_the_turn_two_claims_take_one_slot(database, dsn):
    assert TURN_UNUSED in lease.CLAIM
    assert claims_of_one_slot(database, dsn, SLEEPING.replace(TURN_UNUSED, "")) == 2


@pytest.mark.parametrize("parallel", [1, 3])
def test_claims_at_once_never_run_more_than_the_plan_allows(open_database, parallel):
    database = open_database(pool_size=8)
    add_items(database, "ann", 60)
    limit(database, "ann", parallel)
    running, most, lock = 0, 0, threading.Lock()

    def works(_: int) -> int:
        nonlocal running, most
        done = 0
        for _ in range(20):
            attempt = claim_one(database)
            if attempt is None:
                continue
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.005)
            with lock:
                running -= 1
            ends(database, attempt)
            done += 1
        return done

    with ThreadPoolExecutor(6) as pool:
        done = sum(pool.map(works, range(6)))

    assert most <= parallel
    assert done >= 10


def pages_of_a_claim(database) -> int:
    """How many pages one more claim reads, of tables and indexes."""
    with tenancy.as_system("a test counts pages"), database.postgres() as cursor:
        [plan] = cursor.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)" + lease.CLAIM, COLD).fetchone()["QUERY PLAN"]
    return plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]


@pytest.mark.parametrize("users", [1, 100])
def test_a_claim_among_ten_thousand_pending_items_reads_few_pages(database, dsn, users):
    for number in range(users):
        add_items(database, f"user-{number}", PENDING // users)
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute("ANALYZE session_queue, queue_turns")
    # Half of them at most, or nothing would be left for the claim that is counted.
    for _ in itertools.repeat(None, min(CLAIMS, PENDING // 2)):
        assert claim_one(database) is not None
    pages = pages_of_a_claim(database)
    print(f"claim among {PENDING} pending items of {users} users: {pages} pages")

    # A scan of the ten thousand items would read more than a page per item's row and index entry.
    assert pages < PAGES_PER_CLAIM + PAGES_PER_USER * users


def test_the_count_of_pages_bites_where_a_claim_scans_the_queue(database, dsn):
    add_items(database, "ann", PENDING)
    with psycopg.connect(dsn, autocommit=True) as owner:
        for (name,) in owner.execute(SEARCHED_INDEXES).fetchall():
            owner.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(name)))
        owner.execute("ANALYZE session_queue, queue_turns")

    assert pages_of_a_claim(database) > PAGES_PER_CLAIM + PAGES_PER_USER
