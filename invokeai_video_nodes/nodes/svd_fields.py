"""What flows between Stable Video Diffusion's nodes: the parts of a model, and checks that they are its own."""

from typing import Any

from invokeai.app.invocations.model import ModelIdentifierField
from invokeai.app.services.shared.invocation_context import InvocationContext
from invokeai.backend.model_manager.taxonomy import ModelType
from pydantic import BaseModel, Field

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.shapes import FRAME_RULES

BASE = "svd"
RULE = FRAME_RULES["svd"]
FRAMES = {"minimum": RULE.min_frames, "maximum": RULE.max_frames}
SIZES = {"minimum": RULE.size_step, "maximum": RULE.max_size, "step": RULE.size_step}
DEFAULT_FPS = 7


class SVDModelField(BaseModel):
    """The parts of a Stable Video Diffusion model that make a clip's latents."""

    unet: ModelIdentifierField = Field(description="The UNet, which moves the picture")
    scheduler: ModelIdentifierField = Field(description="Its noise schedule")
    image_encoder: ModelIdentifierField = Field(description="CLIP, which tells the UNet what the picture shows")


def require_svd(record: Any, what: str) -> None:
    """Raise BadInput unless the record is a Stable Video Diffusion main model."""
    if record.base.value != BASE or record.type is not ModelType.Main:
        got = f"'{record.name}', a {record.type.value} of base {record.base.value}"
        raise BadInput.expected(what, "a Stable Video Diffusion model", got)


def checked_record(context: InvocationContext, model: SVDModelField) -> Any:
    """The record that all parts of `model` are of; nothing is loaded. Raises BadInput for parts of other models."""
    record = context.models.get_config(model.unet)
    for name, part in model:
        require_svd(context.models.get_config(part), name.replace("_", " "))
        if part.key != record.key:
            raise BadInput.expected(name.replace("_", " "), f"that of '{record.name}', as the UNet is", f"that of '{part.name}'")
    return record
