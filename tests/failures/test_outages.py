"""Outages of a gateway or server, in each state and at each phase of a deploy."""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.config import Config

from collectfast_storage.exceptions import BucketError, UploadError
from tests.support.gate import Gate, gate
from tests.support.proxy import Handler, Request
from tests.support.site import MANIFEST, Site
from tests.support.transfers import IN_PARTS, MIB

pytestmark = [pytest.mark.slow, pytest.mark.covering]

NO_CACHE = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
STATES = ["refused", "reset", "silent", "503", "500", "name"]
PHASES = ["manifest", "LIST", "HEAD", "PUT", "part", "DELETE"]


class Outage:
    """A fault that begins with the `number`th request that `matches`.

    It lasts for some seconds.
    """

    def __init__(
        self,
        site: Site,
        gateway: Gate,
        state: str,
        matches: Callable[[Request], bool],
        seconds: float,
        number: int = 1,
    ) -> None:
        self.gateway = gateway
        self.state = state
        self.matches = matches
        self.seconds = seconds
        self.left = number
        self.begin = float("inf")
        self.lock = threading.Lock()
        self.requests = 0  # during the outage
        site.proxy.fault = self

    @property
    def is_on(self) -> bool:
        return 0 <= time.monotonic() - self.begin < self.seconds

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        with self.lock:
            self.left -= self.matches(request)
            begins = self.left <= 0 and self.begin == float("inf")
            if begins:
                self.begin = time.monotonic()
        if self.state in ("503", "500"):
            if self.is_on:
                self.requests += not begins
                handler.error(int(self.state), "Trouble")
            return self.is_on
        if begins:
            timer = threading.Timer(self.seconds, setattr, [self.gateway, "mode", ""])
            timer.daemon = True
            timer.start()
            self.gateway.mode = self.state  # This also resets this connection.
        return begins


@pytest.fixture
def gateway(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Yield a gateway between the site and its server.

    In the mode "name", its host name cannot be resolved.
    """
    port = urlsplit(site.proxy.endpoint).port
    assert port is not None
    original = socket.getaddrinfo
    with gate(port) as running:

        def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
            if running.mode == "name" and port == running.port:
                raise socket.gaierror(-3, "Temporary failure in name resolution")
            return original(host, port, *args, **kwargs)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        site.options |= {
            "endpoint_url": site.proxy.endpoint.replace(str(port), str(running.port)),
            "client_config": Config(read_timeout=1, connect_timeout=1),
            "collectfast_retry_timeout": 20,
        }
        yield running


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("state", STATES)
def test_outage_delays_a_deploy_and_does_not_end_it(
    site: Site, gateway: Gate, state: str, phase: str
) -> None:
    """A deploy succeeds with all files although an outage interrupts it."""
    arguments: list[str] = []

    def matches(request: Request) -> bool:
        if phase == "manifest":
            return request.key.endswith("staticfiles.json")
        if phase == "part":
            return request.query.get("partNumber") == ["2"]
        return request.kind.startswith(phase)

    files = site.write_many(12)
    if phase == "manifest":
        site.backend = MANIFEST
        site.collect()
    elif phase == "HEAD":
        site.collect()
        site.options["collectfast_preload"] = False
        site.settings["CACHES"] = NO_CACHE
    elif phase == "DELETE":
        site.bucket.put("left over.txt", b"x")
        arguments.append("--clear")
    elif phase == "part":
        site.options["transfer_config"] = IN_PARTS
        files["large.bin"] = bytes(11 * MIB)
        site.write("large.bin", files["large.bin"])
    number = 5 if phase == "PUT" else 1
    outage = Outage(site, gateway, state, matches, 0.8, number)
    site.collect(*arguments)
    assert outage.begin < time.monotonic()
    stored = site.bucket.files()
    assert {name: stored.get(name) for name in files} == files
    assert "left over.txt" not in stored


@pytest.mark.parametrize("state", ["refused", "503"])
@pytest.mark.parametrize("mode", ["legacy", "standard", "adaptive"])
def test_retry_mode_of_boto3_does_not_matter(
    site: Site, gateway: Gate, mode: str, state: str
) -> None:
    """A deploy survives an outage in each of boto3's retry modes.

    boto3's number of attempts and its quota of retries do not matter, either.
    """
    retries: Any = {"mode": mode, "total_max_attempts": 1}
    site.options["client_config"] = Config(read_timeout=1, retries=retries)
    files = site.write_many(60)
    Outage(site, gateway, state, lambda request: request.kind == "PUT", 2, number=20)
    site.collect()
    assert site.bucket.files() == files


def test_outage_is_logged_when_it_begins_and_ends(
    site: Site, gateway: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage causes one message when it begins, and one when it ends.

    Few requests are sent between them.
    """
    site.write_many(100)
    outage = Outage(
        site, gateway, "500", lambda request: request.kind == "PUT", 3, number=40
    )
    with caplog.at_level(logging.INFO, logger="collectfast_storage"):
        site.collect()
    texts = [each.getMessage() for each in caplog.records]
    waiting = [text for text in texts if "No request to bucket" in text]
    assert waiting == [
        "No request to bucket 'tests' succeeds (500 Trouble); retrying for up to 20 s."
    ]
    assert sum("succeed again after" in text for text in texts) == 1
    # Up to 64 uploads were running when the outage began. All others are probes.
    assert outage.requests <= 64 + 10


@pytest.mark.parametrize(
    ("state", "text"), [("refused", "Could not connect"), ("500", r"\(Trouble\)")]
)
def test_error_contains_the_duration_of_the_retries(
    site: Site, gateway: Gate, state: str, text: str
) -> None:
    """An outage that does not end is a BucketError with the duration of the retries.

    The next deploy uploads the missing files.
    """
    site.options["collectfast_retry_timeout"] = 1
    site.write_many(30)
    Outage(site, gateway, state, lambda request: request.kind == "PUT", 60, 10)
    with pytest.raises(BucketError, match=text + r".* \(No request succeeded for \d"):
        site.collect()
    gateway.mode = ""
    site.proxy.fault = None
    missing = 30 - len(site.bucket.names())
    requests = site.collect().requests
    assert requests["LIST"] == 1
    # Uploads that were stored, but whose responses were lost, are repeated.
    assert requests["PUT"] == missing or state == "refused"
    assert requests["PUT"] >= missing > 0


@pytest.mark.parametrize("threads", [0, 64])
@pytest.mark.parametrize("fails", ["500", "cut", "403"])
def test_large_file_that_always_fails_does_not_stop_the_others(
    site: Site, fails: str, threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A large file that always fails is the only one that the error names.

    All other files are uploaded.
    """
    site.options |= {
        "transfer_config": IN_PARTS,
        "collectfast_retry_timeout": 1,
        "collectfast_threads": threads,
    }
    files = site.write_many(40)
    site.write("a large.bin", bytes(36 * MIB))

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        part = request.query.get("partNumber")
        if part is None or (fails == "403" and part != ["2"]):
            return False
        if fails == "cut":
            handler.close_connection = True
        else:
            handler.error(int(fails), "Trouble")
        return True

    site.proxy.fault = fault
    with pytest.raises(UploadError) as caught:
        site.collect()
    assert {*caught.value.failures} == {"a large.bin"}
    assert site.bucket.files() == files
    # The other parts end when one part is refused, which is not an outage.
    assert fails != "403" or "No request to bucket" not in caplog.text


def test_head_that_always_fails_does_not_stop_the_others(site: Site) -> None:
    """A file is uploaded if its HEAD request always fails.

    Without the response it is not known if the object is unchanged. All other files
    are not uploaded again.
    """
    site.options |= {"collectfast_preload": False, "collectfast_retry_timeout": 1}
    site.settings["CACHES"] = NO_CACHE
    site.write_many(10)
    site.collect()

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        is_one = request.kind == "HEAD" and request.key.endswith("file3.txt")
        if is_one:
            handler.error(500, "InternalError")
        return is_one

    site.proxy.fault = fault
    assert site.collect().put == ["dir3/file3.txt"]


@pytest.mark.parametrize(
    ("state", "threads", "parts"),
    [("refused", 64, 0), ("silent", 64, 0), ("refused", 0, 0), ("500", 0, 8)],
)
def test_interrupt_during_an_outage(
    site: Site, gateway: Gate, state: str, threads: int, parts: int
) -> None:
    """Ctrl-C ends the command within a second during an outage."""
    site.options["collectfast_threads"] = threads
    if parts:
        site.options["transfer_config"] = IN_PARTS
        site.write("a.bin", bytes(parts * 5 * MIB))
    site.write_many(30)
    first = "partNumber" if parts else "x-id"

    def matches(request: Request) -> bool:
        return request.kind == "PUT" and (first in request.query or not parts)

    Outage(site, gateway, state, matches, 60, 1 if parts else 10)
    interrupted: list[float] = []
    main = threading.get_ident()

    def interrupt() -> None:
        interrupted.append(time.monotonic())
        signal.pthread_kill(main, signal.SIGINT)

    timer = threading.Timer(2.5, interrupt)
    # A process in the background may ignore SIGINT.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            site.collect()
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, previous)
    assert time.monotonic() - interrupted[0] < 1


def test_site_may_set_the_time_to_connect(site: Site) -> None:
    """The `connect_timeout` is ten seconds, or that of the site's `client_config`."""
    with site.storage() as storage:
        assert storage.connection.meta.client.meta.config.connect_timeout == 10
    site.options["client_config"] = Config(connect_timeout=60)
    with site.storage() as storage:
        assert storage.connection.meta.client.meta.config.connect_timeout == 60


def test_lost_response_to_the_completion_of_a_multipart_upload(site: Site) -> None:
    """A multipart upload succeeds although the response to its completion is lost.

    A second completion fails, because the server has already completed the upload. A
    HEAD request then shows that the object exists.
    """
    site.options["transfer_config"] = IN_PARTS
    site.write("large.bin", bytes(11 * MIB))
    lost = []

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        is_completion = request.method == "POST" and "uploadId" in request.query
        if is_completion and lost:
            handler.error(404, "NoSuchUpload")
            return True
        if is_completion:
            lost.append(request)
            handler.pass_on_silently(body)
            handler.close_connection = True
        return is_completion

    site.proxy.fault = fault
    site.collect()
    assert lost
    assert site.bucket.read("large.bin") == bytes(11 * MIB)
