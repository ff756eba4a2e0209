"""Prompt and noise -> the latents of a clip, with a Z-Image Video transformer.

Everything that can be refused is refused before the transformer is loaded. Pictures (start image, control) are encoded first and
their VAE is let go, then the transformer comes into memory for the whole denoise.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Optional

import torch
from invokeai.app.invocations.baseinvocation import BaseInvocation, Classification, invocation
from invokeai.app.invocations.fields import (
    FieldDescriptions,
    ImageField,
    Input,
    InputField,
    LatentsField,
    ZImageConditioningField,
)
from invokeai.app.invocations.model import TransformerField, VAEField
from invokeai.app.invocations.primitives import LatentsOutput
from invokeai.app.invocations.z_image_control import ZImageControlField
from invokeai.app.services.shared.invocation_context import InvocationContext
from invokeai.backend.patches.lora_conversions.z_image_lora_constants import Z_IMAGE_LORA_TRANSFORMER_PREFIX as LORA_PREFIX

from invokeai_video_nodes.nodes.clip_latents import ClipFacts, load_clip, save_clip
from invokeai_video_nodes.nodes.compute import compute_device, compute_dtype
from invokeai_video_nodes.nodes.encode_image import encode_images
from invokeai_video_nodes.nodes.fields import (
    CATEGORY,
    F_PATCHES,
    FAMILY,
    FRAMES,
    GUIDANCE,
    PIXELS,
    SCHEDULER_LABELS,
    SEED,
    SHIFT,
    STEPS,
    Describe,
    require_z_image_video,
    with_limits,
)
from invokeai_video_nodes.nodes.loras import loras_applied
from invokeai_video_nodes.nodes.progress import StepPreview, preview_factors, stops_when_canceled
from invokeai_video_nodes.nodes.z_image_model import (
    Prompts,
    load_control,
    load_prompts,
    require_caption_width,
    scheduler_config,
)
from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.memory import denoise_working_bytes
from invokeai_video_nodes.pipelines.sampling import noised
from invokeai_video_nodes.pipelines.schedules import SchedulerName, flow_match_scheduler
from invokeai_video_nodes.pipelines.shapes import ClipShape, check_f_patch_size
from invokeai_video_nodes.pipelines.z_image.control import guided_call, repeated
from invokeai_video_nodes.pipelines.z_image.denoise import denoise


@dataclass(frozen=True)
class Pictures:
    """Encoded images: `start` [1, C, 1, h, w], `control` [C, F, h, w], or None where the graph has none."""

    start: torch.Tensor | None
    control: torch.Tensor | None


@invocation(
    "z_image_video_denoise",
    title="Denoise Video - Z-Image",
    tags=["video", "z-image", "denoise"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class ZImageVideoDenoiseInvocation(BaseInvocation):
    """Turns noise into the latents of a video clip, following the prompt."""

    num_frames: int = with_limits(InputField(default=16, description=Describe.num_frames), **FRAMES)
    fps: int = InputField(default=8, ge=1, le=60, description=Describe.fps, title="Frames per Second")
    f_patch_size: int = with_limits(InputField(default=2, description=Describe.f_patch_size, title="Frame Patch Size"), **F_PATCHES)
    width: int = with_limits(InputField(default=512, description=Describe.width), **PIXELS)
    height: int = with_limits(InputField(default=512, description=Describe.height), **PIXELS)
    steps: int = InputField(default=8, description=Describe.steps, **STEPS)
    seed: int = InputField(default=0, description=Describe.seed, **SEED)
    guidance_scale: float = InputField(
        default=1.0, description=Describe.guidance_scale, title="Guidance Scale", **GUIDANCE
    )
    scheduler: SchedulerName = InputField(
        default="euler", description="How each step is taken. Euler is the default.", ui_choice_labels=SCHEDULER_LABELS
    )
    # The workflow editor fills 0 into an optional number that has no default, so 0 means the same as empty.
    shift: Optional[float] = InputField(default=None, description=Describe.shift, **SHIFT)
    transformer: TransformerField = InputField(description=FieldDescriptions.z_image_model, input=Input.Connection, title="Transformer")
    positive_conditioning: ZImageConditioningField | list[ZImageConditioningField] = InputField(
        description="What the clip shows: one prompt, or several prompts with regions of the picture.", input=Input.Connection
    )
    negative_conditioning: ZImageConditioningField | list[ZImageConditioningField] | None = InputField(
        default=None,
        description="What the clip should not show. Used when the guidance scale is above 1.0; regions are ignored.",
        input=Input.Connection,
    )
    latents: Optional[LatentsField] = InputField(
        default=None,
        description="Latents to start from instead of noise, of the same frames and size.",
        input=Input.Connection,
    )
    denoising_start: float = InputField(
        default=0.0, ge=0.0, le=1.0, description="Where in the schedule to begin, 0.0 to 1.0. Above 0.0 needs latents."
    )
    denoising_end: float = InputField(default=1.0, ge=0.0, le=1.0, description="Where in the schedule to end, 0.0 to 1.0.")
    add_noise: bool = InputField(
        default=True,
        description="Add noise to the incoming latents to match the start. Latents that already carry noise are left alone.",
    )
    start_image: Optional[ImageField] = InputField(
        default=None, description="A picture for the first frame, stretched to width x height. Needs a VAE."
    )
    motion_strength: float = InputField(
        default=0.7,
        ge=0.0,
        le=1.0,
        description="How freely the clip moves away from the start image: 0.0 keeps frame 0 exactly, "
        "1.0 shows it to the model in the first step only.",
    )
    vae: Optional[VAEField] = InputField(
        default=None, description="Encodes the start image and the control images.", input=Input.Connection
    )
    control: Optional[ZImageControlField] = InputField(
        default=None,
        description="A Z-Image control (edges, depth, pose): its one image steers all frames. Needs a VAE.",
        input=Input.Connection,
    )
    control_frames: Optional[list[ImageField]] = InputField(
        default=None,
        description="One control image for each frame, in order; used instead of the control's own image.",
        input=Input.Connection,
    )

    @torch.no_grad()
    def invoke(self, context: InvocationContext) -> LatentsOutput:
        record = context.models.get_config(self.transformer.transformer)
        shape = self._checked_shape(record)
        if record.experimental:
            context.logger.warning(f"'{record.name}' is a still-image checkpoint: expect no meaningful video from it.")
        negative = self.negative_conditioning if self.guidance_scale > 1.0 else None
        prompts = load_prompts(context, self.positive_conditioning, negative, shape)
        require_caption_width(context, record, prompts)
        scheduler = self._scheduler(context, record, shape)
        latents = self._first_latents(context, shape, sigma=float(scheduler.sigmas[0]))
        pictures = self._encoded_pictures(context, shape)
        result = self._denoised(context, record, shape, prompts, scheduler, latents, pictures)
        # Stopped before the end of the schedule, what comes out still holds noise, and the next denoise must not add more.
        facts = ClipFacts(fps=self.fps, is_noised=self.denoising_end < 1.0, f_patch_size=self.f_patch_size)
        return save_clip(context, result, facts)

    def _checked_shape(self, record: Any) -> ClipShape:
        """The clip's sizes. Raises BadInput for what this checkpoint or these connections cannot do; nothing is loaded yet."""
        require_z_image_video(record, "transformer")
        check_f_patch_size(self.f_patch_size, record.f_patch_sizes)
        if self.control_frames is not None:
            if self.control is None:
                raise BadInput.expected("control", "a Z-Image control beside the control frames", "none")
            if len(self.control_frames) != self.num_frames:
                expected = f"{self.num_frames} images, one for each frame"
                raise BadInput.expected("control_frames", expected, len(self.control_frames), self.num_frames)
        if self.vae is None and (self.start_image or self.control):
            raise BadInput.expected("vae", f"a VAE to encode the {'start' if self.start_image else 'control'} image", "none")
        return ClipShape(
            family=FAMILY,
            num_frames=self.num_frames,
            height=self.height,
            width=self.width,
            f_patch_size=self.f_patch_size,
            latent_channels=record.latent_channels,
        )

    def _scheduler(self, context: InvocationContext, record: Any, shape: ClipShape) -> Any:
        return flow_match_scheduler(
            self.scheduler,
            config=scheduler_config(context, self.transformer, record),
            shift=self.shift or None,
            steps=self.steps,
            image_tokens=shape.image_tokens,
            denoising_start=self.denoising_start,
            denoising_end=self.denoising_end,
        )

    def _first_latents(self, context: InvocationContext, shape: ClipShape, *, sigma: float) -> torch.Tensor:
        """Latents [1, C, F, h, w] at noise level `sigma`, float32 on the CPU."""
        if self.latents is None:
            if self.denoising_start > 0.0:
                raise BadInput.expected("denoising_start", "0.0 where no latents come in", self.denoising_start, 0.0)
            return shape.noise(self.seed)
        given, facts = load_clip(context, self.latents)
        shape.check_clip(given)
        if facts.is_noised or not self.add_noise:
            return given.float()
        return noised(given.float(), noise=shape.noise(self.seed), sigma=sigma)

    def _encoded_pictures(self, context: InvocationContext, shape: ClipShape) -> Pictures:
        """Encode the start image and the control images, before the transformer takes its memory."""
        if self.vae is None:
            return Pictures(start=None, control=None)
        encode = partial(encode_images, context, self.vae, size=(self.width, self.height), channels=shape.latent_channels)
        start = encode([self.start_image]) if self.start_image else None
        control = None
        if self.control is not None:
            images = self.control_frames or [ImageField(image_name=self.control.image_name)]
            control = repeated(encode(images)[0], num_frames=shape.latent_frames)
        return Pictures(start=start, control=control)

    def _denoised(
        self,
        context: InvocationContext,
        record: Any,
        shape: ClipShape,
        prompts: Prompts,
        scheduler: Any,
        latents: torch.Tensor,
        pictures: Pictures,
    ) -> torch.Tensor:
        device = compute_device()
        dtype = compute_dtype(device)
        factors = preview_factors(context.models.get_absolute_path(record), shape.latent_channels)
        with ExitStack() as stack:
            stop = stack.enter_context(stops_when_canceled(context))
            loaded = context.models.load(self.transformer.transformer)
            needed = denoise_working_bytes(
                shape, dim=loaded.model.config.dim, caption_tokens=len(prompts.positive), element_size=dtype.itemsize
            )
            weights, transformer = stack.enter_context(loaded.model_on_device(working_mem_bytes=needed))
            stack.enter_context(loras_applied(context, self.transformer, record, transformer, weights, prefix=LORA_PREFIX))
            control = None
            if self.control is not None and pictures.control is not None:
                control = load_control(context, stack, self.control, pictures.control)
            return denoise(
                transformer,
                latents=latents.to(device),
                positive=prompts.positive,
                negative=prompts.negative,
                guidance_scale=self.guidance_scale,
                scheduler=scheduler,
                f_patch_size=self.f_patch_size,
                generator=torch.Generator("cpu").manual_seed(self.seed),
                start_frame=pictures.start,
                motion_strength=self.motion_strength,
                predict=guided_call(transformer, f_patch_size=self.f_patch_size, control=control, regions=prompts.regions),
                on_step=StepPreview(context, size=(self.width, self.height), factors=factors),
                stop=stop,
                dtype=dtype,
            )
