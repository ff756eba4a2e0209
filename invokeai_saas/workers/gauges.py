"""The fleet for Prometheus: what the last look at queue and workers said, and the workers' states now. No label names a tenant.

invokeai_fleet_workers_wanted{tier} is what an autoscaler follows (deploy/): the number of workers, not a reason for one.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.operating.probes import Probe
from invokeai_saas.workers import registry, scaling
from invokeai_saas.workers.registry import TIERS, Registered
from invokeai_saas.workers.scaling import Advice

STATUSES = ("starting", "available", "busy", "draining", "quarantined", "terminated", "dead")
OF_ADVICE = (
    ("wanted", "invokeai_fleet_workers_wanted", "Workers that the tier should have."),
    ("alive", "invokeai_fleet_workers_alive", "Workers of the tier that take jobs, or will once they have started."),
    ("idle", "invokeai_fleet_workers_idle", "Of these, ready and without a job."),
    ("pending", "invokeai_fleet_pending", "Jobs of the tier that wait."),
    ("runnable", "invokeai_fleet_runnable", "Of these, what another worker could begin."),
    ("oldest_wait_seconds", "invokeai_fleet_oldest_wait_seconds", "Age of the oldest that waits."),
)
logger = logging.getLogger(__name__)


class FleetGauges(Collector):
    """Asks two small tables when somebody scrapes; a database that is away leaves them out."""

    def __init__(self, database: PostgresDatabase, *, seconds: float = 2.0) -> None:
        self._probe = Probe(lambda: (scaling.last(database), registry.everybody(database)), seconds=seconds)

    def describe(self) -> list[Any]:
        """Nothing: registering must ask nobody."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One family per number, labelled with the tier."""
        try:
            advice, workers = self._probe.ask()
        except Exception as error:
            logger.warning("the database did not answer a scrape of the fleet: %s", type(error).__name__)
            return
        yield from _tiers(advice)
        yield _statuses(workers)


def _tiers(advice: list[Advice]) -> Iterator[GaugeMetricFamily]:
    for field, name, text in OF_ADVICE:
        family = GaugeMetricFamily(name, text, labels=("tier",))
        for each in advice:
            family.add_metric((each.tier,), getattr(each, field))
        yield family


def _statuses(workers: list[Registered]) -> GaugeMetricFamily:
    """A worker of several tiers counts in each."""
    counts = Counter((tier, row.shown_status) for row in workers for tier in row.tiers)
    family = GaugeMetricFamily("invokeai_fleet_workers", "Workers by what they do; dead ones for a day.", labels=("tier", "status"))
    for tier in TIERS:
        for status in STATUSES:
            family.add_metric((tier, status), counts[tier, status])
    return family
