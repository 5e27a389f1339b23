"""What may go wrong between a storage and S3, put to work in the proxy."""

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

# Longer than any time limit that a test sets, and no longer than a test may hang.
PATIENCE = 20

Victim = Callable[[str], bool]


class Fault:
    """Harms requests, of each of its victims the first `times` (0: all of them).

    What a subclass does to one is told by `harm`, which returns whether it did
    anything; it may leave a request be.
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
        raise NotImplementedError

    @contextmanager
    def in_force(self, proxy: Proxy) -> Iterator[None]:
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
    """An error in S3's words."""

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
    """Faults that each have victims of their own."""

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
    """The connection goes while the body is being sent."""

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
    """The object is stored, but nobody hears of it."""

    def harm(self, handler: Handler, body: bytes) -> bool:
        handler.pass_on_silently(body)
        handler.reset()
        return True


class Silence(Fault):
    """The answer never comes; or, for those who have all day, it does."""

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
    """The server gets other bytes than were sent."""

    def harm(self, handler: Handler, body: bytes) -> bool:
        handler.pass_on(body[:-1] + bytes([body[-1] ^ 1]))
        return True


class OtherRegion(Fault):
    """The bucket is in a region that only an answer tells of, as S3 does."""

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
    """The token that credentials have at first is worth nothing after some PUTs.

    After `life` of them, or when one comes with `at` in its key. `credentials` are
    botocore's, and ask here for fresh ones. The server knows nothing of tokens: what
    passes is signed again without.
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
        return RefreshableCredentials.create_from_metadata(
            self._fresh(), refresh_using=self._fresh, method="test"
        )

    def _fresh(self) -> dict[str, str]:
        """Credentials that botocore asks for anew each time, until they are new."""
        renewed = self.expired and self._refreshable
        life = timedelta(hours=1) if renewed else timedelta(minutes=5)
        return {
            "access_key": self._server.access_key,
            "secret_key": self._server.secret_key,
            "token": self.second if renewed else self.first,
            "expiry_time": (datetime.now(UTC) + life).isoformat(),
        }


def sign_again(handler: Handler, server: Server, body: bytes) -> None:
    """Sign what came to `handler` as it is by now, without a token."""
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
    """The first page of a listing is a short one, and `harm` befalls all others.

    Or, from the page `broken` 1 on, all of them.
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
    """Answer as a server with pages of three objects does."""
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
