"""The executors of uploads: limits, failures, cancellation and no threads."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, Future

import pytest

from collectfast_storage.s3.bucket import TransferExecutor
from collectfast_storage.uploads import BoundedExecutor, _error_of
from tests.support.proxy import Handler, Request
from tests.support.site import Site


def test_bytes_in_flight_are_bounded() -> None:
    """Calls wait for bytes of others; one that is larger than the limit runs alone."""
    lock = threading.Lock()
    in_flight = most = 0

    def hold(size: int) -> None:
        nonlocal in_flight, most
        with lock:
            in_flight += size
            most = max(most, in_flight)
        time.sleep(0.005)
        with lock:
            in_flight -= size

    with BoundedExecutor(16, most_bytes=100) as bounded:
        futures = [bounded.submit_sized(s, hold, s) for s in [30] * 20 + [100] * 3]
        futures.append(bounded.submit_sized(1000, hold, 100))
    assert [future.result() for future in futures] == [None] * 24
    assert most <= 100


def test_failed_calls_release_their_bytes() -> None:
    """A call that fails releases its bytes, so that the next call can run."""
    with BoundedExecutor(2, most_bytes=10) as bounded:
        for _ in range(10):
            failed = bounded.submit_sized(10, lambda: 1 / 0)
        assert isinstance(failed.exception(), ZeroDivisionError)


def test_without_threads_calls_run_in_the_thread_of_the_caller() -> None:
    """With `collectfast_threads=0`, calls run immediately and no thread is started."""
    serial = BoundedExecutor(0)
    assert serial.submit_sized(1, threading.get_ident).result() == threading.get_ident()
    assert isinstance(serial.submit(lambda: 1 / 0).exception(), ZeroDivisionError)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serial.submit(interrupt)


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_parallel_requests_are_limited(site: Site, threads: int) -> None:
    """At most `collectfast_threads` requests run in parallel, and one if it is 0."""
    site.options["collectfast_threads"] = threads
    files = site.write_many(30)
    lock = threading.Lock()
    under_way = most = 0

    def count(handler: Handler, request: Request, body: bytes) -> bool:
        nonlocal under_way, most
        if request.kind != "PUT":
            return False
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.01)
        # The request is counted as finished before the response, because the client may
        # send the next request as soon as it has received it.
        with lock:
            under_way -= 1
        handler.pass_on(body)
        return True

    site.proxy.fault = count
    site.collect()
    assert site.bucket.files() == files
    assert most <= max(threads, 1)
    assert site.collect().requests == {"LIST": 1}


def test_cancelled_calls_do_not_run() -> None:
    """A call that is cancelled before it starts does not run.

    It is cancelled by its future, or by a shutdown that does not wait.
    """
    begun = threading.Event()
    release = threading.Event()
    ran: list[object] = []

    def hold() -> None:
        begun.set()
        release.wait(10)

    bounded = BoundedExecutor(1)
    held = bounded.submit(hold)
    begun.wait(10)
    one = bounded.submit(ran.append, "one")
    other = bounded.submit(ran.append, "other")
    assert one.cancel()
    release.set()
    other.result(10)
    assert ran == ["other"]
    begun.clear()
    release.clear()
    held = bounded.submit(hold)
    begun.wait(10)
    waiting = [bounded.submit(ran.append, number) for number in range(3)]
    bounded.shutdown(wait=False, cancel_futures=True)
    release.set()
    held.result(10)
    for _ in range(2):  # `shutdown` can be called again.
        bounded.shutdown(cancel_futures=True)
    assert all(each.cancelled() for each in waiting)
    assert ran == ["other"]


@pytest.mark.parametrize("can_start", [True, False])
def test_call_of_a_transfer_runs_once(
    monkeypatch: pytest.MonkeyPatch, can_start: bool
) -> None:
    """Each call of a transfer runs once, in a thread if one can be started."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    if not can_start:
        monkeypatch.setattr(threading.Thread, "start", refuse)
    ran: list[int] = []
    with TransferExecutor(2) as executor:
        done = executor.submit(lambda: ran.append(threading.get_ident()))
        failed = executor.submit(int, "no number")
        assert done.result(10) is None
        assert isinstance(failed.exception(10), ValueError)
    assert len(ran) == 1
    assert (ran[0] == threading.get_ident()) is not can_start


def test_upload_that_sent_no_request_is_interrupted() -> None:
    """An upload is interrupted if its run has stopped before its request was sent."""
    future: Future[None] = Future()
    future.set_exception(CancelledError())
    assert isinstance(_error_of(future), InterruptedError)
