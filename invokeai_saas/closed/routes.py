"""InvokeAI's routes as a server for many users serves them. Run `close_routes()` before `invokeai.app.api_app` is imported.

    closed          403 with the reason, not in OpenAPI
    all others      our errors keep their status (InvokeAI makes most exceptions a 500), a 500 says nothing of its inside,
                    what is cached is cached by the browser alone, and models show their place on the disk to super_admins only

PUBLIC, MEDIA and SUPER_ADMIN say who may call what; everything else wants a user. Paths as in OpenAPI.
"""

import asyncio
import functools
import importlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import FileResponse
from fastapi.routing import APIRoute

from invokeai_saas.closed.nodes import demand_open
from invokeai_saas.db import tenancy
from invokeai_saas.errors import SaasError

logger = logging.getLogger(__name__)

_ROUTERS = (
    "app_info auth board_images boards client_state custom_nodes gallery image_moves images model_manager model_relationships"
    " recall_parameters session_queue style_presets system_prompts utilities videos virtual_boards workflows"
).split()

_IN_THE_WEB_PROCESS = "it runs a model inside the web process, past the queue"
_PACKS = "it runs code that somebody uploads; packs are installed with the server"
_ONE_PROCESS = "it changes the settings of one process; set them in the environment, for all of them"
_MOVES = "files lie where the storage keeps them"
CLOSED_ROUTES = {
    ("POST", "/api/v1/utilities/expand-prompt"): _IN_THE_WEB_PROCESS,
    ("POST", "/api/v1/utilities/image-to-prompt"): _IN_THE_WEB_PROCESS,
    ("GET", "/api/v2/custom_nodes/"): _PACKS,
    ("POST", "/api/v2/custom_nodes/install"): _PACKS,
    ("DELETE", "/api/v2/custom_nodes/{pack_name}"): _PACKS,
    ("POST", "/api/v2/custom_nodes/reload"): _PACKS,
    ("PATCH", "/api/v1/app/runtime_config"): _ONE_PROCESS,
    ("POST", "/api/v1/app/external_providers/config/{provider_id}"): _ONE_PROCESS,
    ("DELETE", "/api/v1/app/external_providers/config/{provider_id}"): _ONE_PROCESS,
    ("POST", "/api/v1/image_moves/start"): _MOVES,
    ("POST", "/api/v1/image_moves/recover"): _MOVES,
    ("GET", "/api/v1/image_moves/status"): _MOVES,
    ("GET", "/api/v2/models/sync/orphaned"): "it compares a folder with a database that other servers use too",
    ("DELETE", "/api/v2/models/sync/orphaned"): "it deletes folders that models of other servers may use",
}
# Answered to anybody.
PUBLIC = {
    ("GET", "/api/v1/app/version"): "the login page shows it",
    ("GET", "/api/v1/auth/status"): "the login page asks whether there are accounts",
    ("GET", "/api/v2/models/i/{key}/image"): "covers of models are one installation's, and <img> sends no header",
}
# GETs of <img> and <video>, which send no header: the cookie `invokeai_media_token` says who asks, there and nowhere else.
MEDIA = {
    ("GET", "/api/v1/images/i/{image_name}/full"): "<img>",
    ("HEAD", "/api/v1/images/i/{image_name}/full"): "<img>",
    ("GET", "/api/v1/images/i/{image_name}/thumbnail"): "<img>",
    ("GET", "/api/v1/videos/i/{video_name}/full"): "<video>",
    ("HEAD", "/api/v1/videos/i/{video_name}/full"): "<video>",
    ("GET", "/api/v1/videos/i/{video_name}/thumbnail"): "<img>",
    ("GET", "/api/v1/workflows/i/{workflow_id}/thumbnail"): "<img>; InvokeAI asks nobody who they are here",
    ("GET", "/api/v1/style_presets/i/{style_preset_id}/image"): "<img>; InvokeAI wants a header here, which <img> cannot send",
}
_MODELS = "models are one installation for all"
_SERVER = "the server is everybody's"
# What InvokeAI keeps for its admins and we keep for super_admins, beside accounts, which have routes of their own.
SUPER_ADMIN = {
    ("GET", "/api/v1/app/runtime_config"): _SERVER,
    ("GET", "/api/v1/app/external_providers/config"): _SERVER,
    ("GET", "/api/v1/app/logging"): _SERVER,
    ("POST", "/api/v1/app/logging"): _SERVER,
    ("DELETE", "/api/v1/app/invocation_cache"): _SERVER,
    ("PUT", "/api/v1/app/invocation_cache/enable"): _SERVER,
    ("PUT", "/api/v1/app/invocation_cache/disable"): _SERVER,
    ("GET", "/api/v1/app/invocation_cache/status"): _SERVER,
    ("PUT", "/api/v1/queue/{queue_id}/processor/resume"): _SERVER,
    ("PUT", "/api/v1/queue/{queue_id}/processor/pause"): _SERVER,
    ("GET", "/api/v1/style_presets/export"): "InvokeAI's rule; the rows are the caller's own",
    ("POST", "/api/v1/style_presets/import"): "InvokeAI's rule; the rows are the caller's own",
    ("POST", "/api/v1/model_relationships/"): _MODELS,
    ("DELETE", "/api/v1/model_relationships/"): _MODELS,
    ("POST", "/api/v2/models/i/{key}/reidentify"): _MODELS,
    ("GET", "/api/v2/models/scan_folder"): _MODELS,
    ("GET", "/api/v2/models/hugging_face"): _MODELS,
    ("PATCH", "/api/v2/models/i/{key}"): _MODELS,
    ("PATCH", "/api/v2/models/i/{key}/image"): _MODELS,
    ("DELETE", "/api/v2/models/i/{key}"): _MODELS,
    ("POST", "/api/v2/models/i/bulk_delete"): _MODELS,
    ("POST", "/api/v2/models/i/bulk_reidentify"): _MODELS,
    ("DELETE", "/api/v2/models/i/{key}/image"): _MODELS,
    ("POST", "/api/v2/models/install"): _MODELS,
    ("GET", "/api/v2/models/install/huggingface"): _MODELS,
    ("GET", "/api/v2/models/install"): _MODELS,
    ("GET", "/api/v2/models/install/{id}"): _MODELS,
    ("DELETE", "/api/v2/models/install/{id}"): _MODELS,
    ("POST", "/api/v2/models/install/{id}/pause"): _MODELS,
    ("POST", "/api/v2/models/install/{id}/resume"): _MODELS,
    ("POST", "/api/v2/models/install/{id}/restart_failed"): _MODELS,
    ("POST", "/api/v2/models/install/{id}/restart_file"): _MODELS,
    ("DELETE", "/api/v2/models/install"): _MODELS,
    ("PUT", "/api/v2/models/convert/{key}"): _MODELS,
    ("GET", "/api/v2/models/starter_models"): _MODELS,
    ("GET", "/api/v2/models/stats"): _SERVER,
    ("POST", "/api/v2/models/empty_model_cache"): _SERVER,
    ("GET", "/api/v2/models/hf_login"): _SERVER,
    ("POST", "/api/v2/models/hf_login"): _SERVER,
    ("DELETE", "/api/v2/models/hf_login"): _SERVER,
}
# Where InvokeAI asks nobody who they are.
_ASKS_NOBODY = {("GET", "/api/v1/workflows/i/{workflow_id}/thumbnail")}
# Routes of models that anybody may read.
_SHOW_MODELS = frozenset(
    f"/api/v2/models/{path}" for path in ("", "missing", "get_by_attrs", "get_by_hash", "i/{key}")
)
# Fields of a model that say where on the server it lies.
_PLACES = ("path", "config_path")


def close_routes() -> None:
    """Edit InvokeAI's routers; raises LookupError for a row that InvokeAI does not have. Again is fine."""
    routes = dict(upstream_routes())
    for row in (*CLOSED_ROUTES, *PUBLIC, *MEDIA, *SUPER_ADMIN):
        if row not in routes:
            raise LookupError(f"InvokeAI changed: it has no route {row[0]} {row[1]}")
    for (method, path), (router, route) in routes.items():
        reason = CLOSED_ROUTES.get((method, path))
        if reason is not None:
            router.routes[router.routes.index(route)] = _closed(route, reason)
        elif not hasattr(route.endpoint, "upstream"):
            route.endpoint = _speaking_plainly(
                route.endpoint, shows_models=method == "GET" and path in _SHOW_MODELS, asks=(method, path) in _ASKS_NOBODY
            )


def upstream_routes() -> Iterator[tuple[tuple[str, str], tuple[APIRouter, APIRoute]]]:
    """((method, path as in OpenAPI), (router, route)) of every route in InvokeAI's routers."""
    for name in _ROUTERS:
        module = importlib.import_module(f"invokeai.app.api.routers.{name}")
        for router in (value for attribute, value in vars(module).items() if attribute.endswith("_router")):
            for route in list(router.routes):
                for method in route.methods:
                    yield (method, f"/api{route.path}"), (router, route)


def _closed(route: APIRoute, reason: str) -> APIRoute:
    """The same path with nothing behind it."""

    def refuse(_request: Request) -> Response:
        raise HTTPException(status_code=403, detail=f"This is off on this server: {reason}.")

    return APIRoute(route.path, refuse, methods=list(route.methods), include_in_schema=False)


def _speaking_plainly(endpoint: Callable[..., Any], *, shows_models: bool, asks: bool) -> Callable[..., Any]:
    def before(given: dict[str, Any]) -> None:
        if asks and tenancy.current_or_none() is None:
            raise HTTPException(status_code=401, detail="Not authenticated", headers={"WWW-Authenticate": "Bearer"})
        if "batch" in given:
            demand_open(given["batch"])

    def after(given: dict[str, Any], answer: Any) -> Any:
        if isinstance(answer, FileResponse) and not Path(answer.path).is_file():
            # It would break off after its status was decided: a 500.
            raise HTTPException(status_code=404)
        if isinstance(answer, Response):
            _keep_in_the_browser(answer)
        if shows_models and not given["current_user"].is_admin:
            return _without_places(answer)
        return answer

    @functools.wraps(endpoint)
    def plain(**given: Any) -> Any:
        try:
            before(given)
            return after(given, endpoint(**given))
        except Exception as error:
            raise _plainly(error) from error

    @functools.wraps(endpoint)
    async def plain_async(**given: Any) -> Any:
        try:
            before(given)
            return after(given, await endpoint(**given))
        except Exception as error:
            raise _plainly(error) from error

    chosen: Any = plain_async if asyncio.iscoroutinefunction(endpoint) else plain
    chosen.upstream = endpoint
    return cast(Callable[..., Any], chosen)


def _plainly(error: Exception) -> Exception:
    """Our own error that InvokeAI's route made a 500 of, or a 500 that says nothing; else the error as it is."""
    status = int(error.status_code) if isinstance(error, HTTPException) else 500
    ours: SaasError | None = next((cause for cause in _causes(error) if isinstance(cause, SaasError)), None)
    if ours is not None and (status >= 500 or ours.status == 503):
        return ours
    if isinstance(error, HTTPException) and status == 500:
        logger.error("a route of InvokeAI failed: %s", error.detail, exc_info=error)
        closed: Exception = HTTPException(status_code=500, detail="the service cannot answer now")
        return closed
    return error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen = 0
    while error is not None and seen < 20:
        yield error
        error, seen = error.__cause__ or error.__context__, seen + 1


def _keep_in_the_browser(answer: Response) -> None:
    """A shared cache must not hand one tenant's picture to another."""
    kept = answer.headers.get("cache-control")
    if kept and "private" not in kept and "no-store" not in kept:
        answer.headers["cache-control"] = f"private, {kept}"


def _without_places(answer: Any) -> Any:
    if hasattr(answer, "models"):
        return answer.model_copy(update={"models": [_without_place(model) for model in answer.models]})
    return _without_place(answer)


def _without_place(model: Any) -> Any:
    """Where a model came from is told only when that is a public name."""
    hidden = {name: "" for name in _PLACES if getattr(model, name, None)}
    if getattr(model, "source_type", None) not in ("hf_repo_id", "external"):
        hidden["source"] = ""
    return model.model_copy(update=hidden)
