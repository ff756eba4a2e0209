"""A small real application inside operating's layers, and the identity middleware's place in it."""

import asyncio
import logging
from typing import Any

from fastapi import APIRouter, FastAPI, Form, Request, UploadFile, WebSocket
from fastapi.responses import PlainTextResponse
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.staticfiles import StaticFiles

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.operating.install import Operated, install
from invokeai_saas.settings import Settings

ANN = "user-ann"
PUBLIC_URL = "https://invoke.example"
logger = logging.getLogger("tests.operated")


class Note(BaseModel):
    text: str


class Caller:
    """Who operating reads the log's user from: `principal` with a user_id."""

    user_id = ANN


def small_app(folder: Any = None) -> FastAPI:
    """Routes that read, write, fail and stream; `kept` collects what reached them."""
    app, router = FastAPI(), APIRouter(prefix="/v1")
    app.state.kept, app.state.under_way = [], 0

    @router.get("/items/{name}")
    def item(name: str, request: Request) -> dict[str, str]:
        request.state.principal = Caller()
        with tenancy.as_user(ANN):
            logger.info("read %s", name)
        return {"name": name}

    @router.get("/pictures/{name}")
    def picture(name: str) -> PlainTextResponse:
        return PlainTextResponse("picture", headers={"Cache-Control": "max-age=31536000"})

    @router.post("/notes")
    def note(note: Note) -> dict[str, int]:
        app.state.kept.append(note.text)
        return {"length": len(note.text)}

    @router.post("/uploads/{name}")
    async def upload(name: str, file: UploadFile) -> dict[str, int]:
        app.state.kept.append(name)
        return {"bytes": len(await file.read())}

    documented = {"requestBody": {"content": {"multipart/form-data": {"schema": {"type": "object"}}}}}

    @router.post("/read-by-hand", openapi_extra=documented)
    async def by_hand(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @router.post("/forms")
    def form(text: str = Form()) -> dict[str, int]:
        return {"length": len(text)}

    @router.get("/broken")
    def broken() -> None:
        raise RuntimeError("Authorization: Bearer abcdefghijk")

    @router.get("/slow")
    async def slow(seconds: float) -> dict[str, bool]:
        app.state.under_way += 1
        await asyncio.sleep(seconds)
        return {"done": True}

    @router.get("/under-way")
    def under_way() -> int:
        return int(app.state.under_way)

    app.include_router(router, prefix="/api")

    @app.websocket("/ws/echo")
    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        logger.info("socket open")
        await socket.send_text(await socket.receive_text())
        await socket.close()

    @app.get("/ws/poll")
    def poll() -> str:
        return "polled"

    if folder is not None:
        app.mount("/", StaticFiles(directory=folder, html=True), name="ui")
    return app


def operated(database: PostgresDatabase, app: FastAPI | None = None, *, parts: dict[str, Any] | None = None, **settings: Any) -> Operated:
    """`app` installed with these settings."""
    return install(app or small_app(), settings=Settings(public_url=PUBLIC_URL, **settings), database=database, **(parts or {}))


def client_of(installed: Operated) -> TestClient:
    """A client that is answered 500 instead of being handed the error."""
    return TestClient(installed.app, base_url=PUBLIC_URL, raise_server_exceptions=False)
