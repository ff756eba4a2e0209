"""A picture as the start of a clip: noised into frame 0, or held there through the denoise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from graphs import Graph, add, connect, picture, text_to_video

from invokeai_video_nodes.pipelines.shapes import seeded_noise
from invokeai_video_nodes.pipelines.z_image.start_frame import encode_frame

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine

LatentsOf = Callable[[Graph], torch.Tensor]


@pytest.fixture
def encoded(tiny_folder: Path) -> torch.Tensor:
    """The test picture through the model's VAE, [1, 16, 1, 8, 8]."""
    pixels = torch.from_numpy(picture()).permute(2, 0, 1)[None].float() / 127.5 - 1
    return encode_frame(AutoencoderKL.from_pretrained(tiny_folder / "vae").eval(), pixels)


def encode_graph(model: dict[str, Any], image: dict[str, str], **fields: Any) -> Graph:
    """Image to video: the encode node feeds the denoise node."""
    graph = text_to_video(model)
    add(graph, "encode", "z_image_video_encode", image=image, num_frames=8, **fields)
    connect(graph, "model.vae", "encode.vae")
    connect(graph, "encode.latents", "denoise.latents")
    return graph


def held_graph(model: dict[str, Any], image: dict[str, str], **fields: Any) -> Graph:
    """First frame held: the denoise node takes the image and the VAE."""
    graph = text_to_video(model, denoise={"start_image": image, **fields})
    connect(graph, "model.vae", "denoise.vae")
    return graph


def test_encoded_latents_are_noise_with_the_picture_mixed_into_frame_0(
    engine: Engine, tiny_model: dict[str, Any], upload: Any, encoded: torch.Tensor
) -> None:
    graph = encode_graph(tiny_model, upload(picture()), noise_strength=0.8, seed=4)
    outputs = engine.run(graph).outputs

    stored = engine.services.tensors.load(outputs["encode"]["latents"]["latents_name"])
    noise = seeded_noise((1, 16, 8, 8, 8), seed=4)
    assert (outputs["encode"]["width"], outputs["encode"]["height"]) == (64, 64)
    assert torch.equal(stored[:, :, 1:], noise[:, :, 1:])
    assert torch.allclose(stored[:, :, :1], 0.2 * encoded + 0.8 * noise[:, :, :1], atol=1e-5)


def test_encoded_latents_are_never_noised_again(engine: Engine, latents_of: LatentsOf, tiny_model: dict[str, Any], upload: Any) -> None:
    image = upload(picture())
    with_noise = latents_of(encode_graph(tiny_model, image, noise_strength=0.0))
    graph = encode_graph(tiny_model, image, noise_strength=0.0)
    graph["nodes"]["denoise"]["add_noise"] = False
    without_noise = latents_of(graph)

    assert torch.equal(with_noise, without_noise)
    assert not torch.equal(with_noise, latents_of(encode_graph(tiny_model, image, noise_strength=1.0)))


def test_a_picture_of_any_size_is_stretched_where_width_and_height_are_given(
    engine: Engine, tiny_model: dict[str, Any], upload: Any
) -> None:
    outputs = engine.run(encode_graph(tiny_model, upload(picture(99, 50)), width=64, height=64)).outputs

    assert engine.services.tensors.load(outputs["encode"]["latents"]["latents_name"]).shape == (1, 16, 8, 8, 8)


def test_at_motion_strength_0_frame_0_of_the_result_is_the_picture_exactly(
    latents_of: LatentsOf, tiny_model: dict[str, Any], upload: Any, encoded: torch.Tensor
) -> None:
    result = latents_of(held_graph(tiny_model, upload(picture()), motion_strength=0.0))

    assert torch.allclose(result[:, :, :1], encoded, atol=1e-5)


def test_the_weaker_the_hold_the_further_frame_0_moves_away(
    latents_of: LatentsOf, tiny_model: dict[str, Any], upload: Any, encoded: torch.Tensor
) -> None:
    image = upload(picture())

    distances = [
        float((latents_of(held_graph(tiny_model, image, motion_strength=m, steps=6))[:, :, :1] - encoded).abs().mean())
        for m in (0.0, 0.5, 1.0)
    ]

    assert distances[0] < 1e-5 < distances[1] < distances[2]


def test_the_picture_is_converted_to_rgb_before_it_is_encoded(latents_of: LatentsOf, tiny_model: dict[str, Any], upload: Any) -> None:
    from PIL import Image

    opaque = Image.fromarray(picture())
    transparent = opaque.copy()
    transparent.putalpha(Image.fromarray(np.full((64, 64), 255, dtype=np.uint8)))

    first, second = (latents_of(held_graph(tiny_model, upload(image), motion_strength=0.0)) for image in (opaque, transparent))

    assert torch.equal(first, second)
