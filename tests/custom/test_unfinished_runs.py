"""Runs that end with an exception in `collect`, while the calling program continues.

The files that the command copied before the exception are uploaded nevertheless.
"""

from __future__ import annotations

import gc
import io
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, ClassVar

import pytest
from django.contrib.staticfiles.finders import FileSystemFinder
from django.contrib.staticfiles.management.commands.collectstatic import Command
from django.contrib.staticfiles.storage import staticfiles_storage
from django.core.files.base import ContentFile
from django.core.management import call_command

from collectfast_storage import (
    CollectfastS3ManifestStaticStorage,
    CollectfastS3StaticStorage,
)
from collectfast_storage.exceptions import UploadError
from tests.support.processes import LONG, managing
from tests.support.proxy import Handler, Request
from tests.support.site import MANIFEST, STATIC, Site
from tests.support.sources import Source, finder_of

pytestmark = [pytest.mark.slow, pytest.mark.covering]

FILES = 20
GOOD = 15  # files that are copied before the failure
PATIENCE = 5  # seconds in which the threads of such a run end; two, and some slack
BOTH = pytest.mark.parametrize("backend", [STATIC, MANIFEST], ids=["static", "hashed"])


class TroubleError(Exception):
    pass


class SlowPuts:
    """A fault that delays each PUT, and refuses keys that contain `refused`.

    The delay keeps uploads from ending by chance before the run fails.
    """

    def __init__(self, refused: str = "", seconds: float = 0.05) -> None:
        self.refused = refused
        self.seconds = seconds

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind != "PUT":
            return False
        time.sleep(self.seconds)
        is_refused = bool(self.refused) and self.refused in request.key
        if is_refused:
            handler.error(403, "AccessDenied", "injected")
        return is_refused


# Commands that raise in `collect` after some files were copied.


class Tolerant(Command):
    """A command that catches the exception of `collect`, and continues.

    It records the files that were copied before.
    """

    error: type[BaseException] = TroubleError

    def __init__(self) -> None:
        super().__init__()
        self.copied: list[str] = []

    def collect(self) -> dict[str, list[str]]:
        try:
            collected: dict[str, list[str]] = super().collect()
        except (TroubleError, OSError, KeyboardInterrupt) as error:
            self.caught = error
            names = ("post_processed", "skipped", "deleted")
            lists = {"modified": self.copied_files, "unmodified": self.unmodified_files}
            return lists | {name: [] for name in names}
        return collected

    def copy_file(self, path: str, *rest: Any) -> None:
        super().copy_file(path, *rest)
        self.copied.append(path)


class InCopy(Tolerant):
    """A command that raises before it copies a file."""

    def copy_file(self, path: str, *rest: Any) -> None:
        if len(self.copied) == GOOD:
            raise self.error
        super().copy_file(path, *rest)


class AfterCopy(Tolerant):
    """A command that raises immediately after a save, during the upload."""

    def copy_file(self, path: str, *rest: Any) -> None:
        super().copy_file(path, *rest)
        if len(self.copied) == GOOD:
            raise self.error


class InLog(Tolerant):
    """A command that raises when it logs that it copies a file."""

    def log(self, message: str, level: int = 2) -> None:
        if message.startswith("Copying") and len(self.copied) == GOOD:
            raise self.error
        super().log(message, level)


class InDelete(Tolerant):
    """A command that raises in `delete_file`."""

    def delete_file(self, *source: Any) -> Any:
        if len(self.copied) == GOOD:
            raise self.error
        return super().delete_file(*source)


class InPostProcessing(Tolerant):
    """A command with a storage that raises in `post_process`; see `Processing`."""


class BeforePostProcessing(Tolerant):
    """A command with a storage that raises before its `post_process` is iterated.

    See `NotAGenerator`.
    """


class InFinder(Tolerant):
    """A command with a finder that raises; see `FailingFinder`."""


class InSource(Tolerant):
    """A command that fails at a source that cannot be read; see `UnreadableFinder`."""


class FailingFinder(FileSystemFinder):
    """A finder that raises after some files."""

    error: ClassVar[type[BaseException]] = TroubleError

    def list(self, ignore_patterns: Any) -> Iterator[Any]:
        for number, each in enumerate(super().list(ignore_patterns)):
            if number == GOOD:
                raise self.error
            yield each


class Processing:
    """A storage that raises before Django's post-processing."""

    def post_process(self, *args: Any, **options: Any) -> Iterator[Any]:
        raise TroubleError
        yield


class ProcessingStatic(Processing, CollectfastS3StaticStorage):
    pass


class ProcessingManifest(Processing, CollectfastS3ManifestStaticStorage):
    pass


class NotAGenerator(CollectfastS3ManifestStaticStorage):
    """A storage that raises when `post_process` is called, and not when iterated."""

    def post_process(self, *args: Any, **options: Any) -> Iterator[Any]:
        raise TroubleError


COMMANDS: list[type[Tolerant]] = [
    InCopy,
    AfterCopy,
    InLog,
    InDelete,
    InFinder,
    InSource,
    InPostProcessing,
    BeforePostProcessing,
]
ALL_COMMANDS = pytest.mark.parametrize("command", COMMANDS)


def _write(site: Site, text: str = "one") -> dict[str, bytes]:
    files = {f"{n}.txt": f"{n} {text}".encode() for n in range(10, 10 + FILES)}
    site.write_all(files)
    return files


def _prepare(site: Site, command: type[Tolerant], backend: str = STATIC) -> None:
    """Configure `site` so that `command` fails after `GOOD` files were copied."""
    site.backend = backend
    site.options["collectfast_threads"] = 2
    if command is InFinder:
        site.settings["STATICFILES_FINDERS"] = [f"{__name__}.FailingFinder"]
    if command is InPostProcessing:
        cls = ProcessingStatic if backend == STATIC else ProcessingManifest
        site.backend = f"{__name__}.{cls.__name__}"
    if command is BeforePostProcessing:
        site.backend = f"{__name__}.NotAGenerator"
    if command is InSource:
        site.settings["STATICFILES_FINDERS"] = [f"{__name__}.UnreadableFinder"]


class UnreadableFinder(FileSystemFinder):
    """A finder that lists a file that does not exist when it is opened."""

    def list(self, ignore_patterns: Any) -> Iterator[Any]:
        for number, (path, storage) in enumerate(super().list(ignore_patterns)):
            if number == GOOD:
                yield "vanished.txt", storage
            yield path, storage


def _call(command: Command, *arguments: str) -> None:
    call_command(command, "--noinput", *arguments, stdout=io.StringIO())


def _copied(command: Tolerant, files: dict[str, bytes]) -> dict[str, bytes]:
    assert len(command.copied) >= GOOD
    return {name: files[name] for name in command.copied}


def _assert_all_arrived(site: Site, expected: dict[str, bytes]) -> None:
    there = site.bucket.files()
    assert {name: there.get(name) for name in expected} == expected


def _first_source(site: Site) -> str:
    with site.active():
        return next(path for path, _ in FileSystemFinder().list([]))


def _errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("collectfast_storage")
        and record.levelno == logging.ERROR
    ]


# Calling programs that continue after the failure.


@ALL_COMMANDS
@BOTH
@pytest.mark.parametrize("arguments", [[], ["--no-post-process"]], ids=["", "no-post"])
def test_copied_files_are_uploaded_by_the_next_call(
    site: Site, command: type[Tolerant], backend: str, arguments: list[str]
) -> None:
    """All files that a failed run copied are in the bucket after the next call.

    No manifest is published.
    """
    if command in (InPostProcessing, BeforePostProcessing) and arguments:
        pytest.skip("nothing fails")
    files = _write(site)
    _prepare(site, command, backend)
    site.proxy.fault = SlowPuts()
    running = command()
    with site.active():
        _call(running, *arguments)
        assert running.caught
        staticfiles_storage.exists("next call")
        _assert_all_arrived(site, _copied(running, files))
    assert "staticfiles.json" not in site.bucket.names()


@pytest.mark.parametrize("call", ["exists", "save", "open", "size", "listdir", "url"])
def test_any_call_of_a_program_finds_the_copied_files(site: Site, call: str) -> None:
    """Each method of the storage sees all files that a failed run copied.

    The method returns only after the uploads of that run have ended.
    """
    files = _write(site)
    _prepare(site, AfterCopy)
    site.proxy.fault = SlowPuts()
    running = AfterCopy()
    with site.active():
        _call(running)
        last = running.copied[-1]
        if call == "exists":
            assert staticfiles_storage.exists(last)
        elif call == "save":
            assert staticfiles_storage.save("x.txt", ContentFile(b"x")) == "x.txt"
        elif call == "open":
            with staticfiles_storage.open(last) as file:
                assert file.read() == files[last]
        elif call == "size":
            assert staticfiles_storage.size(last) == len(files[last])
        elif call == "listdir":
            assert last in staticfiles_storage.listdir("")[1]
        else:
            # `url` sends no request to the bucket, so it need not wait for uploads.
            assert last in staticfiles_storage.url(last)
            staticfiles_storage.exists(last)
        _assert_all_arrived(site, _copied(running, files))


@BOTH
def test_program_that_catches_the_exception_of_the_command(
    site: Site, backend: str
) -> None:
    """Copied files are uploaded if a program catches the exception of the command.

    The command is Django's own, called with `call_command`.
    """
    files = _write(site)
    _prepare(site, InFinder, backend)
    site.proxy.fault = SlowPuts()
    with site.active():
        with suppress(TroubleError):
            _call(Command())
        staticfiles_storage.exists("next call")
        there = site.bucket.files()
    assert len(there) == GOOD
    assert there.items() <= files.items()


@BOTH
def test_older_contents_are_replaced_before_the_next_call(
    site: Site, backend: str
) -> None:
    """Files of a new release that a failed run copied replace the old objects.

    The objects of all other files are kept.
    """
    old = _write(site, "old")
    site.backend = backend
    site.collect()
    before = site.bucket.files()
    files = _write(site, "new")
    site.touch()
    _prepare(site, InCopy, backend)
    site.proxy.fault = SlowPuts()
    running = InCopy()
    with site.active():
        _call(running)
        staticfiles_storage.exists("next call")
    copied = _copied(running, files)
    assert site.bucket.files() == before | old | copied


def test_next_run_uploads_only_the_remaining_files(site: Site) -> None:
    """A second run in the process does not upload the first run's files again.

    It uploads each of the remaining files once.
    """
    files = _write(site)
    _prepare(site, InCopy)
    site.proxy.fault = SlowPuts()
    running = InCopy()
    with site.active():
        _call(running)
        _call(Command())
    assert site.bucket.files() == files
    assert sorted(site.put()) == sorted(files)


@pytest.mark.parametrize(
    "command", [InCopy, InFinder, InPostProcessing, BeforePostProcessing]
)
def test_clear_of_a_failed_run_deletes_nothing(
    site: Site, command: type[Tolerant]
) -> None:
    """A failed run with `--clear` deletes no left-over files.

    The files that it copied are uploaded.
    """
    files = _write(site)
    site.bucket.put("left over.txt", b"left over")
    _prepare(site, command)
    site.proxy.fault = SlowPuts()
    running = command()
    with site.active():
        _call(running, "--clear")
        staticfiles_storage.exists("next call")
    _assert_all_arrived(site, _copied(running, files))
    assert "left over.txt" in site.bucket.names()


class Holding(CollectfastS3ManifestStaticStorage):
    """A storage that raises during post-processing, and keeps the generator."""

    held: ClassVar[list[object]] = []

    def post_process(self, *args: Any, **options: Any) -> Iterator[Any]:
        processed = super().post_process(*args, **options)
        next(processed)
        self.held.append(processed)
        raise TroubleError


class Releasing(Command):
    """A command that releases all objects of an earlier run while it copies files."""

    def copy_file(self, *source: Any) -> None:
        Holding.held.clear()
        gc.collect()
        super().copy_file(*source)


@pytest.mark.parametrize("backend", [MANIFEST, f"{__name__}.Holding"])
def test_next_run_does_not_finish_a_failed_run(site: Site, backend: str) -> None:
    """A failed run with `--clear` deletes nothing when its generator is released later.

    An exception or a storage keeps the generator of the run's post-processing until
    the next run is copying files.
    """
    site.backend = backend
    site.write("a.css", "a { background: url(missing.png) }")
    site.write("b.txt", "b")
    site.bucket.put("left over.txt", b"left over")
    with site.active():
        with pytest.raises((ValueError, TroubleError)) as caught:
            _call(Command(), "--clear")
        Holding.held.append(caught.value)
        del caught
        _call(Releasing(), "--no-post-process")
    assert {"a.css", "b.txt", "left over.txt"} <= {*site.bucket.names()}


class RaisingAtTheEnd(CollectfastS3ManifestStaticStorage):
    """A storage that raises after Django's post-processing has hashed `after` files."""

    after: ClassVar[int]
    hashed: ClassVar[list[str]]

    def post_process(self, *args: Any, **options: Any) -> Iterator[Any]:
        self.hashed.clear()
        for name, hashed_name, processed in super().post_process(*args, **options):
            self.hashed.append(hashed_name)
            yield name, hashed_name, processed
            if len(self.hashed) == self.after:
                raise TroubleError


@pytest.mark.parametrize("after", [1, 4])
def test_hashed_files_are_uploaded_if_post_processing_fails_later(
    site: Site, after: int
) -> None:
    """All hashed files that `post_process` yielded before it failed are uploaded.

    No manifest is published.
    """
    site.write("a.css", "a { background: url(i.png) }")
    site.write("b.css", "b { background: url(a.css) }")
    site.write("i.png", "image")
    site.write("j.png", "image j")
    site.backend = f"{__name__}.RaisingAtTheEnd"
    RaisingAtTheEnd.after = after
    RaisingAtTheEnd.hashed = []
    site.proxy.fault = SlowPuts()
    with site.active():
        _call(Tolerant())
        staticfiles_storage.exists("next call")
        there = set(site.bucket.names())
    assert len(RaisingAtTheEnd.hashed) == after
    assert {"a.css", "b.css", "i.png", "j.png", *RaisingAtTheEnd.hashed} <= there
    assert "staticfiles.json" not in there


# Failed uploads.


@pytest.mark.parametrize("command", [AfterCopy, InFinder, InPostProcessing])
@BOTH
def test_failed_upload_of_a_failed_run_is_logged(
    site: Site, caplog: pytest.LogCaptureFixture, command: type[Tolerant], backend: str
) -> None:
    """A refused upload of a failed run is logged as an error with file and reason.

    All other files that the run copied are uploaded.
    """
    files = _write(site)
    _prepare(site, command, backend)
    refused = _first_source(site)
    site.proxy.fault = SlowPuts(refused=f"/{refused}")
    running = command()
    with site.active():
        _call(running)
        assert running.caught
        staticfiles_storage.exists("next call")
    expected = _copied(running, files)
    del expected[refused]
    _assert_all_arrived(site, expected)
    assert refused not in site.bucket.names()
    [error] = [text for text in _errors(caplog) if refused in text]
    assert "AccessDenied" in error


def test_nothing_is_logged_as_an_error_without_failures(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed run logs no error if all its uploads succeed.

    The exception reaches the calling program, so logging it is left to that program.
    """
    _write(site)
    _prepare(site, InCopy)
    with site.active():
        _call(InCopy())
        staticfiles_storage.exists("next call")
    assert _errors(caplog) == []


# Threads of failed runs.


def _own_threads() -> set[threading.Thread]:
    """Return the threads of this process, except those of the proxy."""
    all_threads = threading.enumerate()
    return {each for each in all_threads if "process_request" not in each.name}


@pytest.mark.parametrize(
    ("command", "backend"),
    [
        (InCopy, STATIC),
        (InFinder, MANIFEST),
        (InPostProcessing, STATIC),
        (InPostProcessing, MANIFEST),
    ],
)
def test_threads_of_a_failed_run_end(
    site: Site, command: type[Tolerant], backend: str
) -> None:
    """The threads of a failed run end even if the storage is not called again."""
    files = _write(site)
    _prepare(site, command, backend)
    site.proxy.fault = SlowPuts(seconds=0.01)
    before = _own_threads()
    running = command()
    with site.active():
        _call(running)
        deadline = time.monotonic() + PATIENCE
        while _own_threads() - before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert _own_threads() - before == set()
        staticfiles_storage.exists("next call")
        _assert_all_arrived(site, _copied(running, files))


def test_many_failed_runs_leave_no_threads(site: Site) -> None:
    """Runs that failed in several threads of a process leave no threads behind."""
    _write(site)
    _prepare(site, InCopy)
    before = _own_threads()
    with site.active():
        staticfiles_storage.exists  # noqa: B018 (builds it)
        callers = [threading.Thread(target=_call, args=(InCopy(),)) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(LONG)
        deadline = time.monotonic() + PATIENCE
        while _own_threads() - before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert _own_threads() - before == set()


# Interrupts.


@pytest.mark.parametrize("command", [InCopy, InLog, AfterCopy])
@BOTH
def test_interrupt_cancels_waiting_uploads(
    site: Site, command: type[Tolerant], backend: str
) -> None:
    """Uploads that still wait are cancelled if the command catches a Ctrl-C."""
    files = _write(site)
    _prepare(site, command, backend)
    site.proxy.fault = SlowPuts(seconds=0.2)
    running = command()
    running.error = KeyboardInterrupt
    before = _own_threads()
    with site.active():
        _call(running)
        assert isinstance(running.caught, KeyboardInterrupt)
        staticfiles_storage.exists("next call")
        deadline = time.monotonic() + PATIENCE
        while _own_threads() - before and time.monotonic() < deadline:
            time.sleep(0.02)
    assert len(site.bucket.names()) < len(_copied(running, files))


class Interrupting(io.BytesIO):
    """A source that raises an interrupt when it is read for the first time."""

    interrupts: ClassVar[list[BaseException]] = []

    def read(self, *size: int | None) -> bytes:
        if self.interrupts:
            raise self.interrupts.pop()
        return super().read(*size)


class IgnoringInterrupts(Command):
    """A command that continues with the next file after an interrupt."""

    def copy_file(self, *source: Any) -> None:
        with suppress(KeyboardInterrupt, SystemExit):
            super().copy_file(*source)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("preload", [True, False])
def test_error_names_the_files_that_an_interrupt_cancelled(
    site: Site, preload: bool, error: type[BaseException]
) -> None:
    """A command that continues after an interrupt fails, and publishes no manifest.

    The error names all files that were not uploaded. Without `preload`, changed files
    are cancelled before their upload is submitted.
    """
    site.backend = MANIFEST
    site.options |= {"collectfast_preload": preload, "collectfast_threads": 1}
    old: dict[str, Source] = {f"{n}.txt": b"%d old" % n for n in range(6)}
    site.collect(STATICFILES_FINDERS=[finder_of(old)])
    manifest = site.bucket.read("staticfiles.json")
    over = threading.Event()

    def hold(handler: Handler, request: Request, body: bytes) -> bool:
        if not (request.kind == "PUT" and request.key.endswith("/1.txt")):
            return False
        over.wait(LONG)
        handler.error(403, "AccessDenied")
        return True

    site.proxy.fault = hold
    Interrupting.interrupts[:] = [error()]
    new: dict[str, Source] = {f"{n}.txt": b"%d new" % n for n in range(6)}
    finder = finder_of({**new, "z.txt": Interrupting})
    with site.active(STATICFILES_FINDERS=[finder]):
        with pytest.raises(UploadError, match="the upload was interrupted") as caught:
            _call(IgnoringInterrupts())
        over.set()
    # The first upload may or may not have begun when the source raises the interrupt.
    assert caught.value.failures.keys() | {"0.txt"} == new.keys()
    assert site.bucket.read("staticfiles.json") == manifest


# Processes that end after a failed run.


def tolerate(name: str, ending: str) -> None:
    """Run the command `name`, and end this process in the way of `ending`."""
    command = globals()[name]()
    _call(command)
    assert command.caught
    print(json.dumps(command.copied), flush=True)
    if ending == "exit":
        sys.exit(0)
    if ending == "exit 3":
        sys.exit(3)
    if ending == "raise":
        raise TroubleError("at the end")


def tolerate_in_a_thread(name: str) -> None:
    """Run the command `name` in a thread that ends before the process does."""
    command = globals()[name]()
    thread = threading.Thread(target=_call, args=(command,))
    thread.start()
    thread.join()
    print(json.dumps(command.copied), flush=True)


def _process(site: Site, call: str) -> tuple[int, list[str], str]:
    """Call a function of this module in a new process."""
    code = f"import {__name__} as t; t.{call}"
    with managing(site, "shell", "-c", code) as process:
        try:
            output, errors = process.communicate(timeout=LONG)
        except subprocess.TimeoutExpired:
            pytest.fail("the process hangs")
    copied = output.splitlines()[-1] if output else "[]"  # The shell may print more.
    return process.returncode, json.loads(copied), errors


@pytest.mark.parametrize(
    ("command", "ending", "status"),
    [
        (InCopy, "return", 0),
        (AfterCopy, "exit", 0),
        (InLog, "exit 3", 3),
        (InDelete, "raise", 1),
    ],
)
def test_copied_files_are_uploaded_before_the_process_ends(
    site: Site, command: type[Tolerant], ending: str, status: int
) -> None:
    """All files that a failed run copied are uploaded before the process ends.

    The process may return, exit or raise, and its exit status does not change.
    """
    files = _write(site)
    _prepare(site, command)
    site.proxy.fault = SlowPuts()
    call = f"tolerate({command.__name__!r}, {ending!r})"
    ended, copied, errors = _process(site, call)
    assert ended == status, errors
    assert len(copied) >= GOOD
    _assert_all_arrived(site, {name: files[name] for name in copied})


def test_copied_files_of_a_thread_that_ended_are_uploaded(site: Site) -> None:
    """All files that a failed run copied in a thread are uploaded before exit.

    The thread has already ended when the process exits.
    """
    files = _write(site)
    _prepare(site, InCopy)
    site.proxy.fault = SlowPuts()
    ended, copied, errors = _process(site, "tolerate_in_a_thread('InCopy')")
    assert ended == 0, errors
    assert len(copied) == GOOD
    _assert_all_arrived(site, {name: files[name] for name in copied})


def test_failure_is_logged_before_the_process_ends(site: Site) -> None:
    """A refused upload of a failed run is on standard error before the process ends.

    The message names the file and the reason.
    """
    files = _write(site)
    _prepare(site, AfterCopy)
    refused = _first_source(site)
    site.proxy.fault = SlowPuts(refused=f"/{refused}")
    ended, copied, errors = _process(site, "tolerate('AfterCopy', 'return')")
    assert ended == 0, errors
    assert refused in errors
    assert "AccessDenied" in errors
    expected = {name: files[name] for name in copied if name != refused}
    _assert_all_arrived(site, expected)


def test_hashed_files_are_uploaded_before_the_process_ends(site: Site) -> None:
    """Hashed files that post-processing saved before it failed are uploaded.

    No manifest is published.
    """
    site.write("a.css", "a { background: url(i.png) }")
    site.write("i.png", "image")
    site.backend = f"{__name__}.RaisingAtTheEnd"
    site.proxy.fault = SlowPuts()
    call = "RaisingAtTheEnd.after, t.RaisingAtTheEnd.hashed = 2, []; "
    call += "t.tolerate('Tolerant', 'return')"
    ended, copied, errors = _process(site, call)
    assert ended == 0, errors
    assert sorted(copied) == ["a.css", "i.png"]
    names = site.bucket.names()
    assert len(names) == 4
    assert "staticfiles.json" not in names


class AfterLarge(Tolerant):
    """A command that raises immediately after it saved a large file as the last one."""

    def copy_file(self, path: str, *rest: Any) -> None:
        super().copy_file(path, *rest)
        if path == "large/a.bin":
            raise self.error


def test_large_file_is_uploaded_before_the_process_ends(site: Site) -> None:
    """A large file is uploaded even if its upload begins when the interpreter exits.

    The executors of s3transfer accept no more calls at that time.
    """
    files = {f"{n}.txt": b"%d" % n for n in range(3)}
    files["large/a.bin"] = bytes(9 << 20)  # More than boto3's threshold.
    site.write_all(files)
    site.options["collectfast_threads"] = 1
    site.proxy.fault = SlowPuts(seconds=0.2)
    ended, copied, errors = _process(site, "tolerate('AfterLarge', 'return')")
    assert ended == 0, errors
    assert {*copied} == {*files}
    _assert_all_arrived(site, files)
