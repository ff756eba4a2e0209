"""A video of the gallery, or images in playing order -> the frames that an encode node takes, checked before one is read."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from invokeai.app.invocations.fields import ImageField, VideoField
from invokeai.app.services.shared.invocation_context import InvocationContext
from PIL import Image

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.frames import count_frames, read_frames
from invokeai_video_nodes.pipelines.shapes import FrameRule

MAX_FPS = 60  # what a decode node takes


@dataclass(frozen=True)
class ClipSource:
    """Either `video` or `images`, and what was set by hand; 0 and None mean the same."""

    video: VideoField | None
    images: list[ImageField] | None
    num_frames: int | None
    width: int | None
    height: int | None

    def check(self) -> None:
        """Raise BadInput unless there is one source."""
        if (self.video is None) == (not self.images):
            got = "both" if self.video else "neither"
            raise BadInput.expected("source", "either a video or at least one image", got)

    def taken(self, context: InvocationContext, rule: FrameRule) -> tuple[int, int, int]:
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

    def frames(self, context: InvocationContext, count: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
        """The first `count` frames, uint8 [H, W, 3] RGB, stretched to `size` = (width, height)."""
        if self.video is not None:
            yield from read_frames(context.videos.get_path(self.video.video_name), limit=count, size=size)
            return
        for name in self._names()[:count]:
            image = context.images.get_pil(name).convert("RGB")
            yield np.asarray(image if image.size == size else image.resize(size, Image.Resampling.LANCZOS))

    def fps(self, context: InvocationContext) -> int | None:
        """The video's frames per second, 29.97 as the 30 that it stands for, so that a decode plays it at its speed."""
        fps = context.videos.get_dto(self.video.video_name).fps if self.video is not None else None
        return round(fps) if fps and 1 <= round(fps) <= MAX_FPS else None
