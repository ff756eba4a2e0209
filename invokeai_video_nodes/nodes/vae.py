"""Latents -> video: each frame goes from the VAE straight into the encoder, so one decoded frame is in memory at a time."""

from typing import Optional

import torch
from invokeai.app.invocations.baseinvocation import BaseInvocation, Classification, invocation
from invokeai.app.invocations.fields import (
    FieldDescriptions,
    Input,
    InputField,
    LatentsField,
    WithBoard,
    WithMetadata,
)
from invokeai.app.invocations.model import VAEField
from invokeai.app.invocations.primitives import VideoOutput
from invokeai.app.services.shared.invocation_context import InvocationContext
from invokeai.backend.util.devices import TorchDevice

from invokeai_video_nodes.nodes.clip_latents import PIXELS_PER_LATENT, load_clip
from invokeai_video_nodes.nodes.fields import CATEGORY, CODEC_LABELS, CodecChoice, Describe
from invokeai_video_nodes.nodes.progress import frame_progress, stops_when_canceled
from invokeai_video_nodes.nodes.save_video import save_video
from invokeai_video_nodes.nodes.vae_model import element_size, load_vae
from invokeai_video_nodes.pipelines.decode import decode_frames
from invokeai_video_nodes.pipelines.memory import decode_working_bytes
from invokeai_video_nodes.pipelines.mp4 import check_mp4_settings

DEFAULT_FPS = 8


@invocation(
    "z_image_video_decode",
    title="Video Decode - Z-Image",
    tags=["video", "z-image", "vae", "decode", "latents"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class ZImageVideoDecodeInvocation(BaseInvocation, WithMetadata, WithBoard):
    """Turns a clip's latents into an MP4 in the gallery."""

    latents: LatentsField = InputField(description="The latents of a clip.", input=Input.Connection)
    vae: VAEField = InputField(description=FieldDescriptions.vae, input=Input.Connection)
    fps: Optional[int] = InputField(
        default=None,
        ge=0,  # the workflow editor fills 0 into an optional number that has no default
        le=60,
        description="Frames per second at which the clip plays. 0 or empty: as the denoise node says, else 8.",
        title="Frames per Second",
    )
    crf: int = InputField(default=18, ge=0, le=51, description=Describe.crf, title="Quality (CRF)")
    codec: CodecChoice = InputField(default="h264", description=Describe.codec, ui_choice_labels=CODEC_LABELS)

    @torch.no_grad()
    def invoke(self, context: InvocationContext) -> VideoOutput:
        latents, facts = load_clip(context, self.latents)
        fps = self.fps or facts.fps or DEFAULT_FPS
        height, width = (size * PIXELS_PER_LATENT for size in latents.shape[-2:])
        check_mp4_settings(fps=fps, width=width, height=height, codec="h264", crf=self.crf)
        loaded = load_vae(context, self.vae, channels=latents.shape[1])
        needed = decode_working_bytes(height=height, width=width, element_size=element_size(loaded.model))
        with stops_when_canceled(context) as stop, loaded.model_on_device(working_mem_bytes=needed) as (_, vae):
            frames = decode_frames(
                vae,
                latents,
                stop=stop,
                on_frame=frame_progress(context, "Decoding"),
                device=TorchDevice.choose_torch_device(),
            )
            return save_video(context, frames, width=width, height=height, fps=fps, crf=self.crf, codec=self.codec, stop=stop)
