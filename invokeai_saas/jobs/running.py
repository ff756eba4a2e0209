"""While an item runs: each node's real values against the plan, its seconds against its price, providers' calls into the books.

    begin (hold and plan are read) ─► before_node: still within the price? the plan? the workflow that was priced? ─► node ─► after_node

What the graph only decided now is looked at here again (decision 18), and an item that runs for longer than twice its hold, with an
allowance for loading models, is stopped (decision 14): between nodes here, in the middle of one by whoever holds it (holding.py).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from invokeai.app.invocations.baseinvocation import BaseInvocation
from invokeai.app.services.session_queue.session_queue_common import SessionQueueItem

from invokeai_saas.credits import pricing, service
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.errors import SaasError
from invokeai_saas.jobs.metering import Meter, meter_now
from invokeai_saas.plans import gate
from invokeai_saas.plans.demands import Model
from invokeai_saas.plans.flatten import CALL, workflow_digest
from invokeai_saas.plans.model import Entitlement
from invokeai_saas.plans.nodes import RULES

STOP_AT_HOLDS = 2
PROVIDER_CREDITS_OPEN = "SELECT provider_credits - provider_spent AS open FROM credit_holds WHERE item_id = %s AND state = 'held'"


class RanOverPrice(SaasError):
    """The item ran for longer than its price allows. It is charged its price at most."""

    status = 400

    def __init__(self, *, seconds: float, limit: float) -> None:
        super().__init__(f"stopped: expected at most {limit:.0f} seconds for the price that was held, got {seconds:.0f}")


class NotHeld(SaasError):
    """Nobody holds credits for this item: it came past the enqueue, or was settled while it waited."""

    status = 402

    def __init__(self) -> None:
        super().__init__("expected credits that are held for this job, got none: enqueue it again")


class WorkflowChanged(SaasError):
    """A called workflow is another one than was priced."""

    status = 409

    def __init__(self, workflow_id: str) -> None:
        super().__init__(f"expected the workflow {workflow_id!r} as it was when the job was enqueued: enqueue it again")


class MoreThanPriced(SaasError):
    """A list that was made while the graph ran is longer than what was held for."""

    status = 400

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(f"stopped: expected at most {limit} {what} for the price that was held, got one more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What is asked about a node's values: saved workflows, models, sizes of pictures and latents. None for what is not there."""

    workflow_of: Callable[[str], Mapping[str, Any] | None]
    model_of: Callable[[str], Model | None]
    image_size: Callable[[str], tuple[int, int] | None]
    latents_size: Callable[[str], tuple[int, int] | None]


@dataclass
class Run:
    """One item while this process runs it. `limit_seconds` is what it may still work, None where nothing is held.

    `jobs_priced` counts how often generating nodes run at most; `pins` are the called workflows that were priced.
    """

    database: PostgresDatabase
    item_id: int
    root_id: int
    entitlement: Entitlement
    meter: Meter
    limit_seconds: float | None
    stored: Stored
    jobs_priced: int = 0
    pins: Mapping[str, str] = field(default_factory=dict)
    jobs_begun: int = 0

    def overrun(self) -> str | None:
        """Why it must stop, if it must."""
        worked = self.meter.worked_seconds
        if self.limit_seconds is None or worked <= self.limit_seconds:
            return None
        return str(RanOverPrice(seconds=worked, limit=self.limit_seconds))

    def check(self, invocation: BaseInvocation) -> None:
        """Raise what keeps this node from running: its inputs are filled in by now."""
        if self.limit_seconds is None:
            raise NotHeld
        if (worked := self.meter.worked_seconds) > self.limit_seconds:
            raise RanOverPrice(seconds=worked, limit=self.limit_seconds)
        self._check_values(invocation)
        rule = RULES.get(invocation.get_type())
        if rule is not None and rule.role == "job":
            self.jobs_begun += 1
            if self.jobs_begun > self.jobs_priced:
                raise MoreThanPriced("generations", self.jobs_priced)
        if invocation.get_type() == CALL:
            self._demand_pinned(str(getattr(invocation, "workflow_id", "")))

    def _check_values(self, invocation: BaseInvocation) -> None:
        values = {name: getattr(invocation, name, None) for name in type(invocation).model_fields}
        stored = self.stored
        gate.check_node(
            self.entitlement,
            invocation.get_type(),
            values,
            model_base=stored.model_of,
            image_size=stored.image_size,
            latents_size=stored.latents_size,
        )

    def _demand_pinned(self, workflow_id: str) -> None:
        workflow = self.stored.workflow_of(workflow_id)
        if workflow is None or self.pins.get(workflow_id) != workflow_digest(workflow):
            raise WorkflowChanged(workflow_id)

    def called(self, invocation: BaseInvocation) -> None:
        """A provider is about to be asked: its price is owed from now on, also when the item is canceled while the provider works."""
        owed = pricing.provider_credits(invocation.get_type(), max(1, int(getattr(invocation, "num_images", 1))))
        with self.database.postgres() as cursor:
            row = cursor.execute(PROVIDER_CREDITS_OPEN, (self.root_id,)).fetchone()
            if row is None or row["open"] < owed:
                raise MoreThanPriced("credits for providers' calls", 0 if row is None else row["open"])
            service.provider_called(cursor, item_id=self.item_id, credits=owed)


_run: ContextVar[Run | None] = ContextVar("invokeai_saas_run", default=None)


@contextmanager
def checked(run: Run | None) -> Iterator[None]:
    """Inside, the runner's callbacks work for this run; None: nothing is checked."""
    token = _run.set(run)
    try:
        yield
    finally:
        _run.reset(token)


def before_node(invocation: BaseInvocation, queue_item: SessionQueueItem) -> None:
    """A runner's `on_before_run_node` callback: what it raises fails the item before the node does anything."""
    run, meter = _run.get(), meter_now()
    if run is not None:
        run.check(invocation)
    if not is_provider(invocation):
        if meter is not None:
            meter.begin_node()
    elif run is not None:
        run.called(invocation)


def after_node(invocation: BaseInvocation, queue_item: SessionQueueItem, output: object) -> None:
    """A runner's `on_after_run_node` callback."""
    _nothing_runs()


def node_failed(invocation: BaseInvocation, queue_item: SessionQueueItem, **_: object) -> None:
    """A runner's `on_node_error` callback."""
    _nothing_runs()


def _nothing_runs() -> None:
    meter = meter_now()
    if meter is not None:
        meter.end_node()


def is_provider(invocation: BaseInvocation) -> bool:
    """Whether the node waits for somebody else's GPU: priced per call, its seconds are nobody's."""
    rule = RULES.get(invocation.get_type())
    return rule is not None and rule.role == "provider"
