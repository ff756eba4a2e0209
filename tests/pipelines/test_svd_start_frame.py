"""A picture of any size -> one that SVD takes."""

import numpy as np
import pytest
from PIL import Image

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.svd.start_frame import fit_picture, ideal_size, trained_size


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ((1920, 1080), (1024, 576)),
        ((1080, 1920), (576, 1024)),
        ((512, 512), (768, 768)),
        ((1600, 1200), (896, 640)),
        ((2100, 900), (1152, 512)),
        ((9000, 100), (1792, 320)),
    ],
)
def test_the_ideal_size_is_closest_in_shape_at_the_trained_number_of_pixels(picture, expected):
    assert ideal_size(*picture) == expected


@pytest.mark.parametrize("picture", [(width, height) for width in (1, 333, 720, 4000) for height in (1, 250, 719, 3000)])
def test_every_ideal_size_is_on_the_grid_and_no_larger_than_the_trained_one(picture):
    width, height = ideal_size(*picture)

    assert width % 64 == height % 64 == 0
    assert 0.8 * 1024 * 576 < width * height <= 1024 * 576
    assert ideal_size(height, width) == (height, width)


def test_the_trained_size_lies_or_stands_as_the_picture_does():
    assert trained_size(640, 480) == trained_size(500, 500) == (1024, 576)
    assert trained_size(480, 640) == (576, 1024)


def stripes():
    """White in the middle half of its width, red at both ends: 80x20."""
    pixels = np.zeros((20, 80, 3), np.uint8)
    pixels[..., 0] = 255
    pixels[:, 20:60] = 255
    return Image.fromarray(pixels)


def test_a_crop_cuts_both_ends_alike():
    cropped = np.asarray(fit_picture(stripes(), width=40, height=20))

    assert cropped.shape == (20, 40, 3)
    assert (cropped == 255).all()


def test_a_fit_keeps_the_whole_picture_between_black_bars():
    fitted = np.asarray(fit_picture(stripes(), width=80, height=40, how="fit"))

    assert (fitted[:10] == 0).all() and (fitted[30:] == 0).all()
    assert np.array_equal(fitted[10:30], np.asarray(stripes()))


def test_a_stretch_is_diffusers_own_resize():
    stretched = fit_picture(stripes(), width=40, height=40, how="stretch")

    assert np.array_equal(np.asarray(stretched), np.asarray(stripes().resize((40, 40), Image.Resampling.LANCZOS)))


def test_a_picture_of_the_size_is_only_made_rgb():
    with_alpha = stripes().convert("RGBA")

    assert np.array_equal(np.asarray(fit_picture(with_alpha, width=80, height=20)), np.asarray(stripes()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_picture(stripes(), width=8, height=8, how="zoom"), r"how: expected one of crop, fit, stretch, got 'zoom'"),
        (lambda: fit_picture(stripes(), width=0, height=8), r"size: .* got 0x8 \(nearest valid value: 1x8\)"),
        (lambda: ideal_size(0, 8), "size: expected positive width and height, got 0x8"),
    ],
)
def test_what_gives_no_picture_is_refused(call, message):
    with pytest.raises(BadInput, match=message):
        call()
