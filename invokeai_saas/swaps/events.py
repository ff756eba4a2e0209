"""InvokeAI's events, held until the transaction that caused them has committed: nobody hears of what a rollback undid."""

import asyncio

from invokeai.app.services.events.events_common import EventBase
from invokeai.app.services.events.events_fastapievents import FastAPIEventService

from invokeai_saas.db.database import PostgresDatabase


class CommittedEvents(FastAPIEventService):
    """Upstream's event service; outside of a transaction it sends at once."""

    def __init__(self, database: PostgresDatabase, event_handler_id: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(event_handler_id, loop=loop)
        self._database = database

    def dispatch(self, event: EventBase) -> None:
        """Send after the commit."""
        self._database.on_commit(lambda: super(CommittedEvents, self).dispatch(event))
