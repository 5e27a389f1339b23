"""A hand-written HTTP proxy that sees, counts and (for tests) spoils requests to S3."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]

    @property
    def kind(self) -> str:
        """What S3 calls it, near enough: LIST, HEAD, GET, PUT, DELETE, …"""
        if self.method == "GET" and "/" not in self.path.strip("/"):
            return "LIST"
        if self.method == "POST" and "delete" in self.query:
            return "DELETE MANY"
        return self.method

    @property
    def key(self) -> str:
        return self.path.removeprefix("/").partition("/")[2]


# Called with the handler, to answer in place of the server or to spoil what it is told;
# returns True if it has done so.
Fault = Callable[["Handler", Request, bytes], bool]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy
    disable_nagle_algorithm = True
    timeout = 30

    def setup(self) -> None:
        super().setup()
        self.upstream = http.client.HTTPConnection(*self.server.upstream, timeout=60)

    def finish(self) -> None:
        super().finish()
        self.upstream.close()

    def handle_any(self) -> None:
        request = self._request()
        body = self._body()
        self.server.seen(request)
        fault = self.server.fault
        if fault is None or not fault(self, request, body):
            self.pass_on(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    def pass_on(self, body: bytes) -> None:
        """Ask the server, and answer with what it says."""
        self.answer(*self._ask(body))

    def pass_on_silently(self, body: bytes) -> None:
        """Ask the server, and keep its answer."""
        self._ask(body)

    def _ask(self, body: bytes) -> tuple[int, bytes, list[tuple[str, str]]]:
        self.upstream.putrequest(
            self.command, self.path, skip_host=True, skip_accept_encoding=True
        )
        for name, value in self.headers.items():
            if name.lower() not in ("expect", "connection", "transfer-encoding"):
                self.upstream.putheader(name, value)
        if "transfer-encoding" in self.headers:
            self.upstream.putheader("Content-Length", str(len(body)))
        self.upstream.endheaders(body)
        response = self.upstream.getresponse()
        return response.status, response.read(), response.getheaders()

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

    def error(self, status: int, code: str, message: str = "injected") -> None:
        """Answer with an error as S3 words it."""
        text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        body = f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode()
        self.answer(status, body, [("Content-Type", "application/xml")])

    def _request(self) -> Request:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query, keep_blank_values=True)
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Request(self.command, unquote(parts.path), query, headers)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return b"".join(iter(self._chunk, b""))
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _chunk(self) -> bytes:
        chunk = self.rfile.read(int(self.rfile.readline().split(b";")[0], 16))
        self.rfile.readline()
        return chunk

    def log_message(self, format: str, *args: object) -> None:
        pass


class Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        assert parts.hostname and parts.port
        self.upstream = (parts.hostname, parts.port)
        super().__init__(("127.0.0.1", 0), Handler)
        self._lock = threading.Lock()
        self.reset()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def reset(self) -> None:
        """Forget the requests seen, and inject no more faults."""
        with self._lock:
            self.requests: list[Request] = []
            self.fault: Fault | None = None

    def seen(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def count(self) -> Counter[str]:
        """How many requests of each kind there were."""
        with self._lock:
            return Counter(request.kind for request in self.requests)

    def keys(self, kind: str) -> list[str]:
        """The keys of the requests of `kind`, sorted."""
        with self._lock:
            return sorted(r.key for r in self.requests if r.kind == kind)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up: some tests make them."""


@contextmanager
def proxy(upstream: str) -> Iterator[Proxy]:
    """Stand between clients and the server `upstream` as long as the block lasts."""
    server = Proxy(upstream)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
