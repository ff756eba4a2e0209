"""SVD's single file through InvokeAI's own factory, records and loaders; asked by `inside_invokeai.py` in its one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from inside_animatediff import equal, identified, part, record, refusal
from tiny_svd import tiny_svd
from tiny_svd_files import save_original

MODULES = ("unet", "vae", "image_encoder")


def ask(folder: Path, load: Callable[..., Any]) -> dict[str, Any]:
    """`load(config, part)` is InvokeAI's registered loader; returns records, weights compared with the folder's, and refusals."""
    folder.mkdir()
    answers: dict[str, Any] = {"records": {}, "same weights": {}, "refused": {}}
    for num_frames, name in ((14, "svd"), (25, "svd_xt")):
        pipeline = tiny_svd(num_frames=num_frames)
        pipeline.save_pretrained(folder / name)
        files = {
            name: save_original(folder / f"{name}.safetensors", pipeline, with_frames=False),
            f"{name} fp16": save_original(folder / f"{name}-fp16.safetensors", pipeline, with_frames=False, dtype=torch.float16),
        }
        whole, _ = identified(folder / name)
        for label, path in files.items():
            config, refused = identified(path)
            answers["refused"][label] = refused
            answers["records"][label] = {"class": type(config).__name__, **record(config)}
            loaded = {module: load(config, part(module)) for module in MODULES}
            answers["same weights"][label] = {module: equal(model, load(whole, part(module))) for module, model in loaded.items()}
            answers["same weights"][label] |= {f"{module} rounded": rounded(model, pipeline, module) for module, model in loaded.items()}
    config, _ = identified(folder / "svd.safetensors")
    scheduler = load(config, part("scheduler"))
    theirs = load(identified(folder / "svd")[0], part("scheduler"))
    answers["scheduler"] = [type(scheduler) is type(theirs), settings(scheduler) == settings(theirs)]
    answers["other part"] = refusal(load, config, part("transformer"))
    moved = identified(folder / "svd_xt")[0]
    (folder / "svd_xt" / "vae").rename(folder / "vae of svd_xt")
    answers["moved part"] = refusal(load, moved, part("vae"))
    nameless = save_original(folder / "model.safetensors", tiny_svd(), with_frames=False)
    answers["nameless"] = [type(identified(nameless)[0]).__name__, *identified(nameless)[1]]
    return answers


def settings(scheduler: Any) -> dict[str, Any]:
    """Its config without notes on where it comes from."""
    return {name: value for name, value in scheduler.config.items() if not name.startswith("_")}


def rounded(model: Any, pipeline: Any, module: str) -> bool:
    """Whether the weights are the pipeline's after a round trip through float16, and float32 now."""
    theirs = getattr(pipeline, module).state_dict()
    return all(value.dtype == torch.float32 and torch.equal(value, theirs[name].half().float()) for name, value in floats(model).items())


def floats(model: Any) -> dict[str, torch.Tensor]:
    """The weights that have a fractional part."""
    return {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
