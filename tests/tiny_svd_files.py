"""The original single file of Stable Video Diffusion, written from diffusers' models: by walking their blocks, in the order in
which the original release counts its own. Knows nothing of the converter that it tests. Imports no InvokeAI.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
Weights = dict[str, torch.Tensor]


def original_file(pipeline: Any, *, embedder: bool = True) -> Weights:
    """All keys of svd.safetensors for this pipeline's models; without `embedder` as files are that lack embedder 3."""
    vae = dict(original_vae(pipeline.vae))
    encoder = {name: value for name, value in vae.items() if not name.startswith("decoder.")}
    weights = {"model.diffusion_model." + name: value for name, value in original_unet(pipeline.unet)}
    weights |= {"first_stage_model." + name: value for name, value in vae.items()}
    if embedder:
        weights |= {"conditioner.embedders.3.encoder." + name: value for name, value in encoder.items()}
        # The first stage's encoder is another one, and has no such layer.
        for name in encoder:
            weights["first_stage_model." + name] = torch.full_like(encoder[name], 9.0)
        del weights["first_stage_model.quant_conv.weight"], weights["first_stage_model.quant_conv.bias"]
    visual = original_image_encoder(pipeline.image_encoder)
    weights |= {"conditioner.embedders.0.open_clip.model.visual." + name: value for name, value in visual}
    weights["denoiser.sigmas"] = torch.zeros(3)
    return {name: value.contiguous() for name, value in weights.items()}


def config_of(pipeline: Any) -> dict[str, dict[str, Any]]:
    """The configs that a file of other than public sizes has to bring."""
    configs = {"unet": dict(pipeline.unet.config), "vae": dict(pipeline.vae.config)}
    return {**configs, "image_encoder": pipeline.image_encoder.config.to_dict()}


def save_original(
    path: Path, pipeline: Any, *, with_frames: bool = True, dtype: torch.dtype = torch.float32, embedder: bool = True
) -> Path:
    """A single file of the original release, its config in the metadata; `with_frames`: the config says the trained frames too."""
    config = config_of(pipeline)
    if not with_frames:
        del config["unet"]["num_frames"]
    weights = {name: value.to(dtype) for name, value in original_file(pipeline, embedder=embedder).items()}
    save_file(weights, path, metadata={"config": json.dumps(config)})
    return path


def _parameters(module: Any, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in module.state_dict().items():
        yield f"{prefix}.{name}", value


def _renamed(module: Any, prefix: str, names: dict[str, str]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in module.state_dict().items():
        layer, _, parameter = name.rpartition(".")
        yield f"{prefix}.{names.get(layer, layer)}.{parameter}", value


def _resnet(block: Any, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    yield from _renamed(block.spatial_res_block, prefix, RESNET)
    yield from _renamed(block.temporal_res_block, f"{prefix}.time_stack", RESNET)
    yield f"{prefix}.time_mixer.mix_factor", block.time_mixer.mix_factor.data


def _attention(block: Any, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in block.state_dict().items():
        for new, old in (
            ("temporal_transformer_blocks.", "time_stack."),
            ("time_pos_embed.linear_1", "time_pos_embed.0"),
            ("time_pos_embed.linear_2", "time_pos_embed.2"),
        ):
            if name.startswith(new):
                name = old + name.removeprefix(new)
        yield f"{prefix}.{name}", value


def original_unet(unet: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The UNet's weights: input_blocks and output_blocks are counted through, samplers lie among them."""
    yield from _parameters(unet.time_embedding.linear_1, "time_embed.0")
    yield from _parameters(unet.time_embedding.linear_2, "time_embed.2")
    yield from _parameters(unet.add_embedding.linear_1, "label_emb.0.0")
    yield from _parameters(unet.add_embedding.linear_2, "label_emb.0.2")
    yield from _parameters(unet.conv_in, "input_blocks.0.0")
    number = 1
    for block in unet.down_blocks:
        for index, resnet in enumerate(block.resnets):
            yield from _resnet(resnet, f"input_blocks.{number}.0")
            if hasattr(block, "attentions"):
                yield from _attention(block.attentions[index], f"input_blocks.{number}.1")
            number += 1
        for sampler in block.downsamplers or ():
            yield from _parameters(sampler.conv, f"input_blocks.{number}.0.op")
            number += 1
    yield from _resnet(unet.mid_block.resnets[0], "middle_block.0")
    yield from _attention(unet.mid_block.attentions[0], "middle_block.1")
    yield from _resnet(unet.mid_block.resnets[1], "middle_block.2")
    number = 0
    for block in unet.up_blocks:
        for index, resnet in enumerate(block.resnets):
            yield from _resnet(resnet, f"output_blocks.{number}.0")
            attends = hasattr(block, "attentions")
            if attends:
                yield from _attention(block.attentions[index], f"output_blocks.{number}.1")
            if block.upsamplers and index == len(block.resnets) - 1:
                yield from _parameters(block.upsamplers[0].conv, f"output_blocks.{number}.{2 if attends else 1}.conv")
            number += 1
    yield from _parameters(unet.conv_norm_out, "out.0")
    yield from _parameters(unet.conv_out, "out.2")


def original_vae(vae: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The VAE's weights: attention as 1x1 convolutions, the decoder's levels counted from the picture."""
    plain, shortcut = vae.encoder, {"conv_shortcut": "nin_shortcut"}
    for name in ("conv_in", "conv_out"):
        yield from _parameters(getattr(plain, name), f"encoder.{name}")
        yield from _parameters(getattr(vae.decoder, name), f"decoder.{name}")
    yield from _parameters(plain.conv_norm_out, "encoder.norm_out")
    yield from _parameters(vae.decoder.conv_norm_out, "decoder.norm_out")
    yield from _parameters(vae.decoder.time_conv_out, "decoder.conv_out.time_mix_conv")
    yield from _parameters(vae.quant_conv, "quant_conv")
    for level, block in enumerate(plain.down_blocks):
        for index, resnet in enumerate(block.resnets):
            yield from _renamed(resnet, f"encoder.down.{level}.block.{index}", shortcut)
        for sampler in block.downsamplers or ():
            yield from _parameters(sampler.conv, f"encoder.down.{level}.downsample.conv")
    for half, mid in (("encoder", plain.mid_block), ("decoder", vae.decoder.mid_block)):
        for name, value in _renamed(mid.attentions[0], f"{half}.mid.attn_1", VAE_ATTENTION):
            yield name, value[:, :, None, None] if value.ndim == 2 else value
    for index, resnet in enumerate(plain.mid_block.resnets, 1):
        yield from _renamed(resnet, f"encoder.mid.block_{index}", shortcut)
    for index, resnet in enumerate(vae.decoder.mid_block.resnets, 1):
        yield from _decoder_resnet(resnet, f"decoder.mid.block_{index}")
    for level, block in enumerate(reversed(vae.decoder.up_blocks)):
        for index, resnet in enumerate(block.resnets):
            yield from _decoder_resnet(resnet, f"decoder.up.{level}.block.{index}")
        for sampler in block.upsamplers or ():
            yield from _parameters(sampler.conv, f"decoder.up.{level}.upsample.conv")


def _decoder_resnet(block: Any, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    yield from _renamed(block.spatial_res_block, prefix, {"conv_shortcut": "nin_shortcut"})
    yield from _renamed(block.temporal_res_block, f"{prefix}.time_stack", RESNET)
    yield f"{prefix}.mix_factor", block.time_mixer.mix_factor.data


def original_image_encoder(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """OpenCLIP's names: q, k and v in one, the projection lying down."""
    vision = model.vision_model
    yield "class_embedding", vision.embeddings.class_embedding.data
    yield "positional_embedding", vision.embeddings.position_embedding.weight.data
    yield "conv1.weight", vision.embeddings.patch_embedding.weight.data
    yield from _parameters(vision.pre_layrnorm, "ln_pre")
    yield from _parameters(vision.post_layernorm, "ln_post")
    yield "proj", model.visual_projection.weight.data.T
    for index, layer in enumerate(vision.encoder.layers):
        prefix, attention = f"transformer.resblocks.{index}", layer.self_attn
        for parameter in ("weight", "bias"):
            parts = [getattr(part, parameter).data for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
            yield f"{prefix}.attn.in_proj_{parameter}", torch.cat(parts)
        yield from _parameters(attention.out_proj, f"{prefix}.attn.out_proj")
        yield from _parameters(layer.layer_norm1, f"{prefix}.ln_1")
        yield from _parameters(layer.layer_norm2, f"{prefix}.ln_2")
        yield from _parameters(layer.mlp.fc1, f"{prefix}.mlp.c_fc")
        yield from _parameters(layer.mlp.fc2, f"{prefix}.mlp.c_proj")
