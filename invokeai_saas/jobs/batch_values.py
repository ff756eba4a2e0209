"""A batch in, refused where a value that it puts into a node would not be read again: InvokeAI writes values into the graph unchecked.

    data [[seed: 1, "two"]] ─► each value in its node, read as a worker will read it ─► 400 that names node, field and value
    graph x items           ─► how much the rows will hold                           ─► 400 that says how much is too much

An item that cannot be read could neither run, nor be listed, nor be canceled by InvokeAI's own code. And every item holds the whole
graph: a small request for many items of a large one would fill the memory of the process that answers.
"""

import json
from collections.abc import Iterator
from typing import Any

from invokeai.app.services.session_queue.session_queue_common import Batch
from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from invokeai_saas.errors import SaasError

SHOWN = 80
MOST_MEGABYTES = 64
MOST_LABEL = 255
# {"node_path": …, "field_name": …, "value": …}
NAMES = 48


class BadBatch(SaasError):
    """A batch whose items could not be read."""

    status = 400


def demand_well_formed(queue_id: str, batch: Batch) -> None:
    """Raise BadBatch for a list without values, and where what names a queue or a batch is no name: each item and each event has it."""
    names = {"queue_id": queue_id, "batch_id": batch.batch_id, "origin": batch.origin, "destination": batch.destination}
    for field, name in names.items():
        if name is not None and len(name) > MOST_LABEL:
            raise BadBatch(f"{field}: expected at most {MOST_LABEL} characters, got {len(name)}")
    for group in batch.data or ():
        if not group:
            raise BadBatch("data: expected at least one list of values in each group, got none")
        for datum in group:
            if not datum.items:
                raise BadBatch(f"data of {datum.node_path!r}, {datum.field_name}: expected at least one value, got none")


def demand_values_fit(batch: Batch) -> None:
    """Raise BadBatch for the first value that its field does not take, and for too much to look at."""
    looked_at = 0
    for group in batch.data or ():
        for datum in group:
            node = batch.graph.get_node(datum.node_path)
            kept = node.model_dump(mode="json", warnings=False, exclude_none=True)
            size = len(json.dumps(kept))
            for value in _distinct(datum.items):
                # Each value is read with the rest of its node.
                looked_at += size
                if looked_at > MOST_MEGABYTES << 20:
                    got = f"{len(datum.items)} values for a node of {size} bytes"
                    raise BadBatch(f"data of {datum.node_path!r}, {datum.field_name}: expected at most {MOST_MEGABYTES} MB, got {got}")
                try:
                    type(node).model_validate_json(json.dumps({**kept, datum.field_name: value}, allow_nan=False))
                except (ValueError, TypeError) as error:
                    # A field's own check may meet a type that it did not expect.
                    where = f"data of {datum.node_path!r}, {datum.field_name}"
                    raise BadBatch(f"{where}: expected {_expected(error)}, got {repr(value)[:SHOWN]}") from None


def demand_size_fits(batch: Batch, items: int) -> None:
    """Raise BadBatch where `items` copies of the graph, each with its workflow and its values, are too much to write at once."""
    # What one item may hold at all, the limit of a request's body says.
    if items <= 1:
        return
    # Values are written into the graph and once more beside it, with the names of their node and field.
    data = [datum for group in batch.data or () for datum in group]
    values = sum(2 * _longest(datum.items) + len(json.dumps([datum.node_path, datum.field_name])) + NAMES for datum in data)
    each = _written(batch.graph.model_dump_json(warnings=False)) + values
    if batch.workflow is not None:
        each += _written(batch.workflow.model_dump_json(warnings=False))
    if each * items > MOST_MEGABYTES << 20:
        got = f"{items} items of {each / (1 << 20):.1f} MB"
        raise BadBatch(f"expected at most {MOST_MEGABYTES} MB of graphs in one batch, got {got}: enqueue fewer at a time")


def _longest(values: list[Any]) -> int:
    return max((len(json.dumps(value, default=to_jsonable_python)) for value in values), default=0)


def _written(text: str) -> int:
    """The bytes of JSON as InvokeAI writes it into a row: ASCII, with six for each unit of UTF-16 beyond."""
    plain = len(text.encode("ascii", "ignore"))
    return plain + 6 * (len(text.encode("utf-16-le", "surrogatepass")) // 2 - plain)


def _distinct(items: list[Any]) -> Iterator[Any]:
    seen: set[str] = set()
    for item in items:
        value = to_jsonable_python(item)
        if (key := repr(value)) not in seen:
            seen.add(key)
            yield value


def _expected(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return "a value that the field takes"
    return f"a value that the field takes ({error.errors(include_url=False, include_input=False)[0]['msg']})"
