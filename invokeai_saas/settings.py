"""Environment in, one frozen settings object out. Secrets are SecretStr: repr, logs and errors never show them."""

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from invokeai_saas.errors import BadSettings
from invokeai_saas.storage.signing import MIN_SECRET_BYTES

_CELERY_SCHEMES = ("celery+redis://", "celery+rediss://", "celery+sqs://")
_POSTGRES_SCHEMES = ("postgresql://", "postgres://")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-]+(:\d{1,5})?|https?://\[[0-9A-Fa-f:]+\](:\d{1,5})?")
_BOUNDS = re.compile(r"((basic|high_performance|dedicated)=)?\d{1,5}-\d{1,5}")
MIN_METRICS_TOKEN = 16
# Lists are written a,b,c.
Words = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """Everything an operator can set. Without DATABASE_URL an embedded Postgres starts under `data_dir`."""

    model_config = SettingsConfigDict(env_prefix="SAAS_", frozen=True, extra="ignore", hide_input_in_errors=True, populate_by_name=True)

    data_dir: Path = Field(default=Path("saas-data"), description="Folder of the embedded database and of local files.")
    invokeai_root: Path | None = Field(default=None, description="InvokeAI's root with the models. Default: `data_dir`/invokeai.")
    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: Annotated[int, Field(ge=1, le=65535)] = Field(default=9090, description="Port to listen on.")
    admin_email: str = Field(default="admin@localhost", description="Address of the first administrator, who is made when there is none.")
    database_url: SecretStr | None = Field(
        default=None,
        validation_alias="DATABASE_URL",
        description="Postgres 15 or newer. Its login migrates; requests run as the application role.",
    )
    database_app_url: SecretStr | None = Field(
        default=None,
        validation_alias="DATABASE_APP_URL",
        description="A login that is only a member of invokeai_app. Without it DATABASE_URL's login switches to that role.",
    )
    db_pool_size: Annotated[int, Field(ge=1, le=500)] = Field(default=10, description="Pooled connections of one process.")
    db_timeout_seconds: Annotated[float, Field(gt=0)] = Field(default=10.0, description="Longest wait for a connection.")
    statement_timeout_seconds: Annotated[float, Field(gt=0)] = Field(default=60.0, description="Longest single statement of a request.")
    migration_lock_seconds: Annotated[float, Field(gt=0)] = Field(default=300.0, description="Longest wait for another migration.")
    s3_bucket: str | None = Field(default=None, validation_alias="S3_BUCKET", description="Without it files lie under `data_dir`.")
    s3_endpoint_url: str | None = Field(
        default=None, validation_alias="S3_ENDPOINT_URL", description="Another server that speaks S3 (R2, MinIO); Amazon's own without."
    )
    s3_region: str = Field(default="us-east-1", validation_alias="S3_REGION", description="The bucket's region.")
    s3_access_key_id: str | None = Field(default=None, validation_alias="S3_ACCESS_KEY_ID", description="Without: the machine's role.")
    s3_secret_access_key: SecretStr | None = Field(default=None, validation_alias="S3_SECRET_ACCESS_KEY", description="Of that key.")
    storage_cache_bytes: Annotated[int, Field(ge=0)] = Field(
        default=10 * 1024**3, description="Local copies of S3 objects; up to twice that while all of them were just handed out."
    )
    signing_secret: SecretStr | None = Field(
        default=None, description="32 bytes or more; signs addresses of files on disk. Made and kept under `data_dir` without."
    )
    metering: bool = Field(
        default=True, description="Plans say what may be done and credits pay for it. Off: everybody may everything, for nothing."
    )
    stripe_secret_key: SecretStr | None = Field(
        default=None,
        validation_alias="STRIPE_SECRET_KEY",
        description="Stripe's secret or restricted key. Without: nothing is sold, and the pages of billing say so.",
    )
    stripe_webhook_secret: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        validation_alias="STRIPE_WEBHOOK_SECRET",
        description="What the webhook endpoint signs with (whsec_...); several with commas between while one is replaced.",
    )
    stripe_currency: Annotated[str, Field(pattern="^[a-z]{3}$")] = Field(
        default="usd", validation_alias="STRIPE_CURRENCY", description="Of prices and packs, three lower-case letters."
    )
    stripe_account: str | None = Field(
        default=None, validation_alias="STRIPE_ACCOUNT", description="acct_...: events of other accounts are refused."
    )
    stripe_api_base: str | None = Field(
        default=None, validation_alias="STRIPE_API_BASE", description="Another address of Stripe's API: a proxy, or a double in tests."
    )
    grace_days: Annotated[int, Field(ge=0, le=10)] = Field(
        default=7,
        validation_alias="SAAS_BILLING_GRACE_DAYS",
        description="How long an unpaid subscription goes on before it is suspended.",
    )
    sharing: bool = Field(default=False, description="Shared and public boards, workflows and presets cross users (decision 21).")

    events: SecretStr | None = Field(
        default=None,
        description="How events reach all processes: postgres, the address of a Redis (redis://... or rediss://..., a database number of "
        "its own), or local for a single process. Default: postgres with DATABASE_URL, else local.",
    )
    wakeups: SecretStr | None = Field(
        default=None,
        description="How idle workers hear of a new item: procrastinate (on the same Postgres), celery+redis://... (or rediss), "
        "celery+sqs://..., or none: they look every second. Default: procrastinate with DATABASE_URL, else none.",
    )
    public_url: str = Field(
        default_factory=lambda known: f"http://localhost:{known.get('port', 9090)}",
        description="Where people reach this server; letters link to it. Default: http://localhost and the port.",
    )
    signup_open: bool = Field(default=True, description="Anybody may sign up. Off: administrators make accounts.")
    access_token_seconds: Annotated[int, Field(ge=30, le=86400)] = Field(
        default=900, description="How long an access token lasts; the interface renews its own. A login that is taken back ends at once."
    )
    smtp_host: str | None = Field(default=None, description="Mail server. Without it letters wait in the outbox.")
    smtp_port: Annotated[int, Field(ge=1, le=65535)] = Field(default=587, description="587 for starttls, 465 for tls.")
    smtp_security: Literal["starttls", "tls", "none"] = Field(default="starttls", description="How the mail server is spoken to.")
    smtp_username: str | None = Field(default=None, description="Login of the mail server.")
    smtp_password: SecretStr | None = Field(default=None, description="Its password.")
    mail_from: str = Field(default="InvokeAI <noreply@localhost>", description="Sender of letters.")
    oidc_issuer: str | None = Field(default=None, description="Issuer of OIDC tokens, as their `iss` says; Cognito's pool address.")
    oidc_audience: str | None = Field(default=None, description="The client id that tokens are made for.")
    oidc_jwks_url: str | None = Field(default=None, description="The issuer's keys; default: its /.well-known/jwks.json.")
    oidc_role_claim: str = Field(
        default="", description="Claim that says user or admin, such as custom:role. Only for pools whose users cannot write it."
    )

    # Operating: see operating/.
    log_format: Literal["auto", "text", "json"] = Field(default="auto", description="auto: text on a terminal, else JSON lines.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="What is logged, and all above.")
    metrics_token: SecretStr | None = Field(
        default=None, description="Bearer token of /metrics, 16 characters or more. Without it /metrics answers 404."
    )
    metrics_port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        default=None, description="A port of its own for metrics, without a token: keep it inside."
    )
    metrics_address: str = Field(default="127.0.0.1", description="Where that port listens; 0.0.0.0 for all interfaces.")
    traces_endpoint: str | None = Field(
        default=None,
        validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        description="Collector of OpenTelemetry traces over HTTP. The SDK's other OTEL_ variables count too. Without: no traces.",
    )
    cors_origins: Words = Field(
        default=(), description="Other origins whose pages may call the API, as https://studio.example.com, commas between. Never *."
    )
    trusted_proxies: Words = Field(
        default=(), description="Addresses or networks of proxies whose X-Forwarded-For and -Proto count, commas between."
    )
    max_upload_bytes: Annotated[int, Field(ge=1)] = Field(default=1024**3, description="Largest request that uploads files.")
    max_body_bytes: Annotated[int, Field(ge=1)] = Field(default=20 * 1024**2, description="Largest request of any other kind.")
    shutdown_drain_seconds: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="How long /readyz says no before the port closes: the load balancer's interval and a bit."
    )
    shutdown_grace_seconds: Annotated[int, Field(ge=1)] = Field(
        default=30, description="Longest wait for requests and the worker at the end."
    )

    # GPU workers: see workers/.
    lease_seconds: Annotated[float, Field(ge=2, le=600)] = Field(
        default=8.0, description="A worker that is not heard of for so long loses its item. The server's own worker keeps 60."
    )
    drain_seconds: Annotated[float, Field(ge=0)] = Field(
        default=3600.0, description="How long a worker that is told to end may finish the item that runs; then it gives it back."
    )
    stop_seconds: Annotated[float, Field(gt=0)] = Field(
        default=30.0, description="How long a worker waits for the step that runs when an item is to stop; then its process is killed."
    )
    quarantine_after: Annotated[int, Field(ge=1)] = Field(
        default=3,
        description="Items in a row that fail by the worker's own fault, then it takes no more; of one user alone three times as many.",
    )
    worker_min_free_mb: Annotated[int, Field(ge=0)] = Field(
        default=512, description="Free space on the disk below which a worker takes no items."
    )
    # The fleet: see workers/.
    scale_bounds: Words = Field(
        default=("1-10",), description="Fewest and most workers that scaling advises, for every tier or as basic=1-20,dedicated=1-2."
    )
    model_cache_gb: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Most that a worker keeps of models that it fetched from the bucket. Without: as the disk has room."
    )

    @field_validator("data_dir")
    @classmethod
    def _a_folder(cls, value: Path) -> Path:
        there = next(path for path in (value.absolute(), *value.absolute().parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise ValueError("expected a folder that is there, or can be made, and that this account may write to")
        return value

    @field_validator("database_url", "database_app_url")
    @classmethod
    def _postgres_only(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(_POSTGRES_SCHEMES):
            raise ValueError("expected an address that starts with postgresql://")
        return value

    @field_validator("s3_endpoint_url", "stripe_api_base")
    @classmethod
    def _http_only(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("https://", "http://")):
            raise ValueError("expected an address that starts with https:// or http://")
        return value

    @field_validator("stripe_secret_key", "stripe_account", "stripe_api_base", mode="before")
    @classmethod
    def _empty_counts_as_unset(cls, value: object) -> object:
        # As compose files write what is left out.
        return None if isinstance(value, str) and not value.strip() else value

    @field_validator("events")
    @classmethod
    def _a_transport(cls, value: SecretStr | None) -> SecretStr | None:
        transport = "local" if value is None else value.get_secret_value()
        if transport not in ("local", "postgres") and not transport.startswith(("redis://", "rediss://")):
            raise ValueError("expected local, postgres, or an address that starts with redis:// or rediss://")
        return value

    @field_validator("wakeups")
    @classmethod
    def _a_way_to_wake(cls, value: SecretStr | None) -> SecretStr | None:
        way = "none" if value is None else value.get_secret_value()
        if way not in ("none", "procrastinate") and not way.startswith(_CELERY_SCHEMES):
            raise ValueError("expected procrastinate, none, or an address that starts with " + ", ".join(_CELERY_SCHEMES))
        return value

    @field_validator("stripe_secret_key")
    @classmethod
    def _no_publishable_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("sk_", "rk_")):
            raise ValueError("expected a secret key (sk_...) or a restricted one (rk_...)")
        return value

    @field_validator("stripe_account")
    @classmethod
    def _an_account(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("acct_"):
            raise ValueError("expected an account's id that starts with acct_")
        return value

    @model_validator(mode="after")
    def _stripe_is_whole(self) -> "Settings":
        if (self.stripe_secret_key is None) != (not self.stripe_webhook_secret):
            raise ValueError("STRIPE_SECRET_KEY and STRIPE_WEBHOOK_SECRET: expected both or neither")
        return self

    @field_validator("signing_secret")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value().encode()) < MIN_SECRET_BYTES:
            raise ValueError(f"expected {MIN_SECRET_BYTES} bytes or more")
        return value

    @model_validator(mode="after")
    def _s3_is_whole(self) -> "Settings":
        if self.s3_bucket is None and (self.s3_endpoint_url or self.s3_access_key_id or self.s3_secret_access_key):
            raise ValueError("S3_ENDPOINT_URL, S3_ACCESS_KEY_ID or S3_SECRET_ACCESS_KEY is set without S3_BUCKET")
        if (self.s3_access_key_id is None) != (self.s3_secret_access_key is None):
            raise ValueError("S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY: expected both or neither")
        return self

    @field_validator("public_url")
    @classmethod
    def _web_address(cls, value: str) -> str:
        if not value.startswith(("https://", "http://")):
            raise ValueError("expected an address that starts with https:// or http://")
        return value.rstrip("/")

    @field_validator("cors_origins", "trusted_proxies", "stripe_webhook_secret", "scale_bounds", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value

    @field_validator("scale_bounds")
    @classmethod
    def _bounds(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_BOUNDS.fullmatch(word) for word in value):
            raise ValueError("expected fewest-most like 1-10, or basic=1-10, high_performance=1-4, dedicated=1-2")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _exact_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_ORIGIN.fullmatch(origin) for origin in value):
            raise ValueError("expected exact origins like https://studio.example.com: no *, no path, no slash at the end")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            try:
                network = ipaddress.ip_network(address, strict=False)
            except ValueError:
                raise ValueError("expected addresses or networks like 10.0.0.0/8") from None
            if network.prefixlen == 0:
                raise ValueError("expected the proxies' own networks, got one that holds every address")
        return value

    @field_validator("metrics_token")
    @classmethod
    def _not_guessable(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < MIN_METRICS_TOKEN:
            raise ValueError(f"expected {MIN_METRICS_TOKEN} characters or more")
        return value

    @field_validator("traces_endpoint")
    @classmethod
    def _empty_is_unset(cls, value: str | None) -> str | None:
        if value and not value.startswith(("https://", "http://")):
            raise ValueError("expected an address that starts with https:// or http://")
        return value or None

    @model_validator(mode="after")
    def _oidc_is_whole(self) -> "Settings":
        if (self.oidc_issuer is None) != (self.oidc_audience is None):
            raise ValueError("SAAS_OIDC_ISSUER and SAAS_OIDC_AUDIENCE: expected both or neither")
        return self

    @model_validator(mode="after")
    def _app_url_needs_url(self) -> "Settings":
        if self.database_app_url is not None and self.database_url is None:
            raise ValueError("DATABASE_APP_URL is set without DATABASE_URL: the migrations need a login of their own")
        return self

    @property
    def events_transport(self) -> str:
        """local, postgres or the address of a Redis."""
        if self.events is not None:
            return str(self.events.get_secret_value())
        return "local" if self.database_url is None else "postgres"

    @property
    def wakeups_transport(self) -> str:
        """procrastinate, none, or celery+ and the address of a broker."""
        if self.wakeups is not None:
            return str(self.wakeups.get_secret_value())
        return "none" if self.database_url is None else "procrastinate"


def load_settings(**overrides: object) -> Settings:
    """Settings from the environment; a wrong one raises BadSettings that names the variable, without its value."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)
        # A default that is made from other settings has nothing of its own to say when one of those is wrong.
        wrong = [item for item in found if item["type"] != "default_factory_not_called"]
        raise BadSettings("; ".join(f"{_variable(item['loc'])}: {_words(item['msg'])}" for item in wrong)) from None


def _words(message: str) -> str:
    """What pydantic says, in the words of all other errors."""
    return message.removeprefix("Value error, ").replace("Input should be ", "expected ")


def _variable(loc: tuple[int | str, ...]) -> str:
    name = str(loc[0]) if loc else "settings"
    return name if name.isupper() else f"SAAS_{name.upper()}"
