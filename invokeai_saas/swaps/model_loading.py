"""InvokeAI's services that load, fetch and move models, off the clock: nobody is charged for a model that was not there (decision 14).

On a worker that fetches models from the bucket, a load first makes sure that the files are here. A model that does not load is looked at:
other bytes than it should have, or none, are the worker's fault (ModelUnavailable) and not the graph's.
"""

import json
import logging
import pickle
import zipfile
from pathlib import Path
from typing import Any, ClassVar

from invokeai.app.services.model_install.model_install_default import ModelInstallService
from invokeai.app.services.model_load.model_load_default import ModelLoadService
from invokeai.backend.model_hash.model_hash import ModelHash
from invokeai.backend.model_manager.load.model_cache.model_cache import ModelCache
from safetensors import SafetensorError

from invokeai_saas.jobs.metering import uncharged
from invokeai_saas.workers.model_files import ModelCorrupt, ModelFiles, ModelMissing

# What readers say of bytes that are not what they should be. Out of memory is none of these.
BROKEN_FILES = (SafetensorError, OSError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, json.JSONDecodeError, UnicodeDecodeError)
_ZIP_READER = "PytorchStreamReader"
logger = logging.getLogger(__name__)


class LoadsOfThisMachine(ModelLoadService):
    """Upstream's loads of files that are looked after: fetched before, and looked at when they do not load."""

    # A worker with --models sync sets it before InvokeAI's services are made.
    model_files: ClassVar[ModelFiles | None] = None

    def load_model(self, model_config: Any, submodel_type: Any = None, user_id: str | None = None) -> Any:
        """As upstream; raises ModelUnavailable where this machine's files are to blame."""
        if not _has_files(model_config):
            return super().load_model(model_config, submodel_type, user_id)
        path, files = self._path(model_config), self.model_files
        # As it is in the records: upstream's loaders write the absolute one into the config that they get.
        recorded = str(model_config.path)
        if files is not None:
            path = files.ensure(model_config.key, recorded)
        if not path.exists():
            raise ModelMissing(f"model {model_config.name} ({model_config.key}) has no files on this machine")
        config = _at(model_config, path)
        try:
            return super().load_model(config, submodel_type, user_id)
        except Exception as error:
            if not _reads_like_broken_files(error):
                raise
            if files is not None and files.repair(model_config.key, recorded):
                return super().load_model(config, submodel_type, user_id)
            if _has_other_bytes(model_config, path):
                raise ModelCorrupt(f"model {model_config.name} ({model_config.key}) has other bytes than were installed") from error
            raise

    def _path(self, model_config: Any) -> Path:
        return Path(self._app_config.models_path / model_config.path)


class UnchargedModelLoads(LoadsOfThisMachine):
    """From the disk into memory, with the wait for whoever loads the same, and on a worker from the bucket to the disk."""

    load_model = uncharged(LoadsOfThisMachine.load_model)
    load_model_from_path = uncharged(ModelLoadService.load_model_from_path)


class UnchargedModelCache(ModelCache):
    """From memory to the device."""

    lock = uncharged(ModelCache.lock)
    lock_in_ram = uncharged(ModelCache.lock_in_ram)


class UnchargedModelInstalls(ModelInstallService):
    """From the network to the disk."""

    download_and_cache_model = uncharged(ModelInstallService.download_and_cache_model)


def _has_files(config: Any) -> bool:
    return bool(config.path) and config.base != "external" and config.format != "external_api"


def _at(config: Any, path: Path) -> Any:
    """The config as this machine has it: InvokeAI keeps the parts of some folders by the path where they were installed."""
    parts = getattr(config, "submodels", None) or {}
    moved = {name: _part_at(config.key, part, path) for name, part in parts.items() if not Path(part.path_or_prefix).exists()}
    changes: dict[str, Any] = {"submodels": {**parts, **moved}} if moved else {}
    if Path(config.path).is_absolute() and Path(config.path) != path:
        changes["path"] = str(path)
    return config.model_copy(update=changes)


def _part_at(key: str, part: Any, path: Path) -> Any:
    """The part inside of the model's folder here, where it is there; else as it was."""
    inside = part.path_or_prefix.rpartition(f"/{key}/")[2] if f"/{key}/" in part.path_or_prefix else Path(part.path_or_prefix).name
    return part.model_copy(update={"path_or_prefix": str(path / inside)}) if (path / inside).exists() else part


def _reads_like_broken_files(error: Exception) -> bool:
    return isinstance(error, BROKEN_FILES) or _ZIP_READER in str(error)


def _has_other_bytes(config: Any, path: Path) -> bool:
    """Compared with the hash that InvokeAI took when it installed the model; what it cannot hash is taken for damaged."""
    algorithm, _, expected = str(config.hash).partition(":")
    if not expected or algorithm == "random":
        return False
    try:
        found = ModelHash("blake3_single" if algorithm == "blake3" else algorithm).hash(path)
    except ValueError:
        logger.warning("model %s has a hash of a kind that this version does not know: %s", config.key, algorithm)
        return False
    except OSError:
        return True
    return bool(found != config.hash)
