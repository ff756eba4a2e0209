"""Stable Video Diffusion through InvokeAI's own graph engine, bit for bit against diffusers' pipeline on the same folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from graphs import Graph, add, connect
from PIL import Image
from svd_graphs import HEIGHT, WIDTH, image_to_video, start_picture, with_diffusers
from tiny_svd import tiny_svd

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("svd") / "tiny-svd"
    tiny_svd().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(engine: Engine, folder: Path) -> dict[str, Any]:
    return engine.model(engine.install(folder))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    pipeline = StableVideoDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def image(upload: Callable[..., dict[str, str]]) -> dict[str, str]:
    return upload(start_picture())


@pytest.fixture
def decoded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[[Graph], tuple[np.ndarray, Any]]:
    """Run a graph and return the frames that go to the encoder, [F, H, W, 3], and the result."""
    from invokeai_video_nodes.nodes import save_video

    write, seen = save_video.write_mp4, []

    def watched(frames: Any, *arguments: Any, **options: Any) -> int:
        return write((seen.append(frame) or frame for frame in frames), *arguments, **options)

    def run(graph: Graph) -> tuple[np.ndarray, Any]:
        seen.clear()
        monkeypatch.setattr(save_video, "write_mp4", watched)
        result = engine.run(graph)
        return np.stack(seen), result

    return run


@pytest.mark.parametrize("frames", [14, 25])
def test_latents_and_frames_equal_diffusers_pipeline_bit_for_bit(
    engine: Engine, pipeline: Any, model: dict[str, Any], image: dict[str, str], decoded: Any, frames: int
) -> None:
    ours, result = decoded(image_to_video(model, image, denoise={"num_frames": frames}))
    latents = engine.services.tensors.load(result.outputs["denoise"]["latents"]["latents_name"]).as_subclass(torch.Tensor)

    assert torch.equal(latents, with_diffusers(pipeline, num_frames=frames).transpose(1, 2))
    theirs = with_diffusers(pipeline, num_frames=frames, output_type="pil", decode_chunk_size=4)[0]
    assert np.array_equal(ours, np.stack([np.asarray(frame) for frame in theirs]))
    assert result.outputs["decode"]["num_frames"] == frames and result.outputs["decode"]["fps"] == 12.0
    assert (result.outputs["denoise"]["width"], result.outputs["denoise"]["height"]) == (WIDTH, HEIGHT)


def test_the_loader_tells_what_the_model_was_trained_on(engine: Engine, model: dict[str, Any], image: dict[str, str]) -> None:
    graph = image_to_video(model, image)
    graph["nodes"]["denoise"].pop("num_frames")
    connect(graph, "loader.num_frames", "denoise.num_frames")
    connect(graph, "loader.fps", "denoise.fps")

    outputs = engine.run(graph).outputs
    assert (outputs["loader"]["num_frames"], outputs["loader"]["fps"]) == (14, 7)
    assert outputs["decode"]["num_frames"] == 14 and outputs["decode"]["fps"] == 7.0


def test_every_step_is_told_with_a_picture_and_every_frame_of_the_decode(
    engine: Engine, model: dict[str, Any], image: dict[str, str]
) -> None:
    told: list[tuple[str, bool]] = []

    def listen(event: Any) -> None:
        if type(event).__name__ == "InvocationProgressEvent" and not event.message.startswith("Loading model"):
            told.append((event.message, event.image is not None))

    engine.run(image_to_video(model, image, denoise={"num_frames": 4}), on_event=listen)

    assert told[:4] == [
        ("Looking at the start image", False),
        ("Encoding the start image", False),
        ("Denoising step 1/2", True),
        ("Denoising step 2/2", True),
    ]
    assert [message for message, _ in told[4:8]] == [f"Decoding frame {index}/4" for index in range(1, 5)]


@pytest.mark.parametrize(("frames", "warned"), [(14, False), (25, True), (4, True)])
def test_another_number_of_frames_than_the_trained_one_is_warned_of(
    engine: Engine, model: dict[str, Any], image: dict[str, str], frames: int, warned: bool
) -> None:
    from invokeai_video_nodes.nodes.denoise_svd import SVDDenoiseInvocation

    outputs = engine.run(image_to_video(model, image, denoise={"num_frames": 4})).outputs["loader"]
    node = SVDDenoiseInvocation(id="denoise", model=outputs["model"], vae=outputs["vae"], image=image, num_frames=frames, steps=1)
    context, told = engine.context(node), []
    context.logger.warning = told.append
    node.invoke(context)

    assert told == ([f"This model was trained on 14 frames; {frames} frames may move poorly."] if warned else [])


def test_the_image_encoder_and_the_vae_are_free_to_be_moved_away_before_the_unet_loads(
    engine: Engine, model: dict[str, Any], image: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import UNetSpatioTemporalConditionModel

    locked, forward = set(), UNetSpatioTemporalConditionModel.forward

    def watched(self: Any, *arguments: Any, **options: Any) -> Any:
        cached = engine.services.model_manager.load.ram_cache._cached_models
        locked.update(key.split(":")[1] for key, entry in cached.items() if entry.is_locked)
        return forward(self, *arguments, **options)

    monkeypatch.setattr(UNetSpatioTemporalConditionModel, "forward", watched)
    engine.run(image_to_video(model, image, denoise={"num_frames": 4}))

    assert locked == {"unet"}


@pytest.mark.parametrize(
    ("fields", "size"),
    [({"size": "trained"}, (1024, 576)), ({"size": "ideal"}, (896, 640)), ({"size": "own", "width": 72, "height": 40}, (72, 40))],
)
def test_the_start_image_gets_the_size_that_was_asked_for(
    engine: Engine, upload: Callable[..., dict[str, str]], fields: dict[str, Any], size: tuple[int, int]
) -> None:
    graph: Graph = {"nodes": {}, "edges": []}
    add(graph, "start", "svd_start_image", image=upload(start_picture(64, 48)), **fields)

    output = engine.run(graph).outputs["start"]
    assert (output["width"], output["height"]) == size
    assert engine.services.images.get_pil_image(output["image"]["image_name"]).size == size


def test_a_picture_that_fits_already_stays_the_one_it_is(engine: Engine, upload: Callable[..., dict[str, str]]) -> None:
    given = upload(Image.new("RGB", (768, 768), "teal"))
    graph: Graph = {"nodes": {}, "edges": []}
    add(graph, "start", "svd_start_image", image=given)

    assert engine.run(graph).outputs["start"]["image"] == given


def test_any_picture_runs_through_the_start_image_node(
    engine: Engine, model: dict[str, Any], upload: Callable[..., dict[str, str]]
) -> None:
    graph = image_to_video(model, {}, denoise={"num_frames": 4})
    graph["nodes"]["denoise"].pop("image")
    add(graph, "start", "svd_start_image", image=upload(start_picture(65, 47)), size="own", width=64, height=40, how="fit")
    connect(graph, "start.image", "denoise.image")

    output = engine.run(graph).outputs["decode"]
    assert (output["width"], output["height"]) == (64, 40)
