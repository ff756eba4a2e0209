"""Who hears what on sockets: everybody their own, super_admins what happens to models. Real rooms and handlers of InvokeAI's."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from invokeai.app.services.events.events_common import (
    BulkDownloadCompleteEvent,
    DownloadCancelledEvent,
    EventBase,
    LLMTaskCompleteEvent,
    QueueClearedEvent,
    QueueItemsRetriedEvent,
    RecallParametersUpdatedEvent,
    WorkflowCreatedEvent,
)

from invokeai_saas.swaps.rooms import TenantRooms


class Sockets(TenantRooms):
    """The rooms, with a door that believes what it is told; who may enter is tested with the door (accounts)."""

    async def _handle_connect(self, sid: str, environ: dict[str, Any], auth: dict[str, Any] | None) -> bool:
        user_id, is_admin = auth["user_id"], auth.get("is_admin", False)
        self._socket_users[sid] = {"user_id": user_id, "is_admin": is_admin, "authenticated": True}
        for room in (f"user:{user_id}", "workflows:shared", *(["admin"] if is_admin else [])):
            await self._sio.enter_room(sid, room)
        return True


class SocketServer:
    """InvokeAI's sockets with their real rooms and handlers; what would go over the wire is written down instead."""

    def __init__(self) -> None:
        self.sockets = Sockets(FastAPI())
        self.sockets._send = self._deliver
        self.loop = asyncio.new_event_loop()
        self.heard: dict[str, list[str]] = {}

    def client(self, user_id: str, **auth: Any) -> "Listener":
        sid = self.run(self.sockets._sio.manager.connect(f"connection-{len(self.heard)}", "/"))
        self.heard[sid] = []
        self.run(self.sockets._handle_connect(sid, {}, {"user_id": user_id, **auth}))
        return Listener(self, sid)

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def tell(self, handler: str, event: EventBase) -> None:
        self.run(getattr(self.sockets, handler)((event.__event_name__, event)))

    async def _deliver(self, event: str, data: Any, *, room: list[str], **how: Any) -> None:
        assert how == {}
        members = {sid for name in room for sid, _connection in self.sockets._sio.manager.get_participants("/", name)}
        for sid in members:
            self.heard[sid].append(event)


class Listener:
    """One connection of a user."""

    def __init__(self, server: SocketServer, sid: str) -> None:
        self._server, self._sid = server, sid

    def ask(self, event: str, *data: Any) -> None:
        self._server.run(self._server.sockets._sio.handlers["/"][event](self._sid, *data))

    def names(self) -> list[str]:
        return self._server.heard[self._sid]


@pytest.fixture
def sockets() -> Iterator[SocketServer]:
    server = SocketServer()
    yield server
    server.loop.close()


def recalled(user_id: str, queue_id: str = "default") -> EventBase:
    return RecallParametersUpdatedEvent.build(queue_id, user_id, {"seed": 1})


ANNS_EVENTS = (
    ("_handle_queue_event", recalled("ann")),
    ("_handle_queue_event", QueueClearedEvent.build("default", user_id="ann")),
    ("_handle_bulk_image_download_event", BulkDownloadCompleteEvent.build("default", "item", "item.zip", user_id="ann")),
    ("_handle_workflow_event", WorkflowCreatedEvent.build(workflow_id="w", user_id="ann", is_public=True)),
    ("_handle_llm_task_event", LLMTaskCompleteEvent(task_id="t", user_id="ann")),
)


@pytest.mark.parametrize("room", ["user:ann", "admin", "workflows:shared", "default"])
def test_a_client_cannot_listen_to_a_room_that_it_names(room, sockets):
    ann, bob = sockets.client("ann"), sockets.client("bob")
    bob.ask("subscribe_queue", {"queue_id": room})
    bob.ask("subscribe_bulk_download", {"bulk_download_id": room})
    for handler, event in ANNS_EVENTS:
        sockets.tell(handler, event)

    assert ann.names() == [event.__event_name__ for _handler, event in ANNS_EVENTS]
    assert bob.names() == []


@pytest.mark.parametrize("event", ["subscribe_queue", "unsubscribe_queue", "subscribe_bulk_download", "unsubscribe_bulk_download"])
@pytest.mark.parametrize(
    "said", [(None,), ("xxx",), ({"queue_id": ["x"], "bulk_download_id": ["x"]},), ({},), ([1],), (), ({"queue_id": "default"}, 2)]
)
def test_what_does_not_fit_is_noted_for_who_looks_for_it_and_is_no_error(event, said, sockets, caplog):
    caplog.set_level(logging.DEBUG, logger="invokeai_saas.swaps.rooms")
    bob = sockets.client("bob")
    bob.ask(event, *said)
    sockets.tell("_handle_queue_event", recalled("bob"))

    assert [(record.levelname, "expected what" in record.getMessage()) for record in caplog.records if record.name.endswith("rooms")] == [
        ("DEBUG", True)
    ]
    assert bob.names() == ["recall_parameters_updated"]


def test_a_super_admin_hears_of_models_and_not_of_others_work(sockets):
    boss, bob = sockets.client("boss", is_admin=True), sockets.client("bob")
    for handler, event in ANNS_EVENTS:
        sockets.tell(handler, event)
    sockets.tell("_handle_model_event", DownloadCancelledEvent(source="https://example.com/model"))

    assert boss.names() == ["download_cancelled"]
    assert bob.names() == []


def test_a_super_admin_hears_of_their_own_work_once(sockets):
    boss = sockets.client("boss", is_admin=True)
    sockets.tell("_handle_queue_event", recalled("boss"))
    retried = QueueItemsRetriedEvent(
        queue_id="default", retried_item_ids=[1], user_ids=["boss"], retried_item_ids_by_user={"boss": [1]}
    )
    sockets.tell("_handle_queue_event", retried)

    assert boss.names() == ["recall_parameters_updated", "queue_items_retried"]


def test_a_queue_that_is_named_like_a_user_does_not_speak_to_them(sockets):
    ann = sockets.client("ann")
    sockets.tell("_handle_queue_event", QueueClearedEvent.build("user:ann", user_id="bob"))
    sockets.tell("_handle_queue_event", QueueClearedEvent.build("user:ann"))
    sockets.tell("_handle_queue_event", recalled("ann"))

    assert ann.names() == ["recall_parameters_updated"]


def test_published_workflows_are_told_where_sharing_is_on(sockets):
    bob = sockets.client("bob")
    sockets.sockets.sharing = True
    sockets.tell(*ANNS_EVENTS[3])

    assert bob.names() == ["workflow_created"]


def test_an_event_for_everybody_reaches_nobody(sockets):
    bob = sockets.client("bob")
    sockets.run(sockets.sockets._sio.emit("new_kind", {"user": "ann"}))
    sockets.tell("_handle_queue_event", recalled("bob"))

    assert bob.names() == ["recall_parameters_updated"]
