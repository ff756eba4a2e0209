"""The books compared with themselves: every way in which grants, holds and ledger could disagree is a line; no line is right.

`invokeai-saas credits reconcile` prints them; the periodic check logs an error and sets a metric.
"""

import logging
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Gauge

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase

# A grant's parts, its ledger, the holds that draw on it; a hold's draws, its job, its usage record and its lines of the ledger.
DRIFT = """
WITH ledger AS (
    SELECT credit_id, sum(amount) AS amount, sum(-amount) FILTER (WHERE transaction_type = 'generation') AS consumed,
        sum(-amount) FILTER (WHERE transaction_type = 'expiry') AS expired
    FROM credit_transactions GROUP BY credit_id
), open AS (
    SELECT credit_id, sum(part) AS amount FROM credit_holds CROSS JOIN LATERAL unnest(drawn, drawn_amounts) AS draw (credit_id, part)
    WHERE state = 'held' GROUP BY credit_id
), charged AS (
    SELECT user_id, reference_id, sum(-amount) AS amount FROM credit_transactions
    WHERE transaction_type = 'generation' GROUP BY user_id, reference_id
)
SELECT 'grant does not add up' AS problem, credits.user_id, credit_id::text AS name, total_credits::bigint AS expected,
    (available_credits + held_credits + consumed_credits + expired_credits + revoked_credits)::bigint AS found
FROM credits WHERE total_credits <> available_credits + held_credits + consumed_credits + expired_credits + revoked_credits
    OR LEAST(available_credits, held_credits, consumed_credits, expired_credits, revoked_credits, owed_credits) < 0
UNION ALL
SELECT 'ledger and grant differ', credits.user_id, credit_id::text, available_credits + held_credits, COALESCE(ledger.amount, 0)
FROM credits LEFT JOIN ledger USING (credit_id) WHERE available_credits + held_credits <> COALESCE(ledger.amount, 0)
UNION ALL
SELECT 'consumed credits and ledger differ', credits.user_id, credit_id::text, consumed_credits, COALESCE(ledger.consumed, 0)
FROM credits LEFT JOIN ledger USING (credit_id) WHERE consumed_credits <> COALESCE(ledger.consumed, 0)
UNION ALL
SELECT 'expired credits and ledger differ', credits.user_id, credit_id::text, expired_credits, COALESCE(ledger.expired, 0)
FROM credits LEFT JOIN ledger USING (credit_id) WHERE expired_credits <> COALESCE(ledger.expired, 0)
UNION ALL
SELECT 'held credits and holds differ', credits.user_id, credit_id::text, held_credits, COALESCE(open.amount, 0)
FROM credits LEFT JOIN open USING (credit_id) WHERE held_credits <> COALESCE(open.amount, 0)
UNION ALL
SELECT 'ledger line without a grant', credit_transactions.user_id, id::text, 0, amount
FROM credit_transactions LEFT JOIN credits USING (credit_id)
WHERE credits.credit_id IS NULL OR credits.user_id <> credit_transactions.user_id
UNION ALL
SELECT 'hold draws another amount', user_id, item_id::text, amount, (SELECT sum(part) FROM unnest(drawn_amounts) AS part)
FROM credit_holds WHERE amount <> (SELECT sum(part) FROM unnest(drawn_amounts) AS part)
UNION ALL
SELECT 'charge and ledger differ', holds.user_id, item_id::text, captured, COALESCE(charged.amount, 0)
FROM credit_holds AS holds LEFT JOIN charged ON charged.reference_id = item_id::text AND charged.user_id = holds.user_id
WHERE captured <> COALESCE(charged.amount, 0)
UNION ALL
SELECT 'charge and usage record differ', holds.user_id, item_id::text, captured, COALESCE(usage.credits_consumed, -1)
FROM credit_holds AS holds LEFT JOIN usage_records AS usage ON usage.job_id = item_id::text AND usage.user_id = holds.user_id
WHERE state <> 'held' AND captured IS DISTINCT FROM usage.credits_consumed
UNION ALL
SELECT 'hold without a job', user_id, item_id::text, 0, amount FROM credit_holds AS holds
WHERE state = 'held' AND NOT EXISTS (SELECT FROM session_queue AS item
    WHERE item.item_id = holds.item_id AND item.user_id = holds.user_id AND item.root_item_id IS NULL
        AND item.status IN ('pending', 'in_progress', 'waiting'))
ORDER BY 2, 1, 3
"""
TOTALS = """
SELECT count(*) AS grants, count(DISTINCT user_id) AS users, COALESCE(sum(total_credits), 0)::bigint AS granted,
    COALESCE(sum(available_credits), 0)::bigint AS available, COALESCE(sum(held_credits), 0)::bigint AS held,
    COALESCE(sum(consumed_credits), 0)::bigint AS consumed, COALESCE(sum(expired_credits), 0)::bigint AS expired,
    COALESCE(sum(revoked_credits), 0)::bigint AS revoked, COALESCE(sum(owed_credits), 0)::bigint AS owed
FROM credits
"""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Problem:
    """One disagreement; `name` is a grant, a job or a line."""

    problem: str
    user_id: str
    name: str
    expected: int
    found: int

    def __str__(self) -> str:
        return f"{self.problem}: {self.name} of user {self.user_id}: expected {self.expected}, got {self.found}"


@dataclass(frozen=True, slots=True)
class Report:
    """What was compared, and what does not agree."""

    totals: dict[str, int]
    problems: tuple[Problem, ...]


def reconcile(database: PostgresDatabase) -> Report:
    """Compare everything, at one moment: one statement sees one state."""
    with tenancy.as_system("the books of all users are compared"), database.postgres() as cursor:
        problems = tuple(_problem(row) for row in cursor.execute(DRIFT).fetchall())
        totals = cursor.execute(TOTALS).fetchone()
    return Report({name: int(value) for name, value in (totals or {}).items()}, problems)


class BooksCheck:
    """The periodic check: an error in the log and a metric that an alarm can watch. Add `run` to the background."""

    def __init__(self, database: PostgresDatabase, *, registry: CollectorRegistry | None = None) -> None:
        self._database = database
        self._drift = Gauge("invokeai_credits_drift", "Disagreements in the books of credits; 0 is right.", registry=registry)

    def run(self) -> Report:
        """Reconcile and raise the alarm, or end it."""
        report = reconcile(self._database)
        self._drift.set(len(report.problems))
        for problem in report.problems[:20]:
            logger.error("the books of credits do not agree: %s", problem)
        if len(report.problems) > 20:
            logger.error("the books of credits do not agree: %d more", len(report.problems) - 20)
        return report


def _problem(row: dict[str, Any]) -> Problem:
    return Problem(**{**row, "expected": int(row["expected"]), "found": int(row["found"])})
