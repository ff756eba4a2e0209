"""The settings of operating: lists with commas, nothing half-open, wrong ones named without their values."""

import pytest

from invokeai_saas.errors import BadSettings
from invokeai_saas.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("SAAS_CORS_ORIGINS", "SAAS_TRUSTED_PROXIES", "SAAS_METRICS_TOKEN", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def test_everything_is_shut_by_default():
    settings = load_settings()

    assert (settings.cors_origins, settings.trusted_proxies, settings.metrics_port, settings.metrics_token) == ((), (), None, None)


def test_lists_are_written_with_commas(monkeypatch):
    monkeypatch.setenv("SAAS_CORS_ORIGINS", "https://a.example, http://localhost:5173,")
    monkeypatch.setenv("SAAS_TRUSTED_PROXIES", "10.0.0.7,fd00::/8")
    settings = load_settings()

    assert settings.cors_origins == ("https://a.example", "http://localhost:5173")
    assert settings.trusted_proxies == ("10.0.0.7", "fd00::/8")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SAAS_CORS_ORIGINS", "*"),
        ("SAAS_CORS_ORIGINS", "https://*.example"),
        ("SAAS_CORS_ORIGINS", "https://a.example/"),
        ("SAAS_CORS_ORIGINS", "https://a.example,null"),
        ("SAAS_CORS_ORIGINS", "a.example"),
        ("SAAS_TRUSTED_PROXIES", "*"),
        ("SAAS_TRUSTED_PROXIES", "0.0.0.0/0"),
        ("SAAS_TRUSTED_PROXIES", "proxy.example"),
        ("SAAS_METRICS_TOKEN", "topsecret"),
        ("SAAS_METRICS_PORT", "70000"),
        ("SAAS_LOG_FORMAT", "xml"),
        ("SAAS_LOG_LEVEL", "loud"),
        ("SAAS_MAX_UPLOAD_BYTES", "0"),
        ("SAAS_MAX_BODY_BYTES", "-1"),
        ("SAAS_SHUTDOWN_GRACE_SECONDS", "0"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)

    with pytest.raises(BadSettings, match=f"{variable}: ") as refused:
        load_settings()
    assert "topsecret" not in str(refused.value)


def test_the_token_shows_in_no_text_of_the_settings():
    settings = Settings(metrics_token="topsecret" * 3)

    assert "topsecret" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
