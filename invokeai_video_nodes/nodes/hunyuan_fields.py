"""What flows between HunyuanVideo's nodes: the encoders, an encoded prompt, a start image."""

from dataclasses import asdict
from typing import Any, Optional

from invokeai.app.invocations.baseinvocation import BaseInvocationOutput, invocation_output
from invokeai.app.invocations.fields import OutputField
from invokeai.app.invocations.model import ModelIdentifierField
from invokeai.app.services.shared.invocation_context import InvocationContext
from pydantic import BaseModel, Field

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.hunyuan_video.conditioning import PromptFeatures, PromptFeatures15

BASE = "hunyuan-video"
_FEATURES = {"1.0": PromptFeatures, "1.5": PromptFeatures15}


class HunyuanVideoEncoderField(BaseModel):
    """The text encoders of a HunyuanVideo model, with their tokenizers, and its image encoder where it has one."""

    text_encoder: ModelIdentifierField = Field(description="The language model")
    tokenizer: ModelIdentifierField = Field(description="Its tokenizer")
    text_encoder_2: ModelIdentifierField = Field(description="CLIP, or ByT5 for HunyuanVideo-1.5")
    tokenizer_2: ModelIdentifierField = Field(description="Its tokenizer")
    image_encoder: Optional[ModelIdentifierField] = Field(default=None, description="SigLIP, for HunyuanVideo-1.5 image to video")
    condition: Optional[str] = Field(
        default=None, description="How a start image enters the transformer that they encode for; none for text to video"
    )


class HunyuanVideoConditioningField(BaseModel):
    """An encoded prompt."""

    conditioning_name: str = Field(description="The name of the stored features")
    saw_image: bool = Field(default=False, description="The language model looked at the start image with it")


class HunyuanVideoStartField(BaseModel):
    """An encoded start image."""

    latents_name: str = Field(description="The name of the start frame's latent, [1, C, 1, h, w]")
    picture_name: Optional[str] = Field(default=None, description="The name of SigLIP's features, for HunyuanVideo-1.5")
    width: int = Field(description="Width in pixels that it was encoded at")
    height: int = Field(description="Height in pixels that it was encoded at")

    def check_size(self, *, width: int, height: int) -> None:
        """Raise BadInput unless it was encoded at the clip's size in pixels."""
        if (self.width, self.height) != (width, height):
            raise BadInput.expected("start image", f"{width}x{height} pixels, as the clip has", f"{self.width}x{self.height}")


@invocation_output("hunyuan_video_conditioning_output")
class HunyuanVideoConditioningOutput(BaseInvocationOutput):
    """An encoded prompt."""

    conditioning: HunyuanVideoConditioningField = OutputField(description="The encoded prompt.", title="Conditioning")


@invocation_output("hunyuan_video_start_output")
class HunyuanVideoStartOutput(BaseInvocationOutput):
    """An encoded start image."""

    start_image: HunyuanVideoStartField = OutputField(description="The encoded start image.", title="Start Image")
    width: int = OutputField(description="Width in pixels")
    height: int = OutputField(description="Height in pixels")


def save_features(
    context: InvocationContext, features: PromptFeatures | PromptFeatures15, *, saw_image: bool
) -> HunyuanVideoConditioningField:
    """Store the features of one prompt; a dict of tensors needs no class to be known when it is read again."""
    generation = next(name for name, cls in _FEATURES.items() if isinstance(features, cls))
    stored: Any = {"generation": generation, **asdict(features)}
    return HunyuanVideoConditioningField(conditioning_name=context.conditioning.save(stored), saw_image=saw_image)


def load_features(context: InvocationContext, field: HunyuanVideoConditioningField) -> PromptFeatures | PromptFeatures15:
    """The features that `save_features` stored."""
    stored: Any = context.conditioning.load(field.conditioning_name)
    if not isinstance(stored, dict) or stored.get("generation") not in _FEATURES:
        raise BadInput.expected("conditioning", "a HunyuanVideo prompt", type(stored).__name__)
    features = {name: value for name, value in stored.items() if name != "generation"}
    return _FEATURES[stored["generation"]](**features)


def require_hunyuan_video(config: Any, what: str) -> None:
    """Raise BadInput unless the record is a HunyuanVideo model."""
    if config.base.value != BASE:
        raise BadInput.expected(what, f"a model of base {BASE}", f"'{config.name}' of base {config.base.value}")
