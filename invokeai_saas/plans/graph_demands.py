"""A graph in, what it asks for out (plans/demands.py): models, sizes, frames, steps and repeats of every node, called workflows included.

    graph ─► flat graph (flatten) ─► sizes along the edges (sizes) ─► repeats by iterators (repeats) ─► Demands

Pure: what is stored is asked through three functions, each None for what is not there or not the caller's to see:
resolve_workflow(id) ─► the workflow as a dict, model_base(key) ─► the installed Model, image_size(name) ─► (width, height).
What a graph says of a model is never believed: nodes load by the key alone.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from invokeai.app.invocations.baseinvocation import InvocationRegistry
from invokeai.app.services.shared.graph import Graph
from pydantic import BaseModel

from invokeai_saas.plans.demands import Demands, JobDemand, Model, ProviderCall, RunCheck, SizeDemand
from invokeai_saas.plans.errors import UnreadableGraph
from invokeai_saas.plans.flatten import FlatGraph, FlatNode, Overrides, Resolve, Values, flatten
from invokeai_saas.plans.nodes import BOXED, METADATA, MODELS_FROM_METADATA, RULES, Rule, is_model_field, undescribed
from invokeai_saas.plans.repeats import Repeats
from invokeai_saas.plans.sizes import ImageSize, Size, Sizes

ModelBase = Callable[[str], Model | None]
# The steps of ideogram4's longest preset, where none are given.
_PRESET_STEPS = {"ideogram4_denoise": 50}


def demands_of(
    graph: Graph | Mapping[str, Any], *, resolve_workflow: Resolve, model_base: ModelBase, image_size: ImageSize | None = None
) -> Demands:
    """What one run of the graph asks for; raises UnreadableGraph for what cannot be told beforehand and has no maximum."""
    return demands_read(graph, resolve_workflow=resolve_workflow, model_base=model_base, image_size=image_size)[0]


def demands_read(
    graph: Graph | Mapping[str, Any],
    *,
    resolve_workflow: Resolve,
    model_base: ModelBase,
    image_size: ImageSize | None = None,
    overrides: Overrides | None = None,
) -> tuple[Demands, set[tuple[str, str]]]:
    """demands_of() with a batch's values put over the graph's, and which (node, field) had to be read for it."""
    flat = flatten(graph, resolve_workflow, overrides)
    demands = _Reader(flat, model_base, image_size).demands()
    return demands, {(node.path, name) for node in flat.nodes.values() for name in node.values.read}


def demands_of_node(
    node_type: str,
    values: Mapping[str, Any],
    *,
    model_base: ModelBase,
    image_size: ImageSize | None = None,
    latents_size: ImageSize | None = None,
) -> Demands:
    """What one node asks for that is about to run, its inputs filled in: `values` are its fields."""
    cls = InvocationRegistry.get_invocation_for_type(node_type)
    if cls is None:
        raise UnreadableGraph("unknown_node", f"expected a node that is there, got {node_type!r}", limit_type="graph", value=node_type)
    alone = FlatGraph(nodes={"": FlatNode("", node_type, cls, Values(values))}, order=[""])
    return _Reader(alone, model_base, image_size, latents_size).demands()


class _Reader:
    def __init__(self, flat: FlatGraph, model_base: ModelBase, image_size: ImageSize | None, latents_size: ImageSize | None = None) -> None:
        self._flat, self._model_base = flat, model_base
        self._sizes = Sizes(flat, image_size, latents_size)
        self._repeats = Repeats(flat, self._sizes)
        self._models = {path: self._models_of(node) for path, node in flat.nodes.items()}

    def demands(self) -> Demands:
        self._refuse_models_from_metadata()
        self._repeats.demand_short_lists()
        ruled = [(node, rule) for node in self._flat.nodes.values() if (rule := RULES.get(node.type)) is not None]
        jobs = tuple(self._job(node, rule) for node, rule in ruled if rule.role == "job")
        sizes = tuple(self._size(node, rule) for node, rule in ruled if rule.role == "size")
        calls = tuple(self._call(node, rule) for node, rule in ruled if rule.role == "provider")
        times = [self._repeats.times(path) for path in self._flat.nodes]
        models = {model.key: model for found in self._models.values() for model in found}
        return Demands(
            jobs=jobs,
            sizes=sizes + tuple(self._boxed()),
            models=tuple(models.values()),
            provider_calls=calls,
            repeats=None if None in times else max((each for each in times if each is not None), default=1) or 1,
            unknown=tuple(sorted({node.type for node in self._flat.nodes.values() if undescribed(node.cls)})),
            pins=tuple(self._flat.pins.values()),
            run_checks=tuple(self._checks(ruled)),
        )

    def _job(self, node: FlatNode, rule: Rule) -> JobDemand:
        bases, name = self._generating(node, rule)
        width, height = self._largest(node, rule)
        return JobDemand(
            kind=rule.kind,
            node_type=node.type,
            node_path=node.path,
            base=bases[0],
            other_bases=tuple(bases[1:]),
            model_name=name,
            width=width,
            height=height,
            frames=self._sizes.whole(node.path, rule.frames) if rule.frames else 1,
            steps=self._steps(node, rule),
            times=self._repeats.times(node.path),
        )

    def _size(self, node: FlatNode, rule: Rule) -> SizeDemand:
        width, height = self._sizes.size(node.path)
        frames = self._sizes.whole(node.path, rule.frames) if rule.frames else 1
        return SizeDemand(
            # A conditioning picture of more than one frame is for a clip.
            kind=rule.kind if frames == 1 else "video",
            node_type=node.type,
            node_path=node.path,
            width=width,
            height=height,
            frames=frames,
            times=self._repeats.times(node.path),
        )

    def _boxed(self) -> Iterator[SizeDemand]:
        """Pictures whose edges are moved outwards, or that are put together."""
        for node in self._flat.nodes.values():
            if node.type in BOXED:
                width, height = self._sizes.size(node.path)
                times = self._repeats.times(node.path)
                yield SizeDemand(kind="image", node_type=node.type, node_path=node.path, width=width, height=height, times=times)

    def _call(self, node: FlatNode, rule: Rule) -> ProviderCall:
        model = next(iter(self._ancestors_models(node.path, rule.model)), None)
        width, height = self._sizes.size(node.path)
        return ProviderCall(
            node_type=node.type,
            node_path=node.path,
            model=model,
            pictures=self._sizes.whole(node.path, rule.count) if rule.count else 1,
            width=width,
            height=height,
            times=self._repeats.times(node.path),
        )

    def _largest(self, node: FlatNode, rule: Rule) -> Size:
        """The node's size. Latents that come in may be larger than it says: some nodes then go by them."""
        width, height = self._sizes.of_rule(node, rule)
        if rule.width is None or rule.kind == "video" or width is None or height is None:
            return width, height
        for name in ("latents", "noise"):
            across, down = self._sizes.of_input(node.path, name)
            if across is not None and down is not None and across * down > width * height:
                width, height = across, down
        return width, height

    def _steps(self, node: FlatNode, rule: Rule) -> int | None:
        if not isinstance(rule.steps, str):
            return rule.steps
        if not self._sizes.given(node.path, rule.steps):
            return _PRESET_STEPS.get(node.type)
        return self._sizes.whole(node.path, rule.steps)

    def _generating(self, node: FlatNode, rule: Rule) -> tuple[list[str], str | None]:
        """(families that may generate, the likeliest first; a model's name): the node's own family where its type says it."""
        models = [model for model in self._ancestors_models(node.path, rule.model) if model.type in ("main", "pid_decoder")]
        name = models[0].name if models else None
        if rule.kind == "video" or not models:
            return [rule.family], name
        bases = list(dict.fromkeys(model.base for model in models if model.type == "main")) or [rule.family]
        return bases, name

    def _ancestors_models(self, path: str, name: str | None) -> list[Model]:
        """The models that may come in through an input: the node's own, then those of all nodes before it."""
        found = list(self._models[path])
        waiting = [source[0] for source in self._flat.feeds(path, name or "")]
        seen: set[str] = set()
        while waiting:
            at = waiting.pop()
            if at in seen:
                continue
            seen.add(at)
            found += self._models[at]
            waiting += [source[0] for _, source in self._flat.inputs(at)]
        return found

    def _models_of(self, node: FlatNode) -> tuple[Model, ...]:
        if node.type in METADATA:
            return ()
        fields = (value for name, value in node.values.items() if name != "metadata")
        return tuple(self._installed(key) for value in fields for key in model_keys(value))

    def _installed(self, key: str) -> Model:
        model = self._model_base(key)
        if model is None:
            message = f"expected the key of an installed model, got {key!r}"
            raise UnreadableGraph("unknown_model", message, limit_type="model", value=key)
        return model

    def _refuse_models_from_metadata(self) -> None:
        for sources in self._flat.sources.values():
            for path, _ in sources:
                if self._flat.nodes[path].type in MODELS_FROM_METADATA:
                    message = f"expected models that are chosen in the graph, got {self._flat.nodes[path].type!r}"
                    raise UnreadableGraph("decided_while_running", message, limit_type="model", value=path)

    def _checks(self, ruled: list[tuple[FlatNode, Rule]]) -> Iterator[RunCheck]:
        """The nodes that have a number which an edge or a picture brings."""
        for node, rule in ruled:
            inputs = (*rule.fields, *rule.follows, "latents", "noise")
            open_ones = tuple(dict.fromkeys(name for name in inputs if self._flat.feeds(node.path, name)))
            if open_ones:
                yield RunCheck(node_path=node.path, node_type=node.type, fields=open_ones)


def model_keys(value: Any) -> Iterator[str]:
    """The keys of all models that a field's value names, however deep."""
    if is_model_field(value):
        yield value["key"] if isinstance(value, dict) else value.key
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from model_keys(getattr(value, name, None))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from model_keys(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from model_keys(each)
