"""The idle worker's side of wake-ups, the settings that choose a transport, and who is woken where."""

import logging
import threading
import time

import pytest
from saas.patience import until

from invokeai_saas.errors import BadSettings
from invokeai_saas.operating.redaction import secrets_of
from invokeai_saas.settings import load_settings
from invokeai_saas.wakeups.celery import CeleryWakeups, broker_of
from invokeai_saas.wakeups.local import NoWakeups
from invokeai_saas.wakeups.opening import sending_of, wakeups_of
from invokeai_saas.wakeups.port import MOST, QUEUES, Wakeup, by_queue, queues_of
from invokeai_saas.wakeups.procrastinate import ProcrastinateWakeups
from invokeai_saas.wakeups.waiting import Waiter

POSTGRES = "postgresql://user:topsecret@db/invokeai"


class Broker:
    """A source in memory that the test fills, breaks and hangs."""

    def __init__(self) -> None:
        self.tokens, self.asked, self.acknowledged, self.opened, self.closed = 0, 0, 0, 0, 0
        self.broken, self.hanging, self.forgetting = False, threading.Event(), threading.Event()
        self.hanging.set()
        self.forgetting.set()

    def connect(self) -> "Broker":
        self.opened += 1
        return self

    def take(self, seconds: float) -> bool:
        self.asked += 1
        self.hanging.wait()
        if self.broken:
            raise OSError("gone: topsecret")
        deadline = time.monotonic() + min(seconds, 0.1)
        while time.monotonic() < deadline:
            if self.tokens:
                self.tokens -= 1
                return True
            time.sleep(0.005)
        return False

    def acknowledge(self) -> None:
        self.forgetting.wait()
        self.acknowledged += 1

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def broker():
    return Broker()


@pytest.fixture
def waiter(broker):
    made = Waiter(broker.connect, hung_seconds=0.5)
    yield made
    broker.hanging.set()
    broker.forgetting.set()
    made.close()


def test_an_item_is_told_to_each_tier_that_may_run_it():
    items = [Wakeup(1, "ann", ("basic", "dedicated")), Wakeup(2, "bob"), Wakeup(3, "bob", ())]
    found = {queue: [item.item_id for item in tokens] for queue, tokens in by_queue(items).items()}

    assert found == {QUEUES["basic"]: [1, 2, 3], QUEUES["dedicated"]: [1, 2, 3], QUEUES["high_performance"]: [2, 3]}
    assert queues_of(["basic", "own"]) == (QUEUES["basic"], "invokeai-gpu-own")
    assert len(by_queue(Wakeup(n, "ann", ("basic",)) for n in range(1000))[QUEUES["basic"]]) == MOST


def test_one_token_wakes_one_of_those_who_wait(waiter, broker):
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(waiter.wait(1.0))) for _ in range(3)]
    for thread in threads:
        thread.start()
    broker.tokens = 1
    for thread in threads:
        thread.join()

    assert sorted(answers) == [False, False, True]


def test_who_waits_works_before_the_broker_has_forgotten_the_token(waiter, broker):
    broker.forgetting.clear()
    broker.tokens = 1
    woken, acknowledged = waiter.wait(50.0), broker.acknowledged
    broker.forgetting.set()
    until(lambda: broker.acknowledged == 1)

    assert (woken, acknowledged) == (True, 0)


def test_nobody_who_waits_nothing_is_taken(waiter, broker):
    broker.tokens = 5
    time.sleep(0.3)

    assert (broker.asked, broker.tokens) == (0, 5)


def test_a_token_that_comes_between_two_waits_is_kept_for_the_next(waiter, broker):
    waiter.wait(0.01)
    broker.tokens = 1
    time.sleep(0.15)

    assert waiter.wait(50.0) is True


def test_a_broken_broker_is_said_once_without_its_address_and_waits_stay_in_time(waiter, broker, caplog):
    broker.broken = True
    with caplog.at_level(logging.INFO):
        began = time.monotonic()
        answers = [waiter.wait(0.2) for _ in range(4)]
        took = time.monotonic() - began
        broker.broken, broker.tokens = False, 1
        again = waiter.wait(50.0)
        time.sleep(0.1)
    said = [record.message for record in caplog.records]

    assert (answers, again, took < 60.0) == ([False] * 4, True, True)
    assert [line.split(" (")[0] for line in said] == [
        "the wake-ups' broker does not answer", "the wake-ups' broker answers again",
    ]  # fmt: skip
    assert "topsecret" not in caplog.text


def test_a_connection_that_hangs_delays_nobody_and_is_replaced(waiter, broker):
    broker.hanging.clear()
    began = time.monotonic()
    answers = [waiter.wait(0.3) for _ in range(3)]
    took = time.monotonic() - began
    opened = broker.opened
    # The one that hangs still hangs: only the new one answers.
    broker.hanging = threading.Event()
    broker.hanging.set()
    broker.tokens = 1

    assert (answers, took < 60.0, opened) == ([False] * 3, True, 2)


def test_who_does_not_wait_for_long_holds_no_connection(broker, monkeypatch):
    monkeypatch.setattr("invokeai_saas.wakeups.waiting.REST_SECONDS", 0.1)
    waiter = Waiter(broker.connect)
    waiter.wait(0.01)
    time.sleep(0.6)
    closed = broker.closed
    broker.tokens = 1
    woken = waiter.wait(50.0)
    waiter.close()

    assert (closed, woken, broker.opened) == (1, True, 2)


def test_close_ends_all_waiting(waiter):
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(waiter.wait(60.0)))
    thread.start()
    time.sleep(0.1)
    waiter.close()
    thread.join(50.0)

    assert answers == [False]
    assert waiter.wait(60.0) is False


def test_without_a_transport_waiting_is_sleeping():
    wakeups = NoWakeups()
    wakeups.send([Wakeup(1, "ann")])
    began = time.monotonic()
    assert wakeups.wait(["basic"], 0.2) is False
    assert 0.15 < time.monotonic() - began < 10.0
    wakeups.close()
    assert wakeups.wait(None, 60.0) is False


@pytest.mark.parametrize(
    ("database_url", "value", "transport"),
    [
        (None, None, "none"),
        (POSTGRES, None, "procrastinate"),
        (POSTGRES, "none", "none"),
        (None, "procrastinate", "procrastinate"),
        (POSTGRES, "celery+redis://:topsecret@broker/0", "celery+redis://:topsecret@broker/0"),
    ],
)
def test_the_default_follows_the_database(monkeypatch, database_url, value, transport):
    for name, given in (("DATABASE_URL", database_url), ("SAAS_WAKEUPS", value)):
        monkeypatch.delenv(name, raising=False)
        if given is not None:
            monkeypatch.setenv(name, given)
    settings = load_settings()

    assert settings.wakeups_transport == transport
    assert "topsecret" not in repr(settings)


def test_an_unknown_transport_is_named_without_its_value(monkeypatch):
    monkeypatch.setenv("SAAS_WAKEUPS", "celery+amqp://user:topsecret@broker")

    with pytest.raises(BadSettings, match=r"SAAS_WAKEUPS: .*procrastinate, none, .*celery\+sqs://") as refused:
        load_settings()
    assert "topsecret" not in str(refused.value)


def test_the_setting_opens_its_transport(monkeypatch, database):
    kinds = {}
    for value in ("none", "procrastinate", "celery+redis://localhost:1/0", "celery+sqs://?region=eu-west-1"):
        monkeypatch.setenv("SAAS_WAKEUPS", value)
        kinds[value.split(":")[0]] = type(wakeups_of(load_settings(), database))
    monkeypatch.setenv("SAAS_WAKEUPS", "none")

    assert kinds == {"none": NoWakeups, "procrastinate": ProcrastinateWakeups, "celery+redis": CeleryWakeups, "celery+sqs": CeleryWakeups}
    assert sending_of(load_settings(), database) is None


def test_another_applications_celery_is_not_ours(monkeypatch):
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://elsewhere:1/0")
    broker = broker_of("redis://:topsecret@here:2/3?prefix=staging-")
    connection = broker.connect()

    assert (connection.hostname, connection.port, connection.virtual_host, connection.password) == ("here", 2, "3", "topsecret")
    assert broker.app.conf.broker_transport_options["global_keyprefix"] == "staging-"


def test_words_are_no_secrets_and_addresses_are(monkeypatch):
    monkeypatch.setenv("SAAS_WAKEUPS", "procrastinate")
    monkeypatch.setenv("SAAS_EVENTS", "postgres")
    words = secrets_of(load_settings())
    monkeypatch.setenv("SAAS_WAKEUPS", "celery+redis://:topsecret@broker/0")

    assert not {"procrastinate", "postgres"} & set(words)
    assert "celery+redis://:topsecret@broker/0" in secrets_of(load_settings())
