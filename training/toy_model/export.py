"""Stage 3: write the diffusers folder that ships, fp16 safetensors, with the preview factors and nothing else.

The folder is what `ZImagePipeline.save_pretrained` would leave, so diffusers and InvokeAI both open it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from torch.nn import functional

from training.toy_model.text import build_text_encoder, build_tokenizer
from training.toy_model.train_vae import to_pixels

SHIFT = 3.0
PREVIEW_SCALE = 4
MODEL_INDEX = {
    "_class_name": "ZImagePipeline",
    "_diffusers_version": "0.40.0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3ForCausalLM"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "ZImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def export(folder: Path, *, transformer: ZImageTransformer2DModel, vae: AutoencoderKL, clips: np.ndarray, latents: torch.Tensor) -> None:
    """Write everything into `folder`, replacing what is there. `clips`/`latents` are matching samples for the preview."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokenizer = build_tokenizer()
    encoder = build_text_encoder(len(tokenizer))
    _half(transformer).save_pretrained(folder / "transformer")
    _half(vae).save_pretrained(folder / "vae")
    encoder.half().save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT, use_dynamic_shifting=False).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n")
    (folder / "latent_preview.json").write_text(json.dumps(fit_preview(clips, latents)) + "\n")


def _half(model):
    """A copy in fp16; the caller keeps its own precision."""
    import copy

    return copy.deepcopy(model).half()


def fit_preview(clips: np.ndarray, latents: torch.Tensor, *, scale: int = PREVIEW_SCALE) -> dict:
    """Least-squares factors from latents to small frames: one 3x3 convolution, then a pixel shuffle by `scale`.

    clips [N, F, 64, 64, 3] uint8 and their scaled latents [N, 4, F, 8, 8]. Returns `kernel` [3*s*s, 4, 3, 3], `bias`
    [3*s*s] and `scale`; the convolved values are RGB in -1..1, as `pipelines.preview` reads them.
    """
    z = latents.transpose(1, 2).flatten(0, 1)
    # Repeated edges, as `pipelines.preview` pads.
    patches = functional.unfold(functional.pad(z, (1, 1, 1, 1), mode="replicate"), 3).transpose(1, 2).flatten(0, 1)
    small = functional.avg_pool2d(to_pixels(clips.reshape(-1, *clips.shape[2:])), 8 // scale)
    wanted = functional.pixel_unshuffle(small, scale).flatten(2).transpose(1, 2).flatten(0, 1)
    inputs = torch.cat([patches, torch.ones(len(patches), 1)], dim=1).double()
    gram = inputs.T @ inputs + 1e-4 * len(inputs) * torch.eye(inputs.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(gram, inputs.T @ wanted.double()).float()
    kernel = solution[:-1].T.reshape(3 * scale * scale, z.shape[1], 3, 3)
    return {
        "kernel": [[[[round(v, 5) for v in row] for row in grid] for grid in channel] for channel in kernel.tolist()],
        "bias": [round(v, 5) for v in solution[-1].tolist()],
        "scale": scale,
    }
