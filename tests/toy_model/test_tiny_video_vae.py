"""The training of the tests' video VAE: the picture comes nearer, and the same seed gives the same weights."""

import pytest
import torch

from training.tiny_video_vae.train import Phase, load_clip, new_vae, psnr, reconstruction, train

CLIP = load_clip(frames=9)[:, :64, :64]
SHORT = (Phase(12, frames=5, side=32, rate=2.0e-3), Phase(4, frames=9, side=64, rate=1.5e-3))


@pytest.mark.soak
def test_a_short_training_brings_the_picture_nearer_and_repeats_itself():
    said: list[str] = []
    trained, again = (train(CLIP, phases=SHORT, log=said.append) for _ in range(2))

    assert psnr(CLIP, reconstruction(trained, CLIP)) > psnr(CLIP, reconstruction(new_vae().eval(), CLIP)) + 1
    assert all(map(torch.equal, trained.state_dict().values(), again.state_dict().values()))
