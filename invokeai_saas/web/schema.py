"""/openapi.json, which InvokeAI's page asks for when it opens: described in a thread, because that takes seconds the first time.

FastAPI describes it inside the loop, where nobody is answered meanwhile, whoever asks about the server's health included.
"""

from threading import Lock
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response


def describe_in_a_thread(app: Any) -> None:
    """Replace FastAPI's route of the description by one that makes it once, beside the loop."""
    lock = Lock()
    kept: list[bytes] = []

    def described() -> bytes:
        with lock:
            if not kept:
                kept.append(bytes(JSONResponse(app.openapi()).body))
        return kept[0]

    async def answer(_request: Request) -> Response:
        return Response(await run_in_threadpool(described), media_type="application/json")

    for route in app.router.routes:
        if getattr(route, "path", None) == app.openapi_url:
            app.router.routes.remove(route)
            break
    app.router.add_route(app.openapi_url, answer, methods=["GET"], include_in_schema=False)
