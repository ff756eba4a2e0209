"""Colours survive the whole way: latents, frames, MP4, Chromium's own decoder, a canvas."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from colour_patches import HEIGHT, WIDTH, colour_error, patches_frame, write_colour_patches
from playwright.sync_api import Browser

DRAW = """async ([encoded, width, height]) => {
  const bytes = Uint8Array.from(atob(encoded), letter => letter.charCodeAt(0));
  const video = document.createElement('video');
  video.muted = true;
  video.src = URL.createObjectURL(new Blob([bytes], {type: 'video/mp4'}));
  await new Promise((done, failed) => {
    video.onseeked = done;
    video.onerror = () => failed(new Error(video.error.message));
    video.onloadeddata = () => { video.currentTime = 0.5; };
  });
  if (video.videoWidth !== width || video.videoHeight !== height) throw new Error('size ' + video.videoWidth);
  const canvas = document.createElement('canvas');
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext('2d');
  context.drawImage(video, 0, 0);
  return Array.from(context.getImageData(0, 0, width, height).data);
}"""


def drawn_by_chromium(browser: Browser, clip: Path) -> np.ndarray:
    """The frame at half a second as Chromium paints it, uint8 [HEIGHT, WIDTH, 4]."""
    page = browser.new_page()
    try:
        values = page.evaluate(DRAW, [base64.b64encode(clip.read_bytes()).decode(), WIDTH, HEIGHT])
    finally:
        page.close()
    return np.array(values, dtype=np.uint8).reshape(HEIGHT, WIDTH, 4)


def write_with_the_wrong_matrix(path: Path) -> Path:
    """The patches converted as BT.601 and tagged as BT.709: what a careless encoder writes."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{WIDTH}x{HEIGHT}", "-r", "8", "-i", "-", "-vf", "scale=out_color_matrix=bt601:out_range=tv"]
    command += ["-pix_fmt", "yuv420p", "-c:v", "libx264", "-crf", "18"]
    command += ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv", str(path)]
    subprocess.run(command, input=patches_frame().tobytes() * 8, check=True)
    return path


def test_twenty_four_patches_look_in_chromium_as_they_should(desktop_browser, tmp_path, record_property):
    mean, largest = colour_error(drawn_by_chromium(desktop_browser, write_colour_patches(tmp_path / "patches.mp4")))
    record_property("colour_error_mean", mean)
    record_property("colour_error_largest", largest)

    assert mean <= 2
    assert largest <= 6


def test_a_clip_converted_with_the_wrong_matrix_fails_the_same_measurement(desktop_browser, tmp_path):
    _, largest = colour_error(drawn_by_chromium(desktop_browser, write_with_the_wrong_matrix(tmp_path / "wrong.mp4")))

    assert largest > 6
