"""Z-Image checkpoints: sizes, frame patch sizes, and the key layouts in which they are published.

state dict or header -> `to_diffusers_keys` -> `f_patch_sizes_in` -> `TransformerDims` -> `build_transformer`, empty,
ready for `load_state_dict(..., assign=True)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel

from ..errors import BadInput
from ..shapes import F_PATCH_SIZES, check_f_patch_size
from .denoise import PATCH_SIZE

_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.")
_EMBEDDER = re.compile(rf"all_x_embedder\.{PATCH_SIZE}-(\d+)\.")
# What a transformer holds; merged files carry text encoders and quantization notes too.
_PARTS = (
    *("all_x_embedder.", "all_final_layer.", "layers.", "noise_refiner.", "context_refiner.", "t_embedder."),
    *("cap_embedder.", "x_pad_token", "cap_pad_token"),
)
_PAD_TOKENS = ("x_pad_token", "cap_pad_token")
_RENAMED = ((".q_norm.", ".norm_q."), (".k_norm.", ".norm_k."), (".attention.out.", ".attention.to_out.0."))


@dataclass(frozen=True)
class TransformerDims:
    """The constructor's numbers, without the patch sizes. The defaults are the public 6B release's (S0-12)."""

    in_channels: int = 16
    dim: int = 3840
    n_layers: int = 30
    n_refiner_layers: int = 2
    n_heads: int = 30
    n_kv_heads: int = 30
    norm_eps: float = 1e-5
    qk_norm: bool = True
    cap_feat_dim: int = 2560
    rope_theta: float = 256.0
    t_scale: float = 1000.0
    axes_dims: tuple[int, ...] = (32, 48, 48)
    axes_lens: tuple[int, ...] = (1024, 512, 512)

    def __post_init__(self) -> None:
        if self.dim % self.n_heads or sum(self.axes_dims) != self.dim // self.n_heads:
            expected = f"axes_dims that add up to dim / n_heads = {self.dim}/{self.n_heads}"
            raise BadInput.expected("transformer config", expected, list(self.axes_dims))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TransformerDims:
        """From a transformer/config.json, or the same JSON in a file's metadata; what it lacks stays default."""
        known = {field.name for field in fields(cls)} & set(config)
        values = {name: config[name] for name in known}
        for name in ("axes_dims", "axes_lens"):
            if name in values:
                values[name] = tuple(values[name])
        return cls(**values)

    @classmethod
    def from_state_dict_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> TransformerDims:
        """From shapes alone, in any layout. Only the public sizes can be known so; BadInput for others.

        Several configs give equal shapes (positions, rope base, time scale), so other sizes need a config.
        """
        found = _sizes_by_shape(shapes)
        public = {name: getattr(PUBLIC_6B, name) for name in found}
        if found != public:
            differing = ", ".join(
                f"{name} {found[name]} instead of {public[name]}" for name in found if found[name] != public[name]
            )
            expected = (
                "the public 6B sizes, or the transformer's config as JSON in the file's metadata under \"config\""
            )
            raise BadInput.expected("sizes of a single-file transformer", expected, differing)
        return PUBLIC_6B


PUBLIC_6B = TransformerDims()


def f_patch_sizes_in(weights: Mapping[str, Any] | Iterable[str], *, latent_channels: int = 16) -> list[int]:
    """The frame patch sizes a checkpoint has layers for, ascending; [] where it has none.

    Takes keys, or a mapping of keys to tensors or shapes: the original layout tells its only size through the
    embedder's inputs.
    """
    sizes = {int(match[1]) for key in weights if (match := _EMBEDDER.search(key))}
    if not sizes and isinstance(weights, Mapping):
        for key in weights:
            if strip_prefix(key) == "x_embedder.weight":
                sizes = {_embedder_f_patch_size(weights[key], latent_channels)}
    elif not sizes:
        # Keys without shapes: the original layout was only ever published for images.
        sizes = {1 for key in weights if strip_prefix(key) == "x_embedder.weight"}
    return sorted(sizes)


def to_diffusers_keys(state_dict: Mapping[str, Any], *, latent_channels: int = 16) -> dict[str, Any]:
    """Original, GGUF or prefixed keys -> diffusers' layout; a diffusers state dict comes back unchanged.

    Splits fused qkv, names the embedder after its frame patch size, gives pad tokens their batch axis, drops what is
    not the transformer's. Values may be quantized tensors. Raises BadInput for scaled fp8, whose scales no loader here
    applies.
    """
    weights = {strip_prefix(key): value for key, value in state_dict.items()}
    if any(key.endswith((".scale_weight", ".weight_scale")) or key == "scaled_fp8" for key in weights):
        raise BadInput.expected("transformer weights", "bf16, fp16, fp32 or GGUF", "scaled fp8")
    embedder = f"{PATCH_SIZE}-1"
    if "x_embedder.weight" in weights:
        embedder = f"{PATCH_SIZE}-{_embedder_f_patch_size(weights['x_embedder.weight'], latent_channels)}"
    renamed: dict[str, Any] = {}
    for key, value in weights.items():
        for part in ("x_embedder", "final_layer"):
            if key.startswith(f"{part}."):
                key = f"all_{part}.{embedder}.{key[len(part) + 1 :]}"
        if ".attention.qkv." in key:
            renamed.update(_split_qkv(key, value))
        elif key.startswith(_PARTS):
            for old, new in _RENAMED:
                key = key.replace(old, new)
            renamed[key] = _with_batch_axis(value) if key in _PAD_TOKENS else value
    return renamed


def tile_embedders(state_dict: Mapping[str, Any], f_patch_sizes: Sequence[int]) -> dict[str, Any]:
    """Add the layers that an image checkpoint lacks for `f_patch_sizes`, made from its `2-1` ones. Experimental.

    The embedder reads the mean of the frames and the last layer writes every frame alike, so a static clip embeds
    exactly like a still. Without video-trained weights a moving one is not a meaningful video.
    """
    weights = dict(state_dict)
    source = f"{PATCH_SIZE}-1"
    if f"all_x_embedder.{source}.weight" not in weights:
        raise BadInput.expected("checkpoint", f"layers named {source} to make others from", f_patch_sizes_in(weights))
    for size in f_patch_sizes:
        check_f_patch_size(size, F_PATCH_SIZES)
        target = f"{PATCH_SIZE}-{size}"
        if f"all_x_embedder.{target}.weight" in weights:
            continue
        for key, value in state_dict.items():
            if key.startswith((f"all_x_embedder.{source}.", f"all_final_layer.{source}.")):
                weights[key.replace(f".{source}.", f".{target}.")] = _tiled(key, value, size)
    return weights


def build_transformer(dims: TransformerDims, f_patch_sizes: Sequence[int]) -> ZImageTransformer2DModel:
    """An empty transformer (meta device, eval mode) for `load_state_dict(..., assign=True)`."""
    for size in f_patch_sizes:
        check_f_patch_size(size, F_PATCH_SIZES)
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(dims).items()}
    sizes = {"all_patch_size": (PATCH_SIZE,) * len(f_patch_sizes), "all_f_patch_size": tuple(f_patch_sizes)}
    with torch.device("meta"):
        return ZImageTransformer2DModel(**sizes, **values).eval()


def strip_prefix(key: str) -> str:
    """The key without the prefix that some tools put before every one."""
    for prefix in _PREFIXES:
        if key.startswith(prefix):
            return key[len(prefix) :]
    return key


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", value))


def _embedder_f_patch_size(weight: Any, latent_channels: int) -> int:
    features, per_frame = _shape(weight)[1], latent_channels * PATCH_SIZE**2
    if features % per_frame or features // per_frame not in F_PATCH_SIZES:
        inputs = " or ".join(str(size * per_frame) for size in F_PATCH_SIZES)
        expected = f"{inputs} inputs for {latent_channels} latent channels"
        raise BadInput.expected("x_embedder", expected, features)
    return features // per_frame


def _split_qkv(key: str, value: Any) -> dict[str, Any]:
    rows = _shape(value)[0]
    if rows % 3:
        raise BadInput.expected(f"rows of {key}", "a multiple of 3", rows)
    third = rows // 3
    parts = enumerate(("to_q", "to_k", "to_v"))
    return {key.replace(".qkv.", f".{part}."): value[index * third : (index + 1) * third] for index, part in parts}


def _dequantized(value: Any) -> torch.Tensor:
    # GGML tensors know few operations; the small ones that need more are opened.
    opened: torch.Tensor = value.get_dequantized_tensor() if hasattr(value, "get_dequantized_tensor") else value
    return opened


def _with_batch_axis(token: Any) -> Any:
    return token if len(_shape(token)) == 2 else _dequantized(token).reshape(1, -1)


def _tiled(key: str, value: Any, size: int) -> torch.Tensor:
    # Features are ordered (frames, height, width, channels), so copies lie side by side.
    value = _dequantized(value)
    if key.startswith("all_x_embedder.") and key.endswith(".weight"):
        return value.repeat(1, size) / size
    if ".linear." in key:
        return value.repeat(size, *(1,) * (value.ndim - 1))
    return value.clone()


def _sizes_by_shape(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    def count(part: str) -> int:
        return len({key.split(".")[1] for key in shapes if key.startswith(f"{part}.")})

    shapes = {strip_prefix(key): _shape(value) for key, value in shapes.items()}
    sizes = f_patch_sizes_in(shapes)
    names = {
        "caption embedder": ("cap_embedder.1.weight",),
        "query norm": ("layers.0.attention.norm_q.weight", "layers.0.attention.q_norm.weight"),
        "embedder": (f"all_x_embedder.{PATCH_SIZE}-{sizes[0]}.weight" if sizes else "", "x_embedder.weight"),
    }
    found = {what: next((shapes[key] for key in keys if key in shapes), None) for what, keys in names.items()}
    missing = [what for what, shape in found.items() if shape is None]
    if missing:
        raise BadInput.expected("checkpoint", "a Z-Image transformer", f"one without {', '.join(missing)}")
    (dim, cap_feat_dim), query_norm, embedder = (found[what] or () for what in names)
    return {
        "in_channels": embedder[1] // (sizes[0] * PATCH_SIZE**2),
        "dim": dim,
        "n_layers": count("layers"),
        "n_refiner_layers": count("noise_refiner"),
        "n_heads": dim // query_norm[0],
        "cap_feat_dim": cap_feat_dim,
    }
