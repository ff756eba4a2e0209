"""Settings in, one finding per check out: ok, warning or error, with what to do. Changes nothing but a probe object, which goes again.

Findings hold no secret and no address of a database: they are pasted into tickets.
"""

import os
import shutil
import smtplib
import ssl
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import psycopg

from invokeai_saas.accounts import oidc
from invokeai_saas.accounts.setup import verifier_of
from invokeai_saas.db.migrate import refuse_stale
from invokeai_saas.db.opening import MAY_BECOME, demand_connection, owner_dsn
from invokeai_saas.errors import SaasError
from invokeai_saas.operating import doctor_fleet, doctor_stripe
from invokeai_saas.operating.redaction import Redactor, secrets_of
from invokeai_saas.settings import Settings
from invokeai_saas.storage.opening import open_store

Level = Literal["ok", "warning", "error"]
OK: Level = "ok"
WARNING: Level = "warning"
ERROR: Level = "error"
MIN_POSTGRES = 150000
GIB = 1024**3
CLOCK_WARNING_SECONDS, CLOCK_ERROR_SECONDS = 2.0, 30.0
SMTP_SECONDS = 10.0
PROBE = b"doctor"

VERSION = "SELECT current_setting('server_version_num')::int AS number, current_setting('server_version') AS version"
ROLES = """
SELECT rolname FROM pg_roles
WHERE rolname IN ('invokeai_app', 'invokeai_system', 'invokeai_definer', 'invokeai_books') AND (rolsuper OR rolbypassrls)
"""
OWNED = """
SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v')
    AND relowner IN (SELECT oid FROM pg_roles WHERE rolname IN ('invokeai_app', 'invokeai_system')) ORDER BY 1
"""
# The history of migrations has no tenant.
UNFORCED = """
SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> 'saas_migrations'
    AND NOT (relrowsecurity AND relforcerowsecurity) ORDER BY 1
"""
LOGIN = "SELECT rolsuper OR rolbypassrls AS powerful FROM pg_roles WHERE rolname = session_user"
CLOCK = "SELECT clock_timestamp() AS now"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found; `todo` says what to do unless all is well."""

    check: str
    level: Level
    message: str
    todo: str = ""

    def line(self) -> str:
        """For people."""
        return f"{self.level:<8}{self.check}: {self.message}" + (f"\n        -> {self.todo}" if self.todo else "")

    def as_json(self) -> dict[str, str]:
        """For programs."""
        return asdict(self)


Check = Callable[[Settings], Iterator[tuple[Level, str, str]]]


def examine(settings: Settings, checks: Mapping[str, Check] | None = None) -> Iterator[Finding]:
    """Run all checks, or those given; one that fails in an unforeseen way is an error and stops no other."""
    hide = Redactor(secrets_of(settings)).text
    for name, check in (CHECKS if checks is None else checks).items():
        try:
            for level, message, todo in check(settings):
                yield Finding(name, level, hide(message), hide(todo))
        except SaasError as error:
            yield Finding(name, ERROR, hide(str(error)), "see the variable that is named")
        except Exception as error:
            yield Finding(name, ERROR, hide(f"{type(error).__name__}: {error}".splitlines()[0]), "see the message")


def check_settings(settings: Settings) -> Iterator[tuple[Level, str, str]]:
    """What can be set and should not be."""
    here = urlsplit(settings.public_url)
    if here.scheme == "http" and here.hostname not in ("localhost", "127.0.0.1", "::1"):
        yield WARNING, "SAAS_PUBLIC_URL is http://: passwords travel readable", "put a proxy with TLS in front, and set https://"
    if settings.database_url is not None and settings.database_app_url is None:
        yield (
            WARNING, "requests run over DATABASE_URL's login, which also migrates",
            "make a login that is only a member of invokeai_app and invokeai_system, and set DATABASE_APP_URL",
        )  # fmt: skip
    if settings.s3_bucket is None and settings.database_url is not None:
        yield WARNING, "files lie on this machine's disk, records do not", "set S3_BUCKET before there is a second machine"
    yield OK, f"read; people reach the server at {settings.public_url}", ""


def check_database(settings: Settings) -> Iterator[tuple[Level, str, str]]:
    """The version, and the roles that keep tenants apart."""
    dsn = owner_dsn(settings)
    demand_connection(dsn, "DATABASE_URL", statement=MAY_BECOME)
    with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as connection:
        number, version = _row(connection, VERSION)
        old = number < MIN_POSTGRES
        yield (ERROR, f"Postgres {version}", "update to 15 or newer") if old else (OK, f"Postgres {version}", "")
        yield _none_of(connection, ROLES, "roles that pass row-level security by", "ALTER ROLE … NOSUPERUSER NOBYPASSRLS")
        yield _none_of(connection, OWNED, "tables or views that the application's roles own", "ALTER … OWNER TO invokeai_owner")
        yield _none_of(connection, UNFORCED, "tables without forced row-level security", "ALTER TABLE … FORCE ROW LEVEL SECURITY")
    if settings.database_app_url is not None:
        yield _application_login(settings.database_app_url.get_secret_value())


def check_migrations(settings: Settings) -> Iterator[tuple[Level, str, str]]:
    """The database is of this code's version."""
    refuse_stale(owner_dsn(settings))
    yield OK, "the database is at this code's version", ""


def check_clock(settings: Settings) -> Iterator[tuple[Level, str, str]]:
    """Tokens, leases and signed addresses are compared across both clocks."""
    with psycopg.connect(owner_dsn(settings), autocommit=True, connect_timeout=10) as connection:
        before = datetime.now(UTC)
        (there,) = _row(connection, CLOCK)
        after = datetime.now(UTC)
    # The middle of the question is the best guess of when it was answered.
    off = abs((there - (before + (after - before) / 2)).total_seconds())
    level = ERROR if off > CLOCK_ERROR_SECONDS else WARNING if off > CLOCK_WARNING_SECONDS else OK
    yield level, f"{off:.2f} s between this machine's clock and the database's", "" if level == OK else "set both by NTP"


def check_storage(settings: Settings) -> Iterator[tuple[Level, str, str]]:
    """Write, read, delete."""
    store, key = open_store(settings), f"system/probes/{uuid.uuid4().hex}"
    store.check()
    store.put(key, PROBE, "application/octet-stream")
    try:
        if store.local_path(key).read_bytes() != PROBE:
            yield ERROR, "an object that was just written reads otherwise", "look at what stands between this server and the store"
    finally:
        store.delete([key])
    left = store.size(key)
    if left is not None:
        yield ERROR, "an object that was just deleted is still there", "the credentials need s3:DeleteObject; retention rules forbid it too"
    yield OK, "written, read and deleted " + ("on disk" if settings.s3_bucket is None else f"in bucket {settings.s3_bucket}"), ""


def check_mail(settings: Settings) -> Iterator[tuple[Level, str, str]]:
    """The mail server takes the login; no letter is sent."""
    if settings.smtp_host is None:
        yield WARNING, "SAAS_SMTP_HOST is not set: letters wait, and nobody can verify an address", "set SAAS_SMTP_HOST"
        return
    try:
        _greet(settings)
    except (OSError, smtplib.SMTPException) as error:
        yield (
            ERROR, f"{settings.smtp_host}:{settings.smtp_port}: {type(error).__name__}",
            "look at SAAS_SMTP_HOST, _PORT, _SECURITY, _USERNAME, _PASSWORD",
        )  # fmt: skip
        return
    yield OK, f"{settings.smtp_host}:{settings.smtp_port} answers over {settings.smtp_security}", ""


def check_oidc(settings: Settings) -> Iterator[tuple[Level, str, str]]:
    """The provider's keys can be read."""
    verifier = verifier_of(settings)
    if verifier is None:
        yield OK, "not set: people sign in by address and password", ""
        return
    try:
        keys = oidc.fetch(verifier.jwks_url).get("keys", [])
    except (OSError, ValueError) as error:
        yield ERROR, f"the provider's keys: {type(error).__name__}", "look at SAAS_OIDC_ISSUER and SAAS_OIDC_JWKS_URL"
        return
    if not keys:
        yield ERROR, "the provider names no keys", "look at SAAS_OIDC_JWKS_URL"
    else:
        yield OK, f"{len(keys)} keys of the provider", ""


def check_ffmpeg(settings: Settings) -> Iterator[tuple[Level, str, str]]:
    """Videos are written through it."""
    import imageio_ffmpeg

    try:
        path = imageio_ffmpeg.get_ffmpeg_exe()
        said = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        yield ERROR, type(error).__name__, "install imageio-ffmpeg again, or set IMAGEIO_FFMPEG_EXE"
        return
    yield OK, " ".join(said.split()[:3]), ""


def check_devices(settings: Settings) -> Iterator[tuple[Level, str, str]]:
    """What generations run on. Slow: torch is loaded."""
    import torch

    names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    if names:
        yield OK, ", ".join(f"{each.name}, {each.total_memory / GIB:.0f} GiB" for each in names), ""
    elif torch.backends.mps.is_available():
        yield OK, "Apple GPU", ""
    else:
        yield WARNING, f"no GPU: generations run on {os.cpu_count()} CPU cores", "fine for trying things out; videos take hours"


def check_disk(settings: Settings) -> Iterator[tuple[Level, str, str]]:
    """Room for files, downloads of S3 objects and uploads on their way."""
    for name, folder in (("SAAS_DATA_DIR", _existing(settings.data_dir)), ("temporary files", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        level = ERROR if free < GIB else WARNING if free < 10 * GIB else OK
        yield level, f"{name}: {free / GIB:.1f} GiB free", "" if level == OK else "make room: uploads and videos need it"


def check_models(settings: Settings) -> Iterator[tuple[Level, str, str]]:
    """InvokeAI's models folder."""
    folder = models_folder(settings)
    if not folder.is_dir():
        yield WARNING, "there is no models folder yet", "it is made at the first start; models are installed by an administrator"
    elif not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield ERROR, "the models folder cannot be read and written", "give it to the account that the server runs as"
    elif not any(folder.iterdir()):
        yield WARNING, "the models folder is empty", "install models as an administrator"
    else:
        yield OK, f"{sum(1 for _ in folder.iterdir())} entries in the models folder", ""


def models_folder(settings: Settings) -> Path:
    """As InvokeAI finds it: INVOKEAI_MODELS_DIR, relative to the root."""
    root = settings.invokeai_root or settings.data_dir / "invokeai"
    return root / os.environ.get("INVOKEAI_MODELS_DIR", "models")


CHECKS: dict[str, Check] = {
    "settings": check_settings,
    "database": check_database,
    "migrations": check_migrations,
    "clock": check_clock,
    "storage": check_storage,
    "mail": check_mail,
    "sign-in provider": check_oidc,
    "stripe": doctor_stripe.check_stripe,
    "wake-ups": doctor_fleet.check_wakeups,
    "events": doctor_fleet.check_events,
    "workers": doctor_fleet.check_workers,
    "ffmpeg": check_ffmpeg,
    "devices": check_devices,
    "disk": check_disk,
    "models": check_models,
}


def _application_login(dsn: str) -> tuple[Level, str, str]:
    demand_connection(dsn, "DATABASE_APP_URL", statement=MAY_BECOME)
    with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as connection:
        (powerful,) = _row(connection, LOGIN)
    if powerful:
        return ERROR, "DATABASE_APP_URL's login may pass row-level security by", "ALTER ROLE … NOSUPERUSER NOBYPASSRLS"
    return OK, "DATABASE_APP_URL's login is an ordinary one", ""


def _none_of(connection: psycopg.Connection[tuple[Any, ...]], query: str, what: str, todo: str) -> tuple[Level, str, str]:
    found = [str(row[0]) for row in connection.execute(query.encode()).fetchall()]
    return (ERROR, f"{what}: {', '.join(found)}", todo) if found else (OK, f"no {what}", "")


def _row(connection: psycopg.Connection[tuple[Any, ...]], query: str) -> tuple[Any, ...]:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row


def _greet(settings: Settings) -> None:
    assert settings.smtp_host is not None
    context = ssl.create_default_context()
    if settings.smtp_security == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(settings.smtp_host, settings.smtp_port, timeout=SMTP_SECONDS, context=context)
    else:
        server = smtplib.SMTP(settings.smtp_host, settings.smtp_port, timeout=SMTP_SECONDS)
    with server:
        if settings.smtp_security == "starttls":
            server.starttls(context=context)
        if settings.smtp_username is not None:
            server.login(settings.smtp_username, settings.smtp_password.get_secret_value() if settings.smtp_password else "")
        server.noop()


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(parent for parent in (folder, *folder.parents) if parent.exists())
