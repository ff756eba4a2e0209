"""Tiny random AnimateDiff models of diffusers: the real classes at toy sizes, seeded, made in a second.

They test plumbing and arithmetic, never quality. Imports no InvokeAI.

    tiny_unet(), tiny_adapter()        UNet2DConditionModel (text width 768, as SD1.5 has), MotionAdapter
    tiny_pipeline(AnimateDiffPipeline) any of diffusers' AnimateDiff pipelines around them
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, MotionAdapter, SparseControlNetModel, UNet2DConditionModel

WIDTHS, GROUPS, TEXT_FEATURES, TOKENS = (16, 32), 8, 768, 77
LATENT_CHANNELS = 4
_SPREAD = 0.2  # of weights that diffusers sets to zero, so that they change something


def tiny_unet(*, seed: int = 0, text_features: int = TEXT_FEATURES, **settings: Any) -> UNet2DConditionModel:
    """An SD1.5-like UNet of two blocks."""
    torch.manual_seed(seed)
    config = {
        "block_out_channels": WIDTHS,
        "layers_per_block": 1,
        "sample_size": 8,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": text_features,
        "attention_head_dim": 2,
        "norm_num_groups": GROUPS,
    }
    return UNet2DConditionModel(**(config | settings)).eval()


def tiny_adapter(*, seed: int = 1, max_frames: int = 32, mid_block: bool = True, **settings: Any) -> MotionAdapter:
    """A motion module of the UNet's widths; v1 and v3 have no mid block, v2 has one."""
    torch.manual_seed(seed)
    config = {
        "block_out_channels": WIDTHS,
        "motion_layers_per_block": 1,
        "motion_norm_num_groups": GROUPS,
        "motion_num_attention_heads": 2,
        "motion_max_seq_length": max_frames,
        "use_motion_mid_block": mid_block,
    }
    return MotionAdapter(**(config | settings)).eval()


def tiny_image_vae(*, seed: int = 2) -> AutoencoderKL:
    """A 2D VAE of 8x."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
    ).eval()


def tiny_controlnet(*, seed: int = 3) -> ControlNetModel:
    """A ControlNet of the tiny UNet; its output layers are random instead of zero."""
    torch.manual_seed(seed)
    model = ControlNetModel(
        block_out_channels=WIDTHS,
        layers_per_block=1,
        in_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        cross_attention_dim=TEXT_FEATURES,
        attention_head_dim=2,
        norm_num_groups=GROUPS,
        conditioning_embedding_out_channels=(8, 8, 8, 8),
    )
    return _awake(model)


def tiny_sparse_controlnet(*, seed: int = 4, simplified: bool = True) -> SparseControlNetModel:
    """A SparseCtrl; `simplified` reads latents of the keyframes (the public rgb one), else pixels (the scribble one)."""
    torch.manual_seed(seed)
    model = SparseControlNetModel(
        block_out_channels=WIDTHS,
        layers_per_block=1,
        in_channels=LATENT_CHANNELS,
        conditioning_channels=LATENT_CHANNELS if simplified else 3,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        cross_attention_dim=TEXT_FEATURES,
        attention_head_dim=2,
        norm_num_groups=GROUPS,
        motion_num_attention_heads=2,
        conditioning_embedding_out_channels=(8, 8, 8, 8),
        use_simplified_condition_embedding=simplified,
    )
    return _awake(model)


def tiny_ip_adapter(*, seed: int = 10, unet: UNet2DConditionModel | None = None) -> torch.nn.ModuleDict:
    """The layers of an IP-Adapter for `unet` (None: the tiny one), under the numbers of its cross attentions as files have them."""
    sizes = [(part.inner_dim, part.cross_attention_dim) for name, part in (unet or tiny_unet()).named_modules() if name.endswith("attn2")]
    torch.manual_seed(seed)
    return torch.nn.ModuleDict({str(2 * place + 1): _ip_layer(*size) for place, size in enumerate(sizes)})


def _ip_layer(width: int, text_features: int) -> torch.nn.ModuleDict:
    """Keys and values of pictures."""
    return torch.nn.ModuleDict({name: torch.nn.Linear(text_features, width, bias=False) for name in ("to_k_ip", "to_v_ip")})


def tiny_pipeline(pipeline_class: Any, *, scheduler: Any = None, adapter: Any = None, **parts: Any) -> Any:
    """Any of diffusers' AnimateDiff pipelines, without text encoder: it is called with prompt embeddings."""
    pipeline = pipeline_class(
        vae=tiny_image_vae(),
        text_encoder=None,
        tokenizer=None,
        unet=tiny_unet(),
        motion_adapter=adapter or tiny_adapter(),
        scheduler=scheduler or DDIMScheduler(beta_schedule="linear", steps_offset=1, clip_sample=False),
        **parts,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_prompts(*, seed: int = 5, tokens: int = TOKENS, frames: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Random positive and negative prompt embeddings [frames, tokens, 768]."""
    generator = torch.Generator().manual_seed(seed)
    positive, negative = (torch.randn(frames, tokens, TEXT_FEATURES, generator=generator) for _ in range(2))
    return positive, negative


def _awake(model: Any) -> Any:
    for parameter in model.parameters():
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=_SPREAD)
    return model.eval()
