"""Video and images <-> the latents of an AnimateDiff clip, one frame at a time through Stable Diffusion's VAE."""

from typing import Final, Optional

import torch
from invokeai.app.invocations.baseinvocation import BaseInvocation, Classification, invocation
from invokeai.app.invocations.fields import (
    FieldDescriptions,
    ImageField,
    Input,
    InputField,
    LatentsField,
    VideoField,
    WithBoard,
    WithMetadata,
)
from invokeai.app.invocations.model import VAEField
from invokeai.app.invocations.primitives import VideoOutput
from invokeai.app.services.shared.invocation_context import InvocationContext

from invokeai_video_nodes.nodes.clip_latents import ClipFacts, save_clip
from invokeai_video_nodes.nodes.clip_source import ClipSource
from invokeai_video_nodes.nodes.compute import compute_device
from invokeai_video_nodes.nodes.encode_video import VideoLatentsOutput
from invokeai_video_nodes.nodes.fields import CATEGORY, CODEC_LABELS, CodecChoice, Describe, with_limits
from invokeai_video_nodes.nodes.kept_latents import kept_while_decoding
from invokeai_video_nodes.nodes.progress import frame_progress, stops_when_canceled
from invokeai_video_nodes.nodes.vae import decoded_frame_by_frame
from invokeai_video_nodes.nodes.vae_model import element_size, load_vae
from invokeai_video_nodes.pipelines.encode import encode_frames
from invokeai_video_nodes.pipelines.memory import encode_working_bytes
from invokeai_video_nodes.pipelines.shapes import FRAME_RULES

FAMILY: Final = "animatediff"
RULE = FRAME_RULES[FAMILY]
SIDE = "{} in pixels, a multiple of 8, to which frames are stretched. 0 or empty: the nearest one to their own."


@invocation(
    "animatediff_encode",
    title="Video Encode - AnimateDiff",
    tags=["video", "animatediff", "vae", "encode", "latents", "vid2vid", "v2v"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class AnimateDiffEncodeInvocation(BaseInvocation):
    """Turns a video of the gallery, or images in playing order, into the latents of a clip."""

    video: Optional[VideoField] = InputField(default=None, description="The video to encode. Give either this or images.")
    images: Optional[list[ImageField]] = InputField(
        default=None, description="The images to encode, in playing order. Give either these or a video."
    )
    vae: VAEField = InputField(description=FieldDescriptions.vae, input=Input.Connection)
    # The workflow editor fills 0 into an optional number that has no default, so 0 means the same as empty.
    num_frames: Optional[int] = with_limits(
        InputField(
            default=None,
            description="How many frames to take, from the first on, 4 to 128. 0 or empty: as many as there are, 128 at most.",
        ),
        minimum=0,
    )
    width: Optional[int] = with_limits(
        InputField(default=None, description=SIDE.format("Width")), minimum=0, step=RULE.size_step
    )
    height: Optional[int] = with_limits(
        InputField(default=None, description=SIDE.format("Height")), minimum=0, step=RULE.size_step
    )

    @torch.no_grad()
    def invoke(self, context: InvocationContext) -> VideoLatentsOutput:
        source = ClipSource(self.video, self.images, num_frames=self.num_frames, width=self.width, height=self.height)
        source.check()
        count, width, height = source.taken(context, RULE)
        loaded = load_vae(context, self.vae)
        needed = encode_working_bytes(height=height, width=width, element_size=element_size(loaded.model))
        with stops_when_canceled(context) as stop, loaded.model_on_device(working_mem_bytes=needed) as (_, vae):
            latents = encode_frames(
                vae,
                source.frames(context, count, (width, height)),
                total=count,
                stop=stop,
                on_frame=frame_progress(context, "Encoding"),
                device=compute_device(),
            )
        stored = save_clip(context, latents, ClipFacts(fps=source.fps(context), family=FAMILY))
        return VideoLatentsOutput(latents=stored.latents, num_frames=count, width=width, height=height)


@invocation(
    "animatediff_decode",
    title="Video Decode - AnimateDiff",
    tags=["video", "animatediff", "vae", "decode", "latents"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class AnimateDiffDecodeInvocation(BaseInvocation, WithMetadata, WithBoard):
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
        with kept_while_decoding(context, self.latents, family=FAMILY) as (latents, facts):
            return decoded_frame_by_frame(context, latents, facts, vae=self.vae, fps=self.fps, crf=self.crf, codec=self.codec)
