"""What HunyuanVideo's nodes refuse, before any weight moves, with the nearest valid value."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from graphs import Graph, add, connect, disconnect, only, picture
from hunyuan_graphs import hunyuan_video, refused_unloaded
from tiny_hunyuan import tiny_image_to_video, tiny_image_to_video_15, tiny_text_to_video

if TYPE_CHECKING:
    from pathlib import Path

    from invokeai_video_nodes.headless import Engine


@pytest.fixture(scope="module")
def folders(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Models whose transformers no test of this file loads, by what they make."""
    pipelines = {
        "text": tiny_text_to_video(),
        "token_replace": tiny_image_to_video("token_replace"),
        "latent_concat": tiny_image_to_video("latent_concat"),
        "image 1.5": tiny_image_to_video_15(),
    }
    models = {}
    for name, pipeline in pipelines.items():
        folder = tmp_path_factory.mktemp("unused") / name
        pipeline.save_pretrained(folder)
        models[name] = engine.model(engine.install(folder))
    return models


@pytest.fixture
def clip(engine: Engine) -> dict[str, str]:
    return {"latents_name": engine.services.tensors.save(torch.zeros(1, 4, 3, 4, 4))}


@pytest.fixture
def refused(engine: Engine, folders: dict[str, dict[str, Any]], refusal: Callable[[Graph], str]) -> Callable[[Graph], str]:
    """Run a graph that must fail and check that no transformer was loaded for it."""

    def run(graph: Graph) -> str:
        message = refusal(graph)
        keys = {model["key"] for model in folders.values()}
        cached = engine.services.model_manager.load.ram_cache._cached_models
        assert not [key for key in cached if "transformer" in key and key.split(":")[0] in keys]
        return message

    return run


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 16}, "num_frames: expected 5 to 129 and of the form 4n+1, got 16 (nearest valid value: 17)"),
        ({"width": 40}, "width: expected a positive multiple of 16 pixels, got 40 (nearest valid value: 32)"),
        ({"height": 24}, "height: expected a positive multiple of 16 pixels, got 24 (nearest valid value: 16)"),
        ({"strength": 0.5}, "strength: expected 1.0, because no clip comes in, got 0.5"),
        ({"width": 100_000}, "width: expected at most 4096 pixels, got 100000 (nearest valid value: 4096)"),
        ({"shift": 1e-9}, "shift: expected 0.01 to 100, got 1e-09 (nearest valid value: 0.01)"),
        (
            {"true_cfg_scale": 6.0},
            "true_cfg_scale: expected 1.0, or a negative prompt connected (it may be empty), got 6 without one (nearest valid value: 1.0)",
        ),
        ({"steps": 9, "step_cache": "safe"}, "step cache: expected off below 10 steps, got safe with 9 steps"),
        ({"mask": "picture"}, "mask: expected a clip in Latents that it keeps a part of, got none"),
    ],
)
def test_settings_that_cannot_be(
    folders: dict[str, dict[str, Any]], refused: Callable[[Graph], str], upload: Any, settings: dict[str, Any], message: str
) -> None:
    if settings.get("mask") == "picture":
        settings = {"mask": upload(picture(32, 32))}

    assert message in refused(hunyuan_video(folders["text"], denoise=settings))


@pytest.mark.parametrize("strength", [0.0, 1.5, -1.0])
def test_a_strength_outside_0_to_1_is_refused_before_the_run(
    engine: Engine, folders: dict[str, dict[str, Any]], clip: dict[str, str], strength: float
) -> None:
    with pytest.raises(ValueError, match="strength"):
        engine.run(hunyuan_video(folders["text"], denoise={"latents": clip, "strength": strength}))


def test_a_start_image_with_a_text_model_and_none_with_an_image_model(
    folders: dict[str, dict[str, Any]], refused: Callable[[Graph], str], upload: Any
) -> None:
    image = upload(picture(32, 32))
    with_image = hunyuan_video(folders["text"], image=image)
    without_encoders = hunyuan_video(folders["text"], image=image)
    disconnect(without_encoders, "start.encoder")

    assert "start image: expected none, because the video model makes video from text, got an image" in refused(with_image)
    assert "start image: expected none, because 'text' makes video from text" in refused(without_encoders)
    assert "start image: expected an image, because the language model of" in refused(hunyuan_video(folders["token_replace"]))


def test_a_start_image_for_a_text_model_is_refused_before_the_vae_is_loaded(
    engine: Engine, folders: dict[str, dict[str, Any]], upload: Any, tmp_path: Path
) -> None:
    tiny_text_to_video().save_pretrained(tmp_path / "fresh")
    graph = hunyuan_video(engine.model(engine.install(tmp_path / "fresh")), image=upload(picture(32, 32)))

    message = refused_unloaded(engine, only(graph, "loader", "start"))

    assert "start image: expected none, because the video model makes video from text" in message


@pytest.mark.parametrize("kind", ["token_replace", "latent_concat", "image 1.5"])
def test_a_start_image_of_another_size_than_the_clip(
    folders: dict[str, dict[str, Any]], refused: Callable[[Graph], str], upload: Any, kind: str
) -> None:
    graph = hunyuan_video(folders[kind], image=upload(picture(32, 32)), sees=kind != "image 1.5")
    graph["nodes"]["start"] |= {"width": 64, "height": 48}

    assert "start image: expected 32x32 pixels, as the clip has, got 64x48" in refused(graph)


def test_a_prompt_without_the_start_image_is_refused_before_its_text_encoder_is_loaded(
    engine: Engine, folders: dict[str, dict[str, Any]], upload: Any
) -> None:
    graph = hunyuan_video(folders["token_replace"], image=upload(picture(32, 32)), sees=False, prompt="never encoded before")

    message = refused_unloaded(engine, only(graph, "loader", "prompt", "denoise"))

    assert "looks at it (connect the start image to the prompt), got none" in message


def test_a_stored_prompt_that_has_not_seen_the_start_image(
    engine: Engine, folders: dict[str, dict[str, Any]], refused: Callable[[Graph], str], upload: Any
) -> None:
    graph = hunyuan_video(folders["token_replace"], image=upload(picture(32, 32)))
    only(graph, "loader", "start", "denoise", "decode")
    graph["nodes"]["denoise"]["positive_conditioning"] = {"conditioning_name": "any"}

    assert "positive prompt: expected one encoded with the start image (connect it to the prompt node), got one without" in refused(graph)


def test_the_mark_of_the_picture_in_a_prompt(engine: Engine, folders: dict[str, dict[str, Any]], upload: Any) -> None:
    graph = hunyuan_video(folders["token_replace"], image=upload(picture(32, 32)), sees=True, prompt="an <image> <|eot_id|>")

    message = refused_unloaded(engine, only(graph, "loader", "prompt"))

    assert "prompt: expected words without <image>, which is reserved" in message


@pytest.mark.parametrize("field", ["guidance_scale", "true_cfg_scale", "shift"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 101.0])
@pytest.mark.parametrize("node", ["hunyuan_video_denoise", "z_image_video_denoise"])
def test_numbers_that_no_queue_could_store_are_refused_before_the_run(
    engine: Engine, node: str, field: str, value: float
) -> None:
    graph: Graph = {"nodes": {}, "edges": []}
    add(graph, "denoise", node, **{"guidance_scale" if node.startswith("z") and "scale" in field else field: value})

    with pytest.raises(ValueError, match="guidance_scale|true_cfg_scale|shift"):
        engine.run(graph)


@pytest.mark.parametrize(("field", "value"), [("seed", 2**70), ("seed", 2**32), ("steps", 1001)])
@pytest.mark.parametrize("node", ["hunyuan_video_denoise", "z_image_video_denoise"])
def test_numbers_beyond_what_makes_sense_are_refused_before_the_run(engine: Engine, node: str, field: str, value: int) -> None:
    graph: Graph = {"nodes": {}, "edges": []}
    add(graph, "denoise", node, **{field: value})

    with pytest.raises(ValueError, match=field):
        engine.run(graph)


def test_a_prompt_of_the_other_generation(engine: Engine, folders: dict[str, dict[str, Any]], refused: Callable[[Graph], str]) -> None:
    graph = hunyuan_video(folders["text"])
    some = torch.zeros(1, 4, 16), torch.ones(1, 4)
    stored = {"generation": "1.5", "tokens": some[0], "mask": some[1], "glyphs": some[0], "glyph_mask": some[1]}
    disconnect(graph, "denoise.positive_conditioning")
    graph["nodes"]["denoise"]["positive_conditioning"] = {"conditioning_name": engine.services.conditioning.save(stored)}

    message = refused(graph)

    assert "positive prompt: expected text features of HunyuanVideo 1.0, as this transformer reads, got those of 1.5" in message


def test_a_mask_of_another_size(
    folders: dict[str, dict[str, Any]], refused: Callable[[Graph], str], clip: dict[str, str], upload: Any
) -> None:
    settings = {"latents": clip, "mask": upload(np.zeros((64, 32), np.uint8))}

    assert "mask: expected 32x32 pixels, as the clip has, got 32x64" in refused(hunyuan_video(folders["text"], denoise=settings))


def test_a_clip_of_another_length(folders: dict[str, dict[str, Any]], refused: Callable[[Graph], str], clip: dict[str, str]) -> None:
    message = refused(hunyuan_video(folders["text"], denoise={"latents": clip, "num_frames": 13}))

    assert "latents: expected a clip of 13 frames of 32x32, as this node has, got 9 frames of 32x32" in message


def test_a_clip_for_a_model_that_takes_its_start_image_alone(
    folders: dict[str, dict[str, Any]], refused: Callable[[Graph], str], clip: dict[str, str], upload: Any
) -> None:
    graph = hunyuan_video(folders["latent_concat"], image=upload(picture(32, 32)), sees=True, denoise={"latents": clip})

    assert "latents: expected none, because 'latent_concat' makes its clip from the start image alone" in refused(graph)


def test_a_vae_of_another_family(
    folders: dict[str, dict[str, Any]], tiny_model: dict[str, Any], refusal: Callable[[Graph], str], clip: dict[str, str]
) -> None:
    graph: Graph = {"id": "decode-only", "nodes": {}, "edges": []}
    add(graph, "other", "z_image_video_model_loader", model=dict(tiny_model))
    add(graph, "decode", "video_vae_decode", latents=clip)
    connect(graph, "other.vae", "decode.vae")

    assert "VAE: expected a video VAE" in refusal(graph)


def test_a_model_of_another_family(
    folders: dict[str, dict[str, Any]], tiny_model: dict[str, Any], refusal: Callable[[Graph], str]
) -> None:
    message = refusal(hunyuan_video(tiny_model))

    assert "expected a model of base hunyuan-video" in message


def test_a_prompt_of_another_encoder_width(
    engine: Engine, folders: dict[str, dict[str, Any]], refused: Callable[[Graph], str]
) -> None:
    graph = hunyuan_video(folders["text"])
    stored = {"generation": "1.0", "tokens": torch.zeros(1, 4, 8), "mask": torch.ones(1, 4), "pooled": torch.zeros(1, 8)}
    name = engine.services.conditioning.save(stored)
    disconnect(graph, "denoise.positive_conditioning")
    graph["nodes"]["denoise"]["positive_conditioning"] = {"conditioning_name": name}

    assert "text encoder: expected 16 features per token, as this transformer reads, got 8" in refused(graph)
