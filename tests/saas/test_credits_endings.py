"""Random jobs of several users end in every way that the queue knows, single and in bulk, in several contexts: one settlement each, the
amounts of decision 14 reckoned by another hand, no hold left over. SAAS_SOAK_ENDINGS sets how many (1,000 in the soak form)."""

import math
import os
import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from saas.books import as_owner, drift, give, hold, picture, remaining, run
from saas.people import rows
from saas.queues import Events, invoker

from invokeai_saas.db import tenancy
from invokeai_saas.jobs import lease, reaper
from invokeai_saas.jobs.lost import Patience
from invokeai_saas.swaps.session_queue import PostgresSessionQueue

ENDINGS = int(os.environ.get("SAAS_SOAK_ENDINGS", "150"))
OWNERS = ("ann", "bob")
CONTEXTS = ("the owner's", "another user's", "an admin's", "the system's")
SINGLE = ("complete", "fail", "fail with a picture", "store down", "cancel", "delete", "worker lost", "stop work")
BULK = ("cancel by batch", "cancel by destination", "delete by destination", "cancel queue", "clear", "cancel all but current",
        "delete all but current", "bulk sql")  # fmt: skip


@dataclass
class Job:
    """What the other hand knows of a job: enough to say what it costs."""

    item: int
    owner: str
    price: int
    seconds: float | None
    expected: int | None = None


@pytest.fixture
def queue(database) -> PostgresSessionQueue:
    made = PostgresSessionQueue(database, worker_id="w")
    with tenancy.as_system("a queue for a test"):
        made.start(invoker(Events()))
    return made


class Endings:
    """Makes jobs, ends them at random, and reckons what each must cost."""

    def __init__(self, database, queue: PostgresSessionQueue, seed: int) -> None:
        self.database, self.queue, self.dice = database, queue, random.Random(seed)
        self.jobs: list[Job] = []
        self.empty_failures = dict.fromkeys(OWNERS, 0)
        self.spent = dict.fromkeys(OWNERS, 0)

    def make(self, owner: str, count: int) -> list[Job]:
        """New jobs of one batch and destination; most of them run."""
        prices = [self.dice.randint(1, 40) for _ in range(count)]
        items = hold(self.database, owner, *prices)
        name = f"group-{items[0]}"
        rows(
            self.database,
            "UPDATE session_queue SET batch_id = %s, destination = %s WHERE item_id = ANY(%s)",
            name,
            name,
            items,
        )
        made = []
        for item, price in zip(items, prices, strict=True):
            seconds = self.dice.choice([None, 0.0, self.dice.uniform(0, 60)])
            if seconds is not None:
                run(self.database, item, seconds)
            made.append(Job(item, owner, price, seconds))
        self.jobs += made
        return made

    def measured(self, job: Job) -> int:
        """Decision 14, by another hand."""
        return 0 if job.seconds is None else min(job.price, max(1, math.ceil(job.seconds)))

    def end_one(self, job: Job, how: str) -> None:
        """One job ends; what it must cost is noted first."""
        if job.seconds is None and how in ("complete", "fail", "fail with a picture", "store down", "worker lost"):
            job.seconds = 2.5
            run(self.database, job.item, 2.5)
        job.expected = self.cost(job, how)
        getattr(self, "_" + how.replace(" ", "_"))(job)

    def cost(self, job: Job, how: str) -> int:
        if how in ("store down", "worker lost"):
            return 0
        if how == "fail":
            self.empty_failures[job.owner] += 1
            return 0 if self.empty_failures[job.owner] <= 5 else self.measured(job)
        return self.measured(job)

    def end_group(self, jobs: list[Job], how: str) -> None:
        """A group ends in one request; with 'all but current' a job that runs stays, and is completed afterwards."""
        verbs: dict[str, Callable[[str, str], Any]] = {
            "cancel by batch": lambda name, owner: self.queue.cancel_by_batch_ids("default", [name], owner),
            "cancel by destination": lambda name, owner: self.queue.cancel_by_destination("default", name, owner),
            "delete by destination": lambda name, owner: self.queue.delete_by_destination("default", name, owner),
            "cancel queue": lambda name, owner: self.queue.cancel_by_queue_id("default"),
            "clear": lambda name, owner: self.queue.clear("default", owner),
            "cancel all but current": lambda name, owner: self.queue.cancel_all_except_current("default", owner),
            "delete all but current": lambda name, owner: self.queue.delete_all_except_current("default", owner),
            "bulk sql": lambda name, owner: rows(self.database, "UPDATE session_queue SET status = 'canceled' WHERE batch_id = %s", name),
        }
        for job in jobs:
            job.expected = self.measured(job)
        verbs[how](f"group-{jobs[0].item}", jobs[0].owner)
        for job in jobs:
            if rows(self.database, "SELECT 1 FROM credit_holds WHERE item_id = %s AND state = 'held'", job.item):
                self.end_one(job, "complete")

    def _finish(self, job: Job, status: str, error: str | None = None) -> None:
        rows(
            self.database, "UPDATE job_attempts SET state = 'finished', ended_at = now() WHERE item_id = %s AND state = 'running'", job.item
        )
        rows(self.database, "UPDATE session_queue SET status = %s, error_type = %s WHERE item_id = %s", status, error, job.item)

    def _complete(self, job: Job) -> None:
        self._finish(job, "completed")

    def _fail(self, job: Job) -> None:
        self._finish(job, "failed", "ValueError")

    def _fail_with_a_picture(self, job: Job) -> None:
        picture(self.database, job.item)
        self._finish(job, "failed", "ValueError")

    def _store_down(self, job: Job) -> None:
        self._finish(job, "failed", "StorageUnavailable")

    def _cancel(self, job: Job) -> None:
        self.queue.cancel_queue_item(job.item)

    def _delete(self, job: Job) -> None:
        self.queue.delete_queue_items_by_id([job.item])

    def _worker_lost(self, job: Job) -> None:
        rows(self.database, "UPDATE job_attempts SET lease_until = now() - interval '1 second' WHERE item_id = %s", job.item)
        reaper.reap(self.database, patience=Patience(losses=1))

    def _stop_work(self, job: Job) -> None:
        others = [other for other in self.jobs if other.owner == job.owner and other.expected is None and other is not job]
        for other in others:
            other.expected = self.measured(other)
        with tenancy.as_system("an account is closed"), self.database.postgres() as cursor:
            lease.cancel_all_of(cursor, job.owner)


def entered(context: str, owner: str) -> ExitStack:
    """The context of whoever ends a job. Others reach it by named system work only, as accounts and the reaper do."""
    stack = ExitStack()
    if context == "the owner's":
        stack.enter_context(tenancy.as_user(owner))
        return stack
    if context != "the system's":
        stack.enter_context(tenancy.as_user("cem" if context == "another user's" else "clerk"))
    stack.enter_context(tenancy.as_system("a test ends a job"))
    return stack


def play(endings: Endings, count: int) -> None:
    """Groups of jobs, ended one by one or at once."""
    while len(endings.jobs) < count:
        owner, context = endings.dice.choice(OWNERS), endings.dice.choice(CONTEXTS)
        made = endings.make(owner, endings.dice.randint(1, 6))
        with entered(context, owner):
            if endings.dice.random() < 0.4:
                endings.end_group(made, endings.dice.choice(BULK))
            else:
                for job in made:
                    if job.expected is None:
                        endings.end_one(job, endings.dice.choice(SINGLE))


def wrongly_settled(endings: Endings) -> list[tuple[int, int | None, object]]:
    """Jobs that do not have exactly one settlement of the right amount."""
    found = {row["item_id"]: row for row in rows(endings.database, "SELECT item_id, state, captured FROM credit_holds")}
    return [
        (job.item, job.expected, dict(found[job.item]))
        for job in endings.jobs
        if found[job.item]["state"] == "held" or found[job.item]["captured"] != job.expected
    ]


def begin(database, queue) -> Endings:
    seed = int(os.environ.get("SAAS_SEED", random.randrange(10**6)))
    print(f"SAAS_SEED={seed}")
    for owner in OWNERS:
        for part in range(4):
            give(database, owner, 10 * ENDINGS, days=part + 1)
    return Endings(database, queue, seed)


def test_every_way_a_job_ends_settles_it_once_for_the_right_amount(database, queue):
    endings = begin(database, queue)
    play(endings, ENDINGS)
    with tenancy.as_system("a test prunes"):
        queue.prune("default")

    assert wrongly_settled(endings) == []
    assert drift(database) == []
    assert rows(database, "SELECT count(*)::int AS n FROM usage_records") == [{"n": len(endings.jobs)}]
    for owner in OWNERS:
        cost = sum(job.expected or 0 for job in endings.jobs if job.owner == owner)
        assert remaining(database, owner) == 40 * ENDINGS - cost


@pytest.mark.parametrize("trigger", ["tg_session_queue_settles_update", "tg_session_queue_settles_delete"])
def test_without_a_trigger_jobs_are_left_unsettled(database, queue, dsn, trigger):
    as_owner(dsn, f"DROP TRIGGER {trigger} ON session_queue")
    endings = begin(database, queue)
    for how in ("cancel", "delete", "complete"):
        [job] = endings.make("ann", 1)
        with entered("the owner's", "ann"):
            endings.end_one(job, how)

    assert wrongly_settled(endings) != []
    assert drift(database) != []


def test_without_its_role_the_trigger_moves_nothing_and_says_so(database, dsn):
    give(database, "ann", 10)
    [item] = hold(database, "ann", 5)
    as_owner(dsn, "DROP POLICY credits_books ON credits; CREATE POLICY credits_books ON credits TO invokeai_books USING (false)")
    with pytest.raises(Exception, match="expected to settle with 1 grants, settled with 0"), tenancy.as_user("ann"):
        with database.postgres() as cursor:
            cursor.execute("UPDATE session_queue SET status = 'canceled' WHERE item_id = %s", (item,))

    assert rows(database, "SELECT status FROM session_queue") == [{"status": "pending"}]
