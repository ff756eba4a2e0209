"""A server process of operating's own pieces, for tests that end it: prints its port, then what its end did.

    DSN  seconds-that-the-worker-takes-to-stop  drain-seconds  grace-seconds
"""

import asyncio
import atexit
import socket
import sys
import threading
import time

import uvicorn
from saas.operated import small_app

from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.operating import logs
from invokeai_saas.operating.install import install, uvicorn_options
from invokeai_saas.operating.shutdown import GracefulServer, Shutdown, exit_now, serve
from invokeai_saas.settings import Settings


def main(dsn: str, worker_seconds: float, drain_seconds: float, grace_seconds: int) -> None:
    """Serve until a signal."""
    settings = Settings(log_format="json", shutdown_drain_seconds=drain_seconds, shutdown_grace_seconds=grace_seconds)
    logs.configure(settings)
    database = PostgresDatabase(dsn, pool_size=2)
    atexit.register(print, "exit functions ran", flush=True)
    # As libraries leave them.
    threading.Thread(target=threading.Event().wait, name="endless").start()

    def stop_work() -> None:
        time.sleep(worker_seconds)
        print("worker stopped", flush=True)

    def close() -> None:
        database.close()
        print("pool closed", flush=True)

    shutdown = Shutdown(grace_seconds=grace_seconds, stop_work=stop_work, close=[close])
    installed = install(small_app(), settings=settings, database=database, draining=shutdown.draining)
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    options = uvicorn_options(settings)
    server = GracefulServer(uvicorn.Config(installed.app, fd=listening.fileno(), **options), shutdown, drain_seconds=drain_seconds)
    exit_now(serve(server, shutdown, asyncio.new_event_loop()))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
