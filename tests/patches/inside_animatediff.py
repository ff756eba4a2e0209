"""AnimateDiff and SVD through InvokeAI's own factory, records and loaders; asked by `inside_invokeai.py` in its one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_animatediff_files as files
import torch
from safetensors.torch import save_file

Load = Callable[..., Any]


def ask(folder: Path, load: Load) -> dict[str, Any]:
    """`load(config, part)` is InvokeAI's registered loader; returns classes, records, loaded weights compared, and refusals."""
    folder.mkdir()
    configs: dict[str, Any] = {}
    answers: dict[str, Any] = {"records": {}, "refused": {}}
    for name, path in {**motion_modules(folder), **others(folder)}.items():
        config, refused = identified(path)
        configs[name] = config
        answers["records"][name] = None if config is None else {"class": type(config).__name__, **record(config)}
        answers["refused"][name] = refused
    answers["same weights"] = {
        version: equal(load(configs[version], None), load(configs[f"{version} folder"], None)) for version in files.RELEASES
    }
    answers["lora layers"] = sorted(load(configs["motion lora"], None).layers)
    sparse = load(configs["sparse control"], None)
    answers["sparse control"] = [type(sparse).__name__, equal(sparse, load(configs["sparse control file"], None))]
    answers["svd unet"] = [type(load(configs["svd"], part("unet"))).__name__, refusal(load, configs["svd"], part("transformer"))]
    answers["module with a part"] = refusal(load, configs["v2"], part("unet"))
    return answers


def motion_modules(folder: Path) -> dict[str, Path]:
    """Every release as original file and as folder, and broken ones."""
    found = {}
    for version in files.RELEASES:
        found[version] = files.save_original(folder / f"{version}.safetensors", version)
        found[f"{version} folder"] = folder / f"{version} adapter"
        files.tiny_adapter(version).save_pretrained(found[f"{version} folder"])
    found["checkpoint"] = files.save_checkpoint(folder / "public.ckpt", files.public_shapes("v3"))
    half = found["half"] = folder / "half.safetensors"
    half.write_bytes(found["v2"].read_bytes()[:-1000])
    damaged = found["half checkpoint"] = folder / "half.ckpt"
    damaged.write_bytes(found["checkpoint"].read_bytes()[:-1000])
    sdxl = files.public_shapes("v3", block_out_channels=(320, 640, 1280))
    found["sdxl"] = files.save_checkpoint(folder / "sdxl.ckpt", sdxl)
    return found


def others(folder: Path) -> dict[str, Path]:
    """A motion LoRA, a SparseCtrl and SVD, and models of InvokeAI's own that must stay its own."""
    from diffusers import ControlNetModel

    sizes = {"block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 768, "attention_head_dim": 4}
    down = ("CrossAttnDownBlock2D", "DownBlock2D")
    ControlNetModel(down_block_types=down, conditioning_embedding_out_channels=(8, 16), **sizes).save_pretrained(folder / "controlnet")
    sparse = files.tiny_sparse_control()
    sparse.save_pretrained(folder / "sparse")
    sparse_file = files.save_weights(folder / "sparse.safetensors", files.original_layout(sparse.state_dict()), config=sparse.config)
    prefix = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    lora = {f"{prefix}.lora_down.weight": torch.zeros(4, 768), f"{prefix}.lora_up.weight": torch.zeros(320, 4)}
    save_file(lora, folder / "still_lora.safetensors")
    return {
        "motion lora": files.save_weights(folder / "motion_lora.safetensors", files.motion_lora()),
        "sparse control": folder / "sparse",
        "sparse control file": sparse_file,
        "svd": files.save_svd_folder(folder / "svd", num_frames=25),
        "still lora": folder / "still_lora.safetensors",
        "controlnet": folder / "controlnet",
    }


def identified(path: Path) -> tuple[Any, list[str]]:
    """The record's config, or None, and every refusal in words."""
    from invokeai.backend.model_manager.configs.factory import ModelConfigFactory

    result = ModelConfigFactory.from_model_on_disk(path)
    return result.config, [str(error) for error in result.invalid_matches]


def record(config: Any) -> dict[str, Any]:
    """What comes back from the database's JSON, by InvokeAI's own validator."""
    from invokeai.backend.model_manager.configs import factory

    back = factory.AnyModelConfigValidator.validate_json(config.model_dump_json())
    content = json.loads(back.model_dump_json())
    shown = ("base", "type", "format", "version", "max_frames", "beta_schedule", "widths", "mid_block", "release", "num_frames")
    return {"class after reading": type(back).__name__, **{key: content[key] for key in shown if key in content}}


def part(name: str) -> Any:
    """A sub-model type by its word."""
    from invokeai.backend.model_manager.taxonomy import SubModelType

    return SubModelType(name)


def equal(one: Any, other: Any) -> bool:
    """Whether two modules have the same weights bit by bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def refusal(load: Load, config: Any, submodel: Any) -> str:
    """What a loader says to a part that the model has not."""
    try:
        load(config, submodel)
    except ValueError as error:
        return str(error)
    return "loaded"
