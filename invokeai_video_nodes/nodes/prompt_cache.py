"""Encoded prompts on disk, named by all that they depend on, so that the text encoders load once per prompt and not once per run.

A text encoder of 8 billion values takes a minute to load; its answer takes two megabytes.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import transformers
from invokeai.app.services.config.config_default import get_config
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from invokeai_video_nodes.pipelines.hunyuan_video.conditioning import Features, PromptFeatures, PromptFeatures15

FOLDER = "video-prompts"
MAX_FILES = 256
_CLASSES = {cls.__name__: cls for cls in (PromptFeatures, PromptFeatures15)}
# Goes up when the same key would give other features.
_FORMAT = 1


def prompt_cache_folder() -> Path:
    """Where the features lie; deleting it costs time only."""
    return Path(get_config().root_path, "cache", FOLDER)


def features_or_encode(parts: dict[str, Any], encode: Callable[[], Features]) -> Features:
    """The features stored for `parts` (JSON values that name all they depend on), else those of `encode()`, stored for next time.

    A file that cannot be read is made anew. A folder that cannot be written costs nothing but the next encoding.
    """
    versions = {"format": _FORMAT, "diffusers": diffusers.__version__, "transformers": transformers.__version__}
    key = hashlib.sha256(json.dumps({**parts, **versions}, sort_keys=True).encode()).hexdigest()
    path = prompt_cache_folder() / f"{key}.safetensors"
    found = _read(path)
    if found is not None:
        return found
    features = encode()
    try:
        _write(path, features)
    except OSError:
        pass
    return features


def _read(path: Path) -> Features | None:
    try:
        with safe_open(path, framework="pt") as stored:
            cls = _CLASSES[stored.metadata()["class"]]
            features = cls(**{name: stored.get_tensor(name) for name in stored.keys()})
        os.utime(path)  # the least recently used goes first
        return features
    except (OSError, SafetensorError, KeyError, TypeError):
        return None


def _write(path: Path, features: Features) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.partial")
    try:
        tensors = {name: value.detach().cpu().contiguous() for name, value in asdict(features).items()}
        save_file(tensors, unfinished, metadata={"class": type(features).__name__})
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    kept = sorted(path.parent.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    for old in kept[:-MAX_FILES]:
        old.unlink(missing_ok=True)
