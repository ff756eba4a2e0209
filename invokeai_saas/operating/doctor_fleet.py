"""What doctor says of the ways between servers and workers: who carries wake-ups and events, and whether any worker was heard of.

A broker's address stays out of the words as a whole: it may hold a password.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Literal

from invokeai_saas.db.opening import open_database
from invokeai_saas.errors import BadSettings
from invokeai_saas.settings import Settings
from invokeai_saas.workers import registry

Found = tuple[Literal["ok", "warning", "error"], str, str]
NONE_HEARD = "start `invokeai-saas worker` where the GPUs are, or serve without --no-worker: jobs that nobody can run are refused"
NONE_CLAIMS = "GET /api/v1/admin/gpu/status has each one's reason (docs/workers.md); resume them, or start others"


def check_wakeups(settings: Settings) -> Iterator[Found]:
    """The broker takes this server's login; nothing is sent."""
    transport = settings.wakeups_transport
    if transport == "none":
        yield "ok", "SAAS_WAKEUPS is none: idle workers look every second", ""
        return
    if transport == "procrastinate":
        yield "ok", "over the database, by Procrastinate", ""
        return
    from invokeai_saas.wakeups.celery import demand_broker

    url = transport.removeprefix("celery+")
    try:
        demand_broker(url)
    except BadSettings as error:
        yield "error", str(error), "look at SAAS_WAKEUPS; idle workers look every second meanwhile"
        return
    yield "ok", f"{'SQS' if url.startswith('sqs') else 'Redis'} answers", ""


def check_events(settings: Settings) -> Iterator[Found]:
    """The Redis takes this server's login; nothing is written."""
    transport = settings.events_transport
    if transport == "local":
        yield "ok", "local: they stay in the one server; over the database as soon as it serves with --no-worker", ""
        return
    if transport == "postgres":
        yield "ok", "over the database", ""
        return
    from invokeai_saas.events.redis import answering

    try:
        answering(transport).close()
    except BadSettings as error:
        yield "error", str(error), "look at SAAS_EVENTS; servers and workers do not start without it"
        return
    yield "ok", "Redis answers", ""


def check_workers(settings: Settings) -> Iterator[Found]:
    """Some worker takes jobs, one inside of a server or another; none is no error, before the first start there is none."""
    database = open_database(settings, migrate_first=False)
    try:
        living = registry.live(database)
    finally:
        database.close()
    said = ", ".join(f"{count} {status}" for status, count in sorted(Counter(row.shown_status for row in living).items()))
    if not living:
        yield "warning", "no worker was heard of: nothing runs jobs", NONE_HEARD
    elif not any(row.claims for row in living):
        yield "warning", f"no worker that lives takes jobs: {said}", NONE_CLAIMS
    else:
        yield "ok", f"{len(living)} heard of: {said}", ""
