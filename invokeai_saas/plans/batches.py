"""A batch in, what each of its queue items asks for out: InvokeAI puts values over the graph's own, and so do we, item by item.

    data [[a: 1, 2], [b: x, y, z]], runs 2 ─► 12 items, in the order in which InvokeAI's create_session_nfv_tuples makes them

Items that differ in nothing that is read (seeds, prompts) share one reading of the graph.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from invokeai.app.services.session_queue.session_queue_common import Batch, calc_session_count

from invokeai_saas.plans.demands import Demands
from invokeai_saas.plans.errors import UnreadableGraph
from invokeai_saas.plans.flatten import Resolve
from invokeai_saas.plans.graph_demands import ModelBase, demands_read, model_keys
from invokeai_saas.plans.nodes import LONGEST_LIST
from invokeai_saas.plans.sizes import ImageSize

Pair = tuple[str, str]
# Written over, these would make another node of it.
_NEVER = {"id", "type"}


def demands_of_batch(
    batch: Batch,
    *,
    resolve_workflow: Resolve,
    model_base: ModelBase,
    image_size: ImageSize | None = None,
    most_items: int | None = None,
) -> Demands:
    """`items` has one Demands per queue item, in their order; the rest is what all of them ask for together, each demand once.

    A batch of more items than `most_items` is not read at all: its `runs` and `repeats` are enough to refuse it.
    """
    runs = calc_session_count(batch)
    if runs > min(LONGEST_LIST, most_items or LONGEST_LIST):
        return Demands(runs=runs, repeats=runs)
    substitutions = list(_substitutions(batch))
    asked = {"resolve_workflow": resolve_workflow, "model_base": model_base, "image_size": image_size}
    per_run = _each(batch, substitutions, asked)
    return _together(per_run * batch.runs)


def _substitutions(batch: Batch) -> Iterator[dict[Pair, Any]]:
    groups: list[list[dict[Pair, Any]]] = []
    for group in batch.data or ():
        refused = next((datum.field_name for datum in group if datum.field_name in _NEVER), None)
        if refused is not None:
            message = f"expected values for a node's inputs, got one for its {refused}"
            raise UnreadableGraph("graph_not_readable", message, limit_type="graph", value=refused)
        columns = [[((datum.node_path, datum.field_name), value) for value in datum.items] for datum in group]
        groups.append([dict(zipped) for zipped in zip(*columns, strict=True)])
    for chosen in product(*groups):
        yield {pair: value for part in chosen for pair, value in part.items()}


def _each(batch: Batch, substitutions: Sequence[dict[Pair, Any]], asked: Mapping[str, Any]) -> list[Demands]:
    """Each substitution's demands. What is read may depend on a value that was put in: then it begins again, knowing that."""
    # Whatever names a model counts, read or not.
    counts = {pair for values in substitutions for pair, value in values.items() if next(model_keys(value), None)}
    while True:
        known: dict[tuple[Any, ...], Demands] = {}
        found, before = [], len(counts)
        for values in substitutions:
            key = tuple(repr(values[pair]) for pair in sorted(counts & values.keys()))
            if key not in known:
                known[key], read = demands_read(batch.graph, overrides=values, **asked)
                counts |= read & values.keys()
                if len(counts) > before:
                    break
            found.append(known[key])
        else:
            return found


def _together(items: list[Demands]) -> Demands:
    distinct = list({id(item): item for item in items}.values())
    repeats = [item.repeats for item in items]
    return Demands(
        jobs=tuple(dict.fromkeys(each for item in distinct for each in item.jobs)),
        sizes=tuple(dict.fromkeys(each for item in distinct for each in item.sizes)),
        models=tuple(dict.fromkeys(each for item in distinct for each in item.models)),
        provider_calls=tuple(dict.fromkeys(each for item in distinct for each in item.provider_calls)),
        runs=len(items),
        repeats=None if None in repeats else sum(each for each in repeats if each is not None),
        unknown=tuple(dict.fromkeys(each for item in distinct for each in item.unknown)),
        pins=tuple(dict.fromkeys(each for item in distinct for each in item.pins)),
        run_checks=tuple(dict.fromkeys(each for item in distinct for each in item.run_checks)),
        items=tuple(items),
    )
