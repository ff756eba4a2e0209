"""Videos <-> image collections, frame by frame in bounded memory."""

from collections.abc import Iterator
from typing import Optional

import numpy as np
from invokeai.app.invocations.baseinvocation import BaseInvocation, Classification, invocation
from invokeai.app.invocations.fields import ImageField, InputField, VideoField, WithBoard, WithMetadata
from invokeai.app.invocations.primitives import ImageCollectionOutput, VideoOutput
from invokeai.app.services.session_processor.session_processor_common import CanceledException
from invokeai.app.services.shared.invocation_context import InvocationContext
from PIL import Image

from invokeai_video_nodes.nodes.fields import CATEGORY, CODEC_LABELS, CodecChoice, Describe
from invokeai_video_nodes.nodes.progress import frame_progress, stops_when_canceled
from invokeai_video_nodes.nodes.save_video import save_video
from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.frames import read_frames
from invokeai_video_nodes.pipelines.mp4 import check_mp4_settings


@invocation(
    "video_to_frames",
    title="Video to Frames",
    tags=["video", "image", "frames", "collection"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class VideoToFramesInvocation(BaseInvocation, WithMetadata, WithBoard):
    """Takes frames out of a video as a collection of images."""

    video: VideoField = InputField(description="The video to read.")
    every_nth: int = InputField(default=1, ge=1, description="Take every n-th frame: 1 takes all, 2 every other one.")
    skip: int = InputField(default=0, ge=0, description="Frames to leave out at the beginning.")
    limit: Optional[int] = InputField(default=None, ge=0, description="The most images to take. 0 or empty: to the end of the video.")

    def invoke(self, context: InvocationContext) -> ImageCollectionOutput:
        path = context.videos.get_path(self.video.video_name)
        images = []
        for frame in read_frames(path, every_nth=self.every_nth, skip=self.skip, limit=self.limit or None):
            if context.util.is_canceled():
                raise CanceledException
            image = context.images.save(image=Image.fromarray(frame))
            images.append(ImageField(image_name=image.image_name))
            context.util.signal_progress(f"Saved frame {len(images)}")
        return ImageCollectionOutput(collection=images)


@invocation(
    "frames_to_video",
    title="Frames to Video",
    tags=["video", "image", "frames", "collection"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class FramesToVideoInvocation(BaseInvocation, WithMetadata, WithBoard):
    """Makes an MP4 in the gallery from a collection of images of one size."""

    images: list[ImageField] = InputField(description="The images in playing order, all of one size.")
    fps: int = InputField(default=8, ge=1, le=60, description="Frames per second at which the clip plays.", title="Frames per Second")
    crf: int = InputField(default=18, ge=0, le=51, description=Describe.crf, title="Quality (CRF)")
    codec: CodecChoice = InputField(default="h264", description=Describe.codec, ui_choice_labels=CODEC_LABELS)

    def invoke(self, context: InvocationContext) -> VideoOutput:
        width, height = self._common_size(context)
        check_mp4_settings(fps=self.fps, width=width, height=height, codec="h264", crf=self.crf)
        with stops_when_canceled(context) as stop:
            return save_video(
                context,
                self._frames(context),
                width=width,
                height=height,
                fps=self.fps,
                crf=self.crf,
                codec=self.codec,
                stop=stop,
            )

    def _common_size(self, context: InvocationContext) -> tuple[int, int]:
        """(width, height) of all images, read from their records; raises BadInput naming the first that differs."""
        if not self.images:
            raise BadInput.expected("images", "at least one image", "an empty collection")
        records = [context.images.get_dto(image.image_name) for image in self.images]
        width, height = records[0].width, records[0].height
        for index, record in enumerate(records):
            if (record.width, record.height) != (width, height):
                expected = f"{width}x{height} as image 0"
                raise BadInput.expected(f"image {index}", expected, f"{record.width}x{record.height}", f"{width}x{height}")
        return width, height

    def _frames(self, context: InvocationContext) -> Iterator[np.ndarray]:
        on_frame = frame_progress(context, "Encoding")
        for index, image in enumerate(self.images):
            yield np.asarray(context.images.get_pil(image.image_name).convert("RGB"))
            on_frame(index + 1, len(self.images))
