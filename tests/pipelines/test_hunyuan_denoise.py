"""HunyuanVideo bit for bit against diffusers' own pipelines, and what is refused before a weight is used."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_hunyuan import (
    encoders_of,
    tiny_image_to_video,
    tiny_image_to_video_15,
    tiny_text_to_video,
    tiny_text_to_video_15,
)

from invokeai_video_nodes.pipelines.errors import BadInput, Canceled, NotFinite
from invokeai_video_nodes.pipelines.hunyuan_video import conditioning
from invokeai_video_nodes.pipelines.hunyuan_video.denoise import denoise, extra_frames, first_latents
from invokeai_video_nodes.pipelines.sampling import KeptRegion, noised
from invokeai_video_nodes.pipelines.schedules import flow_match_scheduler
from invokeai_video_nodes.pipelines.shapes import seeded_noise

STEPS = 4
SIDE = 32  # pixels
PROMPT, NEGATIVE = "a red circle moves to the right", "blurred"
LENGTHS = [9, 17, 33]


def schedule(pipeline, **settings):
    return flow_match_scheduler("euler", steps=STEPS, image_tokens=0, config=pipeline.scheduler.config, **settings)


def picture(side=SIDE):
    pixels = np.arange(side * side * 3, dtype=np.uint32).reshape(side, side, 3) * 7 % 256
    return Image.fromarray(pixels.astype(np.uint8))


@torch.no_grad()
def start_frame_of(pipeline, image, *, scale):
    pixels = pipeline.video_processor.preprocess(image, image.height, image.width)
    return pipeline.vae.encode(pixels.unsqueeze(2)).latent_dist.mode() * scale


def settings(frames, seed=3):
    return {"num_frames": frames, "num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(seed), "output_type": "latent"}


@pytest.mark.parametrize("frames", LENGTHS)
@pytest.mark.parametrize(("true_cfg_scale", "guidance_scale"), [(1.0, 6.0), (3.0, 1.0), (2.0, 6.0)])
def test_text_to_video_equals_diffusers_pipeline_bit_for_bit(frames, true_cfg_scale, guidance_scale):
    pipeline = tiny_text_to_video()
    encoders = encoders_of(pipeline)
    positive, negative = (conditioning.encode_prompt(text, encoders) for text in (PROMPT, NEGATIVE))
    ours = denoise(
        pipeline.transformer,
        latents=seeded_noise((1, 4, (frames - 1) // 4 + 1, SIDE // 8, SIDE // 8), seed=3),
        positive=positive,
        negative=negative,
        true_cfg_scale=true_cfg_scale,
        guidance_scale=guidance_scale,
        scheduler=schedule(pipeline),
    )

    theirs = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        true_cfg_scale=true_cfg_scale,
        guidance_scale=guidance_scale,
        height=SIDE,
        width=SIDE,
        **settings(frames),
    ).frames
    assert torch.equal(ours, theirs)
    assert ours.std() > 0.1


def test_the_prompt_reaches_the_latents():
    pipeline = tiny_text_to_video()
    encoders = encoders_of(pipeline)
    noise = seeded_noise((1, 4, 3, 4, 4), seed=3)

    first, second = (
        denoise(pipeline.transformer, latents=noise, positive=conditioning.encode_prompt(text, encoders), scheduler=schedule(pipeline))
        for text in (PROMPT, "a blue square that grows")
    )

    assert not torch.equal(first, second)


@pytest.mark.parametrize("frames", LENGTHS)
@pytest.mark.parametrize("condition", ["latent_concat", "token_replace"])
@pytest.mark.parametrize("true_cfg_scale", [1.0, 2.0])
def test_image_to_video_equals_diffusers_pipeline_bit_for_bit(frames, condition, true_cfg_scale):
    pipeline = tiny_image_to_video(condition)
    encoders, image = encoders_of(pipeline), picture()
    extra = extra_frames(condition, generation="1.0")
    frames += extra  # sampled and dropped again, so that the clip has what was asked for
    start = start_frame_of(pipeline, image, scale=pipeline.vae.config.scaling_factor)
    ours = denoise(
        pipeline.transformer,
        latents=first_latents(seeded_noise((1, 4, (frames - 1) // 4 + 1, SIDE // 8, SIDE // 8), seed=3), start),
        positive=conditioning.encode_prompt_with_picture(PROMPT, image, encoders, condition=condition),
        negative=conditioning.encode_prompt_with_picture(NEGATIVE, None, encoders, condition=condition),
        true_cfg_scale=true_cfg_scale,
        guidance_scale=5.0,
        scheduler=schedule(pipeline),
        start_frame=start,
    )

    theirs = pipeline(
        image,
        PROMPT,
        negative_prompt=NEGATIVE,
        true_cfg_scale=true_cfg_scale,
        guidance_scale=5.0,
        height=SIDE,
        width=SIDE,
        prompt_template=conditioning.picture_template(pipeline.text_encoder.config),
        **settings(frames),
    ).frames
    delivered = ours[:, :, extra // 4 :]
    assert torch.equal(delivered, theirs)


@pytest.mark.parametrize("frames", LENGTHS)
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_text_to_video_15_equals_diffusers_pipeline_bit_for_bit(frames, scale):
    pipeline = tiny_text_to_video_15(scale=scale)
    encoders = encoders_of(pipeline)
    prompt = 'a sign that says "open"'
    positive, negative = (conditioning.encode_prompt_15(text, encoders) for text in (prompt, NEGATIVE))
    ours = denoise(
        pipeline.transformer,
        latents=seeded_noise((1, 4, (frames - 1) // 4 + 1, 4, 4), seed=3),
        positive=positive,
        negative=negative,
        true_cfg_scale=scale,
        scheduler=schedule(pipeline),
    )

    theirs = pipeline(prompt, negative_prompt=NEGATIVE, height=64, width=64, **settings(frames)).frames
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("frames", LENGTHS)
@pytest.mark.parametrize(("scale", "mean_flow"), [(1.0, False), (4.0, False), (1.0, True)])
def test_image_to_video_15_equals_diffusers_pipeline_bit_for_bit(frames, scale, mean_flow):
    pipeline = tiny_image_to_video_15(scale=scale, mean_flow=mean_flow)
    encoders = encoders_of(pipeline)
    width, height = pipeline.video_processor.calculate_default_height_width(64, 64, pipeline.target_size)[::-1]
    image = picture(width)
    seen = {"image_encoder": pipeline.image_encoder, "feature_extractor": pipeline.feature_extractor}
    ours = denoise(
        pipeline.transformer,
        latents=seeded_noise((1, 4, (frames - 1) // 4 + 1, height // 16, width // 16), seed=3),
        positive=conditioning.encode_prompt_15(PROMPT, encoders),
        negative=conditioning.encode_prompt_15(NEGATIVE, encoders),
        true_cfg_scale=scale,
        scheduler=schedule(pipeline),
        start_frame=start_frame_of(pipeline, image, scale=pipeline.vae.config.scaling_factor),
        picture=conditioning.encode_picture_15(image, **seen),
    )

    theirs = pipeline(image, PROMPT, negative_prompt=NEGATIVE, **settings(frames)).frames
    assert torch.equal(ours, theirs)


def test_a_mask_keeps_what_it_covers_and_changes_the_rest():
    pipeline = tiny_text_to_video()
    positive = conditioning.encode_prompt(PROMPT, encoders_of(pipeline))
    clean, noise = (seeded_noise((1, 4, 3, 4, 4), seed=seed) for seed in (1, 2))
    change = torch.zeros(1, 1, 1, 4, 4)
    change[..., :2] = 1.0
    scheduler = schedule(pipeline, denoising_start=0.5)

    result = denoise(
        pipeline.transformer,
        latents=noised(clean, noise=noise, sigma=float(scheduler.sigmas[0])),
        positive=positive,
        scheduler=scheduler,
        kept=KeptRegion(clean=clean, noise=noise, change=change),
    )

    assert torch.equal(result[..., 2:], clean[..., 2:])
    assert (result - clean)[..., :2].abs().min() > 0


def test_strength_runs_the_last_part_of_the_schedule():
    pipeline = tiny_text_to_video()

    assert len(schedule(pipeline, denoising_start=0.5).timesteps) == STEPS // 2


def test_cancel_stops_within_one_model_call():
    pipeline = tiny_text_to_video()
    encoders = encoders_of(pipeline)
    calls = []
    pipeline.transformer.register_forward_hook(lambda *_: calls.append(1))

    with pytest.raises(Canceled):
        denoise(
            pipeline.transformer,
            latents=seeded_noise((1, 4, 3, 4, 4), seed=3),
            positive=conditioning.encode_prompt(PROMPT, encoders),
            negative=conditioning.encode_prompt(NEGATIVE, encoders),
            true_cfg_scale=2.0,
            scheduler=schedule(pipeline),
            stop=lambda: len(calls) >= 3,
        )
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": torch.zeros(1, 4, 3, 4)}, "5-D"),
        ({"latents": torch.zeros(1, 16, 3, 4, 4)}, "channels: expected 4, got 16"),
        ({"latents": torch.zeros(1, 4, 3, 5, 4)}, r"latent height: expected divisible by .* 2, got 5 \(nearest valid value: 4\)"),
        ({"start_frame": torch.zeros(1, 4, 1, 4, 4)}, "start image: expected none, because this model makes video from text"),
        ({"true_cfg_scale": 0.5}, "expected 1.0 or more"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_model_runs(change, message):
    pipeline = tiny_text_to_video()
    positive = conditioning.encode_prompt(PROMPT, encoders_of(pipeline))
    pipeline.transformer.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    given = {"latents": torch.zeros(1, 4, 3, 4, 4), "positive": positive, "negative": positive, "scheduler": schedule(pipeline), **change}

    with pytest.raises(BadInput, match=message):
        denoise(pipeline.transformer, **given)


def test_an_image_to_video_model_needs_its_image_and_the_right_encoders():
    pipeline = tiny_image_to_video("token_replace")
    other = conditioning.encode_prompt_15(PROMPT, encoders_of(tiny_text_to_video_15()))
    given = {"latents": torch.zeros(1, 4, 3, 4, 4), "scheduler": schedule(pipeline)}

    with pytest.raises(BadInput, match="start image: expected an image"):
        denoise(pipeline.transformer, positive=other, **given)
    with pytest.raises(BadInput, match="prompt: expected text features of HunyuanVideo 1.0, as this transformer reads, got those of 1.5"):
        denoise(pipeline.transformer, positive=other, start_frame=torch.zeros(1, 4, 1, 4, 4), **given)
    with pytest.raises(BadInput, match="one that sees pictures"):
        conditioning.encode_prompt_with_picture(PROMPT, picture(), encoders_of(tiny_text_to_video()), condition="token_replace")


def test_weights_that_are_no_numbers_are_an_error_and_not_a_black_clip():
    pipeline = tiny_text_to_video()
    broken = pipeline.transformer
    with torch.no_grad():
        next(broken.parameters()).fill_(float("inf"))

    with pytest.raises(NotFinite, match="after step 1 of 4"):
        denoise(
            broken,
            latents=seeded_noise((1, 4, 3, 4, 4), seed=3),
            positive=conditioning.encode_prompt(PROMPT, encoders_of(pipeline)),
            scheduler=schedule(pipeline),
        )


def test_the_templates_own_mark_in_a_prompt_is_refused_and_its_other_words_are_not():
    encoders = encoders_of(tiny_image_to_video("token_replace"))

    with pytest.raises(BadInput, match=r"prompt: expected words without <image>.*got 1 of it: leave it out"):
        conditioning.encode_prompt_with_picture("<image> a <pad> cat", picture(), encoders, condition="token_replace")
    for prompt in ("a <|eot_id|> cat", "<|end_header_id|>", "a {cat}", ""):
        features = conditioning.encode_prompt_with_picture(prompt, picture(), encoders, condition="token_replace")
        assert features.tokens.shape[:2] == features.mask.shape
