"""What the toy model was made for, as its own folder says: the defaults of the demo and of our workflows."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

TOY_FOLDER = Path(__file__).resolve().parent / "toy_model"
TOY_MODEL = TOY_FOLDER / "model"


@dataclass(frozen=True)
class ToySettings:
    """Keys of `toy_model/settings.json` and `vocabulary.json`; pixels, frames, frames per second.

    `words` is the captions' vocabulary, `trained_frames` the shortest and the longest clip of the training.
    """

    prompt: str = "a red circle moving to the right"
    width: int = 64
    height: int = 64
    num_frames: int = 16
    fps: int = 8
    f_patch_size: int = 2
    steps: int = 12
    guidance_scale: float = 3.0
    words: tuple[str, ...] = ()
    trained_frames: tuple[int, ...] = ()


def toy_settings(folder: Path = TOY_FOLDER) -> ToySettings:
    """The folder's settings and vocabulary; what it leaves out keeps its default."""
    facts: dict[str, Any] = {}
    for name in ("settings.json", "vocabulary.json"):
        if (folder / name).is_file():
            facts.update(json.loads((folder / name).read_text(encoding="utf-8")))
    known: dict[str, Any] = {item.name: facts[item.name] for item in fields(ToySettings) if item.name in facts}
    for name, value in known.items():
        known[name] = tuple(value) if isinstance(value, list) else value
    return ToySettings(**known)
