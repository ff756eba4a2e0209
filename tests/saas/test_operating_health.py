"""Health: alive asks nobody; ready asks every part, within two seconds, and tells strangers nothing."""

import asyncio
import logging
import re
import threading
import time

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from saas.operated import client_of, operated
from saas.stores import disk_store

from invokeai_saas.errors import BadSettings
from invokeai_saas.operating.health import Pulse
from invokeai_saas.operating.probes import Probe
from invokeai_saas.storage.files import Files


@pytest.fixture
def files(database, tmp_path):
    return Files(database, disk_store(tmp_path))


def ready(installed):
    answer = client_of(installed).get("/readyz")
    return answer.status_code, answer.json()


def execute(dsn, statement):
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement)


def test_alive_answers_without_a_database(database):
    installed = operated(database)
    database.close()
    answer = client_of(installed).get("/healthz")

    assert (answer.status_code, answer.json(), answer.headers["cache-control"]) == (200, {"alive": True}, "no-store")


def test_ready_when_every_part_is(database, files):
    installed = operated(database, parts={"files": files, "pulses": {"reaper": Pulse(60)}})

    assert ready(installed) == (200, {"ready": True, "parts": {"database": "ok", "storage": "ok", "reaper": "ok"}})


def test_not_ready_while_the_database_is_away(dsn, open_database, caplog):
    database = open_database(timeout_seconds=0.2)
    installed = operated(database)
    database.close()
    status, said = ready(installed)

    assert (status, said) == (503, {"ready": False, "parts": {"database": "failed"}})
    assert any("readiness of database" in record.message for record in caplog.records)


def test_not_ready_within_two_seconds_when_the_database_hangs(dsn, database):
    installed = operated(database)
    with psycopg.connect(dsn) as blocking:
        blocking.execute("LOCK TABLE saas_migrations IN ACCESS EXCLUSIVE MODE")
        started = time.monotonic()
        status, said = ready(installed)
        took = time.monotonic() - started

    assert (status, said["parts"]["database"]) == (503, "no answer within 2 s")
    assert took < 20


@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO saas_migrations (version, name, checksum) VALUES (9999, 'later', 'x')",
        "DELETE FROM saas_migrations WHERE version = 3",
        "UPDATE saas_migrations SET checksum = 'other' WHERE version = 3",
    ],
)
def test_not_ready_on_a_database_of_another_version(dsn, database, change):
    execute(dsn, change)

    assert ready(operated(database)) == (
        503, {"ready": False, "parts": {"database": "another version of the database than of the code"}},
    )  # fmt: skip


def test_not_ready_while_the_store_refuses_and_its_message_stays_inside(database, files, monkeypatch, caplog):
    def refuse():
        raise BadSettings("S3_SECRET_ACCESS_KEY: refused at s3.internal")

    monkeypatch.setattr(files.store, "check", refuse)
    status, said = ready(operated(database, parts={"files": files}))

    assert (status, said["parts"]) == (503, {"database": "ok", "storage": "failed"})
    assert "s3.internal" in caplog.text


def test_not_ready_when_a_loop_stopped_turning(database):
    pulse = Pulse(1.5)
    installed = operated(database, parts={"pulses": {"reaper": pulse}})
    time.sleep(1.6)
    stopped = ready(installed)
    pulse.beat()

    assert stopped[0] == 503 and re.fullmatch(r"last turn \d+ s ago, expected one every 2 s", stopped[1]["parts"]["reaper"])
    assert ready(installed)[0] == 200


def test_not_ready_while_shutting_down(database):
    status, said = ready(operated(database, parts={"draining": lambda: True}))

    assert (status, said["parts"]["process"]) == (503, "shutting down")


def test_only_changes_are_logged(database, caplog):
    caplog.set_level(logging.INFO)
    pulse = Pulse(-1)
    installed = operated(database, parts={"pulses": {"reaper": pulse}})
    for _ in range(3):
        ready(installed)
    pulse.limit_seconds = 60
    for _ in range(3):
        ready(installed)

    assert [record.levelname for record in caplog.records if "readiness" in record.message] == ["ERROR", "INFO"]


def test_an_answer_holds_no_address_and_no_name_of_the_database(dsn, database, files):
    answer = client_of(operated(database, parts={"files": files})).get("/readyz").text

    assert str(conninfo_to_dict(dsn)["dbname"]) not in answer and "postgres" not in answer


def test_many_who_ask_at_once_ask_the_part_once():
    calls, release = [], threading.Event()

    def check():
        calls.append(True)
        release.wait(60)

    probe = Probe(check, keep_seconds=60)

    async def all_of_them():
        asked = [asyncio.create_task(probe.ask_async()) for _ in range(50)]
        await asyncio.sleep(0.05)
        release.set()
        await asyncio.gather(*asked)

    asyncio.run(all_of_them())

    assert len(calls) == 1


def test_an_old_answer_is_asked_for_again():
    calls = []
    probe = Probe(lambda: calls.append(True), keep_seconds=0.0)
    probe.ask()
    probe.ask()

    assert len(calls) == 2


def test_a_check_that_hangs_keeps_one_thread():
    probe = Probe(threading.Event().wait, seconds=0.01)
    before = threading.active_count()
    for _ in range(5):
        with pytest.raises(TimeoutError):
            probe.ask()

    assert threading.active_count() == before + 1

