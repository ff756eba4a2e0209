"""Tiny HunyuanVideo transformers and VAEs as the single files that artists download: safetensors, scaled fp8, GGUF.

Layouts are made from diffusers' names with tables of their own, not by running the converters under test backwards.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from diffusers import HunyuanVideo15Pipeline, HunyuanVideo15Transformer3DModel, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from safetensors.torch import save_file
from tiny_hunyuan import POOLED_FEATURES, TEXT_FEATURES, tiny_text_to_video, tiny_text_to_video_15

from invokeai_video_nodes.pipelines.hunyuan_video import sizes

# diffusers' name -> the original release's; a fused layer stands at its first part, with the others after it.
_TOP = {
    "x_embedder.proj": "img_in.proj",
    "time_text_embed.timestep_embedder.linear_1": "time_in.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "time_in.mlp.2",
    "time_embed.timestep_embedder.linear_1": "time_in.mlp.0",
    "time_embed.timestep_embedder.linear_2": "time_in.mlp.2",
    "time_embed.timestep_embedder_r.linear_1": "time_r_in.mlp.0",
    "time_embed.timestep_embedder_r.linear_2": "time_r_in.mlp.2",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.mlp.0",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.mlp.2",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "context_embedder.proj_in": "txt_in.input_embedder",
    "context_embedder.time_text_embed.timestep_embedder.linear_1": "txt_in.t_embedder.mlp.0",
    "context_embedder.time_text_embed.timestep_embedder.linear_2": "txt_in.t_embedder.mlp.2",
    "context_embedder.time_text_embed.text_embedder.linear_1": "txt_in.c_embedder.linear_1",
    "context_embedder.time_text_embed.text_embedder.linear_2": "txt_in.c_embedder.linear_2",
    "context_embedder_2.norm": "byt5_in.layernorm",
    "context_embedder_2.linear_1": "byt5_in.fc1",
    "context_embedder_2.linear_2": "byt5_in.fc2",
    "context_embedder_2.linear_3": "byt5_in.fc3",
    "image_embedder.norm_in": "vision_in.proj.0",
    "image_embedder.linear_1": "vision_in.proj.1",
    "image_embedder.linear_2": "vision_in.proj.3",
    "image_embedder.norm_out": "vision_in.proj.4",
    "cond_type_embed": "cond_type_embedding",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
_REFINER = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.to_q": "self_attn_qkv",
    "attn.to_out.0": "self_attn_proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
    "norm_out.linear": "adaLN_modulation.1",
}
_DOUBLE = {
    "attn.to_q": "img_attn_qkv",
    "attn.norm_q": "img_attn_q_norm",
    "attn.norm_k": "img_attn_k_norm",
    "attn.to_out.0": "img_attn_proj",
    "norm1.linear": "img_mod.linear",
    "ff.net.0.proj": "img_mlp.fc1",
    "ff.net.2": "img_mlp.fc2",
    "attn.add_q_proj": "txt_attn_qkv",
    "attn.norm_added_q": "txt_attn_q_norm",
    "attn.norm_added_k": "txt_attn_k_norm",
    "attn.to_add_out": "txt_attn_proj",
    "norm1_context.linear": "txt_mod.linear",
    "ff_context.net.0.proj": "txt_mlp.fc1",
    "ff_context.net.2": "txt_mlp.fc2",
}
# HunyuanVideo-1.5 keeps q, k and v of its double blocks apart.
_DOUBLE_15 = {f"attn.to_{part}": f"img_attn_{part}" for part in "qkv"} | {f"attn.add_{part}_proj": f"txt_attn_{part}" for part in "qkv"}
_SINGLE = {
    "attn.to_q": "linear1",
    "proj_out": "linear2",
    "attn.norm_q": "q_norm",
    "attn.norm_k": "k_norm",
    "norm.linear": "modulation.linear",
}
_BLOCKS = {
    "context_embedder.token_refiner.refiner_blocks": ("txt_in.individual_token_refiner.blocks", _REFINER),
    "transformer_blocks": ("double_blocks", _DOUBLE),
    "single_transformer_blocks": ("single_blocks", _SINGLE),
}
_JOINED = {"to_q": ("to_q", "to_k", "to_v"), "add_q_proj": ("add_q_proj", "add_k_proj", "add_v_proj")}


def original_layout(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A transformer's weights (diffusers' names) as the original release of its generation has them."""
    is_15 = "cond_type_embed.weight" in weights
    found = {}
    for name in weights:
        layer, _, ending = name.rpartition(".")
        original = _original_layer(layer, is_15=is_15)
        if original is None:
            continue
        value = torch.cat([weights[f"{part}.{ending}"] for part in _joined_layers(layer, original)])
        if original == "final_layer.adaLN_modulation.1":
            value = torch.cat(value.chunk(2)[::-1])
        found[f"{original}.{ending}"] = value
    return found


def _original_layer(layer: str, *, is_15: bool) -> str | None:
    if layer in _TOP:
        return _TOP[layer]
    blocks, number, rest = re.fullmatch(r"(.+blocks)\.(\d+)\.(.+)", layer).groups()
    original, table = _BLOCKS[blocks]
    if is_15 and blocks == "transformer_blocks":
        table = {**table, **_DOUBLE_15}
    return f"{original}.{number}.{table[rest]}" if rest in table else None


def _joined_layers(layer: str, original: str) -> list[str]:
    stem, _, last = layer.rpartition(".")
    if original.endswith("_qkv"):
        return [f"{stem}.{part}" for part in _JOINED[last]]
    if original.endswith(".linear1"):
        return [*(f"{stem}.{part}" for part in _JOINED[last]), layer.removesuffix("attn.to_q") + "proj_mlp"]
    return [layer]


def repackaged_layout(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The original layout under FLUX's names, as some repackaged files have it."""
    renamed = {}
    for key, value in original_layout(weights).items():
        name = re.sub(r"_attn_([qk])_norm\.weight", lambda m: f"_attn.norm.{_WORDS[m[1]]}_norm.scale", key)
        name = re.sub(r"\.([qk])_norm\.weight", lambda m: f".norm.{_WORDS[m[1]]}_norm.scale", name)
        name = re.sub(r"_attn_(qkv|proj)\.", r"_attn.\1.", name)
        name = name.replace("_mod.linear.", "_mod.lin.").replace("modulation.linear.", "modulation.lin.")
        name = name.replace("mlp.fc1.", "mlp.0.").replace("mlp.fc2.", "mlp.2.")
        name = re.sub(r"(time_in|guidance_in|t_embedder)\.mlp\.0\.", r"\1.in_layer.", name)
        name = re.sub(r"(time_in|guidance_in|t_embedder)\.mlp\.2\.", r"\1.out_layer.", name)
        name = name.replace("c_embedder.linear_1.", "c_embedder.in_layer.").replace("c_embedder.linear_2.", "c_embedder.out_layer.")
        renamed[name] = value
    return renamed


_WORDS = {"q": "query", "k": "key"}
LAYOUTS = {"diffusers": dict, "original": original_layout, "repackaged": repackaged_layout}


def original_vae_15(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of an AutoencoderKLHunyuanVideo15 as the original release names them."""
    renamed = {}
    for key, value in weights.items():
        name = re.sub(r"(down|up)_blocks\.(\d+)\.resnets\.", r"\1.\2.block.", key)
        name = re.sub(r"(down|up)_blocks\.(\d+)\.(down|up)samplers\.0\.", r"\1.\2.\3sample.", name)
        name = name.replace("mid_block.resnets.0.", "mid.block_1.").replace("mid_block.resnets.1.", "mid.block_2.")
        renamed[re.sub(r"mid_block\.attentions\.0\.(?:to_)?", "mid.attn_1.", name)] = value
    return renamed


def save_single_file(
    path: Path,
    model: Any,
    *,
    layout: str = "diffusers",
    prefix: str = "",
    dtype: torch.dtype = torch.float32,
    with_config: bool = True,
    config: Mapping[str, Any] | None = None,
    without: str | None = None,
) -> Path:
    """Write a transformer as one safetensors file and return its path; `without` leaves out the keys that contain it."""
    weights = LAYOUTS[layout](model.state_dict())
    kept = {prefix + name: value.to(dtype).contiguous() for name, value in weights.items() if without is None or without not in name}
    return save_weights(path, kept, config=(config or config_of(model)) if with_config else None)


def save_weights(path: Path, weights: Mapping[str, torch.Tensor], *, config: Mapping[str, Any] | None) -> Path:
    """Write a safetensors file, with the config as JSON in its metadata where one is given."""
    metadata = {"format": "pt"} if config is None else {"config": json.dumps(dict(config))}
    save_file({name: value.clone().contiguous() for name, value in weights.items()}, path, metadata=metadata)
    return path


def save_scaled_fp8(path: Path, model: Any, *, layout: str = "original", scale: str = "scale_weight") -> Path:
    """Write a transformer with its matrices in fp8 e4m3, one scale each, and what such files keep beside them."""
    weights = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, value in LAYOUTS[layout](model.state_dict()).items():
        if value.ndim != 2 or not name.endswith(".weight"):
            weights[name] = value
            continue
        factor = value.abs().max() / torch.finfo(torch.float8_e4m3fn).max
        weights[name] = (value / factor).to(torch.float8_e4m3fn)
        weights[name.removesuffix("weight") + scale] = factor
        weights[name.removesuffix("weight") + "scale_input"] = torch.ones(())
    return save_weights(path, weights, config=config_of(model))


def save_gguf(path: Path, model: Any, *, layout: str = "original", kind: str = "Q8_0", with_config: bool = True) -> Path:
    """Write a transformer as GGUF: matrices whose rows hold whole blocks of 32 are quantized, the rest is F32."""
    writer = gguf.GGUFWriter(str(path), arch="hyvid")
    if with_config:
        writer.add_string("config", json.dumps(config_of(model)))
    quantization = gguf.GGMLQuantizationType[kind]
    for name, value in LAYOUTS[layout](model.state_dict()).items():
        data = value.float().numpy()
        if data.ndim == 2 and data.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(data, quantization), raw_dtype=quantization)
        elif data.ndim == 5:
            # GGUF writers flatten what has more than four dimensions, and keep its shape beside it.
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(data.shape))
            writer.add_tensor(name, data.reshape(data.shape[0], -1))
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def config_of(model: Any) -> dict[str, Any]:
    """diffusers' config of a model, as its config.json has it."""
    return {"_class_name": type(model).__name__, **{key: value for key, value in model.config.items() if not key.startswith("_")}}


def wide_text_to_video() -> HunyuanVideoPipeline:
    """The tiny pipeline with a transformer of 2 heads of 16: its rows hold whole blocks of GGUF's quantizations."""
    pipeline = tiny_text_to_video()
    torch.manual_seed(1)
    pipeline.register_modules(
        transformer=HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            num_single_layers=2,
            num_refiner_layers=1,
            text_embed_dim=TEXT_FEATURES,
            pooled_projection_dim=POOLED_FEATURES,
            rope_axes_dim=(4, 6, 6),
        ).eval()
    )
    return pipeline


def wide_text_to_video_15() -> HunyuanVideo15Pipeline:
    """The tiny pipeline of the second generation, with a transformer of 2 heads of 16."""
    pipeline = tiny_text_to_video_15()
    torch.manual_seed(1)
    options = {**pipeline.transformer.config, "attention_head_dim": 16, "rope_axes_dim": (4, 6, 6)}
    pipeline.register_modules(transformer=HunyuanVideo15Transformer3DModel.from_config(options).eval())
    return pipeline


def write_hollow(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16") -> Path:
    """Write a safetensors file of any size that takes no room on the disk: the header is whole, the tensors are a hole."""
    entries: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        size = 2 * int(torch.Size(shape).numel())
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + end)
    return path


def public_shapes(generation: str, layout: str = "original", **options: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a public transformer in one of the layouts; no memory is taken."""
    with torch.device("meta"):
        model = sizes.TRANSFORMERS[generation](**options)
    return {name: tuple(value.shape) for name, value in LAYOUTS[layout](model.state_dict()).items()}


def save_encoders(folder: Path, pipeline: Any, *, with_scheduler: bool = False) -> Path:
    """The text encoders of a pipeline, with what else looks at prompt and picture, as a folder without model_index.json."""
    names = ["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "image_encoder", "feature_extractor", "image_processor"]
    for name in [*names, "scheduler"] if with_scheduler else names:
        part = getattr(pipeline, name, None)
        if part is not None:
            part.save_pretrained(folder / name)
    return folder
