"""An InvokeAI that is already imported in, the same process with our model types out: for a pack that lies in `nodes/`.

Node packs load after every other module, when the schemas of about 1,400 pydantic models and every copy of the `AnyModelConfig`
union are made. So the union is extended in place, and all cached schemas are built again from it. The order matters:
members, union and loaders first, then models, then type adapters, then a self-test through the model list's response.
"""

import gc
import logging
import sys
import warnings
from typing import Any, get_args

from invokeai_video_patches import hooks, status

NAME = "late rebuild"
REBUILT_PACKAGES = ("invokeai", "fastapi")
CACHED_SCHEMAS = ("__pydantic_core_schema__", "__pydantic_validator__", "__pydantic_serializer__")

# What the schemas are built from, and what needs the new schemas. Nodes are registered by the caller.
BEFORE_REBUILD = (
    "invokeai.backend.model_manager.taxonomy",
    "invokeai.backend.model_manager.configs.factory",
    "invokeai.backend.model_manager.load",
)
AFTER_REBUILD = (
    "invokeai.backend.model_manager.starter_models",
    "invokeai.app.services.model_install.model_install_default",
    "invokeai.app.api.no_cache_staticfiles",
)

logger = logging.getLogger("InvokeAI")


def apply() -> None:
    """Bring our model types into a process that has already imported InvokeAI; does nothing where they are in.

    In a live server (a pack installed by the node manager) requests are being answered with the schemas that would be rebuilt, so
    only our enum members enter and one line asks for a restart.
    """
    if status.patched_early():
        return
    if _server_is_live():
        _enter_members_only()
        return
    factory = sys.modules["invokeai.backend.model_manager.configs.factory"]
    alias, validator = factory.AnyModelConfig, factory.AnyModelConfigValidator
    old_union = get_args(alias)[0]
    _run_hooks(BEFORE_REBUILD)
    _extend_in_place(factory, alias, validator)
    new_union = get_args(alias)[0]
    with warnings.catch_warnings():
        # Rebuilding a route's adapter makes pydantic remark on every query parameter that has an alias.
        warnings.simplefilter("ignore")
        models, adapters = _rebuild_models(old_union, new_union), _rebuild_adapters()
    _self_test()
    _run_hooks(AFTER_REBUILD)
    status.applied(NAME, f"{models} models and {adapters} type adapters built again")


def _run_hooks(names: tuple[str, ...]) -> None:
    for name in names:
        if name in sys.modules:
            hooks.run(sys.modules[name])


def _server_is_live() -> bool:
    dependencies = sys.modules.get("invokeai.app.api.dependencies")
    return dependencies is not None and getattr(dependencies.ApiDependencies, "invoker", None) is not None


def _enter_members_only() -> None:
    """Our nodes name our bases when they are imported; everything else waits for the restart."""
    if NAME in status.report.entries:
        return
    hooks.run(sys.modules["invokeai.backend.model_manager.taxonomy"])
    status.applied(NAME, "waits for a restart of InvokeAI")
    logger.warning("invokeai-video: please restart InvokeAI once before you install or use video models")


def _extend_in_place(factory: Any, alias: Any, validator: Any) -> None:
    """Put the new union's members into the old alias, which modules and annotations hold by value, and reinstate both names.

    Raises RuntimeError when the hooks did not extend the union.
    """
    if factory.AnyModelConfig is alias:
        raise RuntimeError("expected a union with our model configs, got InvokeAI's own")
    new_union = get_args(factory.AnyModelConfig)[0]
    alias.__origin__ = new_union
    alias.__args__ = (new_union,)
    factory.AnyModelConfig = alias
    factory.AnyModelConfigValidator = validator


def _belongs_to_host(cls: Any) -> bool:
    return cls.__module__.partition(".")[0] in REBUILT_PACKAGES


def _rebuild_models(old_union: Any, new_union: Any) -> int:
    """Build the schema of every pydantic model of InvokeAI and FastAPI again; returns how many.

    All cached schemas go first: a model that is rebuilt takes over the cached schemas of the models inside it.
    """
    from pydantic import BaseModel

    models = [cls for cls in _subclasses(BaseModel) if _belongs_to_host(cls)]
    for cls in models:
        for field in cls.__pydantic_fields__.values():
            if field.annotation is old_union:  # a field of the bare alias keeps the union apart from its discriminator
                field.annotation = new_union
        for name in CACHED_SCHEMAS:
            if name in cls.__dict__:
                delattr(cls, name)
    for cls in models:
        cls.model_rebuild(force=True)
    return len(models)


def _subclasses(cls: Any) -> list[Any]:
    """Every living subclass, parents before children, each once."""
    found: dict[Any, None] = {}
    pending = [cls]
    while pending:
        for child in pending.pop().__subclasses__():
            if child not in found:
                found[child] = None
                pending.append(child)
    return list(found)


def _rebuild_adapters() -> int:
    """Rebuild every living `TypeAdapter` (those of FastAPI's routes, InvokeAI's validators); returns how many."""
    from pydantic import TypeAdapter

    adapters = [found for found in gc.get_objects() if type(found) is TypeAdapter]
    for adapter in adapters:
        adapter.rebuild(force=True, raise_errors=False)
    return len(adapters)


def _self_test() -> None:
    """Send a record of ours through the model list's response; raises what pydantic raises, or RuntimeError."""
    from invokeai.app.api.routers.model_manager import ModelsList
    from invokeai.backend.model_manager.taxonomy import ModelSourceType

    from invokeai_video_patches.model_configs import Main_Diffusers_ZImageVideo_Config

    words = dict.fromkeys(("path", "name", "source", "hash"), "self-test")
    record = Main_Diffusers_ZImageVideo_Config(**words, source_type=ModelSourceType.Path, file_size=0, repo_variant="", f_patch_sizes=[1])
    listed = ModelsList.model_validate_json(ModelsList(models=[record]).model_dump_json())
    if listed.models != [record]:
        raise RuntimeError(f"model list: expected {record.base.value} back, got {listed.models[0].base}")
