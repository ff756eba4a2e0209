"""GPU seconds: nodes count, loading does not; and what runs for longer than its price, or for more than its plan, is stopped."""

import threading
import time
from types import SimpleNamespace

import psycopg
import pytest
from invokeai.app.invocations.baseinvocation import BaseInvocation, InvocationContext, invocation
from invokeai.app.invocations.fields import InputField
from invokeai.app.invocations.primitives import IntegerOutput
from invokeai.app.services.session_processor.session_processor_default import DefaultSessionRunner
from invokeai.app.services.session_queue.session_queue_common import Batch
from invokeai.app.services.shared.graph import Graph
from saas import plan_graphs as graphs
from saas import stepping as worker
from saas.customers import balance_of, give, holds, install_models, subscribe
from saas.people import rows

from invokeai_saas.db import tenancy
from invokeai_saas.jobs import running
from invokeai_saas.jobs.admission import Admission
from invokeai_saas.jobs.metering import Meter, metered, off_the_clock, uncharged
from invokeai_saas.swaps.model_loading import UnchargedModelCache, UnchargedModelInstalls, UnchargedModelLoads
from invokeai_saas.swaps.session_processor import LeasedSessionProcessor
from invokeai_saas.swaps.session_queue import PostgresSessionQueue

WORKFLOWS = {}
STEPS = worker.STEPS


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_only_nodes_count():
    clock = Clock()
    meter = Meter(clock)
    clock.now += 5
    meter.begin_node()
    clock.now += 2
    meter.end_node()
    clock.now += 7

    assert (meter.seconds, meter.worked_seconds) == (2, 2)


def test_what_is_off_the_clock_is_work_and_not_charged():
    clock = Clock()
    meter = Meter(clock)
    with metered(meter):
        meter.begin_node()
        clock.now += 1
        with off_the_clock(), off_the_clock():
            clock.now += 10
        clock.now += 3

    assert (meter.seconds, meter.worked_seconds) == (4, 14)


def test_a_node_that_was_interrupted_ends_with_the_run():
    clock = Clock()
    meter = Meter(clock)
    with metered(meter):
        meter.begin_node()
        clock.now += 1
    clock.now += 50

    assert meter.seconds == 1


def test_another_threads_meter_is_not_paused():
    clock = Clock()
    meter = Meter(clock)
    with metered(meter):
        meter.begin_node()
        thread = threading.Thread(target=uncharged(lambda: setattr(clock, "now", clock.now + 3)))
        thread.start()
        thread.join()

    assert meter.seconds == 3


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (UnchargedModelLoads, "load_model"),
        (UnchargedModelLoads, "load_model_from_path"),
        (UnchargedModelCache, "lock"),
        (UnchargedModelCache, "lock_in_ram"),
        (UnchargedModelInstalls, "download_and_cache_model"),
    ],
)
def test_invokeais_loads_are_off_the_clock(cls, name, monkeypatch):
    clock = Clock()
    meter, original = Meter(clock), getattr(cls, name).__wrapped__
    takes = uncharged(lambda *_: setattr(clock, "now", clock.now + 9))
    with metered(meter):
        meter.begin_node()
        takes()

    assert (meter.seconds, original) == (0, getattr(cls.__mro__[1], name))


@invocation("saas_test_sized", title="Sized", version="1.0.0", use_cache=False)
class SizedInvocation(BaseInvocation):
    """Hands out a number that nobody could know before."""

    value: int = InputField(default=0, description="What is handed out.")

    def invoke(self, context: InvocationContext) -> IntegerOutput:
        return IntegerOutput(value=self.value)


class Server(worker.Server):
    """With admission, and the callbacks of the server."""

    def __init__(self, database, worker_id: str = "w1") -> None:
        super().__init__(database, worker_id)
        self.queue = PostgresSessionQueue(database, worker_id=worker_id, admission=Admission(database, WORKFLOWS.get))
        self.invoker.services.session_queue = self.queue
        self.queue.start(self.invoker)
        runner = DefaultSessionRunner(
            on_before_run_node_callbacks=[running.before_node],
            on_after_run_node_callbacks=[running.after_node],
            on_node_error_callbacks=[running.node_failed],
        )
        self.processor = LeasedSessionProcessor(session_runner=runner, poll_seconds=0.1)
        self.invoker.services.session_processor = self.processor

    def put(self, person, graph, **more) -> int:
        with tenancy.as_user(person.user_id):
            wanted = Batch(graph=graph, **more)
            return self.queue.enqueue(queue_id="default", batch=wanted, prepend=False, user_id=person.user_id).item_ids[0]


@pytest.fixture
def server(database, ann):
    STEPS.clear()
    STEPS.update(running=threading.Event(), go_on=threading.Event())
    WORKFLOWS.clear()
    install_models(database)
    subscribe(database, ann.user_id, "starter")
    give(database, ann.user_id, 1000)
    made = Server(database)
    yield made
    STEPS["go_on"].set()
    if made.processor._workers:
        made.processor.stop()


def steps() -> Graph:
    made = Graph()
    made.add_node(worker.StepsInvocation(id="steps"))
    return made


def wait_for(server, item: int, *states: str) -> dict:
    for _ in range(2400):
        found = rows(server.database, "SELECT status, error_type, error_message FROM session_queue WHERE item_id = %s", item)[0]
        if found["status"] in states:
            return found
        threading.Event().wait(0.05)
    raise AssertionError(found)


def test_a_run_is_charged_for_the_seconds_of_its_nodes(server, ann):
    item, began = server.put(ann, steps()), time.monotonic()
    server.processor.start(server.invoker)
    assert STEPS["running"].wait(120)
    threading.Event().wait(1.2)
    STEPS["go_on"].set()
    wait_for(server, item, "completed")
    took = time.monotonic() - began
    held = holds(server.database)[item]

    assert (held["amount"], held["state"], held["captured"]) == (1, "captured", 1)
    assert 1.2 <= held["seconds"] < took


def test_an_item_that_runs_for_too_long_is_stopped_in_the_middle_of_a_node(server, ann, dsn):
    item = server.put(ann, steps())
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute("UPDATE credit_holds SET detail = detail || '{\"load_seconds\": -1}'::jsonb WHERE item_id = %s", (item,))
    server.processor.start(server.invoker)
    found = wait_for(server, item, "failed")
    held = holds(server.database)[item]

    assert (found["error_type"], found["error_message"][:43]) == ("RanOverPrice", "stopped: expected at most 1 seconds for the")
    assert (held["state"], held["captured"], balance_of(server.database, ann.user_id).remaining_credits) == ("released", 0, 1000)
    assert held["seconds"] > 1


def sized(width: int) -> Graph:
    nodes = ({"id": "n", "type": "saas_test_sized", "value": width}, {"id": "blank", "type": "blank_image"})
    return graphs.graph(*nodes, edges=("n.value > blank.width",))


def test_a_size_that_a_running_node_decided_is_checked_before_it_counts(server, ann):
    item = server.put(ann, sized(4096))
    server.processor.start(server.invoker)
    found = wait_for(server, item, "failed", "completed")

    assert (found["status"], found["error_type"]) == ("failed", "OverLimit"), found
    assert "2048" in found["error_message"]


def test_an_item_without_a_hold_does_not_run(server, ann):
    without = PostgresSessionQueue(server.database, worker_id="w0")
    without.start(server.invoker)
    with tenancy.as_user(ann.user_id):
        [item] = without.enqueue(queue_id="default", batch=Batch(graph=steps()), prepend=False, user_id=ann.user_id).item_ids
    server.processor.start(server.invoker)
    found = wait_for(server, item, "failed")

    assert (found["error_type"], STEPS.get("runs", 0)) == ("NotHeld", 0)


def test_a_called_workflow_that_was_changed_since_does_not_run(server, ann):
    called = graphs.workflow({"id": "add", "type": "add", "a": 1, "b": 2})
    WORKFLOWS["w"] = called
    item = server.put(ann, graphs.graph({"id": "call", "type": "call_saved_workflow", "workflow_id": "w"}))
    WORKFLOWS["w"] = graphs.workflow({"id": "add", "type": "add", "a": 1, "b": 3})
    server.processor.start(server.invoker)

    assert wait_for(server, item, "failed")["error_type"] == "WorkflowChanged"


def test_a_plan_that_is_suspended_while_a_job_waits_does_not_run_it(server, ann):
    item = server.put(ann, steps())
    rows(
        server.database,
        "UPDATE user_subscriptions SET status = 'past_due', past_due_since = now() - interval '9 d', grace_until = now() - interval '1 d'",
    )
    server.processor.start(server.invoker)

    assert wait_for(server, item, "failed")["error_type"] == "PlanForbids"
    assert balance_of(server.database, ann.user_id).remaining_credits == 1000


def run_of(server, ann, item: int, **priced) -> running.Run:
    with tenancy.as_user(ann.user_id):
        made = server.queue._admission.begin(SimpleNamespace(item_id=item, root_item_id=None, user_id=ann.user_id), Meter())
    for name, value in priced.items():
        setattr(made, name, value)
    return made


def test_more_generations_than_were_priced_are_stopped(server, ann):
    made = graphs.still()
    item = server.put(ann, made)
    run = run_of(server, ann, item)
    node = made.nodes["denoise"].model_copy()
    with tenancy.as_user(ann.user_id):
        run.check(node)
        with pytest.raises(running.MoreThanPriced):
            run.check(node)


def test_a_child_shares_what_its_root_has_left(server, ann):
    item = server.put(ann, graphs.still())
    alone = run_of(server, ann, item).limit_seconds
    rows(
        server.database,
        "INSERT INTO job_attempts (item_id, attempt_no, user_id, worker_id, state, lease_until, ended_at, gpu_seconds)"
        " VALUES (%s, 1, %s, 'w', 'finished', now(), now(), 7)",
        item,
        ann.user_id,
    )

    assert (alone, run_of(server, ann, item).limit_seconds) == (2 * 5 + 60, 2 * 5 + 60 - 7)
