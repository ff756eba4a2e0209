"""Doctor: every check says ok where all is well, names what is not and what to do, and shows no secret."""

import argparse
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import import_module

import psycopg
import pytest
from aiosmtpd.controller import Controller
from saas.billed import open_shop
from saas.doctored import as_url, findings, levels
from saas.stores import BUCKET, KEY_ID, SECRET, moto_server, rclone_server
from saas.stripe_double import KEY as STRIPE_KEY
from saas.stripe_serving import serving

from invokeai_saas.operating import doctor
from invokeai_saas.operating.commands import add_commands
from invokeai_saas.operating.doctor import ERROR, OK, WARNING, examine
from invokeai_saas.settings import Settings


@pytest.fixture(scope="module")
def sound(cluster):
    """A database that no test changes."""
    address = cluster.clone()
    yield address
    cluster.drop(address)


@pytest.fixture
def settings(sound, tmp_path):
    def make(**given):
        return Settings(**({"database_url": as_url(sound), "data_dir": tmp_path, "public_url": "https://invoke.example"} | given))

    return make


def execute(dsn, statement):
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement)


def test_a_sound_database_has_no_error(settings):
    assert levels(settings(), "database") == [OK] * 4


@pytest.mark.parametrize(
    ("change", "undo", "words"),
    [
        ("ALTER TABLE images NO FORCE ROW LEVEL SECURITY", None, "without forced row-level security: images"),
        ("ALTER TABLE images DISABLE ROW LEVEL SECURITY", None, "without forced row-level security: images"),
        ("ALTER TABLE api_keys OWNER TO invokeai_app", None, "roles own: api_keys"),
        ("ALTER ROLE invokeai_app BYPASSRLS", "ALTER ROLE invokeai_app NOBYPASSRLS", "by: invokeai_app"),
    ],
)
def test_a_hole_between_tenants_is_an_error(dsn, settings, change, undo, words):
    execute(dsn, change)
    try:
        errors = [message for level, message in findings(settings(database_url=as_url(dsn)), "database") if level == ERROR]
    finally:
        if undo is not None:
            execute(dsn, undo)

    assert len(errors) == 1 and words in errors[0]


def test_a_login_that_passes_the_policies_by_is_no_login_for_requests(sound, settings):
    found = findings(settings(database_app_url=as_url(sound)), "database")

    assert found[-1] == (ERROR, "DATABASE_APP_URL's login may pass row-level security by")


def test_a_database_that_does_not_answer_is_named_without_its_address(settings):
    ((level, message),) = findings(settings(database_url="postgresql://u:TOPSECRET@127.0.0.1:9/x"), "database")

    assert (level, "DATABASE_URL" in message, "TOPSECRET" in message) == (ERROR, True, False)


def test_a_migrated_database_is_right_and_an_older_one_is_not(dsn, settings):
    own = settings(database_url=as_url(dsn))
    before = levels(own, "migrations")
    execute(dsn, "DELETE FROM saas_migrations WHERE version = (SELECT max(version) FROM saas_migrations)")
    ((level, message),) = findings(own, "migrations")

    assert (before, level) == ([OK], ERROR) and "invokeai-saas migrate" in message


def test_both_clocks_agree(settings):
    assert levels(settings(), "clock") == [OK]


@pytest.mark.parametrize(("off", "level"), [(0, OK), (10, WARNING), (-40, ERROR)])
def test_a_clock_that_is_off_is_seen(settings, monkeypatch, off, level):
    monkeypatch.setattr(doctor, "CLOCK", f"SELECT clock_timestamp() + interval '{off} seconds' AS now")

    assert levels(settings(), "clock") == [level]


def test_a_probe_object_is_written_read_and_gone(settings, tmp_path):
    assert findings(settings(), "storage") == [(OK, "written, read and deleted on disk")]
    assert not [path for path in (tmp_path / "files").rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_written_to_is_an_error(settings, tmp_path):
    (tmp_path / "files").write_text("a file where the folder of the files would be")
    ((level, message),) = findings(settings(signing_secret="x" * 32), "storage")

    assert level == ERROR and "SAAS_DATA_DIR" in message


def test_a_bucket_is_probed(settings):
    with moto_server() as (url, _server):
        on_s3 = settings(s3_bucket=BUCKET, s3_endpoint_url=url, s3_access_key_id=KEY_ID, s3_secret_access_key=SECRET)

        assert findings(on_s3, "storage") == [(OK, f"written, read and deleted in bucket {BUCKET}")]
        elsewhere = settings(s3_bucket="other", s3_endpoint_url=url, s3_access_key_id=KEY_ID, s3_secret_access_key=SECRET)
        assert levels(elsewhere, "storage") == [ERROR]


def test_a_wrong_secret_of_the_bucket_is_an_error_and_not_shown(settings, tmp_path):
    with rclone_server(tmp_path / "served") as url:
        wrong = settings(s3_bucket=BUCKET, s3_endpoint_url=url, s3_access_key_id=KEY_ID, s3_secret_access_key="TOPSECRET")
        ((level, message),) = findings(wrong, "storage")

    assert level == ERROR and "S3_" in message and "TOPSECRET" not in message


def test_a_mail_server_is_greeted_and_sent_nothing(settings):
    class Taking:
        letters = 0

        async def handle_DATA(self, _server, _session, _envelope):
            Taking.letters += 1
            return "250 ok"

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    controller = Controller(Taking(), hostname="127.0.0.1", port=port)
    controller.start()
    try:
        found = findings(settings(smtp_host="127.0.0.1", smtp_port=port, smtp_security="none"), "mail")
        no_tls = levels(settings(smtp_host="127.0.0.1", smtp_port=port), "mail")
    finally:
        controller.stop()

    assert found == [(OK, f"127.0.0.1:{port} answers over none")]
    assert (no_tls, Taking.letters) == ([ERROR], 0)


def test_without_a_mail_server_there_is_a_warning(settings):
    assert levels(settings(), "mail") == [WARNING]
    assert levels(settings(smtp_host="127.0.0.1", smtp_port=9), "mail") == [ERROR]


@pytest.fixture
def provider():
    """Serves /keys with whatever `document` is."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(self.server.document).encode())

        def log_message(self, *_given):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("document", "level"), [({"keys": [{"kid": "1"}]}, OK), ({"keys": []}, ERROR), ([], ERROR)])
def test_the_providers_keys_are_fetched(settings, provider, document, level):
    provider.document = document
    address = f"http://127.0.0.1:{provider.server_address[1]}"
    given = settings(oidc_issuer=address, oidc_audience="us", oidc_jwks_url=f"{address}/keys")

    assert levels(given, "sign-in provider") == [level]


def test_a_provider_that_is_away_is_an_error(settings):
    assert levels(settings(oidc_issuer="http://127.0.0.1:9", oidc_audience="us"), "sign-in provider") == [ERROR]
    assert levels(settings(), "sign-in provider") == [OK]


def test_ffmpeg_is_run(settings, monkeypatch, tmp_path):
    assert findings(settings(), "ffmpeg")[0][1].startswith("ffmpeg version")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "missing"))
    assert levels(settings(), "ffmpeg") == [ERROR]


@pytest.mark.parametrize(("free", "level"), [(doctor.GIB // 2, ERROR), (5 * doctor.GIB, WARNING), (100 * doctor.GIB, OK)])
def test_room_on_the_disk_is_measured(settings, monkeypatch, free, level):
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage)

    assert levels(settings(), "disk") == [level, level]


def test_the_models_folder_is_looked_at(settings, tmp_path):
    given = settings(invokeai_root=tmp_path / "root")
    missing = levels(given, "models")
    models = tmp_path / "root" / "models"
    models.mkdir(parents=True)
    empty = levels(given, "models")
    (models / "one").mkdir()

    assert (missing, empty, findings(given, "models")) == ([WARNING], [WARNING], [(OK, "1 entries in the models folder")])


def test_the_models_folder_is_invokeais_own(tmp_path, monkeypatch):
    """Where InvokeAI puts it unless told otherwise."""
    monkeypatch.delenv("INVOKEAI_MODELS_DIR", raising=False)
    fields = import_module("invokeai.app.services.config.config_default").InvokeAIAppConfig.model_fields

    assert doctor.models_folder(Settings(invokeai_root=tmp_path)) == tmp_path / fields["models_dir"].default


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"public_url": "http://invoke.example"}, "SAAS_PUBLIC_URL is http://"),
        ({}, "DATABASE_URL's login, which also migrates"),
        ({}, "files lie on this machine's disk"),
    ],
)
def test_settings_that_work_and_should_not_stay_are_warned_of(settings, given, words):
    assert [message for level, message in findings(settings(**given), "settings") if level == WARNING and words in message]


def test_what_nobody_foresaw_is_an_error_of_its_check_alone(settings):
    def breaks(_settings):
        yield OK, "begun", ""
        raise RuntimeError("password=TOPSECRET\nmore")

    found = list(examine(settings(), {"first": breaks, "second": doctor.check_disk}))

    assert [(each.check, each.message) for each in found[:2]] == [("first", "begun"), ("first", "RuntimeError: password=***")]
    assert found[2].check == "second"


@pytest.fixture
def command():
    """Runs a command line as cli.py does."""
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())

    def run(settings, *words):
        arguments = parser.parse_args(words)
        return arguments.func(arguments, settings)

    return run


def test_the_command_prints_all_and_fails_on_an_error(command, settings, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CHECKS", {name: doctor.CHECKS[name] for name in ("database", "mail")})
    sound = command(settings(), "doctor")
    said = capsys.readouterr().out
    broken = command(settings(smtp_host="127.0.0.1", smtp_port=9), "doctor", "--json")
    listed = json.loads(capsys.readouterr().out)

    assert (sound, broken) == (0, 1)
    assert "warning mail: SAAS_SMTP_HOST" in said and "-> set SAAS_SMTP_HOST" in said
    assert [set(each) for each in listed] == [{"check", "level", "message", "todo"}] * 5
    assert "TOPSECRET" not in said


def test_the_bucket_policy_is_printed_for_the_settings_origins(command, settings, capsys):
    code = command(settings(cors_origins="https://studio.example"), "bucket-policy")
    printed = json.loads(capsys.readouterr().out)

    assert (code, set(printed)) == (0, {"lifecycle", "cors"})
    assert printed["cors"]["CORSRules"][0]["AllowedOrigins"] == ["https://invoke.example", "https://studio.example"]


def test_an_origin_that_is_none_is_bad_input(command, settings, capsys):
    assert command(settings(), "bucket-policy", "--origin", "*") == 2


def test_devices_are_named(settings):
    ((level, message),) = findings(settings(), "devices")

    assert (level, "CPU cores" in message) in ((OK, False), (WARNING, True))


# Stripe


@pytest.fixture
def sold(accounts, dsn, settings):
    """A shop on the double, and the settings that lead to it."""
    shop = open_shop(accounts)
    with serving(shop.double) as address:
        stripe = {"stripe_secret_key": STRIPE_KEY, "stripe_webhook_secret": "whsec_1", "stripe_api_base": address}
        yield shop, lambda **more: settings(**({"database_url": as_url(dsn)} | stripe | more))


def test_without_stripe_it_is_said_plainly(settings):
    ((level, message),) = findings(settings(), "stripe")

    assert (level, "nothing can be bought" in message) == (OK, True)


def test_a_stripe_that_is_set_up_has_no_error(sold):
    _, made = sold
    found = findings(made(), "stripe")

    assert [level for level, _ in found] == [OK] * 3
    assert "test mode" in found[0][1] and "https://invoke.example/api/v1/webhooks/stripe" in found[1][1]
    assert found[2][1] == "3 plans are for sale"


@pytest.mark.parametrize("wrong", [{"stripe_secret_key": "sk_test_wrong"}, {"stripe_api_base": "http://127.0.0.1:1"}])
def test_a_key_that_does_not_work_is_an_error_without_the_key(sold, wrong):
    _, made = sold
    ((level, message),) = findings(made(**wrong), "stripe")

    assert (level, "the key does not work" in message, "sk_test_wrong" in message) == (ERROR, True, False)


@pytest.mark.parametrize(("slug", "change", "level", "words"), [
    ("starter", "stripe_price_monthly = NULL", WARNING, "plan starter has no price at Stripe"),
    ("starter", "stripe_price_monthly = 'price_none'", ERROR, "price_none is not there"),
    ("pro", "monthly_price = 70", ERROR, "asks 75 usd, its row says 70.00"),
    ("pro", None, ERROR, "is archived at Stripe"),
])  # fmt: skip
def test_a_plan_that_cannot_be_bought_is_named(sold, dsn, slug, change, level, words):
    shop, made = sold
    if change:
        execute(dsn, f"UPDATE subscription_plans SET {change} WHERE slug = '{slug}'")
    else:
        next(each for each in shop.double.all("price") if each["unit_amount"] == 7500)["active"] = False
    wrong = [found for found in findings(made(), "stripe") if found[0] != OK]

    assert len(wrong) == 1 and wrong[0][0] == level and words in wrong[0][1]


def test_prices_in_another_currency_are_an_error(sold):
    _, made = sold
    errors = [message for level, message in findings(made(stripe_currency="eur"), "stripe") if level == ERROR]

    assert len(errors) == 3 and all("is in usd, STRIPE_CURRENCY says eur" in message for message in errors)
