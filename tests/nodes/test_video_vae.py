"""Video VAE nodes in InvokeAI's graph engine: encode, decode in tiles, out of memory, cancel."""

from __future__ import annotations

import gc
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import HunyuanVideoDecoder3D, HunyuanVideoEncoder3D
from graphs import Graph, add, connect, picture
from hunyuan_graphs import refused_unloaded
from PIL import Image
from pydantic import ValidationError
from tiny_hunyuan import tiny_text_to_video, tiny_text_to_video_15

from invokeai_video_nodes.commands.run import import_media
from invokeai_video_nodes.pipelines.frames import read_frames
from invokeai_video_nodes.pipelines.mp4 import write_mp4
from invokeai_video_nodes.pipelines.vae3d import TilePlan, decode_video, encode_video

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine

LATENT_FRAMES, SIDE = 13, 4
LATENTS = torch.randn(1, 4, LATENT_FRAMES, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
LARGE, SMALL = (TilePlan(frames=frames, height=SIDE, width=SIDE, margin=1) for frames in (4, 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("video-vae") / "tiny-hunyuan"
    tiny_text_to_video().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vae(engine: Engine, folder: Path) -> dict[str, Any]:
    """The value of a VAE field."""
    graph: Graph = {"nodes": {}, "edges": []}
    add(graph, "loader", "hunyuan_video_model_loader", model=engine.model(engine.install(folder)))
    return engine.run(graph).outputs["loader"]["vae"]


@pytest.fixture
def unloaded_vae(engine: Engine, folder: Path, tmp_path: Path) -> dict[str, Any]:
    """The value of a VAE field whose model nobody has loaded."""
    graph: Graph = {"nodes": {}, "edges": []}
    copy = shutil.copytree(folder, tmp_path / "unloaded")
    add(graph, "loader", "hunyuan_video_model_loader", model=engine.model(engine.install(copy)))
    return engine.run(graph).outputs["loader"]["vae"]


@pytest.fixture(scope="module")
def core(folder: Path) -> AutoencoderKLHunyuanVideo:
    """The same VAE outside InvokeAI."""
    return AutoencoderKLHunyuanVideo.from_pretrained(folder / "vae", local_files_only=True).eval()


@pytest.fixture
def stored(engine: Engine) -> dict[str, str]:
    """LATENTS as the value of a latents field."""
    return {"latents_name": engine.services.tensors.save(LATENTS)}


def one_node(node_type: str, **fields: Any) -> Graph:
    graph: Graph = {"nodes": {}, "edges": []}
    add(graph, "node", node_type, **fields)
    return graph


def fails_at(monkeypatch: pytest.MonkeyPatch, calls: set[int], error: Exception, of: type = HunyuanVideoDecoder3D) -> None:
    """Let the calls of these numbers, from 0 on, of the VAE's decoder raise."""
    forward, made = of.forward, iter(range(10**6))

    def failing(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if next(made) in calls:
            raise error
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(of, "forward", failing)


def pictures(paths: list[Path]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])


@pytest.mark.parametrize("failing", [0, 2, 3], ids=["first", "third", "last"])
def test_a_video_is_finished_where_memory_runs_out_and_equals_a_run_with_those_tiles(
    engine: Engine,
    vae: dict[str, Any],
    core: AutoencoderKLHunyuanVideo,
    stored: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    failing: int,
) -> None:
    change_at = 3 * failing
    expected = decode_video(core, LATENTS, plan=lambda begin: LARGE if begin < change_at else SMALL)
    write_mp4(expected, tmp_path / "expected.mp4", fps=24, width=8 * SIDE, height=8 * SIDE, crf=0)
    fails_at(monkeypatch, {failing}, torch.OutOfMemoryError("CUDA out of memory"))

    result = engine.run(one_node("video_vae_decode", latents=stored, vae=vae, tile_frames=16, crf=0))

    assert result.outputs["node"]["num_frames"] == 4 * (LATENT_FRAMES - 1) + 1
    written, wanted = (np.stack(list(read_frames(path))) for path in (result.videos[0], tmp_path / "expected.mp4"))
    assert np.array_equal(written, wanted)


def test_frames_become_images_bit_for_bit_as_the_core_decodes_them(
    engine: Engine, vae: dict[str, Any], core: AutoencoderKLHunyuanVideo, stored: dict[str, str]
) -> None:
    result = engine.run(one_node("video_vae_decode_frames", latents=stored, vae=vae, tile_frames=16))

    assert np.array_equal(pictures(result.images), np.stack(list(decode_video(core, LATENTS, plan=LARGE))))


@pytest.mark.parametrize("node", ["video_vae_decode", "video_vae_decode_frames"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tile_frames": 10}, "tile_frames: expected 0 or a multiple of 4 frames from 8 on, got 10 (nearest valid value: 8)"),
        ({"tile_frames": -4}, "tile_frames: expected 0 or a multiple of 4 frames from 8 on, got -4 (nearest valid value: 8)"),
        ({"tile_size": 8}, "tile_size: expected 0 or a multiple of 8 pixels from 64 on, got 8 (nearest valid value: 64)"),
    ],
)
def test_tiles_that_no_vae_can_take_are_refused_when_the_graph_is_queued(
    engine: Engine, stored: dict[str, str], node: str, fields: dict[str, int], message: str
) -> None:
    queued = engine.services.session_queue.get_queue_status("default").total
    with pytest.raises(ValidationError) as caught:
        engine.run(one_node(node, latents=stored, **fields))

    # The web interface shows each of these without "Value error".
    assert [error["msg"] for error in caught.value.errors()] == [f"Value error, {message}"]
    assert engine.services.session_queue.get_queue_status("default").total == queued


def test_tiles_off_the_grid_of_this_vae_are_refused_by_the_decode(engine: Engine, tmp_path: Path) -> None:
    from invokeai_video_nodes.headless import NodeError

    tiny_text_to_video_15().save_pretrained(tmp_path / "tiny-15")
    graph = one_node("video_vae_decode", tile_size=72, latents={"latents_name": engine.services.tensors.save(torch.zeros(1, 4, 2, 4, 4))})
    add(graph, "loader", "hunyuan_video_model_loader", model=engine.model(engine.install(tmp_path / "tiny-15")))
    connect(graph, "loader.vae", "node.vae")

    with pytest.raises(NodeError, match=r"a multiple of 16 pixels from 128 on, got 72 \(nearest valid value: 128\)"):
        engine.run(graph)


def test_tiles_take_no_connection_because_a_refused_one_would_cost_the_latents() -> None:
    from invokeai.app.invocations.fields import Input

    from invokeai_video_nodes.nodes.vae import VideoVAEDecodeFramesInvocation, VideoVAEDecodeInvocation

    kinds = {
        cls.model_fields[name].json_schema_extra["input"]
        for cls in (VideoVAEDecodeInvocation, VideoVAEDecodeFramesInvocation)
        for name in ("tile_frames", "tile_size")
    }

    assert kinds == {Input.Direct}


@pytest.fixture(scope="module")
def video(engine: Engine, vae: dict[str, Any]) -> dict[str, str]:
    """A clip of 49 frames of 32x32 in the gallery."""
    latents = {"latents_name": engine.services.tensors.save(LATENTS)}
    result = engine.run(one_node("video_vae_decode", latents=latents, vae=vae, fps=12))
    return {"video_name": result.outputs["node"]["video"]["video_name"]}


def encoded(engine: Engine, graph: Graph) -> tuple[torch.Tensor, dict[str, Any]]:
    output = engine.run(graph).outputs["node"]
    return engine.services.tensors.load(output["latents"]["latents_name"]).as_subclass(torch.Tensor), output


def test_a_video_becomes_the_latents_that_the_core_makes_of_its_frames(
    engine: Engine, vae: dict[str, Any], core: AutoencoderKLHunyuanVideo, video: dict[str, str]
) -> None:
    latents, output = encoded(engine, one_node("video_vae_encode", video=video, vae=vae, num_frames=9))

    frames = read_frames(engine.services.videos.get_path(video["video_name"]))
    assert torch.equal(latents, encode_video(core, frames, num_frames=9, plan=TilePlan(frames=2, height=SIDE, width=SIDE, margin=1)))
    assert (output["num_frames"], output["width"], output["height"]) == (9, 32, 32)


def test_a_video_is_encoded_whole_and_keeps_its_speed(engine: Engine, vae: dict[str, Any], video: dict[str, str]) -> None:
    latents, output = encoded(engine, one_node("video_vae_encode", video=video, vae=vae))
    again = engine.run(one_node("video_vae_decode", latents=output["latents"], vae=vae)).outputs["node"]

    assert latents.shape == LATENTS.shape and output["num_frames"] == 49
    assert (again["num_frames"], again["fps"]) == (49, 12.0)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """InvokeAI's logger writes by itself; let pytest hear it."""
    logger = logging.getLogger("InvokeAI")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, logger="InvokeAI"):
        yield caplog
    logger.removeHandler(caplog.handler)


def import_video(engine: Engine, folder: Path, *, count: int, width: int, height: int) -> dict[str, str]:
    """Put a clip into the gallery, as an upload would."""
    frames = (picture(width, height, shade=index) for index in range(count))
    write_mp4(frames, folder / "clip.mp4", fps=8, width=width, height=height)
    return {"video_name": import_media(engine.services, "video_name", folder / "clip.mp4")}


@pytest.mark.parametrize(("width", "height", "nearest"), [(100, 60, (96, 64)), (108, 60, (112, 64)), (8, 6, (16, 16))])
def test_a_video_off_the_grid_gives_its_first_4n_1_frames_at_the_nearest_size_and_the_log_says_so(
    engine: Engine,
    vae: dict[str, Any],
    core: AutoencoderKLHunyuanVideo,
    tmp_path: Path,
    log: pytest.LogCaptureFixture,
    width: int,
    height: int,
    nearest: tuple[int, int],
) -> None:
    video = import_video(engine, tmp_path, count=12, width=width, height=height)

    latents, output = encoded(engine, one_node("video_vae_encode", video=video, vae=vae))

    taken = read_frames(engine.services.videos.get_path(video["video_name"]), limit=9, size=nearest)
    plan = TilePlan(frames=2, height=nearest[1] // 8, width=nearest[0] // 8, margin=1)
    assert (output["num_frames"], output["width"], output["height"]) == (9, *nearest)
    assert torch.equal(latents, encode_video(core, taken, num_frames=9, plan=plan))
    assert f"took 9 of 12 frames at {nearest[0]}x{nearest[1]}" in log.text


def test_a_side_set_by_hand_stays_and_the_other_is_the_nearest(engine: Engine, vae: dict[str, Any], tmp_path: Path) -> None:
    video = import_video(engine, tmp_path, count=6, width=100, height=60)

    _, output = encoded(engine, one_node("video_vae_encode", video=video, vae=vae, width=32))

    assert (output["num_frames"], output["width"], output["height"]) == (5, 32, 64)


@pytest.mark.parametrize(
    ("count", "fields", "message"),
    [
        (4, {}, "video: expected at least 5 frames, got 4"),
        (4, {"num_frames": 5}, "video: expected at least 5 frames, got 4"),
        (12, {"num_frames": 12}, "(of 12 that there are): expected 5 to 9 and of the form 4n+1, got 12 (nearest valid value: 9)"),
        (133, {"num_frames": 133}, "expected 5 to 129 and of the form 4n+1, got 133 (nearest valid value: 129)"),
    ],
)
def test_a_count_that_no_clip_has_is_refused_before_the_vae_is_loaded(
    engine: Engine, unloaded_vae: dict[str, Any], tmp_path: Path, count: int, fields: dict[str, Any], message: str
) -> None:
    graph = one_node("video_vae_encode", vae=unloaded_vae, video=import_video(engine, tmp_path, count=count, width=16, height=16), **fields)

    assert message in refused_unloaded(engine, graph)


def test_too_few_images_are_refused(engine: Engine, unloaded_vae: dict[str, Any], upload: Callable[..., dict[str, str]]) -> None:
    graph = one_node("video_vae_encode", images=[upload(picture(32, 32))] * 4, vae=unloaded_vae)

    assert "images: expected at least 5 frames, got 4" in refused_unloaded(engine, graph)


def test_images_are_encoded_in_playing_order_and_stretched_only_where_asked(
    engine: Engine, vae: dict[str, Any], core: AutoencoderKLHunyuanVideo, upload: Callable[..., dict[str, str]]
) -> None:
    frames = [picture(32, 48, shade=shade) for shade in (0, 40, 80, 120, 160)]
    images = [upload(frame) for frame in frames]

    latents, output = encoded(engine, one_node("video_vae_encode", images=images, vae=vae))
    stretched, _ = encoded(engine, one_node("video_vae_encode", images=images, vae=vae, width=64, height=32))

    plan = TilePlan(frames=2, height=6, width=4, margin=1)
    assert torch.equal(latents, encode_video(core, iter(frames), num_frames=5, plan=plan))
    assert (output["num_frames"], output["width"], output["height"]) == (5, 32, 48)
    assert stretched.shape == (1, 4, 2, 4, 8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_frames": 12}, "expected 5 to 49 and of the form 4n+1, got 12 (nearest valid value: 13)"),
        ({"num_frames": 1}, "expected 5 to 49 and of the form 4n+1, got 1 (nearest valid value: 5)"),
        ({"num_frames": 53}, "num_frames (of 49 that there are): expected 5 to 49 and of the form 4n+1, got 53 (nearest valid value: 49)"),
        ({"width": 40}, "width: expected a positive multiple of 16 pixels, got 40 (nearest valid value: 32)"),
        ({"images": [{"image_name": "any.png"}]}, "source: expected either a video or at least one image, got both"),
        ({"video": None}, "source: expected either a video or at least one image, got neither"),
    ],
)
def test_what_no_latents_can_hold_is_refused_before_the_vae_is_loaded(
    engine: Engine, vae: dict[str, Any], video: dict[str, str], fields: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from invokeai_video_nodes.headless import NodeError

    fails_at(monkeypatch, set(range(10)), AssertionError("the encoder ran"), HunyuanVideoEncoder3D)
    with pytest.raises(NodeError) as caught:
        engine.run(one_node("video_vae_encode", **{"video": video, "vae": vae, **fields}))

    assert message in caught.value.message


def test_images_of_two_sizes_are_refused(engine: Engine, vae: dict[str, Any], upload: Callable[..., dict[str, str]]) -> None:
    from invokeai_video_nodes.headless import NodeError

    images = [upload(picture(32, 32))] * 4 + [upload(picture(48, 32))]
    with pytest.raises(NodeError, match="image 4: expected 32x32 as image 0"):
        engine.run(one_node("video_vae_encode", images=images, vae=vae))


@pytest.mark.parametrize("failing", [0, 2])
def test_an_encode_goes_on_where_memory_runs_out(
    engine: Engine, vae: dict[str, Any], video: dict[str, str], monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    fails_at(monkeypatch, {failing}, torch.OutOfMemoryError("CUDA out of memory"), HunyuanVideoEncoder3D)

    latents, _ = encoded(engine, one_node("video_vae_encode", video=video, vae=vae, num_frames=41))

    assert latents.shape == (1, 4, 11, SIDE, SIDE) and bool(latents.isfinite().all())


def test_a_cancel_stops_within_a_tile_gives_the_memory_back_and_the_next_run_is_right(
    engine: Engine, vae: dict[str, Any], core: AutoencoderKLHunyuanVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    from invokeai.app.services.session_processor.session_processor_common import CanceledException

    from invokeai_video_nodes.nodes.vae import VideoVAEDecodeInvocation

    name = engine.services.tensors.save(LATENTS)
    node = VideoVAEDecodeInvocation(id="node", latents={"latents_name": name}, vae=vae, tile_frames=8)
    pieces: list[int] = []
    forward = HunyuanVideoDecoder3D.forward
    monkeypatch.setattr(HunyuanVideoDecoder3D, "forward", lambda self, z: pieces.append(1) or forward(self, z))
    node.invoke(engine.context(node))  # so that the VAE and what is made once are there
    before, all_pieces = tensor_bytes(), len(pieces)
    pieces.clear()

    with pytest.raises(CanceledException):
        node.invoke(engine.context(node, is_canceled=lambda: len(pieces) >= 2))
    after, until_cancel = tensor_bytes(), len(pieces)
    result = engine.run(one_node("video_vae_decode_frames", latents={"latents_name": name}, vae=vae, tile_frames=8))

    assert all_pieces > 4 and until_cancel == 2
    assert after - before < 8 * SIDE * 8 * SIDE * 3 * 4, "not even one frame is left in memory"
    assert np.array_equal(pictures(result.images), np.stack(list(decode_video(core, LATENTS, plan=SMALL))))


def tensor_bytes() -> int:
    gc.collect()
    return sum(value.untyped_storage().nbytes() for value in _tensors())


def _tensors() -> Iterator[torch.Tensor]:
    seen = set()
    for value in gc.get_objects():
        if type(value) is torch.Tensor and value.untyped_storage().data_ptr() not in seen:
            seen.add(value.untyped_storage().data_ptr())
            yield value
