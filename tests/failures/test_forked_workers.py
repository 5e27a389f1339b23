"""Workers that are forked after the storage has been used, as with Celery and RQ."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from django.contrib.staticfiles.finders import FileSystemFinder
from django.contrib.staticfiles.management.commands.collectstatic import Command
from django.contrib.staticfiles.storage import staticfiles_storage
from django.core.files.base import ContentFile
from django.core.management import call_command

from tests.support.processes import managing
from tests.support.proxy import Handler, Request, refuse
from tests.support.site import MANIFEST, STATIC, Site

pytestmark = [
    pytest.mark.forks,
    pytest.mark.covering,
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork"),
]

LIMIT = 30  # seconds after which a child is considered to hang
BOTH = pytest.mark.parametrize("backend", [STATIC, MANIFEST], ids=["static", "hashed"])


def _fork(work: Callable[[], object]) -> int:
    """Do the `work` in a child process, and return its id."""
    with warnings.catch_warnings():
        # Python 3.12 warns of forks while threads run, here those of the proxy.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _status(child: int) -> int:
    """Wait for a child to end, up to `LIMIT` seconds, and return its exit status."""
    deadline = time.monotonic() + LIMIT
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        time.sleep(0.005)


def _call(command: Command | None = None, *arguments: str) -> str:
    output = io.StringIO()
    call_command(command or Command(), "--noinput", *arguments, stdout=output)
    return output.getvalue()


def _kinds(site: Site) -> list[str]:
    return [request.kind for request in site.proxy.requests]


# Ways in which the parent process has used the storage.


def _build() -> None:
    staticfiles_storage.exists  # noqa: B018 (builds it)


def _use() -> None:
    """Use the storage as a web application does."""
    assert staticfiles_storage.save("program.txt", ContentFile(b"program"))
    with staticfiles_storage.open("program.txt") as file:
        assert file.read() == b"program"
    with suppress(ValueError):  # The manifest does not contain the file.
        staticfiles_storage.url("program.txt")


def _use_in_threads() -> None:
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(_use) for _ in range(2)]:
            done.result()


def _collect() -> None:
    _call()


USES = pytest.mark.parametrize("use", [_build, _use, _use_in_threads, _collect])


def _write(site: Site, text: str, count: int = 6) -> None:
    site.write_all({f"{n}.txt": f"{n} {text}".encode() for n in range(count)})


def _plain(site: Site) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in site.static.iterdir()}


def _without_programs(site: Site) -> dict[str, bytes]:
    files = site.bucket.files()
    files.pop("program.txt", None)
    return files


@USES
@BOTH
def test_worker_uploads_a_changed_site(
    site: Site, use: Callable[[], None], backend: str
) -> None:
    """A collectstatic in a fork uploads all changed files after one LIST request.

    It deletes no object.
    """
    site.backend = backend
    _write(site, "old")
    site.collect()
    before = site.bucket.files()
    with site.active():
        use()
        _write(site, "new")
        site.touch()
        site.proxy.requests.clear()
        assert _status(_fork(_call)) == 0
    kinds = _kinds(site)
    assert kinds.count("LIST") == 1
    assert kinds.count("DELETE") == kinds.count("DELETE MANY") == 0
    names = _plain(site).keys()
    assert {*site.put()} >= names
    after = _without_programs(site)
    assert after.items() >= _plain(site).items()
    assert after.keys() >= before.keys()
    if backend == MANIFEST:
        assert {*site.manifest().values()} <= after.keys()
        assert {*site.manifest()} == names


@USES
@BOTH
def test_worker_uploads_a_file_that_was_put_back(
    site: Site, use: Callable[[], None], backend: str
) -> None:
    """A collectstatic in a fork uploads a changed source that is older than its object.

    Contents are compared, and not modification times.
    """
    site.backend = backend
    _write(site, "new")
    site.collect()
    with site.active():
        use()
        site.write("3.txt", "3 old", mtime=1)
        site.proxy.requests.clear()
        assert _status(_fork(_call)) == 0
    assert site.bucket.read("3.txt") == b"3 old"
    expected = ["3.txt"]
    if backend == MANIFEST:
        expected = ["3.txt", site.manifest()["3.txt"], "staticfiles.json"]
        assert site.bucket.read(expected[1]) == b"3 old"
    assert site.put() == sorted(expected)


@BOTH
def test_worker_of_an_unchanged_site_only_lists(site: Site, backend: str) -> None:
    """A collectstatic in a fork sends one LIST request for an unchanged site.

    The summary counts all files as unmodified.
    """
    site.backend = backend
    _write(site, "one")
    site.collect()

    def work() -> None:
        assert ", 6 unmodified" in _call()

    with site.active():
        _use()
        site.touch()
        site.proxy.requests.clear()
        assert _status(_fork(work)) == 0
    counted = site.proxy.count()
    assert counted["LIST"] == 1
    assert counted["PUT"] == counted["DELETE"] == counted["HEAD"] == 0


def test_refused_upload_in_a_worker_is_an_error(site: Site) -> None:
    """A refused upload in a fork is an error that names the file.

    All other files are uploaded.
    """
    _write(site, "one")

    def work() -> None:
        with pytest.raises(Exception, match=r"3\.txt: .*AccessDenied"):
            _call()

    site.proxy.fault = refuse("PUT", "/3.txt")
    with site.active():
        _use()
        assert _status(_fork(work)) == 0
    assert set(_without_programs(site)) == set(_plain(site)) - {"3.txt"}


@pytest.mark.parametrize("argument", ["--clear", "--no-post-process"])
def test_arguments_work_in_a_worker(site: Site, argument: str) -> None:
    """`--clear` and `--no-post-process` have their effect in a fork, too.

    `--clear` deletes only left-over files, and only after all files were uploaded.
    """
    _write(site, "old")
    site.collect()
    site.bucket.put("left over.txt", b"left over")
    with site.active():
        _use()
        _write(site, "new")
        site.touch()
        site.proxy.requests.clear()
        assert _status(_fork(lambda: _call(None, argument))) == 0
    kinds = _kinds(site)
    assert kinds.count("DELETE") == 0
    if argument == "--clear":
        assert kinds[-1] == "DELETE MANY"
        assert site.bucket.files() == _plain(site)
    else:
        assert "left over.txt" in site.bucket.names()
        assert _without_programs(site).items() >= _plain(site).items()


# Several workers, and workers that fork.


@BOTH
def test_workers_one_after_another(site: Site, backend: str) -> None:
    """Each of several forks, one after the other, uploads the release of its time.

    RQ forks for each job.
    """
    site.backend = backend
    _write(site, "0")
    with site.active():
        _use()
        for release in range(1, 4):
            _write(site, str(release))
            for path in site.static.iterdir():
                os.utime(path, (release, release))  # Older than all objects.
            site.proxy.requests.clear()
            assert _status(_fork(_call)) == 0
            assert site.proxy.count()["LIST"] == 1
            assert site.proxy.count()["DELETE"] == 0
            assert _without_programs(site).items() >= _plain(site).items()


def test_workers_at_the_same_time(site: Site) -> None:
    """Two forks that run collectstatic simultaneously both succeed.

    Each sends its own LIST request, and neither deletes an object.
    """
    _write(site, "old")
    site.collect()
    with site.active():
        _use()
        _write(site, "new")
        site.touch()
        site.proxy.requests.clear()
        children = [_fork(_call) for _ in range(2)]
        assert [_status(child) for child in children] == [0, 0]
    counted = site.proxy.count()
    assert (counted["LIST"], counted["DELETE"]) == (2, 0)
    assert _without_programs(site) == _plain(site)


def test_worker_of_a_worker(site: Site) -> None:
    """A fork of a fork, as in Celery's pools, uploads changed files after one LIST."""
    _write(site, "new")
    site.collect()

    def worker() -> None:
        _use()
        assert _status(_fork(_call)) == 0

    with site.active():
        _use()
        site.write("3.txt", "3 old", mtime=1)
        site.proxy.requests.clear()
        assert _status(_fork(worker)) == 0
    assert site.bucket.read("3.txt") == b"3 old"
    assert (site.proxy.count()["LIST"], site.proxy.count()["DELETE"]) == (1, 0)


def test_worker_uses_the_storage_before_and_after_its_run(site: Site) -> None:
    """A fork can use the storage before and after it runs collectstatic twice."""
    _write(site, "one")

    def worker() -> None:
        _use()
        _call()
        assert staticfiles_storage.exists("3.txt")
        site.write("3.txt", "3 old", mtime=1)
        _call()
        with staticfiles_storage.open("3.txt") as file:
            assert file.read() == b"3 old"

    with site.active():
        _use()
        assert _status(_fork(worker)) == 0
    assert _without_programs(site) == _plain(site)
    assert site.proxy.count()["DELETE"] == 0


def test_parent_collects_after_its_worker(site: Site) -> None:
    """Collectstatic works in the parent after a fork's, and in a fork after that.

    Each uploads only the file that changed.
    """
    _write(site, "one")
    with site.active():
        _use()
        assert _status(_fork(_call)) == 0
        site.write("3.txt", "3 old", mtime=1)
        site.proxy.requests.clear()
        _call()
        assert site.put() == ["3.txt"]
        site.write("4.txt", "4 old", mtime=1)
        site.proxy.requests.clear()
        assert _status(_fork(_call)) == 0
        assert site.put() == ["4.txt"]
    assert site.proxy.count()["LIST"] == 1


# Forks during a collectstatic: they do not take part in the parent's run.


class Forking(Command):
    """A command that copies some files in a child process, and checks the bucket.

    The letters of `turns` say for each file in turn if the parent ("p") or a child
    ("c") copies it.
    """

    def __init__(self, site: Site, turns: str) -> None:
        super().__init__()
        self.site = site
        self.turns = turns
        self.number = 0

    def copy_file(self, path: str, *rest: Any) -> None:
        turn = self.turns[self.number % len(self.turns)]
        self.number += 1
        if turn == "p":
            super().copy_file(path, *rest)
            return
        copy = super().copy_file
        assert _status(_fork(lambda: copy(path, *rest))) == 0
        source = (self.site.static / path).read_bytes()
        assert self.site.bucket.read(path) == source, f"{path} is not uploaded"


@BOTH
@pytest.mark.parametrize("turns", ["c", "cp", "pc", "pppc"])
@pytest.mark.parametrize("in_worker", [False, True], ids=["parent", "worker"])
def test_fork_in_copy_file_has_no_run(
    site: Site, backend: str, turns: str, in_worker: bool
) -> None:
    """A file that a fork of the command copies is uploaded before the fork ends."""
    site.backend = backend
    for release in ("one", "two"):
        _write(site, release, 4)
        site.touch()
        with site.active():
            _use()
            if in_worker:
                work = _fork(lambda: _call(Forking(site, turns)))
                assert _status(work) == 0
            else:
                _call(Forking(site, turns))
        there = _without_programs(site)
        assert there.items() >= _plain(site).items()
        if backend == MANIFEST:
            assert {*site.manifest().values()} <= there.keys()


class ForkingFinder(FileSystemFinder):
    """A finder that saves files in child processes while the command collects."""

    def list(self, ignore_patterns: Any) -> Iterator[Any]:
        for number, each in enumerate(super().list(ignore_patterns)):
            if number in (0, 3):
                name = f"found-{number}.txt"
                content = ContentFile(b"found")
                child = _fork(lambda: staticfiles_storage.save(name, content))  # noqa: B023
                assert _status(child) == 0
            yield each


@BOTH
def test_fork_in_a_finder_has_no_run(site: Site, backend: str) -> None:
    """A file that a fork saves during a collectstatic is in the bucket afterwards."""
    site.backend = backend
    site.settings["STATICFILES_FINDERS"] = [f"{__name__}.ForkingFinder"]
    _write(site, "one")
    with site.active():
        _call()
    there = site.bucket.files()
    assert (there["found-0.txt"], there["found-3.txt"]) == (b"found", b"found")
    assert there.items() >= _plain(site).items()


def test_child_that_returns_from_collect(site: Site) -> None:
    """A fork in `copy_file` that returns from `collect` neither lists nor deletes.

    All files are uploaded, some by the parent and some by the fork.
    """
    _write(site, "old")
    site.collect()
    _write(site, "new")
    site.touch()

    class Splitting(Command):
        """A command that forks, and copies some files in each of the two processes."""

        child = -1

        def collect(self) -> dict[str, list[str]]:
            try:
                collected: dict[str, list[str]] = super().collect()
            finally:
                if self.child == 0:
                    os._exit(0)
            assert _status(self.child) == 0
            return collected

        def copy_file(self, path: str, *rest: Any) -> None:
            if self.child < 0:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)
                    self.child = os.fork()
            if (path < "3") == (self.child == 0):
                super().copy_file(path, *rest)

    with site.active():
        _use()
        site.proxy.requests.clear()
        _call(Splitting())
    assert _without_programs(site) == _plain(site)
    assert site.proxy.count()["DELETE MANY"] == 0
    assert site.proxy.count()["LIST"] <= 1


# Forks and runs of their parent: neither affects the other.


def test_worker_during_the_uploads_of_its_parent(site: Site) -> None:
    """A fork can run collectstatic while its parent does, and both succeed."""
    _write(site, "one")
    pipe = os.pipe()

    def worker() -> None:
        os.read(pipe[0], 1)
        _call()

    def begin(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "PUT":
            os.write(pipe[1], b"x")
        return False

    try:
        with site.active():
            _use()
            child = _fork(worker)
            site.proxy.fault = begin
            _call()
            assert _status(child) == 0
    finally:
        for end in pipe:
            os.close(end)
    assert _without_programs(site) == _plain(site)


@BOTH
def test_report_of_a_worker_counts_its_own_files(site: Site, backend: str) -> None:
    """The summary of a collectstatic in a fork counts only its own files.

    It does not include files that the parent copied before the fork.
    """
    site.backend = backend
    _write(site, "one")
    reading, writing = os.pipe()

    def worker() -> None:
        os.write(writing, json.dumps(_call().strip().splitlines()[-1]).encode())

    with site.active():
        _use()
        _call()
        site.write("3.txt", "3 old", mtime=1)
        child = _fork(worker)
        status = _status(child)
        os.close(writing)
        with os.fdopen(reading) as file:
            summary = json.loads(file.read() or '""')
    assert status == 0
    assert "1 static file copied, 5 unmodified" in summary


def exit_in_a_child() -> None:
    """Fork during an upload, and let the child exit with `sys.exit`."""
    with staticfiles_storage.batch() as batch:
        batch.save("first.txt", ContentFile(b"first"))
        batch.save("slow.txt", ContentFile(b"slow"))
        child = os.fork()
        if not child:
            sys.exit(3)
        print(_status(child), flush=True)


def test_child_that_exits_while_its_parent_uploads(site: Site) -> None:
    """A fork exits although its parent uploads, because it has none of the threads.

    The parent's uploads succeed.
    """

    def delay(handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "PUT" and request.key.endswith("slow.txt"):
            time.sleep(0.5)
        return False

    site.proxy.fault = delay
    code = f"import {__name__} as t; t.exit_in_a_child()"
    with managing(site, "shell", "-c", code) as process:
        try:
            output, errors = process.communicate(timeout=2 * LIMIT)
        except subprocess.TimeoutExpired:
            pytest.fail("the process hangs")
    assert process.returncode == 0, errors
    assert output.split()[-1] == "3"
    assert site.bucket.files() == {"first.txt": b"first", "slow.txt": b"slow"}


def test_uploads_have_ended_when_a_command_forks(site: Site) -> None:
    """All uploads that have begun end before a fork.

    A fork during a request could inherit a locked OpenSSL lock, and hang.
    """
    _write(site, "one")
    uploaded: list[list[str]] = []

    class Splitting(Command):
        """A command that forks after each file."""

        def copy_file(self, *source: Any) -> None:
            super().copy_file(*source)
            child = _fork(lambda: None)
            uploaded.append(site.bucket.names())
            assert _status(child) == 0

    def slow(handler: Handler, request: Request, body: bytes) -> bool:
        time.sleep(0.1)
        return False

    site.proxy.fault = slow
    with site.active():
        _call(Splitting())
    assert [len(names) for names in uploaded] == list(range(1, len(uploaded) + 1))
