"""Outages: each state of a gateway or server, at each phase of a deploy."""

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

pytestmark = pytest.mark.slow

NO_CACHE = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
STATES = ["refused", "reset", "silent", "503", "500", "name"]
PHASES = ["manifest", "LIST", "HEAD", "PUT", "part", "DELETE"]


class Outage:
    """Begins with the `number`th request that `matches`, and lasts for some seconds."""

    def __init__(
        self,
        site: Site,
        before: Gate,
        state: str,
        matches: Callable[[Request], bool],
        seconds: float,
        number: int = 1,
    ) -> None:
        self.gate, self.state, self.matches = before, state, matches
        self.seconds, self.left = seconds, number
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
            timer = threading.Timer(self.seconds, setattr, [self.gate, "mode", ""])
            timer.daemon = True
            timer.start()
            self.gate.mode = self.state  # It cuts this connection, too.
        return begins


@pytest.fixture
def before(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """What the site takes for its server; in the mode "name", it has none."""
    port = urlsplit(site.proxy.endpoint).port
    assert port is not None
    known = socket.getaddrinfo
    with gate(port) as running:

        def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
            if running.mode == "name" and port == running.port:
                raise socket.gaierror(-3, "Temporary failure in name resolution")
            return known(host, port, *args, **kwargs)

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
    site: Site, before: Gate, state: str, phase: str
) -> None:
    """All files arrive, and the exit status is 0."""
    arguments, matches = (
        [],
        {
            "manifest": lambda request: request.key.endswith("staticfiles.json"),
            "part": lambda request: request.query.get("partNumber") == ["2"],
        }.get(phase, lambda request: request.kind.startswith(phase)),
    )
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
    outage = Outage(site, before, state, matches, 0.8, number)
    site.collect(*arguments)
    assert outage.begin < time.monotonic()
    stored = site.bucket.files()
    assert {name: stored.get(name) for name in files} == files
    assert "left over.txt" not in stored


@pytest.mark.parametrize("state", ["refused", "503"])
@pytest.mark.parametrize("mode", ["legacy", "standard", "adaptive"])
def test_retry_mode_of_boto3_does_not_matter(
    site: Site, before: Gate, mode: str, state: str
) -> None:
    """Nor do its attempts, or its quota of retries."""
    retries: Any = {"mode": mode, "total_max_attempts": 1}
    site.options["client_config"] = Config(read_timeout=1, retries=retries)
    files = site.write_many(60)
    Outage(site, before, state, lambda request: request.kind == "PUT", 2, number=20)
    site.collect()
    assert site.bucket.files() == files


def test_log_says_when_the_waiting_begins_and_ends(
    site: Site, before: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, one information, and few requests meanwhile."""
    site.write_many(100)
    outage = Outage(
        site, before, "500", lambda request: request.kind == "PUT", 3, number=40
    )
    with caplog.at_level(logging.INFO, logger="collectfast_storage"):
        site.collect()
    texts = [each.getMessage() for each in caplog.records]
    waiting = [text for text in texts if "No request to bucket" in text]
    assert waiting == [
        "No request to bucket 'tests' succeeds (500 Trouble); retrying for up to 20 s."
    ]
    assert sum("succeed again after" in text for text in texts) == 1
    # As many as were under way when it began, and the probes.
    assert outage.requests <= 64 + 10


@pytest.mark.parametrize(
    ("state", "text"), [("refused", "Could not connect"), ("500", r"\(Trouble\)")]
)
def test_error_says_how_long_it_was_tried(
    site: Site, before: Gate, state: str, text: str
) -> None:
    """The bucket is the reason, no file is; the next deploy sends what is missing."""
    site.options["collectfast_retry_timeout"] = 1
    site.write_many(30)
    Outage(site, before, state, lambda request: request.kind == "PUT", 60, 10)
    with pytest.raises(BucketError, match=text + r".* \(No request succeeded for \d"):
        site.collect()
    before.mode = ""
    site.proxy.fault = None
    missing = 30 - len(site.bucket.names())
    requests = site.collect().requests
    assert requests["LIST"] == 1
    # An upload whose answer was lost is in doubt.
    assert requests["PUT"] == missing or state == "refused"
    assert requests["PUT"] >= missing > 0


@pytest.mark.parametrize("threads", [0, 64])
@pytest.mark.parametrize("fails", ["500", "cut", "403"])
def test_large_file_that_always_fails_does_not_stop_the_others(
    site: Site, fails: str, threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The error names that file alone."""
    site.options |= {
        "transfer_config": IN_PARTS,
        "collectfast_retry_timeout": 1,
        "collectfast_threads": threads,
    }
    files = site.write_many(40)
    site.write("a large.bin", bytes(36 * MIB))

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        is_part = "partNumber" in request.query
        is_part &= fails != "403" or request.query.get("partNumber") == ["2"]
        if is_part and fails == "cut":
            handler.close_connection = True
        elif is_part:
            handler.error(int(fails), "Trouble")
        return is_part

    site.proxy.fault = fault
    with pytest.raises(UploadError) as caught:
        site.collect()
    assert {*caught.value.failures} == {"a large.bin"}
    assert site.bucket.files() == files
    # A part that is refused ends the others, which is no outage.
    assert fails != "403" or "No request to bucket" not in caplog.text


def test_head_that_always_fails_does_not_stop_the_others(site: Site) -> None:
    """The file is uploaded, as it is not known what the bucket has."""
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
def test_interrupt_while_it_waits(
    site: Site, before: Gate, state: str, threads: int, parts: int
) -> None:
    """Ctrl-C ends the command within a second."""
    site.options["collectfast_threads"] = threads
    if parts:
        site.options["transfer_config"] = IN_PARTS
        site.write("a.bin", bytes(parts * 5 * MIB))
    site.write_many(30)
    first = "partNumber" if parts else "x-id"

    def matches(request: Request) -> bool:
        return request.kind == "PUT" and (first in request.query or not parts)

    Outage(site, before, state, matches, 60, 1 if parts else 10)
    interrupted: list[float] = []
    main = threading.get_ident()

    def interrupt() -> None:
        interrupted.append(time.monotonic())
        signal.pthread_kill(main, signal.SIGINT)

    timer = threading.Timer(2.5, interrupt)
    # Whoever started the tests in the background may have it ignored.
    known = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            site.collect()
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, known)
    assert time.monotonic() - interrupted[0] < 1


def test_site_may_set_the_time_to_connect(site: Site) -> None:
    """It is ten seconds, or that of the site's own configuration."""
    with site.storage() as storage:
        assert storage.connection.meta.client.meta.config.connect_timeout == 10
    site.options["client_config"] = Config(connect_timeout=60)
    with site.storage() as storage:
        assert storage.connection.meta.client.meta.config.connect_timeout == 60


def test_completion_whose_answer_is_lost(site: Site) -> None:
    """The upload is known to be complete by a HEAD, although it is unknown by then."""
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
