"""Commands that run again after a failure, are decorated, or fail in threads."""

from __future__ import annotations

import functools
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator, suppress
from typing import Any, ClassVar

import pytest
from django.contrib.staticfiles.finders import FileSystemFinder
from django.contrib.staticfiles.management.commands.collectstatic import Command
from django.core.management import call_command

from collectfast_storage import CollectfastS3ManifestStaticStorage
from tests.support.processes import LONG
from tests.support.proxy import Handler, Request
from tests.support.site import LOCAL, MANIFEST, STATIC, Site
from tests.support.sources import Source, finder_of

pytestmark = [pytest.mark.slow, pytest.mark.covering]

BACKENDS = pytest.mark.parametrize("backend", [STATIC, MANIFEST])
PLAIN_MANIFEST = "storages.backends.s3.S3ManifestStaticStorage"
NAME = "staticfiles.json"


def _write(site: Site, text: str = "one") -> dict[str, bytes]:
    files = {
        "a.css": f"a {{ background: url(b.png) }} /* {text} */".encode(),
        "b.png": f"image {text}".encode(),
        "c.txt": f"text {text}".encode(),
        "d/e.txt": f"another text {text}".encode(),
    }
    site.write_all(files)
    return files


def _call(command: Command, *arguments: str) -> str:
    output = io.StringIO()
    call_command(command, "--noinput", *arguments, stdout=output, stderr=output)
    return output.getvalue()


def _locally(site: Site, *arguments: str) -> dict[str, bytes]:
    """Return what Django's own storage holds after a first deploy."""
    backend = LOCAL.get(site.backend, LOCAL[MANIFEST])
    site.collect(*arguments, STORAGES={"staticfiles": {"BACKEND": backend}})
    root = site.root / "collected"
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


# Commands that run again after a failure.


class TroubleError(Exception):
    pass


class FailingFinder(FileSystemFinder):
    """A finder that raises before its last file while `fails` is true."""

    fails: ClassVar[bool] = True

    def list(self, ignore_patterns: Any) -> Iterator[Any]:
        *found, last = super().list(ignore_patterns)
        yield from found
        if self.fails:
            raise TroubleError("a finder failed")
        yield last


def _finder_fails(site: Site) -> Callable[[], None]:
    site.settings["STATICFILES_FINDERS"] = [f"{__name__}.FailingFinder"]
    FailingFinder.fails = True

    def repair() -> None:
        FailingFinder.fails = False

    return repair


def _source_is_missing(site: Site) -> Callable[[], None]:
    """Let a finder list a last source that cannot be opened."""
    sources: dict[str, Source] = {"missing.txt": (site.root / "no-such-file").open}
    site.settings["STATICFILES_FINDERS"] = [
        "django.contrib.staticfiles.finders.FileSystemFinder",
        finder_of(sources),
    ]
    return sources.clear


def _refuse(kind: str, code: str) -> Callable[[Site], Callable[[], None]]:
    def set_up(site: Site) -> Callable[[], None]:
        def fault(handler: Handler, request: Request, body: bytes) -> bool:
            if request.kind == kind:
                handler.error(403, code)
            return request.kind == kind

        site.proxy.fault = fault

        def repair() -> None:
            site.proxy.fault = None

        return repair

    return set_up


FAILURES = {
    "a finder raises": _finder_fails,
    "a source is missing": _source_is_missing,
    "the bucket refuses each PUT": _refuse("PUT", "AccessDenied"),
    "the credentials are wrong": _refuse("PUT", "InvalidAccessKeyId"),
}
FAILING = pytest.mark.parametrize("failure", FAILURES)


@FAILING
@pytest.mark.parametrize(
    "first", [["--no-post-process"], ["--no-post-process", "--clear"], ["--clear"]]
)
@pytest.mark.parametrize("backend", [MANIFEST, PLAIN_MANIFEST])
def test_manifest_is_published_by_the_run_after_a_failure(
    site: Site, backend: str, first: list[str], failure: str
) -> None:
    """A command that failed with other options publishes a manifest when run again.

    Options of the failed run have no effect on the next run of the same command.
    """
    site.backend = backend
    _write(site)
    expected = _locally(site)
    repair = FAILURES[failure](site)
    command = Command()
    with site.active():
        command.storage.exists("builds-it.txt")
        with suppress(Exception):
            _call(command, *first)
            pytest.fail("the first run did not fail")
        repair()
        _call(command)
    assert site.bucket.files() == expected


@FAILING
@pytest.mark.parametrize("backend", [MANIFEST, PLAIN_MANIFEST])
def test_no_manifest_is_published_by_the_run_after_a_failure(
    site: Site, backend: str, failure: str
) -> None:
    """A run with `--no-post-process` writes no manifest after a failed run without it.

    Options of the failed run have no effect on the next run of the same command.
    """
    site.backend = backend
    files = _write(site)
    repair = FAILURES[failure](site)
    command = Command()
    with site.active():
        with suppress(Exception):
            _call(command)
            pytest.fail("the first run did not fail")
        repair()
        _call(command, "--no-post-process")
    there = site.bucket.files()
    assert there.items() >= files.items()
    assert NAME not in there


@FAILING
def test_attributes_of_a_command_that_failed(site: Site, failure: str) -> None:
    """Options that a caller sets after a failed run are kept.

    The package ends the failed run at the next call of the storage, and that does not
    change the command's `post_process`. The command's lists are plain lists again.
    """
    site.backend = MANIFEST
    _write(site)
    FAILURES[failure](site)
    command = Command()
    with site.active():
        with suppress(Exception):
            _call(command, "--no-post-process")
            pytest.fail("the run did not fail")
        command.set_options(
            interactive=False,
            verbosity=0,
            link=False,
            clear=False,
            dry_run=False,
            ignore_patterns=[],
            use_default_ignore_patterns=True,
            post_process=True,
        )
        with suppress(Exception):
            command.storage.exists("asks-the-storage.txt")
        assert command.post_process is True
    assert type(command.copied_files) is list
    assert type(command.unmodified_files) is list


# Django's `collect` in a decorator, as instrumentation libraries add.

Method = Callable[..., Any]


def _with_wraps(method: Method) -> Method:
    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return wrapper


def _without_wraps(method: Method) -> Method:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return wrapper


def _with_another_self(method: Method) -> Method:
    def wrapper(command: Any) -> Any:
        return method(command)

    return wrapper


def _twice(method: Method) -> Method:
    return _with_wraps(_without_wraps(_with_wraps(method)))


class Traced(ContextDecorator):
    """A context manager without effects that serves as a decorator."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class Proxy:
    """A callable object that replaces the function, as wrapt's proxies do."""

    def __init__(self, method: Method, command: Any = None) -> None:
        self._method = method
        self._command = command

    def __get__(self, command: Any, owner: type | None = None) -> Any:
        return Proxy(self._method, command)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before = () if self._command is None else (self._command,)
        return self._method(*before, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)


class BareProxy(Proxy):
    """A callable object that lacks the attributes of the function it replaces."""

    def __get__(self, command: Any, owner: type | None = None) -> Any:
        return functools.partial(self._method, command)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


WRAPPERS: dict[str, Callable[[Method], Any]] = {
    "with functools.wraps": _with_wraps,
    "without functools.wraps": _without_wraps,
    "with another name for self": _with_another_self,
    "three times": _twice,
    "by a context manager": Traced(),
    "by an object": Proxy,
    "by an object without attributes": BareProxy,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@BACKENDS
@pytest.mark.parametrize("arguments", [[], ["--no-post-process"]], ids=" ".join)
def test_collect_that_is_wrapped(
    new_site: Callable[[], Site],
    backend: str,
    arguments: list[str],
    wrapper: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Deploys send the same requests and print the same with a decorated `collect`."""
    results = []
    for is_wrapped in (False, True):
        site = new_site()
        site.backend = backend
        _write(site)
        if is_wrapped:
            wrapped = WRAPPERS[wrapper](Command.collect)
            monkeypatch.setattr(Command, "collect", wrapped)
        first = site.collect(*arguments)
        site.touch()
        again = site.collect(*arguments)
        deploys = [(each.requests, each.put, each.summary) for each in (first, again)]
        results.append((deploys, site.bucket.files()))
    assert results[1] == results[0]
    assert again.put == []
    assert "4 unmodified" in again.summary


class Subclass(Command):
    """A custom command with a decorated `collect` that calls Django's."""

    @_without_wraps
    def collect(self) -> Any:
        return super().collect()


@BACKENDS
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_two_runs_of_a_wrapped_command(
    site: Site, backend: str, wrapper: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command with a decorated `collect` is a run of its own in one process.

    Every run lists the bucket once, and uploads all files that changed.
    """
    site.backend = backend
    monkeypatch.setattr(Command, "collect", WRAPPERS[wrapper](Command.collect))
    with site.active():
        for text in ("one", "two"):
            files = _write(site, text)
            site.touch()
            site.proxy.requests.clear()
            _call(Subclass())
            assert site.bucket.files().items() >= files.items()
            assert site.proxy.count()["LIST"] == 1
            assert len(site.put()) >= len(files)


# Runs that fail in threads.


class FailingPostProcess(CollectfastS3ManifestStaticStorage):
    """A storage that raises in `post_process` at the second file."""

    def post_process(self, *args: Any, **options: Any) -> Iterator[Any]:
        for number, processed in enumerate(super().post_process(*args, **options)):
            if number == 1:
                raise TroubleError("post-processing failed")
            yield processed


class StoppedByItsCaller(Command):
    """A command that post-processes the first file, and then raises."""

    def collect(self) -> Any:
        self.post_process = False
        super().collect()
        paths = {
            name: (storage, name)
            for name, storage in FileSystemFinder().list(self.ignore_patterns)
        }
        for _ in self.storage.post_process(paths, dry_run=False):
            raise TroubleError("the caller stopped")


THREADS = {
    "a finder raises": (MANIFEST, _finder_fails, Command),
    "a source is missing": (STATIC, _source_is_missing, Command),
    "the bucket refuses each PUT": (
        STATIC,
        _refuse("PUT", "AccessDenied"),
        Command,
    ),
    "the credentials are wrong": (
        MANIFEST,
        _refuse("PUT", "InvalidAccessKeyId"),
        Command,
    ),
    "post-processing raises": (
        f"{__name__}.FailingPostProcess",
        lambda site: lambda: None,
        Command,
    ),
    "its caller stops": (MANIFEST, lambda site: lambda: None, StoppedByItsCaller),
}


def _slow_puts(handler: Handler, request: Request, body: bytes) -> bool:
    """Delay each PUT, so that uploads run simultaneously."""
    if request.kind == "PUT":
        time.sleep(0.1)
    return False


def _threads() -> set[threading.Thread]:
    """Return the threads of this process, except those of the proxy."""
    running = threading.enumerate()
    return {each for each in running if "process_request" not in each.name}


def _left(before: set[threading.Thread], own: list[threading.Thread]) -> int:
    """Return the number of new threads that still run two seconds later."""
    deadline = time.monotonic() + 2
    while left := _threads() - before - {*own}:
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    return len(left)


@pytest.mark.parametrize("failure", THREADS)
@pytest.mark.parametrize("continues", [True, False], ids=["continues", "ends"])
def test_threads_of_failed_runs_end(site: Site, failure: str, continues: bool) -> None:
    """All upload threads have ended two seconds after runs failed in threads.

    This holds whether the thread of the command continues with other work or ends.
    """
    site.backend, set_up, command = THREADS[failure]
    site.options["collectfast_threads"] = 16
    site.write_many(30)
    set_up(site)
    site.proxy.fault = site.proxy.fault or _slow_puts
    before = _threads()
    may_end = threading.Event()
    failed = threading.Semaphore(0)
    raised: list[BaseException] = []

    def run() -> None:
        try:
            _call(command())
        except Exception as error:
            raised.append(error)
        failed.release()
        assert not continues or may_end.wait(LONG)

    with site.active():
        own = [threading.Thread(target=run, daemon=True) for _ in range(3)]
        for thread in own:
            thread.start()
        try:
            assert all(failed.acquire(timeout=LONG) for _ in own)
            if not continues:
                for thread in own:
                    thread.join(LONG)
            left = _left(before, own)
        finally:
            may_end.set()
            for thread in own:
                thread.join(LONG)
    assert len(raised) == len(own)
    assert left == 0


@pytest.mark.parametrize("failure", THREADS)
def test_threads_of_a_failed_run_end_without_another_call(
    site: Site, failure: str
) -> None:
    """All upload threads end after a failed run without another call of the storage.

    This holds even if the caller keeps the exception and its traceback.
    """
    site.backend, set_up, command = THREADS[failure]
    site.options["collectfast_threads"] = 16
    site.write_many(30)
    set_up(site)
    site.proxy.fault = site.proxy.fault or _slow_puts
    before = _threads()
    with site.active():
        try:
            _call(command())
        except Exception as error:
            # Error trackers keep the exception and its traceback, too.
            kept = error
        else:
            pytest.fail("the run did not fail")
        assert _left(before, []) == 0
    assert kept.__traceback__ is not None
