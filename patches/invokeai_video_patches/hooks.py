"""One hook per InvokeAI module: which patch runs after which import. The only place that names both sides.

`run(module)` is called by the bootstrap right after the module was executed. It checks the version once, runs the patch,
and turns every failure into one log line and stock behaviour.
"""

from collections.abc import Callable
from types import ModuleType

from invokeai_video_patches import status, version_gate

PREFIX = "invokeai."


def _taxonomy(module: ModuleType) -> str:
    from invokeai_video_patches import taxonomy

    return taxonomy.patch(module)


def _model_configs(module: ModuleType) -> str:
    from invokeai_video_patches import model_configs

    return model_configs.patch(module)


def _model_loaders(module: ModuleType) -> str:
    from invokeai_video_patches import model_loaders

    return model_loaders.patch(module)


def _starter_models(module: ModuleType) -> str:
    from invokeai_video_patches import starter_models

    return starter_models.patch(module) or ""


def _installer(module: ModuleType) -> str:
    from invokeai_video_patches import starter_models

    return starter_models.patch_installer(module)


def _web_ui(module: ModuleType) -> str:
    from invokeai_video_patches import web_ui

    return web_ui.patch(module) or ""


def _nodes(module: ModuleType) -> str:
    from invokeai_video_patches import node_registration

    return node_registration.patch(module)


HOOKS: dict[str, tuple[str, Callable[[ModuleType], str]]] = {
    "invokeai.backend.model_manager.taxonomy": ("model types", _taxonomy),
    "invokeai.backend.model_manager.configs.factory": ("model identification", _model_configs),
    "invokeai.backend.model_manager.load": ("model loaders", _model_loaders),
    "invokeai.backend.model_manager.starter_models": ("starter models", _starter_models),
    "invokeai.app.services.model_install.model_install_default": ("model installer", _installer),
    "invokeai.app.api.no_cache_staticfiles": ("web interface", _web_ui),
    "invokeai.app.invocations.load_custom_nodes": ("nodes", _nodes),
}


def run(module: ModuleType) -> None:
    """Run the patch of one module unless the version gate or an earlier failure says no; never raises."""
    name, patch = HOOKS[module.__name__]
    version = version_gate.installed_version()
    if not version_gate.is_supported(version):
        status.fell_back("InvokeAI version", f"expected {version_gate.SUPPORTED}, got {version}")
        return
    try:
        detail = patch(module)
    except Exception as error:
        status.fell_back(name, f"{type(error).__name__}: {error}".splitlines()[0])
    else:
        if name not in status.report.entries:
            status.applied(name, detail)
