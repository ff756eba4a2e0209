"""Events over the bus and back: sockets hear what they would have heard in the process where it happened, handlers get what they read."""

import asyncio
import json
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi_events.handlers.local import local_handler
from invokeai.app.invocations.fields import ImageField
from invokeai.app.invocations.primitives import ImageOutput, IntegerInvocation, IntegerOutput
from invokeai.app.services.events.events_common import (
    BatchEnqueuedEvent,
    BulkDownloadCompleteEvent,
    BulkDownloadErrorEvent,
    BulkDownloadStartedEvent,
    DownloadCancelledEvent,
    DownloadProgressEvent,
    EventBase,
    InvocationCompleteEvent,
    InvocationErrorEvent,
    InvocationProgressEvent,
    InvocationStartedEvent,
    LLMTaskCompleteEvent,
    ModelInstallErrorEvent,
    ModelLoadStartedEvent,
    QueueClearedEvent,
    QueueItemsCanceledEvent,
    QueueItemsRetriedEvent,
    QueueItemStatusChangedEvent,
    RecallParametersUpdatedEvent,
    UserAccessChangedEvent,
    WorkflowCreatedEvent,
    WorkflowDeletedEvent,
    WorkflowUpdatedEvent,
)
from invokeai.app.services.model_install.model_install_common import URLModelSource
from invokeai.app.services.session_processor.session_processor_common import ProgressImage
from invokeai.app.services.session_queue.session_queue_common import BatchStatus, SessionQueueStatus
from invokeai.backend.model_manager.configs.factory import ModelConfigFactory

from invokeai_saas.events.bus import Message
from invokeai_saas.events.relay import TYPED, Relay, ToldUser, event_of, message_of
from invokeai_saas.swaps.rooms import ADMIN_EVENTS, TenantRooms

COUNTS = {"queue_id": "default", "pending": 1, "in_progress": 1, "waiting": 0, "completed": 0, "failed": 0, "canceled": 0, "total": 2}
ITEM = {"queue_id": "default", "item_id": 7, "batch_id": "b", "origin": "o", "destination": "canvas:1", "user_id": "ann"}
NODE = {**ITEM, "session_id": "s", "invocation": IntegerInvocation(id="n", value=3), "invocation_source_id": "n"}
PICTURE = ProgressImage(width=8, height=8, dataURL="data:image/jpeg;base64,/9j/4A==")
MODEL = ModelConfigFactory.from_dict(
    {"key": "k", "hash": "h", "path": "p", "file_size": 1, "name": "n", "type": "main", "base": "sd-1", "format": "diffusers",
     "source": "s", "source_type": "path", "variant": "normal", "prediction_type": "epsilon"},
)  # fmt: skip


def status_changed(status: str = "completed", user_id: str = "ann") -> QueueItemStatusChangedEvent:
    return QueueItemStatusChangedEvent(
        **{**ITEM, "user_id": user_id},
        status=status,
        session_id="s",
        created_at="2026-01-01 00:00:00.000",
        updated_at="2026-01-01 00:00:01.000",
        batch_status=BatchStatus(batch_id="b", origin=None, destination=None, **COUNTS),
        queue_status=SessionQueueStatus(item_id=7, session_id="s", batch_id="b", **COUNTS),
    )


EVENTS: list[EventBase] = [
    InvocationStartedEvent(**NODE),
    InvocationProgressEvent(**NODE, message="Denoising step 3/8", percentage=0.375, image=PICTURE),
    InvocationCompleteEvent(**NODE, result=ImageOutput(image=ImageField(image_name="i"), width=8, height=8)),
    InvocationCompleteEvent(**NODE, result=IntegerOutput(value=1)),
    InvocationErrorEvent(**NODE, error_type="E", error_message="m", error_traceback="t"),
    status_changed(),
    BatchEnqueuedEvent(queue_id="default", batch_id="b", enqueued=2, requested=2, priority=0, user_id="ann"),
    QueueItemsRetriedEvent(queue_id="default", retried_item_ids=[1], user_ids=["ann"], retried_item_ids_by_user={"ann": [1]}),
    QueueItemsCanceledEvent.build("default", {"ann": [1, 2], "bob": [3]}),
    QueueItemsCanceledEvent.build("default", {"ann": [1, 2]}),
    QueueClearedEvent.build("default", "ann"),
    QueueClearedEvent.build("default"),
    RecallParametersUpdatedEvent.build("default", "ann", {"steps": 4}),
    ModelLoadStartedEvent.build(MODEL, None, "ann"),
    ModelInstallErrorEvent(id=1, source=URLModelSource(url="https://example.com/m"), error_type="E", error="e"),
    DownloadCancelledEvent(source="https://example.com/m"),
    DownloadProgressEvent(source="https://example.com/m", download_path="/x", current_bytes=1, total_bytes=2),
    BulkDownloadStartedEvent.build("d", "d", "n", "ann"),
    BulkDownloadCompleteEvent.build("d", "d", "n", "ann"),
    BulkDownloadErrorEvent.build("d", "d", "n", "e", "ann"),
    LLMTaskCompleteEvent(task_id="t", user_id="ann"),
    WorkflowCreatedEvent.build(workflow_id="w", user_id="ann", is_public=True),
    WorkflowUpdatedEvent.build(workflow_id="w", user_id="ann", old_is_public=True, new_is_public=False),
    WorkflowDeletedEvent.build(workflow_id="w", user_id="ann", is_public=True),
    ToldUser(user_id="ann", name="credit_reserved", data={"amount": 3, "big": [1.5, None]}),
]


class Sockets(TenantRooms):
    """Real rooms and handlers; what goes over the wire is written down."""

    sharing = True

    def __init__(self) -> None:
        super().__init__(FastAPI())
        self.sent: list[tuple[str, Any, list[str]]] = []
        self._send = self._note

    async def _note(self, event: str, data: Any, *, room: list[str]) -> None:
        # A workflow_access_revoked is made anew each time.
        self.sent.append((event, {**data, "timestamp": 0}, sorted(room)))

    def hear(self, event: EventBase) -> list[tuple[str, Any, list[str]]]:
        del self.sent[:]
        for handler in local_handler._get_handlers_for_event(event.__event_name__):
            if getattr(handler, "__self__", None) is self:
                asyncio.run(handler((event.__event_name__, event)))
        return list(self.sent)


@pytest.fixture(scope="module")
def sockets() -> Sockets:
    return Sockets()


def over_the_bus(event: EventBase) -> EventBase:
    """As another process gets it."""
    relayed = event_of(message_of(event))
    assert relayed is not None
    return relayed


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__event_name__)
def test_sockets_hear_the_same_over_the_bus(sockets, event):
    assert sockets.hear(over_the_bus(event)) == sockets.hear(event)


def test_most_of_these_events_are_heard_at_all(sockets):
    unheard = [event.__event_name__ for event in EVENTS if not sockets.hear(event)]

    # The end of everybody's queue, which no tenant can cause.
    assert unheard == ["queue_cleared"]
    # Of a model that nobody's job loads; InvokeAI has a room for it, in which nobody is.
    assert sockets.hear(over_the_bus(ModelLoadStartedEvent.build(MODEL))) == []


def test_every_event_of_invokeai_is_a_user_s_or_the_administrators_or_decided_here():
    """One that a newer InvokeAI brings is listed here when somebody has looked at it."""
    unheard = {"model_install_download_started", "download_paused"}
    undecided = {
        event.__event_name__
        for event in EventBase.get_events()
        if not {"user_id", "user_ids"} & set(event.model_fields) and event.__event_name__ not in ADMIN_EVENTS
    }

    assert undecided == unheard


@pytest.mark.parametrize("name", sorted(TYPED))
def test_handlers_of_the_server_get_events_as_they_were(name):
    tried = {event.__event_name__: event for event in [*EVENTS, UserAccessChangedEvent.build("ann", True, False, 3)]}

    assert over_the_bus(tried[name]) == tried[name]


def test_nodes_that_this_process_lacks_are_handed_on(sockets):
    message = message_of(EVENTS[1])
    data = json.loads(message.payload)
    data["invocation"] = {"type": "of_another_pack", "id": "n"}
    heard = sockets.hear(event_of(Message(name=message.name, payload=json.dumps(data), user_id="ann")))

    assert [(name, told["invocation"]["type"], rooms) for name, told, rooms in heard] == [
        ("invocation_progress", "of_another_pack", ["user:ann"])
    ]


def test_a_message_reaches_its_own_user_whatever_its_payload_says(sockets):
    """A tenant's transaction may only write messages of the tenant's: what the payload claims must not lead further."""
    forged = status_changed(user_id="bob")
    typed = event_of(Message(name=forged.__event_name__, payload=forged.model_dump_json(), user_id="ann"))
    told = event_of(Message(name="saas_told_user", payload=ToldUser(user_id="bob", name="x", data={}).model_dump_json(), user_id="ann"))
    wired = event_of(Message(name="invocation_started", payload='{"user_id": "bob", "queue_id": "user:bob"}', user_id="ann"))

    assert (typed, told) == (None, None)
    assert [rooms for _name, _data, rooms in sockets.hear(wired)] == [["user:ann"]]


def test_cancels_say_whose_work_ends():
    stops = {event.__event_name__: message_of(event).stops for event in EVENTS if message_of(event).stops != ()}

    assert stops == {"queue_items_canceled": (1, 2), "queue_cleared": None}
    assert message_of(status_changed("canceled")).stops == (7,)
    assert message_of(UserAccessChangedEvent.build("ann", False, False, 1)).stops is None
    assert message_of(UserAccessChangedEvent.build("ann", True, True, 1)).stops == ()


def test_progress_is_what_may_be_dropped():
    passing = {event.__event_name__ for event in EVENTS if message_of(event).is_passing}

    assert passing == {"invocation_progress", "download_progress"}


def test_an_event_that_cannot_be_read_keeps_nobody_from_the_next():
    class Bus:
        def start(self, receive, users_here):
            receive(Message(name="queue_item_status_changed", payload="not JSON", user_id="ann"))
            receive(message_of(status_changed()))

    heard: list[EventBase] = []
    Relay(Bus(), heard.append, lambda: {"ann"}).start()

    assert [event.__event_name__ for event in heard] == ["queue_item_status_changed"]
