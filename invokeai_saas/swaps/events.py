"""InvokeAI's events, held until the transaction that caused them has committed: nobody hears of what a rollback undid.

dispatch ─► no bus: this process' handlers and sockets, after the commit
        └─► bus:    published with the commit; this process hears it back like every other one (events/relay.py), in one order
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from invokeai.app.services.events.events_common import EventBase
from invokeai.app.services.events.events_fastapievents import FastAPIEventService

from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.events.bus import EventBus
from invokeai_saas.events.relay import ToldUser, message_of
from invokeai_saas.events.video import VideoEvents


class CommittedEvents(FastAPIEventService):
    """Upstream's event service; outside of a transaction it sends at once."""

    def __init__(
        self, database: PostgresDatabase, event_handler_id: int, loop: asyncio.AbstractEventLoop, *, bus: EventBus | None = None
    ) -> None:
        super().__init__(event_handler_id, loop=loop)
        self._database, self._bus, self._video = database, bus, VideoEvents(database)

    def dispatch(self, event: EventBase) -> None:
        """Send with the commit, and what it means for videos."""
        self._send(event)
        for told in self._video.of(event):
            self._send(told)

    def tell(self, user_id: str, name: str, data: Mapping[str, Any]) -> None:
        """Send `name` to one user's room, in every process, after the commit."""
        self.dispatch(ToldUser(user_id=user_id, name=name, data=dict(data)))

    def tell_here(self, user_id: str, name: str, data: Mapping[str, Any]) -> None:
        """Send `name` to this process' sockets of one user: for what every process finds out by itself."""
        self.dispatch_here(ToldUser(user_id=user_id, name=name, data=dict(data)))

    def dispatch_here(self, event: EventBase) -> None:
        """To this process' handlers and sockets, after the commit."""
        self._database.on_commit(lambda: super(CommittedEvents, self).dispatch(event))

    def _send(self, event: EventBase) -> None:
        if self._bus is None:
            self.dispatch_here(event)
        else:
            self._bus.publish(message_of(event))
