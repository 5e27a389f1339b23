"""Custom collectstatic commands and storages: exit code 0 means no file is missing.

The commands here replace, repeat or extend parts of Django's command, for example with
threads or forks. If such a command succeeds, every file is in the bucket.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from botocore.exceptions import ClientError
from django.contrib.staticfiles.finders import FileSystemFinder, get_finders
from django.contrib.staticfiles.management.commands.collectstatic import Command
from django.contrib.staticfiles.storage import ManifestStaticFilesStorage
from django.core.files.base import ContentFile
from django.core.management import call_command
from django.core.management.base import CommandError
from django.utils import timezone
from storages.backends.s3 import S3ManifestStaticStorage

from collectfast_storage import (
    CollectfastMixin,
    CollectfastS3ManifestStaticStorage,
    CollectfastS3StaticStorage,
)
from tests.support.proxy import Handler, Request, refuse
from tests.support.site import STATIC, Site

pytestmark = [pytest.mark.slow, pytest.mark.covering]

MANIFEST_STORAGE = "collectfast_storage.CollectfastS3ManifestStaticStorage"
MANIFEST = "staticfiles.json"
BACKENDS = pytest.mark.parametrize("backend", [STATIC, MANIFEST_STORAGE])
ARGUMENTS = pytest.mark.parametrize("arguments", [[], ["--no-post-process"]])
ALL_ARGUMENTS = pytest.mark.parametrize(
    "arguments",
    [[], ["--no-post-process"], ["--clear"], ["--clear", "--no-post-process"]],
    ids=" ".join,
)
THREAD_COUNT = 8


def _call(command: Command, *arguments: str) -> None:
    call_command(command, "--noinput", *arguments, stdout=io.StringIO())


def _collect(site: Site, command: Command, *arguments: str) -> None:
    site.proxy.requests.clear()
    with site.active():
        _call(command, *arguments)


def _sources(command: Command) -> Iterator[tuple[str, str, Any]]:
    """Yield the arguments of `copy_file` for each file that the finders find."""
    for finder in get_finders():
        for path, storage in finder.list(command.ignore_patterns):
            yield path, path, storage


def _result(command: Command) -> dict[str, list[str]]:
    names = ("post_processed", "skipped", "deleted")
    copied = {"modified": command.copied_files, "unmodified": command.unmodified_files}
    return copied | {name: [] for name in names}


def _write(site: Site, text: str) -> dict[str, bytes]:
    """Write a release: CSS files with URLs of images, and unreferenced text files."""
    files = {f"img/{i}.png": f"image {i} {text}".encode() for i in range(4)}
    files |= {
        f"css/{i}.css": f"a {{ background: url(../img/{i}.png) }} /* {text} */".encode()
        for i in range(4)
    }
    files |= {f"txt/{i}.txt": f"text {i} {text}".encode() for i in range(16)}
    site.write_all(files)
    return files


def _locally(site: Site, backend: str) -> dict[str, bytes]:
    """Return the files that Django writes with a local storage to an empty folder."""
    root = site.root / "collected"
    shutil.rmtree(root, ignore_errors=True)
    site.collect(STORAGES={"staticfiles": {"BACKEND": backend}})
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def _expected(site: Site, backend: str, arguments: list[str]) -> dict[str, bytes]:
    """Return the files that a deploy of the current sources adds to the bucket."""
    hashes = backend == MANIFEST_STORAGE and "--no-post-process" not in arguments
    if hashes:
        local = "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"
        return _locally(site, local)
    files = site.static.rglob("*")
    return {
        str(path.relative_to(site.static)): path.read_bytes()
        for path in files
        if path.is_file()
    }


def _deletes(site: Site) -> int:
    count = site.proxy.count()
    return count["DELETE"] + count["DELETE MANY"]


# Code that logs exceptions yielded by `post_process`, and continues.


class TroubleError(Exception):
    pass


class Lenient:
    """A storage that logs exceptions of `post_process`, and continues after them.

    It yields exceptions of its own among Django's results.
    """

    logged: ClassVar[list[str]] = []

    def post_process(self, *args: Any, **options: Any) -> Iterator[Any]:
        for name, hashed_name, outcome in self.troubled(*args, **options):
            if isinstance(outcome, Exception):
                self.logged.append(name)
            else:
                yield name, hashed_name, outcome

    def troubled(self, *args: Any, **options: Any) -> Iterator[Any]:
        yield "before", None, TroubleError()
        for processed in super().post_process(*args, **options):  # type: ignore[misc]
            yield processed
            yield "after", None, TroubleError()


class LenientAbove(Lenient, CollectfastS3ManifestStaticStorage):
    pass


class TheirLenient(Lenient, S3ManifestStaticStorage):
    pass


class LenientBelow(CollectfastMixin, TheirLenient):
    pass


class LenientLocally(Lenient, ManifestStaticFilesStorage):
    pass


@pytest.mark.parametrize("backend", ["LenientAbove", "LenientBelow"])
def test_storage_that_logs_errors_and_continues(site: Site, backend: str) -> None:
    """All hashed files and the manifest are uploaded if a subclass only logs errors.

    Files that `post_process` yields after an exception are uploaded, too.
    """
    _write(site, "one")
    site.write("css/3broken.css", "a { background: url(none.png) }")
    expected = _locally(site, f"{__name__}.LenientLocally")
    Lenient.logged.clear()
    site.backend = f"{__name__}.{backend}"
    site.collect()
    assert {"before", "after", "css/3broken.css"} <= {*Lenient.logged}
    assert site.bucket.files() == expected


class Warns(CollectfastS3ManifestStaticStorage):
    """A storage that yields warnings, as django-manifeststaticfiles-enhanced does."""

    def post_process(self, *args: Any, **options: Any) -> Iterator[Any]:
        for name, hashed_name, outcome in super().post_process(*args, **options):
            if name.startswith("css/3"):
                yield name, None, TroubleError("a warning")
            yield name, hashed_name, outcome


class ProcessingInCollect(Command):
    """A command that calls `post_process` itself, logs errors, and continues."""

    def collect(self) -> dict[str, list[str]]:
        self.post_process = False
        collected: dict[str, list[str]] = super().collect()
        self.process()
        return collected

    def process(self) -> None:
        found = {name: (storage, path) for path, name, storage in _sources(self)}
        self.troubles = []
        for name, _, outcome in self.storage.post_process(found, dry_run=False):
            if isinstance(outcome, Exception):
                self.troubles.append(name)


class ProcessingInHandle(ProcessingInCollect):
    def collect(self) -> dict[str, list[str]]:
        return Command.collect(self)

    def handle(self, **options: Any) -> Any:
        summary = super().handle(**options | {"post_process": False})
        self.process()
        return summary


@pytest.mark.parametrize("command", [ProcessingInCollect, ProcessingInHandle])
@pytest.mark.parametrize("backend", [MANIFEST_STORAGE, f"{__name__}.Warns"])
def test_command_that_post_processes_by_itself(
    site: Site, command: type[Command], backend: str
) -> None:
    """All hashed files and the manifest are uploaded by a custom post-processing loop.

    This includes a loop that only logs the exceptions that `post_process` yields.
    """
    _write(site, "one")
    expected = _expected(site, MANIFEST_STORAGE, [])
    site.backend = backend
    running = command()
    for _ in range(2):
        _collect(site, running)
        assert site.bucket.files() == expected
        assert bool(running.troubles) == (backend != MANIFEST_STORAGE)
        running = command()


# Commands that replace `collect` or `copy_file`.


class Looping(Command):
    """A command that replaces Django's `collect` with a loop."""

    def collect(self) -> dict[str, list[str]]:
        for source in _sources(self):
            self.copy_file(*source)
        return _result(self)


class LoopingInThreads(Command):
    """A command that replaces Django's `collect` with a loop in eight threads."""

    def collect(self) -> dict[str, list[str]]:
        with ThreadPoolExecutor(THREAD_COUNT) as pool:
            copies = [pool.submit(self.copy_file, *each) for each in _sources(self)]
        for copy in copies:
            copy.result()
        return _result(self)


LOOPS = pytest.mark.parametrize("command", [Looping, LoopingInThreads])


@LOOPS
@pytest.mark.parametrize("preload", [True, False])
def test_command_that_replaces_collect(
    site: Site, command: type[Command], preload: bool
) -> None:
    """All files are in the bucket when a command without Django's `collect` returns.

    The bucket is not listed, because each `copy_file` is a single save there.
    """
    site.options["collectfast_preload"] = preload
    files = _write(site, "one")
    _collect(site, command())
    assert site.bucket.files() == files
    assert site.proxy.count()["LIST"] == 0
    files = _write(site, "two")
    site.touch()
    _collect(site, command())
    assert site.bucket.files() == files
    assert site.proxy.count()["LIST"] == 0


@LOOPS
def test_refusal_is_raised_by_a_command_that_replaces_collect(
    site: Site, command: type[Command]
) -> None:
    """A refused upload raises ClientError from a command without Django's `collect`.

    django-storages raises the same error. The next deploy uploads the missing file.
    """
    files = _write(site, "one")
    site.proxy.fault = refuse("PUT", "/txt/7.txt")
    with pytest.raises(ClientError, match="AccessDenied"):
        _collect(site, command())
    assert "txt/7.txt" not in site.bucket.names()
    site.proxy.fault = None
    _collect(site, command())
    assert site.bucket.files() == files


class CopyingInThreads(Command):
    """A command that still copies files in threads after Django's `collect` ended."""

    def collect(self) -> dict[str, list[str]]:
        self.copies: list[Future[None]] = []
        with ThreadPoolExecutor(THREAD_COUNT) as self.pool:
            collected: dict[str, list[str]] = super().collect()
        for copy in self.copies:
            copy.result()
        return collected

    def copy_file(self, *source: Any) -> None:
        self.copies.append(self.pool.submit(super().copy_file, *source))


class CopyingBefore(Command):
    """A command that copies all files in threads before Django's `collect` runs."""

    def collect(self) -> dict[str, list[str]]:
        with ThreadPoolExecutor(THREAD_COUNT) as pool:
            copies = [pool.submit(self.copy_file, *each) for each in _sources(self)]
        for copy in copies:
            copy.result()
        collected: dict[str, list[str]] = super().collect()
        return collected


THREADS = pytest.mark.parametrize("command", [CopyingInThreads, CopyingBefore])


@THREADS
@BACKENDS
@ALL_ARGUMENTS
def test_command_that_copies_in_threads(
    site: Site, command: type[Command], backend: str, arguments: list[str]
) -> None:
    """All files are in the bucket when a command that copies in threads returns.

    This holds for the first deploy, and for a second one after every file changed.
    """
    site.backend = backend
    for release in ("one", "two"):
        _write(site, release)
        site.touch()
        expected = _expected(site, backend, arguments)
        _collect(site, command(), *arguments)
        assert site.bucket.files().items() >= expected.items()


@THREADS
@ALL_ARGUMENTS
def test_refusal_is_raised_by_a_command_that_copies_in_threads(
    site: Site, command: type[Command], arguments: list[str]
) -> None:
    """A refused upload makes a command that copies in threads fail.

    The error may be raised by a thread or by the command. The next deploy uploads the
    missing file.
    """
    files = _write(site, "one")
    site.proxy.fault = refuse("PUT", "/txt/7.txt")
    with pytest.raises((ClientError, CommandError), match="AccessDenied"):
        _collect(site, command(), *arguments)
    site.proxy.fault = None
    _collect(site, command(), *arguments)
    assert site.bucket.files() == files


# Two passes of one command.


@BACKENDS
@ALL_ARGUMENTS
@pytest.mark.parametrize("refused", ["/txt/7.txt", "/css/3.", MANIFEST])
def test_second_pass_of_a_command_that_failed(
    site: Site, backend: str, arguments: list[str], refused: str
) -> None:
    """A second call of a failed command uploads all files that are missing.

    Such a command also lists files as copied if their uploads failed, so the second
    call must not skip them. Neither call deletes files of the previous release.
    """
    site.backend = backend
    _write(site, "one")
    _collect(site, Command(), *arguments)
    before = site.bucket.files()
    if refused == MANIFEST not in before:
        pytest.skip("no manifest")
    _write(site, "two")
    expected = _expected(site, backend, arguments)
    site.proxy.requests.clear()
    command = Command()
    with site.active():
        site.proxy.fault = refuse("PUT", refused)
        with pytest.raises(CommandError, match="AccessDenied"):
            _call(command, *arguments)
        assert site.bucket.files().keys() >= before.keys()
        site.proxy.fault = None
        _call(command, *arguments)
    after = site.bucket.files()
    assert after.items() >= expected.items()
    assert after.keys() >= before.keys()
    assert _deletes(site) == 0


class Twice(Command):
    """A command that calls Django's `collect` twice."""

    def collect(self) -> dict[str, list[str]]:
        super().collect()
        collected: dict[str, list[str]] = super().collect()
        return collected


class Persistent(Command):
    """A command that calls Django's `collect` again after it has failed."""

    def __init__(self, repair: Callable[[], object]) -> None:
        super().__init__()
        self.repair = repair

    def collect(self) -> dict[str, list[str]]:
        with pytest.raises(CommandError):
            super().collect()
        self.repair()
        collected: dict[str, list[str]] = super().collect()
        return collected


@BACKENDS
@ALL_ARGUMENTS
def test_command_that_collects_twice(
    site: Site, backend: str, arguments: list[str]
) -> None:
    """A second `collect` in one command keeps all files of the first one.

    All files are in the bucket afterwards. Nothing is deleted without `--clear`.
    """
    site.backend = backend
    for release in ("one", "two"):
        _write(site, release)
        expected = _expected(site, backend, arguments)
        _collect(site, Twice(), *arguments)
        assert site.bucket.files().items() >= expected.items()
        # With --clear the second `collect` deletes the previous release, because the
        # first one has not deleted it.
        assert _deletes(site) == 0 or "--clear" in arguments


@BACKENDS
@ALL_ARGUMENTS
@pytest.mark.parametrize("refused", ["/txt/7.txt", "/css/3."])
def test_command_that_tries_again(
    site: Site, backend: str, arguments: list[str], refused: str
) -> None:
    """A second `collect` in one command uploads files that the first one could not."""
    site.backend = backend
    _write(site, "one")
    _collect(site, Command(), *arguments)
    _write(site, "two")
    expected = _expected(site, backend, arguments)

    def repair() -> None:
        site.proxy.fault = None

    site.proxy.fault = refuse("PUT", refused)
    _collect(site, Persistent(repair), *arguments)
    assert site.bucket.files().items() >= expected.items()
    assert _deletes(site) == 0


# A collectstatic within a batch.


@BACKENDS
@ARGUMENTS
def test_collectstatic_in_a_batch(
    site: Site, backend: str, arguments: list[str]
) -> None:
    """A batch and a collectstatic within its block are independent of each other.

    The files of both are uploaded, and the batch's report lists only its own saves and
    deletions.
    """
    site.backend = backend
    _write(site, "one")
    site.collect(*arguments)
    site.bucket.put("gone.txt", b"to be deleted")
    _write(site, "two")
    for path in site.static.rglob("*"):
        os.utime(path, (1, 1))  # Older than the objects in the bucket.
    expected = _expected(site, backend, arguments)
    with site.storage() as storage:
        with storage.batch() as batch:
            batch.save("before.txt", ContentFile(b"before"))
            batch.delete("gone.txt")
            _call(Command(), *arguments)
            assert site.bucket.files().items() >= expected.items()
            batch.save("after.txt", ContentFile(b"after"))
            assert storage.exists("gone.txt")
        assert batch.report.uploaded == ("after.txt", "before.txt")
        assert batch.report.deleted == ("gone.txt",)
    after = site.bucket.files()
    assert after.items() >= expected.items()
    assert (after["before.txt"], after["after.txt"]) == (b"before", b"after")
    assert "gone.txt" not in after


# Files that must keep their names.


@BACKENDS
@ARGUMENTS
@pytest.mark.parametrize("preload", [True, False])
def test_changed_file_keeps_its_name_without_overwriting(
    site: Site, backend: str, arguments: list[str], preload: bool
) -> None:
    """A changed static file replaces its object even with `file_overwrite=False`.

    No file gets an alternative name, because that option is meant for users' uploads.
    """
    site.backend = backend
    site.options |= {"file_overwrite": False, "collectfast_preload": preload}
    for release in ("one", "two"):
        _write(site, release)
        expected = _expected(site, backend, arguments)
        before = site.bucket.files()
        _collect(site, Command(), *arguments)
        after = site.bucket.files()
        assert after.items() >= expected.items()
        assert after.keys() == expected.keys() | before.keys()
        assert _deletes(site) == 0


# Deploys without post-processing.


class ConcurrentPuts:
    """A fault that delays each PUT, and counts the most that run simultaneously."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self.most = 0

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind != "PUT":
            return False
        with self._lock:
            self._running += 1
            self.most = max(self.most, self._running)
        time.sleep(0.1)
        with self._lock:
            self._running -= 1
        return False


@BACKENDS
def test_no_post_process_uploads_in_parallel(site: Site, backend: str) -> None:
    """A deploy with `--no-post-process` uploads several files simultaneously."""
    site.backend = backend
    files = _write(site, "one")
    site.proxy.fault = puts = ConcurrentPuts()
    _collect(site, Command(), "--no-post-process")
    assert site.bucket.files() == files
    assert puts.most >= THREAD_COUNT


@pytest.mark.parametrize("number", [0, 7, 15])
def test_no_post_process_names_the_refused_file(site: Site, number: int) -> None:
    """With `--no-post-process` the error names the refused file.

    All other files are uploaded, and the next deploy uploads the missing one.
    """
    files = _write(site, "one")
    site.proxy.fault = refuse("PUT", f"/txt/{number}.txt")
    with pytest.raises(CommandError, match=rf"txt/{number}\.txt: .*AccessDenied"):
        _collect(site, Command(), "--no-post-process")
    site.proxy.fault = None
    assert site.bucket.names() == sorted({*files} - {f"txt/{number}.txt"})
    _collect(site, Command(), "--no-post-process")
    assert site.bucket.files() == files


def _last_source(site: Site) -> str:
    """Return the name of the file that the finder yields last."""
    with site.active():
        return [path for path, _ in FileSystemFinder().list([])][-1]


class SlowPuts:
    """A fault that delays each PUT.

    Uploads then end before the command returns only if the command waits for them.
    """

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "PUT":
            time.sleep(0.1)
        return False


class SkippingInCopy(Command):
    """A command that skips the last source in `copy_file`."""

    last: ClassVar[str]

    def copy_file(self, path: str, *rest: Any) -> None:
        if path != self.last:
            super().copy_file(path, *rest)


class SkippingInDelete(Command):
    """A command that makes Django skip the last source in `delete_file`."""

    last: ClassVar[str]

    def delete_file(self, path: str, *rest: Any) -> Any:
        return path != self.last and super().delete_file(path, *rest)


class CopiedBefore(Command):
    """A command that lists the last source as copied before Django's `collect`."""

    last: ClassVar[str]

    def collect(self) -> dict[str, list[str]]:
        self.copied_files.append(self.last)
        collected: dict[str, list[str]] = super().collect()
        return collected


@pytest.mark.parametrize("command", [SkippingInCopy, SkippingInDelete, CopiedBefore])
@BACKENDS
def test_no_post_process_of_a_command_that_skips_the_last_source(
    site: Site, command: Any, backend: str
) -> None:
    """All other files are in the bucket when a command skips the last source."""
    site.backend = backend
    files = _write(site, "one")
    command.last = _last_source(site)
    site.proxy.fault = SlowPuts()
    _collect(site, command(), "--no-post-process")
    there = site.bucket.files()
    assert {name: there.get(name) for name in files if name != command.last} == {
        name: files[name] for name in files if name != command.last
    }


@pytest.mark.parametrize("command", [SkippingInCopy, SkippingInDelete, CopiedBefore])
def test_refusal_to_a_command_that_skips_the_last_source(
    site: Site, command: Any
) -> None:
    """A refused upload fails the command even if the command skips the last source."""
    _write(site, "one")
    command.last = _last_source(site)
    [refused, *_] = [f"txt/{i}.txt" for i in range(9) if f"{i}.txt" not in command.last]
    site.proxy.fault = refuse("PUT", refused)
    with pytest.raises((ClientError, CommandError), match="AccessDenied"):
        _collect(site, command(), "--no-post-process")


class Keeping(CollectfastS3StaticStorage):
    """A storage that reports one object as existing and newer than its source."""

    last: ClassVar[str]

    def exists(self, name: str) -> bool:
        return name == self.last or super().exists(name)

    def get_modified_time(self, name: str) -> Any:
        if name == self.last:
            return timezone.now()
        return super().get_modified_time(name)


def test_no_post_process_of_a_storage_that_keeps_the_last_source(site: Site) -> None:
    """All other files are uploaded if the command skips the last source as not newer.

    The command then makes no further call to the storage.
    """
    site.backend = f"{__name__}.Keeping"
    files = _write(site, "one")
    site.touch()
    os.utime(site.static / _last_source(site), (1, 1))
    Keeping.last = _last_source(site)
    site.proxy.fault = SlowPuts()
    _collect(site, Command(), "--no-post-process")
    there = site.bucket.files()
    assert there == {name: files[name] for name in files if name != Keeping.last}


class Finder(FileSystemFinder):
    """A finder that omits files that were removed since it listed the folder."""

    def list(self, ignore_patterns: Any) -> Iterator[Any]:
        for path, storage in super().list(ignore_patterns):
            if storage.exists(path):
                yield path, storage


class Removing(Command):
    """A command that removes the last source while it copies the first one."""

    def __init__(self, last: Path) -> None:
        super().__init__()
        self.last = last

    def log(self, message: str, level: int = 2) -> None:
        if message.startswith("Copying"):
            self.last.unlink(missing_ok=True)
        super().log(message, level)


def test_no_post_process_while_the_last_source_is_removed(site: Site) -> None:
    """All other files are uploaded if the last source is removed during the deploy."""
    files = _write(site, "one")
    last = _last_source(site)
    site.settings["STATICFILES_FINDERS"] = [f"{__name__}.Finder"]
    site.proxy.fault = SlowPuts()
    _collect(site, Removing(site.static / last), "--no-post-process")
    there = site.bucket.files()
    assert there == {name: files[name] for name in files if name != last}


class LateFinder(FileSystemFinder):
    """A finder that omits the last source when Django's `collect` lists the files."""

    last: ClassVar[str]

    def list(self, ignore_patterns: Any) -> Iterator[Any]:
        in_collect = sys._getframe(1).f_code is Command.collect.__code__
        for path, storage in super().list(ignore_patterns):
            if path != self.last or not in_collect:
                yield path, storage


def test_no_post_process_without_the_last_source_in_collect(site: Site) -> None:
    """All other files are uploaded if only the command's own listing lacks the last.

    The package's listing contains that file, but the command never copies it.
    """
    files = _write(site, "one")
    LateFinder.last = last = _last_source(site)
    site.settings["STATICFILES_FINDERS"] = [f"{__name__}.LateFinder"]
    site.proxy.fault = SlowPuts()
    _collect(site, Command(), "--no-post-process")
    there = site.bucket.files()
    assert there == {name: files[name] for name in files if name != last}


class Building(Command):
    """A command that collects, builds more files, and collects again."""

    def __init__(self, build: Callable[[], object]) -> None:
        super().__init__()
        self.build = build

    def collect(self) -> dict[str, list[str]]:
        super().collect()
        self.build()
        collected: dict[str, list[str]] = super().collect()
        return collected


@BACKENDS
@ALL_ARGUMENTS
def test_command_that_collects_builds_and_collects(
    site: Site, backend: str, arguments: list[str]
) -> None:
    """Files that are built between two `collect` calls are uploaded by the second.

    The last source is the same in both, and does not end the second run early.
    """
    site.backend = backend
    _write(site, "one")
    last = _last_source(site)

    def build() -> None:
        folder = last.rpartition("/")[0]
        site.write_all({f"{folder}/built{i}.txt": b"%d" % i for i in range(20)})
        site.write("a-folder/new.txt", "new")
        site.proxy.fault = SlowPuts()

    _collect(site, Building(build), *arguments)
    site.proxy.fault = None
    there = site.bucket.files()
    assert there.items() >= _expected(site, backend, arguments).items()


# Post-processing that ends early.


class Returning(CollectfastS3ManifestStaticStorage):
    """A storage that ends post-processing after the first result."""

    def post_process(self, *args: Any, **options: Any) -> Iterator[Any]:
        for processed in super().post_process(*args, **options):
            yield processed
            return


class Closing(CollectfastS3ManifestStaticStorage):
    """A storage that closes the inherited generator after the first result."""

    def post_process(self, *args: Any, **options: Any) -> Iterator[Any]:
        processed = super().post_process(*args, **options)
        yield next(processed)
        processed.close()


class ClosedFromOutside(CollectfastS3ManifestStaticStorage):
    """A storage that replaces `post_process` on the instance to close the original."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        process = self.post_process

        def closing(*args: Any, **options: Any) -> Iterator[Any]:
            processed = process(*args, **options)
            yield next(processed)
            processed.close()

        self.post_process = closing


EARLY = pytest.mark.parametrize(
    "backend", ["Returning", "Closing", "ClosedFromOutside"]
)


@EARLY
@pytest.mark.parametrize("arguments", [[], ["--clear"]])
def test_post_processing_that_ends_early(
    site: Site, backend: str, arguments: list[str]
) -> None:
    """All collected files are uploaded, without a manifest, if `post_process` stops.

    A manifest would name hashed files that were never uploaded.
    """
    site.backend = f"{__name__}.{backend}"
    for release in ("one", "two"):
        files = _write(site, release)
        site.proxy.fault = SlowPuts()
        _collect(site, Command(), *arguments)
        site.proxy.fault = None
        there = site.bucket.files()
        assert there.items() >= files.items()
        assert MANIFEST not in there


@EARLY
def test_refusal_when_post_processing_ends_early(site: Site, backend: str) -> None:
    """A refused upload is an error with the file's name if `post_process` stops early.

    The command would otherwise succeed without that file.
    """
    site.backend = f"{__name__}.{backend}"
    _write(site, "one")
    site.proxy.fault = refuse("PUT", "/txt/7.txt")
    with pytest.raises(CommandError, match=r"txt/7\.txt: .*AccessDenied"):
        _collect(site, Command())


# Commands that fork.


class Forking(Command):
    """A command that copies every second file in a forked process."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def copy_file(self, *source: Any) -> None:
        self.number += 1
        if self.number % 2:
            super().copy_file(*source)
            return
        with warnings.catch_warnings():
            # Python 3.12 warns of forks while threads run, here those of the proxy.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            status = 1
            try:
                super().copy_file(*source)
                status = 0
            finally:
                os._exit(status)
        _wait(child)


def _wait(child: int) -> None:
    """Wait until the child process exits with status 0, for 30 seconds at most."""
    deadline = time.monotonic() + 30
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0
            return
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        time.sleep(0.005)


@pytest.mark.forks
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@BACKENDS
@ALL_ARGUMENTS
def test_command_that_copies_in_forks(
    site: Site, backend: str, arguments: list[str]
) -> None:
    """Files that a command copies in forked processes are in the bucket at the end.

    A fork does not take part in its parent's run, so it uploads its file immediately.
    """
    site.backend = backend
    for release in ("one", "two"):
        site.write_all({f"{i}.txt": f"{i} {release}".encode() for i in range(8)})
        site.touch()
        expected = _expected(site, backend, arguments)
        _collect(site, Forking(), *arguments)
        assert site.bucket.files().items() >= expected.items()
