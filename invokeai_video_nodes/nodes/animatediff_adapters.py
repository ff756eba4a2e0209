"""InvokeAI's IP-Adapter and T2I-Adapter fields -> what AnimateDiff's core takes.

`check_adapters` refuses, by records and numbers alone. `adapters` runs IP-Adapter's image encoders and the T2I-Adapters once for all
steps, lets go of them, and keeps only the IP-Adapters' own layers on the device while the UNet runs.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Optional, TypeVar, Union

import torch
from invokeai.app.invocations.ip_adapter import IPAdapterField
from invokeai.app.invocations.t2i_adapter import T2IAdapterField
from invokeai.app.services.shared.invocation_context import InvocationContext
from invokeai.app.util.controlnet_utils import prepare_control_image
from invokeai.backend.model_manager.taxonomy import ModelType
from invokeai.backend.util.fp8 import get_model_compute_dtype
from invokeai.backend.util.mask import to_standard_float_mask

from invokeai_video_nodes.nodes.animatediff_parts import require_sd1
from invokeai_video_nodes.nodes.compute import compute_device
from invokeai_video_nodes.pipelines.animatediff.ip_adapter import IPAdapter, style_precise
from invokeai_video_nodes.pipelines.animatediff.per_step import check_weight
from invokeai_video_nodes.pipelines.animatediff.t2i_adapter import T2IAdapter
from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.shapes import ClipShape

# The field types of a denoise node.
IPAdapters = Optional[Union[IPAdapterField, list[IPAdapterField]]]
T2IAdapters = Optional[Union[T2IAdapterField, list[T2IAdapterField]]]
Field = TypeVar("Field")

_METHODS = ("full", "style", "composition", "style_strong", "style_precise")
# The UNet halves a clip's latents three times; T2I-Adapters make their features for its smallest size.
_UNET_DOWNSCALE = 8


def check_adapters(
    context: InvocationContext, ip_adapter: IPAdapters, t2i_adapter: T2IAdapters, *, shape: ClipShape, steps: Sequence[int]
) -> None:
    """Raise BadInput unless every adapter is one for Stable Diffusion 1.5 and suits a clip of this shape and runs of so many steps."""
    for ip_field in _listed(ip_adapter):
        require_sd1(context.models.get_config(ip_field.ip_adapter_model), "IP-Adapter", (ModelType.IPAdapter,))
        check_weight("IP-Adapter", ip_field.weight, steps=steps)
        _check_use(ip_field)
        _mask(context, ip_field, shape=shape)
    for t2i_field in _listed(t2i_adapter):
        require_sd1(context.models.get_config(t2i_field.t2i_adapter_model), "T2I-Adapter", (ModelType.T2IAdapter,))
        check_weight("T2I-Adapter", t2i_field.weight, steps=steps)
        if min(shape.height, shape.width) // shape.rule.spatial_factor < _UNET_DOWNSCALE:
            least = "{0}x{0}".format(_UNET_DOWNSCALE * shape.rule.spatial_factor)
            raise BadInput.expected("clip's size with a T2I-Adapter", f"at least {least}", f"{shape.width}x{shape.height}", least)


@contextmanager
def adapters(
    context: InvocationContext, ip_adapter: IPAdapters, t2i_adapter: T2IAdapters, *, shape: ClipShape
) -> Iterator[dict[str, Any]]:
    """Yield `ip_adapters` and `t2i_adapters` as the core's `denoise` takes them. Enter it before the UNet is loaded."""
    fields = _listed(ip_adapter)
    seen = [_seen(context, field) for field in fields]
    outlines = [_outline(context, field, shape=shape) for field in _listed(t2i_adapter)]
    found: list[IPAdapter] = []
    with ExitStack() as stack:
        for field, (positive, negative) in zip(fields, seen, strict=True):
            model = stack.enter_context(context.models.load(field.ip_adapter_model))
            adapter = IPAdapter(
                layers=model.attn_weights.get_attention_processor_weights,
                positive=positive,
                negative=negative,
                weight=field.weight,
                start=field.begin_step_percent,
                end=field.end_step_percent,
                blocks=field.target_blocks,
                mask=_mask(context, field, shape=shape),
            )
            found += style_precise(adapter) if field.method == "style_precise" else [adapter]
        yield {"ip_adapters": found, "t2i_adapters": outlines}


def _seen(context: InvocationContext, field: IPAdapterField) -> tuple[torch.Tensor, torch.Tensor]:
    """What the pictures say, and what none would say: [pictures, tokens, 768] each."""
    images = field.image if isinstance(field.image, list) else [field.image]
    pictures = [context.images.get_pil(image.image_name, mode="RGB") for image in images]
    with context.models.load(field.ip_adapter_model) as model, context.models.load(field.image_encoder_model) as encoder:
        positive, negative = model.get_image_embeds(pictures, encoder)
    return positive, negative


def _outline(context: InvocationContext, field: T2IAdapterField, *, shape: ClipShape) -> T2IAdapter:
    image = context.images.get_pil(field.image.image_name, mode="RGB")
    with context.models.load(field.t2i_adapter_model) as model, torch.no_grad():
        pixels = prepare_control_image(
            image=image,
            width=shape.width,
            height=shape.height,
            num_channels=model.config["in_channels"],
            device=compute_device(),
            dtype=get_model_compute_dtype(model),
            resize_mode=field.resize_mode,
            do_classifier_free_guidance=False,
        )
        # A picture is cut at the right and the bottom to what the adapter halves evenly; the core fills in zeros there.
        cell, whole = shape.rule.spatial_factor, model.total_downscale_factor
        height, width = (side // cell // _UNET_DOWNSCALE * whole for side in (shape.height, shape.width))
        features = model(pixels[:, :, :height, :width])
    return T2IAdapter(features=features, weight=field.weight, start=field.begin_step_percent, end=field.end_step_percent)


def _mask(context: InvocationContext, field: IPAdapterField, *, shape: ClipShape) -> torch.Tensor | None:
    """[1, 1, h, w] of 0 and 1 at the latents' size, by nearest neighbour as InvokeAI takes it."""
    if field.mask is None:
        return None
    mask = to_standard_float_mask(context.tensors.load(field.mask.tensor_name), out_dtype=torch.float32)
    if tuple(mask.shape[1:]) != (shape.height, shape.width):
        size = f"{shape.width}x{shape.height}"
        raise BadInput.expected("IP-Adapter mask", f"{size} pixels, as the clip has", f"{mask.shape[2]}x{mask.shape[1]}", size)
    cells = tuple(side // shape.rule.spatial_factor for side in (shape.height, shape.width))
    return torch.nn.functional.interpolate(mask[None], size=cells, mode="nearest")


def _check_use(field: IPAdapterField) -> None:
    if field.method not in _METHODS:
        raise BadInput.expected("IP-Adapter method", f"one of {', '.join(_METHODS)}", repr(field.method), _METHODS[0])
    if not field.target_blocks:
        raise BadInput.expected("IP-Adapter blocks", "parts of the UNet such as up_blocks.1", "none", "block (all of them)")
    if field.image == []:
        raise BadInput.expected("IP-Adapter pictures", "at least one image", "an empty collection")


def _listed(given: Field | list[Field] | None) -> list[Field]:
    return [] if given is None else given if isinstance(given, list) else [given]
