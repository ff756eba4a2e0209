"""Prompt and noise -> the latents of a clip, with a HunyuanVideo transformer: text, image and video to video.

Everything that can be refused is refused before the transformer is loaded.
"""

from typing import Any, Literal, Optional

import numpy as np
import torch
from invokeai.app.invocations.baseinvocation import BaseInvocation, Classification, invocation
from invokeai.app.invocations.fields import FieldDescriptions, ImageField, Input, InputField, LatentsField
from invokeai.app.invocations.model import TransformerField, VAEField
from invokeai.app.invocations.primitives import LatentsOutput
from invokeai.app.services.shared.invocation_context import InvocationContext
from invokeai.backend.model_manager.taxonomy import ModelFormat, SubModelType

from invokeai_video_nodes.nodes.clip_latents import ClipFacts, load_clip, save_clip
from invokeai_video_nodes.nodes.compute import compute_device, compute_dtype
from invokeai_video_nodes.nodes.fields import (
    CATEGORY,
    GUIDANCE,
    PIXELS,
    SCHEDULER_LABELS,
    SEED,
    SHIFT,
    STEPS,
    Describe,
    with_limits,
)
from invokeai_video_nodes.nodes.hunyuan_fields import (
    HunyuanVideoConditioningField,
    HunyuanVideoStartField,
    load_features,
    require_hunyuan_video,
)
from invokeai_video_nodes.nodes.loras import loras_applied
from invokeai_video_nodes.nodes.progress import StepPreview, fitted_factors, stops_when_canceled
from invokeai_video_nodes.pipelines.attention import Attention, check_attention
from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.hunyuan_video.conditioning import Features, check_features
from invokeai_video_nodes.pipelines.hunyuan_video.denoise import (
    CONCAT,
    check_denoise_input,
    denoise,
    extra_frames,
    first_latents,
    with_extra,
)
from invokeai_video_nodes.pipelines.masks import latent_mask
from invokeai_video_nodes.pipelines.memory import denoise_working_bytes
from invokeai_video_nodes.pipelines.sampling import KeptRegion, noised
from invokeai_video_nodes.pipelines.schedules import flow_match_scheduler
from invokeai_video_nodes.pipelines.shapes import FRAME_RULES, ClipShape, seeded_noise
from invokeai_video_nodes.pipelines.step_cache import THRESHOLDS, Preset, StepCache, check_step_cache

RULE = FRAME_RULES["hunyuan-video"]
FRAMES = {"minimum": RULE.min_frames, "maximum": RULE.max_frames}
# A single file brings no schedule: what the public checkpoints use.
_SCHEDULE = {"num_train_timesteps": 1000, "shift": 7.0}


@invocation(
    "hunyuan_video_denoise",
    title="Denoise Video - HunyuanVideo",
    tags=["video", "hunyuan", "denoise"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class HunyuanVideoDenoiseInvocation(BaseInvocation):
    """Turns noise into the latents of a video clip, following the prompt."""

    num_frames: int = with_limits(
        InputField(default=61, description="How many frames the clip has: 4n+1, so 5, 9, 13 and so on up to 129."), **FRAMES
    )
    fps: int = InputField(default=24, ge=1, le=60, description=Describe.fps, title="Frames per Second")
    width: int = with_limits(InputField(default=512, description=Describe.width), **PIXELS)
    height: int = with_limits(InputField(default=320, description=Describe.height), **PIXELS)
    steps: int = InputField(default=30, description=Describe.steps, **STEPS)
    seed: int = InputField(default=0, description=Describe.seed, **SEED)
    guidance_scale: float = InputField(
        default=6.0,
        description="How closely the clip follows the prompt; distilled models read it as a number, at no cost.",
        title="Guidance Scale",
        **GUIDANCE,
    )
    true_cfg_scale: float = InputField(
        default=1.0,
        description="Above 1.0 the negative prompt is pushed away, and every step takes twice as long. HunyuanVideo-1.5: 6.0.",
        title="True CFG Scale",
        **GUIDANCE,
    )
    scheduler: Literal["euler", "heun"] = InputField(
        default="euler",
        description="How each step is taken. Euler is the default.",
        ui_choice_labels={name: SCHEDULER_LABELS[name] for name in ("euler", "heun")},
    )
    # The workflow editor fills 0 into an optional number that has no default, so 0 means the same as empty.
    shift: Optional[float] = InputField(default=None, description=Describe.shift, **SHIFT)
    transformer: TransformerField = InputField(description=FieldDescriptions.transformer, input=Input.Connection, title="Transformer")
    positive_conditioning: HunyuanVideoConditioningField = InputField(
        description="What the clip shows.", input=Input.Connection, title="Positive Conditioning"
    )
    negative_conditioning: Optional[HunyuanVideoConditioningField] = InputField(
        default=None,
        description="What the clip should not show. Used when the true CFG scale is above 1.0.",
        input=Input.Connection,
        title="Negative Conditioning",
    )
    start_image: Optional[HunyuanVideoStartField] = InputField(
        default=None, description="The start image of an image-to-video model.", input=Input.Connection, title="Start Image"
    )
    latents: Optional[LatentsField] = InputField(
        default=None, description="A clip to start from instead of noise, of the same frames and size.", input=Input.Connection
    )
    strength: float = InputField(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="How much of the clip that comes in is made anew: 1.0 all of it, 0.3 little.",
    )
    mask: Optional[ImageField] = InputField(
        default=None,
        description="Where the clip that comes in is made anew: white changes, black stays. Of the clip's size.",
    )
    step_cache: Preset = InputField(
        default="off",
        description="Skips the work of steps that differ little from the last: safe changes hardly anything, fast trades detail for time.",
        ui_choice_labels={"off": "Off", "safe": "Safe", "fast": "Fast"},
    )
    attention: Attention = InputField(
        default="sdpa",
        description="The kernel that computes attention; others than SDPA need a GPU and, for xFormers, its package.",
        ui_choice_labels={"sdpa": "SDPA", "cudnn": "cuDNN", "xformers": "xFormers"},
    )
    vae: Optional[VAEField] = InputField(
        default=None, description="The model's VAE, for a preview while the clip is made.", input=Input.Connection, title="VAE (Preview)"
    )

    @torch.no_grad()
    def invoke(self, context: InvocationContext) -> LatentsOutput:
        record = context.models.get_config(self.transformer.transformer)
        shape = self._checked_shape(record)
        if record.guidance_embeds and self.true_cfg_scale > 1.0:
            context.logger.warning(
                f"True CFG scale {self.true_cfg_scale:g}: every step takes twice as long. '{record.name}' is distilled, so that the "
                "guidance scale alone is enough for it."
            )
        extra = extra_frames(record.condition, generation=record.generation)
        noise = seeded_noise(with_extra(shape.latent_shape, extra), self.seed)
        positive, negative = self._features(context, record)
        clean = self._incoming_clip(context, record, shape)
        mask = self._mask(context, shape)
        scheduler = flow_match_scheduler(
            self.scheduler,
            config=self._schedule(context, record),
            shift=self.shift or None,
            steps=self.steps,
            image_tokens=shape.image_tokens,
            denoising_start=1.0 - self.strength,
        )
        start, picture = self._start(context, record)
        latents = noise
        if clean is not None:
            latents = noised(clean, noise=noise, sigma=float(scheduler.sigmas[0]))
        elif start is not None and record.generation == "1.0":
            latents = first_latents(noise, start)
        kept = None if mask is None or clean is None else KeptRegion(clean=clean, noise=noise, change=mask)
        cache = StepCache(THRESHOLDS[self.step_cache])
        inputs = {"latents": latents, "positive": positive, "negative": negative, "start_frame": start, "picture": picture}
        result = self._denoised(context, record, shape, inputs, scheduler=scheduler, kept=kept, cache=cache)
        if cache.threshold is not None:
            context.logger.info(f"Step cache ({self.step_cache}): {cache.skipped} of {cache.calls} model calls were skipped.")
        facts = ClipFacts(fps=self.fps, skip_frames=extra, spatial_factor=shape.rule.spatial_factor, skipped_calls=cache.skipped)
        return save_clip(context, result, facts)

    def _checked_shape(self, record: Any) -> ClipShape:
        """The clip's sizes. Raises BadInput for what this checkpoint or these connections cannot do; nothing is loaded yet."""
        require_hunyuan_video(record, "transformer")
        check_step_cache(self.step_cache, self.steps)
        check_attention(self.attention)
        if self.true_cfg_scale > 1.0 and self.negative_conditioning is None:
            expected = "1.0, or a negative prompt connected (it may be empty)"
            raise BadInput.expected("true_cfg_scale", expected, f"{self.true_cfg_scale:g} without one", 1.0)
        if self.latents is None and self.strength != 1.0:
            raise BadInput.expected("strength", "1.0, because no clip comes in", self.strength, 1.0)
        if (record.condition is None) != (self.start_image is None):
            wanted, got = ("an image", "none") if record.condition else ("none", "an image")
            does = "continues an image" if record.condition else "makes video from text"
            raise BadInput.expected("start image", f"{wanted}, because '{record.name}' {does}", got)
        if record.generation == "1.0" and record.condition and not self.positive_conditioning.saw_image:
            raise BadInput.expected("positive prompt", "one encoded with the start image (connect it to the prompt node)", "one without")
        shape = ClipShape(
            "hunyuan-video" if record.generation == "1.0" else "hunyuan-video-1.5",
            num_frames=self.num_frames,
            height=self.height,
            width=self.width,
            latent_channels=record.latent_channels,
        )
        if self.start_image is not None:
            self.start_image.check_size(width=self.width, height=self.height)
        return shape

    def _schedule(self, context: InvocationContext, record: Any) -> dict[str, Any]:
        if record.format is not ModelFormat.Diffusers:
            return _SCHEDULE
        model = self.transformer.transformer.model_copy(update={"submodel_type": SubModelType.Scheduler})
        return dict(context.models.load(model).model.config)

    def _features(self, context: InvocationContext, record: Any) -> tuple[Features, Features | None]:
        """What the prompt nodes stored, where the record says that the transformer reads it."""
        positive = load_features(context, self.positive_conditioning)
        negative = load_features(context, self.negative_conditioning) if self.negative_conditioning else None
        for name, features in (("positive prompt", positive), ("negative prompt", negative)):
            if features is not None:
                check_features(features, generation=record.generation, width=record.text_features, what=name)
        return positive, negative

    def _start(self, context: InvocationContext, record: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The start frame's latent, and SigLIP's features of it for HunyuanVideo-1.5."""
        if self.start_image is None:
            return None, None
        latent = context.tensors.load(self.start_image.latents_name)
        if record.generation == "1.0":
            return latent, None
        if self.start_image.picture_name is None:
            raise BadInput.expected("start image", "one encoded with HunyuanVideo-1.5's encoders", "one without picture features")
        return latent, context.tensors.load(self.start_image.picture_name)

    def _incoming_clip(self, context: InvocationContext, record: Any, shape: ClipShape) -> torch.Tensor | None:
        """The clean latents of video to video, float32 on the CPU."""
        if self.latents is None:
            return None
        if record.condition == CONCAT and record.generation == "1.0":
            does = f"none, because '{record.name}' makes its clip from the start image alone"
            raise BadInput.expected("latents", does, "a clip")
        given, _ = load_clip(context, self.latents)
        shape.check_clip(given)
        return given.float()

    def _mask(self, context: InvocationContext, shape: ClipShape) -> torch.Tensor | None:
        if self.mask is None:
            return None
        if self.latents is None:
            raise BadInput.expected("mask", "a clip in Latents that it keeps a part of", "none")
        pixels = np.asarray(context.images.get_pil(self.mask.image_name).convert("L"))
        return latent_mask(pixels, height=self.height, width=self.width, cell=shape.rule.spatial_factor)

    def _denoised(
        self,
        context: InvocationContext,
        record: Any,
        shape: ClipShape,
        inputs: dict[str, Any],
        *,
        scheduler: Any,
        kept: KeptRegion | None,
        cache: StepCache,
    ) -> torch.Tensor:
        """Load the transformer with its LoRAs and run it; `inputs` are the tensors and features that `denoise` takes, by name."""
        device = compute_device()
        dtype = compute_dtype(device)
        factors = None if self.vae is None else fitted_factors(context, self.vae, channels=shape.latent_channels)
        loaded = context.models.load(self.transformer.transformer)
        config = loaded.model.config
        features = [inputs["positive"], inputs["negative"]]
        frame, picture = inputs["start_frame"], inputs["picture"]
        check_denoise_input(config, latents=inputs["latents"], features=features, start_frame=frame, picture=picture)
        needed = denoise_working_bytes(
            shape,
            dim=config.num_attention_heads * config.attention_head_dim,
            caption_tokens=features[0].tokens.shape[1],
            element_size=dtype.itemsize,
        )
        with (
            stops_when_canceled(context) as stop,
            loaded.model_on_device(working_mem_bytes=needed) as (weights, transformer),
            loras_applied(context, self.transformer, record, transformer, weights, prefix=""),
        ):
            return denoise(
                transformer,
                **{**inputs, "latents": inputs["latents"].to(device)},
                true_cfg_scale=self.true_cfg_scale,
                guidance_scale=self.guidance_scale,
                scheduler=scheduler,
                on_step=StepPreview(context, size=(self.width, self.height), factors=factors),
                kept=kept,
                cache=cache,
                attention_by=self.attention,
                stop=stop,
                dtype=dtype,
            )
