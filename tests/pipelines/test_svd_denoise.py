"""Stable Video Diffusion bit for bit against diffusers' own pipeline, and what is refused before a weight is used."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from PIL import Image
from tiny_svd import EMBEDDING, tiny_svd

from invokeai_video_nodes.pipelines.errors import BadInput, Canceled, NotFinite
from invokeai_video_nodes.pipelines.shapes import ClipShape
from invokeai_video_nodes.pipelines.svd.conditioning import (
    Conditioning,
    Motion,
    condition,
    draw_noise,
    embed_picture,
    encode_picture,
    picture_pixels,
)
from invokeai_video_nodes.pipelines.svd.decode import decode_chunk
from invokeai_video_nodes.pipelines.svd.denoise import check_denoise_input, denoise, frame_rule, guidance_ramp
from invokeai_video_nodes.pipelines.svd.schedule import svd_scheduler

STEPS = 3
WIDTH, HEIGHT = 64, 48  # pixels
AUGMENTED = Motion(fps=12, motion_bucket_id=200, noise_aug_strength=0.3)
NO_GUIDANCE, RAMP = (1.0, 1.0), (1.0, 3.0)


@pytest.fixture(scope="module")
def pipeline() -> StableVideoDiffusionPipeline:
    return tiny_svd()


def picture(width=WIDTH, height=HEIGHT):
    pixels = np.arange(width * height * 3, dtype=np.uint32).reshape(height, width, 3) * 7 % 256
    return Image.fromarray(pixels.astype(np.uint8))


def clip(frames, width=WIDTH, height=HEIGHT):
    return ClipShape("svd", frames, height, width, latent_channels=4)


def conditioned(pipeline, noise, motion=AUGMENTED, image=None, **options):
    return condition(
        image or picture(noise.shape[3], noise.shape[2]),
        motion,
        noise=noise,
        image_encoder=pipeline.image_encoder,
        image_processor=pipeline.feature_extractor,
        vae=pipeline.vae,
        **options,
    )


def schedule(pipeline, steps=STEPS):
    return svd_scheduler(steps=steps, config=pipeline.scheduler.config)


def ours(pipeline, shape, *, seed=3, guidance=RAMP, motion=AUGMENTED, **options):
    noise = draw_noise(shape, seed)
    return denoise(
        pipeline.unet,
        noise=noise.latents,
        conditioning=conditioned(pipeline, noise.picture, motion),
        scheduler=schedule(pipeline),
        min_guidance_scale=guidance[0],
        max_guidance_scale=guidance[1],
        **options,
    )


def theirs(pipeline, shape, *, seed=3, guidance=RAMP, motion=AUGMENTED, output_type="latent", **options):
    return pipeline(
        picture(shape.width, shape.height),
        height=shape.height,
        width=shape.width,
        num_frames=shape.num_frames,
        num_inference_steps=STEPS,
        min_guidance_scale=guidance[0],
        max_guidance_scale=guidance[1],
        generator=torch.Generator().manual_seed(seed),
        output_type=output_type,
        **dataclasses.asdict(motion),
        **options,
    ).frames


@pytest.mark.parametrize(("frames", "seed", "guidance"), [(14, 3, RAMP), (25, 4, RAMP), (14, 4, NO_GUIDANCE)])
def test_latents_equal_diffusers_pipeline_bit_for_bit(pipeline, frames, seed, guidance):
    shape = clip(frames)
    latents = ours(pipeline, shape, seed=seed, guidance=guidance)

    assert torch.equal(latents, theirs(pipeline, shape, seed=seed, guidance=guidance).transpose(1, 2))
    assert latents.shape == shape.latent_shape and latents.std() > 0.1


@pytest.mark.parametrize(("width", "height"), [(40, 72), (456, 40)])
def test_sizes_off_the_grid_of_64_and_shrinking_pictures_equal_diffusers_too(pipeline, width, height):
    shape = clip(4, width, height)

    assert torch.equal(ours(pipeline, shape), theirs(pipeline, shape).transpose(1, 2))


def test_pixels_equal_diffusers_pipeline_bit_for_bit(pipeline):
    shape = clip(14)
    pixels = torch.cat([decode_chunk(pipeline.vae, chunk) for chunk in ours(pipeline, shape).split(8, dim=2)])

    expected = theirs(pipeline, shape, output_type="pt", decode_chunk_size=8)[0]
    assert torch.equal((pixels * 0.5 + 0.5).clamp(0, 1), expected)


def test_a_ramp_that_falls_guides_the_first_frame_most(pipeline):
    """diffusers fails here: it asks the last frame whether to guide at all."""
    noise = draw_noise(clip(4), 3)
    latents = ours(pipeline, clip(4), guidance=(3.0, 1.0))

    constant = ours(pipeline, clip(4), guidance=(3.0, 3.0))
    assert guidance_ramp(3.0, 1.0, 5).flatten().tolist() == [3.0, 2.5, 2.0, 1.5, 1.0]
    assert latents.shape == noise.latents.shape
    assert (latents - constant)[:, :, 0].abs().mean() < (latents - constant)[:, :, -1].abs().mean()


@pytest.mark.parametrize("change", [{"fps": 24}, {"motion_bucket_id": 20}, {"noise_aug_strength": 0.0}])
def test_every_setting_of_the_motion_reaches_the_latents(pipeline, change):
    changed = ours(pipeline, clip(4), motion=dataclasses.replace(AUGMENTED, **change))

    assert not torch.equal(changed, ours(pipeline, clip(4)))


def test_the_estimate_of_the_last_step_is_the_result_and_steps_are_counted(pipeline):
    told = []
    latents = ours(pipeline, clip(4), on_step=lambda step, total, x0, now: told.append((step, total, x0.clone(), now.clone())))

    assert [(step, total) for step, total, *_ in told] == [(1, STEPS), (2, STEPS), (3, STEPS)]
    assert all(x0.shape == latents.shape for _, _, x0, _ in told)
    assert torch.equal(told[-1][3], latents)
    assert torch.allclose(told[-1][2], latents, atol=1e-4)


def test_a_canceled_denoise_ends_within_a_step_and_leaves_no_hook(pipeline):
    asked, ran = [], []
    handle = pipeline.unet.up_blocks[0].register_forward_hook(lambda *_: ran.append(1))

    def stop():
        asked.append(1)
        return bool(ran)

    with pytest.raises(Canceled):
        ours(pipeline, clip(4), stop=stop)
    handle.remove()

    blocks = [*pipeline.unet.down_blocks, pipeline.unet.mid_block, *pipeline.unet.up_blocks]
    assert ran == [1]
    # Before the step, then before each block up to the one after the first up block.
    assert len(asked) == 1 + len(pipeline.unet.down_blocks) + 1 + 2
    assert not any(block._forward_pre_hooks for block in blocks)


def test_a_stop_ends_either_encoder(pipeline):
    pixels, noise = picture_pixels(picture()), draw_noise(clip(4), 3).picture

    with pytest.raises(Canceled):
        embed_picture(pixels, image_encoder=pipeline.image_encoder, image_processor=pipeline.feature_extractor, stop=lambda: True)
    with pytest.raises(Canceled):
        encode_picture(pixels, vae=pipeline.vae, noise=noise, noise_aug_strength=0.0, stop=lambda: True)


def test_weights_that_are_no_numbers_are_an_error_and_not_a_black_clip():
    broken = tiny_svd()
    with torch.no_grad():
        broken.unet.conv_in.weight.fill_(float("inf"))

    with pytest.raises(NotFinite, match="after step 1 of 3"):
        ours(broken, clip(4))


def test_a_unet_of_lower_precision_gives_float32_latents_close_to_the_exact_ones():
    rough = tiny_svd()
    rough.unet.to(torch.bfloat16)
    latents, exact = ours(rough, clip(4)), ours(tiny_svd(), clip(4))

    assert latents.dtype == torch.float32
    assert 0 < (latents - exact).abs().max() < 0.1


def test_a_vae_that_overflows_in_float16_encodes_in_float32_and_stays_float16():
    half, full = tiny_svd().vae.half(), tiny_svd().vae.half().float()
    pixels, noise = picture_pixels(picture()), torch.zeros(1, 3, HEIGHT, WIDTH)

    latent = encode_picture(pixels, vae=half, noise=noise, noise_aug_strength=0.0)
    assert torch.equal(latent, encode_picture(pixels, vae=full, noise=noise, noise_aug_strength=0.0))
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}


def refusing(pipeline, monkeypatch):
    for part in (pipeline.unet, pipeline.vae.encoder, pipeline.image_encoder):
        monkeypatch.setattr(part, "forward", lambda *_, **__: pytest.fail("a model ran"))
    return pipeline


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": 0}, r"fps: expected 1 or more, got 0 \(nearest valid value: 1\)"),
        ({"motion_bucket_id": -1}, r"motion_bucket_id: expected 0 to 255, got -1 \(nearest valid value: 0\)"),
        ({"motion_bucket_id": 256}, r"motion_bucket_id: expected 0 to 255, got 256 \(nearest valid value: 255\)"),
        ({"noise_aug_strength": -0.1}, r"noise_aug_strength: .* \(nearest valid value: 0.0\)"),
        ({"noise_aug_strength": float("nan")}, "noise_aug_strength: expected 0.0 to 10.0, got nan"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(BadInput, match=message):
        Motion(**change)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "start image: expected an image, because this model continues one, got none"),
        (picture(60, HEIGHT), r"image width: expected a positive multiple of 8 pixels, got 60 \(nearest valid value: 56\)"),
        (picture(WIDTH, 50), r"image height: .* got 50 \(nearest valid value: 48\)"),
        (picture(HEIGHT, WIDTH), "start image: expected the clip's size 64x48, got 48x64"),
    ],
)
def test_pictures_that_do_not_fit_are_refused_before_a_model_runs(pipeline, monkeypatch, image, message):
    refusing(pipeline, monkeypatch)

    with pytest.raises(BadInput, match=message):
        condition(
            image,
            Motion(),
            noise=torch.zeros(1, 3, HEIGHT, WIDTH),
            image_encoder=pipeline.image_encoder,
            image_processor=pipeline.feature_extractor,
            vae=pipeline.vae,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": torch.zeros(1, 4, 4, 6)}, "noise: expected 5-D"),
        ({"noise": torch.zeros(1, 16, 4, 6, 8)}, "noise: channels: expected 4, got 16"),
        ({"noise": torch.zeros(1, 4, 3, 6, 8)}, r"num_frames: .* got 3 \(nearest valid value: 4\)"),
        ({"noise": torch.zeros(1, 4, 4, 513, 8)}, r"height: expected at most 4096 pixels, got 4104 \(nearest valid value: 4096\)"),
        ({"noise": torch.zeros(1, 4, 4, 6, 9)}, r"start frame: expected \[1, 4, 1, 6, 9\], got \[1, 4, 1, 6, 8\]"),
        ({"embedding": torch.zeros(1, 1, 768)}, r"picture embedding: expected \[1, 1, 32\], as this UNet reads, got \[1, 1, 768\]"),
        ({"time_ids": torch.zeros(1, 2)}, r"added time ids: expected \[1, 3\]"),
        ({"min_guidance_scale": 0.5}, r"min_guidance_scale: expected 1.0 or more, got 0.5 \(nearest valid value: 1.0\)"),
        ({"max_guidance_scale": float("nan")}, "max_guidance_scale: expected 1.0 or more, got nan"),
    ],
)
def test_what_does_not_fit_the_unet_is_refused_before_it_runs(pipeline, monkeypatch, change, message):
    refusing(pipeline, monkeypatch)
    told = {"embedding": torch.zeros(1, 1, EMBEDDING), "start": torch.zeros(1, 4, 1, 6, 8), "time_ids": torch.zeros(1, 3)}
    told.update({name: change.pop(name) for name in tuple(change) if name in told})
    given = {"noise": torch.zeros(1, 4, 4, 6, 8), "conditioning": Conditioning(**told), "scheduler": schedule(pipeline), **change}

    with pytest.raises(BadInput, match=message):
        denoise(pipeline.unet, **given)


def test_a_unet_that_reads_no_start_picture_is_refused(pipeline):
    conditioning = Conditioning(torch.zeros(1, 1, EMBEDDING), torch.zeros(1, 4, 1, 6, 8), torch.zeros(1, 3))
    with pytest.raises(BadInput, match="UNet: in_channels: expected 8, latents and start picture, got 4"):
        check_denoise_input({**pipeline.unet.config, "in_channels": 4}, noise=torch.zeros(1, 4, 4, 6, 8), conditioning=conditioning)


@pytest.mark.parametrize(
    ("config", "steps", "message"),
    [
        (None, 0, r"steps: expected 1 or more, got 0 \(nearest valid value: 1\)"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}, 2, "scheduler: expected EulerDiscreteScheduler"),
        ({"prediction_type": "epsilon"}, 2, "scheduler: prediction_type: expected v_prediction, got epsilon"),
    ],
)
def test_a_schedule_that_the_model_cannot_use_is_refused(config, steps, message):
    with pytest.raises(BadInput, match=message):
        svd_scheduler(steps=steps, config=config)


def test_a_checkpoint_warns_of_other_counts_than_its_own():
    rule = frame_rule(tiny_svd(num_frames=25).unet.config)

    assert rule.frames_warning(25) is None
    assert "trained on 25 frames; 14 frames may move poorly" in (rule.frames_warning(14) or "")
