"""A video or images -> the latents of a clip, through a video VAE, one tile of frames at a time."""

from typing import Optional

import torch
from invokeai.app.invocations.baseinvocation import (
    BaseInvocation,
    BaseInvocationOutput,
    Classification,
    invocation,
    invocation_output,
)
from invokeai.app.invocations.fields import ImageField, Input, InputField, LatentsField, OutputField, VideoField
from invokeai.app.invocations.model import VAEField
from invokeai.app.services.shared.invocation_context import InvocationContext

from invokeai_video_nodes.nodes.clip_latents import ClipFacts, save_clip
from invokeai_video_nodes.nodes.clip_source import ClipSource
from invokeai_video_nodes.nodes.fields import CATEGORY, with_limits
from invokeai_video_nodes.nodes.vae_model import frame_rule, load_video_vae
from invokeai_video_nodes.nodes.vae_tiles import vae_in_tiles
from invokeai_video_nodes.pipelines.shapes import FRAME_RULES
from invokeai_video_nodes.pipelines.vae3d import encode_video

RULE = FRAME_RULES["hunyuan-video"]
STEP = RULE.frame_step
FRAMES_TAKEN = (
    f"How many frames to take, from the first on: {STEP}n+1, {RULE.min_frames} to {RULE.max_frames}. "
    "0 or empty: as many as there are of such a count."
)


@invocation_output("video_latents_output")
class VideoLatentsOutput(BaseInvocationOutput):
    """The latents of a clip and what they decode to."""

    latents: LatentsField = OutputField(description="The latents of the clip.")
    num_frames: int = OutputField(description="How many frames they decode to.")
    width: int = OutputField(description="Width of those frames in pixels.")
    height: int = OutputField(description="Height of those frames in pixels.")


@invocation(
    "video_vae_encode",
    title="Video Encode - Video VAE",
    tags=["video", "hunyuan", "vae", "encode", "latents", "vid2vid", "v2v"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class VideoVAEEncodeInvocation(BaseInvocation):
    """Turns a video of the gallery, or images in playing order, into the latents of a clip."""

    video: Optional[VideoField] = InputField(default=None, description="The video to encode. Give either this or images.")
    images: Optional[list[ImageField]] = InputField(
        default=None, description="The images to encode, in playing order. Give either these or a video."
    )
    vae: VAEField = InputField(description="A video VAE.", input=Input.Connection)
    # The workflow editor fills 0 into an optional number that has no default, so 0 means the same as empty.
    num_frames: Optional[int] = with_limits(
        InputField(default=None, description=FRAMES_TAKEN),
        minimum=0,
    )
    width: Optional[int] = with_limits(
        InputField(
            default=None,
            description="Width in pixels, a multiple of 16, to which frames are stretched. 0 or empty: the nearest one to their own.",
        ),
        minimum=0,
        step=RULE.size_step,
    )
    height: Optional[int] = with_limits(
        InputField(
            default=None,
            description="Height in pixels, a multiple of 16, to which frames are stretched. 0 or empty: the nearest one to their own.",
        ),
        minimum=0,
        step=RULE.size_step,
    )

    @torch.no_grad()
    def invoke(self, context: InvocationContext) -> VideoLatentsOutput:
        source = ClipSource(self.video, self.images, num_frames=self.num_frames, width=self.width, height=self.height)
        source.check()
        count, width, height = source.taken(context, frame_rule(context, self.vae))
        loaded = load_video_vae(context, self.vae)
        factor = int(loaded.model.config.spatial_compression_ratio)
        shape = (1, 1, (count - 1) // STEP + 1, height // factor, width // factor)
        with vae_in_tiles(context, loaded, shape, doing="Encoding") as (vae, options):
            latents = encode_video(vae, source.frames(context, count, (width, height)), num_frames=count, **options)
        stored = save_clip(context, latents, ClipFacts(fps=source.fps(context), spatial_factor=factor))
        return VideoLatentsOutput(latents=stored.latents, num_frames=count, width=width, height=height)
