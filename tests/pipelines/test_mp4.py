import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from colour_patches import colour_error, write_colour_patches
from small_disk import small_disk

from invokeai_video_nodes.pipelines.errors import BadInput, Canceled, OutputError
from invokeai_video_nodes.pipelines.ffmpeg import Ffmpeg
from invokeai_video_nodes.pipelines.frames import read_frames
from invokeai_video_nodes.pipelines.mp4 import check_mp4_settings, clean_stale, write_mp4

ROOT = Path(__file__).parents[2]


def noise_frames(count=8, width=64, height=48, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path, frames=None, **settings):
    return write_mp4(
        noise_frames() if frames is None else frames,
        path,
        **{"fps": 8, "width": 64, "height": 48, "preset": "ultrafast", **settings},
    )


def stream_line(path):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)]
    told = subprocess.run(command, stderr=subprocess.PIPE, text=True).stderr
    return next(line for line in told.splitlines() if "Video:" in line)


@pytest.mark.parametrize(("codec", "tag"), [("h264", "avc1"), ("h265", "hvc1")])
def test_the_file_says_its_codec_size_rate_and_colours(tmp_path, codec, tag):
    assert write(tmp_path / "clip.mp4", codec=codec, fps=8) == 8

    line = stream_line(tmp_path / "clip.mp4")
    assert tag in line and "64x48" in line and "8 fps" in line
    # One "bt709" where matrix, primaries and transfer agree, three where they do not.
    assert re.search(r"yuv420p\(tv, bt709,", line), line


def test_the_index_comes_before_the_frames(tmp_path):
    write(tmp_path / "clip.mp4")

    data = (tmp_path / "clip.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_known_colours_come_back_through_the_file(tmp_path, codec):
    path = write_colour_patches(tmp_path / "patches.mp4", codec=codec)

    for frame in read_frames(path):
        mean, largest = colour_error(frame)
        assert mean <= 2 and largest <= 6, (mean, largest)


def test_the_colour_test_bites_on_the_wrong_matrix(tmp_path):
    path, wrong = write_colour_patches(tmp_path / "patches.mp4"), tmp_path / "wrong.mp4"
    retag = ["-c", "copy", "-bsf:v", "h264_metadata=matrix_coefficients=6", str(wrong)]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(path), *retag], check=True)

    mean, _ = colour_error(next(read_frames(wrong)))
    assert mean > 2


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_a_larger_crf_makes_a_smaller_file(tmp_path, codec):
    for crf in (10, 18, 40):
        write(tmp_path / f"{crf}.mp4", crf=crf, codec=codec)

    sizes = [(tmp_path / f"{crf}.mp4").stat().st_size for crf in (10, 18, 40)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_a_copy_in_the_other_codec_comes_from_the_same_frames(tmp_path):
    count = write(tmp_path / "clip.mp4", copies={"h265": tmp_path / "clip.h265.mp4"})

    assert count == len(list(read_frames(tmp_path / "clip.h265.mp4"))) == 8
    assert "avc1" in stream_line(tmp_path / "clip.mp4") and "hvc1" in stream_line(tmp_path / "clip.h265.mp4")


def test_files_that_cannot_be_named_leave_nothing(tmp_path):
    (tmp_path / "clip.h265.mp4").mkdir()

    with pytest.raises(OutputError, match="Naming the finished video failed"):
        write(tmp_path / "clip.mp4", copies={"h265": tmp_path / "clip.h265.mp4"})

    assert [path.name for path in tmp_path.iterdir()] == ["clip.h265.mp4"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 63}, r"video width: expected an even number of pixels, got 63 \(nearest valid value: 62\)"),
        ({"height": 1}, r"video height: .* got 1 \(nearest valid value: 2\)"),
        ({"codec": "vp9"}, r"codec: expected one of h264, h265, got 'vp9' \(nearest valid value: h264\)"),
        ({"crf": 60}, r"crf: expected 0 to 51, got 60 \(nearest valid value: 51\)"),
        ({"preset": "warp"}, "preset: expected one of ultrafast, .* got 'warp'"),
        ({"fps": 0}, "fps: expected more than 0, got 0"),
    ],
)
def test_settings_that_cannot_be_encoded_are_refused_before_the_first_frame(tmp_path, change, message):
    def untouched():
        raise AssertionError("a frame was asked for")
        yield

    with pytest.raises(BadInput, match=message):
        write(tmp_path / "clip.mp4", untouched(), **change)
    with pytest.raises(BadInput, match=message):
        check_mp4_settings(**{"fps": 8, "width": 64, "height": 48, "codec": "h264", "crf": 18, **change})

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([np.zeros((48, 64, 3), np.uint8), np.zeros((48, 62, 3), np.uint8)], r"frame 1: expected uint8 \[48, 64, 3\]"),
        ([np.zeros((48, 64, 3), np.float32)], r"frame 0: expected uint8 .* got float32"),
        ([], "frames to write: expected at least 1, got 0"),
    ],
)
def test_frames_of_another_kind_leave_no_file(tmp_path, frames, message):
    with pytest.raises(BadInput, match=message):
        write(tmp_path / "clip.mp4", iter(frames))

    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_stays_when_its_successor_fails(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"the old one")

    with pytest.raises(BadInput):
        write(tmp_path / "clip.mp4", iter([]))

    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"the old one"]


def test_a_canceled_write_closes_its_source_and_leaves_nothing(tmp_path):
    closed = []

    def frames():
        try:
            yield from noise_frames(count=1000)
        finally:
            closed.append(True)

    with pytest.raises(Canceled):
        asked = iter(range(100))
        write(tmp_path / "clip.mp4", frames(), stop=lambda: next(asked) >= 3)

    assert closed == [True]
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_decoder_passes_through_and_leaves_nothing(tmp_path):
    def frames():
        yield from noise_frames(count=2)
        raise RuntimeError("the decoder broke")

    with pytest.raises(RuntimeError, match="the decoder broke"):
        write(tmp_path / "clip.mp4", frames())

    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="expected an existing folder"):
        write(tmp_path / "nowhere" / "clip.mp4")


@contextlib.contextmanager
def small_files(folder):
    """No file may grow beyond 256 KiB: to the encoder it is a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refused_by_the_disk(folder):
    """The message with which a clip larger than 256 KiB fails; nothing of it may be left."""
    with pytest.raises(OutputError) as told:
        write(folder / "clip.mp4", noise_frames(count=200, width=256, height=256), width=256, height=256, crf=1)
    assert list(folder.iterdir()) == []
    return str(told.value)


def test_a_full_disk_is_said_with_what_was_free_and_written_and_leaves_nothing(tmp_path):
    with small_disk(tmp_path, kib=256):
        message = refused_by_the_disk(tmp_path)

    assert re.fullmatch(
        rf"Writing the video to {tmp_path} failed after \d+ frames: the disk is full\. "
        r"256\.0 KiB were free when it began, 2\d\d\.\d KiB were written; the unfinished video was removed\.",
        message,
    )


def test_an_encoder_that_is_stopped_by_the_system_is_said_with_its_own_words_and_leaves_nothing(tmp_path):
    with small_files(tmp_path):
        message = refused_by_the_disk(tmp_path)

    assert re.search(r"failed after \d+ frames: ffmpeg says: .*256\.0 KiB were written; the unfinished video was removed", message)


def test_ffmpeg_s_words_come_without_addresses(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"not a video" * 100)
    ffmpeg = Ffmpeg(["-i", str(tmp_path / "broken.mp4"), "-f", "null", "-"], feed=False)

    assert ffmpeg.finish() != 0
    assert "[in#0] Error opening input" in ffmpeg.last_words() and "0x" not in ffmpeg.last_words()


# Feeds frames for ever; says so once ffmpeg has taken more than a pipe holds.
ENDLESS_WRITER = """
import sys
import numpy as np
from invokeai_video_nodes.pipelines.mp4 import write_mp4

def frames():
    count = 0
    while True:
        yield np.zeros((256, 256, 3), np.uint8)
        count += 1
        if count == 40:
            print("writing", flush=True)
            sys.stdin.read()

write_mp4(frames(), sys.argv[1], fps=8, width=256, height=256, preset="ultrafast")
"""


def test_a_killed_writer_leaves_no_video_and_its_temporary_file_goes_at_the_next_start(tmp_path):
    command = [sys.executable, "-c", ENDLESS_WRITER, str(tmp_path / "clip.mp4")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, **pipes) as writer:
        assert writer.stdout.readline() == "writing\n"
        assert clean_stale(tmp_path) == []
        [temporary] = tmp_path.iterdir()
        writer.send_signal(signal.SIGKILL)
        writer.wait()

    assert not (tmp_path / "clip.mp4").exists()
    assert clean_stale(tmp_path) == [temporary]
    assert list(tmp_path.iterdir()) == []


def test_cleaning_up_leaves_everything_else_alone(tmp_path):
    names = ["clip.mp4", ".hidden", ".invokeai-video-notes.part", f".invokeai-video-{2**22 + 1}-1-ab.part"]
    for name in names:
        (tmp_path / name).touch()

    assert [path.name for path in clean_stale(tmp_path)] == names[3:]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[:3])
