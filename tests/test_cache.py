"""What is remembered, in real Django caches."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache
from django.test import override_settings

from collectfast_storage.cache import EtagCache
from collectfast_storage.etag import UNCERTAIN, Fingerprint, Remembered
from collectfast_storage.journal import Journal
from tests.site import Site


class Broken(LocMemCache):
    """A cache whose server is away."""

    def get_many(self, *args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("nobody there")

    set_many = get_many


class Distant(LocMemCache):
    """A cache whose answers reach all threads at one moment, if they may ask at once.

    Where one has to wait for the other, they come as ever.
    """

    together = threading.Barrier(8)
    together.abort()

    def get_many(self, keys: Any, *args: Any, **kwargs: Any) -> Any:
        found = {key: LocMemCache.get(self, key, self) for key in keys}
        self._wait()
        return {key: value for key, value in found.items() if value is not self}

    def get(self, *args: Any, **kwargs: Any) -> Any:
        found = super().get(*args, **kwargs)
        self._wait()
        return found

    def _wait(self) -> None:
        with suppress(threading.BrokenBarrierError):
            self.together.wait(0.2)


class Hasty(LocMemCache):
    """A cache that is away for the first question."""

    away = True

    def get_many(self, *args: Any, **kwargs: Any) -> Any:
        if Hasty.away:
            Hasty.away = False
            raise ConnectionError("not yet")
        return super().get_many(*args, **kwargs)


class Unreadable(LocMemCache):
    """A cache that answers to no single question."""

    def get(self, *args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("not now")


class Refusing(LocMemCache):
    """A cache that takes no large entry, as Memcached does."""

    def set_many(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        return list(data)


class Counting(LocMemCache):
    """A cache that says how it was used."""

    calls: list[tuple[str, int, Any]] = []  # noqa: RUF012

    def get_many(self, keys: Any, *args: Any) -> Any:
        keys = list(keys)
        self.calls.append(("get_many", len(keys), None))
        return super().get_many(keys, *args)

    def set_many(self, data: Any, timeout: Any = "default", *args: Any) -> Any:
        self.calls.append(("set_many", len(data), timeout))
        return super().set_many(data, timeout, *args)


def _caches(backend: str | type) -> dict[str, Any]:
    if not isinstance(backend, str):
        backend = f"{__name__}.{backend.__name__}"
    return {"default": {"BACKEND": backend, "LOCATION": uuid4().hex}}


@pytest.fixture(autouse=True)
def _cache_of_its_own() -> Iterator[None]:
    with override_settings(
        CACHES=_caches("django.core.cache.backends.locmem.LocMemCache")
    ):
        yield


def _remembered(number: int) -> Remembered:
    return Remembered(Fingerprint(f"md5-{number}", "headers"), f"etag-{number}")


def _cache(bucket: str = "endpoint bucket", *, bulk: bool = False) -> EtagCache:
    return EtagCache("default", None, bucket, bulk=bulk)


def test_what_is_flushed_is_there_for_the_next() -> None:
    """And what is not flushed is not."""
    cache = _cache()
    cache.remember("a", _remembered(1))
    assert cache.get("a") == _remembered(1)
    assert _cache().get("a") is None
    cache.flush()
    assert _cache().get("a") == _remembered(1)
    assert _cache("endpoint other").get("a") is None


def test_forgotten_is_gone() -> None:
    """A deleted key leaves no entry."""
    cache = _cache()
    cache.remember("a", _remembered(1))
    cache.flush()
    cache.forget("a")
    assert cache.get("a") is None
    cache.flush()
    assert _cache().get("a") is None


def test_two_writers_keep_each_others_entries() -> None:
    """Shards are merged with what is there when they are written."""
    one, two = _cache(), _cache()
    for number in range(100):
        (one if number % 2 else two).remember(str(number), _remembered(number))
    one.flush()
    two.flush()
    fresh = _cache(bulk=True)
    assert [fresh.get(str(n)) for n in range(100)] == [
        _remembered(n) for n in range(100)
    ]


@override_settings(CACHES=_caches(Distant))
def test_threads_that_write_at_one_moment_keep_each_others_entries() -> None:
    """As those do that save through one storage."""

    def remember(first: int) -> None:
        one = _cache()
        for number in range(first, 40, 8):
            one.remember(str(number), _remembered(number))
        one.flush()

    _at_once(remember)
    fresh = _cache()
    assert [n for n in range(40) if fresh.get(str(n)) != _remembered(n)] == []


@pytest.mark.parametrize("step", [1, -1])
@override_settings(CACHES=_caches(Distant))
def test_threads_that_begin_at_one_moment_all_leave_their_note(step: int) -> None:
    """Else one that is killed may go unnoticed."""
    journals = [Journal("default", "place") for _ in range(8)]
    assert not any(journal.is_open for journal in journals)
    _at_once(lambda number: journals[number].begin())
    for journal in journals[::step]:
        assert Journal("default", "place").is_open
        journal.end(settles=False)
    assert not Journal("default", "place").is_open


def _at_once(work: Callable[[int], object]) -> None:
    """Do `work` in eight threads, each with its number."""
    Distant.together.reset()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    Distant.together.abort()


@pytest.mark.parametrize(
    "garbage",
    [b"bytes", 7, ["list"], {"a": 7}, {"a": None}, {"a": "one two"}, {1: "a b c"}],
)
def test_garbage_is_nothing_remembered(garbage: object) -> None:
    """Whoever wrote it, it is not believed, and it is written over."""
    cache = _cache()
    cache.remember("a", _remembered(1))
    cache.flush()
    for name in list(caches["default"]._cache):  # type: ignore[attr-defined]
        key = name.split(":", 2)[2]
        caches["default"].set(key, garbage)
    assert _cache().get("a") is None
    cache = _cache()
    cache.remember("a", _remembered(2))
    cache.flush()
    assert _cache().get("a") == _remembered(2)


@pytest.mark.parametrize("backend", [Broken, Refusing])
def test_failing_cache_is_a_warning_and_never_a_failed_deploy(
    site: Site, backend: type, caplog: pytest.LogCaptureFixture
) -> None:
    """The files arrive, and the log says which cache failed and why."""
    files = site.write_many(5)
    with caplog.at_level(logging.WARNING, "collectfast_storage"):
        deploy = site.collect(CACHES=_caches(backend))
    assert deploy.requests == {"LIST": 2, "PUT": 5}
    assert site.bucket.files() == files
    assert "The cache 'default' (COLLECTFAST_CACHE) failed" in caplog.text
    assert site.collect(CACHES=_caches(backend)).requests == {"LIST": 1}


@pytest.mark.parametrize("timeout", [None, 60])
def test_cache_is_read_and_written_in_bulk_with_its_timeout(
    site: Site, timeout: int | None
) -> None:
    """One call to read, one or none to write, however many files there are."""
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
    """`COLLECTFAST_CACHE` names the one to use; nothing goes into `default`."""
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


def test_doubted_is_uncertain_for_others_until_it_is_flushed() -> None:
    """Who is killed in between leaves the doubt, and nothing else that it planned."""
    one = _cache()
    for key in ("changes", "stays"):
        one.remember(key, _remembered(1))
    one.flush()
    one.doubt("ch")
    other = _cache()
    assert other.get("changes") == UNCERTAIN
    assert other.get("stays") == _remembered(1)
    assert other.get("unknown") is None
    assert one.get("changes") == _remembered(1)
    one.flush()
    assert _cache().get("changes") == _remembered(1)


def test_warning_says_which_cache_and_why(caplog: pytest.LogCaptureFixture) -> None:
    """Once; and not at all where somebody else says it."""
    backend = f"{__name__}.Broken"
    with override_settings(CACHES={"default": {"BACKEND": backend}}):
        quiet = EtagCache("default", None, "endpoint bucket", quiet=True)
        assert quiet.get("a") is None
        assert caplog.messages == []
        cache = _cache()
        assert [cache.get(key) for key in "abc"] == [None] * 3
    assert caplog.messages == [
        "The cache 'default' (COLLECTFAST_CACHE) failed; more has to be compared with "
        "the bucket: ConnectionError: nobody there"
    ]


# What two processes note of one key.


def _noting(**what: Remembered) -> EtagCache:
    cache = _cache(bulk=True)
    for key, remembered in what.items():
        cache.remember(key, remembered)
    return cache


def test_two_that_sent_different_things_leave_a_doubt() -> None:
    """Which of them was the last to arrive, neither knows."""
    one, other = _noting(key=_remembered(1)), _noting(key=_remembered(2))
    one.flush()
    other.flush()
    assert _cache().get("key") == UNCERTAIN


def test_two_that_sent_the_same_leave_no_doubt() -> None:
    """Whatever the ETags: with opaque ones, they would upload it again for ever."""
    same = _remembered(1)
    one, other = _noting(key=same), _noting(key=replace(same, etag="other"))
    one.flush()
    other.flush()
    assert _cache().get("key") == replace(same, etag="other")


def test_doubt_of_all_brings_nothing_back_that_another_has_replaced() -> None:
    """It has read what was there before."""
    _noting(key=_remembered(1), changes=_remembered(1)).flush()
    one = _cache(bulk=True)
    assert one.get("key") == _remembered(1)
    _noting(key=_remembered(2)).flush()
    one.doubt("")
    one.flush()
    assert _cache().get("key") == UNCERTAIN
    assert _cache().get("changes") == _remembered(1)


def test_doubt_of_all_does_not_take_that_of_another_for_its_own() -> None:
    """Though both are uncertain."""
    _noting(key=_remembered(1)).flush()
    one, other = _cache(bulk=True), _cache(bulk=True)
    assert one.get("key") == other.get("key") == _remembered(1)
    one.doubt("")
    one.remember("key", _remembered(2))
    other.remember("key", _remembered(3))
    other.flush()
    one.flush()
    assert _cache().get("key") == UNCERTAIN


def test_doubt_of_all_does_not_replace_that_of_another() -> None:
    """Which was there first, but not yet when this one read."""
    _noting(key=_remembered(1)).flush()
    one, other = _cache(bulk=True), _cache(bulk=True)
    assert one.get("key") == other.get("key") == _remembered(1)
    _noting(key=_remembered(2)).flush()
    other.remember("key", _remembered(3))
    other.flush()
    one.doubt("")
    one.flush()
    assert _cache().get("key") == UNCERTAIN


def test_note_of_a_run_that_began_meanwhile_stays() -> None:
    """Who begins adds to the notes that are there by then."""
    one, other = Journal("default", "place"), Journal("default", "place")
    assert not one.is_open
    other.begin()
    one.begin()
    one.end(settles=False)
    assert Journal("default", "place").is_open


@override_settings(CACHES=_caches(Unreadable))
def test_note_that_cannot_be_read_may_be_there() -> None:
    """Then the bucket is asked, and not the cache alone."""
    assert Journal("default", "place").is_open


def test_forgotten_is_gone_whatever_another_has_noted() -> None:
    """To know nothing costs a comparison; a doubt would cost an upload."""
    _noting(key=_remembered(1)).flush()
    one, other = _cache(), _cache()
    assert one.get("key") == other.get("key") == _remembered(1)
    other.remember("key", _remembered(2))
    other.flush()
    one.forget("key")
    one.flush()
    assert _cache().get("key") is None


@override_settings(CACHES=_caches(Hasty))
def test_what_could_not_be_read_is_forgotten_all_the_same() -> None:
    """It may be there."""
    Hasty.away = False
    _noting(key=_remembered(1)).flush()
    Hasty.away = True
    one = _cache()
    one.forget("key")
    one.flush()
    assert _cache().get("key") is None


def test_keys_are_those_of_all_shards() -> None:
    """Whatever was asked for before."""
    names = [f"place/{number}" for number in range(40)]
    _noting(**dict.fromkeys([*names, "elsewhere"], _remembered(1))).flush()
    assert sorted(_cache().keys("place/")) == sorted(names)


def test_what_is_flushed_is_not_flushed_again() -> None:
    """By then another may have noted something newer."""
    one = _noting(key=_remembered(1))
    one.flush()
    _noting(key=_remembered(2)).flush()
    one.flush()
    assert _cache().get("key") == _remembered(2)
