"""AnimateDiff graphs for tests: prompt to MP4 at 8 frames of 64x64 in 2 steps, and a still image through stock nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphs import Graph, add, connect
from tiny_sd1 import NEGATIVE, PROMPT

SMALL = {"num_frames": 8, "width": 64, "height": 64, "steps": 2, "seed": 3, "guidance_scale": 7.5, "scheduler": "ddim"}


def animatediff_video(
    main: Mapping[str, Any],
    module: Mapping[str, Any],
    *,
    prompt: str = PROMPT,
    negative: str | None = NEGATIVE,
    loras: Mapping[str, float] | None = None,
    motion_loras: Mapping[str, float] | None = None,
    denoise: Mapping[str, Any] | None = None,
) -> Graph:
    """Prompt to MP4; `loras` and `motion_loras`: key -> weight; `denoise` sets fields of that node."""
    graph: Graph = {"id": "animatediff", "nodes": {}, "edges": []}
    unet, clip = _add_main(graph, main, loras or {})
    _add_prompts(graph, clip, {"prompt": prompt, **({} if negative is None else {"negative": negative})})
    add(graph, "model", "animatediff_model_loader", motion_module=dict(module))
    add(graph, "denoise", "animatediff_denoise", **{**SMALL, **(denoise or {})})
    add(graph, "decode", "animatediff_decode")
    connect(graph, unet, "model.unet")
    connect(graph, _add_motion_loras(graph, motion_loras or {}), "denoise.model")
    connect(graph, "prompt.conditioning", "denoise.positive_conditioning")
    connect(graph, "denoise.latents", "decode.latents")
    connect(graph, "main.vae", "decode.vae")
    if negative is not None:
        connect(graph, "negative.conditioning", "denoise.negative_conditioning")
    return graph


def model_value(main: Mapping[str, Any], module: Mapping[str, Any], **unet: Any) -> dict[str, Any]:
    """What the loader gives for these two, as the value of a model field; `unet` sets fields of its UNet."""
    parts = {part: {**main, "submodel_type": part} for part in ("unet", "scheduler")}
    return {"unet": {**parts, "loras": [], **unet}, "motion_module": dict(module), "motion_loras": []}


def denoise_alone(model: Mapping[str, Any], **fields: Any) -> Graph:
    """The denoise node alone, every field given by its value; no other node runs, so no other model is loaded."""
    graph: Graph = {"id": "denoise", "nodes": {}, "edges": []}
    add(graph, "denoise", "animatediff_denoise", model=dict(model), **{**SMALL, **fields})
    return graph


def vae_value(main: Mapping[str, Any]) -> dict[str, Any]:
    """The main model's VAE as the value of a VAE field."""
    return {"vae": {**main, "submodel_type": "vae"}, "seamless_axes": []}


def still_image(main: Mapping[str, Any], *, prompt: str = PROMPT, loras: Mapping[str, float] | None = None) -> Graph:
    """Prompt to picture through InvokeAI's own nodes: 64x64 in 2 steps; `loras`: key -> weight."""
    graph: Graph = {"id": "still", "nodes": {}, "edges": []}
    unet, clip = _add_main(graph, main, loras or {})
    _add_prompts(graph, clip, {"prompt": prompt, "negative": NEGATIVE})
    add(graph, "noise", "noise", seed=3, width=64, height=64)
    add(graph, "image", "denoise_latents", steps=2, scheduler="ddim")
    add(graph, "picture", "l2i", fp32=True)
    connect(graph, unet, "image.unet")
    connect(graph, "prompt.conditioning", "image.positive_conditioning")
    connect(graph, "negative.conditioning", "image.negative_conditioning")
    connect(graph, "noise.noise", "image.noise")
    connect(graph, "image.latents", "picture.latents")
    connect(graph, "main.vae", "picture.vae")
    return graph


def _add_main(graph: Graph, main: Mapping[str, Any], loras: Mapping[str, float]) -> tuple[str, str]:
    """InvokeAI's main model loader with its LoRA nodes; where the UNet and CLIP come out."""
    add(graph, "main", "main_model_loader", model=dict(main))
    unet, clip = "main.unet", "main.clip"
    for index, (key, weight) in enumerate(loras.items()):
        identity = {"key": key, "hash": "", "name": f"lora {index}", "base": "sd-1", "type": "lora"}
        add(graph, f"lora{index}", "lora_loader", lora=identity, weight=weight)
        connect(graph, unet, f"lora{index}.unet")
        connect(graph, clip, f"lora{index}.clip")
        unet, clip = f"lora{index}.unet", f"lora{index}.clip"
    return unet, clip


def _add_motion_loras(graph: Graph, loras: Mapping[str, float]) -> str:
    source = "model.model"
    for index, (key, weight) in enumerate(loras.items()):
        name = f"motion_lora{index}"
        identity = {"key": key, "hash": "", "name": name, "base": "sd-1", "type": "lora"}
        add(graph, name, "animatediff_motion_lora", lora=identity, weight=weight)
        connect(graph, source, f"{name}.model")
        source = f"{name}.model"
    return source


def _add_prompts(graph: Graph, clip: str, prompts: Mapping[str, str]) -> None:
    for name, prompt in prompts.items():
        add(graph, name, "compel", prompt=prompt)
        connect(graph, clip, f"{name}.clip")
