"""A plain sampling loop over the exported folder: what the nodes do, without InvokeAI.

Euler on Z-Image's schedule (`sigma = shift * u / (1 + (shift - 1) * u)`), guidance `negative + g * (positive - negative)`.
`start` holds latent frame 0 clean through every step, which continues a picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from transformers import AutoTokenizer, Qwen3ForCausalLM

from training.toy_model.text import encode
from training.toy_model.train_transformer import batched_forward
from training.toy_model.train_vae import decode_clip

STEPS = 12
GUIDANCE = 3.0
SHIFT = 3.0


@dataclass
class Toy:
    """The parts of an exported folder, in fp32 as InvokeAI's loader of this pack opens them on a CPU."""

    transformer: ZImageTransformer2DModel
    vae: AutoencoderKL
    encoder: Qwen3ForCausalLM
    tokenizer: object

    @classmethod
    def load(cls, folder: Path) -> Toy:
        """Open `folder` (diffusers layout, fp16 weights). Nothing is fetched from anywhere."""
        options = {"local_files_only": True, "torch_dtype": torch.float32}
        return cls(
            transformer=ZImageTransformer2DModel.from_pretrained(folder / "transformer", **options).eval(),
            vae=AutoencoderKL.from_pretrained(folder / "vae", **options).eval(),
            encoder=Qwen3ForCausalLM.from_pretrained(folder / "text_encoder", local_files_only=True, dtype=torch.float32).eval(),
            tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        )


@dataclass(frozen=True)
class Request:
    """One clip to sample. `start` is a scaled latent frame [4, 8, 8] to hold as frame 0, or None."""

    prompt: str
    seed: int
    frames: int
    f_patch_size: int
    start: torch.Tensor | None = None


def sigmas(steps: int, shift: float) -> list[float]:
    """`steps` noise levels from 1 downwards and the final 0."""
    plain = [1 - index / steps for index in range(steps)]
    return [shift * u / (1 + (shift - 1) * u) for u in plain] + [0.0]


@torch.no_grad()
def sample(
    toy: Toy, requests: list[Request], *, steps: int = STEPS, guidance: float = GUIDANCE, shift: float = SHIFT
) -> list[torch.Tensor]:
    """Latents [4, F, 8, 8] for `requests`, which must agree in frames and f_patch_size."""
    shapes = {(r.frames, r.f_patch_size) for r in requests}
    if len(shapes) != 1:
        raise ValueError(f"expected requests of one length and one f_patch_size, got {sorted(shapes)}")
    frames, f = shapes.pop()
    features = encode([r.prompt for r in requests] + [""], tokenizer=toy.tokenizer, encoder=toy.encoder)
    captions, lengths = _padded(features[:-1] + [features[-1]] * len(requests))
    x = torch.stack([torch.randn((1, 4, frames, 8, 8), generator=torch.Generator().manual_seed(r.seed))[0] for r in requests])
    levels = sigmas(steps, shift)
    for now, after in zip(levels[:-1], levels[1:], strict=True):
        _hold(x, requests)
        both = batched_forward(toy.transformer, x.repeat(2, 1, 1, 1, 1), torch.full((2 * len(x),), 1 - now), captions, lengths, f)
        positive, negative = both.chunk(2)
        x = x - (negative + guidance * (positive - negative)) * (after - now)
    _hold(x, requests)
    return list(x)


def _hold(x: torch.Tensor, requests: list[Request]) -> None:
    for index, request in enumerate(requests):
        if request.start is not None:
            x[index, :, 0] = request.start


def _padded(features: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of different lengths -> ([B, L, 64], lengths [B]) with L the next multiple of 32."""
    length = -(-max(len(row) for row in features) // 32) * 32
    table = torch.zeros(len(features), length, features[0].shape[1])
    for index, row in enumerate(features):
        table[index, : len(row)] = row
    return table, torch.tensor([len(row) for row in features])


def sample_clips(toy: Toy, requests: list[Request], *, batch: int = 16, **settings) -> list[np.ndarray]:
    """Frames [F, 64, 64, 3] uint8 of every request, in order; requests of one shape are sampled together."""
    clips: dict[int, np.ndarray] = {}
    by_shape: dict[tuple, list[int]] = {}
    for index, request in enumerate(requests):
        # A caption of over 32 tokens moves the positions of its whole batch, so it is sampled apart.
        tokens = len(toy.tokenizer(request.prompt).input_ids) + 2
        by_shape.setdefault((request.frames, request.f_patch_size, -(-tokens // 32)), []).append(index)
    for indices in by_shape.values():
        for begin in range(0, len(indices), batch):
            chosen = indices[begin : begin + batch]
            for index, latents in zip(chosen, sample(toy, [requests[i] for i in chosen], **settings), strict=True):
                clips[index] = decode_clip(toy.vae, latents)
    return [clips[index] for index in range(len(requests))]
