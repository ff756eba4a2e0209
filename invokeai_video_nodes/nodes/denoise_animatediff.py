"""Prompt and noise -> the latents of a clip, with a Stable Diffusion 1.5 UNet and a motion module of AnimateDiff.

Everything that can be refused is refused before a model is loaded. Both models come from InvokeAI's cache and go back as they were.
"""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Annotated, Any, Optional, Union

import torch
from invokeai.app.invocations.baseinvocation import BaseInvocation, Classification, invocation
from invokeai.app.invocations.controlnet import ControlField
from invokeai.app.invocations.fields import ConditioningField, ImageField, Input, InputField, LatentsField, UIType
from invokeai.app.invocations.model import LoRAField
from invokeai.app.invocations.primitives import LatentsOutput
from invokeai.app.services.shared.invocation_context import InvocationContext
from invokeai.backend.patches.layer_patcher import LayerPatcher, PatchSpec
from invokeai.backend.patches.model_patch_raw import ModelPatchRaw
from invokeai.backend.stable_diffusion.extensions.seamless import SeamlessExt
from invokeai.backend.stable_diffusion.schedulers.schedulers import SCHEDULER_NAME_VALUES
from pydantic import Field

from invokeai_video_nodes.nodes.animatediff_adapters import IPAdapters, T2IAdapters, adapters, check_adapters
from invokeai_video_nodes.nodes.animatediff_controls import Controls
from invokeai_video_nodes.nodes.animatediff_fields import (
    AnimateDiffControlFramesField,
    AnimateDiffFreeInitField,
    AnimateDiffModelField,
    AnimateDiffPromptScheduleField,
    AnimateDiffSparseControlField,
    AnimateDiffWindowsField,
)
from invokeai_video_nodes.nodes.animatediff_inputs import (
    Windows,
    clip_of,
    free_init_settings,
    motion_of,
    noise_of,
    prompts_of,
    windows_of,
)
from invokeai_video_nodes.nodes.animatediff_parts import PUBLIC_UNET, check_model
from invokeai_video_nodes.nodes.clip_latents import ClipFacts, save_clip
from invokeai_video_nodes.nodes.compute import compute_device
from invokeai_video_nodes.nodes.fields import CATEGORY, GUIDANCE, SEED, STEPS, Describe, with_limits
from invokeai_video_nodes.nodes.progress import StepPreview, stops_when_canceled
from invokeai_video_nodes.pipelines.animatediff.denoise import Clip, check_denoise_input, denoise, steps_of_runs
from invokeai_video_nodes.pipelines.animatediff.free_init import FreeInit
from invokeai_video_nodes.pipelines.animatediff.free_noise import FreeNoise
from invokeai_video_nodes.pipelines.animatediff.presets import make_scheduler
from invokeai_video_nodes.pipelines.animatediff.unet import compute_dtype, motion_unet
from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.guidance import is_guided
from invokeai_video_nodes.pipelines.memory import motion_working_bytes
from invokeai_video_nodes.pipelines.preview import SD1_FACTORS
from invokeai_video_nodes.pipelines.shapes import FRAME_RULES, ClipShape
from invokeai_video_nodes.pipelines.stopping import cancelable
from invokeai_video_nodes.pipelines.windows import ContextWindows, predict_in_windows

RULE = FRAME_RULES["animatediff"]
FRAMES = {"minimum": RULE.min_frames, "maximum": RULE.max_frames}
PIXELS = {"minimum": RULE.size_step, "maximum": RULE.max_size, "step": RULE.size_step}
# `le` refuses inf and nan too, which the queue could not store.
MotionNumber = Annotated[float, Field(ge=0.0, le=100.0)]


@invocation(
    "animatediff_denoise",
    title="Denoise Video - AnimateDiff",
    tags=["video", "animatediff", "denoise", "sd1.5", "txt2vid", "vid2vid"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class AnimateDiffDenoiseInvocation(BaseInvocation):
    """Turns noise, or a clip, into the latents of a video clip, following the prompt."""

    num_frames: int = with_limits(
        InputField(
            default=16,
            description="How many frames the clip has (4 to 128). Above the motion module's limit it is made in windows by itself.",
        ),
        **FRAMES,
    )
    fps: int = InputField(default=8, ge=1, le=60, description=Describe.fps, title="Frames per Second")
    width: int = with_limits(InputField(default=512, description="Width of the clip in pixels, a multiple of 8."), **PIXELS)
    height: int = with_limits(InputField(default=512, description="Height of the clip in pixels, a multiple of 8."), **PIXELS)
    steps: int = InputField(default=25, description=Describe.steps, **STEPS)
    seed: int = InputField(default=0, description=Describe.seed, **SEED)
    guidance_scale: float = InputField(
        default=7.5, description=Describe.guidance_scale, title="Guidance Scale", **GUIDANCE
    )
    scheduler: SCHEDULER_NAME_VALUES = InputField(
        default="ddim",
        description="How each step is taken. The motion module's loader shows which one suits it. er_sde does not run here.",
        ui_type=UIType.Scheduler,
    )
    eta: float = InputField(
        default=0.0, ge=0.0, le=1.0, description="Share of new noise in each step, for the schedulers DDIM and TCD."
    )
    model: AnimateDiffModelField = InputField(
        description="The UNet and the motion module.", input=Input.Connection, title="AnimateDiff Model"
    )
    positive_conditioning: Optional[Union[ConditioningField, list[ConditioningField]]] = InputField(
        default=None,
        description="What the clip shows. Give either this or a prompt schedule.",
        input=Input.Connection,
        title="Positive Conditioning",
    )
    negative_conditioning: Optional[Union[ConditioningField, list[ConditioningField]]] = InputField(
        default=None,
        description="What the clip should not show. Needed when the guidance scale is above 1.0; the prompt may be empty.",
        input=Input.Connection,
        title="Negative Conditioning",
    )
    prompt_schedule: Optional[AnimateDiffPromptScheduleField] = InputField(
        default=None, description="Prompts over time, instead of one positive prompt.", input=Input.Connection, title="Prompt Schedule"
    )
    control: Optional[Union[ControlField, list[ControlField]]] = InputField(
        default=None,
        description="A ControlNet, or several; the one image of each steers all frames.",
        input=Input.Connection,
        title="Control",
    )
    control_frames: Optional[Union[AnimateDiffControlFramesField, list[AnimateDiffControlFramesField]]] = InputField(
        default=None,
        description="A ControlNet, or several, with one image for each frame.",
        input=Input.Connection,
        title="Control Frames",
    )
    sparse_control: Optional[AnimateDiffSparseControlField] = InputField(
        default=None, description="Keyframes for a SparseCtrl model.", input=Input.Connection, title="SparseCtrl"
    )
    latents: Optional[LatentsField] = InputField(
        default=None, description="A clip to start from instead of noise, of the same frames and size.", input=Input.Connection
    )
    strength: float = InputField(
        default=1.0, gt=0.0, le=1.0, description="How much of the clip that comes in is made anew: 1.0 all of it, 0.3 little."
    )
    mask: Optional[ImageField] = InputField(
        default=None, description="Where the clip that comes in is made anew: white changes, black stays. Of the clip's size."
    )
    motion_scale: Union[MotionNumber, list[MotionNumber]] = InputField(
        default=1.0,
        description="How strongly things move, 0 to 100: 1.0 as trained, 0.0 not at all. One number, or one for each frame.",
        title="Motion Scale",
    )
    motion_mask: Optional[ImageField] = InputField(
        default=None, description="Where things move: white moves, black stays still. Of the clip's size.", title="Motion Mask"
    )
    windows: Optional[AnimateDiffWindowsField] = InputField(
        default=None,
        description="How a long clip is made in windows. Empty: windows of 16 frames above the motion module's limit.",
        input=Input.Connection,
        title="Context Windows",
    )
    loop: bool = InputField(
        default=False, description="The last frame leads into the first, so that the clip can be repeated. Needs windows."
    )
    free_init: Optional[AnimateDiffFreeInitField] = InputField(
        default=None, description="FreeInit: makes the clip several times, for steadier motion.", input=Input.Connection, title="FreeInit"
    )
    ip_adapter: IPAdapters = InputField(
        default=None,
        description="Pictures as a second prompt: one IP-Adapter, or several.",
        input=Input.Connection,
        title="IP-Adapter",
    )
    t2i_adapter: T2IAdapters = InputField(
        default=None,
        description="A picture that every frame follows: one T2I-Adapter, or several.",
        input=Input.Connection,
        title="T2I-Adapter",
    )

    @torch.no_grad()
    def invoke(self, context: InvocationContext) -> LatentsOutput:
        main, module = check_model(context, self.model)
        shape = ClipShape("animatediff", self.num_frames, height=self.height, width=self.width, latent_channels=4)
        self._check_choices()
        free_init = None if self.free_init is None else free_init_settings(self.free_init)
        clip = clip_of(context, self.latents, shape=shape, strength=self.strength, mask=self.mask)
        scheduler = self._scheduler(main, module, free_init=free_init)
        steps = steps_of_runs(scheduler, steps=self.steps, strength=self.strength, free_init=free_init)
        controls = Controls(_listed(self.control), _listed(self.control_frames), self.sparse_control)
        controls.check(context, shape, steps=steps)
        check_adapters(context, self.ip_adapter, self.t2i_adapter, shape=shape, steps=steps)
        windows = windows_of(self.windows, num_frames=self.num_frames, limit=module.max_frames, loop=self.loop, logger=context.logger)
        settings = {
            **self._noise_and_prompts(context, module, shape=shape, clip=clip, windows=windows),
            "guidance_scale": self.guidance_scale,
            "scheduler": scheduler,
            "steps": self.steps,
            "free_init": free_init,
            "eta": self.eta,
        }
        at_once = windows.frames_at_once(self.num_frames) if isinstance(windows, ContextWindows) else self.num_frames
        result = self._denoised(context, settings, controls=controls, shape=shape, frames_at_once=at_once)
        return save_clip(context, result, ClipFacts(fps=self.fps, family=shape.family))

    def _check_choices(self) -> None:
        """Raise BadInput for fields that contradict each other; nothing is read for it."""
        if self.guidance_scale > 1.0 and self.negative_conditioning is None:
            expected = "1.0, or a negative prompt connected (it may be empty)"
            raise BadInput.expected("guidance_scale", expected, f"{self.guidance_scale:g} without one", 1.0)
        if self.free_init is not None and self.latents is not None:
            raise BadInput.expected("FreeInit", "a clip made from noise alone", "a clip to start from", "FreeInit off")

    def _noise_and_prompts(
        self, context: InvocationContext, module: Any, *, shape: ClipShape, clip: Clip | None, windows: Windows | None
    ) -> dict[str, Any]:
        """What goes by frames, as the core's `denoise` takes it; raises BadInput for what does not fit the clip."""
        positive, negative = prompts_of(
            context,
            positive=self.positive_conditioning,
            negative=self.negative_conditioning,
            schedule=self.prompt_schedule,
            num_frames=self.num_frames,
        )
        generator = torch.Generator("cpu").manual_seed(self.seed)
        noise = noise_of(shape, generator=generator, windows=windows, field=self.windows)
        scale = motion_of(context, self.motion_scale, self.motion_mask, shape=shape)
        limit = module.max_frames if windows is None else None
        check_denoise_input(PUBLIC_UNET, noise=noise, prompts=[positive, negative], clip=clip, scale=scale, limit=limit)
        return {
            "noise": noise.to(compute_device()),
            "positive": positive,
            "negative": negative,
            "clip": clip,
            "scale": scale,
            "windows": partial(predict_in_windows, settings=windows) if isinstance(windows, ContextWindows) else None,
            "free_noise": windows if isinstance(windows, FreeNoise) else None,
            "generator": generator,
        }

    def _scheduler(self, main: Any, module: Any, *, free_init: FreeInit | None) -> Any:
        """A scheduler with the motion module's noise schedule; raises BadInput for one that cannot do what is asked."""
        # Of the main model only what its UNet predicts: its own noise schedule is for pictures.
        config = {"prediction_type": main.prediction_type.value}
        scheduler = make_scheduler(self.scheduler, beta_schedule=module.beta_schedule, config=config, seed=self.seed)
        if free_init is not None:
            free_init.check_scheduler(scheduler, name=self.scheduler)
        if self.eta > 0.0 and "eta" not in inspect.signature(scheduler.step).parameters:
            raise BadInput.expected("eta", "0.0, or the scheduler ddim or tcd", f"{self.eta:g} with {self.scheduler}", 0.0)
        return scheduler

    def _denoised(
        self, context: InvocationContext, settings: dict[str, Any], *, controls: Controls, shape: ClipShape, frames_at_once: int
    ) -> torch.Tensor:
        """Load the models and run the core."""
        halves = 2 if is_guided(self.guidance_scale, settings["negative"]) else 1
        sizes = {"frames": frames_at_once, "halves": halves, "height": shape.latent_height, "width": shape.latent_width}
        preview = StepPreview(context, size=(self.width, self.height), factors=SD1_FACTORS)
        with (
            stops_when_canceled(context) as stop,
            adapters(context, self.ip_adapter, self.t2i_adapter, shape=shape) as steering,
            controls.loaded(context, shape) as opened,
            animated_unet(context, self.model, **sizes) as unet,
            cancelable([*unet.down_blocks, unet.mid_block, *unet.up_blocks], stop),
        ):
            return denoise(unet, **settings, **steering, controls=opened, on_step=preview, stop=stop)


def _listed(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [] if given is None else [given]


@contextmanager
def animated_unet(context: InvocationContext, model: AnimateDiffModelField, **sizes: int) -> Iterator[Any]:
    """The UNet and the motion module on the device as one video UNet, with LoRAs, FreeU and seamless tiling; undone afterwards.

    `sizes` are those of one model call, as `motion_working_bytes` takes them.
    """
    with ExitStack() as stack:
        adapter_weights, adapter = stack.enter_context(context.models.load(model.motion_module).model_on_device())
        loaded = context.models.load(model.unet.unet)
        first_width, dtype = loaded.model.config.block_out_channels[0], compute_dtype(loaded.model)
        needed = motion_working_bytes(**sizes, first_width=first_width, element_size=dtype.itemsize)
        unet_weights, unet = stack.enter_context(loaded.model_on_device(working_mem_bytes=needed))
        stack.enter_context(SeamlessExt.static_patch_model(unet, model.unet.seamless_axes))
        for patched, loras, prefix, cached in (
            (unet, model.unet.loras, "lora_unet_", unet_weights),
            (adapter, model.motion_loras, "", adapter_weights),
        ):
            patches = LayerPatcher.apply_smart_model_patches(
                model=patched, patches=_patches(context, loras), prefix=prefix, dtype=compute_dtype(patched), cached_weights=cached
            )
            stack.enter_context(patches)
        animated = stack.enter_context(motion_unet(unet, adapter))
        if model.unet.freeu_config is not None:
            # Set on the frame alone, which nobody keeps.
            animated.enable_freeu(**model.unet.freeu_config.model_dump())
        yield animated


def _patches(context: InvocationContext, loras: list[LoRAField]) -> Iterator[PatchSpec]:
    for lora in loras:
        loaded = context.models.load(lora.lora)
        if not isinstance(loaded.model, ModelPatchRaw):
            raise BadInput.expected(f"LoRA '{lora.lora.name}'", "a LoRA", type(loaded.model).__name__)
        yield (loaded.model, lora.weight, loaded.model_in_ram())
