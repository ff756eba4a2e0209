"""The bus: what one process publishes, every listener hears once and in order, over Postgres and over Redis alike."""

import threading
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
from saas.brokers import redis_server
from saas.patience import PATIENCE_SECONDS, until

from invokeai_saas.db import tenancy
from invokeai_saas.events import postgres
from invokeai_saas.events.bus import EventBus, Message
from invokeai_saas.events.postgres import PostgresBus
from invokeai_saas.events.redis import RedisBus

COUNT = "SELECT count(*) AS rows FROM bus_events"


class Process:
    """One process' end of the bus, and what it heard."""

    def __init__(self, bus: EventBus, database, users_here: set[str] | None = None) -> None:
        self.bus, self.database, self.heard = bus, database, []
        self.users_here = {"ann", "bob"} if users_here is None else users_here

    def listen(self) -> "Process":
        self.bus.start(self.heard.append, lambda: self.users_here)
        return self

    def says(self, *names: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until exactly these messages were heard."""
        until(lambda: len(self.heard) >= len(names), seconds=seconds)
        assert [message.name for message in self.heard] == list(names)

    def publish(self, name: str, user_id: str = "ann", **fields: object) -> None:
        with tenancy.as_user("ann"):
            self.bus.publish(Message(name=name, payload="{}", user_id=user_id, **fields))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture(params=["postgres", "redis"])
def process(request: pytest.FixtureRequest, open_database, redis_url: str) -> Iterator[Callable[..., Process]]:
    """Makes processes whose buses are one."""
    made: list[Process] = []

    def make(**settings) -> Process:
        database = open_database()
        bus = PostgresBus(database) if request.param == "postgres" else RedisBus(database, redis_url)
        made.append(Process(bus, database, **settings))
        return made[-1]

    yield make
    for each in made:
        each.bus.close()


@pytest.fixture
def over_postgres(open_database) -> Iterator[Callable[..., Process]]:
    made: list[Process] = []

    def make(**settings) -> Process:
        database = open_database()
        made.append(Process(PostgresBus(database, **settings), database))
        return made[-1]

    yield make
    for each in made:
        each.bus.close()


def test_every_listener_hears_everything_once_in_the_publisher_s_order(process):
    listeners = [process().listen() for _ in range(3)]
    speakers = [listeners[0], process(), process()]

    def speak(speaker: Process, word: str) -> None:
        for number in range(40):
            if number % 3:
                speaker.publish(f"{word} {number}")
            else:
                with tenancy.as_user("ann"), speaker.database.postgres() as cursor:
                    cursor.execute("SELECT 1")
                    speaker.publish(f"{word} {number}")

    threads = [threading.Thread(target=speak, args=(speaker, word)) for speaker, word in zip(speakers, "abc", strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for listener in listeners:
        until(lambda: len(listener.heard) >= 120)  # noqa: B023
    time.sleep(0.1)

    for listener in listeners:
        names = [message.name for message in listener.heard]
        assert len(names) == 120
        for word in "abc":
            assert [name for name in names if name.startswith(word)] == [f"{word} {number}" for number in range(40)]


def test_a_message_carries_its_payload_and_owner(process):
    listener, speaker = process().listen(), process()
    with tenancy.as_user("ann"):
        speaker.bus.publish(Message(name="outside", payload='{"n": "\\u0000é"}', user_id="ann"))
        with speaker.database.postgres():
            speaker.bus.publish(Message(name="inside", payload='{"n": 2}', user_id="bob"))
            speaker.bus.publish(Message(name="nobody's", payload="[]"))
    listener.says("outside", "inside", "nobody's")

    told = [(message.payload, message.user_id) for message in listener.heard]
    assert told == [('{"n": "\\u0000é"}', "ann"), ('{"n": 2}', "bob"), ("[]", None)]


def test_what_is_rolled_back_is_not_heard(process):
    listener, speaker = process().listen(), process()
    with pytest.raises(RuntimeError), tenancy.as_user("ann"), speaker.database.postgres():
        speaker.publish("undone")
        raise RuntimeError
    with tenancy.as_user("ann"), speaker.database.postgres():
        with pytest.raises(RuntimeError), speaker.database.postgres():
            speaker.publish("undone within")
            raise RuntimeError
        speaker.publish("done")
    speaker.publish("after")

    listener.says("done", "after")


def test_what_is_published_in_a_transaction_waits_for_its_commit(process):
    listener, speaker = process().listen(), process()
    with tenancy.as_user("ann"), speaker.database.postgres() as cursor:
        cursor.execute("SELECT 1")
        speaker.publish("inside")
        time.sleep(1.3)
        assert listener.heard == []

    listener.says("inside")


def test_a_commit_that_took_long_is_found_and_nothing_comes_twice(over_postgres):
    listener, slow, quick = over_postgres().listen(), over_postgres(), over_postgres()
    with tenancy.as_user("ann"), slow.database.postgres() as cursor:
        cursor.execute("SELECT 1")
        slow.publish("slow")
        for number in range(3):
            with tenancy.as_user("ann"), quick.database.postgres():
                quick.publish(f"quick {number}")
            until(lambda: len(listener.heard) > number)  # noqa: B023

    listener.says("quick 0", "quick 1", "quick 2", "slow")


def test_the_rows_number_alone_would_lose_the_late_commit(over_postgres, monkeypatch):
    """What READ compares is what finds it: by numbers it would be passed over."""
    head, condition, rest = postgres.READ.partition("event.xact >= pg_snapshot_xmin(%(since)s::pg_snapshot)")
    seen = "SELECT COALESCE(max(id), 0) FROM bus_events WHERE pg_visible_in_snapshot(xact, %(since)s::pg_snapshot)"
    by_number = f"{head}event.id > ({seen}){rest}"
    assert condition
    monkeypatch.setattr(postgres, "READ", by_number)
    listener, slow, quick = over_postgres().listen(), over_postgres(), over_postgres()
    with tenancy.as_user("ann"), slow.database.postgres() as cursor:
        cursor.execute("SELECT 1")
        slow.publish("slow")
        with tenancy.as_user("ann"), quick.database.postgres():
            quick.publish("quick")
        until(lambda: bool(listener.heard))
    time.sleep(1.5)

    listener.says("quick")


def test_lost_notifications_cost_a_second(over_postgres, monkeypatch):
    monkeypatch.setattr(postgres, "NOTIFY", "SELECT %s::text[], %s::text[]")
    listener, speaker = over_postgres().listen(), over_postgres()
    began = time.monotonic()
    for number in range(5):
        speaker.publish(str(number))
    listener.says(*map(str, range(5)))

    assert time.monotonic() - began < 30


def test_without_notifications_and_without_looking_nothing_would_come(over_postgres, monkeypatch):
    monkeypatch.setattr(postgres, "NOTIFY", "SELECT %s::text[], %s::text[]")
    listener, speaker = over_postgres(poll_seconds=4), over_postgres()
    listener.listen()
    time.sleep(0.5)
    speaker.publish("unheard")
    time.sleep(2)

    assert listener.heard == []


def test_a_listener_whose_connections_are_cut_hears_what_was_said_meanwhile(over_postgres, dsn):
    listener, speaker = over_postgres().listen(), over_postgres()
    speaker.publish("before")
    until(lambda: len(listener.heard) == 1)
    with psycopg.connect(dsn, autocommit=True) as connection:
        listeners = "query LIKE 'LISTEN%' AND datname = current_database()"
        connection.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {listeners}".encode())
    for number in range(5):
        speaker.publish(str(number))

    listener.says("before", *map(str, range(5)))


def test_progress_is_heard_where_its_user_is(process):
    with_ann, with_nobody, speaker = process(users_here={"ann"}).listen(), process(users_here=set()).listen(), process()
    speaker.publish("progress", replaces="progress 1")
    speaker.publish("done")

    with_ann.says("progress", "done")
    with_nobody.says("done")


def test_what_is_sent_again_is_heard_once(process, monkeypatch):
    """The answer to the first try was lost."""
    listener, speaker = process().listen(), process()
    send, tries = speaker.bus._send, []

    def unsure(messages):
        send(messages)
        tries.append(len(messages))
        if len(tries) == 1:
            raise ConnectionError

    monkeypatch.setattr(speaker.bus._outbox, "_send", unsure)
    speaker.publish("once")
    until(lambda: len(tries) == 2)
    speaker.publish("then")

    listener.says("once", "then")


def test_who_works_is_told_whose_work_ends(process):
    supervisor, speaker, told = process(), process(), []
    supervisor.bus.subscribe_wanted(told.append)
    until(lambda: told == [None])
    speaker.publish("progress")
    speaker.publish("canceled", stops=(3, 4))
    until(lambda: len(told) == 2)
    with tenancy.as_user("ann"), speaker.database.postgres():
        speaker.publish("cleared", stops=None)
    until(lambda: len(told) == 3)

    assert told[1:] == [frozenset({3, 4}), None]


def test_many_canceled_items_fit_into_notifications(over_postgres):
    supervisor, speaker, told = over_postgres(), over_postgres(), []
    supervisor.bus.subscribe_wanted(told.append)
    until(lambda: told == [None])
    items = tuple(range(10**9, 10**9 + 1000))
    speaker.publish("canceled", stops=items)
    until(lambda: sum(len(ids) for ids in told[1:]) == 1000)

    assert frozenset().union(*told[1:]) == frozenset(items)


def test_old_rows_are_removed(over_postgres, monkeypatch):
    speaker = over_postgres().listen()
    speaker.publish("old")
    speaker.publish("old progress", replaces="x")
    until(lambda: len(speaker.heard) == 2)

    assert speaker.bus.forget() == 0
    monkeypatch.setattr(postgres, "PASSING_SECONDS", 0.0)
    assert speaker.bus.forget() == 1
    monkeypatch.setattr(postgres, "KEPT_SECONDS", 0.0)
    assert speaker.bus.forget() == 1


def test_a_database_that_was_set_back_is_heard_again(over_postgres):
    listener, speaker = over_postgres(), over_postgres()
    reader = postgres._Reader(listener.database, listener.heard.append, lambda: {"ann"})
    reader._since = "9000000000:9000000000:"
    speaker.publish("before")
    speaker.bus.close()
    reader.read()
    with tenancy.as_user("ann"), speaker.database.postgres():
        speaker.publish("after")
    reader.read()

    listener.says("after")


