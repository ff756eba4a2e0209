"""`invokeai-video install-workflows`: our workflows into the library of one InvokeAI root."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from invokeai_video_nodes.commands.console import Console
from invokeai_video_nodes.prepare_uninstall import database_path, find_root
from invokeai_video_nodes.workflow_files import workflow_files
from invokeai_video_nodes.workflow_library import install_into


def install_workflows(arguments: Namespace, console: Console) -> int:
    """The verb: one line per workflow on stdout saying what happened to it."""
    files = workflow_files()
    root = find_root(arguments.root)
    database_path(root)  # refuses a mistyped root, which must not become a new installation
    changes = install_into(_workflow_records(root), files)
    if not console.as_json:
        for change in changes:
            print(f"{change.name}: {change.action}", file=console.out)
    console.answer({"workflows": [change._asdict() for change in changes]})
    return 0


def _workflow_records(root: Path) -> Any:
    """InvokeAI's workflow records of a root, without starting its services. A server may be running on it."""
    from invokeai.frontend.cli.arg_parser import InvokeAIArgs

    arguments, sys.argv = sys.argv, [sys.argv[0], "--root", str(root)]
    try:
        InvokeAIArgs.parse_args()
    finally:
        sys.argv = arguments
    from invokeai.app.services.config.config_default import get_config
    from invokeai.app.services.image_files.image_files_disk import DiskImageFileStorage
    from invokeai.app.services.shared.sqlite.sqlite_util import init_db
    from invokeai.app.services.workflow_records.workflow_records_sqlite import SqliteWorkflowRecordsStorage
    from invokeai.backend.util.logging import InvokeAILogger

    config = get_config()
    logger = InvokeAILogger.get_logger(config=config)
    images = DiskImageFileStorage(config.outputs_path / "images")
    return SqliteWorkflowRecordsStorage(init_db(config=config, logger=logger, image_files=images))
