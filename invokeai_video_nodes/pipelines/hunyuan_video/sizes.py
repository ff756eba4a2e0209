"""Names and shapes in a file -> which HunyuanVideo transformer or VAE it holds, and an empty model to put its weights into.

The public checkpoints are told by their shapes. Any other needs its config, because several configs give equal shapes; so do
text and image to video where the start frame takes no channels of its own (token_replace, and HunyuanVideo-1.5 altogether).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo
from diffusers.models.autoencoders.autoencoder_kl_hunyuanvideo15 import AutoencoderKLHunyuanVideo15
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel
from diffusers.models.transformers.transformer_hunyuan_video15 import HunyuanVideo15Transformer3DModel

from ..errors import BadInput
from . import keys, vae_keys

Shapes = Mapping[str, tuple[int, ...]]

TRANSFORMERS: dict[str, Any] = {"1.0": HunyuanVideoTransformer3DModel, "1.5": HunyuanVideo15Transformer3DModel}
VAES: dict[str, Any] = {"1.0": AutoencoderKLHunyuanVideo, "1.5": AutoencoderKLHunyuanVideo15}
PUBLIC_LATENT_CHANNELS = {"1.0": 16, "1.5": 32}
# What the public folders' schedules say: 7.0 for the first generation; of the second 5.0 for 480p, 7.0 to 9.0 for 720p.
PUBLIC_SHIFT = {"1.0": 7.0, "1.5": 5.0}
_CHANNELS = {"1.0": (16, 33), "1.5": (65,)}
# Layers by whose shapes a public checkpoint is told: where these agree, a difference elsewhere is damage, not another size.
_TELLING = {
    "transformer": ("x_embedder.proj.bias", "context_embedder.proj_in.weight", "transformer_blocks.0.attn.norm_q.weight"),
    "vae": ("encoder.conv_in.conv.weight", "decoder.conv_in.conv.weight", "encoder.conv_out.conv.weight"),
}
_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Described:
    """A model in a file: its generation, "1.0" or "1.5", diffusers' config of it, complete, and whether it was given."""

    kind: str
    generation: str
    config: dict[str, Any]
    given: bool

    def empty_model(self) -> Any:
        """The model without memory for its weights, in evaluation mode."""
        classes = TRANSFORMERS if self.kind == "transformer" else VAES
        with torch.device("meta"):
            model = classes[self.generation](**self.config)
        return model.eval().requires_grad_(False)


def describe_transformer(shapes: Shapes, config: Mapping[str, Any] | None) -> Described:
    """The transformer in a file with these names (any layout, without prefix) and this config (None: it has none).

    Raises BadInput for sizes that nobody can know, for a config that is not the file's, and for missing or strange layers.
    """
    generation = keys.generation_of(shapes)
    config = _diffusers_config(config, "in_channels")
    found = _shapes(transformer_names({name: _empty(shape) for name, shape in shapes.items()}, generation=generation))
    _check_class(config, TRANSFORMERS[generation])
    given = config is not None
    options = _complete(config or _public_transformer(found, generation), TRANSFORMERS[generation])
    described = Described("transformer", generation, options, given)
    _check(described, found)
    return described


def transformer_of_folder(config: Mapping[str, Any], *, generation: str) -> Described:
    """The transformer that a diffusers folder's config.json describes."""
    return Described("transformer", generation, _complete(config, TRANSFORMERS[generation]), given=True)


def layer_sizes(model: Any) -> dict[str, tuple[int, int]]:
    """Output rows and input columns of every layer of a model that has such a weight."""
    weights = {name: getattr(module, "weight", None) for name, module in model.named_modules()}
    return {name: tuple(weight.shape[:2]) for name, weight in weights.items() if weight is not None and len(weight.shape) > 1}


def transformer_names(weights: Mapping[str, Any], *, generation: str) -> dict[str, Any]:
    """The weights under diffusers' names, whichever layout they have."""
    if not keys.is_original(weights):
        return dict(weights)
    bias = next((weights[name] for name in ("img_in.proj.bias",) if name in weights), None)
    if bias is None:
        raise BadInput.expected("transformer weights", "the layer img_in.proj.bias", "none: the file is incomplete")
    return keys.to_diffusers_keys(weights, width=bias.shape[0], generation=generation)


def text_features(config: Mapping[str, Any]) -> int | None:
    """Features per token of the language model with this config.json, None where it does not say."""
    width = config.get("text_config", config).get("hidden_size")
    return None if width is None else int(width)


def describe_vae(shapes: Shapes, config: Mapping[str, Any] | None) -> Described:
    """The video VAE in a file with these names (any layout, without prefix); raises BadInput as `describe_transformer` does."""
    generation = vae_keys.generation_of(shapes)
    config = _diffusers_config(config, "latent_channels")
    _check_class(config, VAES[generation])
    found = _shapes(vae_keys.to_diffusers_keys({name: _empty(shape) for name, shape in shapes.items()}))
    described = Described("vae", generation, _complete(config or {}, VAES[generation]), config is not None)
    _check(described, found)
    return described


def with_condition(described: Described, condition: str | None) -> Described:
    """The same transformer, taking its start picture as the model record says; raises BadInput for a way that it cannot."""
    config = described.config
    if described.generation == "1.5":
        possible: tuple[str | None, ...] = (None, "latent_concat")
        chosen: dict[str, Any] = {"task_type": "t2v" if condition is None else "i2v"}
    else:
        possible = (None, "token_replace") if config["in_channels"] == config["out_channels"] else ("latent_concat",)
        chosen = {"image_condition_type": condition}
    if condition not in possible:
        expected = f"{' or '.join(str(name or 'none') for name in possible)} with {config['in_channels']} input channels"
        raise BadInput.expected("image condition", expected, condition or "none")
    return Described(described.kind, described.generation, {**config, **chosen}, described.given)


def _public_transformer(found: Shapes, generation: str) -> dict[str, Any]:
    """The config of the public checkpoint that has this many input channels, and these layers that some lack."""
    channels = found.get("x_embedder.proj.weight", (0, 0))[1]
    if channels not in _CHANNELS[generation]:
        raise _unknown(found, generation)
    if generation == "1.5":
        return {"task_type": "t2v", "use_meanflow": any("timestep_embedder_r." in name for name in found)}
    return {
        "in_channels": channels,
        "out_channels": 16,
        "guidance_embeds": any(".guidance_embedder." in name for name in found),
        "image_condition_type": "latent_concat" if channels == 33 else None,
    }


def _check(described: Described, found: Shapes) -> None:
    """Raise BadInput unless the shapes are those of the described model, every one and no other."""
    expected = _shapes(described.empty_model().state_dict())
    if not described.given and any(found.get(name) != expected[name] for name in _TELLING[described.kind]):
        raise _unknown(found, described.generation)
    what = f"{described.kind} weights"
    if missing := [name for name in expected if name not in found]:
        got = f"{len(missing)} fewer (first {', '.join(missing[:_SHOWN])}): the file is incomplete"
        raise BadInput.expected(what, f"{len(expected)} tensors", got)
    if strange := [name for name in found if name not in expected]:
        got = f"{len(strange)} others (first {', '.join(strange[:_SHOWN])}): a model of another kind"
        raise BadInput.expected(what, f"the layers of HunyuanVideo {described.generation}", got)
    for name, shape in expected.items():
        if found[name] != shape:
            where = "as the config says" if described.given else "as in the public checkpoint"
            raise BadInput.expected(name, f"{list(shape)} {where}", list(found[name]))


def _unknown(found: Shapes, generation: str) -> BadInput:
    sizes = {name: list(shape) for name, shape in found.items() if name.endswith(("x_embedder.proj.weight", "conv_in.conv.weight"))}
    expected = (
        f"those of the public HunyuanVideo {generation}, or the model's config as JSON under \"config\" in the file's metadata"
    )
    return BadInput.expected("sizes of a single file", expected, f"other sizes {sizes} and no config")


def _diffusers_config(config: Mapping[str, Any] | None, telling: str) -> Mapping[str, Any] | None:
    """The config, None where it lacks the option by which diffusers' is known: other tools keep theirs under the same name."""
    return config if config is not None and telling in config else None


def _check_class(config: Mapping[str, Any] | None, model_class: Any) -> None:
    name = (config or {}).get("_class_name", model_class.__name__)
    if name != model_class.__name__:
        raise BadInput.expected("config", f"one of {model_class.__name__}, as the file's layers say", name)


def _complete(config: Mapping[str, Any], model_class: Any) -> dict[str, Any]:
    """Every option of the class: as the config says, else the class's default."""
    options = list(inspect.signature(model_class.__init__).parameters.values())[1:]
    return {option.name: config.get(option.name, option.default) for option in options}


def _shapes(weights: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in weights.items()}


def _empty(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.empty(shape, device="meta")
