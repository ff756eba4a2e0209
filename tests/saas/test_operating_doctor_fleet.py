"""Doctor looks at what is between servers and workers: the brokers of wake-ups and events, and the workers that were heard of."""

import pytest
import redis
from saas.brokers import redis_server, sqs_server
from saas.doctored import as_url, findings, levels
from saas.fleet import ages, joined

from invokeai_saas.operating import doctor
from invokeai_saas.operating.doctor import ERROR, OK, WARNING, examine
from invokeai_saas.settings import Settings

NOBODY = "redis://:TOPSECRET@127.0.0.1:1/0"


@pytest.fixture
def settings(tmp_path):
    def make(**given):
        return Settings(**({"database_url": "postgresql:///somewhere", "data_dir": tmp_path} | given))

    return make


def test_wakeups_and_events_over_the_database_ask_no_broker(settings):
    assert findings(settings(), "wake-ups") == [(OK, "over the database, by Procrastinate")]
    assert findings(settings(), "events") == [(OK, "over the database")]
    assert findings(settings(wakeups="none"), "wake-ups") == [(OK, "SAAS_WAKEUPS is none: idle workers look every second")]
    assert levels(settings(events="local"), "events") == [OK]


@pytest.mark.parametrize(("check", "given", "reason"), [
    ("events", {"events": NOBODY}, "SAAS_EVENTS: expected a Redis that answers (ConnectionError)"),
    ("wake-ups", {"wakeups": f"celery+{NOBODY}"}, "SAAS_WAKEUPS: expected a broker that answers (ConnectionError)"),
    ("wake-ups", {"wakeups": "celery+sqs://KEY:TOPSECRET@127.0.0.1:1?region=us-east-1"},
     "SAAS_WAKEUPS: expected a broker that answers (EndpointConnectionError)"),
])  # fmt: skip
def test_a_broker_that_does_not_answer_is_an_error_without_its_address(settings, check, given, reason):
    (found,) = examine(settings(**given), {check: doctor.CHECKS[check]})

    assert (found.level, found.message) == (ERROR, reason)
    assert "TOPSECRET" not in found.line() and "127.0.0.1" not in found.line()


def test_a_redis_that_answers_is_right_and_one_that_refuses_the_password_is_not(settings, tmp_path):
    with redis_server(tmp_path) as server:
        both = settings(events=server.url, wakeups=f"celery+{server.url}")
        found = [*findings(both, "events"), *findings(both, "wake-ups")]
        with redis.Redis.from_url(server.url) as client:
            client.config_set("requirepass", "another")
        address = server.url.replace("redis://", "redis://:TOPSECRET@")
        wrong = settings(events=address, wakeups=f"celery+{address}")
        refused = [*findings(wrong, "events"), *findings(wrong, "wake-ups")]

    assert found == [(OK, "Redis answers")] * 2
    assert [level for level, _ in refused] == [ERROR] * 2 and "TOPSECRET" not in str(refused)


def test_an_sqs_that_answers_is_right(settings):
    with sqs_server() as url:
        assert findings(settings(wakeups=f"celery+{url}"), "wake-ups") == [(OK, "SQS answers")]


def test_workers_that_were_heard_of_are_counted_and_none_is_a_warning(database, dsn, settings):
    own = settings(database_url=as_url(dsn))
    none = findings(own, "workers")
    joined(database, "one/cpu", status="quarantined")
    useless = findings(own, "workers")
    joined(database, "two/cpu")
    some = findings(own, "workers")
    ages(database, "one/cpu", 60)
    ages(database, "two/cpu", 60)

    assert none == [(WARNING, "no worker was heard of: nothing runs jobs")]
    assert useless == [(WARNING, "no worker that lives takes jobs: 1 quarantined")]
    assert some == [(OK, "2 heard of: 1 available, 1 quarantined")]
    assert findings(own, "workers") == none
