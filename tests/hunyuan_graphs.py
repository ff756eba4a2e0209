"""HunyuanVideo graphs for tests: prompt to MP4 at 9 frames of 32x32 in 2 steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest
from graphs import Graph, add, connect

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine

PROMPT, NEGATIVE = "a red circle moves to the right", "blurred"
SMALL = {"num_frames": 9, "width": 32, "height": 32, "steps": 2, "seed": 3, "guidance_scale": 5.0}


def hunyuan_video(
    model: Mapping[str, Any],
    *,
    image: Mapping[str, str] | None = None,
    sees: bool = False,
    negative: str | None = None,
    prompt: str = PROMPT,
    loras: Mapping[str, float] | None = None,
    denoise: Mapping[str, Any] | None = None,
) -> Graph:
    """`image` starts the clip; with `sees` the language model looks at it too. `loras`: key -> weight."""
    settings = {**SMALL, **(denoise or {})}
    graph: Graph = {"id": "hunyuan", "nodes": {}, "edges": []}
    add(graph, "loader", "hunyuan_video_model_loader", model=dict(model))
    add(graph, "prompt", "hunyuan_video_text_encoder", prompt=prompt, **({"image": dict(image)} if image and sees else {}))
    add(graph, "denoise", "hunyuan_video_denoise", **settings)
    add(graph, "decode", "video_vae_decode")
    connect(graph, "loader.encoder", "prompt.encoder")
    connect(graph, "prompt.conditioning", "denoise.positive_conditioning")
    connect(graph, "denoise.latents", "decode.latents")
    connect(graph, "loader.vae", "decode.vae")
    if negative is not None:
        add(graph, "negative", "hunyuan_video_text_encoder", prompt=negative)
        connect(graph, "loader.encoder", "negative.encoder")
        connect(graph, "negative.conditioning", "denoise.negative_conditioning")
    if image is not None:
        size = {"width": settings["width"], "height": settings["height"]}
        add(graph, "start", "hunyuan_video_image_encoder", image=dict(image), **size)
        connect(graph, "loader.vae", "start.vae")
        connect(graph, "loader.encoder", "start.encoder")
        connect(graph, "start.start_image", "denoise.start_image")
    _connect_transformer(graph, loras or {})
    return graph


def _connect_transformer(graph: Graph, loras: Mapping[str, float]) -> None:
    source = "loader.transformer"
    for index, (key, weight) in enumerate(loras.items()):
        identity = {"key": key, "hash": "", "name": f"lora {index}", "base": "hunyuan-video", "type": "lora"}
        add(graph, f"lora{index}", "hunyuan_video_lora_loader", lora=identity, weight=weight)
        connect(graph, source, f"lora{index}.transformer")
        source = f"lora{index}.transformer"
    connect(graph, source, "denoise.transformer")


def loader_graph(model: Mapping[str, Any], **fields: Any) -> Graph:
    """The loader alone, as node `model`."""
    graph: Graph = {"nodes": {}, "edges": []}
    add(graph, "model", "hunyuan_video_model_loader", model=dict(model), **fields)
    return graph


def refused_unloaded(engine: Engine, graph: Graph) -> str:
    """The message with which the graph stops; no model may have been loaded for it."""
    from invokeai_video_nodes.headless import NodeError

    cache = engine.services.model_manager.load.ram_cache
    before = set(cache._cached_models)
    with pytest.raises(NodeError) as caught:
        engine.run(graph)

    assert set(cache._cached_models) == before
    return str(caught.value)
