"""Entry for a clone or folder inside InvokeAI's `nodes/`: paths, late rebuild, nodes. Thin, and harmless when run again.

InvokeAI runs this file when it loads node packs and on every "Reload" of its node manager. Nothing here may raise: what
cannot be done is one log line, and InvokeAI goes on without it. Outside InvokeAI (pytest walks over this folder too) it does nothing.
"""

import logging
import sys
from pathlib import Path


def _enter(folder: Path) -> None:
    for path in (str(folder / "patches"), str(folder)):
        if path not in sys.path:
            sys.path.insert(0, path)
    # A folder named like one of our packages has just taken that package's name in sys.modules.
    for name in ("invokeai_video_nodes", "invokeai_video_patches"):
        module = sys.modules.get(name)
        if module is not None and getattr(module, "__file__", None) == __file__:
            del sys.modules[name]

    from invokeai_video_patches import bootstrap

    if bootstrap.disabled():
        return
    from invokeai_video_patches import dropped_in

    dropped_in.start(folder.name)


if "invokeai.app.invocations.load_custom_nodes" in sys.modules:
    try:
        _enter(Path(__file__).resolve().parent)
    except Exception as error:  # InvokeAI would print a traceback
        logging.getLogger("InvokeAI").warning("invokeai-video: the node pack stays off: %s", error)
