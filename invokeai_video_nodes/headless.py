"""InvokeAI's own graph engine in this process, without a port: a graph in, the gallery's files out.

    with Engine(root) as engine:
        key = engine.install(folder)
        result = engine.run(graph, on_event=print)
        result.videos[0]                       # a path inside root/outputs/videos

The services are those of `invokeai-web`, started by the same function and reading the same `invokeai.yaml`; only the web server
is missing. InvokeAI keeps its configuration and services in module state, so a process has one engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# A status event normally ends the wait; this bounds how long a lost one could delay it.
STATUS_CHECK_SECONDS = 2.0
SETTLE_SECONDS = 60.0
EVENT_CHANNEL = 0x1E8A  # any number but 0, which the dispatcher reads as "none"
QUEUE = "default"
FINISHED = ("completed", "failed", "canceled")


class NodeError(RuntimeError):
    """A node of the graph failed; `message` is the node's own, `node_id` is the id in the graph that was passed in."""

    def __init__(self, node_type: str, node_id: str, message: str, error_type: str = "", traceback: str = "") -> None:
        super().__init__(f"{node_type} ({node_id}): {message}")
        self.node_type = node_type
        self.node_id = node_id
        self.message = message
        self.error_type = error_type
        self.traceback = traceback


class RunCanceled(RuntimeError):
    """The run was canceled, by `Engine.cancel`, from outside, or because `timeout` seconds had passed."""


@dataclass(frozen=True)
class RunResult:
    """What a finished run left: gallery files in the order in which they were made, and every node's output.

    `outputs` maps the graph's node id to that node's output as a dict; of a node that ran several times, the last one.
    """

    videos: list[Path] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)


class Engine:
    """InvokeAI's services for one root folder; use it as a context manager.

    `log_level` is InvokeAI's ("debug" … "critical"); `settings` are further fields of `invokeai.yaml` for this process only.
    """

    _current: Engine | None = None

    def __init__(self, root: Path | str, *, log_level: str = "warning", settings: Mapping[str, Any] | None = None) -> None:
        self.root = Path(root).resolve()
        self._settings = {"log_level": log_level, **(settings or {})}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="invokeai-events", daemon=True)
        self._listener: _RunListener | None = None
        self._invoker: Any = None

    def __enter__(self) -> Engine:
        refuse_where_switched_off()
        if Engine._current is not None:
            raise RuntimeError(
                f"expected no other engine in this process, got one for {Engine._current.root}; "
                "InvokeAI holds its services in module state, so use a second process for a second root"
            )
        Engine._current = self
        self.root.mkdir(parents=True, exist_ok=True)
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._invoker is not None:
            self._invoker.stop()
            self._invoker = None
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=10)

    @property
    def services(self) -> Any:
        """InvokeAI's `InvocationServices`: records, files, model manager, queue."""
        if self._invoker is None:
            raise RuntimeError("expected a started engine; use it in a with statement")
        return self._invoker.services

    def install(self, path: Path | str, config: Mapping[str, Any] | None = None) -> str:
        """Register the model at `path` where it lies and return its key; `config` overrides what identification finds.

        A model that is already registered from this path keeps its key.
        """
        from invokeai.app.services.model_records.model_records_base import ModelRecordChanges

        path = Path(path).resolve()
        for record in self.services.model_manager.store.search_by_attr():
            recorded = Path(record.path)
            if (recorded if recorded.is_absolute() else self.services.configuration.models_path / recorded) == path:
                return record.key
        changes = ModelRecordChanges.model_validate(dict(config)) if config else None
        return self.services.model_manager.install.register_path(path, changes)

    def model(self, key: str) -> dict[str, Any]:
        """The value of a model field in a graph for the model with this key."""
        record = self.services.model_manager.store.get_model(key)
        return {"key": key, "hash": record.hash, "name": record.name, "base": record.base.value, "type": record.type.value}

    def run(
        self,
        graph: Any,
        *,
        on_event: Callable[[Any], None] | None = None,
        timeout: float | None = None,
        workflow: Mapping[str, Any] | None = None,
    ) -> RunResult:
        """Queue `graph` (an InvokeAI `Graph` or its dict), wait for it and return what it made.

        `on_event` receives every event of this run as InvokeAI's pydantic model (`InvocationProgressEvent` has message,
        percentage and image), on the thread that runs the graph: what takes long there slows the run, and an exception there
        cancels the run and is raised here. `workflow` is stored with the results so that the gallery can load it back.
        Raises `NodeError` with the first failing node's message, `RunCanceled`, or pydantic's `ValidationError` for a graph
        that does not fit the nodes' schemas.
        """
        batch = _batch(graph, workflow)
        listener = self._listener = _RunListener(on_event)
        try:
            item_id = self._enqueue(batch)
            listener.item_id = item_id
            self._wait(listener, item_id, timeout)
            return self._result(listener, item_id)
        finally:
            self._listener = None

    def cancel(self) -> None:
        """Cancel the running graph; safe from any thread, also from `on_event`. Nothing happens when none runs."""
        listener = self._listener
        if listener is not None and listener.current_item() is not None:
            self.services.session_queue.cancel_queue_item(listener.current_item())

    def context(self, node: Any, *, is_canceled: Callable[[], bool] = lambda: False) -> Any:
        """An `InvocationContext` in which `node.invoke(context)` runs on this thread, outside the queue: for timing one node."""
        from invokeai.app.services.session_queue.session_queue_common import SessionQueueItem
        from invokeai.app.services.shared.graph import Graph, GraphExecutionState
        from invokeai.app.services.shared.invocation_context import InvocationContextData, build_invocation_context

        session = GraphExecutionState(graph=Graph(nodes={node.id: node}))
        session.prepared_source_mapping[node.id] = node.id
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        item = SessionQueueItem(
            item_id=0, batch_id="direct", session_id=session.id, session=session, queue_id=QUEUE,
            created_at=now, updated_at=now, started_at=now, completed_at=None,
        )  # fmt: skip
        data = InvocationContextData(queue_item=item, invocation=node, source_invocation_id=node.id)
        return build_invocation_context(services=self.services, data=data, is_canceled=is_canceled)

    def _start(self) -> None:
        install_patches()
        config = _app_config(self.root, self._settings)
        from invokeai.backend.util.logging import InvokeAILogger

        logger = InvokeAILogger.get_logger(config=config)
        # The schema of a graph is the union of the nodes known when it is imported, so upstream's nodes come first and ours second,
        # as in `invokeai.app.run_app`.
        import invokeai.app.services.shared.graph  # noqa: F401
        from invokeai.app.api import dependencies
        from invokeai.app.invocations.load_custom_nodes import load_custom_nodes
        from invokeai.app.util.startup_utils import apply_monkeypatches

        from invokeai_video_nodes import register

        apply_monkeypatches()
        load_custom_nodes(custom_nodes_path=config.custom_nodes_path, logger=logger)
        register()
        with self._listening_event_service(dependencies):
            dependencies.ApiDependencies.initialize(
                config=config, event_handler_id=EVENT_CHANNEL, loop=self._loop, logger=logger
            )
        self._invoker = dependencies.ApiDependencies.invoker
        self._thread.start()

    @contextlib.contextmanager
    def _listening_event_service(self, dependencies: Any) -> Iterator[None]:
        """Let `ApiDependencies.initialize` build an event service that also tells this engine; InvokeAI's own handlers stay."""
        from fastapi_events import handler_store
        from fastapi_events.handlers.local import local_handler

        stock = dependencies.FastAPIEventService
        engine = self

        class ListeningEventService(stock):  # type: ignore[misc,valid-type]
            def dispatch(self, event: Any) -> None:
                super().dispatch(event)
                engine._hear(event)

        # The web app's middleware would do this; the queue's processor hears of new and canceled items through it.
        handler_store[EVENT_CHANNEL] = [local_handler]
        dependencies.FastAPIEventService = ListeningEventService
        try:
            yield
        finally:
            dependencies.FastAPIEventService = stock

    def _hear(self, event: Any) -> None:
        listener = self._listener
        if listener is None:
            return
        listener.hear(event)
        if listener.failure is not None and not listener.cancel_sent:
            listener.cancel_sent = True
            self.cancel()

    def _enqueue(self, batch: Any) -> int:
        queued = self.services.session_queue.enqueue_batch(QUEUE, batch, False)
        result = asyncio.run_coroutine_threadsafe(queued, self._loop).result()
        if not result.item_ids:
            raise RuntimeError(f"expected the queue to take the run, got a full queue ({result.requested} requested, 0 taken)")
        return result.item_ids[0]

    def _wait(self, listener: _RunListener, item_id: int, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while self._status(item_id) not in FINISHED:
                left = STATUS_CHECK_SECONDS if deadline is None else min(STATUS_CHECK_SECONDS, deadline - time.monotonic())
                if left <= 0:
                    self._cancel_and_settle(item_id)
                    raise RunCanceled(f"expected the run to finish within {timeout:g} s; it was canceled")
                if listener.finished.wait(left):
                    break
        except KeyboardInterrupt:
            self._cancel_and_settle(item_id)
            raise
        self._settle()

    def _cancel_and_settle(self, item_id: int) -> None:
        self.services.session_queue.cancel_queue_item(item_id)
        self._settle()

    def _settle(self) -> None:
        """Wait until the processor has let go of the item: a canceled node still cleans up after the queue says "canceled"."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while self.services.session_processor.get_status().is_processing and time.monotonic() < deadline:
            time.sleep(0.02)

    def _status(self, item_id: int) -> str:
        return self.services.session_queue.get_queue_item(item_id).status

    def _result(self, listener: _RunListener, item_id: int) -> RunResult:
        if listener.failure is not None:
            raise listener.failure
        if listener.node_error is not None:
            raise listener.node_error
        item = self.services.session_queue.get_queue_item(item_id)
        if item.status == "canceled":
            raise RunCanceled("the run was canceled")
        if item.status == "failed":
            raise NodeError("graph", str(item_id), item.error_message or "the run failed", item.error_type or "")
        return self._collect(item.session)

    def _collect(self, session: Any) -> RunResult:
        result = RunResult()
        for prepared_id in session.results:
            output = session.results[prepared_id].model_dump(mode="json")
            result.outputs[session.prepared_source_mapping[prepared_id]] = output
            for kind, name in _media_names(output):
                service = self.services.videos if kind == "video_name" else self.services.images
                record = service.get_dto(name)
                paths = result.videos if kind == "video_name" else result.images
                path = Path(service.get_path(name))
                if record.session_id == session.id and not record.is_intermediate and path not in paths:
                    paths.append(path)
        return result


class _RunListener:
    """Follows one queue item through InvokeAI's events."""

    def __init__(self, on_event: Callable[[Any], None] | None) -> None:
        self._on_event = on_event
        self._seen_item: int | None = None
        self.item_id: int | None = None
        self.finished = threading.Event()
        self.node_error: NodeError | None = None
        self.failure: BaseException | None = None
        self.cancel_sent = False

    def current_item(self) -> int | None:
        return self.item_id if self.item_id is not None else self._seen_item

    def hear(self, event: Any) -> None:
        """Note what ends the run, then pass the event on; called on the thread on which InvokeAI raised it."""
        item = getattr(event, "item_id", None)
        if item is None or (self.item_id is not None and item != self.item_id):
            return
        self._seen_item = item
        name = type(event).__event_name__
        if name == "invocation_error" and self.node_error is None:
            node = event.invocation
            self.node_error = NodeError(
                node.get_type(), event.invocation_source_id, event.error_message, event.error_type, event.error_traceback
            )
        self._pass_on(event)
        if name == "queue_item_status_changed" and event.status in FINISHED:
            self.finished.set()

    def _pass_on(self, event: Any) -> None:
        if self._on_event is None or self.failure is not None:
            return
        try:
            self._on_event(event)
        except BaseException as error:  # noqa: BLE001 - raised again in run(), on the caller's thread
            self.failure = error


def install_patches() -> None:
    """Let InvokeAI know our model types where no start-up hook of the wheel has done so (a checkout on PYTHONPATH)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _bootstrap().install()


def refuse_where_switched_off() -> None:
    """Raise BadInput where the kill switch is set: without the patches no workflow of video models runs. Imports no InvokeAI."""
    from invokeai_video_nodes.pipelines.errors import BadInput

    bootstrap = _bootstrap()
    if bootstrap.disabled():
        switch = bootstrap.KILL_SWITCH
        raise BadInput.expected(switch, "not set", f"{os.environ[switch]}, so InvokeAI runs as if the video models were not installed")


def _bootstrap() -> Any:
    try:
        from invokeai_video_patches import bootstrap
    except ModuleNotFoundError:
        patches = Path(__file__).resolve().parent.parent / "patches"
        if not patches.is_dir():
            raise
        sys.path.insert(0, str(patches))
        from invokeai_video_patches import bootstrap
    return bootstrap


def _app_config(root: Path, settings: Mapping[str, Any]) -> Any:
    """InvokeAI's configuration for `root`, read as `invokeai-web --root` reads it."""
    os.environ["INVOKEAI_ROOT"] = str(root)
    from invokeai.frontend.cli.arg_parser import InvokeAIArgs

    arguments, sys.argv = sys.argv, [sys.argv[0], "--root", str(root)]
    try:
        InvokeAIArgs.parse_args()
    finally:
        sys.argv = arguments
    from invokeai.app.services.config.config_default import get_config

    config = get_config()
    if config.root_path.resolve() != root:
        raise RuntimeError(f"expected InvokeAI's configuration for {root}, got the one for {config.root_path}")
    config.update_config(dict(settings))
    return config


def _batch(graph: Any, workflow: Mapping[str, Any] | None) -> Any:
    from invokeai.app.services.session_queue.session_queue_common import Batch
    from invokeai.app.services.shared.graph import Graph
    from invokeai.app.services.workflow_records.workflow_records_common import WorkflowWithoutIDValidator

    if not isinstance(graph, Graph):
        graph = Graph.model_validate(dict(graph))
    stored = WorkflowWithoutIDValidator.validate_python(dict(workflow)) if workflow else None
    return Batch(graph=graph, workflow=stored, runs=1)


def _media_names(value: Any) -> Iterator[tuple[str, str]]:
    """Every ("video_name" | "image_name", name) inside a node's output, collections included."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in ("video_name", "image_name") and isinstance(inner, str):
                yield key, inner
            else:
                yield from _media_names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _media_names(inner)
