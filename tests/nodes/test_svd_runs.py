"""Stable Video Diffusion's runs that end early: canceled anywhere, out of memory, broken; and the runs after them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder
from graphs import Graph, add, connect
from svd_graphs import image_to_video, start_picture
from tiny_svd import tiny_svd

from invokeai_video_nodes.pipelines.frames import read_frames

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine

SHORT = {"num_frames": 5}


@pytest.fixture(scope="module")
def model(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("svd") / "tiny-svd-runs"
    tiny_svd().save_pretrained(folder)
    return engine.model(engine.install(folder))


@pytest.fixture
def graph(model: dict[str, Any], upload: Callable[..., dict[str, str]]) -> Graph:
    return image_to_video(model, upload(start_picture()), denoise=SHORT)


@pytest.fixture(autouse=True)
def nothing_kept(engine: Engine) -> None:
    for file in kept(engine):
        file.unlink()


def kept(engine: Engine) -> list[Path]:
    return sorted((engine.root / "outputs" / "video-latents").glob("*"))


def frames_of(result: Any) -> np.ndarray:
    return np.stack(list(read_frames(result.videos[0])))


def failure(engine: Engine, graph: Graph) -> Any:
    from invokeai_video_nodes.headless import NodeError

    with pytest.raises(NodeError) as caught:
        engine.run(graph)
    return caught.value


def locked(engine: Engine) -> list[str]:
    cached = engine.services.model_manager.load.ram_cache._cached_models
    return [key for key, entry in cached.items() if entry.is_locked]


@pytest.mark.parametrize("layer", ["image_encoder", "vae encoder", "unet", "vae decoder"])
def test_a_cancel_within_a_model_call_ends_it_gives_memory_back_and_the_next_run_is_right(
    engine: Engine, graph: Graph, monkeypatch: pytest.MonkeyPatch, layer: str, leftovers: Callable[[], list[Path]]
) -> None:
    """The flag goes up in the first layer that runs, and the layer after it must not run."""
    from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D, UNetMidBlock2D
    from diffusers.models.unets.unet_3d_blocks import (
        CrossAttnDownBlockSpatioTemporal,
        MidBlockTemporalDecoder,
        UNetMidBlockSpatioTemporal,
        UpBlockTemporalDecoder,
    )
    from invokeai.app.services.shared.invocation_context import UtilInterface
    from transformers.models.clip.modeling_clip import CLIPEncoderLayer, CLIPVisionEmbeddings

    from invokeai_video_nodes.headless import RunCanceled

    first, later = {
        "image_encoder": (CLIPVisionEmbeddings, CLIPEncoderLayer),
        "vae encoder": (DownEncoderBlock2D, UNetMidBlock2D),
        "unet": (CrossAttnDownBlockSpatioTemporal, UNetMidBlockSpatioTemporal),
        "vae decoder": (MidBlockTemporalDecoder, UpBlockTemporalDecoder),
    }[layer]
    expected = frames_of(engine.run(graph))
    flag, ran = [], []

    def raising_the_flag(self: Any, *arguments: Any, **options: Any) -> Any:
        flag.append(True)
        engine.cancel()
        return inner(self, *arguments, **options)

    inner, asked = first.forward, UtilInterface.is_canceled
    with monkeypatch.context() as patch:
        patch.setattr(first, "forward", raising_the_flag)
        patch.setattr(later, "forward", lambda *_, **__: ran.append(True))
        patch.setattr(UtilInterface, "is_canceled", lambda self: bool(flag) or asked(self))
        with pytest.raises(RunCanceled):
            engine.run(graph)

    assert flag and not ran
    assert not locked(engine) and not leftovers() and not kept(engine)
    assert np.array_equal(frames_of(engine.run(graph)), expected)


def test_after_a_failed_decode_the_latents_are_found_and_a_decode_alone_makes_the_video(
    engine: Engine, model: dict[str, Any], graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = engine.run(graph)
    assert not kept(engine), "nothing is left where all went well"
    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderKLTemporalDecoder, "decode", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("the driver reset")))
        error = failure(engine, graph)
    (path,) = kept(engine)

    alone: Graph = {"nodes": {}, "edges": []}
    add(alone, "loader", "svd_model_loader", model=model)
    add(alone, "latents", "video_latents_load", name=path.name)
    add(alone, "decode", "svd_decode", crf=0, decode_chunk_size=4)
    connect(alone, "latents.latents", "decode.latents")
    connect(alone, "loader.vae", "decode.vae")
    result = engine.run(alone)

    assert "the driver reset" in error.message and str(path) in error.message and "Load Video Latents" in error.message
    assert np.array_equal(frames_of(result), frames_of(expected))
    assert result.outputs["decode"]["fps"] == 12.0, "what is known of the clip came back too"


def limited(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """A decoder for which more than `most` frames are too many; tells how many each call had."""
    calls, decode = [], AutoencoderKLTemporalDecoder.decode

    def forward(self: Any, latents: torch.Tensor, **options: Any) -> Any:
        calls.append(len(latents))
        if len(latents) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(self, latents, **options)

    monkeypatch.setattr(AutoencoderKLTemporalDecoder, "decode", forward)
    return calls


def test_where_memory_runs_out_the_decode_goes_on_with_half_as_many_frames(
    engine: Engine, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = limited(monkeypatch, most=2)

    assert engine.run(graph).outputs["decode"]["num_frames"] == 5
    assert calls == [4, 2, 2, 1]


def test_where_no_single_frame_fits_the_error_names_the_file_and_keeps_its_kind(
    engine: Engine, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, most=0)
    error = failure(engine, graph)

    (path,) = kept(engine)
    assert error.error_type == "OutOfMemory"
    assert "with a single frame per chunk" in error.message and str(path) in error.message


def test_chunk_size_zero_decodes_as_many_frames_at_once_as_memory_holds(
    engine: Engine, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    from invokeai_video_nodes.nodes import svd_decode

    graph["nodes"]["decode"]["decode_chunk_size"] = 0
    calls = limited(monkeypatch, most=99)
    engine.run(graph)
    frame = 64 * 48 * 32 * 4 * 11  # pixels, channels, bytes, widths: see `svd_decode_working_bytes`
    monkeypatch.setattr(svd_decode, "free_bytes", lambda device: int(2.5 * frame / 0.8))
    engine.run(graph)

    assert calls == [5, 2, 2, 1]


def test_weights_of_the_cached_models_are_as_before_after_a_run(engine: Engine, model: dict[str, Any], graph: Graph) -> None:
    def weights() -> dict[str, torch.Tensor]:
        cached = engine.services.model_manager.load.ram_cache._cached_models
        ours = {key: entry.cached_model.model for key, entry in cached.items() if key.startswith(model["key"])}
        modules = {key: module for key, module in ours.items() if isinstance(module, torch.nn.Module)}
        return {f"{key} {name}": value.clone() for key, module in modules.items() for name, value in module.state_dict().items()}

    engine.run(graph)
    before = weights()
    engine.run(graph)

    after = weights()
    assert len(before) > 300 and before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
