import numpy as np
import pytest
import torch

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.masks import latent_mask


def test_a_cell_takes_the_mean_of_its_pixels():
    mask = np.zeros((16, 32), np.uint8)
    mask[:, 8:16] = 255
    mask[:8, 16:20] = 255

    cells = latent_mask(mask, height=16, width=32, cell=8)

    assert cells.shape == (1, 1, 1, 2, 4)
    assert torch.equal(cells[0, 0, 0], torch.tensor([[0.0, 1.0, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0]]))


def test_a_mask_of_another_size_is_refused_with_the_clips():
    with pytest.raises(BadInput, match="mask: expected 32x16 pixels, as the clip has, got 16x32"):
        latent_mask(np.zeros((32, 16), np.uint8), height=16, width=32, cell=8)


def test_a_picture_that_cannot_be_written_to_is_no_reason_to_warn(recwarn):
    mask = np.zeros((8, 8), np.uint8)
    mask.flags.writeable = False

    latent_mask(mask, height=8, width=8, cell=8)

    assert not recwarn.list
