"""A picture and noise -> the latents of a clip that continues the picture, with Stable Video Diffusion.

Everything that can be refused is refused before a weight moves. The image encoder, the VAE and the UNet take turns on the device.
"""

from typing import Any

import torch
from invokeai.app.invocations.baseinvocation import BaseInvocation, Classification, invocation
from invokeai.app.invocations.fields import ImageField, Input, InputField
from invokeai.app.invocations.model import VAEField
from invokeai.app.invocations.primitives import LatentsOutput
from invokeai.app.services.shared.invocation_context import InvocationContext
from invokeai.backend.model_manager.taxonomy import ModelFormat
from invokeai.backend.util.devices import TorchDevice
from transformers import CLIPImageProcessor

from invokeai_video_nodes.nodes.clip_latents import ClipFacts, save_clip
from invokeai_video_nodes.nodes.compute import compute_device
from invokeai_video_nodes.nodes.fields import CATEGORY, GUIDANCE, SEED, STEPS, Describe, with_limits
from invokeai_video_nodes.nodes.progress import StepPreview, stops_when_canceled
from invokeai_video_nodes.nodes.svd_fields import DEFAULT_FPS, FRAMES, RULE, SVDModelField, checked_record
from invokeai_video_nodes.nodes.vae_model import element_size, load_temporal_vae, require_temporal_vae
from invokeai_video_nodes.pipelines.errors import BadInput, Stop
from invokeai_video_nodes.pipelines.memory import encode_working_bytes, svd_working_bytes
from invokeai_video_nodes.pipelines.preview import SD1_FACTORS
from invokeai_video_nodes.pipelines.shapes import ClipShape
from invokeai_video_nodes.pipelines.svd.conditioning import (
    LATENT_CHANNELS,
    MAX_AUGMENTATION,
    MAX_MOTION_BUCKET,
    Conditioning,
    Motion,
    draw_noise,
    embed_picture,
    encode_picture,
    picture_pixels,
)
from invokeai_video_nodes.pipelines.svd.denoise import check_denoise_input, denoise, frame_rule, guidance_ramp
from invokeai_video_nodes.pipelines.svd.schedule import svd_scheduler


@invocation(
    "svd_denoise",
    title="Denoise Video - SVD",
    tags=["video", "svd", "img2vid", "i2v", "denoise"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class SVDDenoiseInvocation(BaseInvocation):
    """Sets a picture in motion; the clip has the picture's size."""

    model: SVDModelField = InputField(description="The parts of the video model.", input=Input.Connection, title="SVD Model")
    vae: VAEField = InputField(description="The model's VAE, which reads the start image.", input=Input.Connection, title="VAE")
    image: ImageField = InputField(
        description="The picture that the clip continues. Its width and height are the clip's: multiples of 8 pixels, at best from "
        "'Start Image - SVD'.",
        title="Start Image",
    )
    num_frames: int = with_limits(
        InputField(
            default=25,
            description="How many frames the clip has. SVD was trained on 14, SVD-XT on 25; others work, but may move poorly.",
        ),
        **FRAMES,
    )
    fps: int = InputField(
        default=DEFAULT_FPS,
        ge=1,
        le=60,
        description="Frames per second that the motion is made for, and at which the clip plays. The model knows 5 to 30: a low "
        "number makes each frame move further, a high one less.",
        title="Frames per Second",
    )
    motion_bucket_id: int = with_limits(
        InputField(
            default=127,
            description="How much moves in the clip, 0 to 255: low is nearly a still, 127 is normal, above about 200 things move so "
            "much that they may lose their shape.",
            title="Motion Bucket",
        ),
        minimum=0,
        maximum=MAX_MOTION_BUCKET,
    )
    noise_aug_strength: float = InputField(
        default=0.02,
        ge=0.0,
        le=MAX_AUGMENTATION,
        description="How freely the clip may leave the start image: noise put on the picture before the model looks at it. 0 keeps "
        "every detail, 0.02 is normal, 0.1 and more lets the picture change and move more.",
        title="Noise Augmentation",
    )
    min_guidance_scale: float = InputField(
        default=1.0,
        description="How closely the first frame follows the start image. 1.0 is no guidance: it has the picture to hold on to.",
        title="Guidance, First Frame",
        **GUIDANCE,
    )
    max_guidance_scale: float = InputField(
        default=3.0,
        description="How closely the last frame follows the start image; frames between are between. Too high burns the colours. "
        "Both at 1.0 take half the time.",
        title="Guidance, Last Frame",
        **GUIDANCE,
    )
    steps: int = InputField(default=25, description=Describe.steps, **STEPS)
    seed: int = InputField(default=0, description=Describe.seed, **SEED)

    @torch.no_grad()
    def invoke(self, context: InvocationContext) -> LatentsOutput:
        record = checked_record(context, self.model)
        require_temporal_vae(context, self.vae)
        motion = Motion(fps=self.fps, motion_bucket_id=self.motion_bucket_id, noise_aug_strength=self.noise_aug_strength)
        shape = self._checked_shape(context, record)
        guidance_ramp(self.min_guidance_scale, self.max_guidance_scale, self.num_frames)
        scheduler = svd_scheduler(steps=self.steps, config=dict(context.models.load(self.model.scheduler).model.config))
        pixels = picture_pixels(context.images.get_pil(self.image.image_name))
        noise = draw_noise(shape, self.seed)
        with stops_when_canceled(context) as stop:
            conditioning = Conditioning(
                embedding=self._embedding(context, record, pixels, stop=stop),
                start=self._start(context, pixels, noise.picture, stop=stop),
                time_ids=motion.time_ids(),
            )
            latents = self._denoised(context, shape, noise.latents, conditioning, scheduler=scheduler, stop=stop)
        return save_clip(context, latents, ClipFacts(fps=self.fps, family=shape.family))

    def _checked_shape(self, context: InvocationContext, record: Any) -> ClipShape:
        """The clip's sizes, the picture's; the log says where the model was trained on another number of frames."""
        picture = context.images.get_dto(self.image.image_name)
        for side, pixels in (("width", picture.width), ("height", picture.height)):
            if pixels % RULE.size_step or pixels > RULE.max_size:
                expected = f"a multiple of {RULE.size_step} pixels up to {RULE.max_size} ('Start Image - SVD' makes it so)"
                raise BadInput.expected(f"image {side}", expected, pixels, RULE.nearest_size(pixels))
        shape = ClipShape("svd", self.num_frames, picture.height, picture.width, latent_channels=LATENT_CHANNELS)
        warning = frame_rule({"num_frames": record.num_frames}).frames_warning(self.num_frames)
        if warning is not None:
            context.logger.warning(warning)
        return shape

    def _embedding(self, context: InvocationContext, record: Any, pixels: torch.Tensor, *, stop: Stop) -> torch.Tensor:
        """What CLIP sees in the picture."""
        context.util.signal_progress("Looking at the start image")
        processor = CLIPImageProcessor()  # what the original release does, and so what a single file means
        if record.format is ModelFormat.Diffusers:
            folder = context.models.get_absolute_path(record) / "feature_extractor"
            processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
        with context.models.load(self.model.image_encoder).model_on_device() as (_, encoder):
            return embed_picture(pixels, image_encoder=encoder, image_processor=processor, device=compute_device(), stop=stop)

    def _start(self, context: InvocationContext, pixels: torch.Tensor, noise: torch.Tensor, *, stop: Stop) -> torch.Tensor:
        """The latent that every frame begins from."""
        context.util.signal_progress("Encoding the start image")
        loaded = load_temporal_vae(context, self.vae, channels=LATENT_CHANNELS)
        height, width = pixels.shape[-2:]
        # Where the VAE asks for float32, the encoder is copied: twice the bytes cover that.
        size = 4 if loaded.model.config.force_upcast else element_size(loaded.model)
        needed = encode_working_bytes(height=height, width=width, element_size=size)
        with loaded.model_on_device(working_mem_bytes=needed) as (_, vae):
            strength = self.noise_aug_strength
            return encode_picture(pixels, vae=vae, noise=noise, noise_aug_strength=strength, device=compute_device(), stop=stop)

    def _denoised(
        self,
        context: InvocationContext,
        shape: ClipShape,
        noise: torch.Tensor,
        conditioning: Conditioning,
        *,
        scheduler: Any,
        stop: Stop,
    ) -> torch.Tensor:
        """Load the UNet and run it."""
        device = compute_device()
        dtype = TorchDevice.choose_torch_dtype(device)
        loaded = context.models.load(self.model.unet)
        config = loaded.model.config
        check_denoise_input(config, noise=noise, conditioning=conditioning)
        guided = max(self.min_guidance_scale, self.max_guidance_scale) > 1.0
        needed = svd_working_bytes(shape, width=config.block_out_channels[0], element_size=dtype.itemsize, guided=guided)
        with loaded.model_on_device(working_mem_bytes=needed) as (_, unet):
            return denoise(
                unet,
                noise=noise.to(device),
                conditioning=conditioning,
                scheduler=scheduler,
                min_guidance_scale=self.min_guidance_scale,
                max_guidance_scale=self.max_guidance_scale,
                on_step=StepPreview(context, size=(shape.width, shape.height), factors=SD1_FACTORS),
                stop=stop,
                dtype=dtype,
            )
