"""Small rows for tests, written through the look-alike in the context that the test is in."""

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.jobs.lost import Patience

# Lost items come back without a wait.
AT_ONCE = Patience(first_wait_seconds=0.0)


def add_board(database: PostgresDatabase, owner: str, name: str) -> None:
    """A private board `owner-name`."""
    with database.transaction() as cursor:
        cursor.execute("INSERT INTO boards (board_id, board_name, user_id) VALUES (?, ?, ?)", (f"{owner}-{name}", name, owner))


def add_user(database: PostgresDatabase, user_id: str) -> None:
    """An account row; accounts are written by system work."""
    with tenancy.as_system("test user"), database.transaction() as cursor:
        cursor.execute("INSERT INTO users (user_id, email, password_hash) VALUES (?, ?, '')", (user_id, f"{user_id}@example.com"))


def add_items(database: PostgresDatabase, owner: str, count: int, *, priority: int = 0) -> list[int]:
    """Pending queue items of `owner`; their ids in order."""
    insert = "INSERT INTO session_queue (queue_id, batch_id, session, session_id, user_id, priority) VALUES (?, ?, ?, ?, ?, ?)"
    with tenancy.as_system("test items"), database.transaction() as cursor:
        batch = f"{owner}-{priority}-{count}"
        cursor.executemany(insert, [("default", batch, '{"graph": {}}', f"{batch}-{n}", owner, priority) for n in range(count)])
        return [row[0] for row in cursor.execute("SELECT item_id FROM session_queue WHERE batch_id = ? ORDER BY item_id", (batch,))]


def status_of(database: PostgresDatabase, item_id: int) -> str:
    """An item's status, whoever owns it."""
    with tenancy.as_system("test status"), database.transaction() as cursor:
        row = cursor.execute("SELECT status FROM session_queue WHERE item_id = ?", (item_id,)).fetchone()
        return str(row[0])
