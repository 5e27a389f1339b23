"""What is remembered, in real Django caches."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
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
from collectfast_storage.memory import Memory
from tests.site import Site


class Broken(LocMemCache):
    """A cache whose server is away."""

    def get_many(self, *args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("nobody there")

    set_many = get_many


class Asked(LocMemCache):
    """A cache whose server is away, and that counts how often it is asked."""

    times = 0

    def away(self, *args: Any, **kwargs: Any) -> Any:
        Asked.times += 1
        raise TimeoutError("nobody there")

    get = get_many = set = set_many = delete = delete_many = away


class Slow(LocMemCache):
    """A cache whose answers to reading take their time, so that threads meet."""

    def get_many(self, *args: Any, **kwargs: Any) -> Any:
        found = super().get_many(*args, **kwargs)
        time.sleep(0.01)
        return found


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


LOCK = threading.Lock()


def _memory(place: str = "endpoint bucket", *, whole: bool = False) -> Memory:
    return Memory("default", None, place, LOCK, whole=whole)


def _noting(**what: Remembered) -> Memory:
    memory = _memory(whole=True)
    for name, remembered in what.items():
        memory.remember(name, remembered)
    return memory


def _killed() -> None:
    """Begin to overwrite what is remembered, and never end."""
    _memory().begin()


def test_what_is_flushed_is_there_for_the_next() -> None:
    """And what is not flushed is not."""
    memory = _memory()
    memory.remember("a", _remembered(1))
    assert memory.get("a") == _remembered(1)
    assert _memory().get("a") is None
    memory.flush()
    assert _memory().get("a") == _remembered(1)
    assert _memory("endpoint other").get("a") is None


def test_forgotten_is_gone() -> None:
    """A deleted file leaves no entry."""
    _noting(a=_remembered(1)).flush()
    memory = _memory()
    memory.remember("a", None)
    assert memory.get("a") is None
    memory.flush()
    assert _memory().get("a") is None


def test_two_writers_keep_each_others_entries() -> None:
    """Shards are merged with what is there when they are written."""
    one, two = _memory(), _memory()
    for number in range(100):
        (one if number % 2 else two).remember(str(number), _remembered(number))
    one.flush()
    two.flush()
    fresh = _memory(whole=True)
    assert [fresh.get(str(n)) for n in range(100)] == [
        _remembered(n) for n in range(100)
    ]


@override_settings(CACHES=_caches(Slow))
def test_threads_that_write_at_one_moment_keep_each_others_entries() -> None:
    """As those do that save through one storage."""

    def remember(first: int) -> None:
        one = _memory()
        for number in range(first, 40, 8):
            one.remember(str(number), _remembered(number))
        one.flush()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(remember, range(8)))
    fresh = _memory()
    assert [n for n in range(40) if fresh.get(str(n)) != _remembered(n)] == []


@pytest.mark.parametrize(
    "garbage",
    [b"bytes", 7, ["list"], {"a": 7}, {"a": None}, {"a": "one two"}, {1: "a b c"}],
)
def test_garbage_is_nothing_remembered(garbage: object) -> None:
    """Whoever wrote it, it is not believed, and it is written over."""
    _noting(a=_remembered(1)).flush()
    for name in list(caches["default"]._cache):  # type: ignore[attr-defined]
        key = name.split(":", 2)[2]
        caches["default"].set(key, garbage)
    assert _memory().get("a") is None
    _noting(a=_remembered(2)).flush()
    assert _memory().get("a") == _remembered(2)


@pytest.mark.slow
def test_memory_is_bounded_and_the_latest_are_kept() -> None:
    """However many names there were: a save costs the same after a million."""
    count = 300_000
    memory = _memory(whole=True)
    for number in range(count):
        memory.remember(f"{'long' * 200}/{number}", _full(number))
    memory.flush()
    # Memcached takes 1 MB an entry.
    cache: Any = caches["default"]
    assert max(map(len, cache._cache.values())) < 1_000_000
    fresh = _memory(whole=True)
    kept = [n for n in range(count) if fresh.get(f"{'long' * 200}/{n}") == _full(n)]
    assert len(kept) > 100_000
    assert kept == list(range(count))[-len(kept) :] or min(kept) > count / 3


def _full(number: int) -> Remembered:
    text = f"{number:032}"
    return Remembered(Fingerprint(text, text), text)


@pytest.mark.parametrize("backend", [Broken, Refusing])
def test_failing_cache_is_a_warning_and_never_a_failed_deploy(
    site: Site, backend: type, caplog: pytest.LogCaptureFixture
) -> None:
    """The files arrive, and the log says which cache failed and why."""
    files = site.write_many(5)
    with caplog.at_level(logging.WARNING, "collectfast_storage"):
        deploy = site.collect(CACHES=_caches(backend))
    assert deploy.requests == {"LIST": 1, "PUT": 5}
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


def test_warning_says_which_cache_and_why(caplog: pytest.LogCaptureFixture) -> None:
    """Once."""
    backend = f"{__name__}.Broken"
    with override_settings(CACHES={"default": {"BACKEND": backend}}):
        memory = _memory()
        assert [memory.get(name) for name in "abc"] == [None] * 3
        memory.remember("a", _remembered(1))
        memory.flush()
    assert caplog.messages == [
        "The cache 'default' (COLLECTFAST_CACHE) failed, so the bucket is asked: "
        "ConnectionError: nobody there"
    ]


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("what", ["deploy", "batch", "save", "delete"])
def test_cache_that_fails_is_asked_no_more(
    site: Site, preload: bool, what: str
) -> None:
    """It may take its time to fail: once a deploy, or a save."""
    site.options["collectfast_preload"] = preload
    site.write_many(20)
    site.settings = {"CACHES": _caches(Asked)}
    Asked.times = 0
    if what == "deploy":
        site.collect("--clear")
    else:
        with site.storage() as storage:
            if what == "delete":
                storage.delete("a")
            with storage.batch() if what == "batch" else nullcontext():
                if what != "delete":
                    storage.save("a", ContentFile(b"a"))
    assert Asked.times == 1


# What a process leaves that was killed.


@pytest.mark.parametrize("whole", [True, False])
def test_after_one_that_was_killed_nothing_is_certain(whole: bool) -> None:
    """Until the next one has taken note; what that has not seen stays doubtful."""
    _noting(seen=_remembered(1), unseen=_remembered(1)).flush()
    _killed()
    memory = _memory(whole=whole)
    assert memory.get("seen") is memory.get("unseen") is DOUBTFUL
    assert memory.get("never heard of") is DOUBTFUL
    memory.begin()
    memory.remember("seen", _remembered(2))
    memory.flush()
    after = _memory(whole=True)
    assert after.get("seen") == _remembered(2)
    assert after.get("unseen") is DOUBTFUL
    assert after.get("never heard of") is None


def test_end_takes_back_that_a_run_is_under_way() -> None:
    """What it did not change is as certain as before."""
    _noting(a=_remembered(1)).flush()
    memory = _memory()
    memory.begin()
    memory.begin()
    assert _memory().get("a") is DOUBTFUL
    assert memory.get("a") == _remembered(1)
    memory.flush()
    assert _memory().get("a") == _remembered(1)


@pytest.mark.parametrize("first", [0, 1])
def test_two_at_once_believe_nothing_of_what_both_changed(first: int) -> None:
    """Which of them was the last to arrive, neither knows."""
    _noting(a=_remembered(0), b=_remembered(0)).flush()
    both = [_memory(), _memory()]
    for number, memory in enumerate(both, start=1):
        memory.begin()
        memory.remember("a", _remembered(number))
    for memory in (both[first], both[1 - first]):
        memory.flush()
    # The one that began first was overtaken, and cannot know by what.
    assert _memory().get("a") is DOUBTFUL
    assert _memory().get("b") is not None


def test_two_that_sent_different_things_leave_a_doubt() -> None:
    """The same without a note: an ETag would tell the content, and not the headers."""
    one, other = _noting(name=_remembered(1)), _noting(name=_remembered(2))
    one.flush()
    other.flush()
    assert _memory().get("name") is DOUBTFUL


def test_two_that_sent_the_same_leave_no_doubt() -> None:
    """Whatever the ETags: with opaque ones, they would upload it again for ever."""
    same = _remembered(1)
    other = same._replace(etag="other")
    one, two = _noting(name=same), _noting(name=other)
    one.flush()
    two.flush()
    assert _memory().get("name") == other


def test_forgotten_is_gone_whatever_another_has_noted() -> None:
    """To know nothing costs a comparison; a doubt would cost an upload."""
    _noting(name=_remembered(1)).flush()
    one, other = _memory(), _memory()
    assert one.get("name") == other.get("name") == _remembered(1)
    other.remember("name", _remembered(2))
    other.flush()
    one.remember("name", None)
    one.flush()
    assert _memory().get("name") is None


def test_what_is_flushed_is_not_flushed_again() -> None:
    """By then another may have noted something newer."""
    one = _noting(name=_remembered(1))
    one.flush()
    _noting(name=_remembered(2)).flush()
    one.flush()
    assert _memory().get("name") == _remembered(2)
