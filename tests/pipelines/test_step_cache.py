"""The step cache: nothing changes where nothing is skipped, runs do not see each other, and the shared model is left as it was."""

import pytest
import torch
from tiny_hunyuan import encoders_of, tiny_text_to_video, tiny_text_to_video_15

from invokeai_video_nodes.pipelines.errors import BadInput, Canceled
from invokeai_video_nodes.pipelines.hunyuan_video import conditioning
from invokeai_video_nodes.pipelines.hunyuan_video.denoise import denoise
from invokeai_video_nodes.pipelines.schedules import flow_match_scheduler
from invokeai_video_nodes.pipelines.shapes import seeded_noise
from invokeai_video_nodes.pipelines.step_cache import THRESHOLDS, StepCache, check_step_cache

STEPS = 12
PROMPT, NEGATIVE = "a red circle moves to the right", "blurred"
GENERATIONS = {
    "1.0": (tiny_text_to_video, conditioning.encode_prompt),
    "1.5": (tiny_text_to_video_15, conditioning.encode_prompt_15),
}


@pytest.fixture(params=GENERATIONS, scope="module")
def run(request):
    """A function that denoises a 9-frame clip with the generation's tiny model, and that model as `run.transformer`."""
    make, encode = GENERATIONS[request.param]
    pipeline = make()
    positive, negative = (encode(text, encoders_of(pipeline)) for text in (PROMPT, NEGATIVE))

    def denoised(cache=None, **options):
        return denoise(
            pipeline.transformer,
            latents=seeded_noise((1, 4, 3, 4, 4), seed=3),
            positive=positive,
            negative=negative,
            true_cfg_scale=2.0,
            scheduler=flow_match_scheduler("euler", steps=STEPS, image_tokens=0, config=pipeline.scheduler.config),
            cache=cache,
            **options,
        )

    denoised.transformer = pipeline.transformer
    return denoised


def attributes(transformer):
    return {name: set(vars(module)) for name, module in transformer.named_modules()}


def test_threshold_zero_is_bit_identical_to_no_cache(run):
    cache = StepCache(0.0)

    assert torch.equal(run(cache), run())
    assert (cache.calls, cache.skipped) == (2 * STEPS, 0)


def test_a_cache_that_takes_everything_computes_each_branch_once(run):
    cache = StepCache(float("inf"))

    clip = run(cache)

    assert cache.skipped == 2 * STEPS - 2
    assert not torch.equal(clip, run())


def test_a_second_run_equals_the_first(run):
    first, second = StepCache(0.2), StepCache(0.2)

    assert torch.equal(run(first), run(second))
    assert first.skipped == second.skipped > 0


def test_more_is_skipped_and_more_is_lost_the_higher_the_threshold(run):
    exact = run()
    caches = [StepCache(threshold) for threshold in (0.0, 0.2, 0.5)]

    losses = [float((run(cache) - exact).square().mean()) for cache in caches]

    assert [cache.skipped for cache in caches] == sorted(cache.skipped for cache in caches)
    assert losses == sorted(losses)
    assert losses[0] == 0.0 < losses[1]


@pytest.mark.parametrize("ends", ["whole", "canceled", "failed"])
def test_the_model_is_left_as_it_was_however_the_run_ends(run, ends):
    before, clip = attributes(run.transformer), run()

    if ends == "canceled":
        asked = iter([False] * 5 + [True] * 100)
        with pytest.raises(Canceled):
            run(StepCache(0.2), stop=lambda: next(asked))
    elif ends == "failed":
        with pytest.raises(ZeroDivisionError):
            run(StepCache(0.2), on_step=lambda *_: 1 / 0)
    else:
        run(StepCache(0.2))

    assert attributes(run.transformer) == before
    assert torch.equal(run(), clip)


def test_a_cache_with_too_few_steps_is_refused():
    with pytest.raises(BadInput, match="step cache: expected off below 10 steps, got fast with 9 steps"):
        check_step_cache("fast", 9)
    with pytest.raises(BadInput, match="step cache: expected one of off, safe, fast, got quick"):
        check_step_cache("quick", 30)
    check_step_cache("safe", 10)
    check_step_cache("off", 1)


def test_the_presets_grow_from_none_to_fast():
    assert THRESHOLDS["off"] is None
    assert 0 < THRESHOLDS["safe"] < THRESHOLDS["fast"]
