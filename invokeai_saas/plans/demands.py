"""What a graph asks for, as plain numbers: read by graph_demands, judged by gate, priced by credits.

None in a number means: decided while the graph runs. gate.fill_maxima() puts the plan's maximum there, and gate.check_node() looks again
when the node is about to run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["image", "video"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """An installed model as its record says, never as a graph says: nodes load by `key`, and a graph may lie about the rest."""

    key: str
    name: str
    base: str
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDemand:
    """One node that generates. Sides in pixels; `frames` as delivered, 1 for images.

    `base` is the family that prices it: an image model's base, or animatediff, svd, z-image-video, hunyuan-video, wan. Where the graph
    chooses between models while it runs, `other_bases` has the rest: the dearest counts. `times` is how often one run of the
    graph runs the node, `upper_bound` that a number is a plan's maximum.
    """

    kind: Kind
    node_type: str
    node_path: str
    base: str
    other_bases: tuple[str, ...] = ()
    model_name: str | None = None
    width: int | None
    height: int | None
    frames: int | None = 1
    steps: int | None = None
    batch_size: int | None = 1
    upper_bound: bool = False
    times: int | None = 1

    @property
    def decided_while_running(self) -> bool:
        """True while a number is open."""
        return None in (self.width, self.height, self.frames, self.steps, self.batch_size, self.times)


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeDemand:
    """One node that makes pictures, latents or clips of a size without generating: bounded, not priced."""

    kind: Kind
    node_type: str
    node_path: str
    width: int | None
    height: int | None
    frames: int | None = 1
    times: int | None = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderCall:
    """One node that calls an external provider: `pictures` per call, `times` calls. The provider's price is charged."""

    node_type: str
    node_path: str
    model: Model | None
    pictures: int | None
    width: int | None
    height: int | None
    times: int | None = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A called workflow as it was when it was priced; another one under the same id must not run in its place."""

    workflow_id: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCheck:
    """A node whose real values must be looked at when it is about to run, and which."""

    node_path: str
    node_type: str
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands:
    """All of one graph, called workflows included, or of a batch of it.

    `runs` is how many queue items it becomes; jobs, sizes and calls are those of all items together when they come from a batch (then
    `items` has each item's own). `repeats` is runs times how often the most repeated node runs in one of them, None where only the
    running graph knows. `unknown` names nodes that look as if they had a size or a model and that nobody has described yet.
    """

    jobs: tuple[JobDemand, ...] = ()
    sizes: tuple[SizeDemand, ...] = ()
    models: tuple[Model, ...] = ()
    provider_calls: tuple[ProviderCall, ...] = ()
    runs: int = 1
    repeats: int | None = 1
    unknown: tuple[str, ...] = ()
    pins: tuple[Pin, ...] = ()
    run_checks: tuple[RunCheck, ...] = ()
    items: tuple["Demands", ...] = ()

    @property
    def has_video(self) -> bool:
        """True when any node makes a clip."""
        sized: tuple[JobDemand | SizeDemand, ...] = (*self.jobs, *self.sizes)
        return any(demand.kind == "video" for demand in sized)


Levels = Mapping[str, str]
