"""The upload cache, in real Django caches."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import permutations
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache
from django.core.files.base import ContentFile
from django.test import override_settings

from collectfast_storage.decision import DOUBTFUL, Remembered
from collectfast_storage.fingerprint import Fingerprint
from collectfast_storage.upload_cache import UploadCache
from tests.support.site import Site

LOCAL_MEMORY = "django.core.cache.backends.locmem.LocMemCache"


class Broken(LocMemCache):
    """A cache that fails when several entries are read or written."""

    def get_many(self, *args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("nobody there")

    set_many = get_many


class Unreachable(LocMemCache):
    """A cache that cannot reach its server, and counts the attempts."""

    attempts = 0

    def fail(self, *args: Any, **kwargs: Any) -> Any:
        Unreachable.attempts += 1
        raise TimeoutError("nobody there")

    get = get_many = set = set_many = delete = delete_many = fail


class ReadOnly(LocMemCache):
    """A cache that fails when several entries are written."""

    def set_many(self, *args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("nobody there any more")


class HalfWay(LocMemCache):
    """A cache that fails after it has written half of the entries."""

    def set_many(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        half = {name: data[name] for name in list(data)[len(data) // 2 :]}
        super().set_many(half, *args, **kwargs)
        raise ConnectionError("nobody there any more")


class Refusing(LocMemCache):
    """A cache that refuses all entries, as Memcached refuses large ones."""

    def set_many(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        return list(data)


class RefusingHalf(LocMemCache):
    """A cache that refuses every second entry."""

    def set_many(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        refused = sorted(data)[::2]
        taken = {name: data[name] for name in data if name not in refused}
        super().set_many(taken, *args, **kwargs)
        return refused


class Interrupting(LocMemCache):
    """A cache that calls functions before and after it writes several entries."""

    before: list[Callable[[], None]] = []  # noqa: RUF012
    after: list[Callable[[], None]] = []  # noqa: RUF012

    def set_many(self, *args: Any, **kwargs: Any) -> Any:
        while self.before:
            self.before.pop()()
        refused = super().set_many(*args, **kwargs)
        while self.after:
            self.after.pop()()
        return refused


class Meeting(LocMemCache):
    """A cache in which a write of several entries waits for another one."""

    barrier = threading.Barrier(2)

    def set_many(self, *args: Any, **kwargs: Any) -> Any:
        with suppress(threading.BrokenBarrierError):
            self.barrier.wait(0.3)
        return super().set_many(*args, **kwargs)


class Counting(LocMemCache):
    """A cache that records the calls of its methods."""

    calls: list[tuple[str, int, Any]] = []  # noqa: RUF012

    def get_many(self, keys: Any, *args: Any) -> Any:
        keys = list(keys)
        self.calls.append(("get_many", len(keys), None))
        return super().get_many(keys, *args)

    def set_many(self, data: Any, timeout: Any = "default", *args: Any) -> Any:
        self.calls.append(("set_many", len(data), timeout))
        return super().set_many(data, timeout, *args)


class WithoutLocks(Counting):
    """A cache that refuses to add a key, and records the attempts."""

    def add(self, *args: Any, **kwargs: Any) -> bool:
        self.calls.append(("add", 1, None))
        return False


class Interrupted(LocMemCache):
    """A cache that is interrupted in a write, and cannot be reached after that."""

    is_down = False

    def set_many(self, *args: Any, **kwargs: Any) -> Any:
        Interrupted.is_down = True
        raise KeyboardInterrupt

    def get(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_down:
            raise TimeoutError("nobody there")
        return super().get(*args, **kwargs)


class Locked(WithoutLocks):
    """A cache in which a killed run has left its lock."""

    def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        is_lock = key.endswith(":lock")
        return "a killed run" if is_lock else super().get(key, *args, **kwargs)


def _caches(backend: str | type, location: str | None = None) -> dict[str, Any]:
    if not isinstance(backend, str):
        backend = f"{__name__}.{backend.__name__}"
    return {"default": {"BACKEND": backend, "LOCATION": location or uuid4().hex}}


@pytest.fixture(autouse=True)
def location() -> Iterator[str]:
    """Make a cache for each test, and return its location for use by other backends."""
    location = uuid4().hex
    with override_settings(CACHES=_caches(LOCAL_MEMORY, location)):
        yield location


def _remembered(number: int) -> Remembered:
    return Remembered(_fingerprint(number), f"etag-{number}")


def _fingerprint(number: int) -> Fingerprint:
    return Fingerprint(f"md5-{number}", "headers")


def _run(place: str = "endpoint bucket", *, trusted: bool = False) -> UploadCache:
    """Return the cache as a new run, or a new process, uses it."""
    return UploadCache("default", None, place, trusted=trusted)


def _started(*, trusted: bool = False) -> UploadCache:
    """Return the cache of a run that has read its entries."""
    run = _run(trusted=trusted)
    run.get("any")
    return run


def _after_upload(number: int, name: str = "a", *, trusted: bool = False) -> None:
    """Do as a run does that uploads `name`, from its beginning to its end."""
    run = _run(trusted=trusted)
    run.mark({name: _fingerprint(number)})
    run.remember(name, _remembered(number))
    run.flush()


# Entries.


def test_entry_is_written_by_flush() -> None:
    """Other runs find an entry after `flush`, if they use the same bucket."""
    run = _run()
    run.remember("a", _remembered(1))
    assert run.get("a") == _remembered(1)
    assert _run().get("a") is None
    run.flush()
    assert _run().get("a") == _remembered(1)
    assert _run("endpoint other").get("a") is None


@pytest.mark.parametrize("name", ["a", "é/ü.css", "a\nb", "\udcff.css", "x" * 5000])
def test_any_name_has_its_own_entry(name: str) -> None:
    """Each name has its own entry, even if it is long or not valid Unicode."""
    run = _run()
    run.remember(name, _remembered(1))
    run.remember(f"{name}x", _remembered(2))
    run.flush()
    assert _run().get(name) == _remembered(1)
    assert _run().get(f"{name}x") == _remembered(2)


def test_entry_without_an_etag_is_kept() -> None:
    """An entry without an ETag is stored, because some servers return no ETag."""
    run = _run()
    run.remember("a", Remembered(_fingerprint(1), ""))
    run.flush()
    assert _run().get("a") == Remembered(_fingerprint(1), "")


def test_two_runs_keep_the_entries_of_each_other() -> None:
    """Two runs that write the same shards keep each other's entries.

    A shard is read again before it is written.
    """
    one, two = _started(), _started()
    for number in range(100):
        (one if number % 2 else two).remember(str(number), _remembered(number))
    one.flush()
    two.flush()
    fresh = _run()
    assert [fresh.get(str(n)) for n in range(100)] == [
        _remembered(n) for n in range(100)
    ]


@pytest.mark.parametrize(
    "garbage",
    [b"bytes", 7, ["list"], {"a": 7}, {"a": None}, {"a": "one two"}, {1: "a b c"}],
)
@pytest.mark.parametrize("trusted", [True, False])
def test_garbage_is_ignored_and_overwritten(garbage: object, trusted: bool) -> None:
    """An entry that this package did not write is ignored, and can be overwritten."""
    _after_upload(1)
    for name in list(caches["default"]._cache):  # type: ignore[attr-defined]
        key = name.split(":", 2)[2]
        caches["default"].set(key, garbage)
    assert _run(trusted=trusted).get("a") is None
    _after_upload(2, trusted=trusted)
    assert _run(trusted=trusted).get("a") == _remembered(2)


@pytest.mark.slow
def test_entries_are_bounded_and_the_newest_are_kept() -> None:
    """Of 200,000 entries the oldest are dropped, and no shard is larger than 1 MB."""
    count = 200_000
    run = _run()
    for number in range(count):
        run.remember(str(number), _full(number))
    run.flush()
    # Memcached refuses entries of more than 1 MB.
    cache: Any = caches["default"]
    assert max(map(len, cache._cache.values())) < 1_000_000
    fresh = _run()
    kept = [n for n in range(count) if fresh.get(str(n)) == _full(n)]
    assert 130_000 < len(kept) < 150_000
    # Shards have slightly different numbers of entries.
    assert min(kept) > 50_000
    assert set(range(70_000, count)) <= {*kept}
    # An entry that is written again is among the newest.
    again = _run()
    again.remember(str(min(kept)), _full(1))
    for number in range(count, count + 10_000):
        again.remember(str(number), _full(number))
    again.flush()
    fresh = _run()
    assert fresh.get(str(min(kept))) == _full(1)
    assert all(fresh.get(str(n)) == _full(n) for n in range(count, count + 10_000))


def _full(number: int) -> Remembered:
    text = f"{number:032}"
    return Remembered(Fingerprint(text, text), text)


def test_flush_writes_each_entry_once() -> None:
    """A second `flush` writes nothing, so that newer entries of others are kept."""
    one = _run()
    one.remember("a", _remembered(1))
    one.flush()
    _after_upload(2)
    one.flush()
    assert _run().get("a") == _remembered(2)


@pytest.mark.parametrize("settings", [_caches(LOCAL_MEMORY), _caches(Unreachable), {}])
def test_without_an_alias_no_cache_is_used(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """With the alias `None`, entries last for one run and no cache is used."""
    Unreachable.attempts = 0
    with override_settings(CACHES=settings):
        run = UploadCache(None, None, "endpoint bucket", trusted=True)
        assert run.get("a") is None
        run.mark({"a": _fingerprint(1)})
        assert run.get("a") is DOUBTFUL
        run.remember("a", _remembered(1))
        run.flush()
        assert run.get("a") == _remembered(1)
        run.invalidate("a")
        other = UploadCache(None, None, "endpoint bucket", trusted=True)
        assert other.get("a") is None
        if settings and Unreachable.__name__ not in settings["default"]["BACKEND"]:
            assert caches["default"]._cache == {}  # type: ignore[attr-defined]
    assert Unreachable.attempts == 0
    assert caplog.messages == []


# Marks.


@pytest.mark.parametrize("fingerprint", [_fingerprint(1), _fingerprint(2), None])
@pytest.mark.parametrize("trusted", [True, False])
def test_mark_makes_an_entry_doubtful_until_flush(
    fingerprint: Fingerprint | None, trusted: bool
) -> None:
    """From the mark to `flush`, no run relies on a marked entry.

    Other entries are not affected.
    """
    _after_upload(1)
    _after_upload(1, "b")
    run = _run(trusted=trusted)
    assert run.get("a") == _remembered(1)
    run.mark({"a": fingerprint})
    assert run.get("a") is DOUBTFUL
    assert _run(trusted=trusted).get("a") is DOUBTFUL
    assert _run(trusted=trusted).get("b") == run.get("b") == _remembered(1)
    run.remember("a", _remembered(2))
    assert run.get("a") == _remembered(2)
    assert _run(trusted=trusted).get("a") is DOUBTFUL
    run.flush()
    assert _run(trusted=trusted).get("a") == _remembered(2)


def test_killed_run_leaves_its_marks() -> None:
    """Entries that a killed run has marked are doubtful until they are written again.

    A later run that does not upload them leaves them doubtful.
    """
    _after_upload(1, "seen")
    _after_upload(1, "unseen")
    _run().mark({"seen": _fingerprint(2), "unseen": _fingerprint(2)})
    later = _run()
    assert later.get("seen") is later.get("unseen") is DOUBTFUL
    assert later.get("unmarked") is None
    later.mark({"seen": _fingerprint(1)})
    later.remember("seen", _remembered(1))
    later.flush()
    after = _run()
    assert after.get("seen") == _remembered(1)
    assert after.get("unseen") is DOUBTFUL


def _orders() -> list[tuple[int, ...]]:
    """Return all orders in which two runs, 0 and 1, can mark an entry and flush it."""
    return sorted(set(permutations([0, 0, 1, 1])))


def _upload_in_order(
    order: tuple[int, ...], numbers: tuple[int, int], *, trusted: bool
) -> None:
    """Mark and flush an entry by two runs in this order.

    Both of them have read all entries before.
    """
    runs = [_started(trusted=trusted) for _ in numbers]
    marked: set[int] = set()
    for turn in order:
        run, number = runs[turn], numbers[turn]
        if turn not in marked:
            run.mark({"a": _fingerprint(number)})
            marked.add(turn)
        else:
            run.remember("a", _remembered(number)._replace(etag=f"etag-{turn}"))
            run.flush()


@pytest.mark.parametrize("order", _orders())
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("trusted", [True, False])
def test_replicas_that_upload_the_same_leave_an_entry(
    order: tuple[int, ...], there: bool, trusted: bool
) -> None:
    """Two runs that upload the same file leave a valid entry, whatever their order.

    It has the ETag of the run that ended last, since opaque ETags may differ.
    """
    if there:
        _after_upload(1)
    _upload_in_order(order, (2, 2), trusted=trusted)
    expected = Remembered(_fingerprint(2), f"etag-{order[-1]}")
    assert _run(trusted=trusted).get("a") == expected


OVERLAPPING = [order for order in _orders() if order[0] != order[1]]


@pytest.mark.parametrize("order", OVERLAPPING)
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("trusted", [True, False])
def test_overlapping_runs_with_different_uploads_leave_a_doubtful_entry(
    order: tuple[int, ...], there: bool, trusted: bool
) -> None:
    """Overlapping uploads of different contents leave a doubtful entry.

    It is not known which of them arrived last.
    """
    if there:
        _after_upload(1)
    _upload_in_order(order, (2, 3), trusted=trusted)
    assert _run(trusted=trusted).get("a") is DOUBTFUL


@pytest.mark.parametrize("order", OVERLAPPING)
def test_run_that_starts_after_the_mark_of_another_leaves_a_doubtful_entry(
    order: tuple[int, ...],
) -> None:
    """The entry is doubtful if a run starts after another run has marked it.

    It is not known which of their uploads arrived last.
    """
    first = _started()
    first.mark({"a": _fingerprint(1)})
    second = _started()
    assert second.get("a") is DOUBTFUL
    second.mark({"a": _fingerprint(2)})
    runs = [first, second]
    for turn in order[2:]:
        runs[turn].remember("a", _remembered(turn + 1))
        runs[turn].flush()
    assert _run().get("a") is DOUBTFUL


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_delete_and_upload_of_two_runs_leave_a_doubtful_entry(
    order: tuple[int, int],
) -> None:
    """A delete and an upload by two runs leave a doubtful entry.

    It is not known which of them was last.
    """
    _after_upload(1)
    runs = [_started(), _started()]
    runs[0].mark({"a": None})
    runs[1].mark({"a": _fingerprint(2)})
    runs[1].remember("a", _remembered(2))
    runs[0].remember("a", DOUBTFUL)
    for turn in order:
        runs[turn].flush()
    assert _run().get("a") is DOUBTFUL


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("same", [True, False])
def test_entries_without_marks_are_compared_too(
    order: tuple[int, int], same: bool
) -> None:
    """Two runs that upload different versions of a new file leave a doubtful entry.

    Entries of new files have no marks, so that the entries are compared.
    """
    runs = [_started(), _started()]
    for turn, run in enumerate(runs):
        run.remember("a", _remembered(1 if same else turn))
    for turn in order:
        runs[turn].flush()
    assert _run().get("a") == (_remembered(1) if same else DOUBTFUL)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("trusted", [True, False])
def test_runs_that_write_at_the_same_time_keep_the_lines_of_each_other(
    location: str,
    monkeypatch: pytest.MonkeyPatch,
    same: bool,
    there: bool,
    trusted: bool,
) -> None:
    """One run reads the entries only after the other has written its own.

    Without a lock both would read the entries before one of them writes.
    """
    if there:
        _after_upload(1)
    runs = [_started(trusted=trusted), _started(trusted=trusted)]
    for turn, run in enumerate(runs):
        run.remember("a", _remembered(2 if same else 2 + turn))
    monkeypatch.setattr(Meeting, "barrier", threading.Barrier(2))
    with override_settings(CACHES=_caches(Meeting, location)):
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(UploadCache.flush, runs)) == [None, None]
        assert _run(trusted=trusted).get("a") == (_remembered(2) if same else DOUBTFUL)


def test_runs_wait_for_a_lock_for_a_limited_time(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed run's lock, or a cache that refuses locks, does not stop a run."""
    attempts = []
    for number, backend in enumerate([WithoutLocks, Locked]):
        monkeypatch.setattr(Counting, "calls", [])
        with override_settings(CACHES=_caches(backend, location)):
            run = _run()
            run.remember("a", _remembered(number))
            run.flush()
            assert _run().get("a") == _remembered(number)
        attempts.append(Counting.calls.count(("add", 1, None)))
    assert 1 < attempts[0] < attempts[1]


def test_interrupt_in_a_write_is_raised_although_the_lock_cannot_be_released(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error at the release of the lock does not replace an interrupt."""
    monkeypatch.setattr(Interrupted, "is_down", False)
    run = _started()
    run.remember("a", _remembered(1))
    settings = override_settings(CACHES=_caches(Interrupted, location))
    with settings, pytest.raises(KeyboardInterrupt):
        run.flush()


def test_doubtful_entry_is_certain_again_after_the_next_upload() -> None:
    """The next upload that does not overlap with others makes the entry valid again."""
    _upload_in_order((0, 1, 0, 1), (2, 3), trusted=False)
    assert _run().get("a") is DOUBTFUL
    _after_upload(3)
    assert _run().get("a") == _remembered(3)


# Caches that fail while they are written.


@pytest.mark.parametrize("backend", [ReadOnly, HalfWay])
@pytest.mark.parametrize("trusted", [True, False])
def test_failed_flush_leaves_marks_and_no_wrong_entry(
    location: str,
    backend: type,
    trusted: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If `set_many` fails in `flush`, no entry keeps its earlier value.

    Marked entries are doubtful or new, and the entry of a new file is new or missing.
    If the cache is trusted, all of them are removed.
    """
    names = [str(n) for n in range(50)]
    for name in names:
        _after_upload(1, name)
    run = _run(trusted=trusted)
    run.mark({name: _fingerprint(2) for name in names})
    for name in [*names, "new"]:
        run.remember(name, _remembered(2))
    with override_settings(CACHES=_caches(backend, location)):
        run.flush()
    assert "ConnectionError: nobody there any more" in caplog.text
    after = _run(trusted=trusted)
    found = [after.get(name) for name in names]
    is_half = backend is HalfWay
    expected = {DOUBTFUL, _remembered(2)} if is_half else {DOUBTFUL}
    # If the cache is trusted, entries that may be wrong are removed.
    assert {*found} == ({None} if trusted else expected)
    assert after.get("new") in (None, _remembered(2))
    # This run does not use the cache again, although the cache works again.
    run.flush()
    assert [_run(trusted=trusted).get(name) for name in names] == found


@pytest.mark.parametrize("method", ["mark", "flush"])
@pytest.mark.parametrize("backend", [Refusing, RefusingHalf])
def test_refused_keys_are_deleted(
    location: str, backend: type, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If the cache refuses a shard, the older shard is deleted.

    The entries in it are doubtful then, because headers may have changed.
    """
    names = [str(n) for n in range(50)]
    for name in names:
        _after_upload(1, name)
    run = _run()
    assert {run.get(name) for name in names} == {_remembered(1)}
    with override_settings(CACHES=_caches(backend, location)):
        if method == "mark":
            run.mark(dict.fromkeys(names, _fingerprint(2)))
        else:
            for name in names:
                run.remember(name, _remembered(2))
            run.flush()
    after = _run()
    found = {after.get(name) for name in names}
    is_taken = backend is RefusingHalf and method == "flush"
    assert found == ({DOUBTFUL, _remembered(2)} if is_taken else {DOUBTFUL})
    [message] = caplog.messages
    assert "it did not store" in message
    assert "(COLLECTFAST_CACHE) failed" in message


def test_missing_entries_are_doubtful_until_a_complete_run(location: str) -> None:
    """After the cache has refused a shard, missing entries in it are doubtful.

    They are normal again after a run that has uploaded all of its files.
    """
    _after_upload(1)
    run = _run()
    run.remember("a", _remembered(2))
    with override_settings(CACHES=_caches(Refusing, location)):
        run.flush()
    assert _run().get("missing") is DOUBTFUL
    _after_upload(3)
    assert _run().get("a") == _remembered(3)
    assert _run().get("missing") is DOUBTFUL
    complete = _run()
    complete.remember("a", _remembered(4))
    complete.complete()
    complete.flush()
    assert _run().get("a") == _remembered(4)
    assert _run().get("missing") is None


def test_missing_entries_are_normal_if_a_new_shard_is_refused(location: str) -> None:
    """If the cache refuses a new shard, its entries are missing and not doubtful.

    No earlier entry is lost then.
    """
    run = _run()
    run.remember("a", _remembered(1))
    with override_settings(CACHES=_caches(Refusing, location)):
        run.flush()
    assert _run().get("a") is _run().get("missing") is None


@pytest.mark.parametrize("backend", [ReadOnly, HalfWay])
def test_flush_succeeds_after_a_mark_that_failed(location: str, backend: type) -> None:
    """Entries are written by `flush` even if the cache failed when they were marked."""
    names = [str(n) for n in range(50)]
    for name in names:
        _after_upload(1, name)
    run = _run()
    with override_settings(CACHES=_caches(backend, location)):
        run.mark(dict.fromkeys(names, _fingerprint(2)))
    for name in names:
        run.remember(name, _remembered(2))
    run.flush()
    assert {_run().get(name) for name in names} == {_remembered(2)}


# Invalidation.


def test_invalidated_entry_is_removed() -> None:
    """An invalidated entry is missing for every later run."""
    _after_upload(1, trusted=True)
    _run(trusted=True).invalidate("a")
    assert _run(trusted=True).get("a") is None
    _after_upload(2, trusted=True)
    assert _run(trusted=True).get("a") == _remembered(2)


@pytest.mark.parametrize("moment", ["read", "marked", "remembered", "flushed"])
@pytest.mark.parametrize("there", [True, False])
def test_entry_invalidated_during_a_trusted_run_is_not_written_back(
    moment: str, there: bool
) -> None:
    """An entry that a program invalidates is missing after the run, too.

    The program may do so at any time after the run's first read.
    """
    if there:
        _after_upload(1, trusted=True)
    run = _started(trusted=True)

    def at(now: str) -> None:
        if moment == now:
            _run(trusted=True).invalidate("a")

    at("read")
    run.mark({"a": _fingerprint(2)})
    at("marked")
    run.remember("a", _remembered(2))
    at("remembered")
    run.flush()
    at("flushed")
    assert _run(trusted=True).get("a") is None
    # The run can flush again at its end.
    run.remember("a", _remembered(3))
    run.flush()
    assert _run(trusted=True).get("a") is None


@pytest.mark.parametrize("moment", ["before", "after"])
def test_entry_invalidated_while_a_trusted_run_writes_is_removed(
    location: str, moment: str
) -> None:
    """An entry that is invalidated while a run writes it is removed.

    The run therefore reads invalidations again after it has written.
    """
    _after_upload(1, trusted=True)
    run = _started(trusted=True)
    run.remember("a", _remembered(2))
    with override_settings(CACHES=_caches(Interrupting, location)):
        calls = getattr(Interrupting, moment)
        calls.append(lambda: _run(trusted=True).invalidate("a"))
        run.flush()
        assert calls == []
    assert _run(trusted=True).get("a") is None


def test_entry_invalidated_before_a_run_is_written() -> None:
    """An invalidation affects the runs at this time, and no later run."""
    _run(trusted=True).invalidate("a")
    _after_upload(1, trusted=True)
    assert _run(trusted=True).get("a") == _remembered(1)


def test_invalidation_does_not_affect_other_buckets() -> None:
    """An invalidation in one bucket does not remove the entries of another bucket."""
    other = UploadCache("default", None, "endpoint other", trusted=True)
    other.remember("a", _remembered(1))
    other.flush()
    _run(trusted=True).invalidate("a")
    fresh = UploadCache("default", None, "endpoint other", trusted=True)
    assert fresh.get("a") == _remembered(1)


# The cache in a deploy.


@pytest.mark.parametrize("backend", [Broken, Refusing])
def test_failing_cache_is_a_warning(
    site: Site, backend: type, caplog: pytest.LogCaptureFixture
) -> None:
    """If the cache fails, the files are uploaded and a warning names the cache."""
    files = site.write_many(5)
    with caplog.at_level(logging.WARNING, "collectfast_storage"):
        deploy = site.collect(CACHES=_caches(backend))
    assert deploy.requests == {"LIST": 1, "PUT": 5}
    assert site.bucket.files() == files
    assert "Cache 'default' (COLLECTFAST_CACHE) failed" in caplog.text
    assert site.collect(CACHES=_caches(backend)).requests == {"LIST": 1}


@pytest.mark.parametrize("timeout", [None, 60])
def test_cache_is_read_and_written_in_bulk_with_its_timeout(
    site: Site, timeout: int | None
) -> None:
    """A deploy reads the cache once, and writes it once or not at all."""
    site.write_many(100)
    site.options["collectfast_cache_timeout"] = timeout
    settings = _caches(Counting)
    Counting.calls.clear()
    site.collect(CACHES=settings)
    assert [(name, t) for name, _, t in Counting.calls] == [
        ("get_many", None),
        ("get_many", None),
        ("set_many", timeout),
    ]
    Counting.calls.clear()
    site.collect(CACHES=settings)
    assert [name for name, _, _ in Counting.calls] == ["get_many"]


def test_cache_of_another_alias(site: Site, tmp_path: Path) -> None:
    """If `COLLECTFAST_CACHE` names an alias, the cache `default` is not used."""
    site.write_many(3)
    file_cache = {
        "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
        "LOCATION": str(tmp_path / "cache"),
    }
    site.options["collectfast_preload"] = False
    settings = {
        "CACHES": _caches(Broken) | {"files": file_cache},
        "COLLECTFAST_CACHE": "files",
    }
    site.collect(**settings)
    assert site.collect(**settings).requests == {}


def test_warning_names_cache_and_reason(caplog: pytest.LogCaptureFixture) -> None:
    """A cache that fails several times results in one warning, with the reason."""
    with override_settings(CACHES=_caches(Broken)):
        run = _run()
        assert [run.get(name) for name in "abc"] == [None] * 3
        run.mark({"a": _fingerprint(1)})
        run.remember("a", _remembered(1))
        run.flush()
        assert run.get("a") == _remembered(1)
    assert caplog.messages == [
        "Cache 'default' (COLLECTFAST_CACHE) failed; comparing files with the "
        "bucket instead: ConnectionError: nobody there"
    ]


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("clear", [True, False])
def test_deploy_uses_a_failing_cache_once(
    site: Site, preload: bool, clear: bool
) -> None:
    """A deploy uses a failing cache once, because each attempt may take long."""
    site.options["collectfast_preload"] = preload
    site.write_many(20)
    Unreachable.attempts = 0
    site.collect(*(["--clear"] if clear else []), CACHES=_caches(Unreachable))
    assert Unreachable.attempts == 1


@pytest.mark.needs("trailing checksums")
@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("operation", ["save", "delete", "open", "batch"])
def test_program_uses_a_failing_cache_once_per_invalidation(
    site: Site, preload: bool, operation: str
) -> None:
    """A program's write uses the cache once for each invalidation, even if it fails.

    With `preload=False` a write invalidates the entry before and after it. Writing
    through `open` also does so when the file is opened. Otherwise no cache is used.
    """
    site.options["collectfast_preload"] = preload
    site.settings = {"CACHES": _caches(Unreachable)}
    Unreachable.attempts = 0
    with site.storage() as storage:
        if operation == "delete":
            storage.delete("a")
        elif operation == "save":
            storage.save("a", ContentFile(b"a"))
        elif operation == "open":
            with storage.open("a", "wb") as file:
                file.write(b"a")
        else:
            with storage.batch() as batch:
                batch.save("a", ContentFile(b"a"))
    assert site.bucket.names() == ([] if operation == "delete" else ["a"])
    expected = 3 if operation == "open" else 2
    assert Unreachable.attempts == (0 if preload else expected)
