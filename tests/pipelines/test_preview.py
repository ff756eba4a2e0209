import json

import numpy as np
import pytest
import torch

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.preview import FILE_NAME, FLUX_FACTORS, latent_preview, linear_factors, load_factors


def test_flux_latents_become_one_pixel_per_cell():
    picture = latent_preview(torch.randn(16, 6, 9))

    assert picture.shape == (6, 9, 3) and picture.dtype == np.uint8
    assert FLUX_FACTORS.channels == 16


def test_a_row_of_factors_is_what_a_channel_adds_to_red_green_and_blue():
    x0 = torch.zeros(2, 1, 1)
    x0[0] = 1.0

    assert latent_preview(x0, linear_factors(((1.0, 0.0, -1.0), (9.0, 9.0, 9.0))))[0, 0].tolist() == [255, 128, 0]


def test_a_checkpoints_own_factors_can_draw_several_pixels_per_cell(tmp_path):
    kernel = torch.zeros(12, 4, 3, 3)
    for position, value in enumerate((-1.0, -0.5, 0.5, 1.0)):
        kernel[position, 0, 1, 1] = value
    stored = {"kernel": kernel.tolist(), "bias": [0.0] * 4 + [1.0] * 8, "scale": 2}
    (tmp_path / FILE_NAME).write_text(json.dumps(stored))
    factors = load_factors(tmp_path)
    picture = latent_preview(torch.ones(4, 3, 5), factors)

    assert picture.shape == (6, 10, 3)
    assert picture[2:4, 2:4, 0].tolist() == [[0, 64], [191, 255]]
    assert (picture[..., 1:] == 255).all()


def test_edges_are_as_bright_as_the_middle():
    kernel = torch.full((3, 1, 3, 3), 1 / 9)
    factors = linear_factors(((1.0, 1.0, 1.0),))
    factors = type(factors)(kernel=kernel, bias=factors.bias)

    assert (latent_preview(torch.ones(1, 4, 4), factors) == 255).all()


def test_a_folder_without_factors_has_none(tmp_path):
    assert load_factors(tmp_path) is None


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ('{"kernel": []', 'expected JSON with "kernel", "bias" and "scale"'),
        ('{"bias": [0, 0, 0], "scale": 1}', 'expected JSON with "kernel"'),
        ('{"kernel": [[[[1.0]]]], "bias": [0, 0, 0], "scale": 1}', r"kernel: expected \[3, channels, k, k\]"),
        ('{"kernel": [[[[1.0]]],[[[1.0]]],[[[1.0]]]], "bias": [0], "scale": 1}', r"bias: expected \[3\], got \[1\]"),
    ],
)
def test_factors_of_another_form_are_refused(tmp_path, stored, message):
    (tmp_path / FILE_NAME).write_text(stored)

    with pytest.raises(BadInput, match=message):
        load_factors(tmp_path)


def test_latents_of_other_channels_are_refused():
    with pytest.raises(BadInput, match=r"preview latents: expected \[16, h, w\], got \[4, 8, 8\]"):
        latent_preview(torch.zeros(4, 8, 8))
