"""A video or images -> the latents of a clip, through a video VAE, one tile of frames at a time."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Optional

import numpy as np
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
from PIL import Image

from invokeai_video_nodes.nodes.clip_latents import ClipFacts, save_clip
from invokeai_video_nodes.nodes.fields import CATEGORY, with_limits
from invokeai_video_nodes.nodes.vae_model import frame_rule, load_video_vae
from invokeai_video_nodes.nodes.vae_tiles import vae_in_tiles
from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.frames import count_frames, read_frames
from invokeai_video_nodes.pipelines.shapes import FRAME_RULES, FrameRule
from invokeai_video_nodes.pipelines.vae3d import encode_video

RULE = FRAME_RULES["hunyuan-video"]
STEP = RULE.frame_step
MAX_FPS = 60  # what a decode node takes
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
        self._check_source()
        count, width, height = self._taken(context, frame_rule(context, self.vae))
        loaded = load_video_vae(context, self.vae)
        factor = int(loaded.model.config.spatial_compression_ratio)
        shape = (1, 1, (count - 1) // STEP + 1, height // factor, width // factor)
        with vae_in_tiles(context, loaded, shape, doing="Encoding") as (vae, options):
            latents = encode_video(vae, self._frames(context, count, (width, height)), num_frames=count, **options)
        stored = save_clip(context, latents, ClipFacts(fps=self._fps(context), spatial_factor=factor))
        return VideoLatentsOutput(latents=stored.latents, num_frames=count, width=width, height=height)

    def _check_source(self) -> None:
        if (self.video is None) == (not self.images):
            got = "both" if self.video else "neither"
            raise BadInput.expected("source", "either a video or at least one image", got)

    def _taken(self, context: InvocationContext, rule: FrameRule) -> tuple[int, int, int]:
        """(frames, width, height) that are encoded, told in the log; raises BadInput for what no clip of this family has."""
        width, height = self._size(context, rule)
        found = self._found(context)
        count = self._count(found, rule)
        context.logger.info(f"Video to latents: took {count} of {found} frames at {width}x{height}.")
        return count, width, height

    def _size(self, context: InvocationContext, rule: FrameRule) -> tuple[int, int]:
        """(width, height) as set by hand, where they are valid; a side that is not set is the nearest valid one to the source's."""
        for name, side in (("width", self.width), ("height", self.height)):
            if side:
                rule.check_size(name, side)
        if self.width and self.height:
            return self.width, self.height
        own_width, own_height = self._own_size(context)
        return self.width or rule.nearest_size(own_width), self.height or rule.nearest_size(own_height)

    def _own_size(self, context: InvocationContext) -> tuple[int, int]:
        if self.video is not None:
            # The first frame itself: a record may have the sides of a video that is played turned.
            frame = next(read_frames(context.videos.get_path(self.video.video_name), limit=1))
            return frame.shape[1], frame.shape[0]
        sizes = [(record.width, record.height) for record in map(context.images.get_dto, self._names())]
        self._check_one_size(sizes)
        return sizes[0]

    @staticmethod
    def _check_one_size(sizes: list[tuple[int, int]]) -> None:
        first = f"{sizes[0][0]}x{sizes[0][1]}"
        for index, (width, height) in enumerate(sizes):
            if (width, height) != sizes[0]:
                raise BadInput.expected(f"image {index}", f"{first} as image 0, or a width and height for all", f"{width}x{height}", first)

    def _names(self) -> list[str]:
        return [image.image_name for image in self.images or []]

    def _found(self, context: InvocationContext) -> int:
        return len(self._names()) if self.video is None else count_frames(context.videos.get_path(self.video.video_name))

    def _count(self, found: int, rule: FrameRule) -> int:
        """How many of the `found` frames are encoded: as many as was set by hand, else as many as a clip can have."""
        most = rule.most_frames(found)
        if most is None:
            raise BadInput.expected("video" if self.video else "images", f"at least {rule.min_frames} frames", found)
        if not self.num_frames:
            return most
        replace(rule, max_frames=most).check_frames(self.num_frames, what=f"num_frames (of {found} that there are)")
        return self.num_frames

    def _frames(self, context: InvocationContext, count: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
        if self.video is not None:
            yield from read_frames(context.videos.get_path(self.video.video_name), limit=count, size=size)
            return
        for name in self._names()[:count]:
            image = context.images.get_pil(name).convert("RGB")
            yield np.asarray(image if image.size == size else image.resize(size, Image.Resampling.LANCZOS))

    def _fps(self, context: InvocationContext) -> int | None:
        """The video's frames per second, 29.97 as the 30 that it stands for, so that a decode plays it at its speed."""
        fps = context.videos.get_dto(self.video.video_name).fps if self.video is not None else None
        return round(fps) if fps and 1 <= round(fps) <= MAX_FPS else None
