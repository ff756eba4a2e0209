"""`invokeai-video run`: a workflow or graph file in, the files that it makes out, through InvokeAI's own engine."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invokeai_video_nodes.commands.console import Console, ProgressBar
from invokeai_video_nodes.commands.results import copy_result, out_folder
from invokeai_video_nodes.headless import Engine, refuse_where_switched_off
from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.prepare_uninstall import processes_using
from invokeai_video_nodes.workflow_files import workflow_files
from invokeai_video_nodes.workflow_graph import WorkflowDraft, read_workflow, workflow_as_run
from invokeai_video_nodes.workflow_settings import Setting, parse_setting


@dataclass(frozen=True)
class RunRequest:
    """One headless run. `root` None = a throwaway root with `models` only; `out` None = results stay in the gallery."""

    draft: WorkflowDraft
    settings: Sequence[Setting] = ()
    models: Sequence[Path] = ()
    root: Path | None = None
    out: Path | None = None
    stem: str | None = None
    tell_remarks: bool = True


@dataclass(frozen=True)
class Delivery:
    """What a run made, where the person finds it, and how long it took."""

    videos: list[Path]
    images: list[Path]
    outputs: dict[str, dict[str, Any]]
    seconds: float
    startup_seconds: float

    def as_json(self) -> dict[str, Any]:
        """The object that --json prints."""
        return {
            "videos": [str(path) for path in self.videos],
            "images": [str(path) for path in self.images],
            "outputs": self.outputs,
            "seconds": round(self.seconds, 2),
            "startup_seconds": round(self.startup_seconds, 2),
        }


def run(arguments: Namespace, console: Console) -> int:
    """The verb: read and check what can be checked without InvokeAI, run, print one line per result."""
    refuse_where_switched_off()
    draft = read_workflow(_workflow(arguments.workflow))
    settings = [parse_setting(text) for text in arguments.set]
    models = [_existing(Path(text)) for text in arguments.model]
    root = _root(arguments.root)
    named = Path(arguments.out) if arguments.out else (Path("outputs") if root is None else None)
    with out_folder(named) as out:
        request = RunRequest(draft=draft, settings=settings, models=models, root=root, out=out)
        report(run_workflow(request, console), console)
    return 0


def report(delivery: Delivery, console: Console) -> None:
    """One line per result, or the JSON object."""
    for path in delivery.videos:
        console.result("video", path)
    for path in delivery.images:
        console.result("image", path)
    if not delivery.videos and not delivery.images:
        console.note("the run made no video or image (every saving node is marked as intermediate, or there is none)")
    console.answer(delivery.as_json())


def run_workflow(request: RunRequest, console: Console) -> Delivery:
    """Start the engine, install the models, turn the draft into a graph, run it, deliver its files.

    Raises BadInput (workflow, settings, models), NodeError (a node failed), RunCanceled, OutputError.
    """
    console.note("starting InvokeAI's graph engine (about half a minute the first time)")
    started = time.monotonic()
    log_level = "info" if console.log is None else "warning"
    with _engine_root(request.root) as root, Engine(root, log_level=log_level) as engine:
        for path in request.models:
            _install(engine, path)
        graph = prepare(request, engine)
        for remark in request.draft.remarks if request.tell_remarks else ():
            console.note(f"note: {remark}")
        ready = time.monotonic()
        bar = ProgressBar(console, nodes=len(graph.nodes))
        try:
            result = engine.run(graph, on_event=bar, workflow=workflow_as_run(request.draft))
        finally:
            bar.close()
        seconds = time.monotonic() - ready
        videos = _deliver(result.videos, request)
        images = _deliver(result.images, request)
    return Delivery(videos, images, result.outputs, seconds, ready - started)


def prepare(request: RunRequest, engine: Any) -> Any:
    """Draft -> graph against the nodes and models that this engine has."""
    from invokeai_video_nodes.workflow_build import build_graph, node_classes, refuse_unrunnable
    from invokeai_video_nodes.workflow_models import model_facts, resolve_models
    from invokeai_video_nodes.workflow_settings import apply_settings

    classes = node_classes()
    installed = [model_facts(record) for record in engine.services.model_manager.store.all_models()]
    refuse_unrunnable(request.draft, classes)
    apply_settings(
        request.draft,
        request.settings,
        classes=classes,
        installed=installed,
        import_media=lambda key, path: import_media(engine.services, key, path),
    )
    resolve_models(request.draft, classes, installed)
    return build_graph(request.draft, classes)


def _install(engine: Any, path: Path) -> None:
    """Register a model where it lies; identification's own sentence becomes the error."""
    try:
        engine.install(path)
    except Exception as error:  # upstream raises a class of its own for each reason
        raise BadInput.expected(f"--model {path}", "a model that InvokeAI can identify", str(error)) from error


def import_media(services: Any, key: str, path: Path) -> str:
    """Copy an image or video file into the gallery as an upload would; returns its name there."""
    from invokeai.app.services.image_records.image_records_common import ImageCategory, ResourceOrigin

    if key == "image_name":
        from PIL import Image, ImageOps, UnidentifiedImageError

        try:
            with Image.open(path) as image:
                pixels = ImageOps.exif_transpose(image).copy()
        except UnidentifiedImageError as error:
            raise BadInput.expected(str(path), "an image file, such as PNG, JPEG or WebP", "a file that is none") from error
        except OSError as error:
            raise BadInput.expected(str(path), "an image file", str(error)) from error
        return services.images.create(pixels, ResourceOrigin.EXTERNAL, ImageCategory.USER).image_name
    from invokeai.app.util.video_thumbnails import probe_video_with_codec

    try:
        width, height, duration, fps, codec = probe_video_with_codec(path)
    except FileNotFoundError as error:
        raise BadInput.expected(str(path), "a video file", str(error)) from error
    if codec not in ("h264", "avc", "avc1"):
        raise BadInput.expected(str(path), "an MP4 with H.264 (what InvokeAI's gallery plays)", codec)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copy(path, folder))  # the gallery moves what it is given
        return services.videos.create(copy, width, height, duration, fps, ResourceOrigin.EXTERNAL, ImageCategory.USER).video_name


def _deliver(paths: Sequence[Path], request: RunRequest) -> list[Path]:
    if request.out is None:
        return list(paths)
    stem = request.stem or file_stem(request.draft.name)
    return [copied for path in paths for copied in copy_result(path, request.out, stem)]


def file_stem(text: str) -> str:
    """Words as a file name: lower case, joined by '-', at most 60 characters."""
    words = "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()
    return "-".join(words)[:60].strip("-") or "result"


def _workflow(text: str) -> Path:
    """The file of that path, else the shipped workflow of that name."""
    shipped = {path.stem: path for path in workflow_files()}
    return Path(text) if Path(text).exists() else shipped.get(text.removesuffix(".json"), Path(text))


def _existing(path: Path) -> Path:
    if not path.exists():
        raise BadInput.expected("--model", "an existing model file or folder", str(path))
    return path.resolve()


def _root(argument: str | None) -> Path | None:
    """--root, else INVOKEAI_ROOT, else None for a throwaway root."""
    named = argument or os.environ.get("INVOKEAI_ROOT")
    if not named:
        return None
    path = Path(named).expanduser()
    if not path.is_dir():
        raise BadInput.expected("--root", "an existing InvokeAI root folder", str(path))
    database = path.resolve() / "databases" / "invokeai.db"
    if database.is_file() and (users := processes_using(database)):
        # Both would work on the same queue, and a starting engine cancels what the other one is running.
        raise BadInput.expected("--root", "a root that no server is using", f"{path}, used by {', '.join(users)}")
    return path


@contextmanager
def _engine_root(root: Path | None) -> Iterator[Path]:
    """The given root, or a throwaway one that is gone afterwards."""
    if root is not None:
        yield root
        return
    with tempfile.TemporaryDirectory(prefix="invokeai-video-root-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
