"""Where uploads run: within bounds, and with one interface."""

from __future__ import annotations

import threading
import time

import pytest

from collectfast_storage.s3.bucket import TransferExecutor
from collectfast_storage.uploads import BoundedExecutor
from tests.support.proxy import Handler, Request
from tests.support.site import Site


def test_bytes_in_flight_are_bounded() -> None:
    """What has no room waits; what is larger than the bound goes alone."""
    lock, under_way, most = threading.Lock(), [0], [0]

    def hold(size: int) -> None:
        with lock:
            under_way[0] += size
            most[0] = max(most[0], under_way[0])
        time.sleep(0.005)
        with lock:
            under_way[0] -= size

    with BoundedExecutor(16, most_bytes=100) as bounded:
        futures = [bounded.submit_sized(s, hold, s) for s in [30] * 20 + [100] * 3]
        futures.append(bounded.submit_sized(1000, hold, 100))
    assert [future.result() for future in futures] == [None] * 24
    assert most[0] <= 100


def test_room_is_given_back_by_what_fails() -> None:
    """Else the run would stand still."""
    with BoundedExecutor(2, most_bytes=10) as bounded:
        for _ in range(10):
            failed = bounded.submit_sized(10, lambda: 1 / 0)
        assert isinstance(failed.exception(), ZeroDivisionError)


def test_without_threads_it_is_done_at_once_in_the_callers() -> None:
    """`collectfast_threads=0` is for sites that must not have any."""
    serial = BoundedExecutor(0)
    assert serial.submit_sized(1, threading.get_ident).result() == threading.get_ident()
    assert isinstance(serial.submit(lambda: 1 / 0).exception(), ZeroDivisionError)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serial.submit(interrupt)


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_no_more_requests_at_once_than_asked_for(site: Site, threads: int) -> None:
    """`collectfast_threads` is a promise to the server; 0 is one after another."""
    site.options["collectfast_threads"] = threads
    files = site.write_many(30)
    lock, under_way, most = threading.Lock(), [0], [0]

    def count(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind != "PUT":
            return False
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        time.sleep(0.01)
        # Before it is answered: then the client may send the next one.
        with lock:
            under_way[0] -= 1
        handler.pass_on(body)
        return True

    site.proxy.fault = count
    site.collect()
    assert site.bucket.files() == files
    assert most[0] <= max(threads, 1)
    assert site.collect().requests == {"LIST": 1}


def test_what_is_cancelled_before_its_turn_does_not_run() -> None:
    """By whoever submitted it, or by an end that does not wait."""
    begun, release, ran = threading.Event(), threading.Event(), []

    def hold() -> None:
        begun.set()
        release.wait(10)

    bounded = BoundedExecutor(1)
    held = bounded.submit(hold)
    begun.wait(10)
    one, other = (bounded.submit(ran.append, name) for name in ("one", "other"))
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
    for _ in range(2):  # It may be told so more than once.
        bounded.shutdown(cancel_futures=True)
    assert all(each.cancelled() for each in waiting)
    assert ran == ["other"]


@pytest.mark.parametrize("can_start", [True, False])
def test_call_of_a_transfer_runs_once(
    monkeypatch: pytest.MonkeyPatch, can_start: bool
) -> None:
    """In a thread if one can be started, or else in that of its caller."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    if not can_start:
        monkeypatch.setattr(threading.Thread, "start", refuse)
    ran: list[int] = []
    with TransferExecutor(2) as executor:
        done = executor.submit(ran.append, threading.get_ident())
        failed = executor.submit(int, "no number")
        assert done.result(10) is None
        assert isinstance(failed.exception(10), ValueError)
    assert len(ran) == 1
