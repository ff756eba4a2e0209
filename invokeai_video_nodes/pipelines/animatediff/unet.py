"""A loaded SD1.5 UNet and a motion module -> one video UNet that borrows both, and gives them back as they were.

`motion_unet` builds the frame of a UNetMotionModel without memory and hangs the two models' own layers into it: nothing is
copied, so LoRAs, quantized or partly loaded layers keep working, and nothing is written into the two models.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor2_0,
    IPAdapterAttnProcessor,
    IPAdapterAttnProcessor2_0,
)
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D, UNetMotionModel

from ..errors import BadInput

# One number, one per frame, or a mask [F or 1, h, w] at the latents' size; 1 is what the module was trained to do, 0 no motion.
MotionScale: TypeAlias = float | Sequence[float] | torch.Tensor

_SD1_TEXT_WIDTH = 768
_STORAGE_ONLY = (torch.float8_e4m3fn, torch.float8_e5m2)
_BASES = {1024: "SD 2", 2048: "SDXL"}
# What a UNet block and its motion block call the same; a block has some of them.
_SHARED = ("resnets", "attentions", "downsamplers", "upsamplers")
_WITH_PICTURE = (IPAdapterAttnProcessor, IPAdapterAttnProcessor2_0)


@contextmanager
def motion_unet(unet: Any, adapter: Any) -> Iterator[Any]:
    """Yield a UNetMotionModel of the layers of `unet` (UNet2DConditionModel, SD1.5) and `adapter` (MotionAdapter).

    Inside, every attention of the UNet runs diffusers' default processor, except those of a diffusers IP-Adapter; afterwards
    each has the processor that it came with. Both models must be on one device. Raises BadInput where the two do not fit.
    """
    check_fit(unet.config, adapter.config)
    with _default_attention(unet):
        yield _joined(unet, adapter)


def check_fit(unet: Any, adapter: Any) -> None:
    """Raise BadInput unless a motion module of this config belongs to a UNet of that one; reads the configs only."""
    width = unet["cross_attention_dim"]
    if width != _SD1_TEXT_WIDTH:
        raise BadInput.expected("main model", "Stable Diffusion 1.5", _BASES.get(width, f"a UNet for text features of width {width}"))
    if unet["in_channels"] != unet["out_channels"]:
        got = f"one that reads {unet['in_channels']} channels, for inpainting or depth"
        raise BadInput.expected("main model", f"one that reads {unet['out_channels']} latent channels", got)
    if adapter["conv_in_channels"]:
        raise BadInput.expected("motion module", "one without an input layer of its own", "one for PIA")
    if list(unet["block_out_channels"]) != list(adapter["block_out_channels"]):
        raise BadInput.expected("motion module: widths", list(unet["block_out_channels"]), list(adapter["block_out_channels"]))
    ours, theirs = (_per_block(config, key) for config, key in ((unet, "layers_per_block"), (adapter, "motion_layers_per_block")))
    if ours != theirs:
        raise BadInput.expected("motion module: layers per block", ours, theirs)


def compute_dtype(model: Any) -> torch.dtype:
    """The dtype that a model computes in: where its layers are stored in 8 bits, that of the layers that are not."""
    dtype: torch.dtype = next((found.dtype for found in model.parameters() if found.dtype not in _STORAGE_ONLY), model.dtype)
    return dtype


@contextmanager
def motion_scale(model: Any, scale: MotionScale, *, frames: Sequence[int] | None = None) -> Iterator[None]:
    """Multiply what each temporal layer of `model` (UNetMotionModel) adds to the picture's features by `scale`.

    `frames`: which of the clip's frames the model sees, None: all. At 1.0 nothing is hooked in, and at 0.0 the model gives
    what the UNet gives for each frame alone. Check the scale with `check_motion_scale` first.
    """
    if isinstance(scale, int | float) and scale == 1.0:
        yield
        return
    factor = _factor(scale)
    if frames is not None and factor.shape[0] > 1:
        factor = factor[list(frames)]
    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, AnimateDiffTransformer3D):
                hooks.callback(module.register_forward_hook(_scaled_by(factor)).remove)
        yield


def check_motion_scale(scale: MotionScale, *, frames: int, height: int, width: int) -> None:
    """Raise BadInput unless `scale` suits a clip of these latent sizes."""
    factor = _factor(scale)
    if not bool(torch.isfinite(factor).all()) or bool((factor < 0).any()):
        raise BadInput.expected("motion_scale", "numbers of 0 or more", scale if isinstance(scale, int | float) else "others", 1.0)
    if isinstance(scale, torch.Tensor):
        if scale.ndim != 3 or scale.shape[0] not in (1, frames) or tuple(scale.shape[1:]) != (height, width):
            raise BadInput.expected("motion_scale mask", f"[1 or {frames}, {height}, {width}]", list(scale.shape), [frames, height, width])
    elif isinstance(scale, Sequence) and len(scale) != frames:
        raise BadInput.expected("motion_scale list", f"{frames} numbers, one per frame", f"a list of {len(scale)}")


def _joined(unet: Any, adapter: Any) -> Any:
    with torch.device("meta"):
        model = UNetMotionModel(**_config(unet.config, adapter.config))
    for name in ("conv_in", "time_proj", "time_embedding", "conv_norm_out", "conv_act", "conv_out"):
        setattr(model, name, getattr(unet, name))
    if unet.encoder_hid_proj is not None:
        model.encoder_hid_proj = unet.encoder_hid_proj
        model.register_to_config(encoder_hid_dim_type=unet.config.encoder_hid_dim_type)
    blocks = [(model.mid_block, unet.mid_block, adapter.mid_block)]
    blocks += zip(model.down_blocks, unet.down_blocks, adapter.down_blocks, strict=True)
    blocks += zip(model.up_blocks, unet.up_blocks, adapter.up_blocks, strict=True)
    for block, spatial, temporal in blocks:
        for name in _SHARED:
            if hasattr(spatial, name):
                setattr(block, name, getattr(spatial, name))
        if hasattr(block, "motion_modules"):
            block.motion_modules = temporal.motion_modules
    missing = [name for name, tensor in model.state_dict(keep_vars=True).items() if tensor.is_meta]
    assert not missing, f"layers without weights: {missing[:3]}"
    # Of the frame alone: train() would set it on the borrowed layers too.
    model.training = unet.training
    return model


def _config(unet: Any, adapter: Any) -> dict[str, Any]:
    """The UNetMotionModel's config, in which each of its parts has the sizes of the layers that come into it."""
    known = inspect.signature(UNetMotionModel).parameters
    config = {key: value for key, value in unet.items() if key in known}
    for key in ("down_block_types", "up_block_types"):
        direction = "Down" if key == "down_block_types" else "Up"
        config[key] = [f"CrossAttn{direction}BlockMotion" if "CrossAttn" in name else f"{direction}BlockMotion" for name in unet[key]]
    return config | {
        "num_attention_heads": unet.get("num_attention_heads") or unet["attention_head_dim"],
        "layers_per_block": adapter["motion_layers_per_block"],
        "motion_max_seq_length": adapter["motion_max_seq_length"],
        "motion_num_attention_heads": adapter["motion_num_attention_heads"],
        "use_motion_mid_block": adapter["use_motion_mid_block"],
        "temporal_transformer_layers_per_block": adapter["motion_transformer_layers_per_block"],
        "temporal_transformer_layers_per_mid_block": adapter["motion_transformer_layers_per_mid_block"],
        # Comes with the UNet's own layer, which its constructor cannot build.
        "encoder_hid_dim_type": None,
    }


def _per_block(config: Any, key: str) -> list[int]:
    layers = config[key]
    return [layers] * len(config["block_out_channels"]) if isinstance(layers, int) else list(layers)


@contextmanager
def _default_attention(unet: Any) -> Iterator[None]:
    with ExitStack() as restore:
        for module in unet.modules():
            if isinstance(module, Attention) and not isinstance(module.processor, _WITH_PICTURE):
                restore.callback(module.set_processor, module.processor)
                module.set_processor(AttnProcessor2_0())
        yield


def _factor(scale: MotionScale) -> torch.Tensor:
    """[1 or F, 1 or h, 1 or w], float32."""
    if isinstance(scale, torch.Tensor):
        return scale.float()
    return torch.tensor([scale] if isinstance(scale, int | float) else list(scale), dtype=torch.float32)[:, None, None]


def _scaled_by(factor: torch.Tensor) -> Any:
    def hook(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        features = inputs[0]  # [B * F, C, h, w]
        share = factor[:, None]
        if share.shape[-1] > 1 or share.shape[-2] > 1:
            share = torch.nn.functional.interpolate(share, size=features.shape[-2:], mode="area")
        share = share.to(device=features.device, dtype=features.dtype)
        if share.shape[0] > 1:
            share = share.repeat(features.shape[0] // share.shape[0], 1, 1, 1)
        return features + share * (output - features)

    return hook
