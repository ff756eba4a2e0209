"""A socket in front of Postgres that can be cut: what is under way stays under way, as in a network that falls apart, or breaks off."""

import socket
import threading
from contextlib import suppress
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

_NAME = ".s.PGSQL.5432"


class CuttingProxy:
    """`dsn` leads through it to the server of `target`; `folder` holds its socket."""

    def __init__(self, target: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._target = str(Path(str(conninfo_to_dict(target)["host"])) / _NAME)
        self.dsn = make_conninfo(target, host=str(folder))
        self._open, self._over = threading.Event(), False
        self._open.set()
        self._refuses = False
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / _NAME))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Nothing comes through in either direction, and nobody is told."""
        self._open.clear()

    def break_off(self) -> None:
        """Every connection ends, and no new one comes about."""
        self._refuses = True
        for pair in self._pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def heal(self) -> None:
        """As before; what was held back comes now."""
        self._refuses = False
        self._open.set()

    def close(self) -> None:
        """The end."""
        self._over = True
        self._open.set()
        self._listener.close()
        self.break_off()

    def _accept(self) -> None:
        while not self._over:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refuses:
                client.close()
                continue
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._target)
            self._pairs.append((client, server))
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._open.wait()
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
