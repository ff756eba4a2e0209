"""InvokeAI's events, held until the transaction that caused them has committed: nobody hears of what a rollback undid."""

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar

from fastapi_events.registry.payload_schema import registry as payload_schema
from invokeai.app.services.events.events_common import EventBase
from invokeai.app.services.events.events_fastapievents import FastAPIEventService

from invokeai_saas.db.database import PostgresDatabase


@payload_schema.register
class ToldUser(EventBase):
    """An event of ours on its way to a user's open pages: `name` with `data` there, this class only between the processes' parts."""

    __event_name__: ClassVar[str] = "saas_told_user"
    __server_internal__: ClassVar[bool] = True
    user_id: str
    name: str
    data: dict[str, Any]


class CommittedEvents(FastAPIEventService):
    """Upstream's event service; outside of a transaction it sends at once."""

    def __init__(self, database: PostgresDatabase, event_handler_id: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(event_handler_id, loop=loop)
        self._database = database

    def dispatch(self, event: EventBase) -> None:
        """Send after the commit."""
        self._database.on_commit(lambda: super(CommittedEvents, self).dispatch(event))

    def tell(self, user_id: str, name: str, data: Mapping[str, Any]) -> None:
        """Send `name` to one user's room, after the commit."""
        self.dispatch(ToldUser(user_id=user_id, name=name, data=dict(data)))
