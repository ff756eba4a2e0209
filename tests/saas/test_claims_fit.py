"""A worker claims what it can run and nothing else: tiers, memory, models, pins and waits, in the same order and at the same cost."""

import os
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
import pytest
from saas.people import rows
from saas.rows import add_items

from invokeai_saas.db import tenancy
from invokeai_saas.jobs import lease
from invokeai_saas.jobs.lease import EVERYTHING, Capability, claim
from invokeai_saas.jobs.lost import give_back

TIERS = ["basic", "high_performance", "dedicated"]
LIVES = [UUID(int=1), UUID(int=2)]
RUNS = int(os.environ.get("SAAS_SOAK_FITS", "12"))
RACERS = int(os.environ.get("SAAS_SOAK_RACERS", "500"))
INSERT = """
INSERT INTO session_queue (queue_id, batch_id, session, session_id, user_id, tiers, needs_memory_mb, needs_models, pinned_to, not_before)
VALUES ('default', 'b', '{}', gen_random_uuid()::text, %s, %s, %s, %s, %s, clock_timestamp() + %s) RETURNING item_id
"""


@dataclass(frozen=True)
class Item:
    """What one needs, as its row says it."""

    user_id: str = "ann"
    tiers: tuple[str, ...] | None = None
    memory_mb: int | None = None
    models: tuple[str, ...] | None = None
    pin: UUID | None = None
    waits: timedelta | None = None

    def fits(self, can: Capability) -> bool:
        """What the claim should think of it, said in another language."""
        tiers = None if can.tiers is None or len(can.tiers) == len(TIERS) else set(can.tiers)
        return (
            (self.tiers is None or tiers is None or bool(tiers & set(self.tiers)))
            and (self.memory_mb or 0) <= (10**9 if can.memory_mb is None else can.memory_mb)
            and (can.model_keys is None or set(self.models or ()) <= can.model_keys)
            and self.pin in (None, can.incarnation)
            and (self.waits is None or self.waits < timedelta())
        )


def add(database, *items: Item) -> dict[int, Item]:
    with tenancy.as_system("a test enqueues"), database.postgres() as cursor:
        made = {}
        for item in items:
            tiers, models = (None if each is None else list(each) for each in (item.tiers, item.models))
            values = (item.user_id, tiers, item.memory_mb, models, item.pin, item.waits)
            made[cursor.execute(INSERT, values).fetchone()["item_id"]] = item
        return made


def claims(database, can: Capability = EVERYTHING) -> list[int]:
    """All that such a worker finds."""
    found = []
    while (attempt := claim(database, worker_id="w", lease_seconds=60, can=can)) is not None:
        found.append(attempt.item_id)
    return found


def any_item(dice: random.Random) -> Item:
    return Item(
        user_id=dice.choice(["ann", "bob", "cem"]),
        tiers=dice.choice([None, (), *(tuple(dice.sample(TIERS, n)) for n in (1, 2, 3))]),
        memory_mb=dice.choice([None, None, 8000, 16000]),
        models=dice.choice([None, ("a",), ("a", "b"), ("c",)]),
        pin=dice.choice([None, None, None, *LIVES]),
        waits=dice.choice([None, None, timedelta(seconds=-1), timedelta(hours=1)]),
    )


def any_worker(dice: random.Random) -> Capability:
    return Capability(
        tiers=dice.choice([None, *(tuple(dice.sample(TIERS, n)) for n in (1, 2, 3))]),
        memory_mb=dice.choice([None, 4000, 8000, 24000]),
        model_keys=dice.choice([None, frozenset(), frozenset("a"), frozenset("abc")]),
        incarnation=dice.choice([None, *LIVES]),
    )


def wrong_claims(database, seed: int) -> list[str]:
    """What a random worker took of random items and should not have, or left and should not have; and turns out of order."""
    dice = random.Random(seed)
    rows(database, "DELETE FROM session_queue")
    rows(database, "DELETE FROM job_attempts")
    items = add(database, *(any_item(dice) for _ in range(40)))
    can = any_worker(dice)
    taken = claims(database, can)
    fitting = [number for number, item in items.items() if item.fits(can)]
    wrong = [f"took {items[number]}" for number in taken if not items[number].fits(can)]
    wrong += [f"left {items[number]}" for number in fitting if number not in taken]
    for user_id in ("ann", "bob", "cem"):
        own = [number for number in taken if items[number].user_id == user_id]
        wrong += [f"{user_id}'s in the order {own}"] if own != sorted(own) else []
    return wrong


def test_a_worker_takes_all_that_it_can_run_in_order_and_nothing_else(database):
    seed = random.randrange(2**32)
    print(f"seed {seed}")

    assert [wrong for run in range(RUNS) for wrong in wrong_claims(database, seed + run)] == []


CONDITIONS = {
    "tiers": "head.tiers && %(tiers)s::text[]",
    "memory": "head.needs_memory_mb <= %(memory_mb)s::int",
    "models": "head.needs_models <@ %(models)s::text[]",
    "pins": "head.pinned_to = %(incarnation)s::uuid",
    "waits": "not_before <= clock_timestamp()",
    "route": "near.route = fitting.route",
    "order": "ORDER BY near.priority DESC, CASE",
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_without_one_of_its_conditions_a_claim_takes_what_it_must_not(database, monkeypatch, name):
    line = CONDITIONS[name]
    assert line in lease.CLAIM
    instead = {"waits": "not_before IS NOT NULL", "order": "ORDER BY near.item_id DESC, CASE"}.get(name, "true")
    monkeypatch.setattr(lease, "CLAIM", lease.CLAIM.replace(line, instead))

    assert any(wrong_claims(database, seed) for seed in range(40))


def test_an_item_of_no_tier_at_all_is_for_workers_of_every_tier(database):
    [item] = add(database, Item(tiers=()))

    assert claims(database, Capability(tiers=("basic", "high_performance"))) == []
    assert claims(database, Capability(tiers=tuple(TIERS))) == [item]


def test_a_user_whose_first_items_wait_for_another_worker_has_their_turn_with_the_others(database):
    add(database, *[Item("ann", tiers=("dedicated",))] * 3)
    [anns], [bobs] = add(database, Item("ann")), add(database, Item("bob"))

    assert claims(database, Capability(tiers=("basic",))) == [anns, bobs]


def test_a_worker_that_can_take_nothing_waits_for_nobodys_turn(database, dsn):
    add(database, Item(tiers=("dedicated",)))
    with psycopg.connect(dsn) as other:
        other.execute("SELECT 1 FROM queue_turns FOR UPDATE")

        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(claims, database, Capability(tiers=("basic",))).result(timeout=60) == []


def test_what_is_pinned_goes_to_that_life_of_a_worker_only(database):
    [pinned] = add(database, Item(pin=LIVES[0]))

    assert claims(database) == claims(database, Capability(incarnation=uuid4())) == []
    assert claims(database, Capability(incarnation=LIVES[0])) == [pinned]


def test_an_item_that_waits_is_taken_when_its_time_has_come_and_counts_anew_later(database):
    [item] = add(database, Item(waits=timedelta(hours=1)))
    before = claims(database)
    rows(database, "UPDATE session_queue SET not_before = now()")
    after = claims(database)

    assert (before, after) == ([], [item])
    assert rows(database, "SELECT not_before FROM session_queue")[0]["not_before"] is None


def pages(database, can: Capability) -> int:
    values = {"worker_id": "w", "lease_seconds": 60, "device": None, "busy": [], **lease.looks(), **can.values}
    with tenancy.as_system("a test counts pages"), database.postgres() as cursor:
        [plan] = cursor.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)" + lease.CLAIM, values).fetchone()["QUERY PLAN"]
    return plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]


def test_ten_thousand_items_for_other_workers_cost_a_claim_one_look(database, dsn):
    for tiers, count in (("{dedicated}", 10_000), ("{high_performance}", 5_000)):
        rows(
            database,
            "INSERT INTO session_queue (queue_id, batch_id, session, session_id, user_id, tiers)"
            " SELECT 'default', 'b', repeat('x', 1000), gen_random_uuid()::text, 'ann', %s::text[] FROM generate_series(1, %s)",
            tiers,
            count,
        )
    [own] = add(database, Item(tiers=("basic",)))
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute("ANALYZE session_queue, queue_turns")
    idle, basic = pages(database, Capability(tiers=("basic",), memory_mb=1)), pages(database, Capability(tiers=("basic",)))
    print(f"a claim past 15,000 items of other tiers: {basic} pages")

    assert rows(database, "SELECT status FROM session_queue WHERE item_id = %s", own)[0]["status"] == "in_progress"
    assert max(idle, basic) < 150


def test_many_users_who_wait_for_other_workers_cost_an_idle_worker_one_look(database, dsn):
    rows(
        database,
        "INSERT INTO session_queue (queue_id, batch_id, session, session_id, user_id, tiers)"
        " SELECT 'default', 'b', '{}', gen_random_uuid()::text, 'user-' || n, '{dedicated}' FROM generate_series(1, 3000) AS n",
    )
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute("ANALYZE session_queue, queue_turns")
    idle = pages(database, Capability(tiers=("basic",)))
    print(f"a claim that finds nothing among 3,000 users of another tier: {idle} pages")

    assert idle < 100


def test_racing_enqueues_and_claims_never_run_more_than_the_plan_allows(open_database):
    """500 enqueues of ten users against workers of two tiers that claim and finish all the while."""
    database = open_database(pool_size=12)
    users, limit = [f"user-{n}" for n in range(10)], 2
    for user in users:
        add_items(database, user, 1)
    rows(database, "UPDATE queue_turns SET max_parallel = %s", limit)
    enqueued, done, over = len(users), 0, []

    def enqueue(number: int) -> int:
        return len(add(database, Item(users[number % len(users)], tiers=(TIERS[number % 2],))))

    def work(number: int) -> int:
        can, dice, finished, idle = Capability(tiers=(TIERS[number % 2],)), random.Random(number), 0, 0
        while idle < 50:
            attempt = claim(database, worker_id=f"w{number}", lease_seconds=60, can=can)
            if attempt is None:
                idle += 1
                continue
            idle = 0
            now = rows(database, "SELECT count(*) AS n FROM session_queue WHERE user_id = %s AND status = 'in_progress'", attempt.user_id)
            if now[0]["n"] > limit:
                over.append((attempt.user_id, now[0]["n"]))
            if dice.random() < 0.05:
                give_back(database, attempt)
                continue
            with tenancy.as_system("a worker settles"), database.postgres() as cursor:
                cursor.execute("UPDATE session_queue SET status = 'completed' WHERE item_id = %s", (attempt.item_id,))
                lease.finish(database, attempt)
            finished += 1
        return finished

    with ThreadPoolExecutor(10) as pool:
        workers = [pool.submit(work, number) for number in range(6)]
        enqueued += sum(pool.map(enqueue, range(RACERS)))
        done = sum(worker.result() for worker in workers)

    assert over == []
    assert (done, claims(database)) == (enqueued, [])


def test_the_same_needs_are_one_route_and_others_another(database):
    base = Item(tiers=("basic",), memory_mb=8, models=("a",), pin=LIVES[0])
    same = add(database, base, replace(base, user_id="bob"))
    others = add(
        database, Item(), replace(base, tiers=None), replace(base, memory_mb=9), replace(base, models=("b",)), replace(base, pin=LIVES[1])
    )
    routes = {row["item_id"]: row["route"] for row in rows(database, "SELECT item_id, route FROM session_queue")}

    assert len({routes[item] for item in same}) == 1
    assert len({routes[item] for item in (*same, *others)}) == 6
    assert rows(database, "SELECT route FROM session_queue WHERE tiers IS NULL AND needs_models IS NULL") == [{"route": 0}]
