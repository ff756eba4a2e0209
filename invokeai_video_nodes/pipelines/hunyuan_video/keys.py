"""The names that the original releases of HunyuanVideo and 1.5 gave their layers -> diffusers' names, for weights and LoRAs alike.

Some original layers are several of diffusers': their rows lie one below the other, and `split` says which rows are whose.

    double_blocks.3.img_attn_qkv    transformer_blocks.3.attn.to_q, .to_k, .to_v          thirds
    single_blocks.7.linear1         single_transformer_blocks.7.attn.to_q, .to_k, .to_v, .proj_mlp
    final_layer.adaLN_modulation.1  norm_out.linear                                         second half first

Repackaged files carry a prefix before every name, and some have FLUX's names for the same layers (img_attn.qkv, img_mod.lin).
Both generations of the model are named by the conversion scripts in diffusers' repository, which these tables follow.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import BadInput

_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "model.model.", "model.")
# Layers that every HunyuanVideo transformer has, and no other model: in the original layout and in diffusers'.
MARKS = ("txt_in.individual_token_refiner.", "context_embedder.token_refiner.")
# What only a file of the original layout has.
_ORIGINAL = ("double_blocks.", "single_blocks.", "txt_in.", "img_in.")
_PARAMETERS = (".weight", ".bias")

TOP_LAYERS = {
    "img_in.proj": "x_embedder.proj",
    "time_in.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "time_in.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.mlp.0": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.mlp.2": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "txt_in.input_embedder": "context_embedder.proj_in",
    "txt_in.t_embedder.mlp.0": "context_embedder.time_text_embed.timestep_embedder.linear_1",
    "txt_in.t_embedder.mlp.2": "context_embedder.time_text_embed.timestep_embedder.linear_2",
    "txt_in.c_embedder.linear_1": "context_embedder.time_text_embed.text_embedder.linear_1",
    "txt_in.c_embedder.linear_2": "context_embedder.time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
# HunyuanVideo-1.5: what it names otherwise, and what the first generation lacks.
_TOP_LAYERS_15 = {
    "time_in.mlp.0": "time_embed.timestep_embedder.linear_1",
    "time_in.mlp.2": "time_embed.timestep_embedder.linear_2",
    "time_r_in.mlp.0": "time_embed.timestep_embedder_r.linear_1",
    "time_r_in.mlp.2": "time_embed.timestep_embedder_r.linear_2",
    "byt5_in.layernorm": "context_embedder_2.norm",
    "byt5_in.fc1": "context_embedder_2.linear_1",
    "byt5_in.fc2": "context_embedder_2.linear_2",
    "byt5_in.fc3": "context_embedder_2.linear_3",
    "vision_in.proj.0": "image_embedder.norm_in",
    "vision_in.proj.1": "image_embedder.linear_1",
    "vision_in.proj.3": "image_embedder.linear_2",
    "vision_in.proj.4": "image_embedder.norm_out",
    "cond_type_embedding": "cond_type_embed",
}
_IN_DOUBLE_BLOCK_15 = {
    "img_attn_q": ("attn.to_q",),
    "img_attn_k": ("attn.to_k",),
    "img_attn_v": ("attn.to_v",),
    "txt_attn_q": ("attn.add_q_proj",),
    "txt_attn_k": ("attn.add_k_proj",),
    "txt_attn_v": ("attn.add_v_proj",),
}
_IN_REFINER_BLOCK = {
    "norm1": ("norm1",),
    "norm2": ("norm2",),
    "self_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "self_attn_proj": ("attn.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
    "adaLN_modulation.1": ("norm_out.linear",),
}
_IN_DOUBLE_BLOCK = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn_q_norm": ("attn.norm_q",),
    "img_attn_k_norm": ("attn.norm_k",),
    "img_attn_proj": ("attn.to_out.0",),
    "img_mod.linear": ("norm1.linear",),
    "img_mlp.fc1": ("ff.net.0.proj",),
    "img_mlp.fc2": ("ff.net.2",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn_q_norm": ("attn.norm_added_q",),
    "txt_attn_k_norm": ("attn.norm_added_k",),
    "txt_attn_proj": ("attn.to_add_out",),
    "txt_mod.linear": ("norm1_context.linear",),
    "txt_mlp.fc1": ("ff_context.net.0.proj",),
    "txt_mlp.fc2": ("ff_context.net.2",),
}
_IN_SINGLE_BLOCK = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "q_norm": ("attn.norm_q",),
    "k_norm": ("attn.norm_k",),
    "modulation.linear": ("norm.linear",),
}
# What a block of each kind holds, by its original name.
ORIGINAL_BLOCKS = {
    "double_blocks": _IN_DOUBLE_BLOCK,
    "single_blocks": _IN_SINGLE_BLOCK,
    "txt_in.individual_token_refiner.blocks": _IN_REFINER_BLOCK,
}
_DIFFUSERS_BLOCKS = {
    "double_blocks": "transformer_blocks",
    "single_blocks": "single_transformer_blocks",
    "txt_in.individual_token_refiner.blocks": "context_embedder.token_refiner.refiner_blocks",
}

# FLUX's names in repackaged files -> those of the original release; the more special ones first.
_REPACKAGED = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"_attn\.norm\.(query|key)_norm\.scale$", lambda match: f"_attn_{match[1][0]}_norm.weight"),
        (r"\.norm\.(query|key)_norm\.scale$", lambda match: f".{match[1][0]}_norm.weight"),
        (r"_attn\.(qkv|q|k|v|proj)\.", r"_attn_\1."),
        (r"(_mod|\.modulation)\.lin\.", r"\1.linear."),
        (r"(_mlp|blocks\.\d+\.mlp)\.0\.", r"\1.fc1."),
        (r"(_mlp|blocks\.\d+\.mlp)\.2\.", r"\1.fc2."),
        (r"^((?:time|time_r|guidance)_in|txt_in\.t_embedder)\.in_layer\.", r"\1.mlp.0."),
        (r"^((?:time|time_r|guidance)_in|txt_in\.t_embedder)\.out_layer\.", r"\1.mlp.2."),
        (r"^txt_in\.c_embedder\.in_layer\.", "txt_in.c_embedder.linear_1."),
        (r"^txt_in\.c_embedder\.out_layer\.", "txt_in.c_embedder.linear_2."),
    )
]


@dataclass(frozen=True)
class Part:
    """One of diffusers' layers, and the rows of the original one that are its own; two slices are joined in their order."""

    name: str
    rows: tuple[slice, ...]


def is_original(names: Any) -> bool:
    """Whether these keys are of the original layout."""
    return any(strip_prefix(name).startswith(_ORIGINAL) for name in names)


def strip_prefix(key: str) -> str:
    """The key without what some files put before it."""
    return next((key.removeprefix(prefix) for prefix in _PREFIXES if key.startswith(prefix)), key)


def own_weights(weights: Mapping[str, Any]) -> dict[str, Any] | None:
    """The transformer's part of a file, without what stands before its names; None where the file holds no such transformer.

    Files that bundle a VAE or text encoders have the transformer under a prefix of its own.
    """
    mark = next((mark for mark in MARKS for name in weights if mark in name), None)
    if mark is None or any(".lora_" in name for name in weights):
        return None
    prefix = next(name for name in weights if mark in name).partition(mark)[0]
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def generation_of(names: Collection[str]) -> str:
    """ "1.0" or "1.5", by the names of a transformer in either layout."""
    return "1.5" if any(name.startswith(("cond_type_embed", "byt5_in.", "context_embedder_2.")) for name in names) else "1.0"


def layer_names(original: str, *, generation: str = "1.0") -> tuple[str, ...]:
    """diffusers' layers that the original layer became, () for a name that we do not know."""
    top = TOP_LAYERS if generation == "1.0" else {**TOP_LAYERS, **_TOP_LAYERS_15}
    if original in top:
        return (top[original],)
    for blocks, table in original_blocks(generation).items():
        if match := re.fullmatch(rf"{re.escape(blocks)}\.(\d+)\.(.+)", original):
            return tuple(f"{_DIFFUSERS_BLOCKS[blocks]}.{match[1]}.{name}" for name in table.get(match[2], ()))
    return ()


def original_blocks(generation: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """What a block of each kind holds, by its original name; 1.5 releases know fused and separate q, k and v."""
    if generation == "1.0":
        return ORIGINAL_BLOCKS
    return {**ORIGINAL_BLOCKS, "double_blocks": {**_IN_DOUBLE_BLOCK, **_IN_DOUBLE_BLOCK_15}}


def split(original: str, *, rows: int, width: int, generation: str = "1.0") -> list[Part]:
    """The parts of an original layer of `rows` output rows in a model that is `width` wide; [] for an unknown name."""
    names = layer_names(original, generation=generation)
    if original == "final_layer.adaLN_modulation.1":
        return [Part(names[0], (slice(rows // 2, rows), slice(0, rows // 2)))]
    if len(names) < 2:
        return [Part(name, (slice(0, rows),)) for name in names]
    ends = [width, 2 * width, 3 * width, rows] if len(names) == 4 else [rows // 3, 2 * rows // 3, rows]
    if ends != sorted(set(ends)):
        raise BadInput.expected(f"rows of {original}", f"more than {3 * width}", rows)
    return [Part(name, (slice(begin, end),)) for name, begin, end in zip(names, [0, *ends[:-1]], ends, strict=True)]


def to_diffusers_keys(weights: Mapping[str, Any], *, width: int, generation: str = "1.0") -> dict[str, Any]:
    """Weights of the original layout under diffusers' names; values may be quantized, as long as rows can be cut.

    Raises BadInput for a layer that no HunyuanVideo transformer has.
    """
    renamed: dict[str, Any] = {}
    for key, value in weights.items():
        name = original_name(strip_prefix(key))
        ending = next((ending for ending in _PARAMETERS if name.endswith(ending)), None)
        parts = split(name.removesuffix(ending), rows=value.shape[0], width=width, generation=generation) if ending else []
        if not parts:
            raise BadInput.expected("transformer weights", "layers of HunyuanVideo's original release", key)
        for part in parts:
            renamed[part.name + str(ending)] = _rows_of(value, part.rows)
    return renamed


def original_name(key: str) -> str:
    """The original release's name for a key of a repackaged file; any other key as it is."""
    for pattern, name in _REPACKAGED:
        key = pattern.sub(name, key)
    return key


def _rows_of(value: Any, rows: tuple[slice, ...]) -> Any:
    if rows == (slice(0, value.shape[0]),):
        return value
    if len(rows) == 1:
        return cut_rows(value, rows[0])
    return torch.cat([_opened(value)[piece] for piece in rows])


def cut_rows(value: Any, rows: slice) -> Any:
    """Some rows of a weight. A quantized one stays quantized, because each of its rows is stored by itself; nothing is copied."""
    data = getattr(value, "quantized_data", None)
    if data is None:
        return value[rows]
    if data.shape[0] != value.shape[0]:
        return _opened(value)[rows]
    shape = torch.Size((rows.stop - rows.start, *value.shape[1:]))
    return type(value)(data[rows], value._ggml_quantization_type, shape, value.compute_dtype)


def _opened(value: Any) -> torch.Tensor:
    opened: torch.Tensor = value.get_dequantized_tensor() if hasattr(value, "get_dequantized_tensor") else value
    return opened
