"""Can this worker work at all? Asked before the next claim after something failed by its own fault, and again while it cannot.

disk has room ─► own folder takes a file ─► models' folder can be read ─► the storage answers ─► None, else what is wrong
"""

import os
import shutil
import tempfile
from pathlib import Path

from invokeai_saas.errors import SaasError
from invokeai_saas.settings import Settings
from invokeai_saas.storage.opening import open_store
from invokeai_saas.workers.model_store import models_folder

_PROBE_BYTES = 1 << 20


def what_is_wrong(settings: Settings, folder: Path) -> str | None:
    """The first thing that keeps every item from working, in words; `folder` is the worker's own."""
    return _disk(settings, folder) or _models(settings) or _storage(settings)


def _disk(settings: Settings, folder: Path) -> str | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free_mb = shutil.disk_usage(folder).free >> 20
        if free_mb < settings.worker_min_free_mb:
            return f"expected {settings.worker_min_free_mb} MB free on the disk of {folder}, got {free_mb}"
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return f"expected a folder that can be written to at {folder}, got: {error.strerror}"
    return None


def _models(settings: Settings) -> str | None:
    folder = models_folder(settings)
    try:
        next(os.scandir(folder), None)
    except OSError as error:
        return f"expected the models' folder at {folder}, got: {error.strerror}"
    return None


def _storage(settings: Settings) -> str | None:
    try:
        open_store(settings).check()
    except (SaasError, OSError) as error:
        return f"the storage does not work: {error}"
    return None
