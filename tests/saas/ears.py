"""One socket as a browser has it after its upgrade: Socket.IO 5 over a WebSocket, every message in the order of its arrival.

Python's own client gives each message to a thread of its own, stops at seventeen packets in an answer, and hangs up by itself where
a full machine keeps a ping waiting: who counts what everybody heard, in order, needs one that does none of it.
"""

import json
import threading
from contextlib import ExitStack
from typing import Any

from saas.live_saas import Person, SaasServer
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

# Engine.IO's packets, and Socket.IO's inside of its messages: github.com/socketio/engine.io-protocol, …/socket.io-protocol
PING, PONG, CONNECT, DISCONNECT, EVENT = "2", "3", "40", "41", "42"


class Ears:
    """One socket of `person` at one web process, and everything it heard in order."""

    def __init__(self, person: Person, at: SaasServer, *, seconds: float = 60.0) -> None:
        self.user_id = person.user_id
        self.heard: list[tuple[str, dict[str, Any]]] = []
        address = at.url.replace("http", "ws", 1) + "/ws/socket.io/?EIO=4&transport=websocket"
        self._open = ExitStack()
        self._socket = self._open.enter_context(connect(address, open_timeout=seconds, ping_interval=None, max_size=None, proxy=None))
        opened = self._socket.recv(timeout=seconds)
        assert opened[0] == "0", f"expected the handshake of Engine.IO, got {opened!r}"
        self._socket.send(CONNECT + json.dumps({"token": person.token}))
        while (answer := self._socket.recv(timeout=seconds)) == PING:
            self._socket.send(PONG)
        assert str(answer).startswith(CONNECT), f"expected to be let in, got {answer!r}"
        self._fault: Exception | None = None
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()

    def _listen(self) -> None:
        try:
            for packet in self._socket:
                text = str(packet)
                if text == PING:
                    self._socket.send(PONG)
                elif text == DISCONNECT:
                    # Whoever was put out hangs up, as a browser does.
                    self._socket.close_socket()
                    return
                elif text.startswith(EVENT):
                    name, data = json.loads(text.removeprefix(EVENT))
                    self.heard.append((name, data))
        except ConnectionClosed:
            return
        except Exception as error:
            self._fault = error

    @property
    def connected(self) -> bool:
        """Whether the server still has it."""
        if self._fault is not None:
            raise self._fault
        return self._listening.is_alive()

    def of_item(self, item_id: int) -> list[tuple[str, dict[str, Any]]]:
        """What it heard of one item."""
        return [(name, data) for name, data in list(self.heard) if data.get("item_id") == item_id]

    def ended(self) -> set[int]:
        """Items that it heard the end of."""
        ends = ("completed", "failed", "canceled")
        return {data["item_id"] for name, data in list(self.heard) if name == "queue_item_status_changed" and data["status"] in ends}

    def close(self) -> None:
        """Hang up."""
        self._socket.close_socket()
        self._listening.join()
        self._open.close()
