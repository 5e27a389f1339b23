"""A proxy that records requests to S3 and, for tests, injects faults.

Clients connect to it by TLS, as they do to S3.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import struct
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support import certificates


@dataclass(frozen=True)
class Request:
    """A request that a client sent to the proxy."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]

    @property
    def kind(self) -> str:
        """The type of the request: LIST, DELETE MANY, or else the HTTP method."""
        if self.method == "GET" and "/" not in self.path.strip("/"):
            return "LIST"
        if self.method == "POST" and "delete" in self.query:
            return "DELETE MANY"
        return self.method

    @property
    def key(self) -> str:
        return self.path.removeprefix("/").partition("/")[2]


# A function that may answer a request in place of the server, or change it before it
# is passed on. It returns True if it has answered, and False to pass the request on.
Fault = Callable[["Handler", Request, bytes], bool]
Sign = Callable[[str, str, dict[str, str], bytes], dict[str, str]]
# The same, but called before the body of the request is read.
EarlyFault = Callable[["Handler", Request], bool]


def refuse(
    kind: str, part: str = "", message: str = "injected", code: str = "AccessDenied"
) -> Fault:
    """Return a fault that answers 403 to requests of `kind` with `part` in the key."""

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        refused = request.kind == kind and part in request.key
        if refused:
            handler.error(403, code, message)
        return refused

    return fault


def meanwhile(
    kind: str, act: Callable[[], object], part: str = "", *, after: bool = False
) -> Fault:
    """Return a fault that calls `act` before each request of `kind`.

    It simulates another program that works at the same time, and applies to keys that
    end with `part`. If `after`, `act` is called when the server has answered the
    request, but before the client receives the answer, so that the client cannot go on
    first.
    """

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind != kind or not request.key.endswith(part):
            return False
        answer = handler.ask(body) if after else None
        act()
        if answer is not None:
            handler.answer(*answer)
        return answer is not None

    return fault


class Handler(BaseHTTPRequestHandler):
    """The handler of one client's connection to the proxy."""

    protocol_version = "HTTP/1.1"
    server: Proxy
    disable_nagle_algorithm = True
    timeout = 30

    def setup(self) -> None:
        super().setup()
        # The connection counts from before the handshake, because the client's requests
        # may already be waiting behind it.
        self.server.connections.add(self.client_address)
        if isinstance(self.connection, ssl.SSLSocket):
            try:
                # The handshake is made in this thread so that the thread that accepts
                # connections does not have to wait for it.
                self.connection.do_handshake()
            except OSError:
                self.rfile.close()
                self.server.connections.discard(self.client_address)
                raise
        self.upstream = self.server.connection()

    def finish(self) -> None:
        super().finish()
        self.upstream.close()
        self.server.connections.discard(self.client_address)

    def handle_any(self) -> None:
        request = self._request()
        self.server.seen(request)
        early, fault = self.server.early_fault, self.server.fault
        if early is not None and early(self, request):
            return
        body = self._body()
        if fault is None or not fault(self, request, body):
            self.pass_on(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    def pass_on(self, body: bytes) -> None:
        """Send the request to the server, and its answer to the client."""
        self.answer(*self.ask(body))

    def pass_on_silently(self, body: bytes) -> None:
        """Send the request to the server, and no answer to the client."""
        self.ask(body)

    def ask(self, body: bytes) -> tuple[int, bytes, list[tuple[str, str]]]:
        """Send the request to the server; return the status, body and headers."""
        self.upstream.putrequest(
            self.command, self.path, skip_host=True, skip_accept_encoding=True
        )
        for name, value in self._headers(body).items():
            if name.lower() not in ("expect", "connection", "transfer-encoding"):
                self.upstream.putheader(name, value)
        if "transfer-encoding" in self.headers:
            self.upstream.putheader("Content-Length", str(len(body)))
        self.upstream.endheaders(body)
        response = self.upstream.getresponse()
        return response.status, response.read(), response.getheaders()

    def _headers(self, body: bytes) -> dict[str, str]:
        """Return the headers for the server.

        The client signed the request for the proxy's host name. If the server has to
        see its own, the request is signed again.
        """
        headers = {name.lower(): value for name, value in self.headers.items()}
        signature = headers.get("authorization", "")
        if self.server.sign is None or not signature:
            return headers
        names = signature.partition("SignedHeaders=")[2].partition(",")[0].split(";")
        to_sign = {name: headers.pop(name) for name in names if name in headers}
        del headers["authorization"], to_sign["host"]
        url = f"{self.server.upstream}{self.path}"
        signed = self.server.sign(self.command, url, to_sign, body)
        return {"host": urlsplit(url).netloc, **headers, **signed}

    def answer(
        self, status: int, body: bytes, headers: list[tuple[str, str]] | None = None
    ) -> None:
        self.send_response_only(status)
        lengths = [v for k, v in headers or [] if k.lower() == "content-length"]
        for name, value in headers or []:
            if name.lower() not in (
                "connection",
                "transfer-encoding",
                "content-length",
            ):
                self.send_header(name, value)
        length = lengths[0] if self.command == "HEAD" and lengths else str(len(body))
        if status not in (204, 304):
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reset(self) -> None:
        """Reset the TCP connection without an answer."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()
        self.rfile.close()

    def error(
        self,
        status: int,
        code: str,
        message: str = "injected",
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Answer with an error in S3's format."""
        text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        body = f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode()
        self.answer(status, body, [("Content-Type", "application/xml"), *headers])

    def _request(self) -> Request:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query, keep_blank_values=True)
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Request(self.command, unquote(parts.path), query, headers)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return b"".join(iter(self._chunk, b""))
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:
            # The request is not passed on, because the server would wait for the rest.
            raise ConnectionError("The client has gone.")
        return body

    def _chunk(self) -> bytes:
        chunk = self.rfile.read(int(self.rfile.readline().split(b";")[0], 16))
        self.rfile.readline()
        return chunk

    def log_message(self, format: str, *args: object) -> None:
        pass


class Proxy(ThreadingHTTPServer):
    """A proxy that records requests, and injects the faults that a test sets."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self,
        upstream: str,
        sign: Sign | None = None,
        context: ssl.SSLContext | None = None,
        authority: Path | None = None,
        trusted: str | None = None,
    ) -> None:
        """Pass requests on to `upstream`.

        With a `context`, clients connect by TLS, and have to trust the CA in the file
        `authority`. The file
        `trusted` contains the CA of the server's certificate.
        """
        parts = urlsplit(upstream)
        self._upstream_context = ssl.create_default_context(cafile=trusted)
        self.context = context
        self.authority = authority
        # Only a server behind TLS may insist on a signature for its own host name.
        self.sign = sign if parts.scheme == "https" else None
        self.upstream = f"{parts.scheme}://{parts.netloc}"
        super().__init__(("127.0.0.1", 0), Handler)
        self._lock = threading.Lock()
        self.connections: set[tuple[str, int]] = set()  # of clients, by their address
        self.reset()

    @property
    def endpoint(self) -> str:
        scheme = "https" if self.context else "http"
        return f"{scheme}://127.0.0.1:{self.server_port}"

    @property
    def trust(self) -> dict[str, str]:
        """The option of a storage or boto3 client that makes it trust this proxy."""
        return {"verify": str(self.authority)} if self.authority else {}

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        with self._lock:
            self.accepted += 1
        if self.context is not None:
            connection = self.context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def connection(self) -> http.client.HTTPConnection:
        """Return a new connection to the server."""
        parts = urlsplit(self.upstream)
        assert parts.hostname
        if parts.scheme == "https":
            context = self._upstream_context
            return http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=60, context=context
            )
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)

    def reset(self) -> None:
        """Delete the recorded requests, and remove the faults."""
        with self._lock:
            self.accepted = 0  # TCP connections, including failed handshakes
            self.requests: list[Request] = []
            self.fault: Fault | None = None
            self.early_fault: EarlyFault | None = None

    def seen(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def count(self) -> Counter[str]:
        """Return the number of requests of each kind."""
        with self._lock:
            return Counter(request.kind for request in self.requests)

    def keys(self, kind: str) -> list[str]:
        """Return the keys of the requests of `kind`, sorted."""
        with self._lock:
            return sorted(r.key for r in self.requests if r.kind == kind)

    def handle_error(self, request: object, client_address: object) -> None:
        """Print no traceback if a client hangs up, because some tests make it do so."""


@contextmanager
def proxy(
    upstream: str,
    sign: Sign | None = None,
    *,
    tls: bool = True,
    host: str = "127.0.0.1",
    trusted: str | None = None,
) -> Iterator[Proxy]:
    """Run a proxy in front of the server `upstream` until the block ends.

    Clients sign their requests for the proxy's host name. If the server is behind TLS,
    the function `sign` signs each request again. It takes method, URL, headers and
    body, and returns headers. The proxy's certificate is made for `host`. Without `tls`
    it has no certificate. The file `trusted` contains the CA of the server's
    certificate, if that is not a public one.
    """
    with tempfile.TemporaryDirectory(prefix="certificates-") as directory:
        context = authority = None
        if tls:
            authority, own = certificates.make(Path(directory), host)
            context = certificates.server_context(own)
        server = Proxy(upstream, sign, context, authority, trusted)
        thread = threading.Thread(
            target=server.serve_forever, args=(0.05,), daemon=True
        )
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
