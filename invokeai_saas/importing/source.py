"""An InvokeAI root in, a readable copy of its database and the places of its files out. The root itself is only read.

The copy is made by SQLite's own backup, so that what lies in the write-ahead log comes along; upstream's migrations then bring it to the
installed InvokeAI's schema. They run on an empty folder in the root's stead: some of them move and delete models.
"""

import logging
import sqlite3
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invokeai_saas.db.upstream_schema import upstream_migration_ids
from invokeai_saas.errors import SaasError

_PATHS = ("db_dir", "outputs_dir", "models_dir", "style_presets_dir", "workflow_thumbnails_dir")
_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table'"
_VERSIONS = "SELECT version FROM migrations WHERE version > 0"
_MIGRATION_IDS = "SELECT migration_id FROM applied_migrations"
# Every InvokeAI database since 3.0 has them.
_NEEDED = {"images", "boards", "board_images", "migrations"}


class ImportRefused(SaasError):
    """The root cannot be imported as it is, or not by this InvokeAI; nothing was written."""


@dataclass(frozen=True, slots=True)
class Folders:
    """Where a root keeps its files; any of them may be missing."""

    images: Path
    videos: Path
    workflow_pictures: Path
    style_preset_pictures: Path
    model_pictures: Path
    models: Path


@dataclass(frozen=True, slots=True)
class Source:
    """A root that can be read: `connection` is the migrated copy, `workdir` a folder for passing copies of large files."""

    connection: sqlite3.Connection
    folders: Folders
    workdir: Path

    def batches(self, query: str, size: int) -> Iterator[list[dict[str, Any]]]:
        """The rows of a query as dicts, `size` at a time."""
        cursor = self.connection.execute(query)
        while rows := cursor.fetchmany(size):
            yield [dict(row) for row in rows]

    def number(self, query: str) -> int:
        """The first column of the only row, as an integer."""
        return int(self.connection.execute(query).fetchone()[0] or 0)


@contextmanager
def open_root(root: Path) -> Iterator[Source]:
    """Copy, check, migrate the copy. Raises ImportRefused for a folder without a database and for one newer than our InvokeAI."""
    config = _config(root)
    original = Path(config.db_path)
    if not original.is_file():
        raise ImportRefused(f"expected an InvokeAI root with a database {original}, found none")
    with tempfile.TemporaryDirectory(prefix="invokeai-import-") as folder:
        workdir, copy = Path(folder), Path(folder) / "invokeai.db"
        _copy(original, copy)
        _demand_known(copy)
        folders = _folders(config)
        _migrate(copy, workdir, folders)
        _set_defaults_aside(copy)
        with closing(sqlite3.connect(copy)) as connection:
            connection.row_factory = sqlite3.Row
            connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
            yield Source(connection, folders, workdir)


def _config(root: Path) -> Any:
    """Upstream's settings of the root, as far as they name folders. Upstream's own loader would rewrite an old file."""
    import yaml
    from invokeai.app.services.config.config_default import DefaultInvokeAIAppConfig, migrate_v3_config_dict

    path = root / "invokeai.yaml"
    said: dict[str, Any] = {}
    try:
        if path.is_file():
            said = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
            said = migrate_v3_config_dict(said) if "InvokeAI" in said else said
        config = DefaultInvokeAIAppConfig(**{name: said[name] for name in _PATHS if said.get(name)})
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ImportRefused(f"expected {path} to be InvokeAI's settings, got: {error}") from error
    config._root = root
    return config


def _folders(config: Any) -> Folders:
    outputs, models = Path(config.outputs_path), Path(config.models_path)
    return Folders(
        images=outputs / "images",
        videos=outputs / "videos",
        workflow_pictures=Path(config.workflow_thumbnails_path),
        style_preset_pictures=Path(config.style_presets_path) / "images",
        model_pictures=models / "model_images",
        models=models,
    )


def _copy(original: Path, copy: Path) -> None:
    log = original.with_name(original.name + "-wal")
    # Without a log nobody has the file open; "immutable" then keeps SQLite from laying sidecars beside it.
    mode = "mode=ro" if log.exists() and log.stat().st_size else "mode=ro&immutable=1"
    try:
        with (
            closing(sqlite3.connect(f"{original.resolve().as_uri()}?{mode}", uri=True, timeout=30)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
    except sqlite3.Error as error:
        raise ImportRefused(f"expected an SQLite database that can be read at {original}, got: {error}") from error


def _demand_known(copy: Path) -> None:
    from invokeai.version.invokeai_version import __version__

    with closing(sqlite3.connect(copy)) as connection:
        tables = {row[0] for row in connection.execute(_TABLES)}
        if not _NEEDED <= tables:
            raise ImportRefused(f"expected InvokeAI's tables, the database lacks {', '.join(sorted(_NEEDED - tables))}")
        done = {f"migration_{row[0]}" for row in connection.execute(_VERSIONS)}
        if "applied_migrations" in tables:
            done |= {row[0] for row in connection.execute(_MIGRATION_IDS)}
    unknown = sorted(done - set(upstream_migration_ids()))
    if unknown:
        raise ImportRefused(f"the root is newer than the installed InvokeAI {__version__}: it has {', '.join(unknown)}")


def _migrate(copy: Path, workdir: Path, folders: Folders) -> None:
    from invokeai.app.services.config.config_default import DefaultInvokeAIAppConfig
    from invokeai.app.services.shared.sqlite.sqlite_database import SqliteDatabase
    from invokeai.app.services.shared.sqlite_migrator.migration_loader import MigrationBuildContext, build_migrations
    from invokeai.app.services.shared.sqlite_migrator.sqlite_migrator_common import MigrationError
    from invokeai.app.services.shared.sqlite_migrator.sqlite_migrator_impl import SqliteMigrator

    logger = logging.getLogger(f"{__name__}.migrations")
    config = DefaultInvokeAIAppConfig()
    config._root = workdir / "no-root"
    database = SqliteDatabase(db_path=copy, logger=logger)
    context = MigrationBuildContext(app_config=config, logger=logger, image_files=_ReadPictures(folders.images))
    try:
        migrator = SqliteMigrator(db=database)
        for migration in build_migrations(context):
            migrator.register_migration(migration)
        migrator.run_migrations()
    except MigrationError as error:
        raise ImportRefused(f"InvokeAI's migrations failed on a copy of the database: {error}") from error
    finally:
        database._conn.close()


def _set_defaults_aside(copy: Path) -> None:
    """Prompts that upstream seeds are everybody's, by fixed ids: the server has its own. An edited one becomes a prompt of its owner."""
    from invokeai.app.services.shared.sqlite_migrator.migrations import migration_2026_07_10_create_system_prompts as seeds

    with closing(sqlite3.connect(copy)) as connection, connection:
        for prompt_id, name, content in seeds.DEFAULT_SYSTEM_PROMPTS:
            connection.execute("DELETE FROM system_prompts WHERE id = ? AND name = ? AND content = ?", (prompt_id, name, content))
            own = str(uuid.uuid5(uuid.NAMESPACE_OID, f"edited {prompt_id}"))
            connection.execute("UPDATE system_prompts SET id = ?, is_public = 0 WHERE id = ?", (own, prompt_id))


class _ReadPictures:
    """What one of upstream's migrations asks of its image service: which pictures of 3.x carry a workflow."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, image_name: str) -> Any:
        """The picture, undecoded; whatever it raises, the migration goes on."""
        from PIL import Image

        return Image.open(self._folder / Path(image_name).name)
