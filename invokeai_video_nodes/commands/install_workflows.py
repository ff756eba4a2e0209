"""`invokeai-video install-workflows`: our workflows into the library of one InvokeAI root."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from invokeai_video_nodes.commands.console import Console
from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.workflow_files import workflow_files
from invokeai_video_nodes.workflow_library import install_into


def install_workflows(arguments: Namespace, console: Console) -> int:
    """The verb: one line per workflow on stdout saying what happened to it."""
    files = workflow_files()
    records = _workflow_records(arguments.root)
    changes = install_into(records, files)
    if not console.as_json:
        for change in changes:
            print(f"{change.name}: {change.action}", file=console.out)
    console.answer({"workflows": [change._asdict() for change in changes]})
    return 0


def _workflow_records(root: str | None) -> Any:
    """InvokeAI's workflow records of the root that `invokeai-web --root ROOT` would use, without starting its services.

    BadInput when there is no database yet: a mistyped root must not become a new installation.
    """
    if root is not None and not Path(root).is_dir():
        raise BadInput.expected("--root", "an existing InvokeAI root folder", root)
    config = _config(root)
    if not config.db_path.is_file():
        where = f"{config.root_path} without {config.db_path.name}"
        raise BadInput.expected("--root", "an InvokeAI root that has been started once", where)
    from invokeai.app.services.image_files.image_files_disk import DiskImageFileStorage
    from invokeai.app.services.shared.sqlite.sqlite_util import init_db
    from invokeai.app.services.workflow_records.workflow_records_sqlite import SqliteWorkflowRecordsStorage
    from invokeai.backend.util.logging import InvokeAILogger

    logger = InvokeAILogger.get_logger(config=config)
    images = DiskImageFileStorage(config.outputs_path / "images")
    return SqliteWorkflowRecordsStorage(init_db(config=config, logger=logger, image_files=images))


def _config(root: str | None) -> Any:
    from invokeai.frontend.cli.arg_parser import InvokeAIArgs

    arguments = sys.argv
    sys.argv = arguments[:1] if root is None else [arguments[0], "--root", str(Path(root).resolve())]
    try:
        InvokeAIArgs.parse_args()
    finally:
        sys.argv = arguments
    from invokeai.app.services.config.config_default import get_config

    return get_config()
