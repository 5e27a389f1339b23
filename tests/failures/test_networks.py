"""Poor networks and busy servers: throttling, slow lines, resets and silence.

The tests count requests and bytes, and not seconds, because times depend on the
machine. `make bench NETWORKS=1` measures times.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import deque
from itertools import pairwise

import pytest
from botocore.config import Config
from django.core.management.base import CommandError

from tests.support.proxy import Handler, Request
from tests.support.site import Site

pytestmark = [pytest.mark.slow, pytest.mark.covering]

KB = 1000


class Limit:
    """A fault that accepts `rate` PUTs in any second, and refuses the others."""

    def __init__(
        self, rate: int, status: int, code: str, *headers: tuple[str, str]
    ) -> None:
        self.rate = rate
        self.status = status
        self.code = code
        self.headers = headers
        self.taken: deque[float] = deque()
        self.lock = threading.Lock()
        self.refused = 0

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind != "PUT":
            return False
        with self.lock:
            now = time.monotonic()
            while self.taken and self.taken[0] < now - 1:
                self.taken.popleft()
            # At least one PUT is refused, even if a slow machine stays below the rate.
            is_full = len(self.taken) == self.rate // 2 and not self.refused
            if len(self.taken) < self.rate and not is_full:
                self.taken.append(now)
                return False
            self.refused += 1
        handler.error(self.status, self.code, headers=self.headers)
        return True


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (503, "SlowDown"),
        (429, "TooManyRequests"),
        (503, "RequestLimitExceeded"),
        (400, "Throttling"),
    ],
)
def test_throttled(site: Site, way: str, status: int, code: str) -> None:
    """All files are uploaded despite throttling, with at most 10 % more requests."""
    files = site.write_many(240)
    site.proxy.fault = limit = Limit(80, status, code)
    site.collect()
    assert site.bucket.files() == files
    assert limit.refused > 0
    assert len(site.put()) <= 1.1 * len(files)


def test_throttled_heads(site: Site) -> None:
    """Throttled HEAD requests are sent again, and each file counts as unchanged."""
    files = site.write_many(120)
    site.collect()
    site.options["collectfast_preload"] = False
    site.settings["CACHES"] = {
        "default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}
    }
    left = 5

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        nonlocal left
        throttles = request.kind == "HEAD" and left > 0
        if throttles:
            left -= 1
            handler.error(503, "SlowDown")
        return throttles

    site.proxy.fault = fault
    deploy = site.collect()
    assert deploy.put == []
    assert deploy.requests == {"HEAD": len(files) + 5}


def test_slow_line(site: Site, way: str) -> None:
    """Uploads through a line of 400 kB/s do not time out because of each other.

    The deploy therefore sends hardly more bytes than the files contain.
    """
    files = {f"{n}.bin": os.urandom(100 * KB) for n in range(24)}
    site.write_all(files)
    site.options["client_config"] = Config(read_timeout=2)
    line = threading.Lock()
    uploaded: list[int] = []

    def slowly(handler: Handler, request: Request, body: bytes) -> bool:
        for _ in range(0, len(body), 10 * KB):
            with line:  # All uploads share one line.
                time.sleep(0.025)
        uploaded.append(len(body))
        return False

    site.proxy.fault = slowly
    site.collect()
    assert site.bucket.files() == files
    assert sum(uploaded) <= 1.05 * sum(map(len, files.values()))


def test_every_tenth_connection_is_reset(site: Site, way: str) -> None:
    """All files are uploaded if every tenth upload is reset, even repeatedly."""
    files = site.write_many(150)
    lock = threading.Lock()
    count = 0

    def reset(handler: Handler, request: Request, body: bytes) -> bool:
        nonlocal count
        if request.kind != "PUT":
            return False
        with lock:
            count += 1
            is_hit = count % 10 == 5
        if is_hit:
            handler.reset()
        return is_hit

    site.proxy.fault = reset
    site.collect()
    assert site.bucket.files() == files
    assert len(site.put()) <= 1.2 * len(files)


@pytest.mark.parametrize("way", ["plain"], indirect=True)
def test_server_sends_retry_after(site: Site, way: str) -> None:
    """No request is sent before the time of a Retry-After header.

    This is tested with boto3 only, because obstore does not report the header.
    """
    site.write_many(30)
    limit = Limit(10, 503, "SlowDown", ("Retry-After", "2"))
    starts: list[float] = []

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        starts.append(time.monotonic())
        return limit(handler, request, body)

    site.proxy.fault = fault
    site.collect()
    assert len(site.bucket.names()) == 30
    pauses = [b - a for a, b in pairwise(starts) if b - a > 1.5]
    assert pauses
    assert limit.refused <= 12


def _never(handler: Handler, request: Request, body: bytes) -> bool:
    if request.kind == "PUT":
        handler.error(503, "SlowDown")
    return request.kind == "PUT"


def test_permanent_throttling(site: Site, way: str) -> None:
    """A deploy that is always throttled ends with one error that gives the reason.

    The error does not repeat the reason for each file, and few requests are sent.
    """
    site.write_many(300)
    site.options["client_config"] = Config(retries={"total_max_attempts": 2})
    site.proxy.fault = _never
    with pytest.raises(CommandError, match="SlowDown") as caught:
        site.collect()
    assert len(str(caught.value).splitlines()) <= 4
    assert len(site.put()) <= 40
    assert site.bucket.names() == []


def test_server_that_stops_responding(site: Site, way: str) -> None:
    """A deploy ends with one error if the server stops responding in the middle.

    The next deploy uploads only the files that are not in the bucket.
    """
    site.write_many(200)
    site.options["client_config"] = Config(
        read_timeout=0.5, connect_timeout=0.5, retries={"total_max_attempts": 2}
    )
    silent = threading.Event()

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind != "PUT" or len(site.put()) < 50:
            return False
        silent.wait(20)
        handler.reset()
        return True

    site.proxy.fault = fault
    try:
        with pytest.raises(CommandError, match=r"(?i)time") as caught:
            site.collect()
    finally:
        silent.set()
    assert len(str(caught.value).splitlines()) <= 4
    assert not re.search("Traceback", str(caught.value))
    site.proxy.fault = None
    del site.options["client_config"]
    arrived = set(site.bucket.names())
    assert arrived
    assert set(site.collect().put) == set(site.bucket.names()) - arrived
