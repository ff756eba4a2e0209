"""Every transport keeps the port's word: one token wakes one waiter of the right tier, after the commit and never otherwise."""

import logging
import threading
import time

import boto3
import pytest
from saas.patience import until
from saas.waking import TRANSPORTS, enqueue, wakeups_over

from invokeai_saas.db import tenancy
from invokeai_saas.wakeups.celery import CeleryWakeups
from invokeai_saas.wakeups.port import MOST, Wakeup

pytestmark = pytest.mark.xdist_group("wakeups")


@pytest.fixture
def opens(open_database, transport_address):
    """Makes one side of the transport after the other, as processes would."""
    opened = []

    def side():
        wakeups = wakeups_over(transport_address, open_database(pool_size=2))
        wakeups.open()
        opened.append(wakeups)
        return wakeups

    yield side
    for wakeups in opened:
        wakeups.close()


def drained(wakeups, tiers=None, expected: int = 0) -> int:
    """How many tokens are there. Where some are expected the broker may be late with them: the machine does other things too."""
    count, deadline = 0, time.monotonic() + 30
    while True:
        if wakeups.wait(tiers, 1.5 if count >= expected else 10.0):
            count += 1
        elif count >= expected or time.monotonic() > deadline:
            return count


def in_a_thread(wakeups, tiers, timeout: float) -> tuple[threading.Thread, list[bool]]:
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(wakeups.wait(tiers, timeout)))
    thread.start()
    return thread, answers


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_one_enqueue_wakes_one_worker_of_its_tier_and_none_of_another(opens, database, transport):
    sender, basic, dedicated = opens(), opens(), opens()
    waiting = [in_a_thread(basic, ["basic"], 60.0), in_a_thread(basic, ["basic"], 60.0), in_a_thread(dedicated, ["dedicated"], 60.0)]
    time.sleep(0.5)
    enqueue(database_of(sender), sender, "ann", tiers=("basic", "high_performance"))
    until(lambda: any(answers for _, answers in waiting))
    # As long as a second waking would take.
    time.sleep(1.5)
    basic.close()
    dedicated.close()
    for thread, _ in waiting:
        thread.join()

    assert sorted(answer for _, answers in waiting[:2] for answer in answers) == [False, True]
    assert waiting[2][1] == [False]


def database_of(wakeups):
    return wakeups._database


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_is_rolled_back_wakes_nobody(opens, transport):
    sender, worker = opens(), opens()
    with pytest.raises(RuntimeError, match="no after all"), tenancy.as_system("a test"), database_of(sender).postgres():
        enqueue(database_of(sender), sender, "ann")
        raise RuntimeError("no after all")

    assert drained(worker) == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_batch_of_thousands_is_a_few_tokens(opens, transport):
    sender, worker = opens(), opens()
    with tenancy.as_system("a test"), database_of(sender).postgres():
        sender.send([Wakeup(item, f"user-{item % 20}", ("basic",)) for item in range(1, 5001)])
    if transport != "procrastinate":
        until(lambda: sender._outbox.empty())

    assert drained(worker, ["basic"], expected=MOST) == MOST


@pytest.mark.parametrize("transport", ["procrastinate", "redis"])
def test_with_all_workers_busy_tokens_do_not_pile_up(opens, transport):
    sender, worker = opens(), opens()
    for number in range(4):
        with tenancy.as_system("a test"), database_of(sender).postgres():
            sender.send([Wakeup(100 * number + item, "ann", ("basic",)) for item in range(1, 51)])
        if transport == "redis":
            until(lambda: sender._outbox.empty())
            time.sleep(0.1)

    assert drained(worker, ["basic"], expected=MOST) == MOST


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_worker_that_waits_for_nothing_takes_no_tokens(opens, transport):
    sender, busy, idle = opens(), opens(), opens()
    assert busy.wait(["basic"], 0.2) is False
    # Its last question to the broker ends.
    until(lambda: all(lane.asked_at is None for waiter in busy._waiters._waiters.values() for lane in waiter._lanes))
    for _ in range(3):
        enqueue(database_of(sender), sender, "ann", tiers=("basic",))
    time.sleep(1.5)

    assert drained(idle, ["basic"], expected=3) == 3


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_waiting_ends_in_time_and_at_once_when_the_worker_closes(opens, transport):
    worker = opens()
    began = time.monotonic()
    assert worker.wait(None, 0.4) is False
    took = time.monotonic() - began
    thread, answers = in_a_thread(worker, None, 60.0)
    time.sleep(0.2)
    worker.close()
    thread.join(50.0)

    assert (0.3 < took < 60.0, answers) == (True, [False])


@pytest.mark.parametrize("transport", ["sqs"])
def test_sqs_groups_by_user_drops_doubles_by_item_and_holds_nobody_up(opens, transport, transport_address):
    sender, worker = opens(), opens()
    for _ in range(3):
        with tenancy.as_system("a test"), database_of(sender).postgres():
            sender.send([Wakeup(1, "ann", ("basic",)), Wakeup(2, "ann", ("basic",)), Wakeup(3, "bob", ("basic",))])
    until(lambda: sender._outbox.empty())
    time.sleep(0.3)
    address, prefix = transport_address.removeprefix("sqs://key:secret@").split("?")[0], transport_address.split("prefix=")[1]
    client = boto3.client(
        "sqs", endpoint_url=f"http://{address}", region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
    )
    url = client.get_queue_url(QueueName=f"{prefix}invokeai-gpu-basic.fifo")["QueueUrl"]
    attributes = client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    seen = client.receive_message(QueueUrl=url, MaxNumberOfMessages=10, MessageSystemAttributeNames=["All"], VisibilityTimeout=0)[
        "Messages"
    ]

    assert (attributes["FifoQueue"], attributes["MessageRetentionPeriod"]) == ("true", "60")
    assert {each["Attributes"]["MessageGroupId"] for each in seen} == {"ann", "bob"}
    assert {each["Attributes"]["MessageDeduplicationId"] for each in seen} <= {"1", "2", "3"}
    # A token is deleted when it is taken: ann's second one comes before the first one's visibility timeout.
    began = time.monotonic()
    assert [worker.wait(["basic"], 10.0) for _ in range(3)] == [True] * 3
    assert time.monotonic() - began < 25
    assert drained(worker, ["basic"]) == 0


@pytest.mark.parametrize("transport", ["redis"])
def test_a_broker_that_is_away_delays_nothing_is_said_once_and_comes_back(tmp_path, open_database, caplog, transport):
    from saas.brokers import RedisServer

    server = RedisServer(tmp_path)
    server.start()
    database = open_database()
    sender, worker = CeleryWakeups(database, server.url), CeleryWakeups(database, server.url)
    sender.open()
    assert worker.wait(["basic"], 0.5) is False
    server.stop()
    with caplog.at_level(logging.INFO, logger="invokeai_saas"):
        began = time.monotonic()
        for _ in range(5):
            enqueue(database, sender, "ann", tiers=("basic",))
        sent = time.monotonic() - began
        began = time.monotonic()
        answers = [worker.wait(["basic"], 0.5) for _ in range(4)]
        waited = time.monotonic() - began
        until(lambda: any("cannot be sent" in record.message for record in caplog.records))
        server.start()
        until(lambda: worker.wait(["basic"], 0.5) or not enqueue(database, sender, "ann", tiers=("basic",)))
    sender.close()
    worker.close()
    server.stop()
    said = [record.message for record in caplog.records]

    assert (sent < 60.0, waited < 60.0, answers) == (True, True, [False] * 4)
    assert sum("does not answer" in line for line in said) == 1
    assert sum("cannot be sent" in line for line in said) == 1
    assert not any("6379" in line or str(server.port) in line for line in said)


@pytest.mark.parametrize("transport", ["procrastinate"])
def test_a_database_that_drops_the_listener_is_listened_to_again(opens, dsn, transport):
    import psycopg

    sender, worker = opens(), opens()
    assert worker.wait(["basic"], 0.3) is False
    thread, answers = in_a_thread(worker, ["basic"], 10.0)
    time.sleep(0.2)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%fetch_job%' AND pid <> pg_backend_pid()"
        )
    time.sleep(0.2)
    enqueue(database_of(sender), sender, "ann", tiers=("basic",))
    thread.join()

    assert answers == [True]
