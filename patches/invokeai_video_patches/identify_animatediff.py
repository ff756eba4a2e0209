"""Is it a motion module of AnimateDiff, a motion LoRA or a SparseCtrl? A folder or file in; facts, "not ours" or "unusable" out.

Only headers and JSON files are read. Works without InvokeAI; `configs_animatediff.py` is the glue.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invokeai_video_nodes.pipelines.animatediff import motion_module, sparse_control_keys
from invokeai_video_patches import weight_files
from invokeai_video_patches.identify import NotVideo, Unusable
from invokeai_video_patches.identify_hunyuan_video import read_json
from invokeai_video_patches.weight_files import BrokenFile

ADAPTER_CLASS = "MotionAdapter"
SPARSE_CONTROL_CLASS = "SparseControlNetModel"
# Widths of text features by the model that reads them.
SD1_TEXT_FEATURES = 768
_READERS = {
    ".safetensors": weight_files.read_safetensors_header,
    **dict.fromkeys((".ckpt", ".pt", ".pth", ".bin"), weight_files.read_checkpoint_header),
}


@dataclass(frozen=True)
class MotionFacts:
    """What the record of a motion module keeps.

    `version` "v1", "v2", "v3" or "animatelcm"; `max_frames` that it sees at once; `beta_schedule` in diffusers' words; `widths`:
    channels of the UNet's blocks that it fits; `mid_block`: it has a module in the UNet's middle.
    """

    version: str
    max_frames: int
    beta_schedule: str
    widths: tuple[int, ...]
    mid_block: bool


@dataclass(frozen=True)
class SparseControlFacts:
    """What the record of a SparseCtrl keeps: whether it reads keyframes as latents (rgb) or as pictures (scribble)."""

    reads_latents: bool


def identify_folder(folder: Path, *, names: tuple[str, ...] = ()) -> MotionFacts:
    """Judge a MotionAdapter folder; `names` are what else it is called (a record's name, a source). Raises NotVideo or Unusable."""
    config = _folder_config(folder, ADAPTER_CLASS)
    named_lcm = any("animatelcm" in name.lower() for name in (folder.name, *names))
    shapes: dict[str, tuple[int, ...]] = {}
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.bin")):
        try:
            shapes |= _READERS[path.suffix](path).shapes
        except ValueError as error:
            raise Unusable(f"{folder.name}: {error}") from error
    return _facts(_described(folder, lambda: motion_module.describe_folder(config, shapes, named_lcm=named_lcm)))


def identify_file(path: Path) -> MotionFacts:
    """Judge a motion module in one safetensors file or torch checkpoint; raises NotVideo or Unusable."""
    return _facts(described_file(path))


def described_file(path: Path) -> motion_module.MotionModule:
    """The motion module in a file; raises NotVideo or Unusable."""
    header = _header(path, not_mentioning=(".lora", "_lora", "controlnet_"))
    shapes = motion_module.own_weights(header.shapes)
    if shapes is None:
        raise NotVideo("no motion module")
    if header.problem:
        raise Unusable(header.problem)
    return _described(path, lambda: motion_module.describe(shapes, header.config()))


def identify_lora(path: Path) -> None:
    """Judge a motion LoRA in one file; raises NotVideo or Unusable."""
    header = _header(path, not_mentioning=("controlnet_",), mentioning="lora")
    if not motion_module.is_motion_lora(header.shapes):
        raise NotVideo("no LoRA for motion modules")
    if header.problem:
        raise Unusable(header.problem)
    _described(path, lambda: motion_module.check_lora_names(header.shapes))


def identify_sparse_control(path: Path) -> SparseControlFacts:
    """Judge a folder of diffusers' SparseControlNetModel, or an original file; raises NotVideo or Unusable."""
    if path.is_file():
        return SparseControlFacts(reads_latents=bool(sparse_control_config(path)["use_simplified_condition_embedding"]))
    return _sparse_control_folder(path)


def sparse_control_config(path: Path) -> dict[str, Any]:
    """The config of the SparseCtrl in a file; raises NotVideo or Unusable."""
    header = _header(path, mentioning="controlnet_")
    if not motion_module.is_sparse_control(header.shapes):
        raise NotVideo("no SparseCtrl")
    if header.problem:
        raise Unusable(header.problem)
    return _described(path, lambda: sparse_control_keys.describe(header.shapes, header.config()))


def _sparse_control_folder(folder: Path) -> SparseControlFacts:
    config = _folder_config(folder, SPARSE_CONTROL_CLASS)
    features = config.get("cross_attention_dim", SD1_TEXT_FEATURES)
    if features != SD1_TEXT_FEATURES:
        raise Unusable(f"{folder.name}: expected a SparseCtrl for Stable Diffusion 1.5 ({SD1_TEXT_FEATURES} text features), got {features}")
    return SparseControlFacts(reads_latents=bool(config.get("use_simplified_condition_embedding", True)))


def weights_of(path: Path) -> dict[str, Any]:
    """All tensors of a safetensors file or torch checkpoint, on the CPU."""
    if path.suffix.lower() == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    import torch

    return weight_files.tensors_in(torch.load(path, map_location="cpu", weights_only=True))


def _facts(module: motion_module.MotionModule) -> MotionFacts:
    mid_block = bool(module.config["use_motion_mid_block"])
    return MotionFacts(module.version, module.max_frames, module.beta_schedule, module.widths, mid_block)


def _described(path: Path, describe: Callable[[], Any]) -> Any:
    try:
        return describe()
    except (ValueError, TypeError) as error:
        raise Unusable(f"{path.name}: {error}") from error


def _header(path: Path, *, not_mentioning: tuple[str, ...] = (), mentioning: str = "") -> weight_files.WeightHeader:
    """A file's header; one cut off so early that only some names are left is ours where they say so."""
    if path.suffix.lower() not in _READERS:
        raise NotVideo("no safetensors file or torch checkpoint")
    try:
        return _READERS[path.suffix.lower()](path)
    except BrokenFile as error:
        text = error.header_text
        if motion_module.MARK in text and mentioning in text and not any(word in text for word in not_mentioning):
            raise Unusable(str(error)) from error
        raise NotVideo(str(error)) from error
    except (ValueError, OSError) as error:
        raise NotVideo(str(error)) from error


def _folder_config(folder: Path, class_name: str) -> dict[str, Any]:
    """config.json of a folder that holds one whole model of this class; raises NotVideo or Unusable."""
    if (folder / "model_index.json").is_file():
        raise NotVideo("a whole pipeline")
    try:
        config = read_json(folder / "config.json")
    except Unusable as error:
        raise NotVideo(str(error)) from error
    if config.get("_class_name") != class_name:
        raise NotVideo(f"config.json names {config.get('_class_name')}")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise Unusable(f"{folder.name}: expected weights beside config.json (*.safetensors or *.bin), got none")
    if problem := weight_files.check_safetensors_folder(folder):
        raise Unusable(problem)
    return config
