"""Settings in, the way that they name for wake-ups out: `procrastinate`, `celery+` with a broker's address, or `none`."""

from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.settings import Settings
from invokeai_saas.wakeups.local import NoWakeups
from invokeai_saas.wakeups.port import Wakeups


def sending_of(settings: Settings, database: PostgresDatabase) -> Wakeups | None:
    """What a server enqueues with, opened; None where nobody is to be woken."""
    if settings.wakeups_transport == "none":
        return None
    wakeups = wakeups_of(settings, database)
    wakeups.open()
    return wakeups


def wakeups_of(settings: Settings, database: PostgresDatabase) -> Wakeups:
    """Not opened yet. A broker that does not answer is found out later, and costs no more than a second's delay."""
    transport = settings.wakeups_transport
    if transport == "none":
        return NoWakeups()
    if transport == "procrastinate":
        from invokeai_saas.wakeups.procrastinate import ProcrastinateWakeups

        return ProcrastinateWakeups(database)
    from invokeai_saas.wakeups.celery import CeleryWakeups

    return CeleryWakeups(database, transport.removeprefix("celery+"))
