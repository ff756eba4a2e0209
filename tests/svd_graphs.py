"""Stable Video Diffusion graphs for tests: a picture to an MP4 at 64x48 in 2 steps, and the same with diffusers' pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from graphs import Graph, add, connect
from PIL import Image

SMALL = {"num_frames": 14, "steps": 2, "seed": 3, "fps": 12, "motion_bucket_id": 200, "noise_aug_strength": 0.3}
WIDTH, HEIGHT = 64, 48  # pixels


def start_picture(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A picture in which every pixel differs."""
    pixels = np.arange(width * height * 3, dtype=np.uint32).reshape(height, width, 3) * 7 % 256
    return Image.fromarray(pixels.astype(np.uint8))


def image_to_video(
    model: Mapping[str, Any],
    image: Mapping[str, str],
    *,
    denoise: Mapping[str, Any] | None = None,
    decode: Mapping[str, Any] | None = None,
) -> Graph:
    """Nodes loader, denoise and decode; the mappings set their fields."""
    graph: Graph = {"id": "svd", "nodes": {}, "edges": []}
    add(graph, "loader", "svd_model_loader", model=dict(model))
    add(graph, "denoise", "svd_denoise", image=dict(image), **{**SMALL, **(denoise or {})})
    add(graph, "decode", "svd_decode", **{"crf": 0, "decode_chunk_size": 4, **(decode or {})})
    connect(graph, "loader.model", "denoise.model")
    connect(graph, "loader.vae", "denoise.vae")
    connect(graph, "denoise.latents", "decode.latents")
    connect(graph, "loader.vae", "decode.vae")
    return graph


def with_diffusers(pipeline: Any, *, output_type: str = "latent", **changes: Any) -> Any:
    """What diffusers' pipeline makes of the same picture and settings; `changes` in our node's words."""
    settings = {**SMALL, **changes}
    return pipeline(
        start_picture(),
        width=WIDTH,
        height=HEIGHT,
        num_inference_steps=settings.pop("steps"),
        generator=torch.Generator().manual_seed(settings.pop("seed")),
        output_type=output_type,
        **settings,
    ).frames
