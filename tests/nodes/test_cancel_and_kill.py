"""Canceling ends a run within one step or frame and leaves nothing; a killed process leaves nothing after the next start."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from graphs import text_to_video

from invokeai_video_nodes import register
from invokeai_video_nodes.pipelines.mp4 import temporary_name

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(("node", "message"), [("denoise", "Denoising step 2/40"), ("decode", "Decoding frame 3/64")])
def test_canceling_ends_within_a_step_or_frame_and_leaves_nothing(
    engine: Engine,
    tiny_model: dict[str, Any],
    leftovers: Callable[[], list[Path]],
    video_count: Callable[[], int],
    node: str,
    message: str,
) -> None:
    from invokeai_video_nodes.headless import RunCanceled

    before, after_cancel = video_count(), []

    def cancel_at(event: Any) -> None:
        if type(event).__name__ != "InvocationProgressEvent":
            return
        if after_cancel:
            after_cancel.append(event.message)
        elif event.message == message:
            after_cancel.append(event.message)
            engine.cancel()

    steps = {"steps": 40} if node == "denoise" else {"steps": 1, "num_frames": 64}
    with pytest.raises(RunCanceled):
        engine.run(text_to_video(tiny_model, denoise=steps), on_event=cancel_at)

    # The flag travels through InvokeAI's event loop, so a tiny model may finish a step or two meanwhile.
    assert 1 <= len(after_cancel) < 20
    assert video_count() == before and not leftovers()
    cache = engine.services.model_manager.load.ram_cache._cached_models
    assert not [key for key, entry in cache.items() if entry.is_locked]
    assert engine.run(text_to_video(tiny_model)).videos, "the next run works"


def test_a_step_of_the_core_is_the_last_one_once_the_context_says_canceled(engine: Engine, tiny_model: dict[str, Any]) -> None:
    """Counted exactly, with the node called directly: no step begins after the flag is up."""
    from invokeai.app.services.session_processor.session_processor_common import CanceledException

    from invokeai_video_nodes.nodes.denoise_z_image import ZImageVideoDenoiseInvocation

    outputs = engine.run(text_to_video(tiny_model)).outputs
    node = ZImageVideoDenoiseInvocation(
        id="denoise",
        num_frames=8,
        width=64,
        height=64,
        steps=30,
        transformer=outputs["model"]["transformer"],
        positive_conditioning=outputs["prompt"]["conditioning"],
    )
    asked: list[bool] = []

    def is_canceled() -> bool:
        asked.append(True)
        return len(asked) > 3

    with pytest.raises(CanceledException):
        node.invoke(engine.context(node, is_canceled=is_canceled))

    assert len(asked) == 4


def test_a_killed_encode_leaves_no_gallery_entry_and_its_file_is_gone_at_the_next_start(
    engine: Engine, leftovers: Callable[[], list[Path]], tiny_folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    killed = subprocess.run(_killed_run(root, tiny_folder, at="Decoding frame 5/64"), env=_environment(), timeout=600)

    unfinished = list((root / "outputs" / "unfinished-videos").glob(".*.part"))
    with sqlite3.connect(root / "databases" / "invokeai.db") as database:
        records = database.execute("SELECT count(*) FROM videos").fetchone()
    assert killed.returncode == -signal.SIGKILL
    assert len(unfinished) == 1, "the kill came while the file was growing"
    assert records == (0,) and not list((root / "outputs" / "videos").glob("*.mp4"))

    # What InvokeAI calls when it starts, with the leftover lying where this engine would have left it.
    here = engine.root / "outputs" / "unfinished-videos"
    here.mkdir(exist_ok=True)
    unfinished[0].rename(here / unfinished[0].name)
    assert leftovers()
    register()
    assert not leftovers()


def test_a_start_leaves_alone_what_a_living_process_is_writing(engine: Engine) -> None:
    folder = engine.root / "outputs" / "unfinished-videos"
    folder.mkdir(exist_ok=True)
    growing = folder / temporary_name()
    growing.touch()

    register()

    assert growing.exists()
    growing.unlink()


def _environment() -> dict[str, str]:
    path = os.pathsep.join(str(REPOSITORY / part) for part in (".", "patches", "tests"))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def _killed_run(root: Path, folder: Path, *, at: str) -> list[str]:
    """A process that makes a long clip and kills itself at a progress message."""
    code = f"""
    import os, signal
    from graphs import text_to_video
    from invokeai_video_nodes.headless import Engine

    def kill(event):
        if getattr(event, "message", "") == {at!r}:
            os.kill(os.getpid(), signal.SIGKILL)

    with Engine({str(root)!r}, log_level="critical") as engine:
        model = engine.model(engine.install({str(folder)!r}))
        graph = text_to_video(model, denoise={{"num_frames": 64, "steps": 1}}, decode={{"crf": 0}})
        engine.run(graph, on_event=kill)
    """
    return [sys.executable, "-c", textwrap.dedent(code)]
