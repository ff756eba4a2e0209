"""`invokeai-video web`: InvokeAI's server with the video models, also where no start-up hook of the wheel ran."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def web(arguments: Sequence[str]) -> int:
    """Put the patches in place, then start the server as `invokeai-web ARGUMENTS` would; returns when it has ended."""
    from invokeai_video_nodes.headless import install_patches

    install_patches()
    from invokeai.app.run_app import run_app

    sys.argv = ["invokeai-web", *arguments]
    run_app()
    return 0
