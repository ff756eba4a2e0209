"""No failure costs a render: while a clip is decoded its latents lie on disk, and a decode alone makes the video from there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import HunyuanVideoDecoder3D
from graphs import Graph, add, connect, text_to_video
from small_disk import small_disk

from invokeai_video_nodes.pipelines.frames import read_frames

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine

REPOSITORY = Path(__file__).parents[2]
FRAMES = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_hunyuan import tiny_text_to_video

    folder = tmp_path_factory.mktemp("kept") / "tiny-hunyuan"
    tiny_text_to_video().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(engine: Engine, folder: Path) -> dict[str, Any]:
    return engine.model(engine.install(folder))


@pytest.fixture(autouse=True)
def nothing_kept(engine: Engine) -> None:
    """Failed decodes of other tests leave their latents in this engine, as they should."""
    for file in kept(engine.root):
        file.unlink()


def whole(model: dict[str, Any], *, frames: int = FRAMES) -> Graph:
    """Prompt to MP4."""
    graph: Graph = {"nodes": {}, "edges": []}
    add(graph, "loader", "hunyuan_video_model_loader", model=model)
    add(graph, "prompt", "hunyuan_video_text_encoder", prompt="a red circle")
    add(graph, "denoise", "hunyuan_video_denoise", num_frames=frames, width=32, height=32, steps=1, seed=3, fps=7)
    add(graph, "decode", "video_vae_decode", crf=0, tile_frames=8)
    connect(graph, "loader.encoder", "prompt.encoder")
    connect(graph, "loader.transformer", "denoise.transformer")
    connect(graph, "prompt.conditioning", "denoise.positive_conditioning")
    connect(graph, "denoise.latents", "decode.latents")
    connect(graph, "loader.vae", "decode.vae")
    return graph


def decode_only(model: dict[str, Any], name: str, *, loader: str = "hunyuan_video_model_loader", decode: str = "video_vae_decode") -> Graph:
    """What the artist runs after a failure."""
    graph: Graph = {"nodes": {}, "edges": []}
    add(graph, "loader", loader, model=model)
    add(graph, "latents", "video_latents_load", name=name)
    add(graph, "decode", decode, crf=0)
    connect(graph, "latents.latents", "decode.latents")
    connect(graph, "loader.vae", "decode.vae")
    return graph


def kept(root: Path) -> list[Path]:
    return sorted((root / "outputs" / "video-latents").glob("*"))


def frames_of(path: Path) -> np.ndarray:
    return np.stack(list(read_frames(path)))


def failure(engine: Engine, graph: Graph) -> Any:
    from invokeai_video_nodes.headless import NodeError

    with pytest.raises(NodeError) as caught:
        engine.run(graph)
    return caught.value


@contextmanager
def broken(error: Exception) -> Iterator[None]:
    """The video VAE's decoder raises `error` meanwhile."""

    def fail(self: Any, z: torch.Tensor) -> torch.Tensor:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HunyuanVideoDecoder3D, "forward", fail)
        yield


def test_after_a_failed_decode_the_latents_are_found_and_a_decode_alone_makes_the_video(engine: Engine, model: dict[str, Any]) -> None:
    expected = engine.run(whole(model))
    assert not kept(engine.root), "nothing is left where all went well"
    with broken(RuntimeError("the driver reset")):
        error = failure(engine, whole(model))
    (path,) = kept(engine.root)

    result = engine.run(decode_only(model, path.name))
    from_path = engine.run(decode_only(model, str(path)))

    assert "the driver reset" in error.message and str(path) in error.message and "Load Video Latents" in error.message
    assert np.array_equal(frames_of(result.videos[0]), frames_of(expected.videos[0]))
    assert np.array_equal(frames_of(from_path.videos[0]), frames_of(expected.videos[0]))
    assert result.outputs["decode"]["fps"] == 7.0, "what is known of the clip came back too"
    assert kept(engine.root) == [path], "a file that was there before is the artist's to delete"
    path.unlink()


def test_where_the_smallest_tile_does_not_fit_the_error_names_the_file_and_keeps_its_kind(engine: Engine, model: dict[str, Any]) -> None:
    with broken(torch.OutOfMemoryError("CUDA out of memory")):
        error = failure(engine, whole(model))
        again = failure(engine, whole(model))

    (path,) = kept(engine.root)
    assert "smallest tile" in error.message and str(path) in error.message and error.error_type == "OutOfMemory"
    assert str(path) in again.message, "a second failure leaves no second file"
    path.unlink()


def test_z_image_video_s_decode_keeps_its_latents_too(engine: Engine, tiny_model: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = engine.run(text_to_video(tiny_model, decode={"crf": 0}))
    from diffusers import AutoencoderKL

    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderKL, "decode", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("the driver reset")))
        failure(engine, text_to_video(tiny_model))
    (path,) = kept(engine.root)
    graph = decode_only(tiny_model, path.name, loader="z_image_video_model_loader", decode="z_image_video_decode")
    result = engine.run(graph)

    assert np.array_equal(frames_of(result.videos[0]), frames_of(expected.videos[0]))
    path.unlink()


def test_a_cancel_by_the_artist_leaves_no_file_and_a_stopping_server_leaves_one(engine: Engine, model: dict[str, Any]) -> None:
    from invokeai.app.services.session_processor.session_processor_common import CanceledException

    from invokeai_video_nodes.headless import RunCanceled
    from invokeai_video_nodes.nodes.vae import VideoVAEDecodeInvocation

    def cancel_in_decode(event: Any) -> None:
        if getattr(event, "message", "").startswith("Decoding"):
            engine.cancel()

    with pytest.raises(RunCanceled):
        engine.run(whole(model, frames=65), on_event=cancel_in_decode)
    after_cancel = kept(engine.root)
    outputs = engine.run(whole(model)).outputs
    node = VideoVAEDecodeInvocation(id="decode", latents=outputs["denoise"]["latents"], vae=outputs["loader"]["vae"])
    with pytest.raises(CanceledException):
        node.invoke(engine.context(node, is_canceled=lambda: True))  # the flag that a stopping server raises

    assert after_cancel == []
    (path,) = kept(engine.root)
    path.unlink()


def test_after_a_killed_process_the_next_one_makes_the_video_from_the_latents(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"

    killed = _process(root, folder, "engine.run(whole(model, frames=65), on_event=kill)")
    (path,) = kept(root)
    resumed = _process(root, folder, f"print('frames', engine.run(decode_only(model, {path.name!r})).outputs['decode']['num_frames'])")

    assert killed.returncode == -signal.SIGKILL
    assert "frames 65" in resumed.stdout, resumed.stderr[-2000:]


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "clip-short.safetensors",
        "../clip-{hash}.safetensors",
        "{folder}/../clip-{hash}.safetensors",
        "{folder}/inner/clip-{hash}.safetensors",
        "..\\clip-{hash}.safetensors",
        "",
    ],
)
def test_a_name_that_leads_out_of_the_folder_is_refused(engine: Engine, model: dict[str, Any], name: str) -> None:
    folder = engine.root / "outputs" / "video-latents"
    name = name.format(folder=folder, hash="0" * 32)

    assert "latents file: expected the name of a file in the folder video-latents" in failure(engine, decode_only(model, name)).message


def test_a_missing_a_linked_and_a_damaged_file_are_refused(engine: Engine, model: dict[str, Any], tmp_path: Path) -> None:
    folder = engine.root / "outputs" / "video-latents"
    folder.mkdir(exist_ok=True)
    names = [f"clip-{digit * 32}.safetensors" for digit in "012"]
    (tmp_path / "outside").write_bytes(b"secret")
    (folder / names[1]).symlink_to(tmp_path / "outside")
    (folder / names[2]).write_bytes(b"damaged")

    messages = [failure(engine, decode_only(model, name)).message for name in names]

    assert "expected a file that is still there" in messages[0] and "expected a file that is still there" in messages[1]
    assert re.search("expected a file that a decode of this pack wrote", messages[2])
    for path in kept(engine.root):
        path.unlink()


def test_a_disk_without_room_for_the_latents_does_not_end_the_decode(
    engine: Engine, model: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = engine.root / "outputs" / "video-latents"
    if folder.exists():
        folder.rmdir()
    folder.write_text("in the way")

    result = engine.run(whole(model))

    assert len(frames_of(result.videos[0])) == FRAMES
    folder.unlink()


def test_a_failure_says_that_the_latents_could_not_be_kept(engine: Engine, model: dict[str, Any]) -> None:
    folder = engine.root / "outputs" / "video-latents"
    if folder.exists():
        folder.rmdir()
    folder.write_text("in the way")

    with broken(torch.OutOfMemoryError("CUDA out of memory")):
        error = failure(engine, whole(model))

    assert "smallest tile" in error.message and error.error_type == "OutOfMemory"
    assert f"The clip's latents could not be kept, so the clip has to be made anew ({folder}: File exists)." in error.message
    assert "Load Video Latents" not in error.message
    folder.unlink()


@pytest.mark.parametrize(("kib", "told"), [(8, "could not be kept"), (32, "are kept in")], ids=["no room at all", "for the latents"])
def test_a_full_disk_is_told_with_what_became_of_the_latents(engine: Engine, model: dict[str, Any], kib: int, told: str) -> None:
    latents = torch.randn(1, 4, 17, 4, 4, generator=torch.Generator().manual_seed(0))
    graph: Graph = {"nodes": {}, "edges": []}
    add(graph, "loader", "hunyuan_video_model_loader", model=model)
    with small_disk(engine.root / "outputs", kib=kib):
        add(graph, "decode", "video_vae_decode", crf=0, latents={"latents_name": engine.services.tensors.save(latents)})
        connect(graph, "loader.vae", "decode.vae")
        error = failure(engine, graph)
        files = kept(engine.root)

    assert "the disk is full" in error.message and "the unfinished video was removed" in error.message
    assert f"The clip's latents {told}" in error.message and "0x" not in error.message
    assert all(str(file) in error.message for file in files) and len(files) == ("are kept" in told)


def _process(root: Path, folder: Path, last_line: str) -> subprocess.CompletedProcess[str]:
    """A process of its own on `root`; `kill` ends it hard once the first tiles are decoded."""
    code = f"""
    import os, signal, sys
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    from test_kept_latents import decode_only, whole
    from invokeai_video_nodes.headless import Engine

    def kill(event):
        if getattr(event, "message", "").startswith("Decoding latent frame"):
            os.kill(os.getpid(), signal.SIGKILL)

    with Engine({str(root)!r}, log_level="critical") as engine:
        model = engine.model(engine.install({str(folder)!r}))
        {last_line}
    """
    path = os.pathsep.join(str(REPOSITORY / part) for part in (".", "patches", "tests"))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, timeout=600, text=True, capture_output=True)
