"""Settings in, a server out: InvokeAI's own application with our services, routes and middleware.

    open_server: database ─► files ─► accounts ─► routes closed ─► services swapped ─► InvokeAI's application ─► our routes ─► middleware
    serve:       open_server ─► first admin ─► uvicorn on InvokeAI's loop, until SIGTERM
"""

import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from invokeai_saas.accounts import store
from invokeai_saas.accounts.admin import ensure_admin
from invokeai_saas.accounts.model import AccessChange
from invokeai_saas.accounts.setup import accounts_of, limiter_of
from invokeai_saas.billing.setup import billing_of
from invokeai_saas.billing.worker import InboxWorker
from invokeai_saas.credits.events import CreditEvents
from invokeai_saas.credits.reconcile import BooksCheck
from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.db.embedded import keep_alive, sole_server, stop_embedded
from invokeai_saas.db.opening import open_database
from invokeai_saas.db.upstream_schema import refuse_other_upstream, seed_defaults
from invokeai_saas.events.opening import open_bus
from invokeai_saas.jobs.waiting import PositionEvents, Waiting
from invokeai_saas.operating import collector, logs
from invokeai_saas.operating.health import Pulse
from invokeai_saas.operating.install import Operated, install, uvicorn_options
from invokeai_saas.operating.ports import demand_free_port
from invokeai_saas.operating.shutdown import GracefulServer, Shutdown
from invokeai_saas.operating.shutdown import serve as serve_gracefully
from invokeai_saas.settings import Settings
from invokeai_saas.storage.opening import open_files, receive_uploads
from invokeai_saas.swaps.install import Parts, install_services, take_away
from invokeai_saas.swaps.upstream import configure_invokeai, load_nodes
from invokeai_saas.wakeups.opening import sending_of
from invokeai_saas.workers.gauges import FleetGauges
from invokeai_saas.workers.inside import InsideWorker

BACKGROUND_LIMIT_SECONDS = 60.0


@dataclass(frozen=True)
class Server:
    """An application that is ready to be served; `operated.app` is `app` inside of our middleware."""

    settings: Settings
    parts: Parts
    app: Any
    operated: Operated
    shutdown: Shutdown
    loop: Any


def serve(settings: Settings, *, worker: bool = True) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code. Without `worker` it runs no queue items."""
    collector.pause()
    import uvicorn

    logs.configure(settings)
    logs.log_crashes()
    # Progress bars are no log lines; people see progress in the interface. Read when tqdm is imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    with ExitStack() as stack:
        demand_free_port(settings)
        if settings.database_url is None:
            stack.enter_context(sole_server(settings.data_dir))
            stack.callback(stop_embedded, settings.data_dir)
            stack.enter_context(keep_alive(settings.data_dir))
        server = open_server(settings, worker=worker)
        announce_first_admin(server)
        server.operated.start()
        config = uvicorn.Config(server.operated.app, host=settings.host, port=settings.port, loop="asyncio", **uvicorn_options(settings))
        graceful = GracefulServer(config, server.shutdown, drain_seconds=settings.shutdown_drain_seconds)
        return serve_gracefully(graceful, server.shutdown, server.loop)


def open_server(settings: Settings, *, worker: bool = True) -> Server:
    """Everything up to the listening; one per process, since InvokeAI's application is made when it is imported."""
    database = open_database(settings, migrate_first=True)
    accounts = accounts_of(settings, database, access_changed=_access_changed, erasers=(_forget_zips(database),))
    billing = InboxWorker(billing_of(settings, accounts, tell=_tell))
    parts = Parts(
        database=database,
        files=open_files(settings, database),
        accounts=accounts,
        sharing=settings.sharing,
        metering=settings.metering,
        worker=worker,
        bus=open_bus(settings, database, others=not worker),
        wakeups=sending_of(settings, database),
    )
    receive_uploads(settings.data_dir / "arriving")
    configure_invokeai(settings)
    refuse_other_upstream(database)
    _edit_routers()
    install_services(parts)
    app, loop = _invokeais_application()
    _add_routes(app, parts, billing)
    pulse = Pulse(BACKGROUND_LIMIT_SECONDS)

    def close() -> None:
        operated.close()
        if parts.wakeups is not None:
            parts.wakeups.close()
        database.close()

    shutdown = Shutdown(grace_seconds=settings.shutdown_grace_seconds, stop_work=_stop_work, close=(close,))
    operated = install(
        _middleware(app, settings, parts),
        settings=settings,
        database=database,
        files=parts.files,
        pulses={"background": pulse},
        draining=shutdown.draining,
    )
    books = BooksCheck(database, registry=operated.metrics.registry)
    operated.metrics.registry.register(FleetGauges(database))
    background = _background(settings, parts, billing, pulse, books)
    inside = InsideWorker(database, lambda: _services().session_processor)
    loops = (*_listening(app, parts), background, _reaping(parts, settings), billing, CreditEvents(database, _tell_here), inside)
    app.router.lifespan_context = _lifespan(app.router.lifespan_context, parts, loops)
    return Server(settings, parts, app, operated, shutdown, loop)


def _listening(app: Any, parts: Parts) -> Sequence[Any]:
    """What this process' sockets hear beside what happens in it: everything that other processes publish, and places in the queue."""
    from invokeai.app.api_app import socket_io

    from invokeai_saas.events.relay import Relay

    positions = PositionEvents(app.state.saas_waiting, socket_io.sockets_here, _tell_here)
    if parts.bus is None:
        return (positions,)
    return (Relay(parts.bus, lambda event: _services().events.dispatch_here(event), socket_io.users_here), positions)


def announce_first_admin(server: Server) -> None:
    """Make the first super_admin, with a plan to try everything on, and print the one-time password; nothing when there is one."""
    email = server.settings.admin_email
    password = ensure_admin(server.parts.accounts, email)
    if password is not None:
        if server.settings.metering:
            from invokeai_saas.billing import by_hand

            by_hand.give(server.parts.accounts, email=email, **by_hand.FIRST_ADMIN)
        print(f"\nFirst start: an administrator was made. This is shown once:\n\n  address   {email}\n  password  {password}\n", flush=True)


def _edit_routers() -> None:
    """Callers first: routers copy them. Then what is off: it is looked up among all of InvokeAI's routes."""
    from invokeai_saas.swaps.callers import demand_ours, install_callers

    install_callers()
    from invokeai.app.api.routers import auth, images, session_queue, videos

    from invokeai_saas.accounts import api as accounts_api
    from invokeai_saas.closed.routes import close_routes, upstream_routes
    from invokeai_saas.jobs import api as jobs_api
    from invokeai_saas.storage import api as storage_api

    demand_ours(route for _row, (_router, route) in upstream_routes())
    close_routes()
    take_away([auth.auth_router], accounts_api.REPLACED)
    take_away([session_queue.session_queue_router], jobs_api.REPLACED)
    take_away([videos.videos_router, images.images_router], storage_api.REPLACED)


def _invokeais_application() -> tuple[Any, Any]:
    """InvokeAI's app, loop and nodes, as its own run_app() makes them; and without the nodes that are off."""
    from invokeai.app.util.startup_utils import apply_monkeypatches, register_mime_types

    apply_monkeypatches()
    register_mime_types()
    from invokeai.app.api_app import app, loop

    load_nodes()
    return app, loop


def _add_routes(app: Any, parts: Parts, billing: InboxWorker) -> None:
    from invokeai_saas.accounts import admin_api, api, stock_api
    from invokeai_saas.admin.api import dashboards_router
    from invokeai_saas.billing import api as billing_api
    from invokeai_saas.credits import api as credits_api
    from invokeai_saas.jobs.api import jobs_router, queue_router
    from invokeai_saas.plans import api as plans_api
    from invokeai_saas.storage.api import files_router
    from invokeai_saas.web.pages import pages_router
    from invokeai_saas.web.schema import describe_in_a_thread
    from invokeai_saas.workers.api import gpu_router

    interface = [route for route in app.router.routes if getattr(route, "name", None) in ("ui", "static")]
    app.state.saas_files, app.state.saas_waiting = parts.files, Waiting(parts.database)
    api.install(app, api.Web(parts.accounts, limiter_of(parts.database)))
    billing_api.install(app, billing.billing, metering=parts.metering)
    ours = (api.auth_router, api.keys_router, admin_api.admin_router, stock_api.stock_router, queue_router, jobs_router, files_router)
    for router in (*ours, *plans_api.ROUTERS, *credits_api.ROUTERS, *billing_api.ROUTERS, dashboards_router, gpu_router):
        app.include_router(router, prefix="/api")
    app.include_router(pages_router)
    describe_in_a_thread(app)
    # InvokeAI's interface is mounted at / and would answer for every route behind it.
    for mount in interface:
        app.router.routes.remove(mount)
        app.router.routes.append(mount)


def _middleware(app: Any, settings: Settings, parts: Parts) -> Any:
    """Who is calling ─► what their plan says of keys and uploads ─► the interface's script ─► InvokeAI's application."""
    from invokeai.app.api_app import SlidingWindowTokenMiddleware

    from invokeai_saas.accounts.middleware import IdentityMiddleware
    from invokeai_saas.closed.routes import MEDIA
    from invokeai_saas.web.plan_gate import PlanGate
    from invokeai_saas.web.session_script import SessionScript

    # It renews logins by itself, for days; ours end when they are taken back (decision 29).
    app.user_middleware = [each for each in app.user_middleware if each.cls is not SlidingWindowTokenMiddleware]
    served: Any = SessionScript(app, signup_open=settings.signup_open)
    if settings.metering:
        served = PlanGate(served, parts.database)
    return IdentityMiddleware(served, parts.accounts, media=[path for _method, path in MEDIA] + ["/api/v1/stored/{key:path}"])


def _lifespan(upstream: Any, parts: Parts, loops: Sequence[Any]) -> Any:
    """InvokeAI's start as system work, one process at a time: it looks for default rows and then inserts them."""

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Any]:
        with tenancy.as_system("the server starts and stops"):
            running = upstream(app)
            with parts.database.exclusive("start"):
                seed_defaults(parts.database)
                with parts.database.postgres() as cursor:
                    # InvokeAI reads it when it starts; whoever comes first makes it.
                    store.signing_secret(cursor)
                state = await running.__aenter__()
            for loop in loops:
                loop.start()
            collector.settle()
            try:
                yield state
            finally:
                for loop in reversed(loops):
                    loop.stop()
                await running.__aexit__(None, None, None)

    return lifespan


def _background(settings: Settings, parts: Parts, billing: InboxWorker, pulse: Pulse, books: BooksCheck) -> Any:
    """What must be done again and again, on whichever process is free."""
    from invokeai_saas.accounts import erase, mail, tokens
    from invokeai_saas.accounts.rate_limits import PostgresStorage
    from invokeai_saas.accounts.setup import transport_of
    from invokeai_saas.billing.setup import add_jobs as add_billing_jobs
    from invokeai_saas.credits import low_balance
    from invokeai_saas.credits import upkeep as credits_upkeep
    from invokeai_saas.jobs.background import Background
    from invokeai_saas.swaps.bulk_download import forget_expired
    from invokeai_saas.web import idempotency
    from invokeai_saas.workers.upkeep import add_jobs as add_fleet_jobs

    accounts, background, transport = parts.accounts, Background(parts.database), transport_of(settings)
    background.add("pulse", 5, pulse.beat, alone=False)
    if parts.bus is not None:
        background.add("forget events", 10, parts.bus.forget)
    background.add("recover files", 60, parts.files.recover)
    background.add("forget zips", 600, lambda: forget_expired(parts.files.store))
    if transport is not None:
        background.add("mail", 3, lambda: mail.deliver(accounts, transport, sender=settings.mail_from))
    background.add("forget rate limits", 3600, PostgresStorage(parts.database).forget_expired)
    background.add("forget tokens", 24 * 3600, lambda: tokens.forget_expired(accounts))
    background.add("announce erasures", 6 * 3600, lambda: erase.send_notices(accounts))
    background.add("erase", 6 * 3600, lambda: erase.erase_due(accounts))
    background.add("forget idempotency keys", 24 * 3600, lambda: idempotency.forget_old(parts.database))
    background.add("credits", 60, lambda: credits_upkeep.run(parts.database))
    background.add("check the books", 600, books.run)
    background.add("low balances", 300, lambda: low_balance.tell(accounts))
    add_billing_jobs(background, billing.billing)
    add_fleet_jobs(background, parts.database, settings)
    return background


def _reaping(parts: Parts, settings: Settings) -> Any:
    """In a thread of its own: what a lost item waits for has nothing slow before it."""
    from invokeai_saas.jobs.background import Background
    from invokeai_saas.jobs.reaper import PERIOD_SECONDS, Reaper
    from invokeai_saas.swaps.session_queue import LEASE_SECONDS

    reaping = Background(parts.database)
    lease_seconds = LEASE_SECONDS if parts.worker else settings.lease_seconds
    reaper = Reaper(parts.database, lambda: _services().session_queue.reap(), lease_seconds=lease_seconds)
    reaping.add("reap", PERIOD_SECONDS, reaper, alone=False)
    return reaping


def _services() -> Any:
    """InvokeAI's services once it has started."""
    from invokeai.app.api.dependencies import ApiDependencies

    return ApiDependencies.invoker.services


def _access_changed(change: AccessChange) -> None:
    """An account was closed or lost its role: its work stops, its sockets close."""
    from invokeai_saas.jobs.stopping import on_access_changed

    services = _services()
    on_access_changed(services.session_queue)(change)
    services.events.emit_user_access_changed(
        user_id=change.user_id, is_admin=change.is_admin, is_active=change.is_active, token_epoch=change.token_epoch
    )


def _tell(user_id: str, event: str, data: Mapping[str, Any]) -> None:
    """To the user's open pages, after the commit."""
    _services().events.tell(user_id, event, data)


def _tell_here(user_id: str, event: str, data: Mapping[str, Any]) -> None:
    """As _tell, of what every process finds out by itself."""
    _services().events.tell_here(user_id, event, data)


def _forget_zips(database: PostgresDatabase) -> Callable[[str], None]:
    # After the commit: no transaction waits for a store.
    return lambda user_id: database.on_commit(lambda: _services().bulk_download.forget(user_id))


def _stop_work() -> None:
    _services().session_processor.stop()
