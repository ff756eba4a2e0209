"""psycopg's pool, which asks a lost server for a connection every second instead of ever more seldom.

Its own backoff doubles up to a minute: after an outage of 20 s requests would wait for 10 s more although the server is back.
"""

from typing import Any

import psycopg
from psycopg_pool import ConnectionPool
from psycopg_pool.pool import AddConnection, MaintenanceTask

Connection = psycopg.Connection[Any]
RECONNECT_SECONDS = 1.0


class SteadyPool(ConnectionPool[Connection]):
    """Reconnects at a steady pace."""

    def schedule_task(self, task: MaintenanceTask, delay: float) -> None:
        """See ConnectionPool: every task but reconnecting keeps its delay."""
        super().schedule_task(task, min(delay, RECONNECT_SECONDS) if isinstance(task, AddConnection) else delay)
