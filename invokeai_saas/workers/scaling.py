"""How many workers each tier should have: the queue and the registry in, advice out (C-41).

    waiting jobs, idle and busy workers ─► advise(): a rule and its cool-down ─► fleet_scaling ─► gauges, /admin/gpu/status, scale-advice

Whoever looks locks the tier's row and leaves what it found there: all processes answer alike, however many look and however often. What
counts as waiting is what another worker could begin: a user's thousandth job behind the parallel limit of their plan buys nobody a GPU.
Nothing here starts or stops a machine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg.rows import DictRow

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.errors import BadSettings
from invokeai_saas.workers import registry
from invokeai_saas.workers.registry import TIERS, Registered

REASON = "the fleet's size is everybody's queue"
# A look every so often, by one process at a time.
LOOK_SECONDS = 15.0

# One look at a time. Locks are taken per tier, in the order of TIERS.
MAKE_ROWS = """
INSERT INTO fleet_scaling (tier, wanted, step, why, pending, runnable, oldest_wait_seconds, alive, idle, busy, looked_at)
SELECT tier, 0, 0, '', 0, 0, 0, 0, 0, 0, '-infinity' FROM unnest(%s::text[]) AS tier
ON CONFLICT (tier) DO NOTHING
"""
LOCK_ROWS = """
SELECT tier, wanted, raised_at, quiet_since, looked_at = '-infinity' AS is_new, clock_timestamp() AS now
FROM fleet_scaling WHERE tier = ANY(%s) ORDER BY tier FOR UPDATE
"""
# What waits, by user and route, with how many more of the user's jobs may run. sqlite_now() writes UTC without saying so.
WAITING = """
SELECT waiting.tiers, waiting.items,
    extract(epoch FROM clock_timestamp() - waiting.since::timestamp AT TIME ZONE 'UTC')::float AS oldest_seconds,
    waiting.user_id, turn.max_parallel - (SELECT count(*) FROM session_queue AS running
        WHERE running.user_id = waiting.user_id AND running.status = 'in_progress') AS slots
FROM (SELECT user_id, tiers, count(*) AS items, min(created_at) AS since FROM session_queue
    WHERE status = 'pending' GROUP BY user_id, tiers) AS waiting
JOIN queue_turns AS turn USING (user_id)
WHERE NOT EXISTS (SELECT FROM users WHERE users.user_id = waiting.user_id AND users.is_active = 0)
ORDER BY waiting.user_id, waiting.tiers
"""
WRITE = """
UPDATE fleet_scaling SET wanted = %(wanted)s, raised_at = %(raised_at)s, quiet_since = %(quiet_since)s, step = %(step)s, why = %(why)s,
    pending = %(pending)s, runnable = %(runnable)s, oldest_wait_seconds = %(oldest_wait_seconds)s, alive = %(alive)s, idle = %(idle)s,
    busy = %(busy)s, looked_at = clock_timestamp()
WHERE tier = %(tier)s
"""
READ = """
SELECT tier, wanted, step, why, pending, runnable, oldest_wait_seconds, alive, idle, busy, looked_at FROM fleet_scaling
WHERE looked_at > '-infinity' ORDER BY tier
"""


@dataclass(frozen=True, slots=True)
class Rule:
    """More than so many jobs wait: so many workers more, not again within the cool-down."""

    more_than: int
    step: int
    cooldown: timedelta


# C-41, the steepest first.
UP = (Rule(50, 3, timedelta(minutes=3)), Rule(10, 1, timedelta(minutes=5)))
# Fewer than so many wait for so long: one worker less.
FEW, QUIET = 3, timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many workers a tier has at least and at most."""

    least: int = 1
    most: int = 10

    def clamp(self, count: int) -> int:
        """The nearest count within."""
        return max(self.least, min(self.most, count))


@dataclass(frozen=True, slots=True)
class Load:
    """A tier now. `pending` are all its jobs that wait, `runnable` those that a free worker could begin; workers of several tiers count in
    each of theirs. Of those alive, some may be neither idle nor busy: they start."""

    pending: int = 0
    runnable: int = 0
    oldest_wait_seconds: float = 0.0
    alive: int = 0
    idle: int = 0
    busy: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered between two looks."""

    wanted: int
    raised_at: datetime | None = None
    quiet_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Advice:
    """What a tier should have, what that adds to what it was to have or has, and why."""

    tier: str
    wanted: int
    step: int
    why: str
    pending: int
    runnable: int
    oldest_wait_seconds: float
    alive: int
    idle: int
    busy: int
    looked_at: datetime


def bounds_of(words: Sequence[str]) -> dict[str, Bounds]:
    """`1-10` for all tiers, or `basic=1-20` for one; raises BadSettings. A tier keeps a worker: a job that none fits is refused."""
    found = dict.fromkeys(TIERS, Bounds())
    for word in words:
        tier, _, numbers = word.rpartition("=")
        least, dash, most = numbers.partition("-")
        if (tier and tier not in TIERS) or not dash or not (least.isdecimal() and most.isdecimal()):
            raise BadSettings(f"SAAS_SCALE_BOUNDS: expected 1-10, or basic=1-10 for one of {', '.join(TIERS)}, got {word!r}")
        if int(least) < 1:
            raise BadSettings(f"SAAS_SCALE_BOUNDS: expected at least 1 worker, got {word!r}: without one a tier's jobs are refused")
        if int(most) < int(least):
            raise BadSettings(f"SAAS_SCALE_BOUNDS: expected the fewest before the most, got {word!r}")
        bounds = Bounds(int(least), int(most))
        found.update({tier: bounds} if tier else dict.fromkeys(TIERS, bounds))
    return found


def advise(before: State, load: Load, bounds: Bounds, *, now: datetime) -> tuple[State, int, str]:
    """The rule that holds now: what to remember, the step, and why. Pure."""
    few = load.runnable < FEW
    quiet_since = (before.quiet_since or now) if few else None
    # Bounds may have changed since.
    state = State(bounds.clamp(before.wanted), before.raised_at, quiet_since)
    for rule in UP:
        if load.runnable > rule.more_than:
            return _up(state, load, rule, bounds, now)
    if not few or quiet_since is None:
        return state, 0, f"{load.runnable} jobs wait: as it should be"
    if now - quiet_since < QUIET:
        return state, 0, f"{load.runnable} jobs wait, since {_minutes(now - quiet_since)} fewer than {FEW}"
    if state.wanted <= bounds.least:
        return state, 0, f"{load.runnable} jobs wait; {bounds.least} workers are the fewest"
    if load.idle == 0 and load.alive >= state.wanted:
        return state, 0, f"{load.runnable} jobs wait, but none of {load.alive} workers is idle"
    return (
        State(state.wanted - 1, state.raised_at, now),
        -1,
        f"for {_minutes(now - quiet_since)} fewer than {FEW} jobs waited",
    )


def look(database: PostgresDatabase, bounds: Mapping[str, Bounds]) -> list[Advice]:
    """Look at the queue and the workers, decide for every tier, remember it; returns the advice in the order of TIERS."""
    with tenancy.as_system(REASON), database.postgres() as cursor:
        cursor.execute(MAKE_ROWS, (list(TIERS),))
        rows = {row["tier"]: row for row in cursor.execute(LOCK_ROWS, (list(TIERS),)).fetchall()}
        loads = _loads(cursor, registry.live(database))
        for tier in TIERS:
            row, load = rows[tier], loads[tier]
            before = State(load.alive if row["is_new"] else row["wanted"], row["raised_at"], row["quiet_since"])
            state, step, why = advise(before, load, bounds[tier], now=row["now"])
            cursor.execute(WRITE, {"tier": tier, "step": step, "why": why, **asdict(state), **asdict(load)})
        return _read(cursor)


def last(database: PostgresDatabase) -> list[Advice]:
    """What the last look said, in the order of TIERS; empty before the first one."""
    with tenancy.as_system(REASON), database.postgres() as cursor:
        return _read(cursor)


def _read(cursor: psycopg.Cursor[DictRow]) -> list[Advice]:
    rows = cursor.execute(READ).fetchall()
    return sorted((Advice(**row) for row in rows), key=lambda advice: TIERS.index(advice.tier))


def _loads(cursor: psycopg.Cursor[DictRow], workers: Sequence[Registered]) -> dict[str, Load]:
    """Every tier's. A job counts where it will go: the lowest of its tiers that has a worker, else the lowest."""
    alive = {tier: [each for each in workers if tier in each.tiers] for tier in TIERS}
    counts = {tier: [0, 0, 0.0] for tier in TIERS}
    slots: dict[str, int | None] = {}
    for row in cursor.execute(WAITING).fetchall():
        count = counts[_goes_to(row["tiers"], alive)]
        free = slots.setdefault(row["user_id"], row["slots"])
        runnable = row["items"] if free is None else max(0, min(row["items"], free))
        slots[row["user_id"]] = None if free is None else free - runnable
        count[0] += row["items"]
        count[1] += runnable
        count[2] = max(count[2], row["oldest_seconds"])
    return {tier: _load(counts[tier], alive[tier]) for tier in TIERS}


def _load(count: Sequence[Any], workers: Sequence[Registered]) -> Load:
    useful = [each for each in workers if each.claims]
    idle, busy = (sum(each.status == status for each in useful) for status in ("available", "busy"))
    pending, runnable, oldest = count
    return Load(pending, runnable, oldest, alive=len(useful), idle=idle, busy=busy)


def _goes_to(tiers: Sequence[str] | None, alive: Mapping[str, Sequence[Registered]]) -> str:
    # No tier at all: only a worker of every tier takes it.
    allowed = [tier for tier in TIERS if tiers is None or tier in tiers] or [TIERS[-1]]
    return next((tier for tier in allowed if any(each.claims for each in alive[tier])), allowed[0])


def _up(state: State, load: Load, rule: Rule, bounds: Bounds, now: datetime) -> tuple[State, int, str]:
    why = f"{load.runnable} jobs wait, more than {rule.more_than}"
    # Workers may live that nobody advised: who follows this number must not take them away while jobs wait.
    state = replace(state, wanted=bounds.clamp(max(state.wanted, load.alive)))
    if state.wanted >= bounds.most:
        return state, 0, f"{why}; {bounds.most} workers are the most"
    if state.raised_at is not None and now - state.raised_at < rule.cooldown:
        left = rule.cooldown - (now - state.raised_at)
        return state, 0, f"{why}; the last step was {_minutes(now - state.raised_at)} ago, the next in {_minutes(left)}"
    wanted = bounds.clamp(state.wanted + rule.step)
    return State(wanted, now, state.quiet_since), wanted - state.wanted, why


def _minutes(span: timedelta) -> str:
    seconds = int(span.total_seconds())
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"
