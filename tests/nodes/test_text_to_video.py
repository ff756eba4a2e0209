"""A prompt becomes an MP4 in InvokeAI's gallery, through its real graph engine, on a tiny random model."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from graphs import Graph, add, add_denoise, connect, text_to_video

from invokeai_video_nodes.pipelines.decode import decode_frames
from invokeai_video_nodes.pipelines.frames import read_frames
from invokeai_video_nodes.pipelines.mp4 import write_mp4
from invokeai_video_nodes.pipelines.schedules import flow_match_scheduler
from invokeai_video_nodes.pipelines.shapes import seeded_noise
from invokeai_video_nodes.pipelines.z_image.denoise import denoise

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine

LatentsOf = Callable[[Graph], torch.Tensor]


def probe(path: Path) -> str:
    """What ffmpeg says of a file."""
    return subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path)], capture_output=True, text=True).stderr


def test_a_prompt_becomes_an_mp4_with_the_right_frames_size_and_rate(engine: Engine, tiny_model: dict[str, Any]) -> None:
    graph = text_to_video(tiny_model, denoise={"num_frames": 12, "width": 96, "height": 64, "f_patch_size": 4, "fps": 10})

    result = engine.run(graph)

    (video,) = result.videos
    output = result.outputs["decode"]
    frames = list(read_frames(video))
    assert len(frames) == 12 and frames[0].shape == (64, 96, 3)
    assert (output["width"], output["height"], output["num_frames"], output["fps"]) == (96, 64, 12, 10.0)
    assert output["duration"] == pytest.approx(1.2)
    assert re.search(r"h264.*yuv420p\(tv, bt709.*96x64.* 10 fps", probe(video))


def test_the_gallery_record_has_a_thumbnail_metadata_and_the_graph(engine: Engine, tiny_model: dict[str, Any]) -> None:
    graph = text_to_video(tiny_model)
    add(graph, "facts", "core_metadata", positive_prompt="a red circle", seed=1)
    connect(graph, "facts.metadata", "decode.metadata")

    video = engine.run(graph).videos[0]

    videos = engine.services.videos
    record = videos.get_dto(video.name)
    assert (record.width, record.height, record.fps, record.duration) == (64, 64, 8.0, 1.0)
    assert videos.get_metadata(video.name).root["positive_prompt"] == "a red circle"
    assert Path(videos.get_path(video.name, thumbnail=True)).stat().st_size > 0
    assert set(json.loads(videos.get_graph(video.name))["nodes"]) == set(graph["nodes"])


def test_the_video_goes_to_the_board_that_the_node_names(engine: Engine, tiny_model: dict[str, Any]) -> None:
    board = engine.services.board_records.save("clips", user_id="system").board_id

    video = engine.run(text_to_video(tiny_model, decode={"board": {"board_id": board}})).videos[0]

    assert engine.services.videos.get_dto(video.name).board_id == board


@pytest.mark.parametrize(("f_patch_size", "negative"), [(1, None), (2, "blurred"), (4, "blurred")])
def test_the_node_gives_the_latents_of_the_core(
    latents_of: LatentsOf,
    conditioning_of: Any,
    tiny_model: dict[str, Any],
    tiny_folder: Path,
    f_patch_size: int,
    negative: str | None,
) -> None:
    settings = {"f_patch_size": f_patch_size, "guidance_scale": 4.0 if negative else 1.0}
    graph = text_to_video(tiny_model, negative=negative, denoise=settings)

    got = latents_of(graph)

    transformer = ZImageTransformer2DModel.from_pretrained(tiny_folder / "transformer").eval()
    expected = denoise(
        transformer,
        latents=seeded_noise((1, 16, 8, 8, 8), seed=1),
        positive=conditioning_of(graph["nodes"]["prompt"]["prompt"], tiny_model),
        negative=conditioning_of(negative, tiny_model) if negative else None,
        guidance_scale=settings["guidance_scale"],
        scheduler=flow_match_scheduler("euler", steps=3, image_tokens=16),
        f_patch_size=f_patch_size,
    )
    assert torch.equal(got, expected)


def test_the_file_holds_the_frames_of_a_frame_by_frame_decode(
    engine: Engine, latents_of: LatentsOf, tiny_model: dict[str, Any], tiny_folder: Path, tmp_path: Path
) -> None:
    video = engine.run(text_to_video(tiny_model)).videos[0]

    vae = AutoencoderKL.from_pretrained(tiny_folder / "vae").eval()
    frames = decode_frames(vae, latents_of(text_to_video(tiny_model)))
    write_mp4(frames, tmp_path / "expected.mp4", fps=8, width=64, height=64)
    assert np.array_equal(np.stack(list(read_frames(video))), np.stack(list(read_frames(tmp_path / "expected.mp4"))))


@pytest.mark.parametrize("scheduler", ["euler", "heun", "lcm"])
def test_the_same_seed_gives_the_same_clip_and_another_seed_another(
    latents_of: LatentsOf, tiny_model: dict[str, Any], scheduler: str
) -> None:
    first = latents_of(text_to_video(tiny_model, denoise={"scheduler": scheduler, "seed": 5}))
    again = latents_of(text_to_video(tiny_model, denoise={"scheduler": scheduler, "seed": 5}))
    other = latents_of(text_to_video(tiny_model, denoise={"scheduler": scheduler, "seed": 6}))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_shift_prompt_and_guidance_change_the_clip(latents_of: LatentsOf, tiny_model: dict[str, Any]) -> None:
    plain = latents_of(text_to_video(tiny_model))

    assert not torch.equal(plain, latents_of(text_to_video(tiny_model, denoise={"shift": 1.0})))
    assert not torch.equal(plain, latents_of(text_to_video(tiny_model, prompt="a blue square")))
    assert torch.equal(plain, latents_of(text_to_video(tiny_model, negative="dull", denoise={"guidance_scale": 1.0})))
    assert torch.equal(plain, latents_of(text_to_video(tiny_model, denoise={"shift": 3.0}))), "3.0 is the checkpoint's own"


def test_a_denoise_in_two_parts_equals_one_in_one(latents_of: LatentsOf, tiny_model: dict[str, Any]) -> None:
    whole = latents_of(text_to_video(tiny_model, denoise={"steps": 4}))
    graph = text_to_video(tiny_model, denoise={"steps": 4, "denoising_start": 0.5})
    add_denoise(graph, "first", steps=4, denoising_end=0.5)
    connect(graph, "first.latents", "denoise.latents")

    parts = latents_of(graph)

    assert torch.equal(parts, whole), "what comes out of the first part still holds its noise and gets no second helping"


def test_incoming_clean_latents_are_noised_to_the_level_of_the_start(latents_of: LatentsOf, tiny_model: dict[str, Any]) -> None:
    source = latents_of(text_to_video(tiny_model, denoise={"seed": 9}))
    graph = text_to_video(tiny_model, denoise={"seed": 2, "denoising_start": 0.67})
    add_denoise(graph, "source", seed=9)
    connect(graph, "source.latents", "denoise.latents")

    changed = latents_of(graph)

    graph["nodes"]["denoise"]["add_noise"] = False
    untouched = latents_of(graph)
    likeness = torch.corrcoef(torch.stack([tensor.flatten() for tensor in (source, changed, untouched)]))[0]
    assert 0.2 < likeness[1] < likeness[2] < 1.0


def test_frames_per_second_travel_with_the_latents_unless_the_decode_says_otherwise(engine: Engine, tiny_model: dict[str, Any]) -> None:
    remembered = engine.run(text_to_video(tiny_model, denoise={"fps": 12}))
    overruled = engine.run(text_to_video(tiny_model, denoise={"fps": 12}, decode={"fps": 24}))

    assert remembered.outputs["decode"]["fps"] == 12
    assert overruled.outputs["decode"]["fps"] == 24


def test_the_h265_file_lies_beside_the_gallery_s_h264_file(engine: Engine, tiny_model: dict[str, Any], leftovers: Any) -> None:
    video = engine.run(text_to_video(tiny_model, decode={"codec": "h264+h265"})).videos[0]

    second = video.with_suffix(".h265.mp4")
    assert "h264" in probe(video) and "hevc" in probe(second)
    assert len(list(read_frames(second))) == 8
    assert not leftovers()


def test_an_h265_file_goes_at_the_next_start_once_its_gallery_video_is_deleted(engine: Engine, tiny_model: dict[str, Any]) -> None:
    from invokeai_video_nodes.nodes.save_video import clean_unfinished

    kept, deleted = (engine.run(text_to_video(tiny_model, decode={"codec": "h264+h265"})).videos[0] for _ in range(2))
    copies = [video.with_suffix(".h265.mp4") for video in (kept, deleted)]
    engine.services.videos.delete(deleted.name)
    stopped = kept.parent / ".delete_stopped"

    stopped.mkdir()
    clean_unfinished()
    assert [copy.exists() for copy in copies] == [True, True], "InvokeAI may still put a video back"
    stopped.rmdir()
    clean_unfinished()
    assert [copy.exists() for copy in copies] == [True, False]


def test_a_lower_crf_gives_a_larger_file(engine: Engine, tiny_model: dict[str, Any]) -> None:
    fine, coarse = (engine.run(text_to_video(tiny_model, decode={"crf": crf})).videos[0] for crf in (1, 40))

    assert fine.stat().st_size > 2 * coarse.stat().st_size


def test_every_step_and_frame_is_reported_and_steps_show_a_picture(engine: Engine, tiny_model: dict[str, Any]) -> None:
    events: list[Any] = []

    engine.run(text_to_video(tiny_model), on_event=events.append)

    progress = [event for event in events if type(event).__name__ == "InvocationProgressEvent"]
    steps = [event for event in progress if event.message.startswith("Denoising step")]
    frames = [event.message for event in progress if event.message.startswith("Decoding frame")]
    assert [event.message for event in steps] == [f"Denoising step {step}/3" for step in (1, 2, 3)]
    assert [round(event.percentage, 3) for event in steps] == [0.333, 0.667, 1.0]
    assert all((event.image.width, event.image.height) == (64, 64) for event in steps)
    assert all(event.image.dataURL.startswith("data:image/jpeg") for event in steps)
    assert frames == [f"Decoding frame {frame}/8" for frame in range(1, 9)]


def test_no_model_stays_locked_in_the_cache_after_a_run(engine: Engine, tiny_model: dict[str, Any]) -> None:
    engine.run(text_to_video(tiny_model))

    cache = engine.services.model_manager.load.ram_cache
    assert cache._cached_models
    assert not [key for key, entry in cache._cached_models.items() if entry.is_locked]
