"""What Stable Video Diffusion's nodes refuse, before any weight moves, with the nearest valid value."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from graphs import Graph, add, connect, disconnect
from svd_graphs import image_to_video, start_picture
from tiny_svd import tiny_svd

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine


@pytest.fixture(scope="module")
def models(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two models of which no test of this file loads a weight."""
    found = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp("unused") / f"unused-svd-{seed}"
        tiny_svd(seed=seed).save_pretrained(folder)
        found.append(engine.model(engine.install(folder)))
    return found


@pytest.fixture
def image(upload: Callable[..., dict[str, str]]) -> dict[str, str]:
    return upload(start_picture())


@pytest.fixture
def refused(engine: Engine, models: list[dict[str, Any]], refusal: Callable[[Graph], str]) -> Callable[[Graph], str]:
    """Run a graph that must fail, and check that no weights of the SVD models were loaded for it."""

    def run(graph: Graph) -> str:
        message = refusal(graph)
        keys = {model["key"] for model in models}
        cached = engine.services.model_manager.load.ram_cache._cached_models
        assert not [key for key in cached if key.split(":")[0] in keys and "scheduler" not in key]
        return message

    return run


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 3}, "num_frames: expected 4 to 128, got 3 (nearest valid value: 4)"),
        ({"num_frames": -4}, "num_frames: expected 4 to 128, got -4 (nearest valid value: 4)"),
        ({"num_frames": 129}, "num_frames: expected 4 to 128, got 129 (nearest valid value: 128)"),
        ({"motion_bucket_id": 256}, "motion_bucket_id: expected 0 to 255, got 256 (nearest valid value: 255)"),
        ({"motion_bucket_id": -1}, "motion_bucket_id: expected 0 to 255, got -1 (nearest valid value: 0)"),
    ],
)
def test_a_setting_outside_its_limits(
    models: list[dict[str, Any]], image: dict[str, str], refused: Callable[[Graph], str], settings: dict[str, Any], message: str
) -> None:
    assert message in refused(image_to_video(models[0], image, denoise=settings))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((65, 48), "image width: expected a multiple of 8 pixels up to 4096 ('Start Image - SVD' makes it so), got 65"),
        ((64, 47), "image height: expected a multiple of 8 pixels up to 4096 ('Start Image - SVD' makes it so), got 47"),
    ],
)
def test_a_picture_off_the_grid(
    models: list[dict[str, Any]],
    upload: Callable[..., dict[str, str]],
    refused: Callable[[Graph], str],
    size: tuple[int, int],
    message: str,
) -> None:
    said = refused(image_to_video(models[0], upload(start_picture(*size))))

    assert message in said and f"nearest valid value: {64 if size[0] != 64 else 48}" in said


def test_a_run_without_a_picture(models: list[dict[str, Any]], image: dict[str, str], refused: Callable[[Graph], str]) -> None:
    graph = image_to_video(models[0], image)
    graph["nodes"]["denoise"].pop("image")

    assert "field image" in refused(graph)


@pytest.mark.parametrize("end", ["min_guidance_scale", "max_guidance_scale", "noise_aug_strength"])
@pytest.mark.parametrize("value", [-0.5, float("inf"), float("nan")])
def test_numbers_that_no_model_can_take_never_reach_the_queue(
    engine: Engine, models: list[dict[str, Any]], image: dict[str, str], end: str, value: float
) -> None:
    with pytest.raises(ValueError, match=end):
        engine.run(image_to_video(models[0], image, denoise={end: value}))


@pytest.mark.parametrize(("chunk", "nearest"), [(-1, 0), (129, 128)])
def test_a_chunk_size_is_refused_when_the_graph_is_queued(
    engine: Engine, models: list[dict[str, Any]], image: dict[str, str], chunk: int, nearest: int
) -> None:
    with pytest.raises(ValueError, match=rf"expected 0 to 128 frames, .* got {chunk} \(nearest valid value: {nearest}\)"):
        engine.run(image_to_video(models[0], image, decode={"decode_chunk_size": chunk}))


def test_a_model_of_another_family(tiny_model: dict[str, Any], image: dict[str, str], refusal: Callable[[Graph], str]) -> None:
    assert "video model: expected a Stable Video Diffusion model, got" in refusal(image_to_video(tiny_model, image))


def test_parts_of_two_models(models: list[dict[str, Any]], image: dict[str, str], refused: Callable[[Graph], str]) -> None:
    graph = image_to_video(models[0], image)
    disconnect(graph, "denoise.model")
    parts = {"unet": "unet", "scheduler": "scheduler", "image_encoder": "image_encoder"}
    mixed = {name: {**models[name == "image_encoder"], "submodel_type": part} for name, part in parts.items()}
    graph["nodes"]["denoise"]["model"] = mixed

    assert "image encoder: expected that of 'unused-svd-0', as the UNet is, got that of 'unused-svd-1'" in refused(graph)


@pytest.mark.parametrize("node", ["denoise", "decode"])
def test_a_vae_without_a_temporal_decoder(
    models: list[dict[str, Any]],
    tiny_model: dict[str, Any],
    engine: Engine,
    image: dict[str, str],
    refused: Callable[[Graph], str],
    node: str,
) -> None:
    graph = image_to_video(models[0], image)
    if node == "decode":
        graph = decode_only(engine, models[0], "svd_decode", torch.zeros(1, 4, 4, 6, 8), family="svd")
    add(graph, "other", "z_image_video_model_loader", model=tiny_model)
    disconnect(graph, f"{node}.vae")
    connect(graph, "other.vae", f"{node}.vae")

    assert "VAE: expected the VAE of a Stable Video Diffusion model (with a temporal decoder), got" in refused(graph)


def test_svd_s_vae_in_a_decode_of_single_images_is_sent_to_svd_s_decode(
    engine: Engine, models: list[dict[str, Any]], refused: Callable[[Graph], str]
) -> None:
    graph = decode_only(engine, models[0], "z_image_video_decode", torch.zeros(1, 4, 4, 6, 8))

    assert "VAE: expected a VAE of single images, got" in (said := refused(graph)) and "'Video Decode - SVD'" in said


@pytest.mark.parametrize(
    ("node", "family", "message"),
    [
        ("svd_decode", "animatediff", "latents: expected a clip of svd, got one of animatediff, which 'Video Decode - AnimateDiff'"),
        ("animatediff_decode", "svd", "latents: expected a clip of animatediff, got one of svd, which 'Video Decode - SVD'"),
        ("z_image_video_decode", "svd", "latents: expected a clip of this node's own model, got one of svd, which 'Video Decode - SVD'"),
        ("video_vae_decode", "svd", "latents: expected a clip of this node's own model, got one of svd, which 'Video Decode - SVD'"),
    ],
)
def test_latents_of_another_family_are_sent_to_their_own_decode(
    engine: Engine, models: list[dict[str, Any]], refused: Callable[[Graph], str], node: str, family: str, message: str
) -> None:
    graph = decode_only(engine, models[0], node, torch.zeros(1, 4, 4, 6, 8), family=family)

    assert message in refused(graph)


def test_latents_of_other_channels(engine: Engine, models: list[dict[str, Any]], refusal: Callable[[Graph], str]) -> None:
    message = refusal(decode_only(engine, models[1], "svd_decode", torch.zeros(1, 16, 4, 6, 8)))

    assert "expected 16 latent channels, got" in message


def decode_only(engine: Engine, model: dict[str, Any], node: str, latents: torch.Tensor, *, family: str | None = None) -> Graph:
    """Stored latents into a decode node, with an SVD model's VAE."""
    from types import SimpleNamespace

    from invokeai_video_nodes.nodes.clip_latents import ClipFacts, save_clip

    stored = save_clip(SimpleNamespace(tensors=Tensors(engine)), latents, ClipFacts(family=family))
    graph: Graph = {"id": "decode-only", "nodes": {}, "edges": []}
    add(graph, "loader", "svd_model_loader", model=dict(model))
    add(graph, "decode", node, latents={"latents_name": stored.latents.latents_name})
    connect(graph, "loader.vae", "decode.vae")
    return graph


class Tensors:
    """The part of a node's context that stores latents."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def save(self, tensor: torch.Tensor) -> str:
        return str(self._engine.services.tensors.save(tensor))
