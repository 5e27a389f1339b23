"""What passes, and how long to wait for it: read from an error of botocore's."""

from __future__ import annotations

import threading
import time
from email.utils import formatdate
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    ReadTimeoutError,
    SSLError,
)

from collectfast_storage.s3.errors import Setback, setback_of
from collectfast_storage.uploads import BoundedExecutor

URL = "https://example.com"
ONE_ATTEMPT = Config(retries={"total_max_attempts": 1})


def _answer(status: int, code: str = "", **headers: str) -> ClientError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    metadata = {"HTTPStatusCode": status, "HTTPHeaders": named}
    response: Any = {"Error": {"Code": code}, "ResponseMetadata": metadata}
    return ClientError(response, "PutObject")


@pytest.mark.parametrize(
    ("error", "setback"),
    [
        (_answer(503), Setback(throttled=True)),
        (_answer(429), Setback(throttled=True)),
        (_answer(400, "BandwidthLimitExceeded"), Setback(throttled=True)),
        (_answer(400, "RequestTimeout"), Setback(timed_out=True)),
        (_answer(408), Setback(timed_out=True)),
        (_answer(504), Setback(timed_out=True)),
        (_answer(500, "InternalError"), Setback()),
        (_answer(502), Setback()),
        (_answer(400, "InvalidArgument"), None),
        (_answer(403, "AccessDenied"), None),
        (ReadTimeoutError(endpoint_url=URL), Setback(timed_out=True)),
        (ConnectTimeoutError(endpoint_url=URL), Setback(timed_out=True)),
        (ConnectionClosedError(endpoint_url=URL), Setback()),
        (SSLError(endpoint_url=URL, error="expired"), None),
        (OSError("The disk is full"), None),
    ],
)
def test_what_passes(error: Exception, setback: Setback | None) -> None:
    assert setback_of(error) == setback


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2", 2),
        ("3600", 60),  # Nobody waits for an hour.
        ("-5", 0),
        (formatdate(time.time() + 86_400, usegmt=True), 60),
        (formatdate(time.time() - 86_400, usegmt=True), 0),
        ("soon", 0),
        ("", 0),
    ],
    ids=["soon", "in an hour", "past", "tomorrow", "yesterday", "words", "empty"],
)
def test_when_to_come_back(text: str, seconds: float) -> None:
    """In seconds or as a date; nonsense is as good as nothing."""
    setback = setback_of(_answer(503, retry_after=text))
    assert setback == Setback(throttled=True, after=seconds)


def test_date_to_come_back_at() -> None:
    date = formatdate(time.time() + 30, usegmt=True)
    setback = setback_of(_answer(503, retry_after=date))
    assert setback is not None
    assert 25 < setback.after <= 30


@pytest.mark.parametrize("gives_up", [False, True])
def test_end_while_all_wait(gives_up: bool) -> None:
    """For a minute, as they were told: none of them waits so long."""
    told, calls = threading.Event(), []

    def refused() -> None:
        calls.append(None)
        told.set()
        raise _answer(503, retry_after="60")

    executor, error = BoundedExecutor(8), OSError("It is over")
    futures = [executor.submit_sized(1, refused) for _ in range(20)]
    assert told.wait(10)
    if gives_up:
        executor.governor.stop(error)
        assert [each.exception(10) for each in futures] == [error] * 20
    began = time.monotonic()
    executor.shutdown(cancel_futures=True)  # It waits for its threads.
    assert time.monotonic() - began < 10
    assert all(each.done() for each in futures)
    assert len(calls) <= 8


def test_one_that_never_passes_is_given_up_after_the_others() -> None:
    """Even where botocore would make but one attempt."""

    def closed() -> None:
        raise ConnectionClosedError(endpoint_url=URL)

    with BoundedExecutor(4, ONE_ATTEMPT) as executor:
        never = executor.submit(closed)
        others = [executor.submit(time.sleep, 0.01) for _ in range(50)]
        assert [each.exception(10) for each in others] == [None] * 50
        assert isinstance(never.exception(10), ConnectionClosedError)


@pytest.mark.slow
def test_first_failure_after_a_pause_is_not_given_up() -> None:
    """A transient error is retried, however long ago the last request was.

    The pause is longer than the time in which botocore would make its attempts.
    """
    errors = [_answer(503), ConnectionClosedError(endpoint_url=URL)]
    executors = [BoundedExecutor(1, ONE_ATTEMPT) for _ in errors]
    for executor in executors:
        executor.submit(int).result(10)
    time.sleep(2.1)

    def fail_once(left: list[Exception]) -> None:
        if left:
            raise left.pop()

    futures = [
        executor.submit(fail_once, [error])
        for executor, error in zip(executors, errors, strict=True)
    ]
    assert [future.exception(10) for future in futures] == [None, None]
