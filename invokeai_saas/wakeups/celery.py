"""Wake-ups over Celery: Redis, or SQS FIFO, one queue per GPU tier. A token is a message of Celery's task protocol.

    send: after the commit ─► an outbox in memory ─► a thread ─► Celery ─► Redis | SQS (group: the user; doubles are dropped by item)
    wait: Redis: BRPOP on all of one's queues │ SQS: a long poll per queue ─► wait() returns ─► deleted

Not Celery's own worker: it takes messages while this one is busy, and one that it acknowledges late is given to a second worker when the
visibility timeout passes, however healthy the first one is. What the outbox cannot send is dropped: the row is there, workers look.
"""

import logging
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from celery import Celery
from kombu import Queue as BrokerQueue

from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.errors import BadSettings
from invokeai_saas.wakeups.port import MOST, Wakeup, by_queue, queues_of
from invokeai_saas.wakeups.waiting import Source, Waiters

TASK = "invokeai_saas.wake"
OUTBOX = 1000
TIMEOUT_SECONDS = 5
# SQS keeps no message for less. With all workers busy nobody takes them, and what is older than a worker's look is worth nothing.
RETENTION_SECONDS = 60
# Only while a token is being deleted.
VISIBILITY_SECONDS = 30
# Whole seconds: what SQS and old Redis servers wait for.
POLL_SECONDS = 1
CLOSE_SECONDS = 2.0
logger = logging.getLogger(__name__)


class CeleryWakeups:
    """`url` is redis://…, rediss://… or sqs://…; see broker_of()."""

    def __init__(self, database: PostgresDatabase, url: str) -> None:
        self._database, self._broker, self._is_sqs = database, broker_of(url), is_sqs(url)
        self._outbox: Queue[tuple[str, Wakeup]] = Queue(OUTBOX)
        self._closing, self._trouble = Event(), False
        self._sender: Thread | None = None
        self._waiters = Waiters(self._connects)

    def open(self) -> None:
        """Start the thread that sends."""
        self._sender = Thread(target=self._send_all, name="wake-ups-outbox", daemon=True)
        self._sender.start()

    def send(self, items: Sequence[Wakeup]) -> None:
        """Put tokens into the outbox once the open transaction has committed."""
        tokens = [(self._named(queue), item) for queue, some in by_queue(items).items() for item in some]
        self._database.on_commit(lambda: self._post(tokens))

    def wait(self, tiers: Sequence[str] | None, timeout_seconds: float) -> bool:
        """See Wakeups.wait()."""
        return self._waiters.wait(tuple(self._named(queue) for queue in queues_of(tiers)), timeout_seconds)

    def close(self) -> None:
        """Send what is in the outbox, as far as two seconds go, and end all waiting."""
        self._closing.set()
        if self._sender is not None:
            self._sender.join(CLOSE_SECONDS)
        self._waiters.close()

    def _named(self, queue: str) -> str:
        return f"{queue}.fifo" if self._is_sqs else queue

    def _connects(self, queues: Sequence[str]) -> list[Callable[[], Source]]:
        """Redis pops from several lists at once; SQS waits at one queue, so that each queue needs a lane."""
        if self._is_sqs:
            return [lambda queue=queue: _SqsSource(self._broker, queue) for queue in queues]  # type: ignore[misc]
        return [lambda: _RedisSource(self._broker, queues)]

    def _post(self, tokens: Sequence[tuple[str, Wakeup]]) -> None:
        try:
            for token in tokens:
                self._outbox.put_nowait(token)
        except Full:
            self._say("the outbox of wake-ups is full")

    def _send_all(self) -> None:
        sender = _Sender(self._broker, fifo=self._is_sqs)
        with suppress(Exception):
            # Said when there is something to send.
            sender.connect()
        while not (self._closing.is_set() and self._outbox.empty()):
            try:
                queue, item = self._outbox.get(timeout=0.2)
            except Empty:
                continue
            try:
                sender.send(queue, item)
                self._trouble = False
            except Exception as error:
                # Not the error's text: an address may hold a password.
                self._say(f"wake-ups cannot be sent ({type(error).__name__})")
                sender.close()
                self._drop_outbox()
        sender.close()

    def _drop_outbox(self) -> None:
        """What waited for a broker that is away is not worth another try each."""
        with suppress(Empty):
            while True:
                self._outbox.get_nowait()

    def _say(self, trouble: str) -> None:
        if not self._trouble:
            logger.warning("%s; workers look every second meanwhile", trouble)
        self._trouble = True


class _Sender:
    """The sending thread's connection."""

    def __init__(self, broker: "_Broker", *, fifo: bool) -> None:
        self._broker, self._fifo = broker, fifo
        self._connection: Any = None
        self._producer: Any = None

    def connect(self) -> Any:
        """The connection, made where there is none; with it what Celery makes at the first use, which takes a third of a second."""
        if self._connection is None:
            app, connection = self._broker.app, self._broker.connect()
            self._producer = app.amqp.Producer(connection.default_channel, auto_declare=False)
            assert app.amqp.router and app.amqp.send_task_message
            self._connection = connection
        return self._connection

    def send(self, queue: str, item: Wakeup) -> None:
        """One token, where there is room. Raises whatever the client raises."""
        connection = self.connect()
        # With all workers busy tokens would only pile up. SQS counts a minute late, and forgets by itself.
        if not self._fifo and _bound(connection, queue).queue_declare().message_count >= MOST:
            return
        # A group per user: a flood of one delays nobody else's tokens.
        options = {"MessageGroupId": item.user_id, "MessageDeduplicationId": str(item.item_id)} if self._fifo else {}
        self._broker.app.send_task(TASK, (item.item_id,), queue=queue, producer=self._producer, retry=False, ignore_result=True, **options)

    def close(self) -> None:
        """The next token makes a new connection."""
        connection, self._connection = self._connection, None
        with suppress(Exception):
            if connection is not None:
                connection.release()


class _RedisSource(Source):
    """One blocking pop on the lists that Celery's messages of some queues lie in."""

    def __init__(self, broker: "_Broker", queues: Sequence[str]) -> None:
        self._connection, self._queues = broker.connect(), list(queues)
        # Kombu's own consumer leaves a pop behind at the server when nobody waits any more, and that takes a token from who does.
        self._client = self._connection.default_channel.client

    def take(self, seconds: float) -> bool:
        """Pop: what Redis handed over is gone from it."""
        return self._client.brpop(self._queues, timeout=POLL_SECONDS) is not None

    def acknowledge(self) -> None:
        """Popped is gone."""

    def close(self) -> None:
        """Hang up."""
        self._connection.release()


class _SqsSource(Source):
    """One queue's long polls."""

    def __init__(self, broker: "_Broker", queue: str) -> None:
        self._connection = broker.connect()
        self._queue = _bound(self._connection, queue)
        self._message: Any = None

    def take(self, seconds: float) -> bool:
        """Receive one message, which is invisible to others for now."""
        self._message = self._queue.get()
        return self._message is not None

    def acknowledge(self) -> None:
        """Delete it: a second request, which took as long as the first."""
        if self._message is not None:
            self._message.ack()

    def close(self) -> None:
        """Hang up."""
        self._connection.release()


def is_sqs(url: str) -> bool:
    """Whether a broker's address is Amazon's SQS, or another server that speaks it."""
    return url.startswith("sqs://")


@dataclass(frozen=True)
class _Broker:
    """A Celery application, and the address that it talks to: the application itself would prefer CELERY_BROKER_URL of the environment."""

    app: Celery
    address: str

    def connect(self) -> Any:
        """A connection of one's own; nothing is asked yet."""
        return self.app.connection_for_write(self.address)


def broker_of(url: str) -> _Broker:
    """A broker with patience for seconds. `?prefix=` goes before the queues' names, `?region=` is SQS's.

    sqs:// without a login uses the machine's role; sqs://KEY:SECRET@HOST:PORT is another server than Amazon's.
    """
    parts = urlsplit(url)
    asked = dict(parse_qsl(parts.query))
    prefix, region = asked.pop("prefix", ""), asked.pop("region", None)
    # Kombu tries for ever otherwise.
    options: dict[str, Any] = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
    if is_sqs(url):
        client = {"connect_timeout": TIMEOUT_SECONDS, "read_timeout": POLL_SECONDS + TIMEOUT_SECONDS, "retries": {"total_max_attempts": 1}}
        options |= {"queue_name_prefix": prefix, "wait_time_seconds": POLL_SECONDS, "visibility_timeout": VISIBILITY_SECONDS}
        options |= {"client-config": client, "sqs-creation-attributes": {"MessageRetentionPeriod": str(RETENTION_SECONDS)}}
        options |= {} if region is None else {"region": region}
    else:
        options |= {"global_keyprefix": prefix, "socket_timeout": POLL_SECONDS + TIMEOUT_SECONDS}
        options |= {"socket_connect_timeout": TIMEOUT_SECONDS}
    address = f"{parts.scheme}://{parts.netloc}{parts.path}"
    app = Celery("invokeai-saas", broker=address, set_as_current=False, fixups=[])
    app.conf.update(
        broker_transport_options=options,
        broker_connection_timeout=TIMEOUT_SECONDS,
        broker_use_ssl={"ssl_cert_reqs": ssl.CERT_REQUIRED} if parts.scheme == "rediss" else None,
        task_ignore_result=True,
        task_send_sent_event=False,
    )
    return _Broker(app, address)


def demand_broker(url: str) -> None:
    """Raise BadSettings for a broker that does not answer or refuses the login; the message holds no part of the address."""
    connection = broker_of(url).connect()
    try:
        # The first channel pings Redis, or lists the queues of SQS.
        assert connection.default_channel
    except Exception as error:
        # Kombu wraps what its clients raise, and says their text with it.
        reason = type(error.__cause__ or error).__name__
        raise BadSettings(f"SAAS_WAKEUPS: expected a broker that answers ({reason})") from None
    finally:
        connection.release()


def _bound(connection: Any, queue: str) -> Any:
    # Kombu has no types.
    make: Any = BrokerQueue
    return make(queue)(connection.default_channel)
