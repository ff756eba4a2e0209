"""ControlNets with one picture per frame, SparseCtrl and FreeInit: bit for bit against diffusers' own pipelines."""

from functools import cache

import pytest
import torch
from diffusers import (
    AnimateDiffControlNetPipeline,
    AnimateDiffPipeline,
    AnimateDiffSparseControlNetPipeline,
    AnimateDiffVideoToVideoControlNetPipeline,
)
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from tiny_animatediff import tiny_adapter, tiny_controlnet, tiny_image_vae, tiny_pipeline, tiny_prompts, tiny_sparse_controlnet, tiny_unet

from invokeai_video_nodes.pipelines.animatediff.control import ControlNet, SparseCtrl
from invokeai_video_nodes.pipelines.animatediff.denoise import Clip, denoise
from invokeai_video_nodes.pipelines.animatediff.free_init import FreeInit
from invokeai_video_nodes.pipelines.animatediff.presets import make_scheduler
from invokeai_video_nodes.pipelines.animatediff.unet import motion_unet
from invokeai_video_nodes.pipelines.errors import BadInput

SIDE, FRAMES, STEPS, SEED = 32, 6, 4, 3
CELLS = SIDE // 8

# Shared by the runs of this file: a run gives both back as they were.
shared_unet, shared_adapter = cache(tiny_unet), cache(tiny_adapter)


def pixels(seed, frames=FRAMES, side=SIDE):
    return torch.rand(frames, 3, side, side, generator=torch.Generator().manual_seed(seed))


def ours(*, name="ddim", noise=None, generator=None, **settings):
    generator = generator or torch.Generator().manual_seed(SEED)
    positive, negative = tiny_prompts()
    noise = torch.randn(1, 4, FRAMES, CELLS, CELLS, generator=generator) if noise is None else noise
    scheduler = make_scheduler(name)
    with motion_unet(shared_unet(), shared_adapter()) as unet:
        return denoise(
            unet,
            noise=noise,
            scheduler=scheduler,
            generator=generator,
            **({"positive": positive, "negative": negative, "steps": STEPS} | settings),
        )


def theirs(pipeline_class, *, name="ddim", controlnet, **settings):
    pipeline = tiny_pipeline(pipeline_class, scheduler=make_scheduler(name), controlnet=controlnet)
    positive, negative = tiny_prompts()
    common = {"num_inference_steps": STEPS, "height": SIDE, "width": SIDE, "output_type": "latent"}
    if "VideoToVideo" not in pipeline_class.__name__:
        common["num_frames"] = FRAMES
    generator = torch.Generator().manual_seed(SEED)
    return pipeline(prompt_embeds=positive, negative_prompt_embeds=negative, generator=generator, **(common | settings)).frames


@pytest.mark.parametrize(("guidance_scale", "weight", "start", "end"), [(1.0, 1.0, 0.0, 1.0), (7.5, 0.6, 0.25, 0.75)])
def test_a_picture_per_frame_equals_diffusers_controlnet_pipeline_bit_for_bit(guidance_scale, weight, start, end):
    control = ControlNet(tiny_controlnet(), pixels(1), weight=weight, start=start, end=end)
    latents = ours(controls=[control], guidance_scale=guidance_scale)

    expected = theirs(
        AnimateDiffControlNetPipeline,
        controlnet=tiny_controlnet(),
        conditioning_frames=list(pixels(1)),
        guidance_scale=guidance_scale,
        controlnet_conditioning_scale=weight,
        control_guidance_start=start,
        control_guidance_end=end,
    )
    assert torch.equal(latents, expected)
    assert not torch.equal(latents, ours(guidance_scale=guidance_scale))


def test_two_controlnets_equal_diffusers_pipeline_bit_for_bit():
    first, second = tiny_controlnet(), tiny_controlnet(seed=9)
    latents = ours(controls=[ControlNet(first, pixels(1), weight=0.6), ControlNet(second, pixels(2), weight=0.9)])

    expected = theirs(
        AnimateDiffControlNetPipeline,
        controlnet=MultiControlNetModel([first, second]),
        conditioning_frames=[list(pixels(1)), list(pixels(2))],
        controlnet_conditioning_scale=[0.6, 0.9],
    )
    assert torch.equal(latents, expected)


def test_video_to_video_with_a_picture_per_frame_equals_diffusers_pipeline_bit_for_bit():
    generator = torch.Generator().manual_seed(SEED)
    vae = tiny_image_vae()
    with torch.no_grad():
        clean = vae.encode(pixels(7) * 2 - 1).latent_dist.sample(generator)[None] * vae.config.scaling_factor
    noise = torch.randn(clean.shape, generator=generator).transpose(1, 2)
    clip = Clip(clean.transpose(1, 2), strength=0.75)
    latents = ours(noise=noise, generator=generator, clip=clip, controls=[ControlNet(tiny_controlnet(), pixels(1), weight=0.8)])

    expected = theirs(
        AnimateDiffVideoToVideoControlNetPipeline,
        controlnet=tiny_controlnet(),
        video=list(pixels(7)),
        conditioning_frames=list(pixels(1)),
        strength=0.75,
        controlnet_conditioning_scale=0.8,
    )
    assert torch.equal(latents, expected)


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_sparse_control_by_pixels_equals_diffusers_pipeline_bit_for_bit(guidance_scale):
    control = SparseCtrl(tiny_sparse_controlnet(simplified=False), pixels(1, frames=2), frames=[0, 5], weight=0.7)
    latents = ours(controls=[control], guidance_scale=guidance_scale)

    expected = theirs(
        AnimateDiffSparseControlNetPipeline,
        controlnet=tiny_sparse_controlnet(simplified=False),
        conditioning_frames=[picture[None] for picture in pixels(1, frames=2)],
        controlnet_frame_indices=[0, 5],
        controlnet_conditioning_scale=0.7,
        guidance_scale=guidance_scale,
    )
    assert torch.equal(latents, expected)
    assert not torch.equal(latents, ours(guidance_scale=guidance_scale))


def test_sparse_control_by_latents_equals_diffusers_pipeline_bit_for_bit():
    vae = tiny_image_vae()
    torch.manual_seed(11)  # diffusers draws these latents without a generator of their own
    with torch.no_grad():
        keyframes = vae.encode(pixels(1, frames=2) * 2 - 1).latent_dist.sample() * vae.config.scaling_factor
    latents = ours(controls=[SparseCtrl(tiny_sparse_controlnet(), keyframes, frames=[0, 5])])

    pipeline = tiny_pipeline(AnimateDiffSparseControlNetPipeline, scheduler=make_scheduler("ddim"), controlnet=tiny_sparse_controlnet())
    positive, negative = tiny_prompts()
    torch.manual_seed(11)
    expected = pipeline(
        prompt_embeds=positive,
        negative_prompt_embeds=negative,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        height=SIDE,
        width=SIDE,
        conditioning_frames=[picture[None] for picture in pixels(1, frames=2)],
        controlnet_frame_indices=[0, 5],
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
    ).frames
    assert torch.equal(latents, expected)


@pytest.mark.parametrize("name", ["ddpm", "pndm", "tcd"])
def test_free_init_equals_diffusers_bit_for_bit_with_every_scheduler_that_it_runs_with(name):
    latents = ours(name=name, free_init=FreeInit(iterations=2))

    assert torch.equal(latents, free_init_of_diffusers(name, num_iters=2))


@pytest.mark.parametrize(("method", "fast"), [("butterworth", False), ("gaussian", True), ("ideal", True)])
def test_free_init_equals_diffusers_bit_for_bit_with_every_filter(method, fast):
    latents = ours(free_init=FreeInit(fast=fast, method=method, order=3, spatial_stop=0.3, temporal_stop=0.2))

    settings = {"num_iters": 3, "use_fast_sampling": fast, "method": method, "order": 3}
    assert torch.equal(latents, free_init_of_diffusers("ddim", spatial_stop_frequency=0.3, temporal_stop_frequency=0.2, **settings))


@cache
def plain_pipeline():
    return tiny_pipeline(AnimateDiffPipeline)


def free_init_of_diffusers(name, **settings):
    pipeline = plain_pipeline()
    pipeline.scheduler = make_scheduler(name)
    pipeline.enable_free_init(**settings)
    positive, negative = tiny_prompts()
    return pipeline(
        prompt_embeds=positive,
        negative_prompt_embeds=negative,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        height=SIDE,
        width=SIDE,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
    ).frames


def test_a_control_of_the_positive_half_only_leaves_the_negative_half_as_it_was():
    both = ControlNet(tiny_controlnet(), pixels(1))
    one = ControlNet(tiny_controlnet(), pixels(1), positive_only=True)
    step, prompts = {"timestep": torch.tensor(500), "frames": range(FRAMES), "step": 0, "total": 1}, list(tiny_prompts(frames=FRAMES))
    seen = torch.randn(1, 4, FRAMES, CELLS, CELLS, generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        (_, whole), (_, half) = (control.residuals(seen, prompts=prompts, **step) for control in (both, one))

    assert not half[:FRAMES].any()
    torch.testing.assert_close(half[FRAMES:], whole[FRAMES:], rtol=0, atol=1e-5)


def test_a_control_without_weight_is_no_control():
    assert torch.equal(ours(controls=[ControlNet(tiny_controlnet(), pixels(1), weight=0.0)]), ours())


def test_a_weight_per_step_counts_in_that_step():
    steered = {weight: ControlNet(tiny_controlnet(), pixels(1), weight=weight) for weight in (0.7, (0.7,) * STEPS, (0.0,) * STEPS)}
    some = ControlNet(tiny_controlnet(), pixels(1), weight=[0.7] + [0.0] * (STEPS - 1))
    one, same, none = (ours(controls=[control]) for control in steered.values())

    assert torch.equal(same, one)
    assert torch.equal(none, ours())
    assert not torch.equal(ours(controls=[some]), one)


def test_each_window_is_steered_by_the_pictures_of_its_frames():
    def halves(predict, latents, *, step):
        return torch.cat([predict(latents[:, :, first : first + 3], range(first, first + 3)) for first in (0, 3)], dim=2)

    other = torch.cat([pixels(1)[:3], pixels(2)[3:]])
    first, second = (ours(windows=halves, controls=[ControlNet(tiny_controlnet(), pictures)]) for pictures in (pixels(1), other))

    assert torch.equal(first[:, :, :3], second[:, :, :3])
    assert not torch.equal(first[:, :, 3:], second[:, :, 3:])


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ((pixels(1, frames=5), {}), "control_frames: expected 6 images, one per frame, got 5 .nearest valid value: 6"),
        ((pixels(1, frames=7), {}), "control_frames: expected 6 images, one per frame, got 7 .nearest valid value: 6"),
        ((pixels(1)[:, :1], {}), r"control_frames: expected \[frames, 3, height, width\], got \[6, 1, 32, 32\]"),
        ((pixels(1, side=64), {}), "control_frames: expected pictures of the clip's size, got 64x64 .nearest valid value: 32x32"),
        ((pixels(1), {"weight": [1.0]}), "ControlNet: weights: expected one number, or 4: one per step that runs, got 1"),
        ((pixels(1), {"weight": float("inf")}), "ControlNet: weight: expected finite numbers, got inf"),
        ((pixels(1), {"start": 0.5, "end": 0.5}), "control steps: expected a begin below the end, both 0.0 to 1.0, got 0.5 to 0.5"),
    ],
)
def test_control_pictures_that_do_not_suit_the_clip_are_refused(control, message):
    pictures, settings = control
    with pytest.raises(BadInput, match=message):
        ours(controls=[ControlNet(tiny_controlnet(), pictures, **settings)])


@pytest.mark.parametrize("kind", ["ControlNet", "SparseCtrl"])
def test_a_control_model_of_another_base_is_refused(kind):
    model = tiny_controlnet() if kind == "ControlNet" else tiny_sparse_controlnet(simplified=False)
    model.register_to_config(cross_attention_dim=1024)
    control = ControlNet(model, pixels(1)) if kind == "ControlNet" else SparseCtrl(model, pixels(1, frames=1), frames=[0])
    with pytest.raises(BadInput, match=rf"{kind}: expected one of the main model's base .text width 768., got text width 1024"):
        ours(controls=[control])


@pytest.mark.parametrize(
    ("count", "side", "frames", "message"),
    [
        (1, SIDE, [6], r"keyframes: expected different numbers from 0 to 5, got \[6\] .nearest valid value: 5"),
        (2, SIDE, [1, 1], r"keyframes: expected different numbers from 0 to 5, got \[1, 1\]"),
        (2, SIDE, [1], "keyframes: expected 1 or more pictures and one frame number for each, got 2 pictures and 1 numbers"),
        (1, 64, [1], r"keyframe pictures: expected \[3, 32, 32\], got \[3, 64, 64\]"),
    ],
)
def test_keyframes_that_do_not_suit_the_clip_are_refused(count, side, frames, message):
    with pytest.raises(BadInput, match=message):
        ours(controls=[SparseCtrl(tiny_sparse_controlnet(simplified=False), pixels(1, frames=count, side=side), frames=frames)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "euler", "free_init": FreeInit()}, "scheduler with FreeInit: expected ddim, ddpm, pndm, lcm or tcd, got EulerDiscrete"),
        (
            {"free_init": FreeInit(), "clip": Clip(torch.zeros(1, 4, FRAMES, CELLS, CELLS))},
            "FreeInit: expected a clip made from noise alone, got a video to start from",
        ),
    ],
)
def test_free_init_is_refused_where_it_cannot_work(settings, message):
    with pytest.raises(BadInput, match=message):
        ours(**settings)


@pytest.mark.parametrize(
    "settings", [{"iterations": 0}, {"method": "box"}, {"order": 0}, {"spatial_stop": 0.0}, {"temporal_stop": 1.5}], ids=str
)
def test_settings_of_free_init_without_meaning_are_refused(settings):
    with pytest.raises(BadInput, match="FreeInit: .* expected"):
        FreeInit(**settings)
