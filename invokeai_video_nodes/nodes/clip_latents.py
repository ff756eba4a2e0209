"""What is known of a clip's latents besides their values, carried by the tensor itself through InvokeAI's tensor store.

InvokeAI passes latents by name and hands out a clone of the stored tensor. `ClipLatents` is a tensor that keeps its facts through
that clone and through the file behind the store's cache, and is a plain tensor to every other node.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from invokeai.app.invocations.fields import LatentsField
from invokeai.app.invocations.primitives import LatentsOutput
from invokeai.app.services.shared.invocation_context import InvocationContext

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.shapes import check_latents

PIXELS_PER_LATENT = 8
# Families whose latents are alike, and the node that decodes each.
DECODED_BY = {"animatediff": "Video Decode - AnimateDiff", "svd": "Video Decode - SVD"}


@dataclass(frozen=True)
class ClipFacts:
    """`fps` frames per second (None: unknown); `is_noised`: noise is already in, at the level that the next step expects.

    `f_patch_size` is the one they were denoised with, 0 where none was. `skip_frames`: how many decoded frames come before
    the clip, because the model was trained so. `spatial_factor`: pixels per latent cell.
    `skipped_calls`: model calls that a step cache left out. `family`: whose decode they need, a key of `DECODED_BY`; None where
    their channels say enough.
    """

    fps: int | None = None
    is_noised: bool = False
    f_patch_size: int = 0
    skip_frames: int = 0
    spatial_factor: int = PIXELS_PER_LATENT
    skipped_calls: int = 0
    family: str | None = None


class ClipLatents(torch.Tensor):
    """A tensor with `clip_facts`, a dict of plain values that survives `clone()` and `torch.save`."""

    clip_facts: dict[str, Any]

    # Results of arithmetic are plain tensors: facts of the operands need not hold for them.
    __torch_function__ = torch._C._disabled_torch_function_impl

    def clone(self, *args: Any, **kwargs: Any) -> ClipLatents:
        """A copy of the values with the same facts."""
        return _with_facts(super().clone(*args, **kwargs), self.__dict__.get("clip_facts", {}))


# The store loads its files with `weights_only=True`, which refuses classes that are not listed.
torch.serialization.add_safe_globals([ClipLatents])


def save_clip(context: InvocationContext, latents: torch.Tensor, facts: ClipFacts) -> LatentsOutput:
    """Store latents [1, C, F, h, w] with their facts and return the node output that names them; width and height in pixels."""
    stored = _with_facts(latents.detach().to("cpu").contiguous(), dataclasses.asdict(facts))
    name = context.tensors.save(tensor=stored)
    height, width = (size * facts.spatial_factor for size in latents.shape[-2:])
    return LatentsOutput(latents=LatentsField(latents_name=name, seed=None), width=width, height=height)


def load_clip(context: InvocationContext, field: LatentsField) -> tuple[torch.Tensor, ClipFacts]:
    """Load latents [1, C, F, h, w] as a plain tensor, with their facts; latents of other nodes have the default facts.

    Raises BadInput for latents that are not 5-D.
    """
    stored = context.tensors.load(field.latents_name)
    check_latents(stored)
    return stored.as_subclass(torch.Tensor), facts_from(getattr(stored, "clip_facts", {}))


def require_family(facts: ClipFacts, family: str | None) -> None:
    """Raise BadInput for latents of another family than the one that a node decodes (None: of none in `DECODED_BY`)."""
    if facts.family in (None, family):
        return
    expected = f"a clip of {family}" if family else "a clip of this node's own model"
    node = DECODED_BY.get(str(facts.family))
    raise BadInput.expected("latents", expected, f"one of {facts.family}" + (f", which '{node}' decodes" if node else ""))


def facts_from(values: Mapping[str, Any]) -> ClipFacts:
    """The facts among `values`; what another version of the pack noted besides is left out."""
    known = {item.name for item in dataclasses.fields(ClipFacts)}
    return ClipFacts(**{name: value for name, value in values.items() if name in known})


def _with_facts(tensor: torch.Tensor, facts: dict[str, Any]) -> ClipLatents:
    clip = tensor.as_subclass(ClipLatents)
    clip.clip_facts = dict(facts)
    return clip
