"""One request, one answer, whatever the other side makes of HTTP."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from urllib3 import HTTPConnectionPool, Timeout

from collectfast_storage.exchange import Answer, exchange

Act = Callable[[socket.socket, bytes], None]
# Longer than any time limit that a test sets, and no longer than a test may hang.
PATIENCE = 20

STORED = b'HTTP/1.1 200 OK\r\nETag: "stored"\r\nContent-Length: 0\r\n\r\n'
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"


class Peer:
    """A server that does with each request what a list says, in turn."""

    def __init__(self, *acts: Act | bytes) -> None:
        self._acts = list(acts)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.requests: list[bytes] = []
        self.connections = 0
        self.done = threading.Event()

    def serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(
                    target=self._converse, args=(connection,), daemon=True
                ).start()

    def _converse(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while (request := _head_from(connection)) and not self.done.is_set():
                self.requests.append(request)
                act = self._acts.pop(0)
                if isinstance(act, bytes):
                    _finish_reading(connection, request)
                    connection.sendall(act)
                else:
                    act(connection, request)

    def close(self) -> None:
        self.done.set()
        # Closing alone does not wake the thread that accepts.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _head_from(connection: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received and (chunk := connection.recv(65536)):
        received += chunk
    return received


def _finish_reading(connection: socket.socket, request: bytes) -> None:
    head, _, body = request.partition(b"\r\n\r\n")
    rest = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0] or 0)
    rest -= len(body)
    while rest > 0 and (chunk := connection.recv(65536)):
        rest -= len(chunk)


@contextmanager
def peer(*acts: Act | bytes) -> Iterator[Peer]:
    server = Peer(*acts)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join()


def _pool(server: Peer, **limits: float) -> HTTPConnectionPool:
    timeout = Timeout(**({"connect": PATIENCE, "read": PATIENCE} | limits))
    return HTTPConnectionPool("127.0.0.1", server.port, maxsize=1, timeout=timeout)


def _put(
    pool: HTTPConnectionPool, body: bytes = b"content", **headers: str
) -> Answer | None:
    return exchange(pool, "PUT", "/bucket/key", "host", headers, body)


def _reset(connection: socket.socket) -> None:
    """End the connection with a RST, as a machine that restarts does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_answer_is_status_and_headers_and_the_connection_is_used_again() -> None:
    """Two requests, one connection; each with its own answer."""
    with peer(STORED, STORED.replace(b"stored", b"second")) as server:
        pool = _pool(server)
        assert _put(pool) == Answer(200, {"etag": '"stored"', "content-length": "0"})
        second = _put(pool)
    assert second is not None
    assert second.headers["etag"] == '"second"'
    assert server.connections == 1
    assert server.requests[0] == (
        b"PUT /bucket/key HTTP/1.1\r\nhost: host\r\ncontent-length: 7\r\n\r\ncontent"
    )


def test_answer_in_pieces() -> None:
    """However the network cuts it."""

    def byte_by_byte(connection: socket.socket, request: bytes) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(len(STORED)):
            connection.sendall(STORED[number : number + 1])

    with peer(byte_by_byte, STORED) as server:
        pool = _pool(server)
        assert _put(pool) == _put(pool)
    assert server.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nETag: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nETag: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nETag: x\r\nContent-Length: 0\r\nConnection: Close\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nETag: x\r\nContent-Length: 4\r\n\r\nbody",
        b"HTTP/1.1 200 OK\r\nETag: x\r\nContent-Length: 400\r\n\r\nbody",
        b"HTTP/1.1 200 OK\r\nETag: x\r\nContent-Length: 0\r\n\r\n" + BUSY,
        BUSY + STORED,
    ],
    ids=["length", "chunked", "close", "body", "more body", "surplus", "two"],
)
def test_what_comes_after_an_answer_is_not_the_next_answer(answer: bytes) -> None:
    """A body, or what nobody asked for: the connection is not used again."""
    with peer(answer, STORED) as server:
        pool = _pool(server)
        first = _put(pool)
        assert first is not None
        assert first.status == (503 if answer.startswith(BUSY) else 200)
        second = _put(pool)
    assert second is not None
    assert second.headers["etag"] == '"stored"'
    assert server.connections == 2


@pytest.mark.parametrize("method", ["PUT", "HEAD"])
def test_what_comes_late_is_not_the_next_answer_either(method: str) -> None:
    """Also if it came when nobody was listening any more."""
    answered, sent = threading.Event(), threading.Event()

    def twice(connection: socket.socket, request: bytes) -> None:
        connection.sendall(STORED)
        answered.wait(PATIENCE)
        connection.sendall(STORED.replace(b"stored", b"of another"))
        sent.set()

    with peer(twice, STORED) as server:
        pool = _pool(server)
        assert exchange(pool, method, "/bucket/key", "host", {}, b"") is not None
        answered.set()
        sent.wait(PATIENCE)
        second = _put(pool)
    assert second is not None
    assert second.headers["etag"] == '"stored"'


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\r\n\r\n",
        b"garbage\r\n\r\n",
        b"<html>no server of files</html>\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 \r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 OK 200\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/2 200\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + STORED,
        b"HTTP/1.1 200 OK\nETag: x\n\n",
        STORED[:-2],
        b"\x16\x03\x01\xff\xfe",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    ],
)
def test_what_is_no_plain_answer_is_none(answer: bytes) -> None:
    """No exception, nothing half believed; and the next request is as good as new."""

    def say_and_close(connection: socket.socket, request: bytes) -> None:
        with suppress(OSError):
            connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)

    with peer(say_and_close, STORED) as server:
        pool = _pool(server)
        assert _put(pool) is None
        assert _put(pool) is not None
    assert server.connections == 2


@pytest.mark.parametrize("said", [b"", STORED[:20]])
def test_connection_that_is_reset(said: bytes) -> None:
    """Before its answer, or in the middle of it."""

    def reset(connection: socket.socket, request: bytes) -> None:
        connection.sendall(said)
        _reset(connection)

    with peer(reset, STORED) as server:
        pool = _pool(server)
        assert _put(pool) is None
        assert _put(pool) is not None


def test_connection_that_the_server_closed_meanwhile() -> None:
    """As servers do with those that were idle for a while: another one is made."""
    closed = threading.Event()

    def answer_and_close(connection: socket.socket, request: bytes) -> None:
        connection.sendall(STORED)
        connection.shutdown(socket.SHUT_RDWR)
        closed.set()

    with peer(answer_and_close, STORED) as server:
        pool = _pool(server)
        assert _put(pool) is not None
        closed.wait(PATIENCE)
        assert _put(pool) is not None
    assert server.connections == 2


BODY = b"x" * 32 * 1024 * 1024  # More than the buffers in between can hold.
EARLY = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"


def test_refusal_before_the_body_is_read() -> None:
    """A server that says no at once and hangs up: none, and no exception."""

    def refuse(connection: socket.socket, request: bytes) -> None:
        connection.sendall(EARLY)
        _reset(connection)

    with peer(refuse, STORED) as server:
        pool = _pool(server)
        assert _put(pool, BODY) is None
        assert _put(pool) is not None


def test_refusal_before_the_body_is_read_to_its_end() -> None:
    """A server that says no at once and reads on: that is the answer."""

    def refuse(connection: socket.socket, request: bytes) -> None:
        connection.sendall(EARLY)
        _finish_reading(connection, request)

    with peer(refuse) as server:
        answer = _put(_pool(server), BODY)
    assert answer is not None
    assert answer.status == 403


def test_body_that_nobody_reads_does_not_take_for_ever() -> None:
    """The client's time limit holds for sending too."""

    def read_too_late(connection: socket.socket, request: bytes) -> None:
        server.done.wait(PATIENCE)
        _finish_reading(connection, request)
        connection.sendall(STORED)

    with peer(read_too_late) as server:
        assert _put(_pool(server, read=0.1), BODY) is None


def test_answer_that_never_comes() -> None:
    """The time limit is that of the client's own configuration."""

    def answer_too_late(connection: socket.socket, request: bytes) -> None:
        server.done.wait(PATIENCE)
        connection.sendall(STORED)

    with peer(answer_too_late) as server:
        assert _put(_pool(server, read=0.1)) is None


def test_connection_that_never_comes() -> None:
    """The same for connecting, where a server has no place for another one."""
    with FullHouse() as listener:
        assert _put(_pool(listener, connect=0.1)) is None


class FullHouse(Peer):
    """A server that accepts nobody until it is too late."""

    def __init__(self) -> None:
        super().__init__(STORED)
        self._listener.listen(0)
        self._waiting: list[socket.socket] = []

    def __enter__(self) -> FullHouse:
        for _ in range(3):  # What is not accepted fills the little room there is.
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", self.port))
            self._waiting.append(waiting)
        self._timer = threading.Timer(PATIENCE, self.serve)
        self._timer.daemon = True
        self._timer.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._timer.cancel()
        for waiting in self._waiting:
            waiting.close()
        self.close()


@pytest.mark.parametrize(
    "value", ["a\nb", "a\rb", "a\r\nb: c", "a\r\n\r\nPUT /other", "a\n", "\r\n", "文"]
)
def test_header_that_would_be_two_is_not_sent(value: str) -> None:
    """A line break in a key or a token, which came with it from some file."""
    with peer(STORED) as server:
        assert _put(_pool(server), token=value) is None
    assert server.connections == 0


def test_nobody_there() -> None:
    with peer() as server:
        pool = _pool(server)
    assert _put(pool) is None
