"""LoRA files for HunyuanVideo in every published layout -> diffusers' layers with their factors.

    layout      who writes it              a key
    original    the original release       diffusion_model.double_blocks.3.img_attn_qkv.lora_A.weight
    diffusers   diffusers, PEFT            transformer.transformer_blocks.3.attn.to_q.lora_A.weight
    kohya       musubi-tuner, kohya        lora_unet_double_blocks_3_img_attn_qkv.lora_down.weight
    omi         OneTrainer                 transformer.double_blocks.3.img_attn_qkv.0.lora_down.weight

FLUX has blocks of the same names and sizes, so a file is told by what only one of them has: other names, or block numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from ..errors import BadInput
from . import keys

Layout = Literal["original", "diffusers", "kohya", "omi"]
Base = Literal["hunyuan-video", "flux"]

_FACTORS = {
    ".lora_A.weight": "lora_down.weight",
    ".lora_B.weight": "lora_up.weight",
    ".lora_A.default.weight": "lora_down.weight",
    ".lora_B.default.weight": "lora_up.weight",
    ".lora_down.weight": "lora_down.weight",
    ".lora_up.weight": "lora_up.weight",
    ".alpha": "alpha",
}
_KOHYA = "lora_unet_"
_SPLIT = re.compile(r"(.+(?:qkv|linear1))\.([0-3])")
# Blocks of either model: a higher number, or a name that the other lacks, decides.
_FLUX_DOUBLE, _FLUX_SINGLE = 19, 38
_BLOCK_NUMBER = re.compile(r"(double|single)_blocks[._](\d+)[._]|(single_)?transformer_blocks[._](\d+)[._]")
_ONLY_HUNYUAN = re.compile(
    r"img_mod[._]linear|txt_mod[._]linear|img_mlp[._]fc|txt_mlp[._]fc|modulation[._]linear|txt_in[._]|"
    r"blocks\.\d+\.(img|txt)_attn_(qkv|proj)|context_embedder\.(token_refiner|proj_in|time_text_embed)"
)
_ONLY_FLUX = re.compile(
    r"(img|txt)_attn\.(qkv|proj)|(img|txt)_mlp[._][02][._]|(img|txt)_mod[._]lin[._]|modulation[._]lin[._]|context_embedder\.lora|"
    r"txt_in\.lora|lora_te1_text_model|time_text_embed\.guidance_embedder.*flux"
)
# Layers of diffusers' that only one of the generations has, and how wide the public checkpoints' attention is.
_ONLY_10 = ("single_transformer_blocks.", "time_text_embed.")
_ONLY_15 = ("time_embed.", "context_embedder_2.", "image_embedder.", "cond_type_embed.")
_BLOCKS_10 = 20
_WIDTHS = {3072: "1.0", 2048: "1.5"}
# Output rows and input columns of a layer's weight.
Size = tuple[int, int]


@dataclass(frozen=True)
class Lora:
    """`layers`: diffusers' layer -> "lora_down.weight" [r, in], "lora_up.weight" [out, r] and, where the file has it, "alpha".

    `matched` of the file's `total` keys are in it; keys of text encoders and unknown layers are not.
    """

    layout: Layout
    layers: dict[str, dict[str, torch.Tensor]]
    matched: int
    total: int


def recognise(names: Iterable[str], metadata: Mapping[str, str] | None = None) -> Base | None:
    """Whose LoRA a file of these keys is; None where both fit, and the person has to choose. Raises BadInput for no LoRA."""
    names = list(names)
    if not any(name.endswith(tuple(_FACTORS)) for name in names):
        raise BadInput.expected("LoRA", "a file with LoRA factors", "one without")
    architecture = " ".join((metadata or {}).get(key, "") for key in ("modelspec.architecture", "ss_base_model_version")).lower()
    if "hunyuan" in architecture or "flux" in architecture:
        return "hunyuan-video" if "hunyuan" in architecture else "flux"
    double, single = _block_numbers(names)
    is_hunyuan = any(_ONLY_HUNYUAN.search(name) for name in names)
    is_hunyuan |= max(double, default=0) >= _FLUX_DOUBLE or max(single, default=0) >= _FLUX_SINGLE
    # A file that changes every block of FLUX and none beyond is FLUX's: HunyuanVideo has one or two more of each.
    is_flux = any(_ONLY_FLUX.search(name) for name in names)
    is_flux |= not is_hunyuan and (double == set(range(_FLUX_DOUBLE)) or single == set(range(_FLUX_SINGLE)))
    if is_hunyuan == is_flux:
        return None
    return "hunyuan-video" if is_hunyuan else "flux"


def fits(names: Iterable[str]) -> bool:
    """Whether a file of these keys has any layer of HunyuanVideo's."""
    return count_matched(names)[0] > 0


def count_matched(names: Iterable[str]) -> tuple[int, int]:
    """How many of the file's keys are factors of HunyuanVideo's layers, and how many keys it has. No weight is read."""
    names = list(names)
    layout = layout_of(names)
    matched = 0
    for name in names:
        ending = next((ending for ending in _FACTORS if name.endswith(ending)), None)
        layer = None if ending is None else _layer_name(name.removesuffix(ending), layout)
        if layer and (match := _SPLIT.fullmatch(layer)):
            layer = match[1]
        matched += bool(layer and (layer.startswith(_DIFFUSERS) or keys.layer_names(layer, generation=_generation(layer))))
    return matched, len(names)


def read_lora(state_dict: Mapping[str, torch.Tensor]) -> Lora:
    """The file's factors by diffusers' layers. Raises BadInput, naming the layout, where not one layer is HunyuanVideo's."""
    layout = layout_of(state_dict)
    by_layer: dict[str, dict[str, torch.Tensor]] = {}
    count: dict[str, int] = {}
    for key, value in state_dict.items():
        ending = next((ending for ending in _FACTORS if key.endswith(ending)), None)
        if ending is None:
            continue
        name = _layer_name(key.removesuffix(ending), layout)
        if name is not None:
            by_layer.setdefault(name, {})[_FACTORS[ending]] = value
            count[name] = count.get(name, 0) + 1
    layers: dict[str, dict[str, torch.Tensor]] = {}
    matched = 0
    for name, factors in by_layer.items():
        if {"lora_up.weight", "lora_down.weight"} <= factors.keys():
            found = _parts(name, factors)
            layers.update(found)
            matched += count[name] if found else 0
    if not layers:
        example = next(iter(state_dict), "no keys")
        raise BadInput.expected("LoRA", "layers of HunyuanVideo's transformer", f"none in a file of the {layout} layout ({example} ...)")
    return Lora(layout, layers, matched, len(state_dict))


def sizes_in(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Size]:
    """A file's names and shapes -> the sizes of diffusers' layers that it changes; raises BadInput as `read_lora` does."""
    found = read_lora({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    return {name: (values["lora_up.weight"].shape[0], values["lora_down.weight"].shape[1]) for name, values in found.layers.items()}


def check_fit(changed: Mapping[str, Size], layers: Mapping[str, Size], *, lora: str, model: str, generation: str) -> None:
    """Raise BadInput unless the model has every layer that the LoRA changes, in its size.

    `layers` are all of the model's. `lora` and `model` are the records' names, `generation` is the model's, "1.0" or "1.5".
    """
    wrong = [name for name, size in changed.items() if layers.get(name) != size]
    if not wrong:
        return
    what, first, share = f"LoRA '{lora}'", wrong[0], f"{len(wrong)} of its {len(changed)} layers do not fit"
    made_for = generation_of(changed)
    if made_for is not None and made_for != generation:
        raise BadInput.expected(what, f"one for HunyuanVideo {generation}, as '{model}' is", f"one for HunyuanVideo {made_for}")
    if first not in layers:
        raise BadInput.expected(what, f"layers that '{model}' has", f"{first}, which it lacks ({share}: it is for another model)")
    (rows, columns), (wanted_rows, wanted_columns) = changed[first], layers[first]
    expected = f"one for a model of the size of '{model}', {wanted_rows}x{wanted_columns} in {first}"
    raise BadInput.expected(what, expected, f"one for {rows}x{columns} ({share})")


def generation_of(changed: Mapping[str, Size]) -> str | None:
    """Which HunyuanVideo has layers of these names and sizes, "1.0" or "1.5"; None where that cannot be told."""
    if any(name.startswith(_ONLY_10) for name in changed):
        return "1.0"
    double, _ = _block_numbers([f"{name}." for name in changed])
    if any(name.startswith(_ONLY_15) for name in changed) or max(double, default=0) >= _BLOCKS_10:
        return "1.5"
    return next((_WIDTHS[size[1]] for name, size in changed.items() if ".attn.to_" in name and size[1] in _WIDTHS), None)


def layout_of(names: Iterable[str]) -> Layout:
    """Which of the layouts the keys are written in."""
    names = [keys.strip_prefix(name) for name in names]
    if any(name.startswith(_KOHYA) for name in names):
        return "kohya"
    if not any(name.startswith(("double_blocks.", "single_blocks.", "txt_in.")) for name in names):
        return "diffusers"
    return "omi" if any(_SPLIT.fullmatch(name.rsplit(".lora_", 1)[0]) or ".fc0." in name for name in names) else "original"


def _block_numbers(names: list[str]) -> tuple[set[int], set[int]]:
    """The numbers of the double and of the single blocks that the file changes."""
    double: set[int] = set()
    single: set[int] = set()
    for name in names:
        for kind, number, is_single, diffusers_number in _BLOCK_NUMBER.findall(name):
            (single if kind == "single" or is_single else double).add(int(number or diffusers_number))
    return double, single


def _layer_name(name: str, layout: Layout) -> str | None:
    """The layer as `_parts` takes it: diffusers' name, an original name, or an original name with ".N" of a split one."""
    if layout == "kohya":
        return _DOTTED.get(_numbers_out(name.removeprefix(_KOHYA)), "").format(*re.findall(r"_blocks_(\d+)_", name)) or None
    name = keys.strip_prefix(name)
    if layout == "omi":
        name = name.replace(".fc0", ".fc1").replace("t_embedder.linear_1", "t_embedder.mlp.0")
        return name.replace("t_embedder.linear_2", "t_embedder.mlp.2")
    return name


def _numbers_out(name: str) -> str:
    return re.sub(r"_blocks_\d+_", "_blocks_{}_", name)


def _underscored() -> dict[str, str]:
    """kohya's name of every original layer, with {} for block numbers -> the name with dots."""
    names = list(keys.TOP_LAYERS)
    names += [f"{blocks}.{{}}.{layer}" for blocks, layers in keys.original_blocks("1.5").items() for layer in layers]
    return {name.replace(".", "_"): name for name in names}


_DOTTED = _underscored()


def _parts(name: str, factors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """diffusers' layers of one layer of the file; {} for a layer that is none of the transformer's."""
    if match := _SPLIT.fullmatch(name):
        names = keys.layer_names(match[1], generation=_generation(match[1]))
        return {names[int(match[2])]: factors} if int(match[2]) < len(names) else {}
    if name.startswith(_DIFFUSERS):
        return {name: factors}
    up, down = factors["lora_up.weight"], factors["lora_down.weight"]
    found = {}
    for part in keys.split(name, rows=up.shape[0], width=down.shape[1], generation=_generation(name)):
        found[part.name] = {**factors, "lora_up.weight": torch.cat([up[rows] for rows in part.rows])}
    return found


def _generation(layer: str) -> str:
    """Whose names the original layer is found among: 1.5 has all of 1.0's, and some that 1.0 lacks."""
    return "1.0" if keys.layer_names(layer) else "1.5"


_DIFFUSERS = (
    *("transformer_blocks.", "single_transformer_blocks.", "context_embedder.", "time_text_embed.", "x_embedder."),
    *("norm_out.", "proj_out", *_ONLY_15),
)
