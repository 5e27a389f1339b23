"""No file is ever lost at exit 0, whatever a command of a site's own does."""

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
AT_ONCE = 8


def _call(command: Command, *arguments: str) -> None:
    call_command(command, "--noinput", *arguments, stdout=io.StringIO())


def _collect(site: Site, command: Command, *arguments: str) -> None:
    site.proxy.requests.clear()
    with site.active():
        _call(command, *arguments)


def _sources(command: Command) -> Iterator[tuple[str, str, Any]]:
    """What collectstatic copies, as `copy_file` takes it."""
    for finder in get_finders():
        for path, storage in finder.list(command.ignore_patterns):
            yield path, path, storage


def _result(command: Command) -> dict[str, list[str]]:
    names = ("post_processed", "skipped", "deleted")
    copied = {"modified": command.copied_files, "unmodified": command.unmodified_files}
    return copied | {name: [] for name in names}


def _write(site: Site, text: str) -> dict[str, bytes]:
    """Write a release: CSS that names images, and files that nothing names."""
    files = {f"img/{i}.png": f"image {i} {text}".encode() for i in range(4)}
    files |= {
        f"css/{i}.css": f"a {{ background: url(../img/{i}.png) }} /* {text} */".encode()
        for i in range(4)
    }
    files |= {f"txt/{i}.txt": f"text {i} {text}".encode() for i in range(16)}
    site.write_all(files)
    return files


def _locally(site: Site, backend: str) -> dict[str, bytes]:
    """What Django writes with a local storage, where there was nothing."""
    root = site.root / "collected"
    shutil.rmtree(root, ignore_errors=True)
    site.collect(STORAGES={"staticfiles": {"BACKEND": backend}})
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def _expected(site: Site, backend: str, arguments: list[str]) -> dict[str, bytes]:
    """What is to be in the bucket after a deploy of what is in the sources now."""
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


# What `post_process` yields is not its end.


class TroubleError(Exception):
    pass


class Lenient:
    """Yields exceptions in the middle, of its own and Django's; logs them; goes on."""

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
def test_storage_that_logs_what_went_wrong_and_goes_on(
    site: Site, backend: str
) -> None:
    """Every hashed file arrives, those after an exception too, and the manifest."""
    _write(site, "one")
    site.write("css/3broken.css", "a { background: url(none.png) }")
    expected = _locally(site, f"{__name__}.LenientLocally")
    Lenient.logged.clear()
    site.backend = f"{__name__}.{backend}"
    site.collect()
    assert {"before", "after", "css/3broken.css"} <= {*Lenient.logged}
    assert site.bucket.files() == expected


class Warns(CollectfastS3ManifestStaticStorage):
    """Warns of some files, as django-manifeststaticfiles-enhanced does."""

    def post_process(self, *args: Any, **options: Any) -> Iterator[Any]:
        for name, hashed_name, outcome in super().post_process(*args, **options):
            if name.startswith("css/3"):
                yield name, None, TroubleError("a warning")
            yield name, hashed_name, outcome


class ProcessingInCollect(Command):
    """Post-processes by itself, logs what goes wrong, and goes on."""

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
    """It may log what is yielded and go on: every hashed file and the manifest."""
    _write(site, "one")
    expected = _expected(site, MANIFEST_STORAGE, [])
    site.backend = backend
    running = command()
    for _ in range(2):
        _collect(site, running)
        assert site.bucket.files() == expected
        assert bool(running.troubles) == (backend != MANIFEST_STORAGE)
        running = command()


# Commands that copy in a way of their own.


class Looping(Command):
    """Replaces Django's `collect` by a loop."""

    def collect(self) -> dict[str, list[str]]:
        for source in _sources(self):
            self.copy_file(*source)
        return _result(self)


class LoopingInThreads(Command):
    """Replaces Django's `collect` by a loop in eight threads."""

    def collect(self) -> dict[str, list[str]]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
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
    """All is there when it returns; and nobody lists the bucket for one file."""
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
    """As django-storages raises it; the next deploy sends what is missing."""
    files = _write(site, "one")
    site.proxy.fault = refuse("PUT", "/txt/7.txt")
    with pytest.raises(ClientError, match="AccessDenied"):
        _collect(site, command())
    assert "txt/7.txt" not in site.bucket.names()
    site.proxy.fault = None
    _collect(site, command())
    assert site.bucket.files() == files


class CopyingInThreads(Command):
    """Lets Django's `collect` run, and copies in threads, until after its end."""

    def collect(self) -> dict[str, list[str]]:
        self.copies: list[Future[None]] = []
        with ThreadPoolExecutor(AT_ONCE) as self.pool:
            collected: dict[str, list[str]] = super().collect()
        for copy in self.copies:
            copy.result()
        return collected

    def copy_file(self, *source: Any) -> None:
        self.copies.append(self.pool.submit(super().copy_file, *source))


class CopyingBefore(Command):
    """Copies in threads, before Django's `collect` runs."""

    def collect(self) -> dict[str, list[str]]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
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
    """All is there when it returns: the first time, and when all has changed."""
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
    """The exit is an error, whoever finds out; the next deploy mends it."""
    files = _write(site, "one")
    site.proxy.fault = refuse("PUT", "/txt/7.txt")
    with pytest.raises((ClientError, CommandError), match="AccessDenied"):
        _collect(site, command(), *arguments)
    site.proxy.fault = None
    _collect(site, command(), *arguments)
    assert site.bucket.files() == files


# A second pass of one command.


@BACKENDS
@ALL_ARGUMENTS
@pytest.mark.parametrize("refused", ["/txt/7.txt", "/css/3.", MANIFEST])
def test_second_pass_of_a_command_that_failed(
    site: Site, backend: str, arguments: list[str], refused: str
) -> None:
    """It counts as copied what never arrived; all the same all is there at exit 0.

    And nothing of the release before is deleted meanwhile.
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
    def collect(self) -> dict[str, list[str]]:
        super().collect()
        collected: dict[str, list[str]] = super().collect()
        return collected


class Persistent(Command):
    """Tries again what failed."""

    def __init__(self, mend: Callable[[], object]) -> None:
        super().__init__()
        self.mend = mend

    def collect(self) -> dict[str, list[str]]:
        with pytest.raises(CommandError):
            super().collect()
        self.mend()
        collected: dict[str, list[str]] = super().collect()
        return collected


@BACKENDS
@ALL_ARGUMENTS
def test_command_that_collects_twice(
    site: Site, backend: str, arguments: list[str]
) -> None:
    """The second time neither loses nor deletes what the first has done."""
    site.backend = backend
    for release in ("one", "two"):
        _write(site, release)
        expected = _expected(site, backend, arguments)
        _collect(site, Twice(), *arguments)
        assert site.bucket.files().items() >= expected.items()
        # Of two that clear, the second clears the release before.
        assert _deletes(site) == 0 or "--clear" in arguments


@BACKENDS
@ALL_ARGUMENTS
@pytest.mark.parametrize("refused", ["/txt/7.txt", "/css/3."])
def test_command_that_tries_again(
    site: Site, backend: str, arguments: list[str], refused: str
) -> None:
    """What the first try could not upload, the second does."""
    site.backend = backend
    _write(site, "one")
    _collect(site, Command(), *arguments)
    _write(site, "two")
    expected = _expected(site, backend, arguments)

    def mend() -> None:
        site.proxy.fault = None

    site.proxy.fault = refuse("PUT", refused)
    _collect(site, Persistent(mend), *arguments)
    assert site.bucket.files().items() >= expected.items()
    assert _deletes(site) == 0


# A collectstatic in a batch.


@BACKENDS
@ARGUMENTS
def test_collectstatic_in_a_batch(
    site: Site, backend: str, arguments: list[str]
) -> None:
    """A batch and a collectstatic in its block do not see each other.

    All that either of them saves arrives, and only the batch's deletes are its own.
    """
    site.backend = backend
    _write(site, "one")
    site.collect(*arguments)
    site.bucket.put("gone.txt", b"to be deleted")
    _write(site, "two")
    for path in site.static.rglob("*"):
        os.utime(path, (1, 1))  # Older than what is there.
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


# No other names.


@BACKENDS
@ARGUMENTS
@pytest.mark.parametrize("preload", [True, False])
def test_changed_file_keeps_its_name_without_overwriting(
    site: Site, backend: str, arguments: list[str], preload: bool
) -> None:
    """`file_overwrite=False` is for uploads of users: a source is replaced in place."""
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


# Without post-processing.


class AtOnce:
    """Takes its time for each PUT, so that more at once help; knows how many were."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way = self.most = 0

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind != "PUT":
            return False
        with self._lock:
            self._under_way += 1
            self.most = max(self.most, self._under_way)
        time.sleep(0.1)
        with self._lock:
            self._under_way -= 1
        return False


@BACKENDS
def test_no_post_process_uploads_side_by_side(site: Site, backend: str) -> None:
    """A deploy without post-processing is no slower than one with."""
    site.backend = backend
    files = _write(site, "one")
    site.proxy.fault = at_once = AtOnce()
    _collect(site, Command(), "--no-post-process")
    assert site.bucket.files() == files
    assert at_once.most >= AT_ONCE


@pytest.mark.parametrize("number", [0, 7, 15])
def test_no_post_process_names_what_was_refused(site: Site, number: int) -> None:
    """Whichever it is, the exit is an error, and all others are there."""
    files = _write(site, "one")
    site.proxy.fault = refuse("PUT", f"/txt/{number}.txt")
    with pytest.raises(CommandError, match=rf"txt/{number}\.txt: .*AccessDenied"):
        _collect(site, Command(), "--no-post-process")
    site.proxy.fault = None
    assert site.bucket.names() == sorted({*files} - {f"txt/{number}.txt"})
    _collect(site, Command(), "--no-post-process")
    assert site.bucket.files() == files


def _last_source(site: Site) -> str:
    with site.active():
        return [path for path, _ in FileSystemFinder().list([])][-1]


class SlowPuts:
    """Lets nothing arrive by mere luck, before a command returns."""

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "PUT":
            time.sleep(0.1)
        return False


class SkippingInCopy(Command):
    last: ClassVar[str]

    def copy_file(self, path: str, *rest: Any) -> None:
        if path != self.last:
            super().copy_file(path, *rest)


class SkippingInDelete(Command):
    last: ClassVar[str]

    def delete_file(self, path: str, *rest: Any) -> Any:
        return path != self.last and super().delete_file(path, *rest)


class CopiedBefore(Command):
    """Has copied the last source in a pass of its own, by other means."""

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
    """Everything else has arrived when it returns."""
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
    """It is never lost at exit 0."""
    _write(site, "one")
    command.last = _last_source(site)
    [refused, *_] = [f"txt/{i}.txt" for i in range(9) if f"{i}.txt" not in command.last]
    site.proxy.fault = refuse("PUT", refused)
    with pytest.raises((ClientError, CommandError), match="AccessDenied"):
        _collect(site, command(), "--no-post-process")


class Keeping(CollectfastS3StaticStorage):
    """Says of one source that what is there is new enough."""

    last: ClassVar[str]

    def exists(self, name: str) -> bool:
        return name == self.last or super().exists(name)

    def get_modified_time(self, name: str) -> Any:
        if name == self.last:
            return timezone.now()
        return super().get_modified_time(name)


def test_no_post_process_of_a_storage_that_keeps_the_last_source(site: Site) -> None:
    """The command skips it, and never asks further; all else has arrived."""
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
    """Finds what is there when it gets to it."""

    def list(self, ignore_patterns: Any) -> Iterator[Any]:
        for path, storage in super().list(ignore_patterns):
            if storage.exists(path):
                yield path, storage


class Removing(Command):
    """Removes the last source as soon as it copies the first one."""

    def __init__(self, last: Path) -> None:
        super().__init__()
        self.last = last

    def log(self, message: str, level: int = 2) -> None:
        if message.startswith("Copying"):
            self.last.unlink(missing_ok=True)
        super().log(message, level)


def test_no_post_process_where_the_last_source_vanishes(site: Site) -> None:
    """A build may remove a file of its own meanwhile; all others arrive."""
    files = _write(site, "one")
    last = _last_source(site)
    site.settings["STATICFILES_FINDERS"] = [f"{__name__}.Finder"]
    site.proxy.fault = SlowPuts()
    _collect(site, Removing(site.static / last), "--no-post-process")
    there = site.bucket.files()
    assert there == {name: files[name] for name in files if name != last}


class LateFinder(FileSystemFinder):
    """Finds all but the last source, if it is asked for them one by one."""

    last: ClassVar[str]

    def list(self, ignore_patterns: Any) -> Iterator[Any]:
        copies = sys._getframe(1).f_code is Command.collect.__code__
        for path, storage in super().list(ignore_patterns):
            if path != self.last or not copies:
                yield path, storage


def test_no_post_process_where_the_last_source_vanishes_last(site: Site) -> None:
    """After all others have been saved, so that there is no word of it."""
    files = _write(site, "one")
    LateFinder.last = last = _last_source(site)
    site.settings["STATICFILES_FINDERS"] = [f"{__name__}.LateFinder"]
    site.proxy.fault = SlowPuts()
    _collect(site, Command(), "--no-post-process")
    there = site.bucket.files()
    assert there == {name: files[name] for name in files if name != last}


class Building(Command):
    """Collects what there is, makes more of it, and collects that."""

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
    """What is new the second time arrives, though the last source is not."""
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


# A caller that has enough.


class Returning(CollectfastS3ManifestStaticStorage):
    def post_process(self, *args: Any, **options: Any) -> Iterator[Any]:
        for processed in super().post_process(*args, **options):
            yield processed
            return


class Closing(CollectfastS3ManifestStaticStorage):
    def post_process(self, *args: Any, **options: Any) -> Iterator[Any]:
        processed = super().post_process(*args, **options)
        yield next(processed)
        processed.close()


class ClosedFromOutside(CollectfastS3ManifestStaticStorage):
    """Its `post_process` is put on the instance, around all others."""

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
    """What was saved by then has arrived, and no manifest names what was not."""
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
def test_refusal_where_post_processing_ends_early(site: Site, backend: str) -> None:
    """It is an error, and named."""
    site.backend = f"{__name__}.{backend}"
    _write(site, "one")
    site.proxy.fault = refuse("PUT", "/txt/7.txt")
    with pytest.raises(CommandError, match=r"txt/7\.txt: .*AccessDenied"):
        _collect(site, Command())


# A command that forks.


class Forking(Command):
    """Lets a process of its own copy every second file."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def copy_file(self, *source: Any) -> None:
        self.number += 1
        if self.number % 2:
            super().copy_file(*source)
            return
        with warnings.catch_warnings():
            # Python 3.12 warns of threads, of which here are those of the proxy.
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
    """Wait for a child to end well, and not for ever."""
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
    """A fork has no part in its parent's run: what it copies is there at once."""
    site.backend = backend
    for release in ("one", "two"):
        site.write_all({f"{i}.txt": f"{i} {release}".encode() for i in range(8)})
        site.touch()
        expected = _expected(site, backend, arguments)
        _collect(site, Forking(), *arguments)
        assert site.bucket.files().items() >= expected.items()
