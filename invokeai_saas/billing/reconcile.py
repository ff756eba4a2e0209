"""What webhooks did not bring: Stripe's own list of events goes through the inbox again, and customers whose rows look old are asked about.

since the last time (and an hour) ─► events ─► inbox (known ones stay) ─► processed
unpaid, past their period, or all ─► customer ─► everything that Stripe has of it ─► rows
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from invokeai_saas.billing import customers, inbox, process
from invokeai_saas.billing.model import Billing
from invokeai_saas.db import tenancy
from invokeai_saas.errors import SaasError

# Stripe forgets events after 30 days.
STRIPE_REMEMBERS = timedelta(days=30)
OVERLAP = timedelta(hours=1)
MARK = "stripe_events"
REACHED = "SELECT reached FROM billing_marks WHERE name = %s"
REACH = """
INSERT INTO billing_marks (name, reached) VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET reached = EXCLUDED.reached
"""
# Whose period ended a day ago without a new one, or who is unpaid: if Stripe knows better, its event never came.
DOUBTFUL = """
SELECT DISTINCT stripe_customer_id FROM user_subscriptions
WHERE stripe_customer_id IS NOT NULL AND (status = 'past_due' OR (status = 'active' AND current_period_end < clock_timestamp() - interval '1 day'))
ORDER BY stripe_customer_id LIMIT 500
"""
ALL = "SELECT stripe_customer_id FROM billing_customers WHERE retired_at IS NULL ORDER BY created_at"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reconciled:
    """How many events Stripe has since then, how many of them were new here, and how many customers were asked about one by one."""

    events: int
    new: int
    customers: int
    failed: int


def reconcile(billing: Billing, *, since: datetime | None = None, everybody: bool = False) -> Reconciled:
    """Bring in what was missed since the last time, or `since`. `everybody`: every customer's whole state too, which asks a lot."""
    began = datetime.now(UTC)
    gateway = customers.gateway_of(billing)
    start = max(since or _reached(billing), began - STRIPE_REMEMBERS)
    seen = new = 0
    # Oldest first, as they would have come.
    for event in reversed(list(gateway.events(start))):
        seen += 1
        new += inbox.record(billing, event) == "waiting"
    process.process_waiting(billing, at_most=100_000)
    asked, failed = _ask_about(billing, _customers(billing, everybody=everybody))
    if not failed:
        _reach(billing, began)
    if new:
        logger.warning("reconciliation brought %d events that no webhook had brought", new)
    return Reconciled(seen, new, asked, failed)


def _ask_about(billing: Billing, names: Iterable[str]) -> tuple[int, int]:
    asked = failed = 0
    for customer in names:
        try:
            process.process_customer(billing, customer, process.EVERYTHING)
            asked += 1
        except SaasError:
            failed += 1
            logger.exception("customer %s could not be reconciled", customer)
    return asked, failed


def _customers(billing: Billing, *, everybody: bool) -> list[str]:
    with tenancy.as_system("a reconciliation looks at everybody"), billing.database.postgres() as cursor:
        return [row["stripe_customer_id"] for row in cursor.execute((ALL if everybody else DOUBTFUL).encode()).fetchall()]


def _reached(billing: Billing) -> datetime:
    with tenancy.as_system("a reconciliation looks at everybody"), billing.database.postgres() as cursor:
        row = cursor.execute(REACHED, (MARK,)).fetchone()
    return row["reached"] - OVERLAP if row else datetime.now(UTC) - STRIPE_REMEMBERS


def _reach(billing: Billing, when: datetime) -> None:
    with tenancy.as_system("a reconciliation looks at everybody"), billing.database.postgres() as cursor:
        cursor.execute(REACH, (MARK, when))
