"""Bit for bit against loops over diffusers' own classes, and what is refused before a weight is used."""

import copy

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline
from tiny_models import CAPTION_FEATURES

from invokeai_video_nodes.pipelines.errors import BadInput, Canceled, NotFinite
from invokeai_video_nodes.pipelines.schedules import flow_match_scheduler
from invokeai_video_nodes.pipelines.shapes import ClipShape
from invokeai_video_nodes.pipelines.z_image.denoise import denoise, transformer_call
from invokeai_video_nodes.pipelines.z_image.start_frame import encode_frame, noised_start

STEPS = 4


def schedule(name="euler", **settings):
    return flow_match_scheduler(name, **{"steps": STEPS, "image_tokens": 16, **settings})


@torch.no_grad()
def plain_loop(transformer, latents, positive, negative, scale, f_patch_size, held_steps=0, clean=None):
    """What a reader of diffusers would write: no code of ours but the guidance formula of the decision."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, STEPS + 1)[:-1])
    noise = latents.clone()
    for i, t in enumerate(scheduler.timesteps):
        if i < held_steps:
            latents = torch.cat([clean, latents[:, :, 1:]], dim=2)
        sizes = {"patch_size": 2, "f_patch_size": f_patch_size, "return_dict": False}
        time = (1000 - t.expand(1)) / 1000
        out = transformer([latents[0]], time, [positive], **sizes)[0][0]
        if negative is not None:
            without = transformer([latents[0]], time, [negative], **sizes)[0][0]
            out = without + scale * (out - without)
        latents = scheduler.step(-out[None], t, latents, return_dict=False)[0]
        if i + 1 == held_steps:
            s = scheduler.sigmas[i + 1]
            frame = clean if held_steps == STEPS else (1.0 - s) * clean + s * noise[:, :, :1]
            latents = torch.cat([frame, latents[:, :, 1:]], dim=2)
    return latents


@pytest.mark.parametrize("f_patch_size", [1, 2, 4])
@pytest.mark.parametrize("guided", [False, True])
def test_denoise_equals_a_plain_loop_bit_for_bit(transformer, positive, negative, f_patch_size, guided):
    noise = ClipShape("z-image-video", 8, 64, 48, f_patch_size).noise(seed=3)
    ours = denoise(
        transformer,
        latents=noise,
        positive=positive,
        negative=negative,
        guidance_scale=3.5 if guided else 1.0,
        scheduler=schedule(),
        f_patch_size=f_patch_size,
    )

    theirs = plain_loop(transformer, noise, positive, negative if guided else None, 3.5, f_patch_size)
    assert torch.equal(ours, theirs)
    assert ours.dtype == torch.float32 and ours.std() > 0.1


@pytest.mark.parametrize("f_patch_size", [1, 2, 4])
@pytest.mark.parametrize("guided", [False, True])
def test_image_to_video_equals_a_plain_loop_from_the_mixed_first_frame(transformer, vae, positive, negative, f_patch_size, guided):
    image = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    start = noised_start(encode_frame(vae, image), num_frames=8, noise_strength=0.8, seed=5)
    ours = denoise(
        transformer,
        latents=start,
        positive=positive,
        negative=negative,
        guidance_scale=2.0 if guided else 1.0,
        scheduler=schedule(),
        f_patch_size=f_patch_size,
    )

    with torch.no_grad():
        config = vae.config
        latent = (vae.encode(image).latent_dist.mode() - config.shift_factor) * config.scaling_factor
    noise = torch.randn(1, 16, 8, 8, 8, generator=torch.Generator("cpu").manual_seed(5))
    mixed = torch.cat([(1 - 0.8) * latent[:, :, None] + 0.8 * noise[:, :, :1], noise[:, :, 1:]], dim=2)
    theirs = plain_loop(transformer, mixed, positive, negative if guided else None, 2.0, f_patch_size)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("f_patch_size", [1, 2, 4])
@pytest.mark.parametrize(("motion_strength", "held_steps"), [(0.0, STEPS), (0.5, 2), (1.0, 1)])
def test_a_held_first_frame_equals_a_plain_loop_that_puts_it_back(
    transformer, positive, negative, f_patch_size, motion_strength, held_steps
):
    noise = ClipShape("z-image-video", 8, 64, 64, f_patch_size).noise(seed=4)
    clean = torch.full((1, 16, 1, 8, 8), 0.3)
    ours = denoise(
        transformer,
        latents=noise,
        positive=positive,
        negative=negative,
        guidance_scale=2.0,
        scheduler=schedule(),
        f_patch_size=f_patch_size,
        start_frame=clean,
        motion_strength=motion_strength,
    )

    theirs = plain_loop(transformer, noise, positive, negative, 2.0, f_patch_size, held_steps, clean)
    assert torch.equal(ours, theirs)
    assert torch.equal(ours[:, :, :1], clean) == (motion_strength == 0.0)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_one_frame_equals_diffusers_pipeline_on_the_same_folder(folder, guidance_scale):
    pipeline = ZImagePipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    [positive], [negative] = pipeline.encode_prompt(["a red circle"], negative_prompt=["a blue square"])
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator("cpu").manual_seed(6))
    ours = denoise(
        pipeline.transformer,
        latents=noise.unsqueeze(2),
        positive=positive.detach(),
        negative=negative.detach(),
        guidance_scale=guidance_scale,
        scheduler=schedule(config=pipeline.scheduler.config),
        f_patch_size=1,
    )

    theirs = pipeline(
        prompt_embeds=[positive],
        negative_prompt_embeds=[negative],
        height=64,
        width=64,
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale - 1,
        latents=noise,
        output_type="latent",
    ).images
    assert (ours.squeeze(2) - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["heun", "lcm"])
def test_the_other_samplers_repeat_themselves_with_one_seed(transformer, positive, name):
    def run(seed):
        return denoise(
            transformer,
            latents=ClipShape("z-image-video", 4, 64, 64, 2).noise(seed=8),
            positive=positive,
            scheduler=schedule(name),
            f_patch_size=2,
            generator=torch.Generator("cpu").manual_seed(seed),
        )

    assert torch.equal(run(1), run(1))
    assert torch.equal(run(1), run(2)) == (name == "heun")


def test_two_parts_of_the_schedule_are_the_whole(transformer, positive):
    def run(latents, **part):
        return denoise(transformer, latents=latents, positive=positive, scheduler=schedule(**part), f_patch_size=2)

    noise = ClipShape("z-image-video", 4, 64, 64, 2).noise(seed=9)

    assert torch.equal(run(run(noise, denoising_end=0.5), denoising_start=0.5), run(noise))


@pytest.mark.parametrize("guided", [False, True])
def test_a_canceled_denoise_ends_within_one_model_call(transformer, positive, negative, guided):
    calls = []
    plain = transformer_call(transformer, f_patch_size=2)

    def counted(**arguments):
        calls.append(1)
        return plain(**arguments)

    with pytest.raises(Canceled):
        denoise(
            transformer,
            latents=ClipShape("z-image-video", 4, 64, 64, 2).noise(seed=0),
            positive=positive,
            negative=negative,
            guidance_scale=2.0 if guided else 1.0,
            scheduler=schedule(),
            f_patch_size=2,
            predict=counted,
            stop=lambda: len(calls) >= 3,
        )

    assert len(calls) == 3


def test_the_transformers_dtype_is_only_its_inputs_dtype(transformer, positive):
    dtypes = []

    def half_model(*, x, t, caption, step, total):
        dtypes.append((x.dtype, caption.dtype, t.dtype))
        return x

    result = denoise(
        transformer,
        latents=ClipShape("z-image-video", 4, 64, 64, 2).noise(seed=0),
        positive=positive,
        scheduler=schedule(),
        f_patch_size=2,
        predict=half_model,
        dtype=torch.bfloat16,
    )

    assert set(dtypes) == {(torch.bfloat16, torch.bfloat16, torch.float32)}
    assert result.dtype == torch.float32


LATENTS = torch.zeros(1, 16, 8, 8, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": torch.zeros(1, 16, 8, 8)}, r"expected 5-D .* got 4-D \[1, 16, 8, 8\]"),
        ({"latents": torch.zeros(2, 16, 8, 8, 8)}, r"expected 5-D \[1, 16, .* got 5-D \[2, 16, 8, 8, 8\]"),
        ({"latents": torch.zeros(1, 4, 8, 8, 8)}, "channels: expected 16, got 4"),
        ({"latents": torch.zeros(1, 16, 7, 8, 8)}, r"divisible by f_patch_size 2, got 7 \(nearest valid value: 6\)"),
        ({"latents": torch.zeros(1, 16, 8, 9, 8)}, r"latent height: .* got 9 \(nearest valid value: 8\)"),
        ({"latents": torch.zeros(1, 16, 8, 8, 200)}, r"latent width: expected at most 128 .*got 200"),
        ({"latents": torch.zeros(1, 16, 2000, 2, 2)}, r"num_frames: expected at most 1982 .*got 2000"),
        ({"f_patch_size": 8}, r"f_patch_size: expected one of 1, 2, 4, got 8 \(nearest valid value: 4\)"),
        ({"positive": torch.zeros(7, 64)}, r"caption features: expected \[tokens, 32\].*got \[7, 64\]"),
        ({"negative": torch.zeros(1, 7, 32)}, r"caption features: .*got \[1, 7, 32\]"),
        ({"guidance_scale": 0.0}, r"guidance_scale: expected 1.0 or more, got 0.0 \(nearest valid value: 1.0\)"),
        ({"start_frame": torch.zeros(1, 16, 8, 8)}, r"start_frame: expected \[1, 16, 1, 8, 8\], got \[1, 16, 8, 8\]"),
        ({"start_frame": LATENTS[:, :, :1], "motion_strength": -1.0}, "motion_strength: expected 0.0 to 1.0, got -1.0"),
    ],
)
def test_bad_input_is_refused_before_the_transformer_is_called(transformer, monkeypatch, change, message):
    def touched(*_, **__):
        raise AssertionError("the transformer was called")

    monkeypatch.setattr(transformer, "forward", touched)
    settings = {
        "latents": LATENTS,
        "positive": torch.zeros(7, CAPTION_FEATURES),
        "scheduler": schedule(),
        "f_patch_size": 2,
    }

    with pytest.raises(BadInput, match=message):
        denoise(transformer, **{**settings, **change})


def test_the_bad_input_test_bites(transformer, monkeypatch):
    def touched(*_, **__):
        raise AssertionError("the transformer was called")

    monkeypatch.setattr(transformer, "forward", touched)

    with pytest.raises(AssertionError, match="was called"):
        denoise(
            transformer,
            latents=LATENTS,
            positive=torch.zeros(7, CAPTION_FEATURES),
            scheduler=schedule(),
            f_patch_size=2,
        )


def test_weights_that_are_no_numbers_are_an_error_and_not_a_black_clip(transformer, positive):
    broken = copy.deepcopy(transformer)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("inf"))

    with pytest.raises(NotFinite, match="after step 1 of 4"):
        denoise(
            broken,
            latents=ClipShape("z-image-video", 8, 64, 48, 2).noise(seed=3),
            positive=positive,
            scheduler=schedule(),
            f_patch_size=2,
        )
