"""Concurrent deploys, threads and forked workers."""

from __future__ import annotations

import http.client
import io
import json
import random
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.staticfiles.management.commands.collectstatic import Command
from django.core.cache.backends.locmem import LocMemCache
from django.core.files.base import ContentFile
from django.core.management import call_command

from collectfast_storage import CollectfastS3StaticStorage
from tests.support.bucket import BucketView
from tests.support.processes import LONG, deploying, managing, seeded
from tests.support.proxy import Fault, Handler, Proxy, Request
from tests.support.servers import free_ports
from tests.support.site import STATIC, Site
from tests.support.workers import content_of

pytestmark = [pytest.mark.slow, pytest.mark.covering]

MANIFEST = "collectfast_storage.CollectfastS3ManifestStaticStorage"
LOCAL_MANIFEST = "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"
FILES = 20
Contents = dict[str, bytes]


@pytest.fixture
def two(tmp_path: Path, bucket: BucketView, counting: Proxy) -> tuple[Site, Site]:
    """Return two checkouts of one site that are deployed to the same location."""
    one, other = (Site(tmp_path / name, bucket, counting) for name in ("one", "other"))
    one.settings = other.settings = _file_cache(tmp_path / "cache")
    return one, other


def _file_cache(path: Path) -> dict[str, Any]:
    backend = "django.core.cache.backends.filebased.FileBasedCache"
    return {"CACHES": {"default": {"BACKEND": backend, "LOCATION": str(path)}}}


def _release(site: Site, number: int) -> Contents:
    """Write a release with other contents than any other under the same names."""
    for n in range(FILES):
        site.write(f"{n}.txt", f"{n} of release {number}")
    for n in range(3):
        site.write(f"only{number}-{n}.txt", f"{n} in release {number} only")
        site.write(f"img/{n}.svg", f"<svg>{n} {number}</svg>")
        rule = f"a {{ background: url(../img/{n}.svg); left: {number}px }}\n"
        site.write(f"css/{n}.css", rule)
    return _expected(site)


def _expected(site: Site) -> Contents:
    """Return the files that a deploy of `site` must leave in the bucket."""
    root = site.root / "collected"
    backend = "django.contrib.staticfiles.storage.StaticFilesStorage"
    if site.backend == MANIFEST:
        backend = LOCAL_MANIFEST
    site.collect(STORAGES={"staticfiles": {"BACKEND": backend}})
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


class Together:
    """A proxy fault that starts two deploys together, and delays them at random."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._longest = chance.choice([0.005, 0.02, 0.08])
        self._start = threading.Barrier(2)
        self._beginners = iter(range(2))

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "LIST" and next(self._beginners, None) is not None:
            self._start.wait(LONG)
        time.sleep(self._chance.uniform(0, self._longest))
        handler.pass_on(body)
        time.sleep(self._chance.uniform(0, self._longest))
        return True


def _deploy_both(sites: tuple[Site, Site], *arguments: str) -> list[tuple[int, str]]:
    with ExitStack() as stack:
        running = [stack.enter_context(deploying(site, *arguments)) for site in sites]
        errors = [process.communicate(timeout=LONG)[1] for process in running]
        return [(p.returncode, e) for p, e in zip(running, errors, strict=True)]


def _differing(there: Contents, expected: Contents, clears: bool) -> list[str]:
    """Return the names of the files that differ from the release `expected`."""
    names = there.keys() | expected.keys() if clears else expected.keys()
    return sorted(name for name in names if there.get(name) != expected.get(name))


@pytest.mark.parametrize("backend", [STATIC, MANIFEST], ids=["static", "manifest"])
@pytest.mark.parametrize("arguments", [(), ("--clear",)], ids=["keep", "clear"])
@pytest.mark.parametrize(
    ("releases", "repetition"),
    [(1, 0), (2, 0), (2, 1)],
    ids=["same", "different", "different-again"],
)
def test_two_deploys_started_together(
    two: tuple[Site, Site],
    backend: str,
    arguments: tuple[str, ...],
    releases: int,
    repetition: int,
) -> None:
    """Of two deploys that start together, the last writer of each file wins.

    A deploy fails only with an error of this package, and at least one of the two
    succeeds. The next deploy leaves a complete release.
    """
    seed, chance = seeded()
    for site in two:
        site.backend = backend
        site.bucket.put("left over.txt", b"left over")
    expected = [_release(two[0], 1), _release(two[1], releases)]
    two[0].proxy.fault = Together(chance)
    outcomes = _deploy_both(two, *arguments)
    for status, errors in outcomes:
        clear = re.search(r"^(Bucket|Upload|Delete)Error: ", errors, re.MULTILINE)
        assert status == 0 or clear, f"TEST_SEED={seed}\n{errors}"
        assert "Traceback" not in errors, f"TEST_SEED={seed}\n{errors}"
    assert 0 in [status for status, _ in outcomes], f"TEST_SEED={seed}\n{outcomes}"

    there = two[0].bucket.files()
    for name, content in there.items():
        allowed = [each.get(name) for each in expected]
        if name == "left over.txt":
            allowed.append(b"left over")
        assert content in allowed, name
    if releases == 1:
        differing = _differing(there, expected[0], bool(arguments))
        assert differing == [], f"TEST_SEED={seed}: {outcomes}"
    two[0].proxy.fault = None
    two[0].collect()
    assert _differing(two[0].bucket.files(), expected[0], False) == []
    assert there.keys() <= expected[0].keys() | expected[1].keys() | {"left over.txt"}


@pytest.mark.parametrize("held", ["before", "after"])
@pytest.mark.parametrize("backend", [STATIC, MANIFEST], ids=["static", "manifest"])
def test_deploy_that_is_overtaken_by_another(
    two: tuple[Site, Site], held: str, backend: str
) -> None:
    """A file of the slow deploy is delayed, or its response is, until the other ends.

    The cache that both share must not make the next deploy skip a file that is missing
    or outdated.
    """
    for site in two:
        site.backend = backend
        site.options = {"collectfast_threads": 4}
    slow, quick = two
    expected = [_release(slow, 1), _release(quick, 2)]
    holding = Holding("/7.txt", held)
    slow.proxy.fault = holding
    with deploying(slow) as overtaken:
        assert holding.begun.wait(LONG)
        with deploying(quick) as overtaking:
            _, errors = overtaking.communicate(timeout=LONG)
            assert overtaking.returncode == 0, errors
        holding.release.set()
        _, errors = overtaken.communicate(timeout=LONG)
        assert overtaken.returncode == 0, errors
    slow.proxy.fault = None
    for number in (0, 1):  # The next deploy has either release.
        two[number].collect()
        assert _differing(slow.bucket.files(), expected[number], False) == []


class Holding:
    """A proxy fault that delays the first PUT of a file, or the response to it."""

    def __init__(self, part: str, held: str) -> None:
        self._part = part
        self._held = held
        self.begun = threading.Event()
        self.release = threading.Event()

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        first = request.kind == "PUT" and request.key.endswith(self._part)
        if not first or self.begun.is_set():
            return False
        if self._held == "before":
            self.begun.set()
            self.release.wait(LONG)
            handler.pass_on(body)
            return True
        answer = handler.ask(body)
        self.begun.set()
        self.release.wait(LONG)
        handler.answer(*answer)
        return True


# Threads.


def _jitter(chance: random.Random) -> Fault:
    def fault(handler: Handler, request: Request, body: bytes) -> bool:
        time.sleep(chance.uniform(0, 0.01))
        handler.pass_on(body)
        time.sleep(chance.uniform(0, 0.01))
        return True

    return fault


@pytest.fixture
def _eager_threads() -> Iterator[None]:
    """Make threads switch often, in the middle of any operation."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(interval)


def _call_together(calls: list[Callable[[], Any]]) -> None:
    start = threading.Barrier(len(calls))

    def wait_and_call(call: Callable[[], Any]) -> None:
        start.wait(LONG)
        call()

    with ThreadPoolExecutor(len(calls)) as pool:
        for done in [pool.submit(wait_and_call, call) for call in calls]:
            done.result()


def _save(storage: Any, name: str, content: bytes, batch: bool = False) -> None:
    if batch:
        with storage.batch() as batch_of_one:
            batch_of_one.save(name, ContentFile(content))
    else:
        storage.save(name, ContentFile(content))


def _puts_of_saving(site: Site, storage: Any, name: str, content: bytes) -> int:
    site.proxy.requests.clear()
    _save(storage, name, content)
    return site.proxy.count()["PUT"]


@pytest.mark.usefixtures("_eager_threads")
@pytest.mark.parametrize("batch", [False, True], ids=["alone", "batches"])
def test_sixteen_threads_save_different_names(site: Site, batch: bool) -> None:
    """Files that 16 threads save arrive, and later saves compare them correctly."""
    seed, chance = seeded()
    files = {f"{n}.txt": b"content of %d" % n for n in range(32)}
    with site.storage() as storage:
        site.proxy.fault = _jitter(chance)

        def save_some(first: int) -> None:
            for n in range(first, 32, 16):
                _save(storage, f"{n}.txt", files[f"{n}.txt"], batch)

        _call_together([lambda n=n: save_some(n) for n in range(16)])
        site.proxy.fault = None
        assert site.bucket.files() == files, f"TEST_SEED={seed}"
        for name, content in files.items():
            assert _puts_of_saving(site, storage, name, content) == 0
            assert _puts_of_saving(site, storage, name, b"other") == 1
    assert set(site.bucket.files().values()) == {b"other"}


@pytest.mark.usefixtures("_eager_threads")
def test_sixteen_threads_save_beside_a_batch(site: Site) -> None:
    """Saves of the storage during a batch are not part of it, and all files arrive."""
    with site.storage() as storage:
        with storage.batch() as batch:
            for n in range(16):
                batch.save(f"batch{n}.txt", ContentFile(b"batch %d" % n))
            _call_together(
                [
                    lambda n=n: _save(storage, f"alone{n}.txt", b"alone %d" % n)
                    for n in range(16)
                ]
            )
            alone = {f"alone{n}.txt" for n in range(16)}
            assert alone <= {*site.bucket.names()}
        assert len(batch.report.uploaded) == 16
        files = {
            f"{kind}{n}.txt": b"%b %d" % (kind.encode(), n)
            for n in range(16)
            for kind in ("batch", "alone")
        }
        assert site.bucket.files() == files
        for name, content in files.items():
            assert _puts_of_saving(site, storage, name, content) == 0
            assert _puts_of_saving(site, storage, name, b"other") == 1


@pytest.mark.usefixtures("_eager_threads")
@pytest.mark.parametrize("batch", [False, True], ids=["alone", "batches"])
def test_sixteen_threads_save_one_name(site: Site, batch: bool) -> None:
    """An object that 16 threads save has one of the contents.

    Later saves compare it correctly.
    """
    seed, chance = seeded()
    with site.storage() as storage:
        site.proxy.fault = _jitter(chance)
        contents = [b"content of %d" % n for n in range(16)]

        def save_five_times(content: bytes) -> None:
            for name in "abcde":
                _save(storage, name, content, batch)

        _call_together([lambda c=c: save_five_times(c) for c in contents])
        site.proxy.fault = None
        for name in "abcde":
            there = site.bucket.read(name)
            assert there in contents, f"TEST_SEED={seed}"
            for content in contents:
                if content != there:
                    _save(storage, name, content)
                    assert site.bucket.read(name) == content, f"TEST_SEED={seed}"
                    _save(storage, name, there)
                    assert site.bucket.read(name) == there, f"TEST_SEED={seed}"
                    break
            assert _puts_of_saving(site, storage, name, there) == 0
            assert _puts_of_saving(site, storage, name, b"other") == 1
            assert site.bucket.read(name) == b"other"


@pytest.mark.parametrize("batch", [False, True], ids=["alone", "batch"])
def test_save_that_is_overtaken_by_another_thread(site: Site, batch: bool) -> None:
    """After two saves overlapped, each further save leaves its own contents.

    The response to the first upload comes after the whole second upload. Later saves
    find in the bucket which of the two contents it has.
    """
    holding = Holding("/a.txt", "after")
    with site.storage() as storage, ThreadPoolExecutor(1) as pool:
        site.proxy.fault = holding
        first = pool.submit(_save, storage, "a.txt", b"first", batch)
        assert holding.begun.wait(LONG)
        second = threading.Thread(
            target=_save, args=(storage, "a.txt", b"second", batch)
        )
        second.start()
        second.join(2)  # It may wait for the first save instead.
        holding.release.set()
        first.result()
        second.join()
        site.proxy.fault = None
        assert site.bucket.read("a.txt") in (b"first", b"second")
        _save(storage, "a.txt", b"first")
        assert site.bucket.read("a.txt") == b"first"
        _save(storage, "a.txt", b"second")
        assert site.bucket.read("a.txt") == b"second"


class Slow(LocMemCache):
    """A cache in which the thread `late` writes long after it has read."""

    read = threading.Event()
    go_on = threading.Event()

    def set_many(self, *args: Any, **kwargs: Any) -> Any:
        if threading.current_thread().name == "late":
            self.read.set()
            self.go_on.wait(LONG)
        return super().set_many(*args, **kwargs)


@pytest.mark.parametrize("storages", [1, 2], ids=["one storage", "two storages"])
@pytest.mark.parametrize("change", ["delete", "save", "headers"])
def test_outdated_cache_entry_is_not_written_back(
    site: Site, storages: int, change: str
) -> None:
    """A deploy must not write back a cache entry that a program has invalidated.

    The deploy has many new files. While it writes its cache entries, a program deletes
    or overwrites a file that has one. The next deploy uploads that file again. Without
    a cache entry, only a program's save compares headers.
    """
    backend = f"{__name__}.Slow"
    site.settings = {
        "CACHES": {"default": {"BACKEND": backend, "LOCATION": uuid4().hex}}
    }
    Slow.read.clear()
    Slow.go_on.clear()
    site.options["collectfast_preload"] = False
    site.write("a.txt", "old")
    with site.storage() as storage:
        settings = site.storage_options
        other = CollectfastS3StaticStorage(**settings) if storages == 2 else storage

        def collect() -> None:
            command = Command()
            command.storage = other
            call_command(command, "--noinput", stdout=io.StringIO())

        collect()
        for n in range(200):
            site.write(f"{n}.txt", b"%d" % n)
        late = threading.Thread(target=collect, name="late")
        late.start()
        assert Slow.read.wait(LONG)
        old_headers = storage.object_parameters
        if change == "delete":
            storage.delete("a.txt")
        elif change == "save":
            _save(storage, "a.txt", b"new")
        else:
            storage.object_parameters = {"CacheControl": "max-age=99"}
            _save(storage, "a.txt", b"old")
            storage.object_parameters = old_headers
        Slow.go_on.set()
        late.join()
        collect()
        if change == "headers":
            _save(storage, "a.txt", b"old")
    assert len(site.bucket.names()) == 201
    assert site.bucket.read("a.txt") == b"old"
    assert site.bucket.get("a.txt").get("CacheControl") is None


# Forked workers.


@contextmanager
def _working(site: Site, code: str) -> Iterator[list[str]]:
    """Run `code` of `workers` in a process; yield the outcomes of its children."""
    command = f"from tests.support import workers; workers.{code}"
    with managing(site, "shell", "-c", command) as process:
        output, errors = process.communicate(timeout=2 * LONG)
        assert process.returncode == 0, errors
        outcomes = json.loads(output.strip().splitlines()[-1])
        assert set(outcomes) == {"exit 0"}, f"{outcomes}\n{errors}"
        yield outcomes


def _assert_contents(site: Site) -> None:
    wrong = [
        n for n, content in site.bucket.files().items() if content != content_of(n)
    ]
    assert wrong == []


def test_forked_workers_share_a_storage_that_was_used(site: Site) -> None:
    """A parent and its forked children use one storage, each with its own responses."""
    with _working(site, "share()") as outcomes:
        assert len(outcomes) == 4
    assert len(site.bucket.names()) == 6 * 20
    _assert_contents(site)


def test_fork_during_uploads(site: Site) -> None:
    """A child that is forked during uploads does not wait for its parent's threads."""
    with _working(site, "fork_while_busy()") as outcomes:
        assert len(outcomes) == 5
    assert len(site.bucket.names()) == 200 + 5 * 20
    _assert_contents(site)


def test_fork_during_the_invalidation_of_cache_entries(site: Site) -> None:
    """A forked child does not wait for its parent's thread that writes to the cache."""
    site.options["collectfast_preload"] = False
    site.settings = {"CACHES": {"default": {"BACKEND": "tests.support.workers.Held"}}}
    with _working(site, "fork_while_invalidating()") as outcomes:
        assert len(outcomes) == 1
    _assert_contents(site)


@pytest.mark.parametrize("how", ["exits", "raises", "leaves"])
def test_child_does_not_share_the_open_batch_of_its_parent(
    site: Site, how: str
) -> None:
    """A child cannot use the open batch of its parent, but it can use the storage.

    The parent's batch is complete.
    """
    seen: list[list[str]] = []
    done = threading.Event()
    assert site.bucket.names() == []  # It connects now, not in a proxy's thread.

    def hold(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "PUT" and request.key.endswith("/parent"):
            done.wait(LONG / 2)
        if request.kind == "PUT" and request.key.endswith("/done"):
            handler.pass_on(body)
            seen.append(site.bucket.names())
            done.set()
            return True
        return False

    site.proxy.fault = hold
    with _working(site, f"fork_in_batch({how!r})") as outcomes:
        assert len(outcomes) == 1
    assert seen == [["child", "done", "first", "old"]]
    assert site.bucket.names() == ["child", "done", "first", "parent"]
    _assert_contents(site)
    assert site.proxy.count()["DELETE MANY"] == 1


def test_gunicorn_that_preloads_its_application(site: Site) -> None:
    """Workers of gunicorn use a storage that their parent has used before the fork."""
    port = free_ports(1)[0]
    code = f"from tests.support import workers; workers.serve('127.0.0.1:{port}')"
    names = [f"name{n}" for n in range(60)]
    with managing(site, "shell", "-c", code) as process, ThreadPoolExecutor(12) as pool:
        try:
            _wait_for(port)
            served = list(pool.map(lambda name: _get(port, name), names))
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=LONG)
    assert {status for status, _ in served} == {200}, errors
    assert len({worker for _, worker in served}) > 1
    assert set(site.bucket.names()) >= {*names}
    _assert_contents(site)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        with suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", port)).close()
        time.sleep(0.05)
    pytest.fail("gunicorn does not start")


def _get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONG)
    with closing(connection):
        connection.request("GET", f"/{path}")
        answer = connection.getresponse()
        return answer.status, answer.read()
