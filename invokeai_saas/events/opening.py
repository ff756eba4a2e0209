"""Settings in, the bus that they name out: `local`, `postgres`, or the address of a Redis."""

from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.events.bus import EventBus
from invokeai_saas.settings import Settings


def open_bus(settings: Settings, database: PostgresDatabase, *, others: bool = False) -> EventBus | None:
    """None for `local`: one process, whose events reach its own sockets. Raises BadSettings for a Redis that does not answer.

    `others`: items run in other processes than this one, or this is one of those: then `local` means postgres.
    """
    transport = settings.events_transport
    if others and transport == "local":
        transport = "postgres"
    if transport == "local":
        return None
    if transport == "postgres":
        from invokeai_saas.events.postgres import PostgresBus

        return PostgresBus(database)
    from invokeai_saas.events.redis import RedisBus

    return RedisBus(database, transport)
