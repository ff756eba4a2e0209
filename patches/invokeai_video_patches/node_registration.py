"""Our nodes join InvokeAI's own when it loads the node packs.

`load_custom_nodes` runs once per process, after everything else is imported; the wrapper registers our nodes right after it.
A pack that also lies in `nodes/` has registered them by then: `invokeai_video_nodes.register()` is idempotent.
"""

import functools
import logging
from pathlib import Path
from typing import Any

from invokeai_video_patches import status


def register_nodes(node_pack: str | None = None) -> None:
    """Register our nodes (under the name of the folder in `nodes/`, if any); a failure is one log line and no nodes."""
    try:
        import invokeai_video_nodes

        invokeai_video_nodes.register(node_pack)
    except Exception as error:
        status.fell_back("nodes", f"{type(error).__name__}: {error}".splitlines()[0])
    else:
        status.applied("nodes", "registered")


def patch(module: Any) -> str:
    """Wrap `load_custom_nodes` of its module, once."""
    inner = module.load_custom_nodes
    if getattr(inner, "invokeai_video_wrapped", False):
        return "waiting for InvokeAI to load its node packs"

    @functools.wraps(inner)
    def load_custom_nodes(custom_nodes_path: Path, logger: logging.Logger) -> None:
        inner(custom_nodes_path, logger)
        register_nodes()

    load_custom_nodes.invokeai_video_wrapped = True  # type: ignore[attr-defined]
    module.load_custom_nodes = load_custom_nodes
    return "waiting for InvokeAI to load its node packs"
