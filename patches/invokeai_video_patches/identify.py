"""Is it a Z-Image Video checkpoint? A folder, a safetensors file or a GGUF file in; facts, "not ours" or "unusable" out.

Only headers and JSON files are read. An image checkpoint (f_patch_size 1 alone) is not ours unless the caller asked for it by
the explicit base override: then it is `experimental`. Works without InvokeAI; `model_configs.py` is the glue.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from invokeai_video_nodes.pipelines.shapes import F_PATCH_SIZES
from invokeai_video_nodes.pipelines.z_image import presets
from invokeai_video_patches import weight_files
from invokeai_video_patches.weight_files import BrokenFile, WeightHeader

# What each part of a diffusers folder must hold: one file of each group.
PARTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "transformer": (("config.json",), ("*.safetensors", "*.bin")),
    "vae": (("config.json",), ("*.safetensors", "*.bin")),
    "text_encoder": (("config.json",), ("*.safetensors", "*.bin")),
    "tokenizer": (("tokenizer.json", "vocab.json", "tokenizer_config.json"),),
    "scheduler": (("scheduler_config.json",),),
}
EXPERIMENTAL_WARNING = (
    "it is a still-image checkpoint, opened as video only because the base was set to z-image-video by hand. It never saw "
    "motion: its frame layers are copies of the still-image ones, so a clip will hold or drift through unrelated pictures "
    "and is not a meaningful video."
)


class NotVideo(Exception):
    """Not a Z-Image Video checkpoint; InvokeAI's own candidates go on."""


class Unusable(Exception):
    """A Z-Image Video checkpoint that cannot be used; the message says what is missing or wrong."""


@dataclass(frozen=True)
class CheckpointFacts:
    """What the model record keeps: f_patch_sizes ascending, latent channels, and whether it is an image checkpoint."""

    f_patch_sizes: tuple[int, ...]
    latent_channels: int
    experimental: bool


def identify_folder(folder: Path, *, asked: bool) -> CheckpointFacts:
    """Judge a diffusers folder of class ZImagePipeline; `asked` = the base was set to z-image-video by hand.

    Raises NotVideo or Unusable.
    """
    config_path = folder / "transformer" / "config.json"
    if not config_path.is_file():
        if asked:
            raise Unusable(missing_parts(folder, PARTS) or f"{folder.name} lacks transformer/config.json")
        raise NotVideo("no transformer/config.json")
    config = json.loads(config_path.read_text(encoding="utf-8"))
    facts = _facts(config.get("all_f_patch_size", (1,)), latent_channels=int(config.get("in_channels", 16)), asked=asked)
    problem = missing_parts(folder, PARTS) or broken_weights(folder, PARTS)
    if problem:
        raise Unusable(problem)
    return facts


def identify_file(path: Path, *, asked: bool) -> CheckpointFacts:
    """Judge a single safetensors transformer; raises NotVideo or Unusable."""
    if path.suffix.lower() != ".safetensors":
        raise NotVideo("no safetensors file")
    return _identify_header(path, weight_files.read_safetensors_header, asked=asked)


def identify_gguf(path: Path, *, asked: bool) -> CheckpointFacts:
    """Judge a GGUF transformer; raises NotVideo or Unusable."""
    if path.suffix.lower() != ".gguf":
        raise NotVideo("no GGUF file")
    return _identify_header(path, weight_files.read_gguf_header, asked=asked)


def dims_of(header: WeightHeader) -> presets.TransformerDims:
    """Sizes of the transformer: from the config in the file, else from the public checkpoints by shape.

    Raises ValueError when neither says them.
    """
    config = header.config()
    if config is not None:
        return presets.TransformerDims.from_config(config)
    weights = presets.to_diffusers_keys(_empty_weights(header))
    return presets.TransformerDims.from_state_dict_shapes({key: tuple(value.shape) for key, value in weights.items()})


def latent_channels_of(header: WeightHeader) -> int:
    """Latent channels that the file's config names, the public 16 where it has none."""
    return int((header.config() or {}).get("in_channels", presets.PUBLIC_6B.in_channels))


def _identify_header(path: Path, read: Any, *, asked: bool) -> CheckpointFacts:
    try:
        header = read(path)
    except BrokenFile as error:
        if _mentions_video(error) or (asked and "cap_embedder" in error.header_text):
            raise Unusable(str(error)) from error
        raise NotVideo(str(error)) from error
    except (ValueError, OSError) as error:
        raise NotVideo(str(error)) from error
    if not _is_z_image(header.shapes):
        raise NotVideo("no Z-Image transformer")
    channels = latent_channels_of(header)
    try:
        facts = _facts(presets.f_patch_sizes_in(header.shapes, latent_channels=channels), latent_channels=channels, asked=asked)
        dims_of(header)
    except ValueError as error:
        raise Unusable(f"{path.name}: {error}") from error
    if header.problem:
        raise Unusable(header.problem)
    return facts


def _empty_weights(header: WeightHeader) -> dict[str, torch.Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in header.shapes.items()}


def _facts(sizes: Iterable[int], *, latent_channels: int, asked: bool) -> CheckpointFacts:
    sizes = tuple(sorted(sizes))
    strange = [size for size in sizes if size not in F_PATCH_SIZES]
    if strange:
        raise Unusable(f"f_patch_size: expected values among {F_PATCH_SIZES}, got {sizes}")
    if max(sizes, default=1) > 1:
        return CheckpointFacts(sizes, latent_channels, experimental=False)
    if not asked:
        raise NotVideo("a still-image checkpoint: it knows f_patch_size 1 only")
    return CheckpointFacts(F_PATCH_SIZES, latent_channels, experimental=True)


def _is_z_image(keys: Iterable[str]) -> bool:
    """The test of InvokeAI's own Z-Image candidates: caption layers present, no LoRA factors."""
    lora = (".lora_down.weight", ".lora_up.weight", ".lora_A.weight", ".lora_B.weight", ".dora_scale", ".alpha")
    names = [presets.strip_prefix(key) for key in keys]
    if any(name.endswith(lora) for name in names):
        return False
    return any(name.split(".")[0] in ("cap_embedder", "context_refiner", "cap_pad_token") for name in names)


def _mentions_video(error: BrokenFile) -> bool:
    text = error.header_text
    return "cap_embedder" in text and any(f"all_x_embedder.2-{size}." in text for size in F_PATCH_SIZES[1:])


def missing_parts(folder: Path, parts: Mapping[str, Sequence[Sequence[str]]]) -> str | None:
    """A sentence that names every part that a folder lacks, None where it lacks none; `parts` as PARTS has them."""
    missing = []
    for part, groups in parts.items():
        if not (folder / part).is_dir():
            missing.append(f"{part}/")
            continue
        for group in groups:
            if not any(any((folder / part).glob(pattern)) for pattern in group):
                missing.append(f"{part}/{' or '.join(group)}")
    if not missing:
        return None
    return f"{folder.name}: expected the parts {', '.join(parts)}; missing: {', '.join(missing)}"


def broken_weights(folder: Path, parts: Iterable[str]) -> str | None:
    """What is wrong with the first of the parts' weight files that is not whole, None where all are."""
    for part in parts:
        problem = weight_files.check_safetensors_folder(folder / part)
        if problem:
            return problem
    return None
