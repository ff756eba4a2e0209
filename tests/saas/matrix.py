"""Every operation of /openapi.json and who may do what with it: one row each, so that a route without a row fails.

    public      anybody, signed in or not
    own         one row of the caller's: somebody else's id answers as a missing one
    list        the caller's rows, however many: nothing of anybody else is in it, and a change touches nothing of theirs
    shared      the same for every user (models, fonts, versions): signed in is enough
    admin       our admins and super_admins      super      super_admins
    closed      403 for everybody, and not in OpenAPI

`ids` names what stands for {…} in the path: the matrix puts the victim's real id there. `rows()` is InvokeAI's, `live_rows()` what our
server serves.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from invokeai_saas.closed.routes import CLOSED_ROUTES, PUBLIC, SUPER_ADMIN

Kind = Literal["public", "own", "list", "shared", "admin", "super", "closed"]


@dataclass(frozen=True)
class Row:
    """`ids`: path parameter -> kind of thing. `body` may hold {"<kind>"} placeholders for the victim's ids."""

    kind: Kind
    ids: dict[str, str] = field(default_factory=dict)
    body: Any = None


_IDS = {
    "board_id": "board",
    "image_name": "image",
    "video_name": "video",
    "workflow_id": "workflow",
    "style_preset_id": "style_preset",
    "system_prompt_id": "system_prompt",
    "item_id": "item",
    "batch_id": "batch",
    "destination": "destination",
    "bulk_download_item_name": "zip",
    "key_id": "api_key",
    "user_id": "user",
}
_ONE_IMAGE, _IMAGES = {"image_name": "<image>"}, {"image_names": ["<image>"]}
_ONE_VIDEO, _VIDEOS = {"video_name": "<video>"}, {"video_names": ["<video>"]}
_GRAPH = {"nodes": {"n": {"id": "n", "type": "image", "image": _ONE_IMAGE}}, "edges": []}
WORKFLOW = {
    **dict.fromkeys(("name", "author", "description", "contact", "tags", "notes"), "w"),
    "version": "1.0.0",
    "exposedFields": [],
    "meta": {"version": "3.0.0", "category": "user"},
    "nodes": [],
    "edges": [],
    "form": None,
}

# (method, path): (kind, body). Path parameters are known by their names.
_OPERATIONS: dict[str, list[tuple[str, str, Kind, Any]]] = {
    "/api/v1/app": [
        ("GET", "/app_deps", "shared", None),
        ("GET", "/patchmatch_status", "shared", None),
        ("GET", "/generation_device_options", "shared", None),
        ("GET", "/external_providers/status", "shared", None),
    ],
    "/api/v1/auth": [("POST", "/media-cookie", "list", None)],
    "/api/v1/board_images": [
        ("POST", "/", "own", {"board_id": "<board>", **_ONE_IMAGE}),
        ("DELETE", "/", "own", _ONE_IMAGE),
        ("POST", "/batch", "own", {"board_id": "<board>", **_IMAGES}),
        ("POST", "/batch/delete", "own", _IMAGES),
    ],
    "/api/v1/boards": [
        ("POST", "/", "list", None),
        ("GET", "/", "list", None),
        ("GET", "/{board_id}", "own", None),
        ("PATCH", "/{board_id}", "own", {"board_name": "stolen"}),
        ("DELETE", "/{board_id}", "own", None),
        ("GET", "/{board_id}/image_names", "own", None),
    ],
    "/api/v1/client_state/{queue_id}": [
        ("GET", "/get_by_key", "list", None),
        ("POST", "/set_by_key", "list", "value"),
        ("GET", "/get_keys_by_prefix", "list", None),
        ("POST", "/delete_by_key", "list", None),
        ("POST", "/delete", "list", None),
    ],
    "/api/v1/gallery": [
        ("GET", "/items/", "list", None),
        ("GET", "/item_names", "list", None),
        ("GET", "/items/names", "list", None),
    ],
    "/api/v1/images": [
        ("POST", "/upload", "list", None),
        ("POST", "/", "list", None),
        ("DELETE", "/i/{image_name}", "own", None),
        ("PATCH", "/i/{image_name}", "own", {"starred": True}),
        ("GET", "/i/{image_name}", "own", None),
        ("GET", "/i/{image_name}/metadata", "own", None),
        ("GET", "/i/{image_name}/workflow", "own", None),
        ("HEAD", "/i/{image_name}/full", "own", None),
        ("GET", "/i/{image_name}/full", "own", None),
        ("GET", "/i/{image_name}/thumbnail", "own", None),
        ("GET", "/i/{image_name}/urls", "own", None),
        ("DELETE", "/intermediates", "super", None),
        ("GET", "/intermediates", "list", None),
        ("GET", "/", "list", None),
        ("POST", "/delete", "own", _IMAGES),
        ("DELETE", "/uncategorized", "list", None),
        ("POST", "/star", "own", _IMAGES),
        ("POST", "/unstar", "own", _IMAGES),
        ("POST", "/download", "own", _IMAGES),
        ("GET", "/download/{bulk_download_item_name}", "own", None),
        ("GET", "/names", "list", None),
        ("POST", "/images_by_names", "own", _IMAGES),
    ],
    "/api/v2/models": [
        ("GET", "/", "shared", None),
        ("GET", "/missing", "shared", None),
        ("GET", "/get_by_attrs", "shared", None),
        ("GET", "/get_by_hash", "shared", None),
        ("GET", "/i/{key}", "shared", None),
    ],
    "/api/v1/model_relationships": [
        ("GET", "/i/{model_key}", "shared", None),
        ("POST", "/batch", "shared", {"model_keys": ["k"]}),
    ],
    "/api/v1/recall": [
        ("POST", "/{queue_id}", "own", {"reference_images": [_ONE_IMAGE]}),
        ("GET", "/{queue_id}", "list", None),
    ],
    "/api/v1/queue/{queue_id}": [
        ("POST", "/enqueue_batch", "own", {"batch": {"graph": _GRAPH, "runs": 1}}),
        ("GET", "/list_all", "list", None),
        ("GET", "/item_ids", "list", None),
        ("POST", "/items_by_ids", "own", {"item_ids": ["<item>"]}),
        ("POST", "/item_summaries_by_ids", "own", {"item_ids": ["<item>"]}),
        ("PUT", "/cancel_all_except_current", "list", None),
        ("PUT", "/delete_all_except_current", "list", None),
        ("PUT", "/cancel_by_batch_ids", "own", {"batch_ids": ["<batch>"]}),
        ("PUT", "/cancel_by_destination", "list", None),
        ("PUT", "/retry_items_by_id", "own", ["<item>"]),
        ("PUT", "/clear", "list", None),
        ("PUT", "/prune", "list", None),
        ("GET", "/current", "list", None),
        ("GET", "/next", "list", None),
        ("GET", "/status", "list", None),
        ("GET", "/b/{batch_id}/status", "own", None),
        ("GET", "/i/{item_id}", "own", None),
        ("DELETE", "/i/{item_id}", "own", None),
        ("PUT", "/i/{item_id}/cancel", "own", None),
        ("GET", "/counts_by_destination", "list", None),
        ("DELETE", "/d/{destination}", "own", None),
    ],
    "/api/v1/style_presets": [
        ("GET", "/i/{style_preset_id}", "own", None),
        ("PATCH", "/i/{style_preset_id}", "own", None),
        ("DELETE", "/i/{style_preset_id}", "own", None),
        ("POST", "/", "list", None),
        ("GET", "/", "list", None),
        ("GET", "/i/{style_preset_id}/image", "own", None),
    ],
    "/api/v1/system_prompts": [
        ("GET", "/", "list", None),
        ("GET", "/i/{system_prompt_id}", "own", None),
        ("POST", "/", "list", {"name": "n", "content": "c"}),
        ("PATCH", "/i/{system_prompt_id}", "own", {"name": "stolen"}),
        ("DELETE", "/i/{system_prompt_id}", "own", None),
    ],
    "/api/v1/utilities": [
        ("POST", "/dynamicprompts", "shared", {"prompt": "a {cat|dog}"}),
        ("GET", "/fonts", "shared", None),
        ("GET", "/fonts/{font_path}", "shared", None),
    ],
    "/api/v1/videos": [
        ("POST", "/upload", "list", None),
        ("DELETE", "/i/{video_name}", "own", None),
        ("POST", "/delete", "own", _VIDEOS),
        ("DELETE", "/uncategorized", "list", None),
        ("PATCH", "/i/{video_name}", "own", {"starred": True}),
        ("GET", "/i/{video_name}", "own", None),
        ("GET", "/i/{video_name}/metadata", "own", None),
        ("GET", "/i/{video_name}/workflow", "own", None),
        ("HEAD", "/i/{video_name}/full", "own", None),
        ("GET", "/i/{video_name}/full", "own", None),
        ("GET", "/i/{video_name}/thumbnail", "own", None),
        ("GET", "/i/{video_name}/urls", "own", None),
        ("GET", "/", "list", None),
        ("GET", "/names", "list", None),
        ("POST", "/star", "own", _VIDEOS),
        ("POST", "/unstar", "own", _VIDEOS),
        ("POST", "/board", "own", {"board_id": "<board>", **_ONE_VIDEO}),
        ("DELETE", "/board", "own", _ONE_VIDEO),
    ],
    "/api/v1/virtual_boards": [
        ("GET", "/by_date", "list", None),
        ("GET", "/by_date/{date}/image_names", "list", None),
        ("GET", "/by_date/{date}/item_names", "list", None),
    ],
    "/api/v1/workflows": [
        ("GET", "/i/{workflow_id}", "own", None),
        ("PATCH", "/i/{workflow_id}", "own", {"workflow": {**WORKFLOW, "id": "<workflow>"}}),
        ("DELETE", "/i/{workflow_id}", "own", None),
        ("POST", "/", "list", {"workflow": WORKFLOW}),
        ("GET", "/", "list", None),
        ("PUT", "/i/{workflow_id}/thumbnail", "own", None),
        ("DELETE", "/i/{workflow_id}/thumbnail", "own", None),
        ("GET", "/i/{workflow_id}/thumbnail", "own", None),
        ("PATCH", "/i/{workflow_id}/is_public", "own", {"is_public": True}),
        ("GET", "/tags", "list", None),
        ("GET", "/counts_by_tag", "list", None),
        ("GET", "/counts_by_category", "list", None),
        ("PUT", "/i/{workflow_id}/opened_at", "own", None),
    ],
}
# What we add, and what of ours stands where InvokeAI's routes of accounts were.
_OURS: dict[str, list[tuple[str, str, Kind, Any]]] = {
    "/api/v1/auth": [
        ("POST", "/signup", "public", {"email": "x"}),
        ("POST", "/verify-email", "public", {"token": "x"}),
        ("POST", "/login", "public", {"email": "x"}),
        ("POST", "/refresh", "public", {"refresh_token": "x"}),
        ("POST", "/forgot-password", "public", {"email": "x"}),
        ("POST", "/reset-password", "public", {"token": "x"}),
        ("POST", "/logout", "list", None),
        ("POST", "/logout-everywhere", "list", None),
        ("GET", "/me", "list", None),
        ("PATCH", "/me", "list", {"display_name": "me"}),
        ("DELETE", "/me", "list", {"password": "not it"}),
        ("GET", "/api-keys", "list", None),
        ("POST", "/api-keys", "list", {"name": "mine", "scopes": ["read"]}),
        ("DELETE", "/api-keys/{key_id}", "own", None),
        ("GET", "/generate-password", "shared", None),
        ("GET", "/users", "admin", None),
        ("POST", "/users", "admin", {"email": "matrix@example.com", "password": "Correct1horse"}),
        ("GET", "/users/{user_id}", "admin", None),
        ("PATCH", "/users/{user_id}", "admin", {"display_name": "stolen"}),
        ("DELETE", "/users/{user_id}", "admin", None),
    ],
    "/api/v1/admin": [
        ("GET", "/users", "admin", None),
        ("POST", "/users", "admin", {"email": "matrix@example.com"}),
        ("GET", "/users/{user_id}", "admin", None),
        ("PATCH", "/users/{user_id}", "admin", {"display_name": "stolen"}),
        ("POST", "/users/{user_id}/deactivate", "admin", None),
        ("DELETE", "/users/{user_id}", "admin", None),
        ("GET", "/audit-log", "admin", None),
        ("GET", "/plans", "admin", None),
        ("POST", "/plans", "admin", {}),
        ("PATCH", "/plans/{plan_id}", "admin", {}),
        ("POST", "/tester-plan/grant", "admin", {"user_id": "nobody"}),
        ("DELETE", "/tester-plan/grant/{grant_id}", "admin", None),
        ("GET", "/tester-plan/grants", "admin", None),
        ("POST", "/credits/adjust", "admin", {"user_id": "nobody", "credits": 1, "reason": "a reason of the matrix"}),
        ("GET", "/credits/{table}.csv", "admin", None),
        ("GET", "/gpu/status", "admin", None),
        ("POST", "/gpu/{name}/drain", "admin", None),
        ("POST", "/gpu/{name}/resume", "admin", None),
        ("GET", "/dashboard/revenue", "admin", None),
        ("GET", "/dashboard/revenue.csv", "admin", None),
        ("GET", "/dashboard/usage", "admin", None),
        ("GET", "/dashboard/usage.csv", "admin", None),
    ],
    "/api/v1/subscriptions": [
        ("GET", "/plans", "shared", None),
        ("GET", "/my", "list", None),
        ("POST", "/subscribe", "list", {"plan_id": "starter"}),
        ("PUT", "/change-plan", "list", {"plan_id": "starter"}),
        ("POST", "/cancel", "list", None),
        ("POST", "/reactivate", "list", None),
        ("POST", "/portal", "list", None),
    ],
    "/api/v1/credits": [
        ("GET", "/balance", "list", None),
        ("GET", "/grants", "list", None),
        ("GET", "/transactions", "list", None),
        ("GET", "/usage", "list", None),
        ("POST", "/purchase", "list", {"pack": "small"}),
    ],
    "/api/v1/jobs": [("GET", "/position", "list", None)],
    "/api/v1/webhooks": [("POST", "/stripe", "public", {"id": "evt_x"})],
    "/api/v1/stored": [("GET", "/{key}", "own", None)],
}


def live_rows() -> dict[tuple[str, str], Row]:
    """(method, path) -> its row, of everything that our server serves."""
    made = rows()
    for prefix, operations in _OURS.items():
        for method, path, kind, body in operations:
            made[method, prefix + path] = Row(kind, _ids_in(prefix + path), body)
    made["GET", "/api/v1/stored/{key}"] = Row("own", {"key": "stored"})
    return made


def rows() -> dict[tuple[str, str], Row]:
    """(method, path) -> its row."""
    made = {row: Row("closed") for row in CLOSED_ROUTES}
    made |= {row: Row("public") for row in PUBLIC}
    made |= {row: Row("super") for row in SUPER_ADMIN}
    for prefix, operations in _OPERATIONS.items():
        for method, path, kind, body in operations:
            made[method, prefix + path] = Row(kind, _ids_in(prefix + path), body)
    return made


def _ids_in(path: str) -> dict[str, str]:
    return {name: kind for name, kind in _IDS.items() if f"{{{name}}}" in path}
