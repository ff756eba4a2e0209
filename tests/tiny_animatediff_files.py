"""Files of motion modules, motion LoRAs and SVD folders, written from tiny real models in every published layout."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import MotionAdapter
from diffusers.models import SparseControlNetModel
from safetensors.torch import save_file

Weights = dict[str, torch.Tensor]

TINY_WIDTHS = (32, 32, 64, 64)
# What tells the releases apart: frames of the positional encoding, a module in the middle, and whether the file has the encoding.
RELEASES: dict[str, tuple[int, bool, bool]] = {
    "v1": (24, False, True),
    "v2": (32, True, True),
    "v3": (32, False, True),
    "animatelcm": (32, True, False),
}
ATTENTIONS = {"to_q": (32, 32), "to_out.0": (32, 32)}


@cache
def tiny_adapter(version: str = "v2", *, seed: int = 0, **options: Any) -> MotionAdapter:
    """A real MotionAdapter of one release's structure, with random weights in every layer; the tests share it."""
    frames, mid_block, _ = RELEASES[version]
    told = {"block_out_channels": TINY_WIDTHS, "motion_max_seq_length": frames, "use_motion_mid_block": mid_block}
    adapter = MotionAdapter(**{**told, **options})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in adapter.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    return adapter.eval()


def tiny_sparse_control(*, reads_latents: bool = True) -> SparseControlNetModel:
    """A real SparseCtrl for Stable Diffusion 1.5's text features, for keyframes as latents (rgb) or as pictures (scribble)."""
    torch.manual_seed(3)
    return SparseControlNetModel(
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=768,
        attention_head_dim=4,
        motion_num_attention_heads=4,
        conditioning_channels=4 if reads_latents else 3,
        conditioning_embedding_out_channels=(8, 16),
        use_simplified_condition_embedding=reads_latents,
    ).eval()


def original_layout(weights: Mapping[str, Any], *, with_encoding: bool = True) -> dict[str, Any]:
    """A MotionAdapter's weights under the names of the original release."""
    found = {}
    for name, value in weights.items():
        name = re.sub(r"(motion_modules\.\d+)\.", r"\1.temporal_transformer.", name)
        name = re.sub(r"\.attn([12])\.", lambda match: f".attention_blocks.{int(match[1]) - 1}.", name)
        name = re.sub(r"\.norm([12])\.", lambda match: f".norms.{int(match[1]) - 1}.", name).replace(".norm3.", ".ff_norm.")
        if not name.endswith(".pos_embed.pe"):
            found[name] = value
        elif with_encoding:
            for index in (0, 1):
                found[name.replace(".pos_embed.pe", f".attention_blocks.{index}.pos_encoder.pe")] = value
    return found


def save_original(path: Path, version: str = "v2", *, prefix: str = "", with_config: bool = True, **options: Any) -> Path:
    """A motion module as one safetensors file of the original layout; its config lies in the metadata, for tiny sizes are unknown."""
    adapter = tiny_adapter(version, **options)
    weights = original_layout(adapter.state_dict(), with_encoding=RELEASES[version][2])
    return save_weights(path, {prefix + name: value for name, value in weights.items()}, config=adapter.config if with_config else None)


def save_weights(path: Path, weights: Weights, *, config: Mapping[str, Any] | None = None) -> Path:
    """A safetensors file with the config, if any, as JSON in its metadata."""
    metadata = None if config is None else {"config": json.dumps(dict(config))}
    save_file({name: value.clone().contiguous() for name, value in weights.items()}, path, metadata=metadata)
    return path


def public_shapes(version: str = "v2", **options: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a public release's original file; no memory is taken."""
    frames, mid_block, with_encoding = RELEASES[version]
    with torch.device("meta"):
        adapter = MotionAdapter(**{"motion_max_seq_length": frames, "use_motion_mid_block": mid_block, **options})
    weights = original_layout(adapter.state_dict(), with_encoding=with_encoding)
    return {name: tuple(value.shape) for name, value in weights.items()}


def save_checkpoint(path: Path, shapes: Mapping[str, tuple[int, ...]], *, nested: bool = True, prefix: str = "module.") -> Path:
    """A torch checkpoint with weights of these shapes; each is one number repeated, so that the file stays small."""
    weights = {prefix + name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    torch.save({"state_dict": weights, "epoch": 3} if nested else weights, path)
    return path


def motion_lora(layout: str = "original", *, rank: int = 2, with_alpha: bool = False) -> Weights:
    """A LoRA for the first motion module's first attention: query and output layers, in the original layout or diffusers'."""
    generator = torch.Generator().manual_seed(5)
    module = "down_blocks.0.motion_modules.0."
    prefixes = {
        "original": f"{module}temporal_transformer.transformer_blocks.0.attention_blocks.0.processor.",
        "diffusers": f"unet.{module}transformer_blocks.0.attn1.",
        "diffusers processor": f"unet.{module}transformer_blocks.0.attn1.processor.",
        "peft": f"unet.{module}transformer_blocks.0.attn1.",
    }
    ends = {"diffusers": (".lora.down", ".lora.up"), "peft": (".lora_A", ".lora_B")}.get(layout, ("_lora.down", "_lora.up"))
    found: Weights = {}
    for layer, (rows, columns) in ATTENTIONS.items():
        named = prefixes[layout] + (layer if layout in ("diffusers", "peft") else layer.removesuffix(".0"))
        found[f"{named}{ends[0]}.weight"] = torch.randn(rank, columns, generator=generator)
        found[f"{named}{ends[1]}.weight"] = torch.randn(rows, rank, generator=generator)
        if with_alpha:
            found[f"{named}.alpha"] = torch.tensor(1.0)
    return found


def save_svd_folder(folder: Path, *, num_frames: int = 14) -> Path:
    """What identifies an SVD folder, and a tiny real UNet; the other parts' weights are empty."""
    from diffusers import UNetSpatioTemporalConditionModel

    unet = UNetSpatioTemporalConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(32, 64),
        cross_attention_dim=32,
        num_attention_heads=(2, 4),
        layers_per_block=1,
        projection_class_embeddings_input_dim=96,
        addition_time_embed_dim=32,
        num_frames=num_frames,
    )
    unet.save_pretrained(folder / "unet")
    index = {"_class_name": "StableVideoDiffusionPipeline", "unet": ["diffusers", "UNetSpatioTemporalConditionModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    configs = {
        "vae/config.json": {"_class_name": "AutoencoderKLTemporalDecoder"},
        "image_encoder/config.json": {"architectures": ["CLIPVisionModelWithProjection"]},
        "feature_extractor/preprocessor_config.json": {},
        "scheduler/scheduler_config.json": {"_class_name": "EulerDiscreteScheduler"},
    }
    for name, config in configs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(config))
    for name in ("vae/diffusion_pytorch_model", "image_encoder/model"):
        save_file({"weight": torch.zeros(1)}, folder / f"{name}.safetensors")
    return folder
