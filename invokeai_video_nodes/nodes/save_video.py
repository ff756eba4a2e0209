"""Frames -> a video in InvokeAI's gallery: written under a temporary name, handed over whole, or gone.

The temporary file lies in a folder of its own below `outputs`, on the gallery's disk, so that handing over is a rename; what a
killed process left there is removed when our nodes are next loaded.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from invokeai.app.invocations.fields import MetadataField
from invokeai.app.invocations.primitives import VideoOutput
from invokeai.app.services.config.config_default import get_config
from invokeai.app.services.shared.invocation_context import InvocationContext

from invokeai_video_nodes.nodes.fields import CodecChoice
from invokeai_video_nodes.pipelines.mp4 import H265_SUFFIX, Codec, clean_stale, temporary_name, write_mp4
from invokeai_video_nodes.pipelines.shapes import duration_seconds

UNFINISHED = "unfinished-videos"


def outputs_folder() -> Path:
    """The folder of InvokeAI's that holds images and videos."""
    outputs = get_config().outputs_path
    assert outputs is not None
    return Path(outputs)


def unfinished_folder() -> Path:
    """Where files grow before the gallery takes them."""
    return outputs_folder() / UNFINISHED


def clean_unfinished() -> None:
    """Remove what killed processes left, and H.265 files whose gallery video was deleted.

    Never raises, because it runs while InvokeAI starts.
    """
    try:
        folder = unfinished_folder()
        if folder.is_dir():
            clean_stale(folder)
        _clean_copies(outputs_folder() / "videos")
    except OSError:
        pass


def _clean_copies(videos: Path) -> None:
    """The gallery knows nothing of the H.265 file beside a video, so deleting the video leaves it."""
    if any(videos.glob(".delete_*")):
        return  # InvokeAI was stopped while it deleted, and puts those videos back when it starts
    for copy in videos.rglob(f"*{H265_SUFFIX}"):
        if not copy.with_name(copy.name.removesuffix(H265_SUFFIX) + ".mp4").exists():
            copy.unlink()


def save_video(
    context: InvocationContext,
    frames: Iterator[np.ndarray],
    *,
    width: int,
    height: int,
    fps: float,
    crf: int,
    codec: CodecChoice,
    stop: Callable[[], bool],
    metadata: MetadataField | None = None,
) -> VideoOutput:
    """Encode `frames`, uint8 [height, width, 3], and save them with thumbnail, metadata and workflow.

    `metadata` None is the node's own. With "h264+h265" the second file lies beside the gallery's, named NAME.h265.mp4. Raises
    the core's BadInput, Canceled and OutputError; then neither file is left.
    """
    folder = unfinished_folder()
    folder.mkdir(parents=True, exist_ok=True)
    # Even the finished files keep a temporary name here, so that a kill before the gallery takes them leaves nothing for good.
    path, second = folder / temporary_name(), folder / temporary_name()
    copies: dict[Codec, Path] = {"h265": second} if codec == "h264+h265" else {}
    try:
        count = write_mp4(frames, path, copies=copies, fps=fps, width=width, height=height, crf=crf, stop=stop)
        duration = duration_seconds(count, fps)
        video = context.videos.save(source_path=path, width=width, height=height, duration=duration, fps=float(fps), metadata=metadata)
        if copies:
            second.replace(context.videos.get_path(video.video_name).with_suffix(H265_SUFFIX))
        return VideoOutput.build(video, num_frames=count)
    finally:
        path.unlink(missing_ok=True)
        second.unlink(missing_ok=True)
