import random

import pytest
import torch

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.pipelines.shapes import (
    FRAME_RULES,
    ClipShape,
    check_f_patch_size,
    check_latents,
    duration_seconds,
)


def test_latents_of_sixteen_frames_at_512_are_five_dimensional():
    clip = ClipShape("z-image-video", 16, 512, 512, 2)

    assert clip.latent_shape == (1, 16, 16, 64, 64)
    assert clip.noise(seed=0).shape == (1, 16, 16, 64, 64)


def test_two_frames_by_four_cells_make_a_token():
    clip = ClipShape("z-image-video", 16, 512, 512, 2)

    assert (clip.tokens, clip.token_features) == (8192, 128)


@pytest.mark.parametrize("f_patch_size", [1, 2, 4])
@pytest.mark.parametrize("num_frames", [4, 8, 16, 32, 48])
def test_frame_counts_that_every_patch_size_divides_are_taken(num_frames, f_patch_size):
    clip = ClipShape("z-image-video", num_frames, 64, 64, f_patch_size)

    assert clip.latent_frames == num_frames
    assert clip.tokens == num_frames // f_patch_size * 16


@pytest.mark.parametrize(
    ("num_frames", "f_patch_size", "nearest"),
    [(25, 2, 24), (18, 4, 16), (19, 4, 20), (3, 1, 4), (2, 4, 4), (129, 1, 128), (200, 4, 128), (0, 2, 4), (-8, 2, 4)],
)
def test_frame_counts_off_the_grid_name_the_nearest_one(num_frames, f_patch_size, nearest):
    with pytest.raises(BadInput, match=rf"num_frames: .*got {num_frames} \(nearest valid value: {nearest}\)"):
        ClipShape("z-image-video", num_frames, 64, 64, f_patch_size)


@pytest.mark.parametrize(("size", "nearest"), [(500, 496), (505, 512), (8, 16), (0, 16), (-16, 16), (24, 16)])
def test_sizes_off_the_grid_name_the_nearest_one(size, nearest):
    with pytest.raises(BadInput, match=rf"height: .*got {size} \(nearest valid value: {nearest}\)"):
        ClipShape("z-image-video", 16, size, 512)
    with pytest.raises(BadInput, match=rf"width: .*got {size} \(nearest valid value: {nearest}\)"):
        ClipShape("z-image-video", 16, 512, size)


def test_a_3d_vae_folds_sixteen_frames_into_four_latent_ones():
    assert FRAME_RULES["hunyuan-video"].latent_frames(16) == 4
    assert ClipShape("hunyuan-video", 17, 512, 512).latent_shape == (1, 16, 5, 64, 64)


def test_hunyuan_video_refuses_sixteen_frames_and_names_seventeen():
    with pytest.raises(BadInput, match=r"4n\+1, got 16 \(nearest valid value: 17\)"):
        ClipShape("hunyuan-video", 16, 512, 512)


@pytest.mark.parametrize(("available", "most"), [(4, None), (5, 5), (12, 9), (13, 13), (130, 129), (4000, 129)])
def test_a_longer_video_is_cut_to_the_most_frames_that_a_clip_can_have(available, most):
    assert FRAME_RULES["hunyuan-video"].most_frames(available) == most


def test_svd_takes_other_counts_than_it_was_trained_on_with_a_warning():
    rule = FRAME_RULES["svd"]

    assert rule.frames_warning(14) is None and rule.frames_warning(25) is None
    assert "trained on 14 or 25 frames" in (rule.frames_warning(20) or "")
    assert ClipShape("svd", 20, 576, 1024).num_frames == 20


def test_the_nearest_value_is_always_valid_and_none_is_nearer():
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(60):
        family = rng.choice(list(FRAME_RULES))
        f_patch_size = rng.choice([1, 2, 4]) if family == "z-image-video" else 1
        asked = rng.randint(-10, 300)
        rule = FRAME_RULES[family]
        nearest = rule.nearest_frames(asked, f_patch_size)
        rule.check_frames(nearest, f_patch_size)
        for closer in range(asked - abs(nearest - asked) + 1, asked + abs(nearest - asked)):
            with pytest.raises(BadInput):
                rule.check_frames(closer, f_patch_size)


def test_a_frame_patch_size_that_the_checkpoint_lacks_is_refused():
    with pytest.raises(BadInput, match=r"f_patch_size: expected one of 1, 2, got 4 \(nearest valid value: 2\)"):
        check_f_patch_size(4, [1, 2])
    with pytest.raises(BadInput, match="f_patch_size: expected one of 1, 2, 4, got 3"):
        ClipShape("z-image-video", 12, 64, 64, 3)


def test_latents_that_are_not_five_dimensional_are_refused():
    with pytest.raises(BadInput, match=r"5-D \[1, 16, frames, height/8, width/8\], got 4-D \[1, 16, 8, 8\]"):
        check_latents(torch.zeros(1, 16, 8, 8), channels=16)
    with pytest.raises(BadInput, match="channels: expected 16, got 4"):
        check_latents(torch.zeros(1, 4, 2, 8, 8), channels=16)


@pytest.mark.parametrize("family", ["z-image-video", "hunyuan-video", "hunyuan-video-1.5"])
def test_a_side_beyond_what_any_model_makes_is_refused_with_the_largest(family):
    assert ClipShape(family, 17 if "hunyuan" in family else 16, 4096, 64).height == 4096
    with pytest.raises(BadInput, match=r"width: expected at most 4096 pixels, got 100000 \(nearest valid value: 4096\)"):
        ClipShape(family, 17 if "hunyuan" in family else 16, 64, 100_000)
    assert FRAME_RULES[family].nearest_size(4100) == 4096


@pytest.mark.parametrize(
    ("shape", "latents", "message"),
    [
        (("hunyuan-video", 13, 32, 48), (1, 16, 3, 4, 4), "a clip of 13 frames of 48x32, as this node has, got 9 frames of 32x32"),
        (("hunyuan-video-1.5", 13, 32, 48), (1, 16, 4, 2, 2), "of 13 frames of 48x32, as this node has, got 13 frames of 32x32"),
        (("z-image-video", 8, 32, 32), (1, 16, 6, 4, 4), "of 8 frames of 32x32, as this node has, got 6 frames of 32x32"),
        (("z-image-video", 8, 32, 32), (1, 4, 8, 4, 4), "latents: channels: expected 16, got 4"),
    ],
)
def test_latents_of_another_clip_are_told_in_frames_and_pixels(shape, latents, message):
    clip = ClipShape(*shape)

    clip.check_clip(torch.zeros(clip.latent_shape))
    with pytest.raises(BadInput, match=message):
        clip.check_clip(torch.zeros(latents))


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(BadInput, match="z-image-video, hunyuan-video, hunyuan-video-1.5, animatediff, svd, got 'wan'"):
        ClipShape("wan", 16, 64, 64)


def test_sixteen_frames_at_eight_fps_last_two_seconds():
    assert duration_seconds(16, 8) == 2.0
    with pytest.raises(BadInput, match="fps"):
        duration_seconds(16, 0)


def test_one_seed_is_one_noise_on_every_machine():
    noise = ClipShape("z-image-video", 4, 64, 64).noise(seed=7)

    assert noise.dtype == torch.float32 and noise.device.type == "cpu"
    assert torch.equal(noise, torch.randn(1, 16, 4, 8, 8, generator=torch.Generator("cpu").manual_seed(7)))
