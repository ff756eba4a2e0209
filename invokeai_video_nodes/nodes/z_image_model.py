"""What surrounds a Z-Image Video transformer in a graph: prompts with regions, LoRAs, control, scheduler settings.

InvokeAI's own Z-Image nodes make all of these; here they are read and brought into the form that the core takes.
"""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from invokeai.app.invocations.fields import ZImageConditioningField
from invokeai.app.invocations.model import TransformerField
from invokeai.app.invocations.z_image_control import ZImageControlField
from invokeai.app.services.shared.invocation_context import InvocationContext
from invokeai.backend.model_manager.taxonomy import ModelFormat, SubModelType
from invokeai.backend.stable_diffusion.diffusion.conditioning_data import ZImageConditioningInfo
from invokeai.backend.z_image.extensions.regional_prompting_extension import ZImageRegionalPromptingExtension
from invokeai.backend.z_image.z_image_control_adapter import ZImageControlAdapter

from invokeai_video_nodes.nodes.compute import compute_device, compute_dtype
from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.shapes import ClipShape
from invokeai_video_nodes.pipelines.z_image.control import ControlClip, RegionalMask, control_channels, regional_mask

Conditioning: TypeAlias = ZImageConditioningField | list[ZImageConditioningField]


@dataclass(frozen=True)
class Prompts:
    """Caption features [n, d] on the device, and where the positive prompts hold if they have regions."""

    positive: torch.Tensor
    negative: torch.Tensor | None
    regions: RegionalMask | None


def load_prompts(context: InvocationContext, positive: Conditioning, negative: Conditioning | None, shape: ClipShape) -> Prompts:
    """Load the conditioning of the prompt nodes; several positive prompts are joined, with their regions if any has one."""
    device = compute_device()
    dtype = compute_dtype(device)
    captions, masks = _captions(context, positive, shape, device=device, dtype=dtype)
    regions = regional_mask(masks, captions, frame_groups=shape.latent_frames // shape.f_patch_size)
    unwanted = None
    if negative is not None:
        unwanted = torch.cat(_captions(context, negative, shape, device=device, dtype=dtype)[0])
    return Prompts(positive=torch.cat(captions), negative=unwanted, regions=regions)


def require_caption_width(context: InvocationContext, record: Any, prompts: Prompts) -> None:
    """Raise BadInput where the prompt was encoded by another model's text encoder, as far as the folder's config tells."""
    config = context.models.get_absolute_path(record) / "transformer" / "config.json"
    if not config.is_file():
        return
    wanted, got = json.loads(config.read_text()).get("cap_feat_dim"), prompts.positive.shape[1]
    if wanted is not None and wanted != got:
        expected = f"a prompt encoded {wanted} wide, by the text encoder that belongs to '{record.name}'"
        raise BadInput.expected("positive conditioning", expected, f"{got} wide")


def scheduler_config(context: InvocationContext, transformer: TransformerField, record: Any) -> dict[str, Any] | None:
    """The checkpoint's own noise schedule, or None for a single file, which brings none."""
    if record.format is not ModelFormat.Diffusers:
        return None
    model = transformer.transformer.model_copy(update={"submodel_type": SubModelType.Scheduler})
    return dict(context.models.load(model).model.config)


def load_control(context: InvocationContext, stack: ExitStack, field: ZImageControlField, latents: torch.Tensor) -> ControlClip:
    """Bring the control adapter onto the device until `stack` closes; `latents` [C, F, h, w] are the encoded control images."""
    loaded = context.models.load(field.control_model)
    if not isinstance(loaded.model, ZImageControlAdapter):
        expected = "a Z-Image control adapter"
        raise BadInput.expected("control model", expected, f"'{field.control_model.name}', a {type(loaded.model).__name__}")
    wanted = int(loaded.model.control_in_dim)
    seen = control_channels(latents, wanted=wanted)
    _, adapter = stack.enter_context(loaded.model_on_device())
    return ControlClip(
        adapter=adapter,
        latents=seen.to(compute_device()),
        scale=field.control_context_scale,
        begin=field.begin_step_percent,
        end=field.end_step_percent,
    )


def _captions(
    context: InvocationContext, fields: Conditioning, shape: ClipShape, *, device: torch.device, dtype: torch.dtype
) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    prompts = fields if isinstance(fields, list) else [fields]
    if not prompts:
        raise BadInput.expected("conditioning", "at least one prompt", "an empty list")
    captions: list[torch.Tensor] = []
    masks: list[torch.Tensor | None] = []
    for field in prompts:
        info = context.conditioning.load(field.conditioning_name).conditionings[0]
        if not isinstance(info, ZImageConditioningInfo):
            raise BadInput.expected("conditioning", "a Z-Image prompt", type(info).__name__)
        captions.append(info.prompt_embeds.to(device=device, dtype=dtype))
        masks.append(None if field.mask is None else _token_mask(context, field.mask.tensor_name, shape, device=device))
    return captions, masks


def _token_mask(context: InvocationContext, name: str, shape: ClipShape, *, device: torch.device) -> torch.Tensor:
    """A region drawn on the picture -> [1, 1, tokens of one frame]."""
    rows, columns = (size // shape.rule.patch_size for size in (shape.latent_height, shape.latent_width))
    mask = context.tensors.load(name).to(device=device)
    return ZImageRegionalPromptingExtension.preprocess_regional_prompt_mask(mask, rows, columns, torch.float32, device)
