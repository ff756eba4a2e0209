"""LoRA files of every published layout for the tiny transformer, and the weights that merging them by hand gives."""

from __future__ import annotations

from collections.abc import Callable

import torch

from invokeai_video_nodes.pipelines.hunyuan_video import keys

File = dict[str, torch.Tensor]
Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]

RANK, ALPHA, WIDTH = 4, 2.0, 20
LAYERS = (
    "double_blocks.1.img_attn_qkv",
    "double_blocks.1.txt_attn_proj",
    "double_blocks.0.img_mlp.fc1",
    "single_blocks.1.linear1",
    "single_blocks.0.modulation.linear",
    "txt_in.individual_token_refiner.blocks.0.self_attn_qkv",
    "final_layer.adaLN_modulation.1",
)


def lora_factors(weights: File, *, seed: int = 1) -> Factors:
    """(down, up) of each original layer."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer in LAYERS:
        shapes = [weights[f"{name}.weight"].shape for name in keys.layer_names(layer)]
        rows, columns = sum(shape[0] for shape in shapes), shapes[0][1]
        found[layer] = (torch.randn(RANK, columns, generator=generator), torch.randn(rows, RANK, generator=generator))
    return found


def original(factors: Factors, prefix: str = "diffusion_model.", ends: tuple[str, str] = ("lora_A.weight", "lora_B.weight")) -> File:
    """Fused layers under the original names."""
    file = {}
    for layer, (down, up) in factors.items():
        file |= {f"{prefix}{layer}.{ends[0]}": down, f"{prefix}{layer}.{ends[1]}": up, f"{prefix}{layer}.alpha": torch.tensor(ALPHA)}
    return file


def kohya(factors: Factors) -> File:
    """The original layers, with underscores."""
    named = {"lora_unet_" + layer.replace(".", "_"): values for layer, values in factors.items()}
    return original(named, prefix="", ends=("lora_down.weight", "lora_up.weight"))


def in_parts(factors: Factors, rename: Callable[[str, int | None, str], str]) -> File:
    """A layout in which fused layers lie apart."""
    file = {}
    for layer, (down, up) in factors.items():
        parts = keys.split(layer, rows=up.shape[0], width=down.shape[1])
        for index, part in enumerate(parts):
            name = rename(layer, index if len(parts) > 1 else None, part.name)
            own = up if name == layer else torch.cat([up[rows] for rows in part.rows])
            file |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": own, f"{name}.alpha": torch.tensor(ALPHA)}
    return file


def diffusers(factors: Factors) -> File:
    """diffusers' layers, as PEFT writes them."""
    return {f"transformer.{key}": value for key, value in in_parts(factors, lambda layer, index, name: name).items()}


def omi(factors: Factors) -> File:
    """Original names, fused layers split and numbered."""
    def rename(layer: str, index: int | None, name: str) -> str:
        layer = layer.replace("fc1", "fc0")
        return layer if index is None else f"{layer}.{index}"

    file = in_parts({k: v for k, v in factors.items() if "adaLN" not in k}, rename)
    down, up = factors["final_layer.adaLN_modulation.1"]
    file |= original({"final_layer.adaLN_modulation.1": (down, up)}, prefix="", ends=("lora_down.weight", "lora_up.weight"))
    return {f"transformer.{key}": value for key, value in file.items()}


LAYOUTS = {"original": original, "kohya": kohya, "diffusers": diffusers, "omi": omi}


def merged(weights: File, factors: Factors, *, strength: float = 1.0) -> File:
    """The weights of a tiny transformer with the LoRA in them: original layers put together, changed, and taken apart again."""
    changed = dict(weights)
    for layer, (down, up) in factors.items():
        names = [f"{name}.weight" for name in keys.layer_names(layer)]
        whole = torch.cat([changed[name] for name in names])
        if layer == "final_layer.adaLN_modulation.1":
            whole = torch.cat(whole.chunk(2)[::-1])
        whole = whole + strength * ALPHA / RANK * up @ down
        changed |= keys.to_diffusers_keys({f"{layer}.weight": whole}, width=WIDTH)
    return changed
