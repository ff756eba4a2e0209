"""A tiny random Stable Video Diffusion pipeline of diffusers: the real classes at toy sizes, seeded. Imports no InvokeAI."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from invokeai_video_nodes.pipelines.svd.schedule import PUBLIC_SVD

EMBEDDING = 32


def tiny_svd(*, seed: int = 0, num_frames: int = 14) -> StableVideoDiffusionPipeline:
    """A StableVideoDiffusionPipeline: 4 latent channels, 8x, float32; `num_frames` is what it says it was trained on."""
    torch.manual_seed(seed)
    pipeline = StableVideoDiffusionPipeline(
        vae=tiny_temporal_vae(),
        image_encoder=tiny_image_encoder(),
        unet=tiny_unet(num_frames=num_frames),
        scheduler=EulerDiscreteScheduler(**PUBLIC_SVD),
        feature_extractor=CLIPImageProcessor(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_unet(*, num_frames: int = 14) -> UNetSpatioTemporalConditionModel:
    """Three levels, the last without attention, as the public one ends."""
    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64, 64),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        layers_per_block=1,
        sample_size=8,
        cross_attention_dim=EMBEDDING,
        num_attention_heads=(2, 4, 4),
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
        num_frames=num_frames,
    )
    return unet.eval().requires_grad_(False)


def tiny_temporal_vae() -> AutoencoderKLTemporalDecoder:
    """Four levels, so that it scales 8x."""
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        latent_channels=4,
        layers_per_block=1,
    )
    return vae.eval().requires_grad_(False)


def tiny_image_encoder() -> CLIPVisionModelWithProjection:
    """CLIP's vision model at its real input size of 224 pixels, in patches of 56."""
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        projection_dim=EMBEDDING,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=224,
        patch_size=56,
    )
    return CLIPVisionModelWithProjection(config).eval().requires_grad_(False)
