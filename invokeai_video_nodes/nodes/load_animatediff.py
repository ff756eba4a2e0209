"""InvokeAI's own UNet and a motion module -> one model for the denoise node, with what suits the module; motion LoRAs on top."""

from invokeai.app.invocations.baseinvocation import BaseInvocation, Classification, invocation, invocation_output
from invokeai.app.invocations.fields import FieldDescriptions, Input, InputField, OutputField, UIType
from invokeai.app.invocations.model import LoRAField, ModelIdentifierField, UNetField
from invokeai.app.services.shared.invocation_context import InvocationContext
from invokeai.backend.model_manager.taxonomy import BaseModelType, ModelFormat, ModelType
from invokeai.backend.stable_diffusion.schedulers.schedulers import SCHEDULER_NAME_VALUES

from invokeai_video_nodes.nodes.animatediff_fields import AnimateDiffModelField, AnimateDiffModelOutput
from invokeai_video_nodes.nodes.animatediff_parts import MOTION_MODULE, check_model, check_motion_lora
from invokeai_video_nodes.nodes.fields import CATEGORY, LORA_WEIGHT
from invokeai_video_nodes.pipelines.animatediff.presets import PRESETS
from invokeai_video_nodes.pipelines.errors import BadInput


@invocation_output("animatediff_model_loader_output")
class AnimateDiffModelLoaderOutput(AnimateDiffModelOutput):
    """A UNet with a motion module, and what suits that module."""

    max_frames: int = OutputField(
        description="The most frames that the motion module sees at once; longer clips are made in windows.", title="Max Frames"
    )
    scheduler: SCHEDULER_NAME_VALUES = OutputField(
        description="The scheduler that suits the motion module.", ui_type=UIType.Scheduler, title="Scheduler"
    )
    steps: int = OutputField(description="The number of steps that suits the motion module.", title="Steps")
    guidance_scale: float = OutputField(description="The guidance scale that suits the motion module.", title="Guidance Scale")


@invocation(
    "animatediff_model_loader",
    title="Load Motion Module - AnimateDiff",
    tags=["model", "video", "animatediff", "motion"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class AnimateDiffModelLoaderInvocation(BaseInvocation):
    """Gives a Stable Diffusion 1.5 model a motion module, so that it makes video."""

    unet: UNetField = InputField(
        description="The UNet of a Stable Diffusion 1.5 model, from InvokeAI's main model loader or from LoRA nodes behind it.",
        input=Input.Connection,
        title="UNet",
    )
    motion_module: ModelIdentifierField = InputField(
        description="The motion module: v1, v2 or v3 of AnimateDiff, or AnimateLCM.",
        input=Input.Direct,
        ui_model_base=BaseModelType.StableDiffusion1,
        ui_model_type=MOTION_MODULE,
        title="Motion Module",
    )

    def invoke(self, context: InvocationContext) -> AnimateDiffModelLoaderOutput:
        model = AnimateDiffModelField(unet=self.unet, motion_module=self.motion_module)
        _, module = check_model(context, model)
        preset = PRESETS[module.version]
        return AnimateDiffModelLoaderOutput(
            model=model,
            max_frames=module.max_frames,
            scheduler=preset.scheduler,
            steps=preset.steps,
            guidance_scale=preset.guidance_scale,
        )


@invocation(
    "animatediff_motion_lora",
    title="Apply Motion LoRA - AnimateDiff",
    tags=["lora", "video", "animatediff", "motion", "camera"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class AnimateDiffMotionLoRAInvocation(BaseInvocation):
    """Adds a motion LoRA, such as a camera move, to a motion module."""

    model: AnimateDiffModelField = InputField(
        description="The UNet and the motion module.", input=Input.Connection, title="AnimateDiff Model"
    )
    lora: ModelIdentifierField = InputField(
        description="The motion LoRA.",
        ui_model_base=BaseModelType.StableDiffusion1,
        ui_model_type=ModelType.LoRA,
        ui_model_format=ModelFormat.Checkpoint,
        title="Motion LoRA",
    )
    weight: float = InputField(default=0.8, description=f"{FieldDescriptions.lora_weight} (-10 to 10)", **LORA_WEIGHT)

    def invoke(self, context: InvocationContext) -> AnimateDiffModelOutput:
        record = check_motion_lora(context, self.lora)
        if any(other.lora.key == self.lora.key for other in self.model.motion_loras):
            raise BadInput.expected("motion LoRA", "each motion LoRA once", f"'{record.name}' twice")
        model = self.model.model_copy(deep=True)
        model.motion_loras.append(LoRAField(lora=self.lora, weight=self.weight))
        return AnimateDiffModelOutput(model=model)
