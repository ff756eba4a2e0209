"""A Stable Video Diffusion model -> its parts, and the number of frames that it was trained to make."""

from invokeai.app.invocations.baseinvocation import (
    BaseInvocation,
    BaseInvocationOutput,
    Classification,
    invocation,
    invocation_output,
)
from invokeai.app.invocations.fields import FieldDescriptions, Input, InputField, OutputField
from invokeai.app.invocations.model import ModelIdentifierField, VAEField
from invokeai.app.services.shared.invocation_context import InvocationContext
from invokeai.backend.model_manager.taxonomy import BaseModelType, ModelType, SubModelType

from invokeai_video_nodes.nodes.fields import CATEGORY
from invokeai_video_nodes.nodes.svd_fields import DEFAULT_FPS, SVDModelField, require_svd


@invocation_output("svd_model_loader_output")
class SVDModelLoaderOutput(BaseInvocationOutput):
    """The parts of a Stable Video Diffusion model, and what it was trained for."""

    model: SVDModelField = OutputField(description="What makes the clip's latents.", title="SVD Model")
    vae: VAEField = OutputField(description=FieldDescriptions.vae, title="VAE")
    num_frames: int = OutputField(description="Frames that the model was trained to make: 14, or 25 for SVD-XT.", title="Frames")
    fps: int = OutputField(description="Frames per second that suit the model.", title="Frames per Second")


@invocation(
    "svd_model_loader",
    title="Load Video Model - SVD",
    tags=["model", "video", "svd", "img2vid"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class SVDModelLoaderInvocation(BaseInvocation):
    """Loads a Stable Video Diffusion model and hands out its parts."""

    model: ModelIdentifierField = InputField(
        description="SVD or SVD-XT: a complete folder, or the original single file.",
        input=Input.Direct,
        ui_model_base=BaseModelType.SVD,  # type: ignore[attr-defined]
        ui_model_type=ModelType.Main,
        title="Video Model",
    )

    def invoke(self, context: InvocationContext) -> SVDModelLoaderOutput:
        record = context.models.get_config(self.model)
        require_svd(record, "video model")
        return SVDModelLoaderOutput(
            model=SVDModelField(
                unet=self._part(SubModelType.UNet),
                scheduler=self._part(SubModelType.Scheduler),
                image_encoder=self._part(SubModelType.ImageEncoder),  # type: ignore[attr-defined]
            ),
            vae=VAEField(vae=self._part(SubModelType.VAE)),
            num_frames=record.num_frames,
            fps=DEFAULT_FPS,
        )

    def _part(self, submodel: SubModelType) -> ModelIdentifierField:
        return self.model.model_copy(update={"submodel_type": submodel})
