"""A cache that deploys share, some of which start together or are killed.

The cache contains the headers of objects, and ETags do not. So it must not lose an
entry, and it must not keep a wrong one.
"""

from __future__ import annotations

import io
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from django.contrib.staticfiles.management.commands.collectstatic import Command
from django.core.cache.backends.base import BaseCache
from django.core.cache.backends.filebased import FileBasedCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.management import call_command
from django.utils.module_loading import import_string

from tests.support.processes import LONG, managing
from tests.support.proxy import Handler, Request
from tests.support.site import MANIFEST, STATIC, Site

pytestmark = [pytest.mark.slow, pytest.mark.covering]

BACKENDS = pytest.mark.parametrize("backend", [STATIC, MANIFEST])
KINDS = pytest.mark.parametrize(
    ("backend", "preload"),
    [(STATIC, True), (STATIC, False), (MANIFEST, True)],
    ids=["static", "without preload", "manifest"],
)
LIMIT = 10  # seconds, after which a deploy of a test is considered to hang
MEETING = 2  # seconds that a deploy waits for the others
REPLICAS = 3


class Meeting:
    """A point where deploys wait for each other, once."""

    def __init__(self, parties: int) -> None:
        self._barrier = threading.Barrier(parties, timeout=MEETING)
        self._is_over = False

    def __call__(self) -> None:
        if not self._is_over:
            # A deploy without uploads may never reach this point.
            with suppress(threading.BrokenBarrierError):
                self._barrier.wait()
            self._is_over = True


def _nothing() -> None:
    """Do nothing."""


class WatchedMemory(LocMemCache):
    """A local-memory cache that calls a function before it reads or writes."""

    before_read: ClassVar[Callable[[], None]] = staticmethod(_nothing)
    before_write: ClassVar[Callable[[], None]] = staticmethod(_nothing)

    def get(self, *args: Any, **kwargs: Any) -> Any:
        type(self).before_read()
        return super().get(*args, **kwargs)

    def set(self, *args: Any, **kwargs: Any) -> None:
        type(self).before_write()
        super().set(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> Any:
        type(self).before_write()
        return super().delete(*args, **kwargs)


def _caches(path: Path, backend: type[BaseCache] = WatchedMemory) -> dict[str, Any]:
    name = f"{__name__}.{backend.__name__}"
    return {"default": {"BACKEND": name, "LOCATION": str(path)}}


@pytest.fixture
def shared(site: Site, tmp_path: Path) -> Site:
    """A site of six files with a cache that all threads share."""
    site.settings["CACHES"] = _caches(tmp_path / "cache")
    site.write_many(6)
    return site


def _aged(site: Site, age: int) -> Site:
    """Make later deploys send `age` as a header."""
    site.options["object_parameters"] = {"CacheControl": f"max-age={age}"}
    return site


def _ages(site: Site, but: Set[str] = frozenset()) -> set[str]:
    """Return the headers of all objects except those in `but`."""
    names = {*site.bucket.names()} - but
    return {site.bucket.get(name)["CacheControl"] for name in names}


def _collect_as_replica(backend: str, options: dict[str, Any]) -> None:
    """Run collectstatic with its own storage, like a process."""
    command = Command()
    command.storage = import_string(backend)(**options)
    call_command(command, "--noinput", stdout=io.StringIO())


def _start(site: Site, pool: ThreadPoolExecutor, age: int) -> Any:
    options = _aged(site, age).storage_options
    return pool.submit(_collect_as_replica, site.backend, options)


def _together(site: Site, *ages: int) -> Counter[str]:
    """Run a deploy for each of `ages` together; return the requests of all of them."""
    site.proxy.requests.clear()
    with site.active(), ThreadPoolExecutor(len(ages)) as pool:
        for deploy in [_start(site, pool, age) for age in ages]:
            deploy.result(LIMIT)
    return site.proxy.count()


def _meet(site: Site, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """Let the next three deploys wait for each other at `point`."""
    meeting = Meeting(REPLICAS)

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "LIST":
            meeting()
        return False

    site.proxy.fault = fault if point == "listing" else None
    for name in ("read", "write"):
        meets = point == f"cache {name}"
        call = staticmethod(meeting if meets else _nothing)
        monkeypatch.setattr(WatchedMemory, f"before_{name}", call)


# Replicas that start together.


def _change_headers(site: Site) -> None:
    """Change no file, because the deploy sends new headers."""


def _change_contents(site: Site) -> None:
    for path in site.static.rglob("*.*"):
        path.write_text(f"new {path.name}")


@KINDS
@pytest.mark.parametrize("point", ["listing", "cache read", "cache write"])
@pytest.mark.parametrize("change", [_change_headers, _change_contents])
@pytest.mark.parametrize("following", ["alone", "together"])
def test_replicas_that_start_together_upload_once_each_and_not_again(
    shared: Site,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    preload: bool,
    point: str,
    change: Callable[[Site], None],
    following: str,
) -> None:
    """After a change each of three deploys may upload, and later ones upload nothing.

    The later deploys may run alone or together.
    """
    if point == "listing" and not preload:
        pytest.skip("without preload there is no listing")
    shared.backend = backend
    shared.options["collectfast_preload"] = preload
    _aged(shared, 60).collect()
    change(shared)
    _meet(shared, monkeypatch, point)
    before = {*shared.bucket.names()}
    _together(shared, 99, 99, 99)
    expected = {"max-age=99"}
    # The hashed files of the release before keep their header.
    old = before - {*shared.manifest().values()} if backend == MANIFEST else set()
    old = {name for name in old if re.search(r"\.[0-9a-f]{12}\.", name)}
    assert _ages(shared, old) == expected
    for _ in range(2):
        if following == "alone":
            assert shared.collect().put == []
        _meet(shared, monkeypatch, point)
        assert _together(shared, 99, 99, 99)["PUT"] == 0
    assert _ages(shared, old) == expected


@BACKENDS
def test_replicas_of_a_first_deploy_leave_a_complete_cache(
    shared: Site, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """After a first deploy by three replicas a change of headers is noticed."""
    shared.backend = backend
    _meet(shared, monkeypatch, "listing")
    _together(shared, 60, 60, 60)
    assert _together(shared, 60, 60, 60)["PUT"] == 0
    files = len(shared.bucket.names())
    put = _aged(shared, 99).collect().put
    # A manifest is written by every deploy that has changed something.
    assert len(put) == files
    assert _ages(shared) == {"max-age=99"}
    assert _aged(shared, 99).collect().put == []


# Deploys with different headers that overlap.


class Gate:
    """A gate that blocks its first caller until the test opens it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_used = False
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def __call__(self) -> None:
        with self._lock:
            is_first = not self._is_used
            self._is_used = True
        if is_first:
            self.reached.set()
            self.go_on.wait(LIMIT)


@KINDS
@pytest.mark.parametrize("last", [60, 120])
@pytest.mark.parametrize(
    "point", ["before a PUT", "after a PUT", "after the LIST", "cache write"]
)
def test_complete_deploy_corrects_the_headers_of_overlapping_ones(
    shared: Site,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    preload: bool,
    last: int,
    point: str,
) -> None:
    """After two deploys overlapped, the next one leaves its own headers.

    A deploy of 99 is blocked while one of 120 runs. The next deploy sends the header of
    the latter, or that of the release before both.
    """
    if point == "after the LIST" and not preload:
        pytest.skip("without preload there is no listing")
    shared.backend = backend
    shared.options["collectfast_preload"] = preload
    _aged(shared, 60).collect()
    gate = Gate()

    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind not in ("LIST", "PUT") or request.kind not in point:
            return False
        if "before" in point:
            gate()
            return False
        answer = handler.ask(body)
        gate()
        handler.answer(*answer)
        return True

    if point == "cache write":
        monkeypatch.setattr(WatchedMemory, "before_write", staticmethod(gate))
    else:
        shared.proxy.fault = fault
    with shared.active(), ThreadPoolExecutor(2) as pool:
        held = _start(shared, pool, 99)
        assert gate.reached.wait(LIMIT)
        try:
            _start(shared, pool, 120).result(LIMIT)
        finally:
            gate.go_on.set()
        held.result(LIMIT)
    shared.proxy.fault = None
    _aged(shared, last).collect()
    assert _ages(shared) == {f"max-age={last}"}
    assert shared.collect().put == []
    assert _ages(shared) == {f"max-age={last}"}


@pytest.mark.parametrize("last", [60, 99, 120, 180])
def test_three_deploys_with_different_headers_that_start_together(
    shared: Site, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """After three deploys started together, the next one leaves its own headers.

    It does not matter which of the three uploaded a file last.
    """
    _aged(shared, 60).collect()
    _meet(shared, monkeypatch, "listing")
    _together(shared, 99, 120, 180)
    _aged(shared, last).collect()
    assert _ages(shared) == {f"max-age={last}"}


# Deploys that die in a write of the cache, and caches that fail.


class KilledError(BaseException):
    """The end of a process, simulated by an exception."""


@dataclass
class Plan:
    """A failure in the write `number` of a cache, counted from 0."""

    number: int
    moment: str  # "before", "middle" or "after" the write
    how: str  # "killed", "exit", "away" or "raises"
    seen: int = 0
    happened: bool = False

    def strike(self) -> None:
        self.happened = True
        if self.how == "exit":
            os._exit(9)
        self.fail()

    def fail(self) -> None:
        raise KilledError if self.how == "killed" else ConnectionError("it went away")

    @property
    def is_permanent(self) -> bool:
        """Return whether all later operations fail, too."""
        return self.happened and self.how != "raises"


class BreakingFiles(FileBasedCache):
    """A file-based cache that fails as `plan` says, which all instances share."""

    plan: ClassVar[Plan | None] = None

    def __init__(self, path: str, params: dict[str, Any]) -> None:
        super().__init__(path, params)
        self._is_inside = False

    def _write(
        self, write: Callable[[Any], Any], items: list[Any], empty: Any = None
    ) -> Any:
        """Call `write` for all, some or none of `items`, as the plan says."""
        plan = self.plan
        if self._is_inside or plan is None:
            return write(items)
        if plan.is_permanent:
            plan.fail()
        number = plan.seen
        plan.seen += 1
        count = len(items)
        if number == plan.number:
            count = {"before": 0, "middle": count // 2, "after": count}[plan.moment]
        self._is_inside = True
        try:
            result = write(items[:count]) if count else empty
        finally:
            self._is_inside = False
        if number == plan.number:
            plan.strike()
        return result

    def get(self, *args: Any, **kwargs: Any) -> Any:
        if self.plan is not None and self.plan.is_permanent:
            self.plan.fail()
        return super().get(*args, **kwargs)

    def add(self, key: Any, value: Any, *args: Any, **kwargs: Any) -> bool:
        return super().add(key, value, 0.1)  # A lock that is left expires soon.

    def set(self, *args: Any, **kwargs: Any) -> None:
        self._write(lambda _: super(BreakingFiles, self).set(*args, **kwargs), [0])

    def delete(self, *args: Any, **kwargs: Any) -> Any:
        parent = super()
        return self._write(lambda _: parent.delete(*args, **kwargs), [0])

    def set_many(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        parent = super()
        items = list(data.items())
        return self._write(lambda i: parent.set_many(dict(i), *args, **kwargs), items)

    def delete_many(self, keys: Any, *args: Any, **kwargs: Any) -> None:
        parent = super()
        self._write(lambda i: parent.delete_many(i, *args, **kwargs), list(keys))


@pytest.fixture
def breaking(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Plan | None], None]:
    """Give the site a cache that fails; return a function that sets its plan."""
    site.settings["CACHES"] = _caches(tmp_path / "cache", BreakingFiles)
    site.write_many(6)
    return lambda plan: monkeypatch.setattr(BreakingFiles, "plan", plan)


@pytest.mark.parametrize("moment", ["before", "middle", "after"])
@pytest.mark.parametrize(
    ("how", "then", "preload"),
    [
        ("killed", 60, True),
        # For the old headers, COLLECTFAST_IGNORE_ETAG would be needed, as README says.
        ("away", 99, True),
        ("raises", 60, True),
        ("killed", 99, True),
        ("killed", 60, False),
    ],
)
def test_deploy_after_one_that_failed_in_a_write_of_the_cache(
    site: Site,
    breaking: Callable[[Plan | None], None],
    preload: bool,
    then: int,
    moment: str,
    how: str,
) -> None:
    """After a deploy that failed in any write of the cache, the next one is right.

    A deploy may be killed in each write of the cache, or the cache's server may go down
    there, or one write may fail. The next deploy has the old headers, or those of the
    one that failed.
    """
    site.options["collectfast_preload"] = preload
    number = 0
    while True:
        breaking(None)
        _aged(site, 60).collect()
        plan = Plan(number, moment, how)
        breaking(plan)
        try:
            _aged(site, 99).collect()
        except KilledError:
            assert how == "killed"
        breaking(None)
        _aged(site, then).collect()
        assert _ages(site) == {f"max-age={then}"}, f"write {number}"
        assert site.collect().put == []
        if not plan.happened:
            break
        number += 1
    assert number > 0


def collect_and_exit(number: int, moment: str) -> None:
    """Run collectstatic, and end the process at a write of the cache."""
    BreakingFiles.plan = Plan(number, moment, "exit")
    call_command("collectstatic", "--noinput", stdout=io.StringIO())


@pytest.mark.parametrize("number", [0, 1, 2])
def test_deploy_after_one_whose_process_has_ended_in_a_write_of_the_cache(
    site: Site, breaking: Callable[[Plan | None], None], number: int
) -> None:
    """A process that exits in the middle of a write leaves no wrong entry."""
    breaking(None)
    _aged(site, 60).collect()
    call = f"t.collect_and_exit({number}, 'middle')"
    command = f"import {__name__} as t; {call}"
    with managing(_aged(site, 99), "shell", "-c", command, traced=False) as process:
        _, errors = process.communicate(timeout=LONG)
    # There may be fewer writes than `number`.
    assert process.returncode in ((0, 9) if number else (9,)), errors
    _aged(site, 60).collect()
    assert _ages(site) == {"max-age=60"}


@pytest.mark.parametrize("moment", ["before", "middle", "after"])
@pytest.mark.parametrize("how", ["killed", "away", "raises"])
def test_failed_deploy_loses_no_entry_of_other_files(
    site: Site, breaking: Callable[[Plan | None], None], how: str, moment: str
) -> None:
    """A change of headers reaches the files that the failed deploy did not upload.

    The failed deploy has new contents of some files. It writes the entries of the
    others again, because an entry of the cache is for many files.
    """
    unchanged = site.write_many(40)
    changed = [f"changed{n}.css" for n in range(12)]
    number = 0
    while True:
        breaking(None)
        for name in changed:
            site.write(name, "before")
        _aged(site, 60).collect()
        for name in changed:
            site.write(name, f"after {number}")
        plan = Plan(number, moment, how)
        breaking(plan)
        with suppress(KilledError):
            site.collect()
        breaking(None)
        _aged(site, 99).collect()
        ages = {name: site.bucket.get(name)["CacheControl"] for name in unchanged}
        assert ages == dict.fromkeys(unchanged, "max-age=99"), f"write {number}"
        if not plan.happened:
            break
        number += 1
    assert number > 0


class Refusing(FileBasedCache):
    """A cache that refuses some keys and reports them, like Memcached."""

    refuses: ClassVar[Callable[[int], bool]] = staticmethod(lambda number: False)

    def set_many(self, data: Any, *args: Any, **kwargs: Any) -> list[Any]:
        refused = [key for n, key in enumerate(sorted(data)) if type(self).refuses(n)]
        taken = {key: value for key, value in data.items() if key not in refused}
        super().set_many(taken, *args, **kwargs)
        return refused


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("then", [60, 99])
@pytest.mark.parametrize(
    "refuses",
    [lambda number: True, lambda number: number == 0, lambda number: number % 2 == 1],
    ids=["all", "the first", "every second"],
)
def test_deploy_after_one_whose_cache_refused_keys(
    site: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    preload: bool,
    then: int,
    refuses: Callable[[int], bool],
) -> None:
    """If the cache refuses entries, for instance large ones, no older ones are left."""
    site.settings["CACHES"] = _caches(tmp_path / "cache", Refusing)
    site.options["collectfast_preload"] = preload
    site.write_many(6)
    _aged(site, 60).collect()
    monkeypatch.setattr(Refusing, "refuses", staticmethod(refuses))
    _aged(site, 99).collect()
    assert _ages(site) == {"max-age=99"}
    monkeypatch.setattr(Refusing, "refuses", staticmethod(lambda number: False))
    _aged(site, then).collect()
    assert _ages(site) == {f"max-age={then}"}
