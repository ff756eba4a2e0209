"""Does a folder hold HunyuanVideo's text encoders, and nothing else of a model? A folder in; facts, "not ours" or "unusable" out.

It is what `owner/repo::text_encoder+tokenizer+text_encoder_2+tokenizer_2` leaves on the disk: the parts of a diffusers folder without
its model_index.json. What each part is, its own config says. A text_encoder and a tokenizer alone are left to InvokeAI, for it has
models of that form. Only headers and JSON files are read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invokeai_video_nodes.pipelines.hunyuan_video import sizes
from invokeai_video_patches.identify import NotVideo, Unusable, broken_weights, missing_parts
from invokeai_video_patches.identify_hunyuan_video import PREPROCESSOR, TOKENIZER, WEIGHTS, read_json


@dataclass(frozen=True)
class EncoderFacts:
    """What the record keeps.

    `generation` "1.0" or "1.5"; `sees_images`: they look at a start picture too, for image to video; `text_features`: how wide
    the language model is, in features per token.
    """

    generation: str
    sees_images: bool
    text_features: int


@dataclass(frozen=True)
class _Language:
    """A language model: its generation, whether it looks at pictures itself, and what its second encoder is."""

    generation: str
    sees_images: bool
    second: str


# The model_type of a part's config -> the class that loads it, as diffusers' pipelines have it.
ENCODER_CLASSES = {
    "llama": "LlamaModel",
    "llava": "LlavaForConditionalGeneration",
    "qwen2_5_vl_text": "Qwen2_5_VLTextModel",
    "clip_text_model": "CLIPTextModel",
    "t5": "T5EncoderModel",
    "siglip_vision_model": "SiglipVisionModel",
}
_LANGUAGES = {
    "llama": _Language("1.0", False, "clip_text_model"),
    "llava": _Language("1.0", True, "clip_text_model"),
    "qwen2_5_vl_text": _Language("1.5", False, "t5"),
}
_PARTS = {"text_encoder": WEIGHTS, "tokenizer": TOKENIZER, "text_encoder_2": WEIGHTS, "tokenizer_2": TOKENIZER}
_SEEING_15 = {"image_encoder": WEIGHTS, "feature_extractor": PREPROCESSOR}


def identify_encoders(folder: Path) -> EncoderFacts:
    """Judge a folder of text encoders; raises NotVideo or Unusable."""
    language, sees_images = _recognised(folder)
    parts = _parts_of(language, sees_images=sees_images)
    if problem := missing_parts(folder, parts) or broken_weights(folder, parts):
        raise Unusable(problem)
    _check_kind(folder, "text_encoder_2", language.second)
    if "image_encoder" in parts:
        _check_kind(folder, "image_encoder", "siglip_vision_model")
    for part in ("tokenizer", "tokenizer_2"):
        tokenizer_class(folder / part)
    features = sizes.text_features(read_json(folder / "text_encoder" / "config.json"))
    if features is None:
        raise Unusable(f"{folder.name}/text_encoder/config.json: expected a hidden_size, got none")
    return EncoderFacts(language.generation, sees_images, features)


def encoder_class(part: Path) -> str:
    """The transformers class of an encoder's folder; raises Unusable for one that is none of ours."""
    kind = read_json(part / "config.json").get("model_type")
    if kind not in ENCODER_CLASSES:
        raise Unusable(f"{part.name}/config.json: expected a model_type of {', '.join(ENCODER_CLASSES)}, got {kind}")
    return ENCODER_CLASSES[kind]


def tokenizer_class(part: Path) -> str:
    """The transformers class that a tokenizer's folder names; raises Unusable where it names none."""
    path = part / "tokenizer_config.json"
    name = read_json(path).get("tokenizer_class") if path.is_file() else None
    if not isinstance(name, str):
        raise Unusable(f"{part.name}/tokenizer_config.json: expected a tokenizer_class, got none")
    return name


def _recognised(folder: Path) -> tuple[_Language, bool]:
    """The language model, and whether the folder is for image to video; raises NotVideo unless it is surely one of ours."""
    if (folder / "model_index.json").is_file() or (folder / "transformer").is_dir():
        raise NotVideo("a whole pipeline")
    if not (folder / "text_encoder_2").is_dir() and not (folder / "tokenizer_2").is_dir():
        raise NotVideo("no second text encoder")
    language = _LANGUAGES.get(str(_kind(folder / "text_encoder")))
    if language is None:
        raise NotVideo(f"text_encoder/config.json names {_kind(folder / 'text_encoder')}")
    if _kind(folder / "text_encoder_2") not in (None, language.second):
        raise NotVideo(f"text_encoder_2/config.json names {_kind(folder / 'text_encoder_2')}")
    seeing = language.generation == "1.5" and any((folder / part).is_dir() for part in _SEEING_15)
    return language, language.sees_images or seeing


def _parts_of(language: _Language, *, sees_images: bool) -> Mapping[str, Sequence[Sequence[str]]]:
    if not sees_images:
        return _PARTS
    return {**_PARTS, **(_SEEING_15 if language.generation == "1.5" else {"image_processor": PREPROCESSOR})}


def _check_kind(folder: Path, part: str, expected: str) -> None:
    kind = read_json(folder / part / "config.json").get("model_type")
    if kind != expected:
        raise Unusable(f"{folder.name}/{part}/config.json: expected the model_type {expected}, got {kind}")


def _kind(part: Path) -> Any:
    """The model_type in a part's config, None where it has none that can be read."""
    try:
        return read_json(part / "config.json").get("model_type")
    except Unusable:
        return None
