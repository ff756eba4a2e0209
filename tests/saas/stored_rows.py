"""Rows with files for tests, and what must hold afterwards: every row has its files, every file its row, and the sum fits."""

from collections import Counter

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.storage.files import Files

COLUMNS = "image_name, image_origin, image_category, width, height, user_id"
INSERT = f"INSERT INTO images ({COLUMNS}) VALUES (?, 'internal', 'general', 1, 1, ?)"
VIDEOS_WITHOUT_FILES = """
SELECT video_name FROM videos
WHERE NOT EXISTS (SELECT 1 FROM stored_objects WHERE kind = 'video' AND name = video_name AND part = 'file')
"""
WORKFLOW = '{"name": "n", "description": "d", "meta": {"category": "user"}}'


def add_image_row(database: PostgresDatabase, owner: str, name: str) -> None:
    """What upstream's record service does before it saves the file."""
    with database.transaction() as cursor:
        cursor.execute(INSERT, (name, owner))


def add_workflow_row(database: PostgresDatabase, owner: str, workflow_id: str) -> None:
    """A workflow, which may have a picture."""
    with database.transaction() as cursor:
        insert = "INSERT INTO workflow_library (workflow_id, workflow, user_id) VALUES (?, ?, ?)"
        cursor.execute(insert, (workflow_id, WORKFLOW, owner))


def save_image(files: Files, database: PostgresDatabase, owner: str, name: str, size: int = 100) -> None:
    """Row and file of an image."""
    with tenancy.as_user(owner):
        add_image_row(database, owner, name)
        files.save("image", name, {"file": b"f" * size, "thumbnail": b"t" * 10})


def delete_row(database: PostgresDatabase, owner: str, name: str) -> None:
    """The row only."""
    with tenancy.as_user(owner), database.transaction() as cursor:
        cursor.execute("DELETE FROM images WHERE image_name = ?", (name,))


def image_rows(database: PostgresDatabase) -> set[str]:
    """Names of all images."""
    with tenancy.as_system("test rows"), database.transaction() as cursor:
        return {row[0] for row in cursor.execute("SELECT image_name FROM images").fetchall()}


def journal_states(database: PostgresDatabase) -> Counter[str]:
    """How many objects are in which state."""
    with tenancy.as_system("test states"), database.postgres() as cursor:
        return Counter(row["state"] for row in cursor.execute("SELECT state FROM stored_objects").fetchall())


def objects(files: Files) -> dict[str, int]:
    """What is really in the store: key -> bytes."""
    return {found.key: found.bytes for found in files.store.list("")}


def demand_whole(files: Files, database: PostgresDatabase) -> None:
    """Every row with its files, every file with its row, every user's sum as the store has it."""
    with tenancy.as_system("test journal"), database.postgres() as cursor:
        known = cursor.execute("SELECT key, user_id, bytes, state FROM stored_objects").fetchall()
        used = {row["user_id"]: row["bytes"] for row in cursor.execute("SELECT * FROM storage_used").fetchall() if row["bytes"]}
        files_of = "SELECT count(*) FROM stored_objects WHERE kind = 'image' AND name = image_name"
        orphans = f"SELECT image_name FROM images WHERE ({files_of}) <> 2"
        without_files = cursor.execute(orphans.encode()).fetchall() + cursor.execute(VIDEOS_WITHOUT_FILES.encode()).fetchall()
    there = objects(files)
    sums: Counter[str] = Counter()
    for key, size in there.items():
        sums[key.split("/")[1]] += size

    assert {row["key"]: row["bytes"] for row in known} == there
    assert {row["state"] for row in known} <= {"stored"}
    assert without_files == []
    assert used == sums
