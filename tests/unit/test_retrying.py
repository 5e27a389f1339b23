"""Transient errors, and retries of the requests that they affect."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError
from email.utils import formatdate
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
)
from s3transfer.exceptions import RetriesExceededError
from urllib3.exceptions import ProtocolError

from collectfast_storage.congestion import (
    Attempts,
    Congestion,
    RetryDecision,
    RetryPolicy,
)
from collectfast_storage.reporting import Progress
from collectfast_storage.retrying import RetryingSender
from collectfast_storage.s3.errors import (
    OutageError,
    Transient,
    short_reason,
    transient_of,
)
from collectfast_storage.uploads import BoundedExecutor

URL = "https://example.com"


def _sender(timeout: float = 60, threads: int = 8) -> RetryingSender:
    return RetryingSender("bucket", Congestion(threads, 60), timeout, Progress())


def _answer(status: int, code: str = "", **headers: str) -> ClientError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    metadata = {"HTTPStatusCode": status, "HTTPHeaders": named}
    response: Any = {"Error": {"Code": code}, "ResponseMetadata": metadata}
    return ClientError(response, "PutObject")


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (_answer(503), Transient(throttled=True)),
        (_answer(429), Transient(throttled=True)),
        (_answer(400, "BandwidthLimitExceeded"), Transient(throttled=True)),
        (_answer(400, "RequestTimeout"), Transient(timed_out=True)),
        (_answer(408), Transient(timed_out=True)),
        (_answer(504), Transient(timed_out=True)),
        (_answer(503, retry_after="7"), Transient(throttled=True, retry_after=7)),
        (_answer(500, "InternalError", retry_after="7"), Transient(retry_after=7)),
        (_answer(500, "InternalError"), Transient()),
        (_answer(502), Transient()),
        (_answer(400, "InvalidArgument"), None),
        (_answer(403, "AccessDenied"), None),
        (ReadTimeoutError(endpoint_url=URL), Transient(timed_out=True)),
        (ConnectTimeoutError(endpoint_url=URL), Transient(timed_out=True)),
        (ConnectionClosedError(endpoint_url=URL), Transient()),
        (EndpointConnectionError(endpoint_url=URL, error="refused"), Transient()),
        (ProxyConnectionError(proxy_url=URL, error="refused"), Transient()),
        (SSLError(endpoint_url=URL, error="EOF occurred"), Transient()),
        (
            EndpointConnectionError(
                endpoint_url=URL, error=OSError(24, "Too many open files")
            ),
            None,
        ),
        (ProtocolError("IncompleteRead"), Transient()),
        (RetriesExceededError(_answer(500)), Transient()),
        (RetriesExceededError(_answer(403)), None),
        (HTTPClientError(error=OSError("broken pipe")), Transient()),
        (HTTPClientError(error=ValueError("Invalid header value")), None),
        # If a part of a file fails, s3transfer raises its error in the other parts
        # while they are sent, and botocore wraps it.
        (HTTPClientError(error=_answer(403)), None),
        (ClientError({"Error": {"Code": "AccessDenied"}}, "PutObject"), None),
        (ClientError({}, "PutObject"), None),
        (SSLError(endpoint_url=URL, error="certificate has expired"), None),
        (OSError("The disk is full"), None),
    ],
)
def test_transient_errors(error: Exception, transient: Transient | None) -> None:
    """An error is transient or not by its type, status, code and reason."""
    assert transient_of(error) == transient


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2", 2),
        ("3600", 60),  # The longest wait is a minute.
        ("-5", 0),
        (formatdate(time.time() + 86_400, usegmt=True), 60),
        (formatdate(time.time() - 86_400, usegmt=True), 0),
        ("Fri, 01 Jan 99999 00:00:00 GMT", 0),
        ("soon", 0),
        ("", 0),
    ],
    ids=["soon", "hour", "past", "tomorrow", "yesterday", "year", "words", "empty"],
)
def test_retry_after(text: str, seconds: float) -> None:
    """Retry-After is a number of seconds or a date; invalid values are ignored."""
    transient = transient_of(_answer(503, retry_after=text))
    assert transient == Transient(throttled=True, retry_after=seconds)


def test_date_in_retry_after() -> None:
    """A date in Retry-After is converted to the number of seconds until then."""
    date = formatdate(time.time() + 30, usegmt=True)
    transient = transient_of(_answer(503, retry_after=date))
    assert transient is not None
    assert 25 < transient.retry_after <= 30


@pytest.mark.parametrize("gives_up", [False, True])
def test_stop_ends_waiting_requests(gives_up: bool) -> None:
    """When the sender stops, requests do not wait for the minute in Retry-After.

    They raise the error of the sender, or are cancelled.
    """
    is_called = threading.Event()
    calls = []

    def refused() -> None:
        calls.append(None)
        is_called.set()
        raise _answer(503, retry_after="60")

    executor = BoundedExecutor(8)
    sender = _sender()
    error = OSError("It is over")
    futures = [executor.submit(sender.send, refused, 1) for _ in range(20)]
    assert is_called.wait(10)
    sender.stop(error if gives_up else None)
    kind = OSError if gives_up else CancelledError
    assert all(isinstance(each.exception(10), kind) for each in futures)
    began = time.monotonic()
    executor.shutdown()  # This waits for the threads.
    assert time.monotonic() - began < 10
    assert len(calls) <= 8


def _closed() -> None:
    raise ConnectionClosedError(endpoint_url=URL)


def test_request_that_always_fails_does_not_affect_others() -> None:
    """If a single request always fails, it is given up and all others succeed."""
    sender = _sender(timeout=0.5)
    with BoundedExecutor(4) as executor:
        never = executor.submit(sender.send, _closed)
        others = [executor.submit(sender.send, lambda: 1) for _ in range(50)]
        assert [each.result(10) for each in others] == [1] * 50
        assert isinstance(never.exception(10), ConnectionClosedError)
        assert executor.submit(sender.send, lambda: 1).result(10) == 1


def test_all_requests_end_after_a_few_were_given_up() -> None:
    """After four failed requests, all others fail; the error names the time of retries.

    New requests fail then, too.
    """
    sender = _sender(timeout=1)
    sender.send(int)
    for _ in range(4):
        with pytest.raises(ConnectionClosedError):
            sender.send(_closed)
    with pytest.raises(OutageError, match=r"No request succeeded for \d s"):
        sender.send(_closed)
    with pytest.raises(OutageError):
        sender.send(int)


def test_without_a_timeout_no_request_is_repeated() -> None:
    """If the time-out is 0, a request is sent once, because botocore retries it."""
    sender = _sender(timeout=0)
    calls = []

    def fail() -> None:
        calls.append(None)
        _closed()

    with pytest.raises(ConnectionClosedError):
        sender.send(fail)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "error", [_answer(503), ConnectionClosedError(endpoint_url=URL)], ids=repr
)
def test_first_failure_after_a_pause_is_not_given_up(error: Exception) -> None:
    """A transient error is retried, however long ago the last request was."""
    sender = _sender(timeout=0.2)
    left = [error]
    sender.send(int)
    time.sleep(0.3)

    def fail_once() -> None:
        if left:
            raise left.pop()

    sender.send(fail_once)
    assert left == []


def test_check_raises_the_error_of_a_stopped_sender() -> None:
    """A stream that is being read calls `check`, which raises an error after a stop."""
    sender = _sender()
    sender.check()
    sender.stop(OSError("It is over"))
    with pytest.raises(OSError, match="It is over"):
        sender.check()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (_answer(503, "Slow\nDown"), r"503 Slow\nDown"),
        (ReadTimeoutError(endpoint_url=URL), "time-out"),
        (
            EndpointConnectionError(
                endpoint_url=f"{URL}/ssl-proxy.png", error="Connection refused"
            ),
            "connection refused",
        ),
        (ConnectionClosedError(endpoint_url=f"{URL}/ssl"), "connection was closed"),
        (HTTPClientError(error=OSError("strange")), "HTTPClientError"),
    ],
)
def test_short_reason(error: Exception, text: str) -> None:
    """Words in the URL do not change the reason, and control characters are escaped."""
    assert short_reason(error) == text


def test_request_that_times_out_while_others_succeed_is_sent_five_times() -> None:
    """A request that times out is sent five times while other requests succeed.

    Its time-out may be as long as the time of all retries, which would allow no retry.
    """
    patience = RetryPolicy(60)
    alone = Attempts()
    now = 0.0
    outcomes = []
    for _ in range(5):
        began = now
        now += 60
        patience.succeeded(now, ends_outage=False)
        alone.add(now)
        outcomes.append(patience.failed(now, began, alone))
    assert outcomes == [RetryDecision.RETRY] * 4 + [RetryDecision.RAISE]


def test_time_without_requests_does_not_count() -> None:
    """Time without requests is no outage, because a program may wait in a batch."""
    patience = RetryPolicy(60)
    patience.succeeded(0.0, ends_outage=False)
    outcomes = [patience.failed(t, t, Attempts()) for t in (1.0, 62.0, 9000.0)]
    assert outcomes == [RetryDecision.RETRY, RetryDecision.RAISE, RetryDecision.RETRY]
