"""Settings in, files that are ready for requests out: S3 with S3_BUCKET, else a folder under the data directory."""

import os
import secrets
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.errors import BadSettings
from invokeai_saas.settings import Settings
from invokeai_saas.storage.cache import LocalCache
from invokeai_saas.storage.disk import DiskStore
from invokeai_saas.storage.files import Files
from invokeai_saas.storage.port import ObjectStore
from invokeai_saas.storage.s3 import S3Store
from invokeai_saas.storage.signing import MIN_SECRET_BYTES, Signer

SECRET_FILE = "signing.key"
# InvokeAI gives an upload half an hour.
ARRIVING_LIFE_SECONDS = 2 * 3600.0


def open_files(settings: Settings, database: PostgresDatabase) -> Files:
    """Open and try the store; raises BadSettings that names the variable."""
    store = open_store(settings)
    store.check()
    return Files(database, store)


def open_store(settings: Settings) -> ObjectStore:
    """The store that the settings name, not tried yet."""
    if settings.s3_bucket is None:
        return DiskStore(settings.data_dir / "files", Signer(_signing_secret(settings)))
    secret = settings.s3_secret_access_key
    return S3Store(
        settings.s3_bucket,
        LocalCache(settings.data_dir / "cache", max_bytes=settings.storage_cache_bytes),
        endpoint_url=settings.s3_endpoint_url,
        region=settings.s3_region,
        access_key_id=settings.s3_access_key_id,
        secret_access_key=None if secret is None else secret.get_secret_value(),
    )


def receive_uploads(folder: Path) -> None:
    """Let this process and its children keep what arrives in `folder`, beside the store; what a killed one left there goes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        left = [path for path in folder.iterdir() if path.stat().st_mtime < time.time() - ARRIVING_LIFE_SECONDS]
    except OSError as error:
        raise BadSettings(f"SAAS_DATA_DIR: expected a folder for uploads, got: {error.strerror}") from None
    for path in left:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder.resolve())


def _signing_secret(settings: Settings) -> bytes:
    if settings.signing_secret is not None:
        return str(settings.signing_secret.get_secret_value()).encode()
    path = settings.data_dir / SECRET_FILE
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        _make_secret(path)
        secret = path.read_bytes()
    except OSError as error:
        raise BadSettings(f"SAAS_DATA_DIR: expected a folder for {SECRET_FILE}, got: {error.strerror}") from None
    if len(secret) < MIN_SECRET_BYTES:
        raise BadSettings(f"SAAS_DATA_DIR: expected {MIN_SECRET_BYTES} bytes or more in {SECRET_FILE}, got {len(secret)}: remove the file")
    return secret


def _make_secret(path: Path) -> None:
    """Write a new secret, whole or not at all, unless one is there; of several processes one wins."""
    if path.exists():
        return
    fresh = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_hex(MIN_SECRET_BYTES).encode())
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        fresh.unlink()
