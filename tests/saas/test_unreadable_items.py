"""A row whose graph cannot be read stops nobody: not the start, not the reaper, no worker, not its owner; and none is made any more."""

import json

import pytest
from invokeai.app.invocations.math import AddInvocation
from invokeai.app.invocations.primitives import StringInvocation
from invokeai.app.invocations.strings import StringReplaceInvocation
from invokeai.app.services.session_queue.session_queue_common import Batch, BatchDatum, SessionQueueItem
from invokeai.app.services.shared.graph import Graph
from saas.people import rows
from saas.stepping import Server

from invokeai_saas.db import tenancy
from invokeai_saas.jobs.batch_values import MOST_MEGABYTES, BadBatch
from invokeai_saas.swaps import readable_items
from invokeai_saas.swaps.readable_items import UnreadableItem

BROKEN = """UPDATE session_queue SET session = replace(session, '"a": 1', %s) WHERE item_id = %s"""


@pytest.fixture
def server(database):
    return Server(database, "w1")


def batch(**values):
    graph = Graph()
    graph.add_node(AddInvocation(id="add", a=1, b=2))
    data = [[BatchDatum(node_path="add", field_name=name, items=items)] for name, items in values.items()]
    return Batch(graph=graph, data=data or None)


def enqueue(server, what, user="ann"):
    with tenancy.as_user(user):
        return server.queue.enqueue(queue_id="default", batch=what, prepend=False, user_id=user).item_ids


@pytest.fixture(params=['"a": "seven"', '"a": NaN', '"a": {}'])
def broken(server, database, request):
    """An item as a version that did not look would have made it."""
    (item,) = enqueue(server, batch())
    rows(database, BROKEN, request.param, item)
    return item


def test_its_owner_lists_cancels_and_deletes_it(server, broken):
    (other,) = enqueue(server, batch())
    with tenancy.as_user("ann"):
        listed = server.queue.list_all_queue_items("default")
        canceled = server.queue.cancel_queue_item(broken)
        server.queue.delete_queue_item(broken)
        left = server.queue.list_all_queue_items("default")

    assert ({item.item_id for item in listed}, canceled.status, [item.item_id for item in left]) == ({broken, other}, "canceled", [other])
    assert next(item for item in listed if item.item_id == broken).error_message == readable_items.MESSAGE
    listed[0].model_dump_json()


def test_its_owner_clears_the_queue(server, broken):
    with tenancy.as_user("ann"):
        assert server.queue.clear("default").deleted == 1


def test_a_worker_fails_it_and_takes_the_next(server, broken):
    (other,) = enqueue(server, batch())
    taken = server.queue.dequeue()
    with tenancy.as_user("ann"):
        ended = server.queue.get_queue_item(broken)

    assert (taken.item_id, ended.status, "not installed" in ended.error_message) == (other, "failed", True)


def test_a_start_reaps_it_with_all_others(server, database, broken):
    (other,) = enqueue(server, batch())
    rows(database, "UPDATE session_queue SET status = 'in_progress'")
    rows(
        database,
        """INSERT INTO job_attempts (item_id, attempt_no, user_id, worker_id, lease_until)
        SELECT item_id, 1, user_id, 'gone', clock_timestamp() - interval '1 minute' FROM session_queue""",
    )
    server.queue.start(server.invoker)

    states = rows(database, "SELECT item_id, status FROM session_queue ORDER BY item_id")
    assert [(row["item_id"], row["status"]) for row in states] == [(broken, "pending"), (other, "pending")]


def test_it_is_not_repeated_as_an_empty_graph(server, database, broken):
    with tenancy.as_user("ann"):
        server.queue.cancel_queue_item(broken)
        with pytest.raises(UnreadableItem, match=f"item {broken}"):
            server.queue.retry_items_by_id("default", [broken])

    assert rows(database, "SELECT count(*) AS n FROM session_queue")[0]["n"] == 1


@pytest.mark.parametrize("values", [{"a": ["seven"]}, {"a": [1, 2.5]}, {"a": [float("nan")]}, {"b": []}, {"id": [float("inf")]}])
def test_values_that_would_not_be_read_again_are_refused_and_nothing_is_enqueued(server, database, values):
    with pytest.raises(BadBatch, match="data of 'add', .*: expected .*, got"):
        enqueue(server, batch(**values))

    assert rows(database, "SELECT count(*) AS n FROM session_queue")[0]["n"] == 0


def test_values_that_fit_go_into_the_graph(server):
    items = enqueue(server, batch(a=[1, 2.0, 3]))
    with tenancy.as_user("ann"):
        read = [server.queue.get_queue_item(item).session.graph.nodes["add"].a for item in sorted(items)]

    assert read == [1, 2, 3]


@pytest.mark.parametrize("letter", ["x", "\ud55c", "\U0001f600"])
@pytest.mark.parametrize("where", ["graph", "data"])
def test_many_copies_of_a_large_graph_are_refused_before_they_are_made(server, database, where, letter):
    """What is counted is what the rows then hold: ASCII, values of `data` twice."""
    megabyte, graph = letter * ((1 << 20) // len(json.dumps(letter).strip('"'))), Graph()
    graph.add_node(StringInvocation(id="text", value=megabyte if where == "graph" else ""))
    data = [[BatchDatum(node_path="text", field_name="value", items=[megabyte, "short"])]] if where == "data" else None
    each = "2.0" if where == "data" else "1.0"
    with pytest.raises(BadBatch, match=rf"at most {MOST_MEGABYTES} MB of graphs in one batch, got \d+ items of {each} MB"):
        enqueue(server, Batch(graph=graph, data=data, runs=MOST_MEGABYTES))
    before = rows(database, "SELECT count(*) AS n FROM session_queue")[0]["n"]
    few = enqueue(server, Batch(graph=graph, data=data, runs=2))

    held = rows(database, "SELECT max(octet_length(session) + coalesce(octet_length(field_values), 0)) AS bytes FROM session_queue")
    assert (before, len(few)) == (0, 4 if data else 2)
    assert held[0]["bytes"] == pytest.approx(float(each) * (1 << 20), rel=0.01)


def test_many_values_for_a_large_node_are_refused_before_they_are_all_looked_at(server, database):
    graph, values = Graph(), [str(number) for number in range(1000)]
    graph.add_node(StringReplaceInvocation(id="text", string="x" * (1 << 20)))
    data = [[BatchDatum(node_path="text", field_name="search_string", items=values)]]
    with pytest.raises(BadBatch, match="data of 'text', search_string: expected at most 64 MB, got 1000 values for a node of 1048"):
        enqueue(server, Batch(graph=graph, data=data))

    assert rows(database, "SELECT count(*) AS n FROM session_queue")[0]["n"] == 0


def test_without_reading_this_way_one_row_fails_the_whole_list(server, broken, monkeypatch):
    def upstream(cls, row):
        read = {"session": readable_items._session(row), "field_values": None, "workflow": None}
        return cls(**{**row, **read})

    monkeypatch.setattr(SessionQueueItem, "queue_item_from_dict", classmethod(upstream))
    with tenancy.as_user("ann"), pytest.raises((ValueError, TypeError)):
        server.queue.list_all_queue_items("default")
