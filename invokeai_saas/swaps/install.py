"""Puts our services where InvokeAI makes its own: `dependencies.py` calls each class by its name in that module, so the names are ours.

Run it before `invokeai.app.api_app` is imported. A name that InvokeAI no longer has stops the start: half-swapped would mix tenants.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from invokeai_saas.accounts.model import Accounts
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.errors import SaasError
from invokeai_saas.events.bus import EventBus
from invokeai_saas.storage.files import Files
from invokeai_saas.wakeups.port import Wakeups

# Latents of 32 channels (FLUX.2, taken apart) are an eighth of the picture, those of 48 (Wan 2.2) a sixteenth.
MOST_CHANNELS_BY_8 = 32


class UnknownInvokeAI(SaasError):
    """The installed InvokeAI lacks a place that we replace."""


@dataclass(frozen=True)
class Parts:
    """What the services are made from."""

    database: PostgresDatabase
    files: Files
    accounts: Accounts
    sharing: bool
    # Plans gate and credits are held; without it everybody may everything.
    metering: bool = True
    # How events reach other processes; None: they do not.
    bus: EventBus | None = None
    # How idle workers of other processes hear of an enqueue; None: they look every second.
    wakeups: Wakeups | None = None
    # Items run in this process; without it other processes run them.
    worker: bool = True


def install_services(parts: Parts) -> None:
    """Replace the factories of a server's services and its sockets."""
    import invokeai.app.api.sockets as sockets

    from invokeai_saas.swaps.sockets import TenantSockets

    TenantSockets.accounts, TenantSockets.sharing = parts.accounts, parts.sharing
    _replace(sockets, {"SocketIO": TenantSockets})
    replace_services(parts)


def replace_services(parts: Parts, **others: Callable[..., Any]) -> None:
    """Replace the factories of InvokeAI's services; `others` are a worker's own, by the names that InvokeAI calls."""
    import invokeai.app.api.dependencies as dependencies
    from invokeai.app.services.model_manager import model_manager_default

    from invokeai_saas.swaps.model_loading import UnchargedModelCache, UnchargedModelInstalls, UnchargedModelLoads

    models = {"ModelLoadService": UnchargedModelLoads, "ModelCache": UnchargedModelCache, "ModelInstallService": UnchargedModelInstalls}
    of_models = {name: others.pop(name) for name in models if name in others}
    _replace(dependencies, {**_factories(parts), **others})
    _replace(model_manager_default, {**models, **of_models})


def _factories(parts: Parts) -> dict[str, Callable[..., Any]]:
    """By the name that InvokeAI calls; the arguments are InvokeAI's, the services are ours."""
    from invokeai_saas.closed.nodes import demand_open_node
    from invokeai_saas.jobs import running
    from invokeai_saas.swaps.batched_boards import BatchedImages, BatchedVideos
    from invokeai_saas.swaps.bulk_download import TenantBulkDownloads
    from invokeai_saas.swaps.events import CommittedEvents
    from invokeai_saas.swaps.image_files import StoredImageFiles
    from invokeai_saas.swaps.image_moves import NoImageMoves
    from invokeai_saas.swaps.invocation_cache import TenantInvocationCache
    from invokeai_saas.swaps.model_images import StoredModelImages
    from invokeai_saas.swaps.session_processor import IdleSessionProcessor, LeasedSessionProcessor
    from invokeai_saas.swaps.session_queue import PostgresSessionQueue
    from invokeai_saas.swaps.session_runner import LeasedSessionRunner
    from invokeai_saas.swaps.shared_records import SharedModelRecords, SharedModelRelationships, Users
    from invokeai_saas.swaps.style_preset_images import StoredStylePresetImages
    from invokeai_saas.swaps.tensors import TenantObjects
    from invokeai_saas.swaps.video_files import StoredVideoFiles
    from invokeai_saas.swaps.workflow_thumbnails import StoredWorkflowThumbnails

    database, files = parts.database, parts.files
    admission = admission_of(parts)
    return {
        "init_db": lambda **_: database,
        "FastAPIEventService": lambda event_handler_id, loop: CommittedEvents(database, event_handler_id, loop, bus=parts.bus),
        "DiskImageFileStorage": lambda folder: StoredImageFiles(files, Path(folder)),
        "DiskVideoFileStorage": lambda folder: StoredVideoFiles(files),
        "ModelImageFileStorageDisk": lambda folder: StoredModelImages(files, Path(folder)),
        "StylePresetImageFileStorageDisk": lambda folder: StoredStylePresetImages(files),
        "WorkflowThumbnailFileStorageDisk": lambda folder: StoredWorkflowThumbnails(files),
        "ImageMoveService": lambda **_: NoImageMoves(),
        "ImageService": lambda: BatchedImages(database),
        "VideoService": lambda: BatchedVideos(database),
        "BulkDownloadService": lambda: TenantBulkDownloads(files.store),
        "MemoryInvocationCache": TenantInvocationCache,
        "ObjectSerializerForwardCache": TenantObjects,
        # A closed node is refused at the door and once more when it is run, wherever its graph came from.
        "DefaultSessionRunner": lambda: LeasedSessionRunner(
            on_before_run_node_callbacks=[demand_open_node, running.before_node],
            on_after_run_node_callbacks=[running.after_node],
            on_node_error_callbacks=[running.node_failed],
        ),
        "DefaultSessionProcessor": LeasedSessionProcessor if parts.worker else IdleSessionProcessor,
        "SqliteSessionQueue": lambda db: PostgresSessionQueue(database, admission=admission, wakeups=parts.wakeups),
        "ModelRecordServiceSQL": SharedModelRecords,
        "SqliteModelRelationshipRecordStorage": SharedModelRelationships,
        "UserService": Users,
    }


def admission_of(parts: Parts) -> Any:
    """Who may enqueue what, and what a running item may do; None where nothing is metered."""
    from invokeai_saas.jobs.admission import Admission
    from invokeai_saas.jobs.routing import Routing

    return Admission(parts.database, workflow_of, latents_size, routing=Routing(parts.database)) if parts.metering else None


def workflow_of(workflow_id: str) -> dict[str, Any] | None:
    """A saved workflow as it would run, None where the tenant may not see it: InvokeAI's own look, under the policies."""
    from invokeai.app.api.dependencies import ApiDependencies
    from invokeai.app.services.workflow_records.workflow_records_common import WorkflowNotFoundError

    try:
        record = ApiDependencies.invoker.services.workflow_records.get(workflow_id)
    except WorkflowNotFoundError:
        return None
    return dict(record.workflow.model_dump())


def latents_size(name: str) -> tuple[int, int] | None:
    """The size in pixels of stored latents, None for what is not there. Autoencoders of many channels shrink by 16, all others by 8."""
    from invokeai.app.api.dependencies import ApiDependencies

    try:
        latents = ApiDependencies.invoker.services.tensors.load(name)
    except Exception:
        return None
    channels = latents.shape[1] if latents.dim() > 3 else 1
    factor = 16 if channels > MOST_CHANNELS_BY_8 else 8
    return latents.shape[-1] * factor, latents.shape[-2] * factor


def take_away(routers: Iterable[Any], routes: Iterable[tuple[str, str]]) -> None:
    """Remove InvokeAI's routes (method, path without /api) that ours replace; raises UnknownInvokeAI for one that is not there."""
    for method, path in routes:
        if not any(_remove(router, method, path) for router in routers):
            raise UnknownInvokeAI(f"expected InvokeAI to have the route {method} {path}, which ours replaces")


def _remove(router: Any, method: str, path: str) -> bool:
    for route in list(router.routes):
        if route.path == path and method in route.methods:
            router.routes.remove(route)
            return True
    return False


def _replace(module: ModuleType, names: dict[str, Any]) -> None:
    for name, ours in names.items():
        if not hasattr(module, name):
            raise UnknownInvokeAI(f"expected {name} in {module.__name__}, which ours replaces")
        setattr(module, name, ours)
