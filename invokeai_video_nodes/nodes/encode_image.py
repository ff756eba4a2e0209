"""Images -> latents: the noised start of a clip, and the pictures that steer a denoise."""

from collections.abc import Sequence
from typing import Optional

import numpy as np
import torch
from invokeai.app.invocations.baseinvocation import BaseInvocation, Classification, invocation
from invokeai.app.invocations.fields import FieldDescriptions, ImageField, Input, InputField
from invokeai.app.invocations.model import VAEField
from invokeai.app.invocations.primitives import LatentsOutput
from invokeai.app.services.session_processor.session_processor_common import CanceledException
from invokeai.app.services.shared.invocation_context import InvocationContext
from invokeai.backend.stable_diffusion.diffusers_pipeline import image_resized_to_grid_as_tensor
from invokeai.backend.util.devices import TorchDevice
from PIL import Image

from invokeai_video_nodes.nodes.clip_latents import ClipFacts, save_clip
from invokeai_video_nodes.nodes.compute import compute_device
from invokeai_video_nodes.nodes.fields import CATEGORY, FRAMES, PIXELS, RULE, SEED, Describe, with_limits
from invokeai_video_nodes.nodes.hunyuan_fields import HunyuanVideoEncoderField, HunyuanVideoStartField, HunyuanVideoStartOutput
from invokeai_video_nodes.nodes.vae_model import element_size, load_vae, load_video_vae
from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.hunyuan_video.conditioning import encode_picture_15
from invokeai_video_nodes.pipelines.hunyuan_video.start_frame import encode_start_frame
from invokeai_video_nodes.pipelines.memory import encode_working_bytes
from invokeai_video_nodes.pipelines.shapes import FRAME_RULES
from invokeai_video_nodes.pipelines.z_image.start_frame import encode_frame, noised_start

HUNYUAN_RULE = FRAME_RULES["hunyuan-video"]


@invocation(
    "z_image_video_encode",
    title="Image to Video Latents - Z-Image",
    tags=["video", "z-image", "img2vid", "i2v"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class ZImageVideoEncodeInvocation(BaseInvocation):
    """Makes the noisy start of a clip whose first frame leans towards an image."""

    image: ImageField = InputField(description="The picture for the first frame.")
    vae: VAEField = InputField(description=FieldDescriptions.vae, input=Input.Connection)
    num_frames: int = with_limits(InputField(default=16, description=Describe.num_frames), **FRAMES)
    noise_strength: float = InputField(
        default=0.8,
        ge=0.0,
        le=1.0,
        description="How much of the first frame is noise: 0.0 keeps the picture, 1.0 is pure noise.",
    )
    seed: int = InputField(default=0, description=Describe.seed, **SEED)
    # The workflow editor fills 0 into an optional number that has no default, so 0 means the same as empty.
    width: Optional[int] = with_limits(
        InputField(
            default=None,
            description="Width in pixels, a multiple of 16, to which the picture is stretched. 0 or empty: the picture's own.",
        ),
        minimum=0,
        step=RULE.size_step,
    )
    height: Optional[int] = with_limits(
        InputField(
            default=None,
            description="Height in pixels, a multiple of 16, to which the picture is stretched. 0 or empty: the picture's own.",
        ),
        minimum=0,
        step=RULE.size_step,
    )

    @torch.no_grad()
    def invoke(self, context: InvocationContext) -> LatentsOutput:
        RULE.check_frames(self.num_frames)
        record = context.images.get_dto(self.image.image_name)
        size = (self.width or record.width, self.height or record.height)
        frame = encode_images(context, self.vae, [self.image], size=size)
        start = noised_start(frame, num_frames=self.num_frames, noise_strength=self.noise_strength, seed=self.seed)
        return save_clip(context, start, ClipFacts(is_noised=True))


def encode_images(
    context: InvocationContext,
    vae: VAEField,
    images: Sequence[ImageField],
    *,
    size: tuple[int, int],
    channels: int | None = None,
) -> torch.Tensor:
    """Encode each image, stretched to `size` = (width, height), into latents [1, C, n, h, w], float32 on the CPU.

    One image is in memory at a time. Raises BadInput for a size off the grid or a VAE of other `channels`, before the VAE moves.
    """
    width, height = size
    RULE.check_size("image width", width)
    RULE.check_size("image height", height)
    loaded = load_vae(context, vae, channels=channels)
    needed = encode_working_bytes(height=height, width=width, element_size=element_size(loaded.model))
    frames = []
    with loaded.model_on_device(working_mem_bytes=needed) as (_, model):
        for index, image in enumerate(images):
            if context.util.is_canceled():
                raise CanceledException
            context.util.signal_progress(f"Encoding image {index + 1}/{len(images)}", index / len(images))
            picture = context.images.get_pil(image.image_name).convert("RGB").resize(size, Image.Resampling.LANCZOS)
            pixels = image_resized_to_grid_as_tensor(picture, multiple_of=RULE.size_step).unsqueeze(0)
            frames.append(encode_frame(model, pixels.to(TorchDevice.choose_torch_device())).cpu())
    return torch.cat(frames, dim=2)


@invocation(
    "hunyuan_video_image_encoder",
    title="Start Image - HunyuanVideo",
    tags=["video", "hunyuan", "img2vid", "i2v"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class HunyuanVideoImageEncoderInvocation(BaseInvocation):
    """Encodes the picture that an image-to-video model of HunyuanVideo continues."""

    image: ImageField = InputField(description="The first frame of the clip.")
    vae: VAEField = InputField(description=FieldDescriptions.vae, input=Input.Connection)
    encoder: Optional[HunyuanVideoEncoderField] = InputField(
        default=None,
        description="The encoders of the model; HunyuanVideo-1.5 looks at the picture through them.",
        input=Input.Connection,
        title="Encoders",
    )
    width: int = with_limits(InputField(default=512, description=Describe.width), **PIXELS)
    height: int = with_limits(InputField(default=320, description=Describe.height), **PIXELS)

    @torch.no_grad()
    def invoke(self, context: InvocationContext) -> HunyuanVideoStartOutput:
        HUNYUAN_RULE.check_size("width", self.width)
        HUNYUAN_RULE.check_size("height", self.height)
        self._check_condition()
        picture = context.images.get_pil(self.image.image_name).convert("RGB")
        latent = self._latent(context, picture)
        features = self._features(context, picture)
        start = HunyuanVideoStartField(
            latents_name=context.tensors.save(tensor=latent),
            picture_name=None if features is None else context.tensors.save(tensor=features),
            width=self.width,
            height=self.height,
        )
        return HunyuanVideoStartOutput(start_image=start, width=self.width, height=self.height)

    def _check_condition(self) -> None:
        """Raise BadInput where the encoders serve a text-to-video model, which takes no start image."""
        if self.encoder is not None and self.encoder.condition is None:
            raise BadInput.expected("start image", "none, because the video model makes video from text", "an image")

    def _latent(self, context: InvocationContext, picture: Image.Image) -> torch.Tensor:
        loaded = load_video_vae(context, self.vae)
        needed = encode_working_bytes(height=self.height, width=self.width, element_size=element_size(loaded.model))
        sized = picture.resize((self.width, self.height), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(sized)).permute(2, 0, 1)[None].float() / 127.5 - 1.0
        with loaded.model_on_device(working_mem_bytes=needed) as (_, vae):
            return encode_start_frame(vae, pixels.to(compute_device())).cpu()

    def _features(self, context: InvocationContext, picture: Image.Image) -> torch.Tensor | None:
        if self.encoder is None or self.encoder.image_encoder is None:
            return None
        from transformers import SiglipImageProcessor

        model = self.encoder.image_encoder
        folder = context.models.get_absolute_path(context.models.get_config(model)) / "feature_extractor"
        extractor = SiglipImageProcessor.from_pretrained(folder, local_files_only=True)
        with context.models.load(model) as image_encoder:
            return encode_picture_15(picture, image_encoder=image_encoder, feature_extractor=extractor).cpu()
