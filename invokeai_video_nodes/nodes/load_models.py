"""Pickers -> typed sub-models: one Z-Image Video checkpoint, and the parts it does not bring itself.

A diffusers folder brings everything. A single file or GGUF holds the transformer alone and needs a VAE and a Qwen3 encoder beside it.
"""

from typing import Any, Optional

from invokeai.app.invocations.baseinvocation import (
    BaseInvocation,
    BaseInvocationOutput,
    Classification,
    invocation,
    invocation_output,
)
from invokeai.app.invocations.fields import FieldDescriptions, Input, InputField, OutputField
from invokeai.app.invocations.model import ModelIdentifierField, Qwen3EncoderField, TransformerField, VAEField
from invokeai.app.services.shared.invocation_context import InvocationContext
from invokeai.backend.model_manager.taxonomy import BaseModelType, ModelFormat, ModelType, SubModelType

from invokeai_video_nodes.nodes.fields import CATEGORY, RULE, require_z_image_video
from invokeai_video_nodes.pipelines.errors import BadInput


@invocation_output("z_image_video_model_loader_output")
class ZImageVideoModelLoaderOutput(BaseInvocationOutput):
    """The parts of a Z-Image Video model, and what it can do."""

    transformer: TransformerField = OutputField(description=FieldDescriptions.transformer, title="Transformer")
    qwen3_encoder: Qwen3EncoderField = OutputField(description=FieldDescriptions.qwen3_encoder, title="Qwen3 Encoder")
    vae: VAEField = OutputField(description=FieldDescriptions.vae, title="VAE")
    supported_f_patch_sizes: list[int] = OutputField(
        description="The frame patch sizes that this checkpoint knows.", title="Frame Patch Sizes"
    )
    max_frames: int = OutputField(description="The most frames that one clip can have.", title="Max Frames")


@invocation(
    "z_image_video_model_loader",
    title="Load Video Model - Z-Image",
    tags=["model", "video", "z-image"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class ZImageVideoModelLoaderInvocation(BaseInvocation):
    """Loads a Z-Image Video model and hands out its parts."""

    model: ModelIdentifierField = InputField(
        description="The Z-Image Video model: a complete folder, or a transformer in one file.",
        input=Input.Direct,
        ui_model_base=BaseModelType.ZImageVideo,
        ui_model_type=ModelType.Main,
        title="Video Model",
    )
    vae_model: Optional[ModelIdentifierField] = InputField(
        default=None,
        description="A FLUX VAE (16 channels). Empty: the VAE that the video model brings.",
        input=Input.Direct,
        ui_model_base=BaseModelType.Flux,
        ui_model_type=ModelType.VAE,
        title="VAE",
    )
    qwen3_encoder_model: Optional[ModelIdentifierField] = InputField(
        default=None,
        description="A Qwen3 text encoder. Empty: the one that the video model brings.",
        input=Input.Direct,
        ui_model_type=ModelType.Qwen3Encoder,
        title="Qwen3 Encoder",
    )

    def invoke(self, context: InvocationContext) -> ZImageVideoModelLoaderOutput:
        config = context.models.get_config(self.model)
        require_z_image_video(config, "video model")
        self._require_parts(config)
        encoder = self.qwen3_encoder_model or self.model
        return ZImageVideoModelLoaderOutput(
            transformer=TransformerField(transformer=_part(self.model, SubModelType.Transformer), loras=[]),
            qwen3_encoder=Qwen3EncoderField(
                tokenizer=_part(encoder, SubModelType.Tokenizer), text_encoder=_part(encoder, SubModelType.TextEncoder)
            ),
            vae=VAEField(vae=_part(self.vae_model or self.model, SubModelType.VAE)),
            supported_f_patch_sizes=sorted(config.f_patch_sizes),
            max_frames=RULE.max_frames,
        )

    def _require_parts(self, config: Any) -> None:
        """Name every part that a transformer without a folder still needs."""
        if config.format is ModelFormat.Diffusers:
            return
        missing = [
            name
            for name, model in (("a VAE (FLUX, 16 channels)", self.vae_model), ("a Qwen3 Encoder", self.qwen3_encoder_model))
            if model is None
        ]
        if missing:
            expected = f"{' and '.join(missing)} chosen in this node, because '{config.name}' holds the transformer only"
            raise BadInput.expected("video model", expected, "none")


def _part(model: ModelIdentifierField, submodel: SubModelType) -> ModelIdentifierField:
    return model.model_copy(update={"submodel_type": submodel})
