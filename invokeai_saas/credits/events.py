"""C-52: credit_reserved, credit_confirmed and credit_refunded, to the user's own room, whichever process held or settled.

Settlements happen in a trigger, so each web process looks once a second for what was committed since: by the primary key of the holds
and the index of the usage records. A commit that took longer than OVERLAP_SECONDS is not told; the balance shows it anyway.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.jobs.background import Looking

OVERLAP_SECONDS = 30.0
MOST = 500
START = """
SELECT clock_timestamp() AS now, COALESCE((SELECT max(item_id) FROM credit_holds), 0) AS item_id
"""
# Numbers are given before they are committed: a little is looked at again.
RESERVED = """
SELECT item_id, user_id, amount, (SELECT COALESCE(sum(available_credits), 0)::int FROM credits
    WHERE credits.user_id = holds.user_id AND valid_from <= credits_now() AND valid_until > credits_now()) AS balance
FROM credit_holds AS holds
WHERE item_id > %(after)s - 10000 AND created_at > clock_timestamp() - make_interval(secs => %(overlap)s) AND created_at > %(since)s
  AND item_id <> ALL(%(seen)s)
ORDER BY item_id LIMIT %(most)s
"""
SETTLED = """
SELECT job_id, user_id, credits_held, credits_consumed, outcome, (SELECT COALESCE(sum(available_credits), 0)::int FROM credits
    WHERE credits.user_id = usage.user_id AND valid_from <= credits_now() AND valid_until > credits_now()) AS balance
FROM usage_records AS usage
WHERE created_at > clock_timestamp() - make_interval(secs => %(overlap)s) AND created_at > %(since)s AND job_id <> ALL(%(seen)s)
ORDER BY created_at LIMIT %(most)s
"""
Key = TypeVar("Key", int, str)
Tell = Callable[[str, str, dict[str, Any]], object]


class CreditEvents(Looking):
    """Looks and tells; `tell` takes user_id, the event's name and its data. What was committed before the start is not told."""

    def __init__(self, database: PostgresDatabase, tell: Tell, *, every_seconds: float = 1.0) -> None:
        super().__init__(name="saas-credit-events", every_seconds=every_seconds, trouble="credit events wait")
        self._database, self._tell = database, tell
        self._since: datetime | None = None
        self._after = 0
        self._reserved: dict[int, None] = {}
        self._settled: dict[str, None] = {}

    def look(self) -> None:
        """Tell what is new; the first look only remembers from where."""
        reserved, settled = self._read()
        for row in reserved:
            data = {"reservation_id": row["item_id"], "amount": row["amount"], "remaining_balance": row["balance"]}
            self._tell(row["user_id"], "credit_reserved", data)
        for row in settled:
            self._tell(row["user_id"], *_ending(row))

    def _read(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        with tenancy.as_system("credit events of all users"), self._database.postgres() as cursor:
            if self._since is None:
                row = cursor.execute(START).fetchone()
                assert row is not None
                self._since, self._after = row["now"], row["item_id"]
                return [], []
            values = {"since": self._since, "after": self._after, "overlap": OVERLAP_SECONDS, "most": MOST}
            reserved = cursor.execute(RESERVED, {**values, "seen": list(self._reserved)}).fetchall()
            settled = cursor.execute(SETTLED, {**values, "seen": list(self._settled)}).fetchall()
        self._remember(reserved, settled)
        return reserved, settled

    def _remember(self, reserved: list[dict[str, Any]], settled: list[dict[str, Any]]) -> None:
        self._after = max([self._after, *(row["item_id"] for row in reserved)])
        self._add(self._reserved, [row["item_id"] for row in reserved])
        self._add(self._settled, [row["job_id"] for row in settled])

    def _add(self, seen: dict[Key, None], keys: list[Key]) -> None:
        seen.update(dict.fromkeys(keys))
        # More than the overlap can hold at the rate of MOST a look.
        while len(seen) > MOST * (OVERLAP_SECONDS / self._every_seconds + 1):
            seen.pop(next(iter(seen)))


def _ending(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    back = row["credits_held"] - row["credits_consumed"]
    shared = {"reservation_id": int(row["job_id"]), "new_balance": row["balance"]}
    if row["credits_consumed"]:
        return "credit_confirmed", {**shared, "actual_amount": row["credits_consumed"], "refunded": back}
    return "credit_refunded", {**shared, "refunded_amount": back, "reason": row["outcome"]}
