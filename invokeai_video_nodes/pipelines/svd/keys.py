"""The original single file of Stable Video Diffusion -> diffusers' names, for its three models.

    model.diffusion_model.input_blocks.1.0.time_stack.in_layers.2   unet: down_blocks.0.resnets.0.temporal_res_block.conv1
    model.diffusion_model.output_blocks.5.1.time_mixer.mix_factor   unet: up_blocks.1.attentions.2.time_mixer.mix_factor
    first_stage_model.decoder.up.3.block.0.mix_factor               vae: decoder.up_blocks.0.resnets.0.time_mixer.mix_factor
    conditioner.embedders.3.encoder.encoder.mid.attn_1.q            vae: encoder.mid_block.attentions.0.to_q
    conditioner.embedders.0.open_clip.model.visual.ln_pre           image encoder: vision_model.pre_layrnorm

The file holds two encoders of pictures. The one that SVD reads its start picture with is embedder 3's, and diffusers' VAE has it
too; the other, of the first stage, is used where a file was stripped of embedder 3. Named as the conversion script in diffusers'
repository has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import BadInput

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
PICTURE_PREFIX = "conditioner.embedders.3.encoder."
IMAGE_ENCODER_PREFIX = "conditioner.embedders.0.open_clip.model.visual."
# A layer that SVD's UNet has and no image model's; where it is, the file is one of ours.
MARK = "model.diffusion_model.input_blocks.1.0.time_stack.in_layers.2.weight"

Weights = dict[str, Any]

# What each model's layers begin with.
PREFIXES = {"unet": (UNET_PREFIX,), "vae": (VAE_PREFIX, PICTURE_PREFIX), "image_encoder": (IMAGE_ENCODER_PREFIX,)}

_UNET_TOP = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
# A layer of a residual block, in space or (under time_stack) in time.
_IN_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_IN_ATTENTION = (
    (re.compile(r"^time_stack\."), "temporal_transformer_blocks."),
    (re.compile(r"^time_pos_embed\.0\."), "time_pos_embed.linear_1."),
    (re.compile(r"^time_pos_embed\.2\."), "time_pos_embed.linear_2."),
)
_VAE_TOP = {"conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out", "conv_out.time_mix_conv": "time_conv_out"}
_IN_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_IMAGE_ENCODER = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^class_embedding$", "vision_model.embeddings.class_embedding"),
        (r"^positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
        (r"^conv1\.weight$", "vision_model.embeddings.patch_embedding.weight"),
        (r"^ln_pre\.", "vision_model.pre_layrnorm."),
        (r"^ln_post\.", "vision_model.post_layernorm."),
        (r"^transformer\.resblocks\.(\d+)\.ln_([12])\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
        (r"^transformer\.resblocks\.(\d+)\.attn\.out_proj\.", r"vision_model.encoder.layers.\1.self_attn.out_proj."),
        (r"^transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"vision_model.encoder.layers.\1.mlp.fc1."),
        (r"^transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"vision_model.encoder.layers.\1.mlp.fc2."),
    )
)
_FUSED = re.compile(r"^transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$")


@dataclass(frozen=True)
class Parts:
    """The weights of a file's three models under diffusers' names."""

    unet: Weights
    vae: Weights
    image_encoder: Weights


def is_original(names: Any) -> bool:
    """Whether these keys are of an original single file of SVD."""
    return MARK in names


def to_diffusers(weights: Mapping[str, Any]) -> Parts:
    """A file's weights -> those of UNetSpatioTemporalConditionModel, AutoencoderKLTemporalDecoder, CLIPVisionModelWithProjection.

    What else is in the file (schedules' buffers, the decoder of embedder 3) is left out. Raises BadInput where a model is missing,
    or has a layer that SVD's has not.
    """
    return Parts(**{part: part_to_diffusers(part, weights) for part in PREFIXES})


def part_names(part: str, names: Iterable[str]) -> list[str]:
    """Those of a file's layers that one of its models (a key of PREFIXES) is made of."""
    return [name for name in names if name.startswith(PREFIXES[part])]


def part_to_diffusers(part: str, weights: Mapping[str, Any]) -> Weights:
    """One of the models' weights, out of a whole file or of `part_names` alone."""
    if part == "vae":
        return vae_to_diffusers(weights)
    own = _of(weights, PREFIXES[part][0])
    return unet_to_diffusers(own) if part == "unet" else image_encoder_to_diffusers(own)


def unet_to_diffusers(weights: Mapping[str, Any]) -> Weights:
    """The UNet's weights, without their prefix."""
    per_level = _layers_per_level(weights)
    return {_known(name, _unet_name(name, per_level), "UNet"): value for name, value in weights.items()}


def vae_to_diffusers(weights: Mapping[str, Any]) -> Weights:
    """The VAE's weights, out of a whole file: the start picture's encoder, and the temporal decoder."""
    prefix = PICTURE_PREFIX if any(name.startswith(PICTURE_PREFIX + "encoder.") for name in weights) else VAE_PREFIX
    encoder = {"encoder." + name: value for name, value in _of(weights, prefix + "encoder.").items()}
    decoder = {"decoder." + name: value for name, value in _of(weights, VAE_PREFIX + "decoder.").items()}
    levels = 1 + max((int(match[1]) for name in decoder if (match := re.match(r"decoder\.up\.(\d+)\.", name))), default=0)
    renamed: Weights = {}
    for name, value in {**encoder, **decoder}.items():
        new = _known(name, _vae_name(name, levels), "VAE")
        # Attention's 1x1 convolutions are linear layers in diffusers.
        renamed[new] = value[:, :, 0, 0] if ".attentions." in new and value.ndim == 4 else value
    renamed.update(_quant_conv(weights, prefix, like=renamed["encoder.conv_out.weight"]))
    return renamed


def image_encoder_to_diffusers(weights: Mapping[str, Any]) -> Weights:
    """OpenCLIP's vision model, without its prefix, under transformers' names; its fused q, k and v are cut in three."""
    renamed: Weights = {}
    for name, value in weights.items():
        if match := _FUSED.match(name):
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                renamed[f"vision_model.encoder.layers.{match[1]}.self_attn.{part}_proj.{match[2]}"] = rows
        elif name == "proj":
            renamed["visual_projection.weight"] = value.T.contiguous()
        else:
            new = next((pattern.sub(new, name) for pattern, new in _IMAGE_ENCODER if pattern.match(name)), None)
            renamed[_known(name, new, "image encoder")] = value
    return renamed


def _of(weights: Mapping[str, Any], prefix: str) -> Weights:
    found = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    if not found:
        raise BadInput.expected("SVD file", f"layers named {prefix}...", "none")
    return found


def _known(name: str, new: str | None, model: str) -> str:
    if new is None:
        raise BadInput.expected(f"{model} weights", "layers of Stable Video Diffusion's original release", name)
    return new


def _layers_per_level(weights: Mapping[str, Any]) -> int:
    """Residual blocks of a level of the UNet: input_blocks 0 is conv_in, and each level but the last ends with its downsampler."""
    downs = [int(match[1]) for name in weights if (match := re.match(r"input_blocks\.(\d+)\.0\.op\.weight$", name))]
    blocks = [int(match[1]) for name in weights if (match := re.match(r"input_blocks\.(\d+)\.", name))]
    return (min(downs) if downs else max(blocks, default=1) + 1) - 1


def _unet_name(name: str, per_level: int) -> str | None:
    layer, _, parameter = name.rpartition(".")
    if layer in _UNET_TOP:
        return f"{_UNET_TOP[layer]}.{parameter}"
    if match := re.match(r"middle_block\.([012])\.(.+)$", name):
        index, rest = int(match[1]), match[2]
        return _attention("mid_block.attentions.0", rest) if index == 1 else _resnet(f"mid_block.resnets.{index // 2}", rest)
    if match := re.match(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)$", name):
        # Both count per_level + 1 to a level; downwards the last is the downsampler, upwards one more residual block.
        level, index = divmod(int(match[2]) - (match[1] == "input"), per_level + 1)
        way, rest = "down" if match[1] == "input" else "up", match[4]
        block = f"{way}_blocks.{level}"
        if rest.startswith(("op.", "conv.")):
            return f"{block}.{way}samplers.0.conv.{parameter}"
        return _resnet(f"{block}.resnets.{index}", rest) if match[3] == "0" else _attention(f"{block}.attentions.{index}", rest)
    return None


def _resnet(block: str, rest: str) -> str | None:
    if rest == "time_mixer.mix_factor":
        return f"{block}.{rest}"
    kind = "temporal" if rest.startswith("time_stack.") else "spatial"
    layer, _, parameter = rest.removeprefix("time_stack.").rpartition(".")
    return f"{block}.{kind}_res_block.{_IN_RESNET[layer]}.{parameter}" if layer in _IN_RESNET else None


def _attention(block: str, rest: str) -> str:
    for pattern, new in _IN_ATTENTION:
        rest = pattern.sub(new, rest)
    return f"{block}.{rest}"


def _vae_name(name: str, levels: int) -> str | None:
    half, _, rest = name.partition(".")
    layer, _, parameter = rest.rpartition(".")
    if match := re.match(r"mid\.attn_1\.(\w+)\.(weight|bias)$", rest):
        return f"{half}.mid_block.attentions.0.{_IN_VAE_ATTENTION[match[1]]}.{match[2]}" if match[1] in _IN_VAE_ATTENTION else None
    if match := re.match(r"mid\.block_([12])\.(.+)$", rest):
        return _vae_resnet(half, f"mid_block.resnets.{int(match[1]) - 1}", match[2])
    if match := re.match(r"(down|up)\.(\d+)\.(.+)$", rest):
        # The original counts the decoder's levels from the picture, diffusers from the latents.
        level = levels - 1 - int(match[2]) if match[1] == "up" else int(match[2])
        if found := re.match(r"block\.(\d+)\.(.+)$", match[3]):
            return _vae_resnet(half, f"{match[1]}_blocks.{level}.resnets.{found[1]}", found[2])
        return f"{half}.{match[1]}_blocks.{level}.{match[1]}samplers.0.{match[3].removeprefix(match[1] + 'sample.')}"
    return f"{half}.{_VAE_TOP[layer]}.{parameter}" if layer in _VAE_TOP else None


def _vae_resnet(half: str, block: str, rest: str) -> str | None:
    rest = rest.replace("nin_shortcut", "conv_shortcut")
    if half == "encoder":
        return f"{half}.{block}.{rest}"
    if rest == "mix_factor":
        return f"{half}.{block}.time_mixer.mix_factor"
    if rest.startswith("time_stack."):
        return _resnet(f"{half}.{block}", rest)
    return f"{half}.{block}.spatial_res_block.{rest}"


def _quant_conv(weights: Mapping[str, Any], prefix: str, *, like: torch.Tensor) -> Weights:
    """The 1x1 convolution after the encoder; a first stage without one has the identity in its place."""
    found = {name: weights[prefix + name] for name in ("quant_conv.weight", "quant_conv.bias") if prefix + name in weights}
    if found:
        return found
    channels = like.shape[0]
    identity = torch.eye(channels, dtype=like.dtype, device=like.device)[:, :, None, None]
    return {"quant_conv.weight": identity, "quant_conv.bias": torch.zeros(channels, dtype=like.dtype, device=like.device)}
