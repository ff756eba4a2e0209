"""Bad input is refused with what was expected, what came and the nearest valid value, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imageio_ffmpeg
import pytest
import torch
from graphs import Graph, add, add_denoise, connect, disconnect, picture, text_to_video
from tiny_models import make_tiny_image_checkpoint, make_tiny_single_file, make_tiny_z_image_video

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine


@pytest.fixture(scope="module")
def unused_model(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model whose transformer no test of this file loads."""
    return engine.model(engine.install(make_tiny_z_image_video(tmp_path_factory.mktemp("unused") / "unused")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_frames": 10, "f_patch_size": 4}, "divisible by f_patch_size 4, got 10 (nearest valid value: 8)"),
        ({"denoising_start": 0.5}, "denoising_start: expected 0.0 where no latents come in, got 0.5"),
        ({"start_image": {"image_name": "any.png"}}, "vae: expected a VAE to encode the start image, got none"),
        ({"steps": 2, "denoising_end": 0.2}, "at least one of its 2 steps"),
    ],
)
def test_a_denoise_that_cannot_work_is_refused_before_the_transformer_is_loaded(
    engine: Engine, refusal: Any, unused_model: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    assert message in refusal(text_to_video(unused_model, denoise=fields))

    loaded = engine.services.model_manager.load.ram_cache._cached_models
    assert f"{unused_model['key']}:text_encoder" in loaded and f"{unused_model['key']}:transformer" not in loaded


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("width", 500, "width: expected a positive multiple of 16 pixels, got 500 (nearest valid value: 496)"),
        ("height", 72, "height: expected a positive multiple of 16 pixels, got 72 (nearest valid value: 64)"),
        (
            "num_frames",
            200,
            "num_frames: expected 4 to 128 and divisible by f_patch_size 2, got 200 (nearest valid value: 128)",
        ),
        ("f_patch_size", 3, "f_patch_size: expected one of 1, 2, 4, got 3 (nearest valid value: 2)"),
    ],
)
def test_a_number_off_its_grid_is_refused_with_the_nearest_when_typed_and_when_connected(
    refusal: Any, unused_model: dict[str, Any], field: str, value: int, message: str
) -> None:
    typed = text_to_video(unused_model, denoise={field: value})
    connected = text_to_video(unused_model)
    add(connected, "number", "integer", value=value)
    connect(connected, "number.value", f"denoise.{field}")

    assert refusal(typed) == refusal(connected) == message


def test_an_f_patch_size_that_the_checkpoint_lacks_is_refused_with_those_it_has(engine: Engine, refusal: Any, tmp_path: Path) -> None:
    model = engine.model(engine.install(make_tiny_z_image_video(tmp_path / "only-two", f_patch_sizes=(1, 2))))

    message = refusal(text_to_video(model, denoise={"f_patch_size": 4}))

    assert message == "f_patch_size: expected one of 1, 2, got 4 (nearest valid value: 2)"


def test_latents_of_a_still_image_are_refused_by_decode_and_denoise(engine: Engine, refusal: Any, tiny_model: dict[str, Any]) -> None:
    decode = text_to_video(tiny_model)
    add(decode, "still", "noise", width=64, height=64)
    disconnect(decode, "decode.latents")
    connect(decode, "still.noise", "decode.latents")
    denoise = text_to_video(tiny_model)
    add(denoise, "still", "noise", width=64, height=64)
    connect(denoise, "still.noise", "denoise.latents")

    for graph in (decode, denoise):
        assert "latents: expected 5-D [1, C, frames, height/8, width/8], got 4-D [1, 4, 8, 8]" in refusal(graph)


def test_latents_of_another_clip_size_are_refused(refusal: Any, tiny_model: dict[str, Any]) -> None:
    graph = text_to_video(tiny_model, denoise={"num_frames": 12})
    add_denoise(graph, "first")
    connect(graph, "first.latents", "denoise.latents")

    assert "latents: expected a clip of 12 frames of 64x64, as this node has, got 8 frames of 64x64" in refusal(graph)


def test_a_vae_of_another_channel_count_is_refused(engine: Engine, refusal: Any, tiny_model: dict[str, Any], tmp_path: Path) -> None:
    other = engine.model(engine.install(make_tiny_z_image_video(tmp_path / "four", latent_channels=4)))
    graph = text_to_video(tiny_model)
    add(graph, "other", "z_image_video_model_loader", model=other)
    disconnect(graph, "decode.vae")
    connect(graph, "other.vae", "decode.vae")

    assert "VAE: expected 16 latent channels, got 'four' with 4" in refusal(graph)


def test_a_prompt_of_another_text_encoder_is_refused(
    engine: Engine, refusal: Any, tiny_model: dict[str, Any], tiny_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "wider")
    config = json.loads((folder / "transformer" / "config.json").read_text())
    (folder / "transformer" / "config.json").write_text(json.dumps({**config, "cap_feat_dim": 48}))
    wider = engine.model(engine.install(folder))
    graph = text_to_video(wider)

    message = refusal(graph)

    assert "positive conditioning: expected a prompt encoded 48 wide, by the text encoder that belongs to 'wider', got 32 wide" in message


def test_an_image_checkpoint_without_the_override_is_refused_and_told_of_it(engine: Engine, refusal: Any, tmp_path: Path) -> None:
    key = engine.install(make_tiny_image_checkpoint(tmp_path / "still.safetensors"))
    model = engine.model(key)

    message = refusal(text_to_video(model))

    assert model["base"] == "z-image"
    assert "expected a model of base z-image-video, got 'still' of base z-image" in message
    assert "change its base to Z-Image Video" in message


def test_a_single_file_names_the_parts_that_it_lacks(engine: Engine, refusal: Any, tmp_path: Path) -> None:
    model = engine.model(engine.install(make_tiny_single_file(tmp_path / "alone.safetensors")))

    both, encoder = refusal(text_to_video(model)), refusal(text_to_video(model, loader={"vae_model": model}))

    assert "a VAE (FLUX, 16 channels) and a Qwen3 Encoder chosen in this node" in both
    assert "expected a Qwen3 Encoder chosen in this node, because 'alone' holds the transformer only" in encoder


def test_a_full_disk_while_encoding_is_said_and_leaves_nothing(
    engine: Engine, tiny_model: dict[str, Any], refusal: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The kernel refuses to let ffmpeg's file grow past 4 KiB, which ffmpeg meets as it meets a full disk.
    wrapper = tmp_path / "ffmpeg"
    wrapper.write_text(f'#!/bin/sh\ntrap "" XFSZ\nulimit -f 8\nexec {imageio_ffmpeg.get_ffmpeg_exe()} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(wrapper))

    message = refusal(text_to_video(tiny_model, denoise={"width": 128, "height": 128}, decode={"crf": 0}))

    assert "were written; the unfinished video was removed. The clip's latents are kept in" in message


def test_control_frames_need_a_control_and_one_image_per_frame(refusal: Any, tiny_model: dict[str, Any], upload: Any) -> None:
    image = upload(picture())
    control = {"image_name": image["image_name"], "control_model": tiny_model}

    alone = refusal(text_to_video(tiny_model, denoise={"control_frames": [image] * 8}))
    graph = text_to_video(tiny_model, denoise={"control_frames": [image] * 3, "control": control})
    connect(graph, "model.vae", "denoise.vae")

    assert "control: expected a Z-Image control beside the control frames, got none" in alone
    assert "control_frames: expected 8 images, one for each frame, got 3 (nearest valid value: 8)" in refusal(graph)


def test_odd_sizes_and_mixed_sizes_cannot_become_a_video(engine: Engine, refusal: Any, upload: Any) -> None:
    mixed: Graph = {"nodes": {}, "edges": []}
    add(mixed, "video", "frames_to_video", images=[upload(picture()), upload(picture(96, 64))])
    odd: Graph = {"nodes": {}, "edges": []}
    add(odd, "video", "frames_to_video", images=[upload(picture(65, 64))])

    assert "image 1: expected 64x64 as image 0, got 96x64" in refusal(mixed)
    assert "video width: expected an even number of pixels, got 65 (nearest valid value: 64)" in refusal(odd)


def test_a_start_image_off_the_grid_names_the_nearest_size(refusal: Any, tiny_model: dict[str, Any], upload: Any) -> None:
    graph = text_to_video(tiny_model)
    add(graph, "encode", "z_image_video_encode", image=upload(picture(100, 64)), num_frames=8)
    connect(graph, "model.vae", "encode.vae")
    connect(graph, "encode.latents", "denoise.latents")

    assert "image width: expected a positive multiple of 16 pixels, got 100 (nearest valid value: 96)" in refusal(graph)


def test_the_random_state_of_torch_is_left_alone(engine: Engine, tiny_model: dict[str, Any]) -> None:
    state = torch.random.get_rng_state()

    engine.run(text_to_video(tiny_model))

    assert torch.equal(state, torch.random.get_rng_state())
