"""Who hears what on InvokeAI's sockets: each user what happens to their own, super_admins what happens to models, nobody anything else.

Upstream puts a socket into whatever room it names: `subscribe_queue {"queue_id": "user:<somebody>"}` would listen to somebody, "admin" to
everybody. Here a subscription joins the caller's own room only, and everything that is sent passes `_emit`, which drops what is not for
exactly one user or about models; a kind of event that InvokeAI adds later is dropped until somebody decides.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from fastapi import FastAPI
from invokeai.app.api.sockets import (
    MODEL_EVENTS,
    BulkDownloadSubscriptionEvent,
    QueueSubscriptionEvent,
    SocketIO,
)
from invokeai.app.services.events.events_common import FastAPIEvent, ModelLoadCompleteEvent, ModelLoadStartedEvent, register_events
from pydantic import BaseModel

from invokeai_saas.events.relay import OnTheWire, ToldUser

logger = logging.getLogger(__name__)

USER_ROOM = "user:"
ADMIN_ROOM = "admin"
SHARED_ROOM = "workflows:shared"
# Installs and downloads: the models are one installation, and its super_admins look after it.
ADMIN_EVENTS = frozenset(event.__event_name__ for event in MODEL_EVENTS - {ModelLoadStartedEvent, ModelLoadCompleteEvent})
SHARED_EVENTS = frozenset({"workflow_created", "workflow_updated", "workflow_deleted", "workflow_access_revoked"})


class TenantRooms(SocketIO):
    """Upstream's sockets with rooms that a client cannot name. `sharing` as in the settings."""

    sharing = False

    def __init__(self, app: FastAPI) -> None:
        super().__init__(app)
        self._send: Callable[..., Any] = self._sio.emit
        self._sio.emit = self._emit
        register_events(ToldUser, self._handle_told_user)
        register_events(OnTheWire, self._handle_on_the_wire)

    async def _handle_told_user(self, event: FastAPIEvent[ToldUser]) -> None:
        told = event[1]
        await self._emit(told.name, {**told.data, "timestamp": told.timestamp}, room=f"{USER_ROOM}{told.user_id}")

    async def _handle_on_the_wire(self, event: FastAPIEvent[OnTheWire]) -> None:
        told = event[1]
        await self._emit(told.name, told.data, room=ADMIN_ROOM if told.user_id is None else f"{USER_ROOM}{told.user_id}")

    def users_here(self) -> set[str]:
        """Who has a socket open in this process."""
        return set(self.sockets_here())

    def sockets_here(self) -> dict[str, set[str]]:
        """The sockets that are open in this process, by user."""
        sockets: dict[str, set[str]] = {}
        for sid, info in list(self._socket_users.items()):
            sockets.setdefault(str(info["user_id"]), set()).add(sid)
        return sockets

    async def _handle_sub_queue(self, sid: str, *said: Any) -> None:
        """Looked at and otherwise of no effect: a socket is in its user's room from the start."""
        _note_what_does_not_fit(QueueSubscriptionEvent, sid, said)

    async def _handle_unsub_queue(self, sid: str, *said: Any) -> None:
        _note_what_does_not_fit(QueueSubscriptionEvent, sid, said)

    async def _handle_sub_bulk_download(self, sid: str, *said: Any) -> None:
        _note_what_does_not_fit(BulkDownloadSubscriptionEvent, sid, said)

    async def _handle_unsub_bulk_download(self, sid: str, *said: Any) -> None:
        _note_what_does_not_fit(BulkDownloadSubscriptionEvent, sid, said)

    async def _emit(self, event: str, data: Any = None, to: Any = None, room: Any = None, **how: Any) -> None:
        """Send to the rooms that may hear of this; a user's own room hears all of it, whoever upstream would skip."""
        wanted = room if room is not None else to
        rooms = [wanted] if isinstance(wanted, str) else list(wanted or ())
        # Clients name queues, and upstream takes a queue's name for a room's: a queue "user:<somebody>" would speak to somebody.
        queue_id = data.get("queue_id") if isinstance(data, dict) else None
        allowed = list(self._allowed(event, [name for name in rooms if name != queue_id]))
        if allowed:
            how.pop("skip_sid", None)
            await self._send(event, data, room=allowed, **how)
        else:
            logger.debug("nobody hears %s for %s", event, rooms or "everybody")

    def _allowed(self, event: str, rooms: Iterable[str]) -> Iterable[str]:
        for room in rooms:
            if room.startswith(USER_ROOM) or (room == ADMIN_ROOM and event in ADMIN_EVENTS):
                yield room
            elif room == SHARED_ROOM and event in SHARED_EVENTS and self.sharing:
                yield room


def _note_what_does_not_fit(kind: type[BaseModel], sid: str, said: tuple[Any, ...]) -> None:
    """Anybody can send anything, any number of times: it must not fill the log with errors."""
    try:
        (data,) = said
        kind(**data)
    except (TypeError, ValueError) as error:
        logger.debug("socket %s: expected what %s holds, got something else (%s)", sid, kind.__name__, type(error).__name__)
