"""SparseCtrl in one file of the original release -> diffusers' SparseControlNetModel: sizes by shapes, weights by names.

The release that holds a clip to keyframes in colour (rgb) reads them as latents; the one for sketches (scribble) reads pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models import SparseControlNetModel

from ..errors import BadInput
from . import motion_module

_BY_LATENTS, _BY_PICTURES = "controlnet_cond_embedding.weight", "controlnet_cond_embedding.conv_in.weight"
_ENCODED_FRAMES = 32


def describe(shapes: motion_module.Shapes, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The config of the SparseCtrl in a file with these names; `config` is what the file's metadata carry, if anything.

    Raises BadInput for weights that are missing, strange or of other shapes than the public releases', or than the config says.
    """
    shapes = motion_module.without_prefixes(shapes)
    condition = shapes.get(_BY_LATENTS) or shapes.get(_BY_PICTURES)
    if condition is None or len(condition) != 4:
        raise BadInput.expected("SparseCtrl", f"the layer {_BY_LATENTS} or {_BY_PICTURES}", "neither: the file is incomplete")
    options = dict(config) if config is not None and "use_simplified_condition_embedding" in config else {}
    # A channel of its own says which frames are keyframes.
    options |= {"use_simplified_condition_embedding": _BY_LATENTS in shapes, "conditioning_channels": condition[1] - 1}
    options["motion_max_seq_length"] = motion_module.frames_of(shapes) or _ENCODED_FRAMES
    motion_module.check_shapes("SparseCtrl", empty_model(options), shapes)
    return options


def empty_model(options: Mapping[str, Any]) -> SparseControlNetModel:
    """The model on the meta device, without memory."""
    with torch.device("meta"):
        return SparseControlNetModel.from_config(dict(options))


def assembled(options: Mapping[str, Any], weights: Mapping[str, torch.Tensor], *, dtype: torch.dtype) -> SparseControlNetModel:
    """The model with a file's weights in `dtype`; names and shapes were checked by `describe`."""
    return motion_module.filled(empty_model(options), motion_module.without_prefixes(weights), dtype=dtype)
