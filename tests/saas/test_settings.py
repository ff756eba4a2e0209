"""Settings: read from the environment, wrong ones named, secrets never shown."""

from datetime import timedelta
from pathlib import Path

import pytest

from invokeai_saas.accounts.setup import accounts_of
from invokeai_saas.errors import BadSettings
from invokeai_saas.settings import Settings, load_settings

SECRET = "postgresql://user:topsecret@db/invokeai"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in (
        "DATABASE_URL", "DATABASE_APP_URL", "SAAS_DB_POOL_SIZE", "SAAS_SHARING", "SAAS_SIGNING_SECRET",
        "S3_BUCKET", "S3_ENDPOINT_URL", "S3_REGION", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)


def test_the_environment_is_read(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", SECRET)
    monkeypatch.setenv("SAAS_DB_POOL_SIZE", "7")
    settings = load_settings()

    assert (settings.database_url.get_secret_value(), settings.db_pool_size, settings.sharing) == (SECRET, 7, False)


def test_a_secret_shows_in_no_text_of_the_settings(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", SECRET)
    settings = load_settings()

    assert "topsecret" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("DATABASE_URL", "mysql://user:topsecret@db", "DATABASE_URL: expected .*postgresql://"),
        ("DATABASE_APP_URL", SECRET, "DATABASE_APP_URL is set without DATABASE_URL"),
        ("SAAS_DB_POOL_SIZE", "0", "SAAS_DB_POOL_SIZE: .*greater than or equal to 1"),
        ("SAAS_SHARING", "topsecret", "SAAS_SHARING: "),
        ("S3_ENDPOINT_URL", "ftp://topsecret", "S3_ENDPOINT_URL: .*https://"),
        ("S3_ENDPOINT_URL", "https://topsecret", "without S3_BUCKET"),
        ("S3_SECRET_ACCESS_KEY", "topsecret", "without S3_BUCKET"),
        ("SAAS_SIGNING_SECRET", "topsecret", "SAAS_SIGNING_SECRET: .*32 bytes"),
    ],
)
def test_a_wrong_setting_is_named_without_its_value(monkeypatch, variable, value, words):
    monkeypatch.setenv(variable, value)

    with pytest.raises(BadSettings, match=words) as refused:
        load_settings()
    assert "topsecret" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_wrong_setting_says_nothing_of_others(monkeypatch):
    monkeypatch.setenv("SAAS_PORT", "0")

    with pytest.raises(BadSettings) as refused:
        load_settings()
    assert str(refused.value) == "SAAS_PORT: expected greater than or equal to 1"


@pytest.mark.parametrize("empty", ["", " "])
def test_settings_of_stripe_that_are_empty_count_as_not_set(monkeypatch, empty):
    for name in ("STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET", "STRIPE_ACCOUNT", "STRIPE_API_BASE"):
        monkeypatch.setenv(name, empty)
    settings = load_settings()
    monkeypatch.setenv("STRIPE_SECRET_KEY", "sk_test_x")

    assert (settings.stripe_secret_key, settings.stripe_webhook_secret) == (None, ())
    assert (settings.stripe_account, settings.stripe_api_base) == (None, None)
    with pytest.raises(BadSettings, match="both or neither"):
        load_settings()


def test_half_of_the_credentials_is_refused(monkeypatch):
    monkeypatch.setenv("S3_BUCKET", "files")
    monkeypatch.setenv("S3_SECRET_ACCESS_KEY", "topsecret")

    with pytest.raises(BadSettings, match="S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY: expected both") as refused:
        load_settings()
    assert "topsecret" not in str(refused.value)


def test_the_secrets_of_the_store_show_in_no_text(monkeypatch):
    for name in ("S3_BUCKET", "S3_ACCESS_KEY_ID"):
        monkeypatch.setenv(name, "files")
    for name in ("S3_SECRET_ACCESS_KEY", "SAAS_SIGNING_SECRET"):
        monkeypatch.setenv(name, "topsecret" * 5)
    settings = load_settings()

    assert "topsecret" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


def test_the_lifetime_of_an_access_token_is_what_accounts_hand_out(monkeypatch):
    monkeypatch.setenv("SAAS_ACCESS_TOKEN_SECONDS", "60")

    assert accounts_of(load_settings(), database=None).policy.access == timedelta(seconds=60)


def test_links_follow_the_port_unless_an_address_is_set(monkeypatch):
    monkeypatch.setenv("SAAS_PORT", "19333")
    by_port = load_settings().public_url
    monkeypatch.setenv("SAAS_PUBLIC_URL", "https://invoke.example/")

    assert (by_port, load_settings().public_url) == ("http://localhost:19333", "https://invoke.example")


def test_a_data_folder_that_cannot_be_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("x")
    for wrong in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("SAAS_DATA_DIR", str(wrong))
        with pytest.raises(BadSettings, match="SAAS_DATA_DIR: .*expected a folder"):
            load_settings()
    monkeypatch.setenv("SAAS_DATA_DIR", str(tmp_path / "new" / "folder"))

    assert load_settings().data_dir == tmp_path / "new" / "folder"


def test_every_setting_is_in_the_operators_documents():
    docs = Path(__file__).resolve().parents[2] / "docs"
    text = (docs / "operating-saas.md").read_text()
    names = [str(field.validation_alias or f"SAAS_{name.upper()}") for name, field in Settings.model_fields.items()]

    assert [name for name in names if f"`{name}`" not in text] == []
