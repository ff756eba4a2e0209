"""InvokeAI's events into messages, and messages into what this process' sockets and handlers hear.

    event ─► message_of ─► bus ─► Relay: typed again, where handlers of the server read it; else as it would go over the wire ─► dispatch

What only sockets hear is not read back into its class: a worker may have nodes that this process lacks, and a preview is large. Whose room
it goes to is the message's word, never the payload's.
"""

import json
import logging
from collections.abc import Callable, Collection
from typing import Any, ClassVar

from fastapi_events.registry.payload_schema import registry as payload_schema
from invokeai.app.services.events.events_common import (
    BatchEnqueuedEvent,
    DownloadProgressEvent,
    EventBase,
    InvocationProgressEvent,
    ModelInstallDownloadProgressEvent,
    QueueClearedEvent,
    QueueItemsCanceledEvent,
    QueueItemsRetriedEvent,
    QueueItemStatusChangedEvent,
    UserAccessChangedEvent,
    WorkflowCreatedEvent,
    WorkflowDeletedEvent,
    WorkflowUpdatedEvent,
)

from invokeai_saas.db import tenancy
from invokeai_saas.events.bus import EventBus, Message

logger = logging.getLogger(__name__)


@payload_schema.register
class ToldUser(EventBase):
    """An event of ours on its way to a user's open pages: `name` with `data` there, this class only between the processes' parts."""

    __event_name__: ClassVar[str] = "saas_told_user"
    __server_internal__: ClassVar[bool] = True
    user_id: str
    name: str
    data: dict[str, Any]
    # Progress may be dropped for newer progress of the same thing.
    replaces: str | None = None


@payload_schema.register
class OnTheWire(EventBase):
    """An event that happened elsewhere, as it goes to a user's sockets; `user_id` None for what concerns administrators."""

    __event_name__: ClassVar[str] = "saas_on_the_wire"
    __server_internal__: ClassVar[bool] = True
    user_id: str | None
    name: str
    data: dict[str, Any]


# What handlers of the server read, and what its sockets split by users.
TYPED: dict[str, type[EventBase]] = {
    event.__event_name__: event
    for event in (
        BatchEnqueuedEvent,
        QueueClearedEvent,
        QueueItemsCanceledEvent,
        QueueItemsRetriedEvent,
        QueueItemStatusChangedEvent,
        ToldUser,
        UserAccessChangedEvent,
        WorkflowCreatedEvent,
        WorkflowDeletedEvent,
        WorkflowUpdatedEvent,
    )
}


def owner_of(event: EventBase) -> str | None:
    """Whose alone an event is; None for several users', administrators' and everybody's."""
    users = getattr(event, "user_ids", None)
    if users is None:
        users = [getattr(event, "user_id", None)]
    return users[0] if len(users) == 1 and users[0] != tenancy.SYSTEM_USER_ID else None


def message_of(event: EventBase) -> Message:
    """An event as it goes over the bus."""
    return Message(
        name=event.__event_name__,
        payload=event.model_dump_json(),
        user_id=owner_of(event),
        replaces=_replaces(event),
        stops=_stops(event),
    )


def event_of(message: Message) -> EventBase | None:
    """What this process dispatches for a message; None for one that contradicts itself."""
    typed = TYPED.get(message.name)
    if typed is None:
        return OnTheWire(user_id=message.user_id, name=message.name, data=json.loads(message.payload))
    event = typed.model_validate_json(message.payload)
    if message.user_id is not None and owner_of(event) != message.user_id:
        logger.error("an event %s of user %s speaks of another one; nobody hears it", message.name, message.user_id)
        return None
    return event


class Relay:
    """What one web process hears: `dispatch` sends to its own handlers and sockets, `users_here` are those who have any."""

    def __init__(self, bus: EventBus, dispatch: Callable[[EventBase], None], users_here: Callable[[], Collection[str]]) -> None:
        self._bus, self._dispatch, self._users_here = bus, dispatch, users_here

    def start(self) -> None:
        """From here on."""
        self._bus.start(self._receive, self._users_here)

    def stop(self) -> None:
        """Nothing more is heard or published."""
        self._bus.close()

    def _receive(self, message: Message) -> None:
        try:
            event = event_of(message)
            if event is not None:
                self._dispatch(event)
        except Exception:
            # One that this version cannot read keeps nobody from the next.
            logger.exception("an event %s could not be handed on", message.name)


def _replaces(event: EventBase) -> str | None:
    """The key of progress."""
    if isinstance(event, InvocationProgressEvent):
        return f"progress {event.item_id}"
    if isinstance(event, DownloadProgressEvent):
        return f"download {event.source}"
    if isinstance(event, ModelInstallDownloadProgressEvent):
        return f"install {event.id}"
    return event.replaces if isinstance(event, ToldUser) else None


def _stops(event: EventBase) -> tuple[int, ...] | None:
    """Items that nobody wants any more, None for some."""
    if isinstance(event, QueueItemsCanceledEvent):
        return tuple(event.canceled_item_ids)
    if isinstance(event, QueueItemStatusChangedEvent):
        return (event.item_id,) if event.status == "canceled" else ()
    if isinstance(event, QueueClearedEvent) or (isinstance(event, UserAccessChangedEvent) and not event.is_active):
        return None
    return ()
