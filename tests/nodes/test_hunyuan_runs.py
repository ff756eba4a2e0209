"""What an artist does with HunyuanVideo beyond one prompt: video to video, masks, previews, caches, and cancel at any time."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from graphs import Graph, connect
from hunyuan_graphs import hunyuan_video
from tiny_hunyuan import tiny_text_to_video

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine


@pytest.fixture(scope="module")
def model(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("hunyuan") / "text-to-video"
    tiny_text_to_video().save_pretrained(folder)
    return engine.model(engine.install(folder))


@pytest.fixture
def clip(engine: Engine) -> dict[str, str]:
    """Clean latents of a 9-frame clip of 32x32, as the value of a latents field."""
    latents = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(8))
    return {"latents_name": engine.services.tensors.save(latents)}


def values(engine: Engine, field: dict[str, Any]) -> torch.Tensor:
    return engine.services.tensors.load(field["latents_name"]).as_subclass(torch.Tensor)


def test_less_strength_keeps_more_of_the_clip(
    engine: Engine, model: dict[str, Any], clip: dict[str, str], latents_of: Callable[[Graph], torch.Tensor]
) -> None:
    given = values(engine, clip)

    distances = [
        float((latents_of(hunyuan_video(model, denoise={"latents": clip, "strength": s, "steps": 10})) - given).square().mean())
        for s in (0.1, 0.5, 1.0)
    ]

    assert distances == sorted(distances)
    assert 0 < distances[0] < distances[2] / 2


def test_black_of_a_mask_stays_and_white_changes(
    engine: Engine, model: dict[str, Any], clip: dict[str, str], upload: Any, latents_of: Callable[[Graph], torch.Tensor]
) -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[:, 16:] = 255
    given = values(engine, clip)

    made = latents_of(hunyuan_video(model, denoise={"latents": clip, "strength": 0.8, "steps": 5, "mask": upload(mask)}))

    assert torch.allclose(made[..., :2], given[..., :2], atol=1e-6)
    assert not torch.isclose(made[..., 2:], given[..., 2:], atol=1e-3).any(dim=(1, 2, 3)).all()


def test_the_vae_gives_a_preview_of_each_step(engine: Engine, model: dict[str, Any]) -> None:
    graph = hunyuan_video(model, denoise={"steps": 3})
    connect(graph, "loader.vae", "denoise.vae")
    pictures = []

    def note(event: Any) -> None:
        if type(event).__name__ == "InvocationProgressEvent" and event.message.startswith("Denoising step"):
            pictures.append(event.image)

    engine.run(graph, on_event=note)

    assert len(pictures) == 3
    assert all(picture.dataURL.startswith("data:image") and (picture.width, picture.height) == (32, 32) for picture in pictures)
    assert len({picture.dataURL for picture in pictures}) == 3


def test_a_step_cache_says_what_it_left_out(engine: Engine, model: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from invokeai_video_nodes.pipelines import step_cache

    monkeypatch.setitem(step_cache.THRESHOLDS, "fast", 10.0)  # a random model changes too much for the real one

    result = engine.run(hunyuan_video(model, denoise={"steps": 12, "step_cache": "fast"}))

    metadata = engine.services.videos.get_metadata(result.videos[0].name)
    assert metadata.root == {"step_cache_skipped_calls": 11}


def test_a_second_run_of_a_prompt_needs_no_text_encoder(
    engine: Engine, tmp_path: Path, latents_of: Callable[[Graph], torch.Tensor]
) -> None:
    folder = tmp_path / "forgetful"
    tiny_text_to_video(seed=77).save_pretrained(folder)
    model = engine.model(engine.install(folder))
    path = engine.services.model_manager.store.get_model(model["key"]).path
    first = latents_of(hunyuan_video(model))
    engine.services.model_manager.load.ram_cache.drop_model(model["key"])
    for name in ("text_encoder", "text_encoder_2"):
        Path(engine.services.configuration.models_path, path, name, "model.safetensors").unlink()

    assert torch.equal(latents_of(hunyuan_video(model)), first)
    with pytest.raises(Exception, match="model.safetensors"):
        latents_of(hunyuan_video(model, prompt="another prompt"))


def test_a_broken_file_of_the_prompt_cache_is_made_anew(
    engine: Engine, model: dict[str, Any], latents_of: Callable[[Graph], torch.Tensor]
) -> None:
    from invokeai_video_nodes.nodes.prompt_cache import prompt_cache_folder

    first = latents_of(hunyuan_video(model, prompt="a prompt of its own"))
    newest = max(prompt_cache_folder().iterdir(), key=lambda file: file.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:40])

    assert torch.equal(latents_of(hunyuan_video(model, prompt="a prompt of its own")), first)
    assert newest.stat().st_size > 40


@pytest.mark.parametrize("at", ["Encoding the prompt", "Denoising step 1/40", "Denoising step 20/40", "Decoding latent frame"])
def test_canceling_ends_soon_leaves_nothing_and_the_next_run_is_right(
    engine: Engine, model: dict[str, Any], leftovers: Callable[[], list[Path]], video_count: Callable[[], int], at: str
) -> None:
    from invokeai_video_nodes.headless import RunCanceled

    expected = engine.run(hunyuan_video(model, prompt=f"before {at}")).outputs["denoise"]["latents"]
    before, after_cancel, tensors = video_count(), [], alive()

    def cancel_at(event: Any) -> None:
        if type(event).__name__ == "InvocationProgressEvent" and (after_cancel or event.message.startswith(at)):
            after_cancel.append(event.message)
            if len(after_cancel) == 1:
                engine.cancel()

    settings = {"num_frames": 129, "width": 64, "height": 64, "steps": 1} if at.startswith("Decoding") else {"steps": 40}
    with pytest.raises(RunCanceled):
        engine.run(hunyuan_video(model, prompt=f"canceled {at}", denoise=settings), on_event=cancel_at)

    # The flag travels through InvokeAI's event loop, so a tiny model may finish a step or two meanwhile.
    assert 1 <= len(after_cancel) < 20
    assert video_count() == before and not leftovers()
    cache = engine.services.model_manager.load.ram_cache._cached_models
    assert not [key for key, entry in cache.items() if entry.is_locked]
    assert alive() <= tensors + 50, "what the run held is free again"
    again = engine.run(hunyuan_video(model, prompt=f"before {at}")).outputs["denoise"]["latents"]
    assert torch.equal(values(engine, again), values(engine, expected))


def alive() -> int:
    """Tensors that something still holds."""
    gc.collect()
    return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())


def test_true_cfg_runs_with_an_empty_negative_prompt_and_says_what_it_costs_a_distilled_model(
    model: dict[str, Any], latents_of: Callable[[Graph], torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="InvokeAI"):
        plain = latents_of(hunyuan_video(model, negative=""))
        said_of_plain = caplog.text
        guided = latents_of(hunyuan_video(model, negative="", denoise={"true_cfg_scale": 6.0}))

    assert not torch.equal(plain, guided)
    assert "twice as long" not in said_of_plain
    assert "True CFG scale 6: every step takes twice as long. 'text-to-video' is distilled" in caplog.text


def test_a_model_whose_weights_are_no_numbers_ends_in_an_error_and_leaves_nothing(
    engine: Engine, tmp_path: Path, refusal: Callable[[Graph], str]
) -> None:
    pipeline = tiny_text_to_video()
    with torch.no_grad():
        pipeline.transformer.proj_out.weight.fill_(float("inf"))
    pipeline.save_pretrained(tmp_path / "broken")
    model = engine.model(engine.install(tmp_path / "broken"))

    assert "denoising: expected numbers after step 1 of 2, got inf or nan" in refusal(hunyuan_video(model))
