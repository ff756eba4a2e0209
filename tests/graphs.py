"""Graphs for tests, as the plain dicts that InvokeAI's API takes, and pictures to feed them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Graph = dict[str, Any]
DEFAULT_PROMPT = "a red circle moves to the right"


def edge(source: str, destination: str) -> dict[str, Any]:
    """ "node.field" to "node.field"."""
    ends = [dict(zip(("node_id", "field"), end.split("."), strict=True)) for end in (source, destination)]
    return {"source": ends[0], "destination": ends[1]}


def text_to_video(
    model: Mapping[str, Any],
    *,
    prompt: str = DEFAULT_PROMPT,
    negative: str | None = None,
    loader: Mapping[str, Any] | None = None,
    denoise: Mapping[str, Any] | None = None,
    decode: Mapping[str, Any] | None = None,
) -> Graph:
    """Prompt to MP4 at 8 frames of 64x64 in 3 steps; the mappings set fields of the nodes model, denoise and decode."""
    graph: Graph = {"nodes": {}, "edges": []}
    add(graph, "model", "z_image_video_model_loader", model=dict(model), **(loader or {}))
    add(graph, "prompt", "z_image_text_encoder", prompt=prompt)
    add_denoise(graph, "denoise", **(denoise or {}))
    add(graph, "decode", "z_image_video_decode", **(decode or {}))
    connect(graph, "model.qwen3_encoder", "prompt.qwen3_encoder")
    connect(graph, "denoise.latents", "decode.latents")
    connect(graph, "model.vae", "decode.vae")
    if negative is not None:
        add(graph, "negative", "z_image_text_encoder", prompt=negative)
        connect(graph, "model.qwen3_encoder", "negative.qwen3_encoder")
        connect(graph, "negative.conditioning", "denoise.negative_conditioning")
    return graph


def add(graph: Graph, node_id: str, node_type: str, **fields: Any) -> None:
    """Put a node into the graph."""
    graph["nodes"][node_id] = {"id": node_id, "type": node_type, **fields}


def add_denoise(graph: Graph, node_id: str, **fields: Any) -> None:
    """Put a small denoise node into the graph and connect the model and the prompt to it."""
    small = {"num_frames": 8, "width": 64, "height": 64, "steps": 3, "seed": 1}
    add(graph, node_id, "z_image_video_denoise", **{**small, **fields})
    connect(graph, "model.transformer", f"{node_id}.transformer")
    connect(graph, "prompt.conditioning", f"{node_id}.positive_conditioning")


def connect(graph: Graph, source: str, destination: str) -> None:
    """Connect two fields; an input field takes the newest connection unless it is a collector's."""
    graph["edges"].append(edge(source, destination))


def disconnect(graph: Graph, destination: str) -> None:
    """Remove what flows into a field."""
    node_id, field = destination.split(".")
    graph["edges"] = [e for e in graph["edges"] if e["destination"] != {"node_id": node_id, "field": field}]


def without_decode(graph: Graph) -> Graph:
    """The same graph, ending in latents."""
    graph["nodes"].pop("decode", None)
    graph["edges"] = [e for e in graph["edges"] if e["destination"]["node_id"] != "decode"]
    return graph


def only(graph: Graph, *kept: str) -> Graph:
    """The graph with the named nodes and what connects them."""
    graph["nodes"] = {name: node for name, node in graph["nodes"].items() if name in kept}
    graph["edges"] = [e for e in graph["edges"] if e["source"]["node_id"] in kept and e["destination"]["node_id"] in kept]
    return graph


def picture(width: int = 64, height: int = 64, *, shade: int = 0) -> np.ndarray:
    """A gradient with a bright square, uint8 [H, W, 3]."""
    rows, columns = np.mgrid[0:height, 0:width]
    image = np.stack([rows * 255 // height, columns * 255 // width, np.full_like(rows, shade)], axis=-1).astype(np.uint8)
    image[height // 4 : height // 2, width // 4 : width // 2] = 255
    return image
