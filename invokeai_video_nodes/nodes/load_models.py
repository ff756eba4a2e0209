"""Pickers -> typed sub-models: one checkpoint, and the parts it does not bring itself.

A diffusers folder brings everything. A single file or GGUF holds the transformer alone: a Z-Image one needs a VAE and a Qwen3
encoder beside it, a HunyuanVideo one a VAE and text encoders, or a complete folder that lends both.
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
from invokeai.app.invocations.model import (
    LoRAField,
    ModelIdentifierField,
    Qwen3EncoderField,
    TransformerField,
    VAEField,
    VAEOutput,
)
from invokeai.app.services.shared.invocation_context import InvocationContext
from invokeai.backend.model_manager.taxonomy import BaseModelType, ModelFormat, ModelType, SubModelType
from pydantic import field_validator

from invokeai_video_nodes.nodes.fields import CATEGORY, LORA_WEIGHT, RULE, require_z_image_video
from invokeai_video_nodes.nodes.hunyuan_fields import HunyuanVideoEncoderField, require_hunyuan_video
from invokeai_video_nodes.nodes.hunyuan_parts import TEXT_ENCODERS, choose_parts
from invokeai_video_nodes.nodes.loras import fitting_keys, layers_of
from invokeai_video_nodes.pipelines.errors import BadInput

VIDEO_VAE = ModelType("video_vae")


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


@invocation_output("hunyuan_video_model_loader_output")
class HunyuanVideoModelLoaderOutput(BaseInvocationOutput):
    """The parts of a HunyuanVideo model."""

    transformer: TransformerField = OutputField(description=FieldDescriptions.transformer, title="Transformer")
    encoder: HunyuanVideoEncoderField = OutputField(description="The text encoders.", title="Encoders")
    vae: VAEField = OutputField(description=FieldDescriptions.vae, title="VAE")
    shift: float = OutputField(
        description="The shift of the schedule, for the denoise node: that of the folder, or of the Encoder Source for a single file. "
        "Where there is none: 7.0, and for HunyuanVideo-1.5 5.0, which is right for 480p (its 720p models want 9.0, or 7.0 with a start "
        "image).",
        title="Shift",
    )


@invocation(
    "hunyuan_video_model_loader",
    title="Load Video Model - HunyuanVideo",
    tags=["model", "video", "hunyuan"],
    category=CATEGORY,
    version="1.1.0",
    classification=Classification.Beta,
)
class HunyuanVideoModelLoaderInvocation(BaseInvocation):
    """Loads a HunyuanVideo model and hands out its parts."""

    model: ModelIdentifierField = InputField(
        description="The HunyuanVideo model: a complete folder, or a transformer in one file.",
        input=Input.Direct,
        ui_model_base=BaseModelType.HunyuanVideo,
        ui_model_type=ModelType.Main,
        title="Video Model",
    )
    vae_model: Optional[ModelIdentifierField] = InputField(
        default=None,
        description="A video VAE. Empty: the one that the model's folder brings, or that of the Encoder Source.",
        input=Input.Direct,
        ui_model_base=BaseModelType.HunyuanVideo,
        ui_model_type=VIDEO_VAE,
        title="VAE",
    )
    encoder_source: Optional[ModelIdentifierField] = InputField(
        default=None,
        description="Text encoders, or a complete HunyuanVideo folder that lends its own, and its VAE where none is chosen. "
        "Needed where the model is a transformer in one file.",
        input=Input.Direct,
        ui_model_base=BaseModelType.HunyuanVideo,
        ui_model_type=[ModelType.Main, TEXT_ENCODERS],
        ui_model_format=ModelFormat.Diffusers,
        title="Encoder Source",
    )

    def invoke(self, context: InvocationContext) -> HunyuanVideoModelLoaderOutput:
        parts = choose_parts(context, self.model, encoder_source=self.encoder_source, vae_model=self.vae_model)
        encoders = parts.encoders
        return HunyuanVideoModelLoaderOutput(
            transformer=TransformerField(transformer=_part(self.model, SubModelType.Transformer), loras=[]),
            encoder=HunyuanVideoEncoderField(
                text_encoder=_part(encoders, SubModelType.TextEncoder),
                tokenizer=_part(encoders, SubModelType.Tokenizer),
                text_encoder_2=_part(encoders, SubModelType.TextEncoder2),
                tokenizer_2=_part(encoders, SubModelType.Tokenizer2),
                image_encoder=_part(encoders, SubModelType.ImageEncoder) if parts.has_image_encoder else None,
                condition=parts.condition,
            ),
            vae=VAEField(vae=_part(parts.vae, SubModelType.VAE)),
            shift=parts.shift,
        )


@invocation(
    "video_vae_loader",
    title="Load Video VAE",
    tags=["model", "video", "vae", "hunyuan"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class VideoVAELoaderInvocation(BaseInvocation):
    """Loads a video VAE that is a model of its own."""

    model: ModelIdentifierField = InputField(
        description="The video VAE.",
        input=Input.Direct,
        ui_model_base=BaseModelType.HunyuanVideo,
        ui_model_type=VIDEO_VAE,
        title="VAE",
    )

    def invoke(self, context: InvocationContext) -> VAEOutput:
        record = context.models.get_config(self.model)
        if record.type is not VIDEO_VAE:
            raise BadInput.expected("VAE", "a video VAE", f"'{record.name}' of type {record.type.value}")
        return VAEOutput(vae=VAEField(vae=_part(self.model, SubModelType.VAE)))


@invocation_output("hunyuan_video_lora_loader_output")
class HunyuanVideoLoRALoaderOutput(BaseInvocationOutput):
    """A transformer with LoRAs."""

    transformer: TransformerField = OutputField(description=FieldDescriptions.transformer, title="Transformer")
    matched: list[str] = OutputField(description='What is in force of each LoRA: "NAME: matched N of M keys".', title="Matched Keys")


@invocation(
    "hunyuan_video_lora_loader",
    title="Apply LoRA - HunyuanVideo",
    tags=["lora", "video", "hunyuan"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class HunyuanVideoLoRALoaderInvocation(BaseInvocation):
    """Adds a LoRA to a HunyuanVideo transformer."""

    lora: ModelIdentifierField = InputField(
        description="The LoRA.", ui_model_base=BaseModelType.HunyuanVideo, ui_model_type=ModelType.LoRA, title="LoRA"
    )
    weight: float = InputField(default=0.75, description=f"{FieldDescriptions.lora_weight} (-10 to 10)", **LORA_WEIGHT)
    transformer: TransformerField = InputField(description=FieldDescriptions.transformer, input=Input.Connection, title="Transformer")

    def invoke(self, context: InvocationContext) -> HunyuanVideoLoRALoaderOutput:
        loras = [LoRAField(lora=self.lora, weight=self.weight)]
        return _with_loras(context, self.transformer, loras)


@invocation(
    "hunyuan_video_lora_collection_loader",
    title="Apply LoRA Collection - HunyuanVideo",
    tags=["lora", "video", "hunyuan"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class HunyuanVideoLoRACollectionLoaderInvocation(BaseInvocation):
    """Adds several LoRAs to a HunyuanVideo transformer."""

    loras: Optional[LoRAField | list[LoRAField]] = InputField(
        default=None,
        description="LoRAs with their weights, chosen here or from LoRA selectors.",
        ui_model_base=BaseModelType.HunyuanVideo,
        ui_model_type=ModelType.LoRA,
        title="LoRAs",
    )
    transformer: TransformerField = InputField(description=FieldDescriptions.transformer, input=Input.Connection, title="Transformer")

    @field_validator("loras")
    @classmethod
    def _weights_within_limits(cls, loras: LoRAField | list[LoRAField] | None) -> LoRAField | list[LoRAField] | None:
        """InvokeAI's own LoRA field has no limits; inf and nan could not be stored in the queue."""
        for field in loras if isinstance(loras, list) else [loras] if loras else []:
            if not LORA_WEIGHT["ge"] <= field.weight <= LORA_WEIGHT["le"]:
                expected = f"{LORA_WEIGHT['ge']:g} to {LORA_WEIGHT['le']:g}"
                raise BadInput.expected(f"weight of LoRA '{field.lora.name}'", expected, field.weight)
        return loras

    def invoke(self, context: InvocationContext) -> HunyuanVideoLoRALoaderOutput:
        loras = self.loras if isinstance(self.loras, list) else [self.loras] if self.loras else []
        return _with_loras(context, self.transformer, loras)


def _with_loras(context: InvocationContext, transformer: TransformerField, loras: list[LoRAField]) -> HunyuanVideoLoRALoaderOutput:
    """The field with the LoRAs added; raises BadInput for one of another model, or one that is there already."""
    transformer = transformer.model_copy(deep=True)
    model = context.models.get_config(transformer.transformer)
    require_hunyuan_video(model, "transformer")
    layers = layers_of(context, model) if loras else {}
    matched = []
    for field in loras:
        record = context.models.get_config(field.lora)
        require_hunyuan_video(record, "LoRA")
        if any(other.lora.key == field.lora.key for other in transformer.loras):
            raise BadInput.expected("LoRA", "each LoRA once", f"'{record.name}' twice")
        transformer.loras.append(field)
        matched.append("{}: matched {} of {} keys".format(record.name, *fitting_keys(context, record, model=model, layers=layers)))
    return HunyuanVideoLoRALoaderOutput(transformer=transformer, matched=matched)


def _part(model: ModelIdentifierField, submodel: SubModelType) -> ModelIdentifierField:
    return model.model_copy(update={"submodel_type": submodel})
