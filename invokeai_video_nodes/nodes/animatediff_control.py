"""What an artist adds to an AnimateDiff denoise: control images per frame, keyframes, context windows, FreeInit.

Each node checks what it is given by itself; what has to fit the clip is checked by the denoise node.
"""

from collections.abc import Sequence
from typing import Annotated, Optional, Union

from invokeai.app.invocations.baseinvocation import BaseInvocation, Classification, invocation
from invokeai.app.invocations.fields import FieldDescriptions, ImageField, Input, InputField
from invokeai.app.invocations.model import ModelIdentifierField, VAEField
from invokeai.app.services.shared.invocation_context import InvocationContext
from invokeai.app.util.controlnet_utils import CONTROLNET_MODE_VALUES, CONTROLNET_RESIZE_VALUES
from invokeai.backend.model_manager.taxonomy import BaseModelType, ModelType
from pydantic import Field

from invokeai_video_nodes.nodes.animatediff_fields import (
    AnimateDiffControlFramesField,
    AnimateDiffControlFramesOutput,
    AnimateDiffFreeInitField,
    AnimateDiffFreeInitOutput,
    AnimateDiffSparseControlField,
    AnimateDiffSparseControlOutput,
    AnimateDiffWindowsField,
    AnimateDiffWindowsOutput,
    FilterChoice,
    WindowKindChoice,
    WindowNoiseChoice,
    WindowWeightsChoice,
)
from invokeai_video_nodes.nodes.animatediff_inputs import free_init_settings, window_settings
from invokeai_video_nodes.nodes.animatediff_parts import SPARSE_CTRL, check_control_model
from invokeai_video_nodes.nodes.fields import CATEGORY, with_limits
from invokeai_video_nodes.pipelines.animatediff.per_step import check_span
from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.windows import STRIDES

# As InvokeAI's ControlNet node has them; limits refuse inf and nan too, which the queue could not store.
ControlWeight = Annotated[float, Field(ge=-1.0, le=2.0)]
SHARE = {"ge": 0.0, "le": 1.0}
MODE_LABELS = {"balanced": "Balanced", "more_prompt": "More Prompt", "more_control": "More Control", "unbalanced": "Unbalanced"}
RESIZE_LABELS = {
    "just_resize": "Stretch",
    "crop_resize": "Crop to fill",
    "fill_resize": "Fit, and fill the rest",
    "just_resize_simple": "Stretch (plain)",
}


@invocation(
    "animatediff_control_frames",
    title="ControlNet per Frame - AnimateDiff",
    tags=["video", "animatediff", "controlnet", "control", "vid2vid"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class AnimateDiffControlFramesInvocation(BaseInvocation):
    """Steers each frame of a clip with a control image of its own."""

    images: list[ImageField] = InputField(description="The control images in playing order, one for each frame of the clip.")
    control_model: ModelIdentifierField = InputField(
        description=FieldDescriptions.controlnet_model,
        ui_model_base=BaseModelType.StableDiffusion1,
        ui_model_type=ModelType.ControlNet,
        title="Control Model",
    )
    control_weight: Union[ControlWeight, list[ControlWeight]] = InputField(
        default=1.0,
        description="The weight given to the ControlNet, -1 to 2: one number, or one for each step that runs.",
        title="Control Weight",
    )
    begin_step_percent: float = InputField(default=0.0, description="Share of the steps at which it begins, 0 to 1.", **SHARE)
    end_step_percent: float = InputField(default=1.0, description="Share of the steps at which it ends, 0 to 1.", **SHARE)
    control_mode: CONTROLNET_MODE_VALUES = InputField(
        default="balanced", description="What counts more, the prompt or the control images.", ui_choice_labels=MODE_LABELS
    )
    resize_mode: CONTROLNET_RESIZE_VALUES = InputField(
        default="just_resize", description="How images of another size are brought to the clip's.", ui_choice_labels=RESIZE_LABELS
    )

    def invoke(self, context: InvocationContext) -> AnimateDiffControlFramesOutput:
        check_control_model(context, self.control_model, sparse=False)
        check_images(context, self.images, what="control images")
        check_span("control steps", self.begin_step_percent, self.end_step_percent)
        control = AnimateDiffControlFramesField(
            images=self.images,
            control_model=self.control_model,
            control_weight=self.control_weight,
            begin_step_percent=self.begin_step_percent,
            end_step_percent=self.end_step_percent,
            control_mode=self.control_mode,
            resize_mode=self.resize_mode,
        )
        return AnimateDiffControlFramesOutput(control_frames=control, num_frames=len(self.images))


@invocation(
    "animatediff_sparse_control",
    title="SparseCtrl - AnimateDiff",
    tags=["video", "animatediff", "sparsectrl", "control", "keyframes", "img2vid"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class AnimateDiffSparseControlInvocation(BaseInvocation):
    """Holds some frames of a clip to pictures; the motion module fills what is between them."""

    images: list[ImageField] = InputField(description="The keyframes' images.")
    frames: list[int] = InputField(default=[0], description="The frame that each image is for, counted from 0, in the images' order.")
    control_model: ModelIdentifierField = InputField(
        description="The SparseCtrl model: rgb for pictures, scribble for drawings.",
        ui_model_base=BaseModelType.StableDiffusion1,
        ui_model_type=ModelType.ControlNet,
        ui_model_format=SPARSE_CTRL,
        title="SparseCtrl Model",
    )
    weight: float = InputField(default=1.0, ge=-1.0, le=2.0, description="How strongly the keyframes hold, -1 to 2.")
    resize_mode: CONTROLNET_RESIZE_VALUES = InputField(
        default="just_resize", description="How images of another size are brought to the clip's.", ui_choice_labels=RESIZE_LABELS
    )
    vae: Optional[VAEField] = InputField(
        default=None, description="The main model's VAE, for the rgb model, which reads latents.", input=Input.Connection, title="VAE"
    )

    def invoke(self, context: InvocationContext) -> AnimateDiffSparseControlOutput:
        record = check_control_model(context, self.control_model, sparse=True)
        if record.reads_latents and self.vae is None:
            raise BadInput.expected("VAE", f"one connected, because '{record.name}' reads latents", "none")
        check_images(context, self.images, what="keyframe images")
        check_keyframes(self.frames, images=len(self.images))
        control = AnimateDiffSparseControlField(
            images=self.images,
            frames=self.frames,
            control_model=self.control_model,
            weight=self.weight,
            resize_mode=self.resize_mode,
            vae=self.vae,
        )
        return AnimateDiffSparseControlOutput(sparse_control=control)


@invocation(
    "animatediff_windows",
    title="Context Windows - AnimateDiff",
    tags=["video", "animatediff", "windows", "long", "loop", "freenoise"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class AnimateDiffWindowsInvocation(BaseInvocation):
    """Settings for clips that are longer than what the motion module sees at once."""

    length: int = with_limits(
        InputField(default=0, description="Frames in one window. 0: 16, or the motion module's limit where that is less."), minimum=0
    )
    overlap: int = with_limits(
        InputField(default=8, description="Frames that neighbouring windows share at least: more is smoother and slower."), minimum=0
    )
    stride: int = with_limits(
        InputField(
            default=1,
            description="With 1 a window holds neighbouring frames; with 2, 4 or 8 there are also windows of every 2nd, 4th or 8th frame, "
            "which tie the clip together and take longer.",
        ),
        minimum=min(STRIDES),
        maximum=max(STRIDES),
    )
    kind: WindowKindChoice = InputField(
        default="standard",
        description="Standard: their borders move from step to step. Looped: they also run over the end into the beginning. Static: the "
        "same in every step. FreeNoise: only the motion module works in windows, faster, with memory for the whole clip.",
        ui_choice_labels={"standard": "Standard", "looped": "Looped", "static": "Static", "free_noise": "FreeNoise"},
    )
    weights: WindowWeightsChoice = InputField(
        default="pyramid",
        description="How a window's frames count where windows overlap: most in its middle, all alike, or rising over the overlap.",
        ui_choice_labels={"pyramid": "Pyramid", "flat": "Flat", "linear": "Linear"},
    )
    noise: WindowNoiseChoice = InputField(
        default="random",
        description="The noise beyond the first window: new, or the first window's shuffled or repeated, which keeps a long clip alike.",
        ui_choice_labels={"random": "Random", "shuffled": "Shuffled (FreeNoise)", "repeated": "Repeated"},
    )

    def invoke(self, context: InvocationContext) -> AnimateDiffWindowsOutput:
        if self.length < 0:
            raise BadInput.expected("window length", "0 or more", self.length, 0)
        values = {name: getattr(self, name) for name in AnimateDiffWindowsField.model_fields}
        windows = AnimateDiffWindowsField(**values)
        if windows.length:
            window_settings(windows)
        return AnimateDiffWindowsOutput(windows=windows)


@invocation(
    "animatediff_free_init",
    title="FreeInit - AnimateDiff",
    tags=["video", "animatediff", "freeinit", "noise"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class AnimateDiffFreeInitInvocation(BaseInvocation):
    """Makes a clip several times over, each time from the slow and coarse part of the last, for steadier motion."""

    iterations: int = InputField(default=3, ge=1, le=10, description="How often the clip is made; each time takes as long as the first.")
    fast: bool = InputField(default=False, description="The first times take fewer steps.")
    method: FilterChoice = InputField(
        default="butterworth",
        description="The filter that says what is slow and coarse.",
        ui_choice_labels={"butterworth": "Butterworth", "gaussian": "Gaussian", "ideal": "Ideal"},
    )
    order: int = InputField(default=4, ge=1, le=100, description="How sharp the Butterworth filter is, 1 to 100.")
    spatial_stop: float = InputField(default=0.25, gt=0.0, le=1.0, description="Details of the picture below this are kept, 0 to 1.")
    temporal_stop: float = InputField(default=0.25, gt=0.0, le=1.0, description="Motion slower than this is kept, 0 to 1.")

    def invoke(self, context: InvocationContext) -> AnimateDiffFreeInitOutput:
        values = {name: getattr(self, name) for name in AnimateDiffFreeInitField.model_fields}
        free_init = AnimateDiffFreeInitField(**values)
        free_init_settings(free_init)
        return AnimateDiffFreeInitOutput(free_init=free_init)


def check_images(context: InvocationContext, images: Sequence[ImageField], *, what: str) -> None:
    """Raise BadInput for an empty collection; an image that is not there raises as InvokeAI does."""
    if not images:
        raise BadInput.expected(what, "at least one image", "an empty collection")
    for image in images:
        context.images.get_dto(image.image_name)


def check_keyframes(frames: Sequence[int], *, images: int, num_frames: int | None = None) -> None:
    """Raise BadInput unless there is one frame number for each image, each once, and of the clip where its length is known."""
    if len(frames) != images:
        raise BadInput.expected("keyframes", f"{images} frame numbers, one for each image", len(frames), images)
    last = None if num_frames is None else num_frames - 1
    for index, frame in enumerate(frames):
        if frame < 0 or (last is not None and frame > last):
            expected = "0 or more" if last is None else f"0 to {last}, the frames of the clip"
            raise BadInput.expected("keyframe", expected, frame, 0 if frame < 0 else last)
        if frame in frames[:index]:
            raise BadInput.expected("keyframes", "each frame once", f"{frame} twice")
