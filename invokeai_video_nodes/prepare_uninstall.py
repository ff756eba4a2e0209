"""`invokeai-video prepare-uninstall`: leave a database that InvokeAI reads without errors once the pack is gone.

Stock InvokeAI fails on queue items that hold our nodes (the queue list answers 500), skips our model records with long warnings, and
refuses to install their paths again. So those rows go, and our unedited workflows with them. Model files and videos stay.
Works on the SQLite file of a root, without importing InvokeAI; a copy of the file is made first.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.workflow_files import workflow_files

# The values of our enum members (patches/invokeai_video_patches/taxonomy.py): records with them are ours.
OUR_BASES = ("z-image-video", "hunyuan-video", "svd")
OUR_MODEL_TYPES = ("video_vae", "video_text_encoders", "motion_module")
OUR_FORMATS = ("sparse_ctrl",)
# A motion LoRA is told from InvokeAI's own LoRAs by its format alone, which none of theirs has with this type and base.
MOTION_LORA = ("sd-1", "lora", "checkpoint")
WORKFLOW_TAG = "invokeai-video"
# What a person can change in the workflow editor.
WORKFLOW_CONTENT = ("description", "notes", "version", "nodes", "edges", "form", "exposedFields")

# Queue items with their graphs.
SELECT_ITEMS = "SELECT item_id, status, session, workflow FROM session_queue ORDER BY item_id"
SELECT_MODELS = "SELECT id, base, type, json_extract(config, '$.format'), name, path FROM models ORDER BY name"
SELECT_WORKFLOWS = "SELECT workflow_id, name, workflow FROM workflow_library ORDER BY name"
DELETE_ITEM = "DELETE FROM session_queue WHERE item_id = ?"
DELETE_MODEL = "DELETE FROM models WHERE id = ?"
DELETE_WORKFLOW = "DELETE FROM workflow_library WHERE workflow_id = ?"


@dataclass(frozen=True)
class Row:
    """One database row that is ours: its key, and a line that a person can recognise it by."""

    key: str | int
    words: str


@dataclass(frozen=True)
class Leftovers:
    """Everything of ours in one database; `kept` are workflows that someone edited, which stay."""

    queue_items: tuple[Row, ...]
    models: tuple[Row, ...]
    workflows: tuple[Row, ...]
    kept: tuple[Row, ...]

    def __bool__(self) -> bool:
        return bool(self.queue_items or self.models or self.workflows)


def prepare_uninstall(root: Path | str | None, yes: bool = False) -> int:
    """Show what is ours in the database of a root and, with `yes` or a typed yes, remove it; returns the exit code.

    `root` None = INVOKEAI_ROOT, else ~/invokeai. Raises BadInput when there is no database, or while a server uses it.
    """
    path = database_path(find_root(root))
    users = processes_using(path)
    if users:
        raise BadInput(f"{path} is in use by {', '.join(users)}: stop InvokeAI first, then run this again")
    with closing(sqlite3.connect(path)) as connection:
        leftovers = find_leftovers(connection)
        print(report(leftovers, path))
        if not leftovers:
            return 0
        if not (yes or _confirmed()):
            print("Nothing was changed. Run this again with --yes to do it.")
            return 0
        copy = back_up(connection, path)
        remove(connection, leftovers)
    print(f"Done. A copy of the database as it was: {copy}")
    print("Now remove the pack: `pip uninstall invokeai-video`, or delete its folder in nodes/.")
    return 0


def find_root(root: Path | str | None) -> Path:
    """The root that was named, else INVOKEAI_ROOT, else InvokeAI's default in the home folder."""
    return Path(root or os.environ.get("INVOKEAI_ROOT") or Path.home() / "invokeai").expanduser().resolve()


def database_path(root: Path) -> Path:
    """The SQLite file of a root, where its invokeai.yaml says; raises BadInput when there is none."""
    folder = root / "databases"
    settings_path = root / "invokeai.yaml"
    if settings_path.is_file():
        import yaml

        settings = yaml.safe_load(settings_path.read_text(encoding="utf-8")) or {}
        folder = root / settings.get("db_dir", "databases")
    path = folder / "invokeai.db"
    if not path.is_file():
        raise BadInput.expected("--root", "an InvokeAI root that has been started once", f"{root} without {path}")
    return path


def processes_using(path: Path) -> list[str]:
    """Other processes of this user that hold the file open, as "name (pid)"."""
    import psutil

    users = []
    for process in psutil.process_iter(["pid", "name"]):
        if process.pid == os.getpid():
            continue
        try:
            opened = process.open_files()
        except (psutil.Error, OSError):
            continue
        if any(Path(file.path) == path for file in opened):
            users.append(f"{process.info['name']} ({process.pid})")
    return users


def our_node_types() -> frozenset[str]:
    """Types of our nodes, read from their source, so that a broken InvokeAI is no obstacle."""
    files = (Path(__file__).parent / "nodes").glob("*.py")
    return frozenset(name for path in files for name in re.findall(r'^@invocation\(\s*"(\w+)"', path.read_text(), re.MULTILINE))


def find_leftovers(connection: sqlite3.Connection) -> Leftovers:
    """Read, and change nothing."""
    models = connection.execute(SELECT_MODELS).fetchall()
    ours = [row for row in models if _is_our_model(*row[1:4])]
    workflows, kept = _workflows(connection)
    return Leftovers(
        queue_items=tuple(_queue_items(connection)),
        models=tuple(Row(key, f"{name} ({kind}, {base}) at {path}") for key, base, kind, _, name, path in ours),
        workflows=tuple(workflows),
        kept=tuple(kept),
    )


def _is_our_model(base: str, kind: str, model_format: str) -> bool:
    of_our_enums = base in OUR_BASES or kind in OUR_MODEL_TYPES or model_format in OUR_FORMATS
    return of_our_enums or (base, kind, model_format) == MOTION_LORA


def remove(connection: sqlite3.Connection, leftovers: Leftovers) -> None:
    """Delete the rows in one transaction: all of them, or none."""
    with connection:
        connection.execute("PRAGMA foreign_keys = ON")
        for statement, rows in (
            (DELETE_ITEM, leftovers.queue_items),
            (DELETE_MODEL, leftovers.models),
            (DELETE_WORKFLOW, leftovers.workflows),
        ):
            connection.executemany(statement, [(row.key,) for row in rows])


def back_up(connection: sqlite3.Connection, path: Path) -> Path:
    """Copy the database beside itself, including what lies in its write-ahead log; returns the copy's path."""
    copy = path.with_name(f"{path.stem}.before-video-uninstall-{time.strftime('%Y%m%d-%H%M%S')}{path.suffix}")
    with closing(sqlite3.connect(copy)) as target:
        connection.backup(target)
    return copy


def report(leftovers: Leftovers, path: Path) -> str:
    """What would go and what stays, one line each."""
    if not leftovers:
        return f"{path}: nothing of invokeai-video in it."
    lines = [f"{path}:"]
    for title, rows in (
        ("queue items that hold our nodes (they go)", leftovers.queue_items),
        ("model records (they go, the files stay)", leftovers.models),
        ("our workflows (they go)", leftovers.workflows),
        ("workflows of ours that were edited (they stay)", leftovers.kept),
    ):
        lines.append(f"  {len(rows)} {title}" + (":" if rows else ""))
        lines += [f"    {row.words}" for row in rows]
    return "\n".join(lines)


def _queue_items(connection: sqlite3.Connection) -> list[Row]:
    types = our_node_types()
    items = []
    for item_id, status, session, workflow in connection.execute(SELECT_ITEMS):
        named = sorted(name for name in types if any(f'"{name}"' in (text or "") for text in (session, workflow)))
        if named:
            items.append(Row(item_id, f"item {item_id} ({status}): {', '.join(named)}"))
    return items


def _workflows(connection: sqlite3.Connection) -> tuple[list[Row], list[Row]]:
    """Our workflows as shipped, and those that someone has edited since."""
    shipped = {content["name"]: content for content in (json.loads(path.read_text(encoding="utf-8")) for path in workflow_files())}
    unedited: list[Row] = []
    edited: list[Row] = []
    for key, name, text in connection.execute(SELECT_WORKFLOWS):
        stored = json.loads(text)
        tags = [tag.strip() for tag in (stored.get("tags") or "").split(",")]
        if WORKFLOW_TAG not in tags or name not in shipped:
            continue
        same = all(_plain(stored.get(part)) == _plain(shipped[name].get(part)) for part in WORKFLOW_CONTENT)
        (unedited if same else edited).append(Row(key, name))
    return unedited, edited


def _plain(value: object) -> object:
    """A JSON value with empty fields left out: InvokeAI writes null or an empty list where a file says nothing."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_plain(item) for item in value] or None
    return value


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        return False
    return input("Remove these rows? [y/N] ").strip().lower() in ("y", "yes")
