"""Prompt (and start image, where the model's language model sees it) -> HunyuanVideo's conditioning."""

import hashlib
from typing import Any, Optional

import torch
from invokeai.app.invocations.baseinvocation import BaseInvocation, Classification, invocation
from invokeai.app.invocations.fields import ImageField, Input, InputField, UIComponent
from invokeai.app.invocations.model import ModelIdentifierField
from invokeai.app.services.session_processor.session_processor_common import CanceledException
from invokeai.app.services.shared.invocation_context import InvocationContext

from invokeai_video_nodes.nodes.compute import compute_dtype
from invokeai_video_nodes.nodes.fields import CATEGORY
from invokeai_video_nodes.nodes.hunyuan_fields import HunyuanVideoConditioningOutput, HunyuanVideoEncoderField, save_features
from invokeai_video_nodes.nodes.prompt_cache import features_or_encode
from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.hunyuan_video.conditioning import (
    Features,
    TextEncoders,
    check_prompt_with_picture,
    encode_prompt,
    encode_prompt_15,
    encode_prompt_with_picture,
)


@invocation(
    "hunyuan_video_text_encoder",
    title="Prompt - HunyuanVideo",
    tags=["prompt", "conditioning", "video", "hunyuan"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class HunyuanVideoTextEncoderInvocation(BaseInvocation):
    """Encodes a prompt for HunyuanVideo."""

    prompt: str = InputField(description="What the clip shows, and how it moves.", ui_component=UIComponent.Textarea)
    encoder: HunyuanVideoEncoderField = InputField(
        description="The text encoders of a HunyuanVideo model.", input=Input.Connection, title="Encoders"
    )
    image: Optional[ImageField] = InputField(
        default=None,
        description="The start image, for image-to-video models of the first generation: their language model looks at it. "
        "For a negative prompt leave it empty: it is encoded with a black picture.",
    )

    @torch.no_grad()
    def invoke(self, context: InvocationContext) -> HunyuanVideoConditioningOutput:
        record = context.models.get_config(self.encoder.text_encoder)
        self._check(context, record)
        picture = context.images.get_pil(self.image.image_name).convert("RGB") if self.image else None
        parts = {
            "prompt": self.prompt,
            "picture": hashlib.sha256(picture.tobytes()).hexdigest() + str(picture.size) if picture else None,
            "condition": self.encoder.condition,
            "encoders": [_content(context, model) for model in (self.encoder.text_encoder, self.encoder.text_encoder_2)],
            "dtype": str(compute_dtype()),
        }
        features = features_or_encode(parts, lambda: self._encoded(context, record, picture))
        return HunyuanVideoConditioningOutput(conditioning=save_features(context, features, saw_image=picture is not None))

    def _check(self, context: InvocationContext, record: Any) -> None:
        """Raise BadInput for a picture or a prompt that the encoders cannot take, and for a picture that is missing."""
        if not self._sees_pictures(record):
            if self.image is not None:
                raise BadInput.expected("image", f"none: the language model of '{record.name}' reads text only", "an image")
            return
        check_prompt_with_picture(self.prompt)
        if self.image is None and _is_positive(context):
            expected = f"an image, because the language model of '{record.name}' looks at it (connect the start image to the prompt)"
            raise BadInput.expected("start image", expected, "none")

    def _encoded(self, context: InvocationContext, record: Any, picture: Any) -> Features:
        sees_pictures = self._sees_pictures(record)
        context.util.signal_progress("Encoding the prompt")
        with (
            context.models.load(self.encoder.text_encoder) as language,
            context.models.load(self.encoder.text_encoder_2) as second,
        ):
            if context.util.is_canceled():
                raise CanceledException
            encoders = TextEncoders(
                language=language,
                tokenizer=context.models.load(self.encoder.tokenizer).model,
                second=second,
                second_tokenizer=context.models.load(self.encoder.tokenizer_2).model,
                image_processor=_image_processor(context, record) if sees_pictures else None,
            )
            if record.generation == "1.5":
                return encode_prompt_15(self.prompt, encoders)
            if not sees_pictures:
                return encode_prompt(self.prompt, encoders)
            return encode_prompt_with_picture(self.prompt, picture, encoders, condition=self.encoder.condition)

    def _sees_pictures(self, record: Any) -> bool:
        """The language model of the first generation's image-to-video checkpoints looks at the start image."""
        return bool(record.generation == "1.0" and self.encoder.condition is not None)


def _is_positive(context: InvocationContext) -> bool:
    """Whether the graph takes this prompt for what the clip shows; a negative one is encoded without the start image."""
    data = context._data
    edges = data.queue_item.session.graph.edges
    return any(e.source.node_id == data.source_invocation_id and e.destination.field == "positive_conditioning" for e in edges)


def _content(context: InvocationContext, model: ModelIdentifierField) -> list[str]:
    """What an encoder is, whatever it is called: the hash of its files, and the part of them."""
    return [context.models.get_config(model).hash, model.submodel_type.value if model.submodel_type else ""]


def _image_processor(context: InvocationContext, record: Any) -> Any:
    """The folder's picture preparation; it holds no weights, so it does not go through the model cache."""
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor.from_pretrained(context.models.get_absolute_path(record) / "image_processor", local_files_only=True)
