"""InvokeAI before its services are made, the same for a server and for a worker's runner: its configuration, its nodes without the closed
ones.
"""

import logging
import os
import sys

from invokeai_saas.operating import logs
from invokeai_saas.settings import Settings

logger = logging.getLogger(__name__)


def configure_invokeai(settings: Settings) -> None:
    """What a server for many must have, whatever invokeai.yaml says."""
    from invokeai_video_nodes.headless import install_patches

    root = settings.invokeai_root or settings.data_dir / "invokeai"
    root.mkdir(parents=True, exist_ok=True)
    os.environ["INVOKEAI_ROOT"] = str(root.resolve())
    install_patches()
    logs.adopt_upstream()
    from invokeai.app.services.config.config_default import get_config
    from invokeai.app.util.torch_cuda_allocator import configure_torch_cuda_allocator

    config = get_config()
    if config.pytorch_cuda_alloc_conf and "torch" not in sys.modules:
        configure_torch_cuda_allocator(config.pytorch_cuda_alloc_conf, logger)
    config.host, config.port = settings.host, settings.port
    config.multiuser = True
    config.strict_password_checking = True
    # Files are found by their rows; folders by date would only be another thing to move.
    config.image_subfolder_strategy = "flat"
    # InvokeAI's own picture services would have made it.
    config.models_path.mkdir(parents=True, exist_ok=True)


def load_nodes() -> None:
    """The node packs of the configured folder, without the nodes that are off. InvokeAI's own were imported before."""
    from invokeai.app.invocations.load_custom_nodes import load_custom_nodes
    from invokeai.app.services.config.config_default import get_config
    from invokeai.backend.util.logging import InvokeAILogger

    from invokeai_saas.closed.nodes import close_nodes

    config = get_config()
    load_custom_nodes(custom_nodes_path=config.custom_nodes_path, logger=InvokeAILogger.get_logger(config=config))
    close_nodes()
