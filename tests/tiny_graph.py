"""The smallest graph that makes a video: prompt in, four frames of 32x32 out."""

from __future__ import annotations

from typing import Any


def text_to_video(model: dict[str, Any], *, prompt: str = "a red circle", steps: int = 2) -> dict[str, Any]:
    """A graph for `enqueue_batch` that runs the model with this record."""
    identifier = {field: model[field] for field in ("key", "hash", "name", "base", "type")}
    nodes = [
        {"id": "loader", "type": "z_image_video_model_loader", "model": identifier},
        {"id": "prompt", "type": "z_image_text_encoder", "prompt": prompt},
        {
            "id": "denoise",
            "type": "z_image_video_denoise",
            "num_frames": 4,
            "fps": 8,
            "f_patch_size": 2,
            "width": 32,
            "height": 32,
            "steps": steps,
            "seed": 1,
            "guidance_scale": 1.0,
        },
        {"id": "decode", "type": "z_image_video_decode"},
    ]
    edges = [
        ("loader", "qwen3_encoder", "prompt", "qwen3_encoder"),
        ("loader", "transformer", "denoise", "transformer"),
        ("prompt", "conditioning", "denoise", "positive_conditioning"),
        ("denoise", "latents", "decode", "latents"),
        ("loader", "vae", "decode", "vae"),
    ]
    return {
        "id": "tiny-video",
        "nodes": {node["id"]: node for node in nodes},
        "edges": [
            {"source": {"node_id": source, "field": out}, "destination": {"node_id": target, "field": into}}
            for source, out, target, into in edges
        ],
    }
