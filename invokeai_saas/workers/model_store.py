"""The bucket's side of models: push, list, prune; and which models a worker can run.

installed model ─► push: hash every file ─► upload what is not there ─► manifest, last
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from invokeai_saas.db import tenancy
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.errors import SaasError
from invokeai_saas.settings import Settings
from invokeai_saas.storage.errors import ObjectMissing
from invokeai_saas.storage.port import Found, ObjectStore
from invokeai_saas.workers.manifest import MANIFEST_NAME, PREFIX, Manifest, manifest_key, read_folder
from invokeai_saas.workers.model_files import ModelFiles

Where = Literal["shared", "sync", "local"]
# A worker may still be fetching what a newer push replaced.
KEPT = timedelta(days=1)
# Providers' models have no files.
RECORDS = """
SELECT id AS key, name, path FROM models WHERE base <> 'external' AND format <> 'external_api' ORDER BY name, id
"""
WITHOUT_FILES = "SELECT id AS key FROM models WHERE base = 'external' OR format = 'external_api'"
logger = logging.getLogger(__name__)


class UnknownModel(SaasError):
    """No installed model has this key or name."""

    status = 404


@dataclass(frozen=True, slots=True)
class Record:
    """An installed model: its key, its name, and its path as InvokeAI stores it."""

    key: str
    name: str
    path: str


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did."""

    files: int
    bytes: int
    uploaded_files: int
    uploaded_bytes: int


def records(database: PostgresDatabase) -> list[Record]:
    """Every installed model that has files."""
    with tenancy.as_system("models are one installation for all"), database.postgres() as cursor:
        return [Record(**row) for row in cursor.execute(RECORDS).fetchall()]


def named(installed: Sequence[Record], words: Sequence[str]) -> list[Record]:
    """The models with these keys or names; raises UnknownModel with the nearest."""
    found = []
    for word in words:
        fitting = [record for record in installed if word in (record.key, record.name)]
        if not fitting:
            near = get_close_matches(word, [name for record in installed for name in (record.key, record.name)], n=1)
            raise UnknownModel(f"expected the key or name of an installed model, got {word!r}" + (f": {near[0]}?" if near else ""))
        found += fitting
    return found


def models_folder(settings: Settings) -> Path:
    """InvokeAI's models folder: `models_dir` of its invokeai.yaml, else `models` under its root."""
    root = settings.invokeai_root or settings.data_dir / "invokeai"
    chosen = Path("models")
    if (root / "invokeai.yaml").is_file():
        import yaml

        written = yaml.safe_load((root / "invokeai.yaml").read_text(encoding="utf-8"))
        if isinstance(written, dict) and written.get("models_dir"):
            chosen = Path(str(written["models_dir"]))
    return (root / chosen).absolute()


def push(store: ObjectStore, record: Record, models: Path) -> Pushed:
    """Bring a model into the bucket, only what is not there yet; the manifest comes last. UnknownModel: no files here."""
    path = models / record.path
    if not path.exists():
        raise UnknownModel(
            f"expected the files of {record.name} in the models folder of this machine, got none: push it where it is installed"
        )
    manifest = read_folder(record.key, path)
    uploaded = [
        file for file in {file.sha256: file for file in manifest.files}.values() if store.size(manifest.object_of(file)) != file.bytes
    ]
    for file in uploaded:
        logger.info("pushing %s of %s: %.2f GB", file.path or path.name, record.name, file.bytes / 1e9)
        store.put_file(manifest.object_of(file), path / file.path if file.path else path, "application/octet-stream", keep=True)
    if pushed_manifest(store, record.key) != manifest:
        store.put(manifest_key(record.key), manifest.as_json(), "application/json")
    return Pushed(len(manifest.files), manifest.total_bytes, len(uploaded), sum(file.bytes for file in uploaded))


def pushed_manifest(store: ObjectStore, key: str) -> Manifest | None:
    """The manifest in the bucket, None without."""
    try:
        return Manifest.of_json(b"".join(store.chunks(manifest_key(key))))
    except ObjectMissing:
        return None


def pushed_keys(store: ObjectStore) -> set[str]:
    """Keys of the models that are in the bucket in full."""
    return {_model_of(found) for found in store.list(PREFIX) if found.key.endswith(f"/{MANIFEST_NAME}")}


def prune(store: ObjectStore, installed: Sequence[Record], *, now: datetime | None = None) -> list[Found]:
    """Remove what no installed model needs and nobody has touched for a day; returns it."""
    keys, before = {record.key for record in installed}, (now or datetime.now(UTC)) - KEPT
    wanted: dict[str, set[str]] = {}
    gone = []
    for found in store.list(PREFIX):
        key = _model_of(found)
        if key in keys and key not in wanted:
            manifest = pushed_manifest(store, key)
            objects = set() if manifest is None else {manifest.object_of(file) for file in manifest.files}
            wanted[key] = objects | {manifest_key(key)}
        if found.changed_at < before and found.key not in wanted.get(key, ()):
            gone.append(found)
    # The manifest first: a model without all of its files must not look whole.
    store.delete([found.key for found in sorted(gone, key=lambda found: not found.key.endswith(MANIFEST_NAME))])
    return gone


def open_model_files(settings: Settings, database: PostgresDatabase, store: ObjectStore) -> ModelFiles:
    """What a worker with `--models sync` fetches with."""

    def paths() -> Mapping[str, str]:
        return {record.key: record.path for record in records(database)}

    limit = None if settings.model_cache_gb is None else int(settings.model_cache_gb * 1e9)
    return ModelFiles(store, models_folder(settings), records=paths, limit_bytes=limit)


def usable_keys(database: PostgresDatabase, store: ObjectStore, where: Where, models: Path) -> frozenset[str] | None:
    """The models that a worker may claim jobs for; None is every one. Ask again now and then: models are installed and pushed later."""
    if where == "shared":
        return None
    here = {record.key for record in records(database) if (models / record.path).exists()}
    with tenancy.as_system("models are one installation for all"), database.postgres() as cursor:
        provided = {row["key"] for row in cursor.execute(WITHOUT_FILES).fetchall()}
    return frozenset(here | provided | (pushed_keys(store) if where == "sync" else set()))


def _model_of(found: Found) -> str:
    return found.key.removeprefix(PREFIX).partition("/")[0]
