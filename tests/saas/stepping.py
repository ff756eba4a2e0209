"""A worker of this process whose one node works in steps: InvokeAI's runner and graph engine on a leased queue."""

import logging
from types import SimpleNamespace
from typing import Any

from invokeai.app.invocations.baseinvocation import BaseInvocation, InvocationContext, invocation
from invokeai.app.invocations.primitives import IntegerOutput
from invokeai.app.services.config.config_default import InvokeAIAppConfig
from invokeai.app.services.events.events_base import EventServiceBase
from invokeai.app.services.invocation_stats.invocation_stats_default import InvocationStatsService
from invokeai.app.services.session_processor.session_processor_common import CanceledException
from invokeai.app.services.session_queue.session_queue_common import Batch
from invokeai.app.services.shared.graph import Graph
from invokeai.app.services.users.users_default import UserService

from invokeai_saas.closed.nodes import demand_open_node
from invokeai_saas.db import tenancy
from invokeai_saas.swaps.session_processor import LeasedSessionProcessor
from invokeai_saas.swaps.session_queue import PostgresSessionQueue
from invokeai_saas.swaps.session_runner import LeasedSessionRunner

# What a running step reports, and what a test lets it do.
STEPS: dict[str, Any] = {}


@invocation("saas_test_steps", title="Steps", version="1.0.0", use_cache=False)
class StepsInvocation(BaseInvocation):
    """Works in steps until it is told to go on, as a denoise node does."""

    def invoke(self, context: InvocationContext) -> IntegerOutput:
        STEPS["context"] = tenancy.current()
        STEPS["runs"] = STEPS.get("runs", 0) + 1
        STEPS["running"].set()
        while not STEPS["go_on"].wait(0.02):
            if context.util.is_canceled():
                raise CanceledException
        STEPS.get("at_the_end", lambda: None)()
        return IntegerOutput(value=1)


class RecordedEvents(EventServiceBase):
    """InvokeAI's own events, kept in a list."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def dispatch(self, event: Any) -> None:
        self.sent.append(event)


class Server:
    """One process's queue, processor and what the runner needs of InvokeAI's services."""

    def __init__(self, database: Any, worker_id: str, **settings: Any) -> None:
        self.database, self.queue = database, PostgresSessionQueue(database, worker_id=worker_id)
        # With the server's own callback: the runner calls it by keywords.
        runner = LeasedSessionRunner(on_before_run_node_callbacks=[demand_open_node])
        self.processor = LeasedSessionProcessor(session_runner=runner, poll_seconds=0.2, **settings)
        self.events, self.log = RecordedEvents(), logging.getLogger(f"saas.{worker_id}")
        models = SimpleNamespace(load=SimpleNamespace(ram_cache=SimpleNamespace(stats=None), ram_caches={}))
        services = SimpleNamespace(
            session_queue=self.queue,
            session_processor=self.processor,
            events=self.events,
            logger=self.log,
            users=UserService(database),
            configuration=InvokeAIAppConfig(multiuser=True, node_cache_size=0, generation_devices=["cpu"]),
            performance_statistics=InvocationStatsService(),
            model_manager=models,
            image_moves=None,
        )
        self.invoker = SimpleNamespace(services=services)
        services.performance_statistics.start(self.invoker)
        self.queue.start(self.invoker)

    def enqueue(self, user_id: str, runs: int = 1) -> list[int]:
        graph = Graph()
        graph.add_node(StepsInvocation(id="steps"))
        with tenancy.as_user(user_id):
            return sorted(self.queue._enqueue_batch("default", Batch(graph=graph, runs=runs), False, user_id).item_ids)

    def announced(self, item: int) -> list[str]:
        return [event.status for event in self.events.sent if event.__event_name__ == "queue_item_status_changed" and event.item_id == item]
