"""Messages that wait to be sent: a thread that sends them in order, all that there are at a time.

    put ─► waiting: progress of an item replaces its older progress ─► send (tried again every second until it works)

Whoever puts never waits. When the bus is slow, progress is replaced where it stands and previews become fewer; when it is away, the oldest
messages go first at MOST_WAITING.
"""

import json
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Condition, Thread

from invokeai_saas.events.bus import Message

# A picture of every item, so often; in between, progress goes without one.
PREVIEW_SECONDS = 0.2
# Larger than any preview that a person would want: it goes without.
MOST_PREVIEW_BYTES = 500_000
MOST_WAITING = 10_000
MOST_AT_ONCE = 200
RETRY_SECONDS = 1.0
STOP_SECONDS = 5.0
logger = logging.getLogger(__name__)


class Outbox:
    """`send` takes messages in order and raises when none of them was sent."""

    def __init__(self, send: Callable[[Sequence[Message]], None], *, name: str, retry_seconds: float = RETRY_SECONDS) -> None:
        self._send, self._name, self._retry_seconds = send, name, retry_seconds
        self._waiting: deque[Message] = deque()
        self._changed = Condition()
        self._sender = uuid.uuid4().hex
        # Numbers: of the last one that was put, of the last one with a name, of the first one that is being sent.
        self._put, self._named, self._sending = 0, 0, 0
        self._previews: dict[str, float] = {}
        self._thread: Thread | None = None
        self._stopping, self._failing = False, False
        # How many messages were never sent.
        self.dropped = 0

    def put(self, message: Message) -> None:
        """Send it soon."""
        message = self._thinned(message)
        with self._changed:
            if self._stopping or (message.is_passing and self._failing):
                self.dropped += 1
                return
            if message.is_passing:
                self._drop_older(message)
            self._put += 1
            if message.name:
                self._named = self._put
            self._waiting.append(replace(message, sender=self._sender, number=self._put))
            if len(self._waiting) > MOST_WAITING:
                self._waiting.popleft()
                self.dropped += 1
            if self._thread is None:
                self._thread = Thread(target=self._loop, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until everything that was put before now is sent; returns whether it is."""
        with self._changed:
            until = self._named
            self._changed.wait_for(lambda: self._oldest > until or self._failing, seconds)
            return self._oldest > until

    def close(self, seconds: float = STOP_SECONDS) -> None:
        """Send what waits and end."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(seconds)

    @property
    def _oldest(self) -> int:
        """The number of the first message that is not sent yet."""
        return self._sending or (self._waiting[0].number if self._waiting else self._put + 1)

    def _drop_older(self, message: Message) -> None:
        """Older progress of the same thing, unless it is on its way already."""
        for entry in self._waiting:
            if entry.replaces == message.replaces:
                self._waiting.remove(entry)
                self.dropped += 1
                return

    def _thinned(self, message: Message) -> Message:
        """Without its picture, if one was sent just before."""
        if message.replaces is None or '"image"' not in message.payload:
            return message
        now = time.monotonic()
        if len(message.payload) <= MOST_PREVIEW_BYTES and now - self._previews.get(message.replaces, -PREVIEW_SECONDS) >= PREVIEW_SECONDS:
            if len(self._previews) > MOST_AT_ONCE:
                self._previews = {key: at for key, at in self._previews.items() if now - at < PREVIEW_SECONDS}
            self._previews[message.replaces] = now
            return message
        data = json.loads(message.payload)
        return replace(message, payload=json.dumps({**data, "image": None})) if data.get("image") else message

    def _loop(self) -> None:
        while (batch := self._next()) is not None:
            sent = self._sent(batch)
            with self._changed:
                self._sending = 0
                if not sent:
                    self._waiting.extendleft(each for each in reversed(batch) if not each.is_passing)
                self._changed.notify_all()
                if not sent and (self._stopping or self._changed.wait_for(lambda: self._stopping, self._retry_seconds)):
                    self.dropped += len(self._waiting)
                    return

    def _next(self) -> list[Message] | None:
        """What is sent now, None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            if not self._waiting:
                return None
            batch = [self._waiting.popleft() for _ in range(min(MOST_AT_ONCE, len(self._waiting)))]
            self._sending = batch[0].number
            return batch

    def _sent(self, messages: Sequence[Message]) -> bool:
        try:
            self._send(messages)
        except Exception:
            # Once per streak: a bus that is away would fill the log.
            if not self._failing:
                logger.exception("%s: events wait for the bus", self._name)
            self._failing = True
            return False
        if self._failing:
            logger.info("%s: the bus takes events again", self._name)
        self._failing = False
        return True
