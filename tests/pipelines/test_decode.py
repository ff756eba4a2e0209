import gc
import weakref

import numpy as np
import pytest
import torch
from colour_patches import PlainVae, colour_error, patches_frame
from diffusers.image_processor import VaeImageProcessor

from invokeai_video_nodes.pipelines.decode import decode_frames, to_uint8
from invokeai_video_nodes.pipelines.errors import BadInput, Canceled
from invokeai_video_nodes.pipelines.z_image.start_frame import encode_frame, noised_start

LATENTS = torch.randn(1, 16, 5, 8, 6, generator=torch.Generator().manual_seed(0))


def refuse(*_, **__):
    raise AssertionError("the VAE was called")


def test_decode_equals_diffusers_frame_by_frame_before_encoding(vae):
    ours = list(decode_frames(vae, LATENTS))

    processor = VaeImageProcessor()
    for index, frame in enumerate(ours):
        with torch.no_grad():
            latent = LATENTS[:, :, index] / vae.config.scaling_factor + vae.config.shift_factor
            pixels = vae.decode(latent, return_dict=False)[0]
        theirs = processor.numpy_to_pil(processor.postprocess(pixels, output_type="np"))[0]
        assert frame.dtype == np.uint8 and frame.shape == (64, 48, 3)
        assert np.array_equal(frame, np.asarray(theirs))


def test_eight_bits_are_rounded_not_cut():
    pixels = torch.tensor([-2.0, -1.0, 126.6 / 127.5 - 1, 127.4 / 127.5 - 1, 1.0, 9.0]).reshape(1, 1, 6).repeat(3, 1, 1)

    assert to_uint8(pixels)[0, :, 0].tolist() == [0, 0, 127, 127, 255, 255]


def test_a_vae_that_scales_by_itself_is_given_the_latents_as_they_are():
    latents = torch.zeros(1, 16, 2, 16, 24)
    latents[0, :3] = (torch.from_numpy(patches_frame()[::8, ::8].copy()).permute(2, 0, 1) / 127.5 - 1)[:, None]
    frames = list(decode_frames(PlainVae(), latents))

    assert len(frames) == 2 and colour_error(frames[1]) == (0.0, 0.0)


def test_frames_are_reported_and_come_one_at_a_time(vae):
    told = []
    frames = decode_frames(vae, LATENTS, on_frame=lambda index, total: told.append((index, total)))
    first = weakref.ref(next(frames))
    gc.collect()

    assert first() is None
    assert told == [(1, 5)]
    assert len(list(frames)) == 4 and told[-1] == (5, 5)


def test_a_canceled_decode_ends_before_the_next_frame(vae):
    told = []
    frames = decode_frames(vae, LATENTS, stop=lambda: len(told) >= 2, on_frame=lambda *frame: told.append(frame))

    with pytest.raises(Canceled):
        list(frames)

    assert len(told) == 2


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.zeros(1, 4, 2, 8, 8), "VAE: latent channels: expected 4 as the latents have, got 16"),
        (torch.zeros(1, 16, 8, 8), "latents: expected 5-D .* got 4-D"),
    ],
)
def test_latents_that_do_not_fit_the_vae_are_refused_before_it_is_called(vae, monkeypatch, latents, message):
    monkeypatch.setattr(vae, "decode", refuse)

    with pytest.raises(BadInput, match=message):
        decode_frames(vae, latents)


def test_channels_of_a_vae_without_config_are_read_from_its_decoder():
    with pytest.raises(BadInput, match="expected 16 as the latents have, got 4"):
        decode_frames(PlainVae(latent_channels=4), torch.zeros(1, 16, 2, 8, 8))


def test_an_encoded_frame_is_the_mean_scaled_as_the_denoiser_sees_it(vae):
    image = torch.linspace(-1, 1, 3 * 64 * 48).reshape(1, 3, 64, 48)
    latent = encode_frame(vae, image)

    with torch.no_grad():
        mean = vae.encode(image).latent_dist.mode()
    assert torch.equal(latent[:, :, 0], (mean - vae.config.shift_factor) * vae.config.scaling_factor)
    assert latent.shape == (1, 16, 1, 8, 6)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 3, 60, 64), r"image height: .* got 60 \(nearest valid value: 64\)"),
        (torch.zeros(1, 3, 64, 40), r"image width: .* got 40 \(nearest valid value: 32\)"),
        (torch.zeros(3, 64, 64), r"image: expected \[1, 3, height, width\], got \[3, 64, 64\]"),
    ],
)
def test_images_off_the_grid_are_refused_before_the_vae_is_called(vae, monkeypatch, image, message):
    monkeypatch.setattr(vae, "encode", refuse)

    with pytest.raises(BadInput, match=message):
        encode_frame(vae, image)


def test_a_noised_start_mixes_frame_zero_and_leaves_the_others_noise():
    frame = torch.full((1, 16, 1, 4, 4), 2.0)
    latents = noised_start(frame, num_frames=8, noise_strength=0.25, seed=3)

    noise = torch.randn(1, 16, 8, 4, 4, generator=torch.Generator("cpu").manual_seed(3))
    assert torch.equal(latents[:, :, 1:], noise[:, :, 1:])
    assert torch.allclose(latents[:, :, :1], 0.75 * frame + 0.25 * noise[:, :, :1])


def test_noise_strength_one_is_pure_noise_and_zero_the_frame_itself():
    frame = torch.full((1, 16, 1, 4, 4), 2.0)

    pure = noised_start(frame, num_frames=4, noise_strength=1.0, seed=3)
    assert torch.equal(pure, torch.randn(1, 16, 4, 4, 4, generator=torch.Generator("cpu").manual_seed(3)))
    assert torch.equal(noised_start(frame, num_frames=4, noise_strength=0.0, seed=3)[:, :, :1], frame)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_strength": 1.5}, r"noise_strength: .* got 1.5 \(nearest valid value: 1.0\)"),
        ({"num_frames": 3}, r"num_frames: .* got 3 \(nearest valid value: 4\)"),
        ({"frame_latent": torch.zeros(1, 16, 2, 4, 4)}, "frame_latent: frames: expected 1, got 2"),
        ({"frame_latent": torch.zeros(1, 16, 4, 4)}, "frame_latent: expected 5-D"),
    ],
)
def test_settings_of_a_noised_start_are_checked(change, message):
    settings = {"frame_latent": torch.zeros(1, 16, 1, 4, 4), "num_frames": 8, "noise_strength": 0.8, "seed": 0}
    settings.update(change)

    with pytest.raises(BadInput, match=message):
        noised_start(settings.pop("frame_latent"), **settings)
