"""FreeNoise over AnimateDiff, bit for bit against diffusers' own, and what it leaves behind: nothing."""

from functools import cache

import pytest
import torch
from diffusers import AnimateDiffPipeline
from tiny_animatediff import tiny_adapter, tiny_pipeline, tiny_prompts, tiny_unet

from invokeai_video_nodes.pipelines.animatediff.denoise import denoise
from invokeai_video_nodes.pipelines.animatediff.free_noise import FreeNoise, in_windows
from invokeai_video_nodes.pipelines.animatediff.presets import make_scheduler
from invokeai_video_nodes.pipelines.animatediff.unet import motion_scale, motion_unet
from invokeai_video_nodes.pipelines.errors import BadInput

SIDE, FRAMES, LIMIT, STEPS, SEED = 16, 12, 8, 2, 3
CELLS = SIDE // 8

# Shared by the runs of this file: a run gives both back as they were.
shared_unet, shared_adapter = cache(tiny_unet), cache(tiny_adapter)


def drawn(generator, frames=FRAMES):
    return torch.randn(1, 4, frames, CELLS, CELLS, generator=generator)


def ours(settings, *, noise=None, mid_block=True, **more):
    positive, negative = tiny_prompts()
    generator = torch.Generator().manual_seed(SEED)
    noise = settings.noise(drawn(generator), generator=generator) if noise is None else noise
    with motion_unet(shared_unet(), shared_adapter(max_frames=LIMIT, mid_block=mid_block)) as unet:
        return denoise(
            unet,
            noise=noise,
            positive=positive,
            negative=negative,
            scheduler=make_scheduler("ddim"),
            steps=STEPS,
            free_noise=settings,
            **more,
        )


@cache
def pipeline_of(mid_block):
    return tiny_pipeline(AnimateDiffPipeline, adapter=tiny_adapter(max_frames=LIMIT, mid_block=mid_block))


def windows(**settings):
    """FreeNoise for a module that sees `LIMIT` frames at once."""
    return FreeNoise(**({"length": LIMIT, "stride": 2} | settings))


def theirs(settings, *, frames=FRAMES, mid_block=True, latents=None):
    """diffusers encodes the prompts of FreeNoise by itself only; the tiny pipeline has no text encoder, so they are put in."""
    pipeline = pipeline_of(mid_block)
    pipeline.scheduler = make_scheduler("ddim")
    positive, negative = tiny_prompts()
    prompts = torch.cat([prompt.repeat(frames, 1, 1) for prompt in (negative, positive)])
    pipeline._encode_prompt_free_noise = lambda **_: (prompts, negative)
    pipeline.enable_free_noise(
        context_length=settings.length, context_stride=settings.stride, weighting_scheme=settings.weights, noise_type=settings.kind
    )
    return pipeline(
        prompt="put in above",
        num_frames=frames,
        num_inference_steps=STEPS,
        height=SIDE,
        width=SIDE,
        latents=latents,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
    ).frames


@pytest.mark.parametrize("weights", ["pyramid", "flat", "delayed_reverse_sawtooth"])
@pytest.mark.parametrize("mid_block", [True, False])
def test_a_long_clip_equals_diffusers_pipeline_bit_for_bit_with_all_weights(weights, mid_block):
    settings = windows(weights=weights)
    latents = ours(settings, mid_block=mid_block)

    assert torch.equal(latents, theirs(settings, mid_block=mid_block))
    assert latents.std() > 0.1


@pytest.mark.parametrize(("length", "stride"), [(4, 2), (4, 4), (8, 1)])
def test_other_windows_equal_diffusers_pipeline_bit_for_bit(length, stride):
    settings = windows(length=length, stride=stride)

    assert torch.equal(ours(settings), theirs(settings))


def test_noise_that_is_not_rearranged_equals_diffusers_pipeline_bit_for_bit():
    settings = windows(kind="random")

    assert torch.equal(ours(settings), theirs(settings))


def test_repeated_noise_equals_diffusers_pipeline_given_the_noise_of_one_window():
    # Without latents diffusers 0.40 draws the whole clip for this type and repeats nothing of it.
    settings = windows(kind="repeat_context")
    window = drawn(torch.Generator().manual_seed(SEED))[:, :, :LIMIT]

    assert torch.equal(ours(settings), theirs(settings, latents=window))


def test_a_last_window_that_does_not_fit_the_stride_counts_as_every_other():
    """The last frame lies in the last window alone, so it is what the module makes of that window."""
    settings = windows(length=8, stride=6)
    with motion_unet(tiny_unet(), tiny_adapter(max_frames=LIMIT)) as unet, torch.no_grad():
        block = unet.down_blocks[0].motion_modules[0].transformer_blocks[0]
        features = torch.randn(1, 1, block.dim, generator=torch.Generator().manual_seed(SEED)).repeat(1, 23, 1)
        with in_windows(unet, settings, frames=23):
            inside = unet.down_blocks[0].motion_modules[0].transformer_blocks[0]
            cut, answer = inside._get_frame_indices(23), inside(features)
        last = block(features[:, :8])[:, -1]

    assert cut == [(0, 8), (6, 14), (12, 20), (15, 23)]
    torch.testing.assert_close(answer[:, -1], last, rtol=0, atol=1e-5)


def test_a_clip_of_one_window_is_left_to_the_modules_bit_for_bit():
    noise = drawn(torch.Generator().manual_seed(SEED), frames=LIMIT)

    assert torch.equal(ours(FreeNoise(length=LIMIT), noise=noise), ours(None, noise=noise))


def test_the_motion_scale_counts_in_windows_too():
    still, moving = ours(windows(), scale=0.0), ours(windows())

    assert not torch.equal(still, moving)
    assert torch.equal(ours(windows(weights="flat"), scale=0.0), still)


def test_the_module_has_its_own_blocks_again_after_an_error_too():
    adapter = tiny_adapter(max_frames=LIMIT)
    blocks = [id(module) for module in adapter.modules()]
    with motion_unet(tiny_unet(), adapter) as unet:
        with pytest.raises(RuntimeError), in_windows(unet, windows(), frames=FRAMES), motion_scale(unet, 1.0):
            unet(torch.zeros(1, 4, FRAMES, CELLS, CELLS), 500, torch.zeros(FRAMES, 77, 5))

    assert [id(module) for module in adapter.modules()] == blocks
    assert not any(module.training for module in adapter.modules())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 1}, "FreeNoise context length: expected at least 2 frames, got 1"),
        ({"stride": 17}, "FreeNoise context stride: expected 1 to 16, no more than the context length, got 17 .nearest valid value: 16"),
        ({"stride": 0}, "FreeNoise context stride: expected 1 to 16, .* got 0 .nearest valid value: 1"),
        ({"weights": "linear"}, "FreeNoise weights: expected one of pyramid, flat, delayed_reverse_sawtooth, got 'linear'"),
        ({"kind": "looped"}, "FreeNoise noise type: expected one of shuffle_context, repeat_context, random, got 'looped'"),
    ],
)
def test_settings_without_meaning_are_refused(settings, message):
    with pytest.raises(BadInput, match=message):
        FreeNoise(**settings)


@pytest.mark.parametrize(
    ("settings", "more", "message"),
    [
        ({"length": 9}, {}, "FreeNoise context length: expected at most 8 frames, the motion module's limit, got 9"),
        ({}, {"windows": lambda *_args, **_settings: None}, "long clip: expected FreeNoise or context windows, got both"),
    ],
)
def test_settings_that_the_module_or_windows_exclude_are_refused(settings, more, message):
    with pytest.raises(BadInput, match=message):
        ours(windows(**settings), **more)
