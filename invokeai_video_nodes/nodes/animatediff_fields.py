"""What flows between AnimateDiff's nodes: a UNet with its motion module, prompts over time, what steers the frames, and options."""

from typing import Literal, Optional

from invokeai.app.invocations.baseinvocation import BaseInvocationOutput, invocation_output
from invokeai.app.invocations.fields import ImageField, OutputField
from invokeai.app.invocations.model import LoRAField, ModelIdentifierField, UNetField, VAEField
from invokeai.app.util.controlnet_utils import CONTROLNET_MODE_VALUES, CONTROLNET_RESIZE_VALUES
from pydantic import BaseModel, Field

WindowKindChoice = Literal["standard", "looped", "static", "free_noise"]
WindowWeightsChoice = Literal["pyramid", "flat", "linear"]
WindowNoiseChoice = Literal["random", "shuffled", "repeated"]
FilterChoice = Literal["butterworth", "gaussian", "ideal"]


class AnimateDiffModelField(BaseModel):
    """A Stable Diffusion 1.5 UNet, its LoRAs and all, with a motion module."""

    unet: UNetField = Field(description="The UNet of the main model, with its LoRAs")
    motion_module: ModelIdentifierField = Field(description="The motion module")
    motion_loras: list[LoRAField] = Field(default_factory=list, description="Motion LoRAs to apply to the motion module")


class AnimateDiffPromptScheduleField(BaseModel):
    """Prompts over time, encoded."""

    conditioning_names: list[str] = Field(description="The names of the stored conditionings, one for each line of the schedule")
    frames: list[int] = Field(description="The frame that each of them rules alone, counted from 0")
    num_frames: int = Field(description="Frames of the clip that the schedule was written for")
    loop: bool = Field(default=False, description="The last prompt leads back to the first")


class AnimateDiffControlFramesField(BaseModel):
    """A ControlNet with one picture for each frame."""

    images: list[ImageField] = Field(description="The control images in playing order, one for each frame")
    control_model: ModelIdentifierField = Field(description="The ControlNet model")
    control_weight: float | list[float] = Field(default=1.0, description="The weight given to the ControlNet, or one for each step")
    begin_step_percent: float = Field(default=0.0, ge=0, le=1, description="Share of the steps at which it begins")
    end_step_percent: float = Field(default=1.0, ge=0, le=1, description="Share of the steps at which it ends")
    control_mode: CONTROLNET_MODE_VALUES = Field(default="balanced", description="The control mode")
    resize_mode: CONTROLNET_RESIZE_VALUES = Field(default="just_resize", description="How images are brought to the clip's size")


class AnimateDiffSparseControlField(BaseModel):
    """A SparseCtrl with pictures for some of the frames."""

    images: list[ImageField] = Field(description="The keyframes' images")
    frames: list[int] = Field(description="The frame that each of them is for, counted from 0")
    control_model: ModelIdentifierField = Field(description="The SparseCtrl model")
    weight: float = Field(default=1.0, description="The weight given to it")
    resize_mode: CONTROLNET_RESIZE_VALUES = Field(default="just_resize", description="How images are brought to the clip's size")
    vae: Optional[VAEField] = Field(default=None, description="The VAE, for a SparseCtrl that reads latents")


class AnimateDiffWindowsField(BaseModel):
    """How a clip that is longer than the motion module's limit is made in windows."""

    length: int = Field(description="Frames in one window; 0: 16, or the motion module's limit where that is less")
    overlap: int = Field(description="Frames that neighbouring windows share at least")
    stride: int = Field(default=1, description="1, 2, 4 or 8: windows of every frame, and also of every 2nd, 4th, 8th")
    kind: WindowKindChoice = Field(default="standard", description="How windows lie")
    weights: WindowWeightsChoice = Field(default="pyramid", description="How the frames of a window count where windows overlap")
    noise: WindowNoiseChoice = Field(default="random", description="The noise beyond the first window")


class AnimateDiffFreeInitField(BaseModel):
    """FreeInit: the clip is made several times, each from the slow and coarse part of the one before."""

    iterations: int = Field(description="How often the clip is made")
    fast: bool = Field(default=False, description="The first times take fewer steps")
    method: FilterChoice = Field(default="butterworth", description="The filter that says what is coarse")
    order: int = Field(default=4, description="The Butterworth filter's order")
    spatial_stop: float = Field(default=0.25, description="Below this frequency the picture is kept, 0 to 1")
    temporal_stop: float = Field(default=0.25, description="Below this frequency the motion is kept, 0 to 1")


@invocation_output("animatediff_motion_lora_output")
class AnimateDiffModelOutput(BaseInvocationOutput):
    """A UNet with a motion module."""

    model: AnimateDiffModelField = OutputField(description="The UNet and the motion module.", title="AnimateDiff Model")


@invocation_output("animatediff_prompt_schedule_output")
class AnimateDiffPromptScheduleOutput(BaseInvocationOutput):
    """Prompts over time."""

    prompt_schedule: AnimateDiffPromptScheduleField = OutputField(description="The encoded prompts.", title="Prompt Schedule")
    num_frames: int = OutputField(description="How many frames the schedule is for.")


@invocation_output("animatediff_control_frames_output")
class AnimateDiffControlFramesOutput(BaseInvocationOutput):
    """A ControlNet with one picture for each frame."""

    control_frames: AnimateDiffControlFramesField = OutputField(description="The ControlNet with its images.", title="Control Frames")
    num_frames: int = OutputField(description="How many images there are.")


@invocation_output("animatediff_sparse_control_output")
class AnimateDiffSparseControlOutput(BaseInvocationOutput):
    """A SparseCtrl with its keyframes."""

    sparse_control: AnimateDiffSparseControlField = OutputField(description="The SparseCtrl with its keyframes.", title="SparseCtrl")


@invocation_output("animatediff_windows_output")
class AnimateDiffWindowsOutput(BaseInvocationOutput):
    """Settings of context windows."""

    windows: AnimateDiffWindowsField = OutputField(description="The settings.", title="Context Windows")


@invocation_output("animatediff_free_init_output")
class AnimateDiffFreeInitOutput(BaseInvocationOutput):
    """Settings of FreeInit."""

    free_init: AnimateDiffFreeInitField = OutputField(description="The settings.", title="FreeInit")
