"""How often each node of a flat graph runs in one run of the graph, from its iterations; None where only the running graph knows.

A node runs once for each combination of the iterators before it. A collect takes the last of them away, and keeps the outer ones, as
InvokeAI's scheduler does (_ExecutionMaterializer). Where it cannot be told which one is the last, the shortest is taken away: too many
is safe, too few is not.
"""

from math import prod

from invokeai_saas.plans.errors import UnreadableGraph
from invokeai_saas.plans.flatten import FlatGraph
from invokeai_saas.plans.nodes import LIST_LENGTHS, LONGEST_LIST
from invokeai_saas.plans.sizes import Sizes

Axes = frozenset[str]
_ITERATE, _COLLECT = "iterate", "collect"


class Repeats:
    """Reads one flat graph."""

    def __init__(self, flat: FlatGraph, sizes: Sizes) -> None:
        self._flat, self._sizes = flat, sizes
        self._axes: dict[str, Axes] = {}
        self._lengths: dict[str, int | None] = {}
        self._calls: dict[str, Axes] = {}
        for path in flat.order:
            # In this order nothing is asked before it is known.
            self._axes_of(path)

    def times(self, path: str) -> int | None:
        """How often the node runs: 0 when it iterates over nothing."""
        lengths = [self.length(axis) for axis in self._axes_of(path)]
        return None if None in lengths else prod(length for length in lengths if length is not None)

    def length(self, path: str) -> int | None:
        """Of an iterate: how many items it hands out. Of a node that makes a list: how long it is."""
        if path not in self._lengths:
            self._lengths[path] = self._length(path)
        return self._lengths[path]

    def demand_short_lists(self) -> None:
        """Raise UnreadableGraph for lists that would fill a worker's memory, whether anything iterates over them or not."""
        for node in self._flat.nodes.values():
            length = self.length(node.path) if node.type in LIST_LENGTHS else None
            if length is not None and length > LONGEST_LIST:
                message = f"expected lists of up to {LONGEST_LIST} items, got {length} from {node.type!r}"
                raise UnreadableGraph("list_too_long", message, limit_type="repeats", limit=LONGEST_LIST, value=length)

    def _axes_of(self, path: str) -> Axes:
        """The iterators that the node runs once per item of; its own when it is one."""
        if path not in self._axes:
            self._axes[path] = self._found_axes(path)
        return self._axes[path]

    def _found_axes(self, path: str) -> Axes:
        node_type = self._flat.nodes[path].type
        fed = list(self._flat.inputs(path))
        if node_type == _COLLECT:
            items = _all(*(self._axes_of(source[0]) for name, source in fed if name == "item"))
            lists = _all(*(self._axes_of(source[0]) for name, source in fed if name != "item"))
            return self._without_last(items) | lists
        inherited = _all(*(self._axes_of(source[0]) for _, source in fed))
        caller = self._flat.nodes[path].caller
        inherited |= self._axes_of_call(caller) if caller is not None else frozenset()
        return inherited | {path} if node_type == _ITERATE else inherited

    def _axes_of_call(self, caller: str) -> Axes:
        """A called workflow runs once per run of the node that calls it, whatever feeds its nodes."""
        if caller not in self._calls:
            outer = self._flat.nodes[caller].caller
            outside = _all(*(self._axes_of(path) for path in self._flat.into_call(caller)))
            self._calls[caller] = outside | (self._axes_of_call(outer) if outer is not None else frozenset())
        return self._calls[caller]

    def _without_last(self, axes: Axes) -> Axes:
        if not axes:
            return axes
        known = [(length, axis) for axis in axes if (length := self.length(axis)) is not None]
        shortest = min(known)[1] if known else min(axes)
        return axes - {shortest}

    def _length(self, path: str) -> int | None:
        node = self._flat.nodes[path]
        if node.type == _ITERATE:
            return self._of_collection(path, "collection")
        if node.type == _COLLECT:
            return self._collected(path)
        if node.type == "range":
            start, stop, step = (self._sizes.whole(path, name) for name in ("start", "stop", "step"))
            return None if start is None or stop is None or not step else max(0, -((start - stop) // step))
        name = LIST_LENGTHS.get(node.type)
        if name is None:
            return None
        if name == "collection":
            return self._of_collection(path, name)
        size = self._sizes.whole(path, name)
        return None if size is None else max(0, size)

    def _of_collection(self, path: str, name: str) -> int | None:
        feeds = self._flat.feeds(path, name)
        if feeds:
            lengths = [self.length(source[0]) for source in feeds]
            return None if None in lengths else sum(length for length in lengths if length is not None)
        value = self._flat.nodes[path].values.get(name)
        return len(value) if isinstance(value, list | tuple) else 1

    def _collected(self, path: str) -> int | None:
        total = 0
        for source, _ in self._flat.feeds(path, "item"):
            times = self.times(source)
            if times is None:
                return None
            total += times
        for source, _ in self._flat.feeds(path, "collection"):
            length = self.length(source)
            if length is None:
                return None
            times = self.times(source)
            if times is None:
                return None
            total += length * max(1, times)
        if not self._flat.feeds(path, "collection"):
            total += len(self._flat.nodes[path].values.get("collection") or ())
        return total


def _all(*axes: Axes) -> Axes:
    return frozenset[str]().union(*axes)
