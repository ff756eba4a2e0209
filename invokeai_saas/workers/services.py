"""InvokeAI's services in a runner: those of a server, made by InvokeAI's own function, without its web application.

    template: import_everything ─► fork ─► runner: configure, open database and files, make the services, start their events' loop

What a server does once for everybody when it starts is left to it: default presets and workflows, interrupted model installs, providers'
starter models. Tensors lie in the runner's own folder: InvokeAI empties that folder when it starts.
"""

import asyncio
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from invokeai_saas.accounts import store
from invokeai_saas.db import tenancy

if TYPE_CHECKING:
    from invokeai_saas.settings import Settings
    from invokeai_saas.swaps.install import Parts

# Any number but 0, which the dispatcher reads as none.
EVENT_CHANNEL = 0x1E8B


def import_everything(settings: "Settings") -> None:
    """InvokeAI with its nodes and ours, and every module of ours that a runner uses. Opens nothing."""
    from invokeai_saas.swaps.upstream import configure_invokeai, load_nodes

    configure_invokeai(settings)
    from invokeai.app.util.startup_utils import apply_monkeypatches

    apply_monkeypatches()
    # The schema of a graph is the union of the nodes known when it is imported, so InvokeAI's own come first.
    import invokeai.app.api.dependencies
    import invokeai.app.services.shared.graph  # noqa: F401

    load_nodes()
    import invokeai_saas.jobs.admission
    import invokeai_saas.storage.opening
    import invokeai_saas.swaps.install
    import invokeai_saas.swaps.sockets
    import invokeai_saas.workers.handed
    import invokeai_saas.workers.runner  # noqa: F401


def make_services(parts: "Parts", *, folder: Path, device: str, runners: int, others: dict[str, Any]) -> Any:
    """InvokeAI's invoker, started, whose services are ours; `others` are the runner's own factories. One per process.

    The machine's memory for models is shared by `runners` caches.
    """
    from fastapi_events import handler_store
    from fastapi_events.handlers.local import local_handler
    from invokeai.app.api import dependencies
    from invokeai.app.services.config.config_default import get_config
    from invokeai.backend.util.logging import InvokeAILogger

    from invokeai_saas.swaps.install import replace_services

    config = get_config()
    config.outputs_dir = folder / "outputs"
    config.device, config.generation_devices = device, [device]
    if config.max_cache_ram_gb is None and runners > 1:
        # InvokeAI's own reckoning takes half of the machine, for each of them.
        config.max_cache_ram_gb = psutil.virtual_memory().total / 2**31 / runners
    replace_services(parts, **_left_to_the_server(), **others)
    # What the web application's middleware would do: InvokeAI's processor hears of canceled items through it.
    handler_store[EVENT_CHANNEL] = [local_handler]
    loop = asyncio.new_event_loop()
    with tenancy.as_system("a worker starts"):
        with parts.database.postgres() as cursor:
            # InvokeAI reads it when it starts; whoever comes first makes it.
            store.signing_secret(cursor)
        dependencies.ApiDependencies.initialize(
            config=config, event_handler_id=EVENT_CHANNEL, loop=loop, logger=InvokeAILogger.get_logger(config=config)
        )
    threading.Thread(target=loop.run_forever, name="invokeai-events", daemon=True).start()
    return dependencies.ApiDependencies.invoker


def _left_to_the_server() -> dict[str, Any]:
    from invokeai.app.services.style_preset_records.style_preset_records_sqlite import SqliteStylePresetRecordsStorage
    from invokeai.app.services.workflow_records.workflow_records_sqlite import SqliteWorkflowRecordsStorage

    from invokeai_saas.swaps.model_loading import UnchargedModelInstalls

    class Presets(SqliteStylePresetRecordsStorage):
        def _sync_default_style_presets(self) -> None:
            """A server's."""

    class Workflows(SqliteWorkflowRecordsStorage):
        def _sync_default_workflows(self) -> None:
            """A server's."""

    class Installs(UnchargedModelInstalls):
        def _remove_dangling_install_dirs(self) -> None:
            """An install of the server that uses the same folder."""

        def _migrate_yaml(self) -> None:
            """A server's."""

        def _write_invoke_managed_models_dir_readme(self) -> None:
            """The folder may be read only."""

        def _restore_incomplete_installs_async(self) -> None:
            self._restore_completed_event.set()

        def _scan_for_missing_models(self) -> list[Any]:
            """With models that are fetched on demand most are missing."""
            return []

    return {
        "SqliteStylePresetRecordsStorage": Presets,
        "SqliteWorkflowRecordsStorage": Workflows,
        "ModelInstallService": Installs,
        "sync_configured_external_starter_models": lambda **_: None,
    }
