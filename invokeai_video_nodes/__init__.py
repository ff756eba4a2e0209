"""Video for InvokeAI: a pure-torch core in `pipelines/`, thin nodes over it in `nodes/`.

Importing this package costs nothing and needs no InvokeAI, so that the core can be used and tested alone. The nodes enter
InvokeAI's registry through `register()`, which the start-up hooks call once InvokeAI's own nodes are loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

__version__ = "0.1.0"

# Every module that defines a node, in the order of an artist's graph.
NODE_MODULES = (
    "load_models",
    "load_svd",
    "encode_prompt",
    "encode_image",
    "denoise_z_image",
    "denoise_hunyuan_video",
    "load_animatediff",
    "animatediff_prompts",
    "animatediff_control",
    "denoise_animatediff",
    "animatediff_video",
    "svd_start_image",
    "denoise_svd",
    "vae",
    "svd_decode",
    "video_io",
    "encode_video",
    "load_latents",
)


def register(node_pack: str | None = None) -> list[str]:
    """Enter our nodes into InvokeAI's registry and return the types that were new; calling again changes nothing.

    The package may be reached twice in one process: installed by pip and as a folder in `nodes/`, or once more when the node
    manager reloads. Python imports it once under its one name, so each node class exists once; a class that the node manager
    took out of the registry (uninstall, then install again without a restart) is put back.

    `node_pack` is the folder's name in `nodes/`, under which the node manager lists and removes the nodes.
    """
    if importlib.util.find_spec("invokeai") is None:
        return []
    from invokeai.app.invocations.baseinvocation import InvocationRegistry

    before = {cls.get_type() for cls in InvocationRegistry._invocation_classes}
    for cls in _node_classes():
        if cls.get_type() not in before and cls not in InvocationRegistry._invocation_classes:
            InvocationRegistry.register_invocation(cls)
        output = cls.get_output_annotation()
        if output not in InvocationRegistry._output_classes:
            InvocationRegistry.register_output(output)
        if node_pack:
            cls.UIConfig.node_pack = node_pack
    importlib.import_module(f"{__name__}.nodes.save_video").clean_unfinished()
    after = {cls.get_type() for cls in InvocationRegistry._invocation_classes}
    return sorted(after - before)


def _node_classes() -> list[Any]:
    """Import the node modules (which registers each class the first time) and return the node classes that they define."""
    from invokeai.app.invocations.baseinvocation import BaseInvocation

    modules = [importlib.import_module(f"{__name__}.nodes.{name}") for name in NODE_MODULES]
    return [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, BaseInvocation) and value.__module__ == module.__name__
    ]
