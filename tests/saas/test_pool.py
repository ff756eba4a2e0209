"""A database that is away is said once and then every half a minute, without its address, however often the pool asks for it."""

import logging
from contextlib import closing
from threading import Event

import psycopg
import pytest
from saas.patience import until

from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.db.pool import NAME, Outage, SteadyPool, why_of
from invokeai_saas.events.postgres import LISTEN, _Listener

REFUSED = 'connection failed: connection to server at "10.1.2.3", port 5432 failed: Connection refused\n\tIs the server there?'


def lines_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_many_tries_of_a_pool_are_one_line_without_the_address(caplog):
    caplog.set_level(logging.WARNING)
    with SteadyPool("postgresql://ann@127.0.0.1:1/secret", min_size=2, max_size=2, timeout=1, name=NAME, open=False) as pool:
        until(lambda: pool.get_stats().get("connections_errors", 0) >= 4)

    assert lines_of(caplog) == ["the database does not answer: Connection refused"]


def test_who_listens_for_events_says_no_address_either(caplog):
    stop = Event()
    with closing(PostgresDatabase("postgresql://ann@127.0.0.1:1/secret", pool_size=1, timeout_seconds=1)) as database:
        _Listener(database, next(iter(LISTEN)), stop, 0.01).run(lambda told: stop.set())

    assert "events are not heard until the database answers: Connection refused" in lines_of(caplog)
    assert "127.0.0.1" not in caplog.text


def test_a_long_outage_is_said_every_half_a_minute_with_a_count_and_its_end_too(caplog):
    caplog.set_level(logging.INFO)
    clock = Clock()
    outage = Outage(clock)
    outage.ends()
    for _ in range(70):
        outage.fails(psycopg.OperationalError(REFUSED))
        clock.now += 1
    outage.ends()
    outage.ends()

    assert lines_of(caplog) == [
        "the database does not answer: Connection refused",
        "the database does not answer: Connection refused; 31 tries in 30 s",
        "the database does not answer: Connection refused; 61 tries in 60 s",
        "the database answers again, after 70 tries in 70 s",
    ]


def test_a_server_that_takes_every_second_connection_does_not_fill_the_log(caplog):
    caplog.set_level(logging.INFO)
    clock = Clock()
    outage = Outage(clock)
    for _ in range(45):
        outage.fails(psycopg.OperationalError(REFUSED))
        outage.ends()
        clock.now += 1

    assert lines_of(caplog) == [
        "the database does not answer: Connection refused",
        "the database answers again, after 1 tries in 0 s",
    ] * 2


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (REFUSED, "Connection refused"),
        ('connection is bad: connection to server on socket "/run/x/.s.PGSQL.5432" failed: No such file', "No such file"),
        ('connection to server at "db", port 1 failed: FATAL:  the database system starts', "FATAL:  the database system starts"),
        ('connection to server at "db" failed: FATAL:  no pg_hba.conf entry for host "10.1.2.3"', "FATAL:  no pg_hba.conf entry for host"),
        ("failed to resolve host 'db.example': [Errno -2] Name or service not known", "OperationalError"),
    ],
)
def test_the_reason_holds_no_address(said, why):
    assert why_of(psycopg.OperationalError(said)) == why
