"""Nodes that are off: they read or write the worker's files by a name that a tenant chooses. Each with its reason.

    node list, OpenAPI      do not show them (InvokeAI's own `deny_nodes`)
    graph in a request      400, naming node and reason, before a field is looked at: even "no such file" would be an answer
    item that is run        the node refuses, wherever its graph came from: a retry, a called workflow, a row of the queue
"""

import ast
import functools
import inspect
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from invokeai.app.invocations.baseinvocation import BaseInvocation, InvocationRegistry
from invokeai.app.services.config.config_default import get_config

from invokeai_saas.errors import SaasError

logger = logging.getLogger(__name__)

CLOSED_NODES = {
    "prompt_from_file": "it reads any file that the worker can read",
    "save_image_to_file": "it writes files beside the gallery, which belong to nobody and are never deleted",
    "video_latents_load": "it reads a folder of the worker that all its users share",
}
# Values of a field, on whatever node, that are off.
CLOSED_VALUES = {
    ("codec", "h264+h265"): "its second file lies beside the gallery's, where nobody counts or deletes it",
}
# Fields and nodes that look as if they touched files or the network, looked at, and safe: `type.field`, or `type` for its code.
REVIEWED = {
    "denoise_latents": "reads a switch of the environment",
    "ernie_image_model_loader": "reads the folder of an installed model",
    "extract_video_range": "writes a temporary file of its own making",
    "face_identifier": "reads a font of the package",
    "invokeai_img_hue_adjust_plus": "reads a colour profile of the package",
    "krea2_denoise": "reads the folder of an installed model",
    "video_concat": "writes a temporary file of its own making",
    "wan_denoise": "reads the folder of an installed model",
    "wan_l2v": "writes a temporary file of its own making",
}
# Names and descriptions that may mean a place on the disk or in the network.
_FIELD = re.compile(r"(?:^|_)(?:path|paths|file|files|filename|url|urls|uri|dir|directory|folder|host|command|script|module)(?:_|$)")
_WORDS = re.compile(r"\b(?:path|file|filename|folder|directory|url)\b", re.IGNORECASE)
_CODE = re.compile(
    r"\bopen\(|\brequests\.|\burllib|\bhttpx\b|\bsubprocess\b|\bos\.(?:system|remove|listdir|environ)|\.write_(?:text|bytes)\("
    r"|\.read_(?:text|bytes)\(|\boutputs_path\b|\bPath\(|\bshutil\.|\bimport_module\(|(?<![.\w])(?:eval|exec)\("
)
# Each match of _CODE holds one of these; looking for them first takes a hundredth of the time.
_WORDS_OF_CODE = (
    "open(", "requests.", "urllib", "httpx", "subprocess", "os.system", "os.remove", "os.listdir", "os.environ", ".write_", ".read_",
    "outputs_path", "Path(", "shutil.", "import_module(", "eval(", "exec(",
)  # fmt: skip


class ClosedNode(SaasError):
    """A graph holds a node that is off on this server."""

    status = 400

    def __init__(self, node_type: str, reason: str) -> None:
        super().__init__(f"{node_type!r} is off on this server: {reason}")


def close_nodes() -> dict[str, str]:
    """Take the closed nodes away, and those that nobody decided on; returns what is off and why.

    Run it after all nodes are loaded; again is fine.
    """
    found = {cls.get_type(): cls for cls in InvocationRegistry._invocation_classes}
    off = {name: reason for name, reason in CLOSED_NODES.items() if name in found}
    for name, clues in undecided(found.values()).items():
        off[name] = f"nobody has looked at {', '.join(clues)} yet"
        logger.warning("node %s is off: %s", name, off[name])
    config = get_config()
    config.deny_nodes = sorted({*(config.deny_nodes or ()), *off})
    for name, reason in off.items():
        found[name].invoke = _refusing(found[name].invoke, name, reason)
    _read_closed_nodes_without_looking({name: found[name] for name in off})
    _off.clear()
    _off.update(off)
    return dict(off)


_off: dict[str, str] = {}


def demand_open(batch: Any) -> None:
    """Raise ClosedNode for a batch (InvokeAI's Batch) whose graph, or a value put into it, asks for a node that is off."""
    for node in batch.graph.nodes.values():
        demand_open_node(node)
    for datum in (datum for group in batch.data or () for datum in group):
        for value in datum.items:
            _demand_open_value(datum.field_name, value)
            # The value would be written over the node's type.
            if datum.field_name == "type":
                _demand_open_type(str(value))


def demand_open_node(invocation: BaseInvocation, *_: Any, **__: Any) -> None:
    """Raise ClosedNode for a node that is off or has a value that is; a runner's `on_before_run_node` callback, inputs filled in."""
    _demand_open_type(invocation.get_type())
    for field_name, value in CLOSED_VALUES:
        if getattr(invocation, field_name, None) == value:
            _demand_open_value(field_name, value)


def undecided(classes: Iterable[type[BaseInvocation]]) -> dict[str, list[str]]:
    """Nodes that look as if they touched files or the network and stand in neither list: type -> what looks so."""
    found = {cls.get_type(): list(clues(cls)) for cls in classes if cls.get_type() not in CLOSED_NODES}
    return {name: some for name, some in sorted(found.items()) if some}


def clues(cls: type[BaseInvocation]) -> Iterator[str]:
    """`type.field` for fields, `type` for code, that nobody has reviewed."""
    name = cls.get_type()
    for field_name, field in cls.model_fields.items():
        told = field.description or ""
        textual = "str" in str(field.annotation) or "Path" in str(field.annotation)
        if f"{name}.{field_name}" not in REVIEWED and textual and (_FIELD.search(field_name) or _WORDS.search(told)):
            yield f"{name}.{field_name}"
    if name not in REVIEWED and _CODE.search(_source(cls)):
        yield name


def _source(cls: type[BaseInvocation]) -> str:
    """The code of a class; of a file without clues none is told."""
    try:
        classes = _classes_with_clues(inspect.getsourcefile(cls) or "")
        return (classes.get(cls.__qualname__) or inspect.getsource(cls)) if classes is not None else ""
    except (OSError, TypeError):
        return ""


@functools.cache
def _classes_with_clues(path: str) -> dict[str, str] | None:
    """Each class of a file by name, None where nothing in the file is a clue. inspect parses a file anew for each of its classes."""
    source = Path(path).read_text(encoding="utf-8")
    if not any(word in source for word in _WORDS_OF_CODE):
        return None
    lines = source.splitlines(keepends=True)
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return {node.name: "".join(lines[_first_line(node) - 1 : node.end_lineno]) for node in classes}


def _first_line(node: ast.ClassDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _demand_open_type(node_type: str) -> None:
    if node_type in _off:
        raise ClosedNode(node_type, _off[node_type])


def _demand_open_value(field_name: str, value: Any) -> None:
    reason = CLOSED_VALUES.get((field_name, value)) if isinstance(value, str) else None
    if reason is not None:
        raise ClosedNode(f"{field_name}={value}", reason)


def _refusing(upstream: Any, name: str, reason: str) -> Any:
    # InvokeAI reads the type of a node's output from the signature.
    @functools.wraps(upstream)
    def invoke(self: BaseInvocation, context: Any) -> Any:
        raise ClosedNode(name, reason)

    return invoke


class _Reader:
    """InvokeAI's adapter for nodes; closed ones are read as they are, so that a queue that holds one can still be listed."""

    def __init__(self, adapter: Any, closed: dict[str, type[BaseInvocation]]) -> None:
        self._adapter, self._closed = adapter, closed

    def validate_python(self, value: Any) -> Any:
        """As the adapter; a closed node's validators never run: one of them asks the disk."""
        kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        cls = self._closed.get(kind) if isinstance(kind, str) else None
        if cls is None:
            return self._adapter.validate_python(value)
        return value if isinstance(value, cls) else cls.model_construct(**value)


def _read_closed_nodes_without_looking(closed: dict[str, type[BaseInvocation]]) -> None:
    upstream = getattr(InvocationRegistry.get_invocation_typeadapter, "upstream", InvocationRegistry.get_invocation_typeadapter)

    @functools.lru_cache(maxsize=1)
    def adapter() -> Any:
        return _Reader(upstream(), closed)

    def forget() -> None:
        upstream.cache_clear()
        cleared()

    cleared = adapter.cache_clear
    adapter.cache_clear = forget  # type: ignore[method-assign]
    adapter.upstream = upstream  # type: ignore[attr-defined]
    InvocationRegistry.get_invocation_typeadapter = adapter
    InvocationRegistry.invalidate_invocation_typeadapter()
