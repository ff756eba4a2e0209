import itertools
import os
import subprocess

import imageio_ffmpeg
import numpy as np
import psutil
import pytest

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.frames import count_frames, read_frames
from invokeai_video_nodes.pipelines.mp4 import write_mp4

COUNT = 20


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Frame i is grey 10 * i, 64x48."""
    path = tmp_path_factory.mktemp("video") / "grey.mp4"
    frames = (np.full((48, 64, 3), 10 * index, np.uint8) for index in range(COUNT))
    write_mp4(frames, path, fps=8, width=64, height=48, crf=1, preset="ultrafast")
    return path


def greys(frames):
    return [round(float(frame.mean()) / 10) for frame in frames]


def test_every_frame_comes_back_in_order(video):
    frames = list(read_frames(video))

    assert greys(frames) == list(range(COUNT))
    assert all(frame.shape == (48, 64, 3) and frame.dtype == np.uint8 for frame in frames)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"skip": 3}, list(range(3, COUNT))),
        ({"every_nth": 4}, [0, 4, 8, 12, 16]),
        ({"skip": 2, "every_nth": 5}, [2, 7, 12, 17]),
        ({"skip": 2, "every_nth": 5, "limit": 2}, [2, 7]),
        ({"limit": 1}, [0]),
        ({"limit": 100}, list(range(COUNT))),
    ],
)
def test_frames_are_chosen_by_skip_step_and_limit(video, settings, wanted):
    assert greys(read_frames(video, **settings)) == wanted


def test_frames_are_counted_as_they_are_read(video, tmp_path):
    (tmp_path / "none.mp4").write_text("no video")

    assert count_frames(video) == COUNT
    with pytest.raises(BadInput, match="an existing file"):
        count_frames(tmp_path / "missing.mp4")
    with pytest.raises(BadInput, match="a file that ffmpeg can read"):
        count_frames(tmp_path / "none.mp4")


def test_frames_come_in_the_size_asked_for(video):
    frame = next(read_frames(video, size=(30, 21)))

    assert frame.shape == (21, 30, 3)


def test_a_turned_video_is_read_upright(video, tmp_path):
    turned = tmp_path / "turned.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-display_rotation", "90", "-i", str(video)]
    subprocess.run([*command, "-c", "copy", str(turned)], check=True)

    assert next(read_frames(turned)).shape == (64, 48, 3)


def test_colours_survive_a_write_and_a_read(tmp_path):
    ramp = np.arange(256, dtype=np.uint8).repeat(8).reshape(32, 64)
    frame = np.stack([ramp, ramp, ramp], axis=-1)
    write_mp4(iter([frame]), tmp_path / "ramp.mp4", fps=8, width=64, height=32, crf=1)

    back = next(read_frames(tmp_path / "ramp.mp4"))
    # 8-bit video range has 220 greys for 256, so one step is the best there is.
    assert np.abs(back.astype(int) - frame).max() <= 2


def test_a_reader_that_is_left_early_ends_its_ffmpeg(video):
    frames = read_frames(video)
    assert len(list(itertools.islice(frames, 2))) == 2
    [ffmpeg] = [child for child in psutil.Process(os.getpid()).children() if "ffmpeg" in child.name()]
    frames.close()

    assert not ffmpeg.is_running()


def test_memory_does_not_grow_with_the_length_of_the_video(tmp_path):
    frames = (np.full((192, 192, 3), index % 250, np.uint8) for index in range(250))
    write_mp4(frames, tmp_path / "long.mp4", fps=30, width=192, height=192, preset="ultrafast")

    reader = read_frames(tmp_path / "long.mp4")
    next(reader)
    before = psutil.Process().memory_info().rss
    count = sum(1 for _ in reader)
    grown = psutil.Process().memory_info().rss - before
    # All frames together are 26 MiB.
    assert count == 249 and grown < 8 * 2**20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_nth": 0}, r"every_nth: expected 1 or more, got 0 \(nearest valid value: 1\)"),
        ({"skip": -1}, "skip: expected 0 or more frames, got -1"),
        ({"limit": 0}, "limit: expected 1 or more frames, or none, got 0"),
        ({"size": (0, 10)}, r"size: .*nearest valid value: \(1, 10\)"),
    ],
)
def test_settings_are_checked_at_once(video, settings, message):
    with pytest.raises(BadInput, match=message):
        read_frames(video, **settings)


def test_what_is_no_video_is_refused(tmp_path, video):
    (tmp_path / "text.mp4").write_text("not a video")

    with pytest.raises(BadInput, match="expected an existing file"):
        read_frames(tmp_path / "nowhere.mp4")
    with pytest.raises(BadInput, match="expected a file that ffmpeg can read"):
        next(read_frames(tmp_path / "text.mp4"))
    with pytest.raises(BadInput, match=f"expected more than {COUNT} frames"):
        next(read_frames(video, skip=COUNT))
