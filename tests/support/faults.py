"""Faults between a storage and S3, which the proxy injects."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.etree import ElementTree

from botocore.credentials import RefreshableCredentials

from tests.support.proxy import Handler, Proxy, Request
from tests.support.servers import Server

# In seconds. It is longer than any time limit that a test sets, and short enough for a
# test that hangs.
PATIENCE = 20

Victim = Callable[[str], bool]


class Fault:
    """A fault of requests of one kind to the keys for which `victim` returns True.

    It applies to the first `times` requests for each key, or to all of them if `times`
    is 0. Subclasses implement `harm`, which returns True if it has answered the
    request, or False to pass it on.
    """

    kind = "PUT"

    def __init__(self, victim: Victim = lambda key: True, times: int = 0) -> None:
        self._victim = victim
        self._times = times
        self._lock = threading.Lock()
        self.harmed: Counter[str] = Counter()

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        return self._hits(request) and self.harm(handler, body)

    def harm(self, handler: Handler, body: bytes) -> bool:
        """Inject the fault into one request; return whether it has been answered."""
        raise NotImplementedError

    @contextmanager
    def in_force(self, proxy: Proxy) -> Iterator[None]:
        """Inject the fault until the block ends."""
        proxy.fault = self
        try:
            yield
        finally:
            proxy.fault = proxy.early_fault = None

    def _hits(self, request: Request) -> bool:
        if request.kind != self.kind or not self._victim(request.key):
            return False
        with self._lock:
            if self._times and self.harmed[request.key] >= self._times:
                return False
            self.harmed[request.key] += 1
            return True


class Refusal(Fault):
    """An error response in S3's format."""

    def __init__(
        self,
        status: int,
        code: str,
        victim: Victim = lambda key: True,
        times: int = 0,
        **headers: str,
    ) -> None:
        super().__init__(victim, times)
        self._answer = (status, code, "injected")
        self._headers = tuple((k.replace("_", "-"), v) for k, v in headers.items())

    def harm(self, handler: Handler, body: bytes) -> bool:
        handler.error(*self._answer, headers=self._headers)
        return True


class Several(Fault):
    """A combination of faults, each for its own keys."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__()
        self.faults = faults

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        return any(fault(handler, request, body) for fault in self.faults)

    @contextmanager
    def in_force(self, proxy: Proxy) -> Iterator[None]:
        with ExitStack() as stack:
            for fault in self.faults:
                stack.enter_context(fault.in_force(proxy))
            proxy.fault = self
            yield
            for fault in self.faults:
                self.harmed.update(fault.harmed)


class ResetInBody(Fault):
    """A connection that is reset while the client sends the body."""

    @contextmanager
    def in_force(self, proxy: Proxy) -> Iterator[None]:
        with super().in_force(proxy):
            proxy.fault, proxy.early_fault = None, self._early
            yield

    def _early(self, handler: Handler, request: Request) -> bool:
        hit = self._hits(request)
        if hit:
            handler.rfile.read(int(request.headers["content-length"]) // 2)
            handler.reset()
        return hit


class LostAnswer(Fault):
    """A connection that is reset after the object was stored, before the response."""

    def harm(self, handler: Handler, body: bytes) -> bool:
        handler.pass_on_silently(body)
        handler.reset()
        return True


class Silence(Fault):
    """A request that has no response until the client's time limit is over.

    A client without a time limit receives it after `PATIENCE`.
    """

    def __init__(self, victim: Victim = lambda key: True, times: int = 0) -> None:
        super().__init__(victim, times)
        self._over = threading.Event()

    def harm(self, handler: Handler, body: bytes) -> bool:
        if self._over.wait(PATIENCE):
            handler.reset()
        else:
            handler.pass_on(body)
        return True

    @contextmanager
    def in_force(self, proxy: Proxy) -> Iterator[None]:
        with super().in_force(proxy):
            try:
                yield
            finally:
                self._over.set()


class Damage(Fault):
    """A change of the last byte of a body, before it reaches the server."""

    def harm(self, handler: Handler, body: bytes) -> bool:
        handler.pass_on(body[:-1] + bytes([body[-1] ^ 1]))
        return True


class OtherRegion(Fault):
    """A bucket in another region than the client assumes.

    S3 names the right region in a header of the error response. This fault does so if
    it `tells`.
    """

    region = "eu-central-1"

    def __init__(self, status: int, kinds: set[str], *, tells: bool = True) -> None:
        super().__init__()
        self._status = status
        self._kinds = kinds
        self._tells = tells

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        if f"/{self.region}/" in request.headers["authorization"]:
            return False
        if request.kind not in self._kinds:
            return False
        self.harmed[request.key] += 1
        code = "PermanentRedirect" if self._status == 301 else "TemporaryRedirect"
        headers = [("x-amz-bucket-region", self.region)] if self._tells else []
        if self._status == 307:
            headers.append(("Location", "http://127.0.0.1:1/elsewhere"))
        handler.error(self._status, code, headers=tuple(headers))
        return True


class ExpiringToken(Fault):
    """A session token that expires after some PUTs.

    It expires after `life` PUTs, or at the first PUT with `at` in its key. The botocore
    credentials of `credentials()` are refreshed here. The real server does not support
    tokens, so valid requests are signed again without one.
    """

    first, second = "token-that-expires", "token-that-is-fresh"

    def __init__(
        self,
        server: Server,
        *,
        life: int = 1000,
        at: str = "",
        refreshable: bool = True,
    ) -> None:
        super().__init__()
        self._at = at
        self._server = server
        self._life = life
        self._refreshable = refreshable
        self.expired = False

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        token = request.headers["x-amz-security-token"]
        with self._lock:
            if request.kind in ("PUT", "POST") and token == self.first:
                found = self._at != "" and self._at in request.key
                self.expired |= self._life <= 0 or found
                self._life -= 1
                if self.expired:
                    self.harmed[request.key] += 1
            dead = self.expired and token == self.first
        if dead:
            handler.error(400, "ExpiredToken", "The provided token has expired.")
        else:
            sign_again(handler, self._server, body)
            handler.pass_on(body)
        return True

    def credentials(self) -> RefreshableCredentials:
        """Return credentials for a client, with the token that will expire."""
        return RefreshableCredentials.create_from_metadata(
            self._fresh(), refresh_using=self._fresh, method="test"
        )

    def _fresh(self) -> dict[str, str]:
        """Return credentials that expire soon until they have the second token.

        botocore refreshes credentials that expire soon before each request.
        """
        renewed = self.expired and self._refreshable
        life = timedelta(hours=1) if renewed else timedelta(minutes=5)
        return {
            "access_key": self._server.access_key,
            "secret_key": self._server.secret_key,
            "token": self.second if renewed else self.first,
            "expiry_time": (datetime.now(UTC) + life).isoformat(),
        }


def sign_again(handler: Handler, server: Server, body: bytes) -> None:
    """Sign the request of `handler` in its present form, without a session token."""
    headers = {name.lower(): value for name, value in handler.headers.items()}
    dropped = ("x-amz-security-token", "authorization", "expect", "connection")
    kept = {name: value for name, value in headers.items() if name not in dropped}
    url = f"http://{kept.pop('host')}{handler.path}"
    signed = server.signed(handler.command, url, kept, body)
    for name in ("x-amz-security-token", *signed):
        del handler.headers[name]
    for name, value in signed.items():
        handler.headers[name] = value


class BrokenListing(Fault):
    """A listing with a short first page; `harm` answers the requests for other pages.

    If `broken` is 1, `harm` answers the request for the first page too.
    """

    kind = "LIST"

    def __init__(
        self, harm: Callable[[Handler, bytes], Any], *, broken: int = 2
    ) -> None:
        super().__init__()
        self._harm = harm
        self._broken = broken

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind != "LIST":
            return False
        if self._broken == 2 and not {*request.query} & {
            "continuation-token",
            "start-after",
        }:
            first_page(handler, body)
        else:
            self.harmed[request.key] += 1
            self._harm(handler, body)
        return True


def first_page(handler: Handler, body: bytes) -> None:
    """Answer with the first three objects of the listing, and a continuation token."""
    status, content, headers = handler.ask(body)
    root = ElementTree.fromstring(content)
    namespace = root.tag.removesuffix("ListBucketResult")
    for entry in root.findall(f"{namespace}Contents")[3:]:
        root.remove(entry)
    for name, text in {"IsTruncated": "true", "NextContinuationToken": "more"}.items():
        found = root.find(f"{namespace}{name}")
        element = ElementTree.SubElement(root, name) if found is None else found
        element.tag, element.text = f"{namespace}{name}", text
    handler.answer(status, ElementTree.tostring(root), headers)
