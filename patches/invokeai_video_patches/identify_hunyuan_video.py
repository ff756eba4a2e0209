"""Is it a HunyuanVideo checkpoint, video VAE or LoRA? A folder or file in; facts, "not ours" or "unusable" out.

Only headers and JSON files are read. Works without InvokeAI; `configs_hunyuan_video.py` is the glue.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.hunyuan_video import keys, lora, scaled_fp8, sizes, vae_keys
from invokeai_video_patches import weight_files
from invokeai_video_patches.identify import NotVideo, Unusable, broken_weights, missing_parts
from invokeai_video_patches.weight_files import BrokenFile

WEIGHTS = (("config.json",), ("*.safetensors", "*.bin"))
TOKENIZER = (("tokenizer.json", "vocab.json", "tokenizer_config.json"),)
PREPROCESSOR = (("preprocessor_config.json",),)
_COMMON: dict[str, tuple[tuple[str, ...], ...]] = {
    "transformer": WEIGHTS,
    "vae": WEIGHTS,
    "text_encoder": WEIGHTS,
    "tokenizer": TOKENIZER,
    "text_encoder_2": WEIGHTS,
    "tokenizer_2": TOKENIZER,
    "scheduler": (("scheduler_config.json",),),
}
# The pipeline's class -> generation, and the parts that its folder must hold.
PIPELINES = {
    "HunyuanVideoPipeline": ("1.0", _COMMON),
    "HunyuanVideoImageToVideoPipeline": ("1.0", {**_COMMON, "image_processor": PREPROCESSOR}),
    "HunyuanVideo15Pipeline": ("1.5", _COMMON),
    "HunyuanVideo15ImageToVideoPipeline": ("1.5", {**_COMMON, "image_encoder": WEIGHTS, "feature_extractor": PREPROCESSOR}),
}
CONDITIONS = ("latent_concat", "token_replace")
VAE_CLASSES = {"AutoencoderKLHunyuanVideo": "1.0", "AutoencoderKLHunyuanVideo15": "1.5"}
TAKEN_FOR_TEXT_TO_VIDEO = (
    "taken for a text-to-video model. Image-to-video checkpoints can have the same shapes; for one of those, open Edit in the model "
    "manager and put token_replace (HunyuanVideo) or latent_concat (HunyuanVideo-1.5) into Path To Config, or the path of diffusers' "
    "config.json of the transformer."
)
# What a weight may be stored as, in a safetensors file's words.
_DTYPES = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class HunyuanFacts:
    """What the model record keeps.

    `generation` "1.0" or "1.5"; `condition` how a start picture enters, None for text to video; `latent_channels` of the
    VAE's latents; `guidance_embeds`: the checkpoint is distilled and reads its guidance as a number; `text_features`: how wide
    the language model must be, in features per token.
    """

    generation: str
    condition: str | None
    latent_channels: int
    guidance_embeds: bool
    text_features: int | None = None


@dataclass(frozen=True)
class VaeFacts:
    """What the record of a video VAE keeps: `generation` "1.0" or "1.5", and the channels of its latents."""

    generation: str
    latent_channels: int


def identify_folder(folder: Path) -> HunyuanFacts:
    """Judge a diffusers folder; raises NotVideo or Unusable."""
    index = folder / "model_index.json"
    class_name = read_json(index).get("_class_name") if index.is_file() else None
    if class_name not in PIPELINES:
        raise NotVideo(f"model_index.json names {class_name}")
    generation, parts = PIPELINES[class_name]
    if problem := missing_parts(folder, parts) or broken_weights(folder, parts):
        raise Unusable(problem)
    return facts_of(read_json(folder / "transformer" / "config.json"), generation)


def identify_file(path: Path) -> HunyuanFacts:
    """Judge a transformer in one safetensors or GGUF file; raises NotVideo or Unusable."""
    described = described_file(path)
    return facts_of(described.config, described.generation)


def described_file(path: Path) -> sizes.Described:
    """The transformer in a safetensors or GGUF file; raises NotVideo or Unusable."""
    return _described(path, keys.own_weights, sizes.describe_transformer, marks=keys.MARKS)


def carries_config(path: Path) -> bool:
    """Whether a transformer's file says in its metadata what it is."""
    return _reader_for(path)(path).config() is not None


def condition_in(config_path: str, generation: str) -> str | None:
    """How a start picture enters, as a record's config path says: diffusers' config, or the word itself; raises Unusable."""
    if config_path in CONDITIONS:
        return config_path
    config = {"in_channels": 0, **read_json(Path(config_path))}
    return facts_of(config, generation).condition


def identify_vae_file(path: Path) -> VaeFacts:
    """Judge a video VAE in one safetensors file; raises NotVideo or Unusable."""
    described = described_vae_file(path)
    return VaeFacts(described.generation, int(described.config["latent_channels"]))


def described_vae_file(path: Path) -> sizes.Described:
    """The video VAE in a safetensors file; raises NotVideo or Unusable."""
    if path.suffix.lower() != ".safetensors":
        raise NotVideo("no safetensors file")
    return _described(path, vae_keys.own_weights, sizes.describe_vae, marks=vae_keys.MARKS)


def identify_vae_folder(folder: Path) -> VaeFacts:
    """Judge a folder that holds one video VAE; raises NotVideo or Unusable."""
    # A whole pipeline may have a config.json of its own that is no JSON, as the public HunyuanVideo folder does.
    if (folder / "model_index.json").is_file():
        raise NotVideo("a whole pipeline")
    try:
        config = read_json(folder / "config.json")
    except Unusable as error:
        raise NotVideo(str(error)) from error
    generation = VAE_CLASSES.get(str(config.get("_class_name")))
    if generation is None:
        raise NotVideo(f"config.json names {config.get('_class_name')}")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise Unusable(f"{folder.name}: expected weights beside config.json (*.safetensors or *.bin), got none")
    if problem := weight_files.check_safetensors_folder(folder):
        raise Unusable(problem)
    return VaeFacts(generation, int(config.get("latent_channels", sizes.PUBLIC_LATENT_CHANNELS[generation])))


def _described(
    path: Path,
    own_weights: Callable[[Mapping[str, Any]], dict[str, Any] | None],
    describe: Callable[[sizes.Shapes, dict[str, Any] | None], sizes.Described],
    *,
    marks: Sequence[str],
) -> sizes.Described:
    """One file's model by its header; `marks` are parts of names by which even a cut-off header is known as ours."""
    read = _reader_for(path)
    try:
        header = read(path)
    except BrokenFile as error:
        if any(mark in error.header_text for mark in marks) and ".lora_" not in error.header_text:
            raise Unusable(str(error)) from error
        raise NotVideo(str(error)) from error
    except (ValueError, OSError) as error:
        raise NotVideo(str(error)) from error
    shapes = own_weights(header.shapes)
    if shapes is None:
        raise NotVideo("no HunyuanVideo model")
    if header.problem:
        raise Unusable(header.problem)
    try:
        scaled_fp8.check_scales(shapes)
        weights = {name: shape for name, shape in shapes.items() if scaled_fp8.is_weight(name)}
        _check_dtypes(own_weights(header.dtypes) or {}, weights)
        return describe(weights, header.config())
    except (ValueError, TypeError) as error:
        raise Unusable(f"{path.name}: {error}") from error


def _reader_for(path: Path) -> Callable[[Path], weight_files.WeightHeader]:
    readers = {".safetensors": weight_files.read_safetensors_header, ".gguf": weight_files.read_gguf_header}
    if path.suffix.lower() not in readers:
        raise NotVideo("no safetensors or GGUF file")
    return readers[path.suffix.lower()]


def _check_dtypes(dtypes: Mapping[str, str], weights: Mapping[str, Any]) -> None:
    strange = {dtype: name for name, dtype in dtypes.items() if name in weights and dtype not in _DTYPES}
    for dtype, name in strange.items():
        raise BadInput.expected(f"dtype of {name}", f"one of {', '.join(_DTYPES)}", f"{dtype}: a quantization that is not supported")


def identify_lora(path: Path, *, asked: str | None) -> None:
    """Judge a LoRA file; `asked` is the base that was set by hand. Raises NotVideo, or Unusable where FLUX could own it too."""
    if path.suffix.lower() != ".safetensors":
        raise NotVideo("no safetensors file")
    try:
        header = weight_files.read_safetensors_header(path)
        base = lora.recognise(header.shapes, header.metadata)
    except (ValueError, OSError) as error:
        raise NotVideo(str(error)) from error
    if asked is not None:
        if asked != "hunyuan-video":
            raise NotVideo(f"the base was set to {asked}")
    elif base is None and lora.fits(header.shapes):
        raise Unusable(f"{path.name} fits HunyuanVideo and FLUX alike: choose the base by hand")
    elif base != "hunyuan-video":
        raise NotVideo(f"a LoRA for {base or 'another model'}")
    if header.problem:
        raise Unusable(header.problem)


def facts_of(config: Mapping[str, Any], generation: str) -> HunyuanFacts:
    """The facts that a transformer's config tells; raises Unusable for a way of taking pictures that we do not know."""
    channels = int(config["in_channels"])
    text_features = config.get("text_embed_dim")
    if generation == "1.5":
        condition = "latent_concat" if config.get("task_type") == "i2v" else None
        return HunyuanFacts(generation, condition, (channels - 1) // 2, guidance_embeds=False, text_features=text_features)
    condition = config.get("image_condition_type")
    if condition not in (None, *CONDITIONS):
        raise Unusable(f"image_condition_type: expected one of {', '.join(CONDITIONS)} or none, got {condition}")
    latent_channels = (channels - 1) // 2 if condition == "latent_concat" else channels
    return HunyuanFacts(generation, condition, latent_channels, bool(config.get("guidance_embeds", True)), text_features)


def read_json(path: Path) -> dict:
    """A JSON file's object, empty where it holds something else; raises Unusable for one that is no JSON."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unusable(f"{path.name}: expected JSON, got {error}") from error
    return content if isinstance(content, dict) else {}
