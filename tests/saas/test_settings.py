"""Settings: read from the environment, wrong ones named, secrets never shown."""

import pytest

from invokeai_saas.errors import BadSettings
from invokeai_saas.settings import load_settings

SECRET = "postgresql://user:topsecret@db/invokeai"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("DATABASE_URL", "DATABASE_APP_URL", "SAAS_DB_POOL_SIZE", "SAAS_SHARING"):
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
        ("DATABASE_URL", "mysql://user:topsecret@db", "DATABASE_URL: .*postgresql://"),
        ("DATABASE_APP_URL", SECRET, "DATABASE_APP_URL is set without DATABASE_URL"),
        ("SAAS_DB_POOL_SIZE", "0", "SAAS_DB_POOL_SIZE: .*greater than or equal to 1"),
        ("SAAS_SHARING", "topsecret", "SAAS_SHARING: "),
    ],
)
def test_a_wrong_setting_is_named_without_its_value(monkeypatch, variable, value, words):
    monkeypatch.setenv(variable, value)

    with pytest.raises(BadSettings, match=words) as refused:
        load_settings()
    assert "topsecret" not in str(refused.value)
    assert refused.value.__cause__ is None
