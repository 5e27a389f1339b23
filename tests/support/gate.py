"""A TCP forwarder that can be closed, to simulate a gateway that restarts."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Gate:
    """A forwarder of TCP connections to a port, which fails if its `mode` is not "".

    "refused": nothing listens on the port. "reset": connections are accepted and reset
    immediately. "silent": connections are accepted, and requests have no response.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self.port = 0
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._mode = ""
        self._listen()

    @property
    def mode(self) -> str:
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        was = self._mode
        self._mode = mode
        if mode == "refused":
            self._end_listening()
        elif was == "refused":
            self._listen()
        if mode != was:
            self.cut()

    def cut(self) -> None:
        """Reset all connections."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for each in sockets:
            _reset(each)

    def close(self) -> None:
        """Stop listening, and reset all connections."""
        if self._mode != "refused":
            self._end_listening()
        self.cut()

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=256)
        self.port = self._listener.getsockname()[1]
        threading.Thread(
            target=self._accept, args=(self._listener,), daemon=True
        ).start()

    def _end_listening(self) -> None:
        with suppress(OSError):
            # A shutdown makes a waiting `accept` return; a mere `close` would not.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            if self._mode == "reset":
                _reset(client)
                continue
            with self._lock:
                self._sockets.add(client)
            if self._mode == "silent":
                continue
            server = socket.create_connection(("127.0.0.1", self._target))
            with self._lock:
                self._sockets.add(server)
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=_pump, args=(one, other), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _reset(connection: socket.socket) -> None:
    with suppress(OSError):
        linger = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@contextmanager
def gate(target: int) -> Iterator[Gate]:
    """Run a gate in front of the port `target` until the block ends."""
    running = Gate(target)
    try:
        yield running
    finally:
        running.close()
