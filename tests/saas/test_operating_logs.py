"""Logs: one line each, from whoever logs, with who and which request, and never a secret."""

import io
import json
import logging
import subprocess
import sys
import threading
import warnings
from datetime import datetime, timedelta

import pytest
from saas.operated import ANN

from invokeai_saas.db import tenancy
from invokeai_saas.jobs.lease import LeaseLost
from invokeai_saas.operating import logs
from invokeai_saas.operating.redaction import Redactor, secrets_of
from invokeai_saas.operating.request_ids import _request_id
from invokeai_saas.settings import Settings

OURS = "invokeai_saas.tests"


@pytest.fixture(autouse=True)
def own_logging():
    """Logging as it was, afterwards."""
    root, access = logging.getLogger(), logging.getLogger("uvicorn.access")
    before = root.handlers[:], root.level, access.handlers[:], access.propagate, sys.excepthook, threading.excepthook
    yield
    root.handlers[:], root.level, access.handlers[:], access.propagate, sys.excepthook, threading.excepthook = before
    logging.captureWarnings(False)


@pytest.fixture
def stream():
    return io.StringIO()


@pytest.fixture
def lines(stream):
    """Logs as JSON; call for the lines so far."""
    logs.configure(Settings(log_format="json"), stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_says_when_how_grave_who_and_what(lines):
    logging.getLogger(OURS).warning("took %d s", 3)
    (line,) = lines()

    assert (line["level"], line["logger"], line["message"]) == ("warning", OURS, "took 3 s")
    assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0)


@pytest.mark.parametrize(("lost", "name", "level"), [(True, "InvokeAI", "info"), (False, "InvokeAI", "error"), (True, OURS, "error")])
def test_what_a_canceled_items_node_is_refused_is_no_error_of_invokeais(lines, lost, name, level):
    try:
        try:
            raise LeaseLost("attempt 1 of item 1 no longer runs") if lost else OSError("disk full")
        except Exception as error:
            raise ValueError("not saved") from error
    except ValueError as error:
        logging.getLogger(name).error("Problem saving image record and file: %s", error)
    (line,) = lines()

    assert line["level"] == level


@pytest.mark.parametrize("name", ["InvokeAI", "InvokeAI::ModelLoad", "uvicorn.error", "psycopg.pool", OURS])
def test_every_logger_ends_in_one_line(stream, name):
    own = logging.StreamHandler(stream)
    logging.getLogger(name).addHandler(own)
    logs.configure(Settings(log_format="json"), stream)
    logging.getLogger(name).error("once")

    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["once"]


def test_uvicorns_own_access_log_is_silent(lines):
    logging.getLogger("uvicorn.access").error("GET /?token=abc")

    assert lines() == []


def test_the_address_of_a_websocket_is_in_no_line(lines):
    uvicorn_logger = logging.getLogger("uvicorn.error")
    uvicorn_logger.info('%s - "WebSocket %s" [accepted]', "127.0.0.1", "/ws/socket.io/?sid=abc")
    uvicorn_logger.info("connection open")
    uvicorn_logger.info("Application startup complete.")
    uvicorn_logger.error("connection closed badly")

    assert [line["message"] for line in lines()] == ["Application startup complete.", "connection closed badly"]


def test_a_traceback_is_part_of_its_line(lines):
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger(OURS).exception("failed")
    (line,) = lines()

    assert "Traceback" in line["exception"] and "ValueError: no" in line["exception"]


def test_a_warning_of_a_library_is_a_line(lines):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", stacklevel=1)

    assert [line["logger"] for line in lines()] == ["py.warnings"]


def test_what_nothing_caught_in_a_thread_is_a_line(lines):
    logs.log_crashes()
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    (line,) = lines()

    assert (line["level"], "ZeroDivisionError" in line["exception"]) == ("critical", True)


def test_request_and_user_are_on_lines_of_their_work_only(lines):
    before = _request_id.set("r-1")
    with tenancy.as_user(ANN):
        logging.getLogger(OURS).info("inside")
    _request_id.reset(before)
    logging.getLogger(OURS).info("outside")
    inside, outside = lines()

    assert (inside["request_id"], inside["user_id"]) == ("r-1", ANN)
    assert not {"request_id", "user_id"} & set(outside)


def test_system_work_has_no_user(lines):
    with tenancy.as_system("test"):
        logging.getLogger(OURS).info("reaped")

    assert "user_id" not in lines()[0]


def test_text_is_for_people_and_cannot_be_forged_with_line_breaks(stream):
    logs.configure(Settings(log_format="text"), stream)
    logging.getLogger(OURS).info("name\n2026-01-01 [error] forged", extra={"name_of_file": "a"})

    assert len(stream.getvalue().splitlines()) == 1
    assert "name_of_file" in stream.getvalue() and not stream.getvalue().startswith("{")


def test_a_pipe_gets_json_unless_text_is_asked_for(stream):
    logs.configure(Settings(log_format="auto"), stream)
    logging.getLogger(OURS).info("line")

    assert json.loads(stream.getvalue())["message"] == "line"


def test_a_terminal_gets_text(stream, monkeypatch):
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    logs.configure(Settings(log_format="auto"), stream)
    logging.getLogger(OURS).info("line")

    assert not stream.getvalue().startswith("{") and "line" in stream.getvalue()


def test_the_level_is_the_settings(stream):
    logs.configure(Settings(log_format="json", log_level="error"), stream)
    logging.getLogger(OURS).warning("not wanted")

    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer TOPSECRET",
        "headers {'authorization': 'Basic TOPSECRET=='}",
        "[(b'authorization', b'Bearer TOPSECRET')]",
        "Cookie: a=b; invokeai_media_token=TOPSECRET; c=TOPSECRET",
        "Set-Cookie: session=TOPSECRET; HttpOnly",
        "X-Api-Key: TOPSECRET",
        "GET /ws?token=TOPSECRET&x=1",
        "GET /reset?x=1&token=TOPSECRET HTTP/1.1",
        "https://s3.example/k?X-Amz-Credential=TOPSECRET&X-Amz-Signature=TOPSECRET&X-Amz-Date=1",
        "/api/v1/stored/k?user=u&expires=1&signature=TOPSECRET",
        "/callback?code=TOPSECRET&state=1",
        'body {"password": "TOPSECRET", "email": "a"}',
        "login(password='TOPSECRET')",
        "new_password=TOPSECRET",
        "refresh_token: TOPSECRET",
        "api_key=TOPSECRET",
        "aws_secret_access_key = TOPSECRET",
        "connect to postgresql://user:TOPSECRET@db.internal/invokeai failed",
        "postgres://TOPSECRET/invokeai",
        "redis://:TOPSECRET@cache:6379/0",
        "host=db user=u password=TOPSECRET dbname=x",
        "token eyJTOPSECRET.eyJTOPSECRET.TOPSECRET was refused",
        "key iv_0123456789abcdef.TOPSECRET was refused",
        "sent bearer TOPSECRETTOPSECRET",
    ],
)
def test_a_secret_appears_nowhere_in_a_line(lines, stream, text):
    try:
        raise RuntimeError(text)
    except RuntimeError:
        logging.getLogger(OURS).error("%s", text, extra={"given": {"deep": [text]}}, exc_info=True)

    assert len(lines()) == 1
    assert "TOPSECRET" not in stream.getvalue()


@pytest.mark.parametrize("name", ["password", "Authorization", "refresh_token", "s3_secret_access_key", "signature"])
def test_what_has_a_secrets_name_is_hidden_whatever_it_looks_like(name):
    assert Redactor().value({"extra": {name: "blue"}}) == {"extra": {name: "***"}}


def test_the_settings_secrets_are_hidden_by_value():
    settings = Settings(signing_secret="plain words as the signing secret", metrics_token="plain-words-of-metrics")
    said = Redactor(secrets_of(settings)).text("got plain words as the signing secret and plain-words-of-metrics here")

    assert said == "got *** and *** here"


@pytest.mark.parametrize("text", ["3 tokens left", "the author: Ann", "GET /api/v1/images 200", "https://invoke.example/a@b", "a key of 3"])
def test_words_that_are_no_secrets_stay(text):
    assert Redactor().text(text) == text


def test_loggers_that_invokeai_makes_later_have_no_handlers_of_their_own():
    script = """
import io, json, logging
from invokeai.backend.util.logging import InvokeAILogger
early = InvokeAILogger.get_logger("early")
from invokeai_saas.operating import logs
from invokeai_saas.settings import Settings
stream = io.StringIO()
logs.configure(Settings(log_format="json"), stream)
logs.adopt_upstream()
for name in ("early", "late"):
    InvokeAILogger.get_logger(name).warning("line of %s", name)
print(stream.getvalue())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)

    assert [json.loads(line)["logger"] for line in done.stdout.splitlines() if line] == ["early", "late"]
    assert "line of" not in done.stderr


def test_another_handlers_notes_on_a_record_stay_out(lines, stream):
    other = logging.StreamHandler(io.StringIO())
    other.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger(OURS).addHandler(other)
    logging.getLogger(OURS).warning("line")
    logging.getLogger(OURS).removeHandler(other)

    assert set(lines()[0]) == {"time", "level", "logger", "message"}
