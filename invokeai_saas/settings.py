"""Environment in, one frozen settings object out. Secrets are SecretStr: repr, logs and errors never show them."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from invokeai_saas.errors import BadSettings

_POSTGRES_SCHEMES = ("postgresql://", "postgres://")


class Settings(BaseSettings):
    """Everything an operator can set. Without DATABASE_URL an embedded Postgres starts under `data_dir`."""

    model_config = SettingsConfigDict(
        env_prefix="SAAS_", frozen=True, extra="ignore", hide_input_in_errors=True, populate_by_name=True
    )

    data_dir: Path = Field(default=Path("saas-data"), description="Folder of the embedded database and of local files.")
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
    statement_timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        default=60.0, description="Longest single statement of a request."
    )
    migration_lock_seconds: Annotated[float, Field(gt=0)] = Field(default=300.0, description="Longest wait for another migration.")
    sharing: bool = Field(default=False, description="Shared and public boards, workflows and presets cross users (decision 21).")

    @field_validator("database_url", "database_app_url")
    @classmethod
    def _postgres_only(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(_POSTGRES_SCHEMES):
            raise ValueError("expected an address that starts with postgresql://")
        return value

    @model_validator(mode="after")
    def _app_url_needs_url(self) -> "Settings":
        if self.database_app_url is not None and self.database_url is None:
            raise ValueError("DATABASE_APP_URL is set without DATABASE_URL: the migrations need a login of their own")
        return self


def load_settings(**overrides: object) -> Settings:
    """Settings from the environment; a wrong one raises BadSettings that names the variable, without its value."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        problems = "; ".join(
            f"{_variable(item['loc'])}: {item['msg']}" for item in error.errors(include_input=False, include_url=False)
        )
        raise BadSettings(problems) from None


def _variable(loc: tuple[int | str, ...]) -> str:
    name = str(loc[0]) if loc else "settings"
    return name if name.isupper() else f"SAAS_{name.upper()}"
