"""The bus over Redis: one stream that every web process reads for itself, from where it is, and a channel for cancels.

    after the commit ─► outbox ─► XADD, PUBLISH ─► XREAD in every web process, SUBSCRIBE in every supervisor

What Redis forgets, or nobody could send, was only news: rows are the truth, and a page that connects again asks for them. Times are Redis'
own: no client's clock matters. A database number of its own per installation, nothing else lies in it.
"""

import logging
from collections.abc import Callable, Sequence
from threading import Event, Thread
from typing import Any

import redis

from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.errors import BadSettings
from invokeai_saas.events.bus import KEPT_SECONDS, Message, Receive, Received, UsersHere, Wanted
from invokeai_saas.events.outbox import Outbox

STREAM, WANTED_CHANNEL = "saas:events", "saas:wanted"
# forget() removes by age; this is for when nobody does.
MOST_KEPT = 20_000
MOST_AT_ONCE = 200
WAIT_SECONDS = 1.0
TIMEOUT_SECONDS = 5.0
RETRY_SECONDS = 1.0
logger = logging.getLogger(__name__)


class RedisBus:
    """See EventBus. Raises BadSettings for an address that does not answer."""

    def __init__(self, database: PostgresDatabase, url: str) -> None:
        self._database = database
        self._redis = answering(url)
        self._outbox = Outbox(self._send, name="saas-events-out")
        self._stop = Event()
        self._threads: list[Thread] = []
        self._received = Received()

    def publish(self, message: Message) -> None:
        """After the commit."""
        self._database.on_commit(lambda: self._outbox.put(message))

    def start(self, receive: Receive, users_here: UsersHere) -> None:
        """From here on; `receive` must not raise."""
        newest = self._redis.xrevrange(STREAM, count=1)
        position = [newest[0][0] if newest else "0-0"]
        self._begin("saas-events-in", lambda: self._read(position, receive, users_here))

    def subscribe_wanted(self, callback: Wanted) -> None:
        """See EventBus."""
        self._begin("saas-events-wanted", lambda: self._hear(callback))

    def forget(self) -> int:
        """See EventBus."""
        seconds, _microseconds = self._redis.time()
        return int(self._redis.xtrim(STREAM, minid=int((seconds - KEPT_SECONDS) * 1000), approximate=True))

    def close(self) -> None:
        """See EventBus."""
        self._stop.set()
        self._outbox.close()
        for thread in self._threads:
            thread.join(2 * WAIT_SECONDS)
        self._redis.close()

    def _send(self, messages: Sequence[Message]) -> None:
        pipe = self._redis.pipeline(transaction=True)
        for each in messages:
            fields = {"name": each.name, "payload": each.payload, "sender": each.sender, "number": each.number}
            fields |= {"user_id": each.user_id} if each.user_id is not None else {}
            fields |= {"passing": 1} if each.is_passing else {}
            pipe.xadd(STREAM, fields, maxlen=MOST_KEPT, approximate=True)
            if each.stops is None or each.stops:
                pipe.publish(WANTED_CHANNEL, ",".join(map(str, each.stops or ())))
        pipe.execute()

    def _read(self, position: list[str], receive: Receive, users_here: UsersHere) -> None:
        answer = self._redis.xread({STREAM: position[0]}, count=MOST_AT_ONCE, block=int(WAIT_SECONDS * 1000))
        here = users_here()
        for entry_id, fields in answer[0][1] if answer else ():
            position[0] = entry_id
            message = _message(fields)
            if self._received.is_new(message) and (not message.is_passing or message.user_id is None or message.user_id in here):
                receive(message)

    def _hear(self, callback: Wanted) -> None:
        with self._redis.pubsub(ignore_subscribe_messages=True) as channel:
            channel.subscribe(WANTED_CHANNEL)
            # Whatever was said while nobody listened.
            callback(None)
            while not self._stop.is_set():
                said = channel.get_message(timeout=WAIT_SECONDS)
                if said is not None:
                    callback(frozenset(map(int, said["data"].split(","))) if said["data"] else None)

    def _begin(self, name: str, work: Callable[[], None]) -> None:
        def loop() -> None:
            failing = False
            while not self._stop.is_set():
                try:
                    work()
                    failing = False
                except Exception as error:
                    # Once per streak: a Redis that is away would fill the log.
                    if not failing:
                        logger.error("%s: Redis is asked again every second", name, exc_info=error)
                    failing = True
                    self._stop.wait(RETRY_SECONDS)

        thread = Thread(target=loop, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()


def answering(url: str) -> Any:
    """A client of a Redis that answers; raises BadSettings for another, without its address."""
    # The redis package describes its answers as of both its sync and async halves.
    client: Any = redis.Redis.from_url(url, decode_responses=True, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS)
    try:
        client.ping()
    except redis.RedisError as error:
        client.close()
        raise BadSettings(f"SAAS_EVENTS: expected a Redis that answers ({type(error).__name__})") from None
    return client


def _message(fields: dict[str, str]) -> Message:
    name = fields["name"]
    return Message(
        name=name,
        payload=fields["payload"],
        user_id=fields.get("user_id"),
        replaces=name if "passing" in fields else None,
        sender=fields["sender"],
        number=int(fields["number"]),
    )
