"""Tiny IP-Adapter, image encoder and T2I-Adapter for `tiny_sd1`, written as InvokeAI's model manager takes them.

    save_image_encoder(folder / IMAGE_ENCODER)   CLIP's vision model: 224 px pictures, 16 patches, 8 features
    save_ip_adapter(path)                        a single file, as they are published
    save_t2i_adapter(folder)                     diffusers' folder
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import T2IAdapter
from safetensors.torch import save_file
from tiny_animatediff import TEXT_FEATURES, tiny_ip_adapter
from tiny_animatediff_files import TINY_WIDTHS
from tiny_sd1 import tiny_sd1_unet
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

# What InvokeAI's IP-Adapter node looks for under its choice ENCODER_CHOICE.
IMAGE_ENCODER, ENCODER_CHOICE = "clip-vit-large-patch14", "ViT-L"
_FEATURES, _PICTURE_TOKENS = 8, 4


def save_image_encoder(folder: Path, *, seed: int = 20) -> Path:
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        projection_dim=_FEATURES,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=224,
        patch_size=56,
    )
    CLIPVisionModelWithProjection(config).eval().save_pretrained(folder)
    return folder


def ip_adapter_file(*, seed: int = 21, text_features: int = TEXT_FEATURES) -> dict[str, dict[str, Any]]:
    """The content of an IP-Adapter file, as diffusers and InvokeAI read it; other `text_features` make it one for another base."""
    layers = tiny_ip_adapter(seed=seed, unet=tiny_sd1_unet(text_features=text_features)).state_dict()
    tokens = _PICTURE_TOKENS * text_features
    projection = {"proj.weight": torch.randn(tokens, _FEATURES), "proj.bias": torch.randn(tokens)}
    projection |= {"norm.weight": torch.ones(text_features), "norm.bias": torch.zeros(text_features)}
    return {"image_proj": projection, "ip_adapter": layers}


def save_ip_adapter(path: Path, **options: Any) -> Path:
    parts = ip_adapter_file(**options)
    save_file({f"{part}.{name}": tensor.contiguous() for part, tensors in parts.items() for name, tensor in tensors.items()}, path)
    return path


def tiny_t2i_adapter(*, seed: int = 22, **settings: Any) -> T2IAdapter:
    torch.manual_seed(seed)
    config = {"in_channels": 3, "channels": list(TINY_WIDTHS), "num_res_blocks": 1, "downscale_factor": 8}
    return T2IAdapter(**(config | settings)).eval()


def save_t2i_adapter(folder: Path, **settings: Any) -> Path:
    tiny_t2i_adapter(**settings).save_pretrained(folder)
    return folder
