"""Messages that wait to be sent: never those that matter are lost, previews become fewer."""

import json
import threading
import time

from saas.patience import PATIENCE_SECONDS, until

from invokeai_saas.events import outbox
from invokeai_saas.events.bus import Message, Received
from invokeai_saas.events.outbox import Outbox


class SlowBus:
    """Takes messages when it is let."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.open, self.taking, self.fails, self.tries = threading.Event(), threading.Event(), False, 0
        self.outbox = Outbox(self.send, name="test", retry_seconds=0.05)

    def send(self, messages):
        self.taking.set()
        self.open.wait(120)
        self.tries += 1
        if self.fails:
            raise ConnectionError
        self.sent.extend(messages)

    def names(self) -> list[str]:
        return [message.name for message in self.sent]


def said(name: str, **fields) -> Message:
    return Message(name=name, payload="{}", **fields)


def progress(name: str, item: int = 1, image: str | None = None) -> Message:
    return Message(name=name, payload=json.dumps({"image": image, "step": name}), replaces=f"progress {item}")


def test_a_slow_bus_gets_the_newest_progress_and_everything_else():
    bus = SlowBus()
    bus.outbox.put(said("first"))
    assert bus.taking.wait(PATIENCE_SECONDS)
    for number in range(5):
        bus.outbox.put(progress(f"progress {number}"))
        bus.outbox.put(progress(f"other {number}", item=2))
        bus.outbox.put(said(f"status {number}"))
    bus.open.set()
    bus.outbox.close()

    assert bus.names() == ["first", "status 0", "status 1", "status 2", "status 3", "progress 4", "other 4", "status 4"]
    assert bus.outbox.dropped == 8


def test_a_bus_that_was_away_gets_what_matters_in_order():
    bus = SlowBus()
    bus.open.set()
    bus.fails = True
    bus.outbox.put(said("one"))
    until(lambda: bus.tries > 1)
    bus.outbox.put(progress("old news"))
    bus.outbox.put(said("two"))
    bus.fails = False
    until(lambda: len(bus.sent) == 2)

    assert bus.names() == ["one", "two"]


def test_the_oldest_go_first_when_nobody_takes_them(monkeypatch):
    monkeypatch.setattr(outbox, "MOST_WAITING", 10)
    bus = SlowBus()
    bus.outbox.put(said("taken"))
    assert bus.taking.wait(PATIENCE_SECONDS)
    for number in range(15):
        bus.outbox.put(said(str(number)))
    bus.open.set()
    bus.outbox.close()

    assert bus.names() == ["taken", *map(str, range(5, 15))]


def test_a_flush_waits_for_what_was_put_before_and_not_for_ever():
    bus = SlowBus()
    bus.outbox.put(said("waits"))

    assert not bus.outbox.flush(0.05)
    bus.open.set()
    assert bus.outbox.flush(5)
    bus.open.clear()
    bus.outbox.put(said(""))
    assert bus.outbox.flush(5)
    bus.open.set()
    bus.outbox.close()


def test_a_flush_does_not_wait_for_a_bus_that_is_away():
    bus = SlowBus()
    bus.open.set()
    bus.fails = True
    bus.outbox.put(said("waits"))
    until(lambda: bus.tries > 0)
    began = time.monotonic()

    assert not bus.outbox.flush(60)
    assert time.monotonic() - began < 30


def test_previews_of_one_item_come_at_a_pace_and_its_progress_always(monkeypatch):
    monkeypatch.setattr(outbox, "PREVIEW_SECONDS", 3.0)
    bus = SlowBus()
    bus.open.set()
    for number in range(4):
        bus.outbox.put(progress(str(number), image="a picture"))
        bus.outbox.put(progress(f"other {number}", item=2, image="a picture"))
        bus.outbox.flush(5)
    time.sleep(outbox.PREVIEW_SECONDS)
    bus.outbox.put(progress("later", image="a picture"))
    bus.outbox.close()

    with_image = [message.name for message in bus.sent if json.loads(message.payload)["image"]]
    assert with_image == ["0", "other 0", "later"]
    assert len(bus.sent) == 9


def test_a_preview_that_is_too_large_goes_without_its_picture():
    bus = SlowBus()
    bus.open.set()
    bus.outbox.put(progress("large", image="x" * outbox.MOST_PREVIEW_BYTES))
    bus.outbox.close()

    assert json.loads(bus.sent[0].payload) == {"image": None, "step": "large"}


def test_numbers_of_a_sender_that_were_here_are_not_new():
    received = Received()
    new = [received.is_new(Message(name="m", payload="", sender="a", number=number)) for number in (1, 2, 2, 1, 5)]

    assert new == [True, True, False, False, True]
    assert received.is_new(Message(name="m", payload="", sender="b", number=1))
    assert received.is_new(said("in a transaction")) and received.is_new(said("in a transaction"))
