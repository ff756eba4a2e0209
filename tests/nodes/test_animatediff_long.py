"""Clips longer than the motion module, loops, and prompts that are long or change on the way, through the graph engine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from animatediff_graphs import SMALL, animatediff_video, denoise_alone, model_value
from diffusers import MotionAdapter, UNet2DConditionModel
from graphs import Graph, add, connect, disconnect
from tiny_animatediff import tiny_prompts
from tiny_sd1 import save_motion_module

from invokeai_video_nodes.pipelines.animatediff.denoise import denoise
from invokeai_video_nodes.pipelines.animatediff.presets import make_scheduler
from invokeai_video_nodes.pipelines.animatediff.unet import motion_unet
from invokeai_video_nodes.pipelines.windows import ContextWindows, predict_in_windows

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine

STEPS, SEED = SMALL["steps"], SMALL["seed"]
LIMIT, LONG = 8, 12


@pytest.fixture
def prompts(conditioning: Callable[[torch.Tensor], dict[str, str]]) -> dict[str, Any]:
    positive, negative = tiny_prompts()
    return {"positive_conditioning": conditioning(positive), "negative_conditioning": conditioning(negative)}


@pytest.fixture(scope="module")
def short_sighted(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A motion module that sees few frames at once."""
    return engine.model(engine.install(save_motion_module(tmp_path_factory.mktemp("motion") / "eight", motion_max_seq_length=LIMIT)))


@pytest.fixture
def core(sd1_folder: Any, engine: Engine) -> Callable[..., torch.Tensor]:
    """The core alone on the same folders."""

    def run(module: dict[str, Any], *, frames: int, windows: ContextWindows) -> torch.Tensor:
        unet = UNet2DConditionModel.from_pretrained(sd1_folder / "unet")
        record = engine.services.model_manager.store.get_model(module["key"])
        adapter = MotionAdapter.from_pretrained(engine.services.configuration.models_path / record.path)
        positive, negative = tiny_prompts()
        generator = torch.Generator().manual_seed(SEED)
        with motion_unet(unet, adapter) as model:
            return denoise(
                model,
                noise=torch.randn(1, 4, frames, 8, 8, generator=generator),
                positive=positive,
                negative=negative,
                scheduler=make_scheduler("ddim"),
                steps=STEPS,
                windows=partial(predict_in_windows, settings=windows),
                generator=generator,
            )

    return run


def steps_between(latents: torch.Tensor) -> torch.Tensor:
    """The size of each step from a frame to the next, [F]; the last one leads back to the first frame."""
    return (latents.roll(-1, dims=2) - latents).square().mean(dim=(0, 1, 3, 4)).sqrt()


def test_windows_come_by_themselves_above_the_limit_and_the_log_says_so(
    sd1: Any, short_sighted: Any, prompts: Any, latents_of: Any, core: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="InvokeAI"):
        made = latents_of(denoise_alone(model_value(sd1, short_sighted), **prompts, num_frames=LONG))

    assert torch.equal(made, core(short_sighted, frames=LONG, windows=ContextWindows(length=LIMIT, overlap=4)))
    assert "12 frames are made in standard windows of 8 frames that share 4; the motion module sees 8 at once." in caplog.text


def test_windows_that_were_set_are_the_cores_and_one_that_holds_all_is_none(
    sd1: Any, motion: Any, prompts: Any, latents_of: Any, core: Any
) -> None:
    value = model_value(sd1, motion)

    def in_windows(**windows: Any) -> torch.Tensor:
        graph = denoise_alone(value, **prompts)
        add(graph, "windows", "animatediff_windows", **windows)
        connect(graph, "windows.windows", "denoise.windows")
        return latents_of(graph)

    settings: dict[str, Any] = {"length": 4, "overlap": 2, "kind": "static", "weights": "flat"}
    whole = latents_of(denoise_alone(value, **prompts))
    cut = in_windows(**settings)
    assert torch.equal(cut, core(motion, frames=8, windows=ContextWindows(**settings)))
    assert torch.equal(in_windows(length=8, overlap=2), whole)
    assert not torch.equal(cut, whole)


def test_repeated_noise_makes_the_first_window_come_again(
    sd1: Any, motion: Any, prompts: Any, latents_of: Any
) -> None:
    windows = {"length": 4, "overlap": 0, "kind": "static", "noise": "repeated"}

    made = latents_of(denoise_alone(model_value(sd1, motion), **prompts, windows=windows))

    torch.testing.assert_close(made[:, :, :4], made[:, :, 4:], rtol=0, atol=1e-5)


def test_a_loop_runs_in_looped_windows_and_its_last_step_is_like_the_others(
    sd1: Any, short_sighted: Any, prompts: Any, latents_of: Any, core: Any, record_property: Any
) -> None:
    made = latents_of(denoise_alone(model_value(sd1, short_sighted), **prompts, num_frames=LONG, loop=True))

    sizes = steps_between(made)
    ratio = float(sizes[-1] / sizes[:-1].mean())
    record_property("last_to_first_step_against_the_others", round(ratio, 3))
    assert torch.equal(made, core(short_sighted, frames=LONG, windows=ContextWindows(length=LIMIT, overlap=4, kind="looped")))
    assert ratio <= 1.5


def test_a_long_prompt_does_not_split_the_clip(engine: Engine, sd1: Any, motion: Any, record_property: Any) -> None:
    words = "a cat on a sofa in the rain of autumn, best quality, " * 16

    def run(prompt: str) -> tuple[torch.Tensor, int]:
        result = engine.run(animatediff_video(sd1, motion, prompt=prompt))
        name = result.outputs["prompt"]["conditioning"]["conditioning_name"]
        tokens = engine.services.conditioning.load(name).conditionings[0].embeds.shape[1]
        made = engine.services.tensors.load(result.outputs["denoise"]["latents"]["latents_name"]).as_subclass(torch.Tensor)
        return made, tokens

    long, tokens = run(words)
    sizes = steps_between(long)[:-1]
    border = float(sizes[len(sizes) // 2] / sizes.mean())
    record_property("step_in_the_middle_against_the_mean", round(border, 3))
    assert tokens > 2 * 77
    assert border <= 1.5 and float(sizes.max() / sizes.mean()) <= 1.5


@pytest.mark.parametrize(("positive", "negative"), [(231, 77), (154, 231)])
def test_prompts_of_any_two_lengths_are_brought_to_one(
    sd1: Any, motion: Any, conditioning: Any, latents_of: Any, positive: int, negative: int
) -> None:
    shown, hidden = tiny_prompts(tokens=77)
    longer = {"positive_conditioning": shown.repeat(1, positive // 77, 1), "negative_conditioning": hidden.repeat(1, negative // 77, 1)}
    value = model_value(sd1, motion)

    made = latents_of(denoise_alone(value, **{name: conditioning(prompt) for name, prompt in longer.items()}, steps=1))

    # Tokens that stand there several times mean what they mean once, so the clip is that of the short prompts.
    both = {"positive_conditioning": conditioning(shown), "negative_conditioning": conditioning(hidden)}
    short = latents_of(denoise_alone(value, **both, steps=1))
    assert float((made - short).abs().mean()) <= 1e-4 * float(short.std())


def travelling(sd1: Any, motion: Any, prompts: str, **fields: Any) -> Graph:
    graph = animatediff_video(sd1, motion)
    graph["nodes"].pop("prompt")
    graph["edges"] = [edge for edge in graph["edges"] if "prompt" not in (edge["source"]["node_id"], edge["destination"]["node_id"])]
    disconnect(graph, "denoise.positive_conditioning")
    add(graph, "schedule", "animatediff_prompt_schedule", prompts=prompts, num_frames=SMALL["num_frames"], **fields)
    connect(graph, "main.clip", "schedule.clip")
    connect(graph, "schedule.prompt_schedule", "denoise.prompt_schedule")
    return graph


def test_a_prompt_schedule_of_one_prompt_is_that_prompt_with_the_text_around_it(
    sd1: Any, motion: Any, latents_of: Any
) -> None:
    whole = latents_of(animatediff_video(sd1, motion, prompt="best quality, a cat, in the rain"))

    assert torch.equal(latents_of(travelling(sd1, motion, "0: a cat", before="best quality", after="in the rain")), whole)


def test_prompts_that_take_turns_change_the_frames_that_they_rule_and_each_is_encoded_once(
    engine: Engine, sd1: Any, motion: Any
) -> None:
    # Without motion each frame is a picture of its own, so that only its own prompt can change it.
    def run(prompts: str, **fields: Any) -> tuple[torch.Tensor, list[str]]:
        graph = travelling(sd1, motion, prompts, **fields)
        graph["nodes"]["denoise"]["motion_scale"] = 0.0
        result = engine.run(graph)
        made = engine.services.tensors.load(result.outputs["denoise"]["latents"]["latents_name"]).as_subclass(torch.Tensor)
        return made, result.outputs["schedule"]["prompt_schedule"]["conditioning_names"]

    cat, _ = run("0: a cat")
    changed, names = run("0: a cat\n4: a dog\n7: a cat")
    back, _ = run("0: a cat\n4: a dog", loop=True)

    assert torch.equal(changed[:, :, [0, 7]], cat[:, :, [0, 7]])
    assert all(not torch.equal(changed[:, :, frame], cat[:, :, frame]) for frame in range(1, 7))
    assert names[0] == names[2] != names[1]
    assert torch.equal(back[:, :, :5], changed[:, :, :5]) and not torch.equal(back[:, :, 7], changed[:, :, 7])
