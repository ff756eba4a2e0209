"""Videos to image collections and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from graphs import Graph, add, connect, picture, text_to_video
from PIL import Image

from invokeai_video_nodes.pipelines.frames import read_frames

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine


@pytest.fixture(scope="module")
def video(engine: Engine, tiny_model: dict[str, Any]) -> dict[str, str]:
    """A clip of 8 frames in the gallery."""
    return {"video_name": engine.run(text_to_video(tiny_model, decode={"crf": 0})).videos[0].name}


def to_frames(video: dict[str, str], **fields: Any) -> Graph:
    graph: Graph = {"nodes": {}, "edges": []}
    add(graph, "frames", "video_to_frames", video=video, **fields)
    return graph


def test_all_frames_of_a_video_become_images_in_order(engine: Engine, video: dict[str, str]) -> None:
    result = engine.run(to_frames(video))

    written = list(read_frames(engine.services.videos.get_path(video["video_name"])))
    assert len(result.images) == 8
    for path, frame in zip(result.images, written, strict=True):
        assert np.array_equal(np.asarray(Image.open(path).convert("RGB")), frame)


def test_skip_every_nth_and_limit_choose_frames(engine: Engine, video: dict[str, str]) -> None:
    every = engine.run(to_frames(video)).images

    chosen = engine.run(to_frames(video, skip=1, every_nth=3, limit=2)).images

    assert [Image.open(path).tobytes() for path in chosen] == [Image.open(every[index]).tobytes() for index in (1, 4)]


def test_frames_become_a_video_again_with_the_same_pictures(engine: Engine, video: dict[str, str]) -> None:
    graph = to_frames(video)
    add(graph, "again", "frames_to_video", fps=12, crf=0)
    connect(graph, "frames.collection", "again.images")

    result = engine.run(graph)

    (path,) = result.videos
    output = result.outputs["again"]
    before = np.stack(list(read_frames(engine.services.videos.get_path(video["video_name"]))))
    after = np.stack(list(read_frames(path)))
    assert (output["num_frames"], output["fps"], output["width"]) == (8, 12.0, 64)
    # The tiny model paints noise, and a video halves the resolution of colour; another frame or order would differ by tens.
    assert np.abs(after.astype(int) - before).mean() < 8


def test_uploaded_images_become_a_video_and_an_h265_file(engine: Engine, upload: Any) -> None:
    graph: Graph = {"nodes": {}, "edges": []}
    add(graph, "video", "frames_to_video", images=[upload(picture(shade=s)) for s in (0, 80, 160)], codec="h264+h265")

    (path,) = engine.run(graph).videos

    assert len(list(read_frames(path))) == len(list(read_frames(path.with_suffix(".h265.mp4")))) == 3
