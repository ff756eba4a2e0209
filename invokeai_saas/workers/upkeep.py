"""What must be done for the fleet again and again, by whichever server is free."""

from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.jobs.background import Background
from invokeai_saas.settings import Settings
from invokeai_saas.workers import registry, scaling


def add_jobs(background: Background, database: PostgresDatabase, settings: Settings) -> None:
    """Advice on how many workers there should be; the dead are forgotten after a day. Raises BadSettings."""
    bounds = scaling.bounds_of(settings.scale_bounds)
    background.add("scaling", scaling.LOOK_SECONDS, lambda: scaling.look(database, bounds))
    background.add("forget workers", 600, lambda: registry.forget_dead(database))
