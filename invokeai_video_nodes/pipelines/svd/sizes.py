"""An original single file of Stable Video Diffusion -> its three models, and the configs that the file itself does not hold.

The public checkpoints are told by their shapes; SVD and SVD-XT have the same ones, so the frame count comes from whoever knows it.
Any other size needs its config, because the number of attention heads leaves no trace in the weights:
    {"unet": {...}, "vae": {...}, "image_encoder": {...}}   as in the config.json of a diffusers folder's parts
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from ..errors import BadInput
from . import keys

Shapes = Mapping[str, tuple[int, ...]]
Config = Mapping[str, Any]

PARTS = ("unet", "vae", "image_encoder")
# What the public folders' config.json say beside the classes' defaults.
PUBLIC: dict[str, dict[str, Any]] = {
    "unet": {"sample_size": 96, "num_attention_heads": (5, 10, 20, 20)},
    "vae": {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "layers_per_block": 2,
        "sample_size": 768,
    },
    "image_encoder": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
        "projection_dim": 1024,
        "hidden_act": "gelu",
    },
}
TRAINED_FRAMES = (14, 25)  # SVD, SVD-XT
_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Models:
    """A file's models, in evaluation mode, with the file's weights and dtype."""

    unet: Any
    vae: Any
    image_encoder: Any


def describe(shapes: Shapes, *, num_frames: int, config: Mapping[str, Config] | None = None) -> dict[str, Config]:
    """The configs of a file's three models, complete; reads shapes only.

    `num_frames` is what it was trained on, `config` what the file's metadata says (None: nothing). Raises BadInput for a file
    that is none of SVD's, for sizes that nobody can know, and for missing or strange layers.
    """
    if not keys.is_original(shapes):
        raise BadInput.expected("SVD file", f"the layer {keys.MARK}", "none")
    given = config is not None
    configs = configs_for(num_frames=num_frames, config=config)
    found = keys.to_diffusers({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    for part in PARTS:
        _check(part, _shapes(empty_model(part, configs[part]).state_dict()), _shapes(getattr(found, part)), given=given)
    return configs


def configs_for(*, num_frames: int, config: Mapping[str, Config] | None = None) -> dict[str, Config]:
    """The same without a look at the shapes, for a file that `describe` has judged."""
    for part in PARTS:
        if config is not None and part not in config:
            raise BadInput.expected("config", f"parts {', '.join(PARTS)}", ", ".join(config) or "none", part)
    configs: dict[str, Config] = {part: dict((config or PUBLIC)[part]) for part in PARTS}
    configs["unet"] = {**configs["unet"], "num_frames": num_frames}
    return configs


def load(weights: Mapping[str, torch.Tensor], configs: Mapping[str, Config]) -> Models:
    """The models of a whole file's `weights`, with configs from `describe`. The weights are taken over, not copied."""
    return Models(**{part: load_part(part, weights, configs[part]) for part in PARTS})


def load_part(part: str, weights: Mapping[str, torch.Tensor], config: Config) -> Any:
    """One of PARTS; `weights` may be of the whole file, or those of `keys.part_names` alone."""
    model = empty_model(part, config)
    model.load_state_dict(keys.part_to_diffusers(part, weights), strict=True, assign=True)
    return model.eval().requires_grad_(False)


def empty_model(part: str, config: Config) -> Any:
    """One of PARTS without memory for its weights."""
    with torch.device("meta"):
        if part == "unet":
            return UNetSpatioTemporalConditionModel(**_options(config, UNetSpatioTemporalConditionModel))
        if part == "vae":
            return AutoencoderKLTemporalDecoder(**_options(config, AutoencoderKLTemporalDecoder))
        model = CLIPVisionModelWithProjection(CLIPVisionConfig(**config))
    # The numbers of the positions are no weights, so no file has them.
    embeddings = model.vision_model.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions)[None]
    return model


def _options(config: Config, model_class: Any) -> dict[str, Any]:
    """What the class takes of a config.json, which says its class and diffusers' version too."""
    known = inspect.signature(model_class.__init__).parameters
    return {name: tuple(value) if isinstance(value, list) else value for name, value in config.items() if name in known}


def _check(part: str, expected: Shapes, found: Shapes, *, given: bool) -> None:
    """Raise BadInput unless the shapes are those of the described model, every one and no other."""
    what, where = f"{part} weights", "as the config says" if given else "as in the public checkpoint"
    # Sizes first: a smaller or larger model has other layers too, and its size is why.
    for name, shape in expected.items():
        if found.get(name, shape) != shape:
            hint = "" if given else "; any other size needs its config in the file's metadata"
            raise BadInput.expected(f"{part}: {name}", f"{list(shape)} {where}{hint}", list(found[name]))
    if missing := [name for name in expected if name not in found]:
        raise BadInput.expected(what, f"{len(expected)} tensors", f"{len(missing)} fewer (first {', '.join(missing[:_SHOWN])})")
    if strange := [name for name in found if name not in expected]:
        got = f"{len(strange)} more (first {', '.join(strange[:_SHOWN])})"
        raise BadInput.expected(what, "the layers of Stable Video Diffusion", got)


def _shapes(weights: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in weights.items()}
