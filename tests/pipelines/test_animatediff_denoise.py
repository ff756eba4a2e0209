"""AnimateDiff bit for bit against diffusers' own pipelines, and what is refused before a weight is used."""

from functools import cache

import pytest
import torch
from diffusers import AnimateDiffPipeline, AnimateDiffVideoToVideoPipeline
from tiny_animatediff import tiny_adapter, tiny_image_vae, tiny_pipeline, tiny_prompts, tiny_unet

from invokeai_video_nodes.pipelines.animatediff.conditioning import equally_long
from invokeai_video_nodes.pipelines.animatediff.denoise import Clip, denoise
from invokeai_video_nodes.pipelines.animatediff.presets import PRESETS, SCHEDULERS, make_scheduler, set_steps
from invokeai_video_nodes.pipelines.animatediff.unet import motion_unet
from invokeai_video_nodes.pipelines.errors import BadInput, Canceled, NotFinite
from invokeai_video_nodes.pipelines.shapes import seeded_noise

SIDE, FRAMES, STEPS, SEED = 32, 6, 4, 3
CELLS = SIDE // 8
SHAPE = (1, 4, FRAMES, CELLS, CELLS)

# Shared by the runs of this file: a run gives both back as they were.
shared_unet, shared_adapter = cache(tiny_unet), cache(tiny_adapter)


def ours(*, adapter=None, noise=None, name="ddim", steps=STEPS, seed=SEED, prompts=None, **settings):
    positive, negative = prompts or tiny_prompts()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(SHAPE, generator=generator)
    with motion_unet(shared_unet(), adapter or shared_adapter()) as unet:
        return denoise(
            unet,
            noise=drawn if noise is None else noise,
            **({"positive": positive, "negative": negative, "scheduler": make_scheduler(name)} | settings),
            steps=steps,
            generator=generator,
        )


@cache
def pipeline_of(pipeline_class, mid_block):
    return tiny_pipeline(pipeline_class, adapter=tiny_adapter(mid_block=mid_block))


def theirs(*, mid_block=True, name="ddim", seed=SEED, pipeline_class=AnimateDiffPipeline, prompts=None, **settings):
    positive, negative = prompts or tiny_prompts()
    defaults = {"num_inference_steps": STEPS, "height": SIDE, "width": SIDE, "output_type": "latent"}
    if pipeline_class is AnimateDiffPipeline:
        defaults["num_frames"] = FRAMES
    pipeline = pipeline_of(pipeline_class, mid_block)
    pipeline.scheduler = make_scheduler(name)
    generator = torch.Generator().manual_seed(seed)
    return pipeline(prompt_embeds=positive, negative_prompt_embeds=negative, generator=generator, **(defaults | settings)).frames


# The first name of each of diffusers' classes, and one with each setting that changes a class's way.
KINDS = [*{class_name: name for name, (class_name, _) in reversed(SCHEDULERS.items())}.values(), "euler_k", "dpmpp_2m_sde", "dpmpp_3m"]


@pytest.mark.parametrize("name", KINDS)
def test_text_to_video_equals_diffusers_pipeline_bit_for_bit_with_every_kind_of_scheduler(name):
    latents = ours(name=name)

    assert torch.equal(latents, theirs(name=name))
    assert latents.std() > 0.1


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_that_is_offered_runs_to_clean_latents(name):
    scheduler = make_scheduler(name)
    latents = seeded_noise(SHAPE, seed=SEED) * scheduler.init_noise_sigma
    timesteps = set_steps(scheduler, steps=STEPS)
    for timestep in timesteps:
        scheduler.scale_model_input(latents, timestep)
        latents = scheduler.step(torch.zeros(SHAPE), timestep, latents).prev_sample

    assert len(timesteps) >= STEPS
    assert torch.isfinite(latents).all()


@pytest.mark.parametrize(("mid_block", "guidance_scale"), [(True, 1.0), (False, 7.5)])
def test_text_to_video_equals_diffusers_pipeline_bit_for_bit_with_modules_of_both_kinds(mid_block, guidance_scale):
    latents = ours(adapter=shared_adapter(mid_block=mid_block), guidance_scale=guidance_scale)

    assert torch.equal(latents, theirs(mid_block=mid_block, guidance_scale=guidance_scale))


def video(frames=FRAMES):
    return torch.rand(1, frames, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def encoded(pixels, generator):
    """As diffusers encodes a clip: [1, C, F, h, w] clean, and the noise that it draws afterwards, frame by frame."""
    vae = tiny_image_vae()
    latents = vae.encode(pixels[0] * 2 - 1).latent_dist.sample(generator)[None] * vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=generator)
    return latents.permute(0, 2, 1, 3, 4), noise.permute(0, 2, 1, 3, 4)


# Of each kind of step one: plain, with noise, of several steps, of second order, few.
@pytest.mark.parametrize(
    ("name", "strength"), [("ddim", 0.5), ("ddim", 1.0), ("euler_a", 0.5), ("dpmpp_2m_k", 0.5), ("heun", 0.5), ("pndm", 0.5), ("lcm", 1.0)]
)
def test_video_to_video_equals_diffusers_pipeline_bit_for_bit(name, strength):
    generator = torch.Generator().manual_seed(SEED)
    clean, noise = encoded(video(), generator)
    positive, negative = tiny_prompts()
    with motion_unet(shared_unet(), shared_adapter()) as unet:
        latents = denoise(
            unet,
            noise=noise,
            positive=positive,
            negative=negative,
            scheduler=make_scheduler(name),
            steps=4,
            clip=Clip(latents=clean, strength=strength),
            generator=generator,
        )

    frames = list(video()[0])
    expected = theirs(name=name, pipeline_class=AnimateDiffVideoToVideoPipeline, video=frames, strength=strength, num_inference_steps=4)
    assert torch.equal(latents, expected)


class Untouched(torch.nn.Module):
    """A UNet of which nobody may use a weight."""

    def __init__(self):
        super().__init__()
        with motion_unet(shared_unet(), shared_adapter()) as unet:
            self.config, self.dtype = unet.config, unet.dtype

    def forward(self, *_args, **_kwargs):
        raise AssertionError("the model was called")


def moved(change, value):
    """The settings of a valid run with one of them replaced."""
    positive, negative = tiny_prompts()
    noise = seeded_noise(SHAPE, seed=SEED)
    settings = {"noise": noise, "positive": positive, "negative": negative, "scheduler": make_scheduler("ddim"), "steps": STEPS}
    return settings | {change: value}


@pytest.mark.parametrize(
    ("change", "value", "message"),
    [
        ("noise", torch.zeros(1, 4, 33, CELLS, CELLS), "num_frames: expected at most 32 with this motion module and without"),
        ("noise", torch.zeros(1, 16, FRAMES, CELLS, CELLS), "noise: channels: expected 4, got 16"),
        ("positive", torch.zeros(1, 77, 1024), r"prompt embeddings: expected \[1 or 6, tokens, 768\], got \[1, 77, 1024\]"),
        ("positive", torch.zeros(3, 77, 768), r"prompt embeddings: expected \[1 or 6, tokens, 768\], got \[3, 77, 768\]"),
        ("positive", torch.zeros(1, 154, 768), "prompt embeddings: tokens: expected as many for the negative prompt as for the positive"),
        ("guidance_scale", 0.5, "guidance_scale: expected 1.0 or more, got 0.5"),
        ("steps", 0, "steps: expected 1 or more, got 0"),
        ("scale", [1.0], "motion_scale list: expected 6 numbers, one per frame, got a list of 1"),
        ("clip", Clip(torch.zeros(1, 4, 5, CELLS, CELLS)), r"video latents: expected \[1, 4, 6, 4, 4\], got \[1, 4, 5, 4, 4\]"),
        ("clip", Clip(torch.zeros(SHAPE), strength=0.1), "strength: expected at least one of the 4 steps, got 0.1 .nearest.*0.25"),
        ("clip", Clip(torch.zeros(SHAPE), strength=1.5), "strength: expected more than 0.0 and at most 1.0, got 1.5"),
        ("clip", Clip(torch.zeros(SHAPE), change=torch.ones(1, 1, 2, CELLS, CELLS)), r"mask: expected \[1, 1, 1 or 6, 4, 4\]"),
    ],
)
def test_bad_input_is_refused_before_a_weight_is_used(change, value, message):
    with pytest.raises(BadInput, match=message):
        denoise(Untouched(), **moved(change, value))


def test_a_scheduler_that_does_not_run_here_is_refused_by_name():
    with pytest.raises(BadInput, match="scheduler: expected one of ddim, .* got 'er_sde' .nearest valid value: ddim"):
        make_scheduler("er_sde")


def test_more_steps_than_a_few_step_scheduler_knows_are_refused():
    with pytest.raises(BadInput, match="steps: expected at most 50 with this scheduler, got 51 .nearest valid value: 50"):
        set_steps(make_scheduler("lcm"), steps=51)


def test_a_scheduler_that_draws_its_own_noise_draws_it_by_the_seed():
    samplers = [make_scheduler("dpmpp_sde_k", seed=seed).noise_sampler_seed for seed in (0, 5)]

    assert samplers == [0, 5]


def test_every_preset_names_a_scheduler_that_runs_its_steps():
    counted = {name: len(set_steps(make_scheduler(preset.scheduler), steps=preset.steps)) for name, preset in PRESETS.items()}

    assert counted == {name: preset.steps for name, preset in PRESETS.items()}


def test_one_prompt_for_each_frame_counts_for_that_frame():
    positive, negative = tiny_prompts(frames=FRAMES)
    same = ours(prompts=(positive[:1], negative[:1]))

    assert torch.equal(ours(prompts=(positive[:1].repeat(FRAMES, 1, 1), negative[:1])), same)
    assert not torch.equal(ours(prompts=(positive, negative[:1])), same)


def test_prompts_made_equally_long_mean_what_they_meant():
    (positive, _), (_, negative) = tiny_prompts(tokens=154), tiny_prompts(tokens=231)
    longer = equally_long(positive, negative)
    with motion_unet(tiny_unet(), tiny_adapter()) as unet, torch.no_grad():
        latents = seeded_noise(SHAPE, seed=SEED)
        answers = [unet(latents, 500, prompt.repeat(FRAMES, 1, 1)).sample for prompt in (positive, negative, *longer)]

    assert [prompt.shape[1] for prompt in longer] == [462, 462]
    torch.testing.assert_close(answers[2], answers[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(answers[3], answers[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["ddim", "heun"])
def test_what_a_mask_keeps_is_the_clip_and_the_rest_is_made_anew(name):
    clean, change = seeded_noise(SHAPE, seed=8), torch.zeros(1, 1, 1, CELLS, CELLS)
    change[..., :2] = 1.0
    latents = ours(name=name, clip=Clip(clean, strength=0.75, change=change))

    assert torch.equal(latents[..., 2:], clean[..., 2:])
    assert (latents - clean)[..., :2].abs().min() > 0


def test_a_white_mask_is_no_mask():
    clean = seeded_noise(SHAPE, seed=8)
    white = Clip(clean, strength=0.75, change=torch.ones(1, 1, FRAMES, CELLS, CELLS))

    assert torch.equal(ours(clip=white), ours(clip=Clip(clean, strength=0.75)))


@pytest.mark.parametrize(("name", "counted"), [("ddim", 4), ("heun", 4), ("kdpm_2", 4), ("pndm", 5)])
def test_every_step_is_told_once_and_the_last_estimate_is_near_the_result(name, counted):
    told = []
    latents = ours(name=name, on_step=lambda step, total, estimate, _latents: told.append((step, total, estimate)))

    assert [(step, total) for step, total, _ in told] == [(step, counted) for step in range(1, counted + 1)]
    assert (told[-1][2] - latents).abs().mean() < 0.1 * latents.abs().mean()


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_a_stop_ends_it_before_the_next_call_of_the_model(calls):
    asked, told = [], []

    def stop():
        asked.append(None)
        return len(asked) > calls

    with pytest.raises(Canceled):
        ours(stop=stop, on_step=lambda step, *_: told.append(step))

    assert told == list(range(1, calls + 1))


def test_a_window_over_all_frames_is_no_window_bit_for_bit():
    latents = ours(windows=lambda predict, latents, *, step: predict(latents, list(range(latents.shape[2]))))

    assert torch.equal(latents, ours())


def test_windows_are_called_for_their_frames_and_lift_the_limit_of_the_module():
    asked = []

    def halves(predict, latents, *, step):
        asked.append(step)
        return torch.cat([predict(latents[:, :, first : first + 3], range(first, first + 3)) for first in (0, 3)], dim=2)

    latents = ours(adapter=tiny_adapter(max_frames=3), windows=halves)

    assert latents.shape == SHAPE
    assert asked == [0, 1, 2, 3]


def test_a_result_that_is_no_number_is_said_after_the_first_step():
    told = []
    with pytest.raises(NotFinite, match="expected numbers after step 1 of 4, got inf or nan"):
        ours(noise=torch.full(SHAPE, float("nan")), on_step=lambda step, *_: told.append(step))

    assert told == []
