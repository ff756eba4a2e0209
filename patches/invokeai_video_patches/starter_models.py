"""Our models in the model manager's Starter Models and as bundles, one click each; `starter_rows.py` lists them.

A model that ships inside our package has its folder as source. Installed in place, such a model would be gone with the environment;
installed otherwise, InvokeAI would *move* it out of the package. So `patch_installer` gives the installer a copy.
"""

import functools
import shutil
import tempfile
from dataclasses import replace
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

from invokeai_video_patches.starter_rows import BUNDLES, ROWS, UPSTREAM_MEMBERS, Row, by_name, full_description

PACKAGE = "invokeai_video_nodes"


def package_folder() -> Path:
    """The folder of the node package, installed or beside this one; raises FileNotFoundError when there is none."""
    spec = util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"package {PACKAGE}: expected it beside the patches, got nothing")
    return Path(spec.origin).resolve().parent


def rows() -> list[Row]:
    """Every row with its source resolved; a row of our package is left out where the package came without its files."""
    resolved = []
    for row in ROWS:
        if not row.in_package:
            resolved.append(row)
            continue
        folder = package_folder() / row.source
        if (folder / "model_index.json").is_file():
            resolved.append(replace(row, source=folder.as_posix()))
    return resolved


def patch(module: ModuleType) -> str:
    """Append our rows and bundles to those of `invokeai.backend.model_manager.starter_models`, once per source."""
    known = {model.source: model for model in module.STARTER_MODELS}
    models = {row: _starter_model(module, row) for row in rows() if row.source not in known}
    module.STARTER_MODELS.extend(models.values())
    for key, name in BUNDLES.items():
        members = [model for row, model in models.items() if key in row.bundles]
        if members and key not in module.STARTER_BUNDLES:
            members += [known[source] for source in UPSTREAM_MEMBERS.get(key, ()) if source in known]
            module.STARTER_BUNDLES[key] = module.StarterModelBundle(name=name, models=members)
    return f"{len(rows())} starter models"


def _starter_model(module: ModuleType, row: Row) -> Any:
    needed = [module.StarterModelWithoutDependencies(**_fields(by_name()[name])) for name in row.dependencies]
    return module.StarterModel(**_fields(row), dependencies=needed or None)


def _fields(row: Row) -> dict[str, Any]:
    """What InvokeAI's own starter models hold of a row."""
    shared = {name: getattr(row, name) for name in ("name", "base", "type", "format", "source")}
    return {**shared, "description": full_description(row)}


def patch_installer(module: ModuleType) -> str:
    """Let `ModelInstallService` of `model_install_default` work on a copy when the source is inside our package."""
    service = module.ModelInstallService
    done = "models of this package are copied, never moved"
    if getattr(service.install_path, "invokeai_video_wrapped", False):
        return done
    heuristic_import, move_into_models_folder = service.heuristic_import, service.install_path

    @functools.wraps(heuristic_import)
    def import_source(self: Any, source: str, *args: Any, **kwargs: Any) -> Any:
        if is_ours(source):
            kwargs["inplace"] = False
        return heuristic_import(self, source, *args, **kwargs)

    @functools.wraps(move_into_models_folder)
    def install_path(self: Any, model_path: Path | str, *args: Any, **kwargs: Any) -> str:
        if not is_ours(model_path):
            return move_into_models_folder(self, model_path, *args, **kwargs)
        source = Path(model_path)
        # InvokeAI removes what bears this prefix at its next start, should the process die meanwhile.
        prefix = getattr(module, "TMPDIR_PREFIX", "tmpinstall_")
        with tempfile.TemporaryDirectory(dir=self.app_config.models_path, prefix=prefix) as staging:
            copied = Path(staging, source.name)
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, copied)
            return move_into_models_folder(self, copied, *args, **kwargs)

    install_path.invokeai_video_wrapped = True  # type: ignore[attr-defined]
    service.heuristic_import, service.install_path = import_source, install_path
    return done


def is_ours(source: Path | str) -> bool:
    """True for a path inside our package; a hub id or a URL is none."""
    path = Path(source)
    return path.is_absolute() and path.resolve().is_relative_to(package_folder())
