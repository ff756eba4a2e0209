"""AnimateDiff's motion modules and motion LoRAs: names and shapes of a file in, its version, sizes and diffusers' names out.

    layout      who writes it         a name
    original    the original release  down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.norms.0.weight
    diffusers   MotionAdapter         down_blocks.0.motion_modules.0.transformer_blocks.0.norm1.weight

The versions differ by their positional encoding, whose length is the most frames that a module sees at once, and by a module in
the middle block. The encoding is a fixed table of sines, so it is computed and never read from a file.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from diffusers import MotionAdapter
from diffusers.models.embeddings import SinusoidalPositionalEmbedding

from ..errors import BadInput

Version = Literal["v1", "v2", "v3", "animatelcm"]
Shapes = Mapping[str, tuple[int, ...]]
T = TypeVar("T")

# Channels of the UNet's blocks that a public module fits; SDXL's UNet has one block less.
SD1_WIDTHS = (320, 640, 1280, 1280)
SDXL_WIDTHS = (320, 640, 1280)
# What the modules were trained with, in the words of diffusers' schedulers: the original releases' inference configs (v1-v3), and
# AnimateLCM's own example (a LCMScheduler with beta_schedule="linear"). Stable Diffusion 1.5 itself has scaled_linear.
BETA_SCHEDULES: dict[Version, str] = {"v1": "linear", "v2": "linear", "v3": "linear", "animatelcm": "linear"}
V1_FRAMES = 24
# AnimateLCM's file has no positional encoding; this is what its authors' diffusers folder says.
ANIMATELCM_FRAMES = 32
# A name with this in it belongs to a motion module, whatever else the file holds.
MARK = ".motion_modules."

_PREFIXES = ("module.", "unet.", "model.diffusion_model.")
_ENCODINGS = (".pos_encoder.pe", ".pos_embed.pe")
_RENAMED = (
    (".temporal_transformer.", "."),
    (".attention_blocks.0.", ".attn1."),
    (".attention_blocks.1.", ".attn2."),
    (".norms.0.", ".norm1."),
    (".norms.1.", ".norm2."),
    (".ff_norm.", ".norm3."),
)
_FACTORS = {
    ".lora_A.weight": "lora_down.weight",
    ".lora_B.weight": "lora_up.weight",
    ".lora_A.default.weight": "lora_down.weight",
    ".lora_B.default.weight": "lora_up.weight",
    ".lora_down.weight": "lora_down.weight",
    ".lora_up.weight": "lora_up.weight",
    ".lora.down.weight": "lora_down.weight",
    ".lora.up.weight": "lora_up.weight",
    "_lora.down.weight": "lora_down.weight",
    "_lora.up.weight": "lora_up.weight",
    ".alpha": "alpha",
}
_SHOWN = 3


@dataclass(frozen=True)
class MotionModule:
    """One motion module: `max_frames` seen at once, `widths` of the UNet's blocks, and MotionAdapter's complete `config`."""

    version: Version
    max_frames: int
    widths: tuple[int, ...]
    config: dict[str, Any]

    @property
    def beta_schedule(self) -> str:
        """The noise schedule that it was trained with, as diffusers' schedulers call it."""
        return BETA_SCHEDULES[self.version]

    def empty_adapter(self) -> MotionAdapter:
        """The adapter on the meta device, without memory."""
        with torch.device("meta"):
            return MotionAdapter.from_config(self.config)


@dataclass(frozen=True)
class MotionLora:
    """`layers`: diffusers' layer -> "lora_down.weight" [r, in], "lora_up.weight" [out, r] and, where the file has it, "alpha"."""

    layers: dict[str, dict[str, torch.Tensor]]
    total: int


def own_weights(weights: Mapping[str, T]) -> dict[str, T] | None:
    """The weights of a motion module without wrapping prefixes, None for a file that is no motion module.

    A LoRA, a SparseCtrl and a whole UNet are none, although they have motion modules inside.
    """
    named = without_prefixes(weights)
    if not any(MARK in name for name in named) or is_motion_lora(named) or is_sparse_control(named):
        return None
    if any(name.startswith(("down_blocks.0.resnets.", "time_embedding.")) for name in named):
        return None
    return named


def without_prefixes(weights: Mapping[str, T]) -> dict[str, T]:
    """The same weights without the prefixes that training and saving wrap around names."""
    return {_bare(name): value for name, value in weights.items()}


def frames_of(shapes: Shapes) -> int | None:
    """The length of the positional encodings, None where there are none; raises BadInput where they differ."""
    lengths = sorted({shape[1] for name, shape in shapes.items() if name.endswith(_ENCODINGS) and len(shape) == 3})
    if len(lengths) > 1:
        expected = "one length in all blocks (24 for v1, 32 for v2 and v3)"
        raise BadInput.expected("positional encoding", expected, ", ".join(map(str, lengths)))
    return lengths[0] if lengths else None


def is_sparse_control(names: Iterable[str]) -> bool:
    """Whether a file of these names is a SparseCtrl: a ControlNet for keyframes, with motion modules inside."""
    names = [_bare(name) for name in names]
    return any(MARK in name for name in names) and any(name.startswith("controlnet_") for name in names)


def is_motion_lora(names: Iterable[str]) -> bool:
    """Whether a file of these names is a LoRA for motion modules, in the original layout or diffusers'."""
    return any(MARK in name and _factor_of(name) is not None for name in names)


def describe(shapes: Shapes, config: Mapping[str, Any] | None = None) -> MotionModule:
    """The motion module in a file with these names (of `own_weights`); `config` is what the file's metadata carry, if anything.

    Raises BadInput for a module of SDXL, of other widths than Stable Diffusion 1.5's where no config says so, and for weights
    that are missing, strange or of other shapes.
    """
    found = {diffusers_name(name): shape for name, shape in shapes.items() if not name.endswith(_ENCODINGS)}
    widths = _widths(found, "down")
    _check_widths(widths, given=_is_adapter(config), whole=len(widths) == len(_widths(found, "up")))
    mid_block = any(name.startswith("mid_block.") for name in found)
    encoding = frames_of(shapes)
    if encoding is None and not mid_block:
        raise BadInput.expected("positional encoding", "one length in all blocks (24 for v1, 32 for v3)", "none")
    frames = ANIMATELCM_FRAMES if encoding is None else encoding
    told = {"block_out_channels": widths, "motion_max_seq_length": frames, "use_motion_mid_block": mid_block}
    options = _complete({**(config if config is not None and _is_adapter(config) else {}), **told})
    version = version_of(max_frames=frames, mid_block=mid_block, has_encoding=encoding is not None)
    module = MotionModule(version, frames, widths, options)
    check_shapes("motion module", module.empty_adapter(), found)
    return module


def describe_folder(config: Mapping[str, Any], shapes: Shapes, *, named_lcm: bool = False) -> MotionModule:
    """The motion module in a MotionAdapter folder, by its config.json and its weights' shapes; raises BadInput as `describe` does.

    AnimateLCM's folder has v2's sizes, names and schedule. Only what people call it tells them apart: `named_lcm`.
    """
    options = _complete(config)
    widths, frames = tuple(options["block_out_channels"]), int(options["motion_max_seq_length"])
    _check_widths(widths, given=True, whole=True)
    if options["conv_in_channels"]:
        raise BadInput.expected("motion module", "no input layer of its own", f"conv_in with {options['conv_in_channels']} channels (PIA)")
    mid_block = bool(options["use_motion_mid_block"])
    version = version_of(max_frames=frames, mid_block=mid_block, has_encoding=not named_lcm)
    module = MotionModule(version, frames, widths, options)
    check_shapes("motion module", module.empty_adapter(), shapes)
    return module


def version_of(*, max_frames: int, mid_block: bool, has_encoding: bool) -> Version:
    """Which release a module comes from, or has the structure of."""
    if mid_block:
        return "v2" if has_encoding else "animatelcm"
    return "v1" if max_frames == V1_FRAMES else "v3"


def diffusers_name(name: str) -> str:
    """A weight's name in MotionAdapter; a name of diffusers' own stays as it is."""
    for original, ours in _RENAMED:
        name = name.replace(original, ours)
    return name


def assembled(module: MotionModule, weights: Mapping[str, torch.Tensor], *, dtype: torch.dtype) -> MotionAdapter:
    """The adapter with a file's weights (of `own_weights`) in `dtype`; names and shapes were checked by `describe`."""
    return filled(module.empty_adapter(), weights, dtype=dtype)


def filled(model: Any, weights: Mapping[str, torch.Tensor], *, dtype: torch.dtype) -> Any:
    """An empty model of diffusers' with a file's weights in `dtype` and its positional encodings computed."""
    named = {diffusers_name(name): value.to(dtype) for name, value in weights.items() if not name.endswith(_ENCODINGS)}
    for name, part in model.named_modules():
        if isinstance(part, SinusoidalPositionalEmbedding):
            _, frames, features = part.pe.shape
            named[f"{name}.pe"] = SinusoidalPositionalEmbedding(features, max_seq_length=frames).pe.to(dtype)
    model.load_state_dict(named, strict=True, assign=True)
    return model.eval()


def check_shapes(what: str, model: Any, shapes: Shapes) -> None:
    """Raise BadInput unless a file's shapes, in either layout, are those of an empty model of diffusers': every one and no other.

    Positional encodings count for nothing here.
    """
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items() if not name.endswith(_ENCODINGS)}
    found = {diffusers_name(name): shape for name, shape in shapes.items() if not name.endswith(_ENCODINGS)}
    if missing := [name for name in expected if name not in found]:
        got = f"{len(missing)} fewer (first {', '.join(missing[:_SHOWN])}): the file is incomplete"
        raise BadInput.expected(what, f"{len(expected)} tensors", got)
    if strange := [name for name in found if name not in expected]:
        got = f"{len(strange)} others (first {', '.join(strange[:_SHOWN])}): a model of another kind"
        raise BadInput.expected(what, f"the layers of a {what} only", got)
    for name, shape in expected.items():
        if found[name] != shape:
            raise BadInput.expected(name, list(shape), list(found[name]))


def read_lora(weights: Mapping[str, torch.Tensor]) -> MotionLora:
    """The layers of a motion LoRA under diffusers' names; raises BadInput for a factor without its other half."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in weights.items():
        if (found := _factor_of(name)) is not None:
            layers.setdefault(found[0], {})[found[1]] = value
    check_lora_names(weights)
    return MotionLora(layers, len(weights))


def check_lora_names(names: Iterable[str]) -> None:
    """Raise BadInput unless every layer of a motion LoRA has both of its factors, and nothing else is in the file."""
    found: dict[str, set[str]] = {}
    for name in names:
        factor = _factor_of(name)
        if factor is None:
            raise BadInput.expected("motion LoRA", "LoRA factors only", name)
        found.setdefault(factor[0], set()).add(factor[1])
    for layer, factors in found.items():
        if lacking := {"lora_down.weight", "lora_up.weight"} - factors:
            raise BadInput.expected(f"factors of {layer}", "down and up", f"no {' and no '.join(sorted(lacking))}: the file is incomplete")


def _bare(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _factor_of(name: str) -> tuple[str, str] | None:
    """(diffusers' layer, factor) of one name in a LoRA file, None for a name that is none."""
    for ending, factor in _FACTORS.items():
        if name.endswith(ending):
            layer = diffusers_name(_bare(name.removesuffix(ending)) + ".").removesuffix(".").replace(".processor.", ".")
            # diffusers' attention keeps its output layer in a list.
            return re.sub(r"\.to_out$", ".to_out.0", layer), factor
    return None


def _widths(found: Shapes, side: str) -> tuple[int, ...]:
    """Channels of each down (or up) block, by its first norm; none after the first that lacks."""
    widths: list[int] = []
    while (shape := found.get(f"{side}_blocks.{len(widths)}.motion_modules.0.norm.weight")) is not None:
        widths.append(shape[0])
    return tuple(widths)


def _check_widths(widths: tuple[int, ...], *, given: bool, whole: bool) -> None:
    """Raise BadInput for widths that Stable Diffusion 1.5 has not; `whole`: there is an up block for every down block."""
    words = f"a module for a UNet of Stable Diffusion 1.5 with blocks of {SD1_WIDTHS} channels"
    if len(widths) == len(SDXL_WIDTHS) and whole:
        raise BadInput.expected("motion module", words, f"one for SDXL with blocks of {widths} channels")
    if len(widths) != len(SD1_WIDTHS):
        raise BadInput.expected("motion module", words, f"{len(widths)} blocks of {widths} channels: the file is incomplete")
    if widths != SD1_WIDTHS and not given:
        raise BadInput.expected("motion module", f"{words}, or its config as JSON under \"config\" in the file's metadata", widths)


def _is_adapter(config: Mapping[str, Any] | None) -> bool:
    return config is not None and "motion_max_seq_length" in config


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of MotionAdapter: as the config says, else the class's default."""
    options = list(inspect.signature(MotionAdapter.__init__).parameters.values())[1:]
    return {option.name: config.get(option.name, option.default) for option in options}
