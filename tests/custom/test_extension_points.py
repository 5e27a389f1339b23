"""Guarantees for custom storages and finders, and for programs that use a storage."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, ClassVar

import pytest
from botocore.config import Config
from django.contrib.staticfiles.finders import FileSystemFinder, get_finders
from django.contrib.staticfiles.management.commands.collectstatic import Command
from django.core.exceptions import ImproperlyConfigured
from django.core.files.base import ContentFile
from django.core.files.storage import Storage
from django.core.management import call_command
from django.core.management.base import CommandError
from storages.backends.s3 import S3ManifestStaticStorage, S3StaticStorage

from collectfast_storage import (
    CollectfastMixin,
    CollectfastS3ManifestStaticStorage,
    CollectfastS3StaticStorage,
)
from collectfast_storage.exceptions import CollectfastError
from collectfast_storage.uploads import BoundedExecutor
from tests.support.processes import LONG, MANAGE, environment
from tests.support.proxy import Fault, Handler, Request, meanwhile
from tests.support.site import STATIC, Site
from tests.support.sources import Sources, SourcesFinder

pytestmark = [pytest.mark.slow, pytest.mark.covering]

MANIFEST_STORAGE = "collectfast_storage.CollectfastS3ManifestStaticStorage"
MANIFEST = "staticfiles.json"
BACKENDS = pytest.mark.parametrize("backend", [STATIC, MANIFEST_STORAGE])
HASH = re.compile(r"\.[0-9a-f]{12}\.")


# Panics in upload threads: exceptions that are not subclasses of Exception.


class Panic(BaseException):
    pass


def _panic() -> None:
    raise Panic("index out of bounds")


@pytest.mark.parametrize("threads", [1, 2])
def test_panic_in_a_thread_is_the_exception_of_its_future(threads: int) -> None:
    """A BaseException in a pool thread is the exception of that call's future.

    The call's place and bytes become free, so later calls do not wait forever.
    """
    with BoundedExecutor(threads, most_bytes=10) as bounded:
        for _ in range(50):
            panics = bounded.submit_sized(10, _panic)
            assert isinstance(panics.exception(10), Panic)
        assert isinstance(bounded.submit(_panic).exception(10), Panic)
        assert bounded.submit(threading.get_ident).result(10)


class Panicking(CollectfastS3ManifestStaticStorage):
    """A storage with a botocore hook that panics for some of the keys."""

    part: ClassVar[str]

    @property
    def connection(self) -> Any:
        connection = super().connection
        events = connection.meta.client.meta.events
        event = "before-send.s3.PutObject"
        events.register(event, self.panic, unique_id="panicking")
        return connection

    def panic(self, request: Any, **_: Any) -> None:
        if self.part in request.url:
            _panic()


@pytest.mark.parametrize("threads", [1, 64])
@pytest.mark.parametrize("part", ["/file3.txt", "/file4.", "/dir"])
def test_panic_in_an_upload_is_an_error_that_names_the_file(
    site: Site, threads: int, part: str
) -> None:
    """A panic during an upload ends the command with an error that names the file.

    No manifest is published, and the next deploy uploads the missing files.
    """
    site.backend = f"{__name__}.Panicking"
    site.options["collectfast_threads"] = threads
    files = site.write_many(20)
    Panicking.part = part
    name = re.escape(part[1:])
    with pytest.raises(CommandError, match=rf"{name}.*Panic: index out of bounds"):
        site.collect()
    there = site.bucket.names()
    assert MANIFEST not in there
    Panicking.part = "no such"
    site.collect()
    assert site.bucket.files().items() >= files.items()
    assert {*site.bucket.names()} >= {*there, MANIFEST}


# Storages that read an object immediately after saving it.


class Looking:
    """A storage that reads each object immediately after saving it."""

    seen: ClassVar[dict[str, tuple[int, bytes]]] = {}

    def _save(self, name: str, content: Any) -> str:
        saved: str = super()._save(name, content)  # type: ignore[misc]
        found = self.bucket.Object(self._normalize_name(saved))
        found.load()
        self.seen[saved] = found.content_length, found.get()["Body"].read()
        return saved

    bucket: Any
    _normalize_name: Any


class TheirStatic(Looking, S3StaticStorage):
    pass


class TheirManifest(Looking, S3ManifestStaticStorage):
    pass


class StaticAbove(Looking, CollectfastS3StaticStorage):
    pass


class ManifestAbove(Looking, CollectfastS3ManifestStaticStorage):
    pass


class StaticBelow(CollectfastMixin, TheirStatic):
    pass


class ManifestBelow(CollectfastMixin, TheirManifest):
    pass


LOOKING = pytest.mark.parametrize(
    "backend", ["StaticAbove", "StaticBelow", "ManifestAbove", "ManifestBelow"]
)


@LOOKING
@pytest.mark.parametrize("arguments", [[], ["--no-post-process"], ["--clear"]])
def test_overridden_save_finds_its_object_while_collecting(
    site: Site, backend: str, arguments: list[str]
) -> None:
    """A subclass's `_save` finds the new object in the bucket during collectstatic.

    This holds for every file, hashed files included.
    """
    site.backend = f"{__name__}.{backend}"
    for release in ("one", "two"):
        site.write("a.css", f"a {{ background: url(i.png) }} /* {release} */")
        site.write("i.png", f"image {release}")
        site.write("same.txt", "same")
        Looking.seen.clear()
        site.collect(*arguments)
        files = site.bucket.files()
        seen = {name: content for name, (_, content) in Looking.seen.items()}
        assert seen.keys() >= {"a.css", "i.png"}
        assert seen.items() <= files.items()
        assert all(size == len(content) for size, content in Looking.seen.values())


@LOOKING
def test_overridden_save_finds_its_object_in_a_batch(site: Site, backend: str) -> None:
    """A subclass's `_save` finds the new object in the bucket, in a batch and after."""
    site.backend = f"{__name__}.{backend}"
    Looking.seen.clear()
    with site.storage() as storage:
        with storage.batch() as batch:
            for content in (b"one", b"other", b"other"):
                batch.save("a.txt", ContentFile(content))
                assert Looking.seen["a.txt"] == (len(content), content)
        storage.save("a.txt", ContentFile(b"after it"))
        assert Looking.seen["a.txt"] == (8, b"after it")


# Methods with additional arguments.


class OwnArguments(CollectfastS3ManifestStaticStorage):
    """A storage with additional arguments of methods, which it records."""

    seen: ClassVar[list[Any]] = []

    def save_manifest(self, extra: Any = None) -> None:
        self.seen.append(extra)
        super().save_manifest()

    def post_process(
        self, paths: Any, dry_run: bool = False, *, flag: Any = None, **options: Any
    ) -> Iterator[Any]:
        self.seen.append((sorted(paths), dry_run, flag))
        yield from super().post_process(paths, dry_run=dry_run, **options)
        self.save_manifest(extra=flag)


class Flagging(OwnArguments):
    """A storage that passes a flag to the inherited `post_process`."""

    def post_process(self, paths: Any, *args: Any, **options: Any) -> Iterator[Any]:
        yield from super().post_process(paths, *args, flag="a flag", **options)


@pytest.mark.parametrize("backend", ["OwnArguments", "Flagging"])
def test_additional_arguments_while_collecting(site: Site, backend: str) -> None:
    """Additional arguments of a subclass's methods reach them during collectstatic."""
    site.backend = f"{__name__}.{backend}"
    site.write("a.css", "a")
    OwnArguments.seen.clear()
    site.collect()
    flag = "a flag" if backend == "Flagging" else None
    assert OwnArguments.seen == [(["a.css"], False, flag), None, flag]
    assert site.manifest().keys() == {"a.css"}


class PassingFlag(Command):
    """A command that passes an additional argument to the storage's `post_process`."""

    def collect(self) -> dict[str, list[str]]:
        self.post_process = False
        collected: dict[str, list[str]] = super().collect()
        found = {
            path: (storage, path)
            for finder in get_finders()
            for path, storage in finder.list([])
        }
        list(self.storage.post_process(paths=found, flag="a flag"))
        self.storage.save_manifest("more")
        return collected


def test_additional_arguments_of_a_custom_command(site: Site) -> None:
    """Additional arguments that a custom command passes reach the storage's methods.

    Both keyword and positional arguments do.
    """
    site.backend = f"{__name__}.OwnArguments"
    site.write("a.css", "a")
    OwnArguments.seen.clear()
    with site.active():
        call_command(PassingFlag(), "--noinput", stdout=io.StringIO())
    expected = [(["a.css"], False, "a flag"), None, "a flag", "more"]
    assert OwnArguments.seen == expected
    assert site.manifest().keys() == {"a.css"}


# Other threads that use the same storage.


def _once(fault: Fault) -> Fault:
    """Return a fault that acts only once.

    Requests that the fault itself causes do not trigger it again.
    """
    lock = threading.Lock()

    def first(handler: Handler, request: Request, body: bytes) -> bool:
        if not lock.acquire(blocking=False):
            return False
        if not (handled := fault(handler, request, body)):
            lock.release()
        return handled

    return first


@pytest.mark.parametrize("kind", ["LIST", "PUT", "DELETE MANY"])
@BACKENDS
def test_other_threads_save_and_delete_while_a_run_clears(
    site: Site, backend: str, kind: str
) -> None:
    """Files that other threads save during a `--clear` are kept.

    A run deletes only the left-over files that were in the bucket when the run began.
    """
    site.backend = backend
    site.write_many(30)
    site.collect()
    site.write_many(30)
    site.write("new.css", "new")
    for number in range(30):
        site.bucket.put(f"left-over/{number}.txt", b"left over")
    saved = {f"other/{number}.txt": b"%d" % number for number in range(30)}

    with site.storage() as storage:

        def use(name: str) -> None:
            storage.save("deleted/" + name, ContentFile(b"x"))
            storage.save(name, ContentFile(saved[name]))
            storage.delete("deleted/" + name)

        def act() -> None:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(use, saved))

        site.proxy.fault = _once(meanwhile(kind, act, after=True))
        call_command("collectstatic", "--noinput", "--clear", stdout=io.StringIO())
        site.proxy.fault = None
    there = site.bucket.files()
    assert {name: there.get(name) for name in saved} == saved
    assert not [name for name in there if name.startswith(("left-over/", "deleted/"))]
    assert there["new.css"] == b"new"


@BACKENDS
@pytest.mark.parametrize("arguments", [[], ["--clear"], ["--no-post-process"]])
def test_other_threads_save_and_delete_all_the_time(
    site: Site, backend: str, arguments: list[str]
) -> None:
    """Other threads can save and delete files all through a deploy.

    They raise no errors, and both their files and the deploy's are kept.
    """
    site.backend = backend
    files = site.write_many(120)
    begun = threading.Event()
    done = threading.Event()
    troubles: list[Exception] = []
    last: dict[str, bytes] = {}

    with site.storage() as storage:

        def use(thread: int) -> None:
            number = 0
            begun.wait(LONG)
            try:
                while not done.is_set():
                    number += 1
                    name = f"other/{thread}/{number % 7}.txt"
                    storage.save(name, ContentFile(b"%d" % number))
                    last[name] = b"%d" % number
                    storage.save(f"deleted/{thread}.txt", ContentFile(b"x"))
                    storage.delete(f"deleted/{thread}.txt")
            except Exception as error:
                troubles.append(error)

        threads = [threading.Thread(target=use, args=(each,)) for each in range(3)]
        for thread in threads:
            thread.start()
        site.proxy.fault = meanwhile("LIST", begun.set)
        try:
            call_command("collectstatic", "--noinput", *arguments, stdout=io.StringIO())
        finally:
            begun.set()
            done.set()
            for thread in threads:
                thread.join()
    assert troubles == []
    assert len(last) > 3
    there = site.bucket.files()
    assert there.items() >= files.items()
    assert {name: there.get(name) for name in last} == last


# Memory.

_MEASURED = """
import re, runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
with open("/proc/self/status") as status:
    print("MOST", re.search(r"VmHWM:\\s*(\\d+)", status.read())[1])
"""


def _most_memory(site: Site) -> float:
    """Return the peak memory of a deploy's process, in MB."""
    command = [sys.executable, "-c", _MEASURED, str(MANAGE), "collectstatic"]
    done = subprocess.run(
        [*command, "--noinput"],
        env=environment(site),
        capture_output=True,
        text=True,
        timeout=4 * LONG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(re.findall(r"MOST (\d+)", done.stdout)[0]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_memory_of_a_manifest_is_bounded(site: Site) -> None:
    """Peak memory does not grow with the total size of the files that are rewritten.

    A deploy with 200 MB more of JavaScript needs less than 100 MB more of memory.
    """
    site.backend = MANIFEST_STORAGE
    site.write("a.js.map", "{}")
    line = b"let text = 'all of it is one and the same, but for its number';\n"
    most = []
    for numbers in (range(100), range(100, 300)):
        for number in numbers:
            content = b"// %d\n" % number + line * (1024 * 1024 // len(line))
            site.write(f"{number}.js", content + b"//# sourceMappingURL=a.js.map\n")
        site.bucket.clear()
        most.append(_most_memory(site))
    assert len(site.manifest()) == 301
    # Up to 64 MiB are being uploaded and up to 32 MiB wait for a later pass. The first
    # 100 files reach both limits.
    assert most[1] - most[0] < 100


# COLLECTFAST_ENABLED = False.


def test_disabled_leaves_the_client_as_it_is(site: Site) -> None:
    """`COLLECTFAST_ENABLED = False` leaves the given `client_config` unchanged."""
    config = Config(max_pool_connections=3, retries={"total_max_attempts": 2})
    site.options["client_config"] = config
    site.settings["COLLECTFAST_ENABLED"] = False
    site.write_many(5)
    site.collect()
    with site.storage() as storage:
        storage.save("a.txt", ContentFile(b"a"))
        assert storage.client_config is config
        used = storage.connection.meta.client.meta.config
        assert storage.client_config is config
        assert used.max_pool_connections == config.max_pool_connections == 3
        assert used.retries["total_max_attempts"] == 2


# Sources without a known modification time.

TIMES = {
    "UTC": datetime.min.replace(tzinfo=UTC),
    "east": datetime.min.replace(tzinfo=timezone(timedelta(hours=9))),
    "west": datetime.min.replace(tzinfo=timezone(timedelta(hours=-9))),
    "soon after": datetime.min.replace(tzinfo=UTC) + timedelta(hours=1),
    "naive": datetime.min,
    "last": datetime.max.replace(tzinfo=UTC),
}


class Ageless(Sources):
    """Sources that all have the same extreme modification time."""

    time: ClassVar[datetime]

    def get_modified_time(self, name: str) -> datetime:
        return self.time


class AgelessFinder(SourcesFinder):
    """A finder of sources that all have the same extreme modification time."""

    sources: ClassVar[dict[str, Any]] = {}

    def list(self, ignore_patterns: Any) -> Iterator[tuple[str, Storage]]:
        storage = Ageless(self.sources)
        for name in self.sources:
            yield name, storage


@pytest.mark.parametrize("time", TIMES)
@BACKENDS
def test_sources_with_extreme_modification_times(
    site: Site, backend: str, time: str
) -> None:
    """Only changed files are uploaded if their modification times are extreme.

    The package makes Django skip or copy a file by its modification time, and no time
    is older than `datetime.min`.
    """
    site.backend = backend
    site.settings["STATICFILES_FINDERS"] = [f"{__name__}.AgelessFinder"]
    site.settings["USE_TZ"] = TIMES[time].tzinfo is not None
    Ageless.time = TIMES[time]
    AgelessFinder.sources = {"a.txt": b"a", "b.txt": b"b"}
    site.collect()
    again = site.collect()
    assert again.put == []
    assert again.summary.startswith("0 static files copied, 2 unmodified")
    AgelessFinder.sources = {"a.txt": b"other", "b.txt": b"b"}
    changed = site.collect()
    assert [name for name in changed.put if not HASH.search(name)] in (
        ["a.txt"],
        ["a.txt", MANIFEST],
    )
    assert site.bucket.read("a.txt") == b"other"


# Files with names that are not hashed.


class SomeUnhashed(CollectfastS3ManifestStaticStorage):
    """A storage that does not hash the names of files in the folder "plain"."""

    def file_hash(self, name: str | None, content: Any = None) -> Any:
        # Django hashes the manifest as well, without a name.
        if name and name.startswith("plain/"):
            return None
        return super().file_hash(name, content)


class Bodies:
    """A fault that records the bodies of all uploads, in their order."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.sent: list[tuple[str, bytes]] = []

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "PUT":
            self.sent.append((self._site.name(request.key), body))
        return False

    def of(self, name: str) -> list[bytes]:
        return [body for key, body in self.sent if key == name]


@pytest.mark.parametrize("arguments", [[], ["--clear"]])
@pytest.mark.parametrize("preload", [True, False])
def test_unhashed_name_keeps_its_processed_content(
    site: Site, arguments: list[str], preload: bool
) -> None:
    """The source of an unhashed name never overwrites its processed content.

    Nothing is uploaded in a deploy without changes, not even with `--clear`.
    """
    site.backend = f"{__name__}.SomeUnhashed"
    site.options["collectfast_preload"] = preload
    site.write("i.png", "image")
    site.write("plain/a.css", "a { background: url(../i.png) }")
    site.write("plain/b.css", "b { color: red }")
    site.write("plain/c.txt", "c")
    site.collect(*arguments)
    processed = site.bucket.read("plain/a.css")
    assert HASH.search(processed.decode())
    assert site.manifest()["plain/a.css"] == "plain/a.css"

    site.touch()
    again = site.collect(*arguments)
    assert again.put == []
    assert again.requests["DELETE MANY"] == again.requests["DELETE"] == 0

    def deploy() -> Bodies:
        site.proxy.fault = bodies = Bodies(site)
        site.collect(*arguments)
        site.proxy.fault = None
        return bodies

    site.write("i.png", "other image")
    bodies = deploy()
    other = site.bucket.read("plain/a.css")
    assert other != processed
    assert HASH.search(other.decode())
    assert bodies.of("plain/a.css") == [other]
    assert bodies.of("plain/b.css") == bodies.of("plain/c.txt") == []

    site.write("plain/a.css", "changed { background: url(../i.png) }")
    site.write("plain/c.txt", "changed")
    bodies = deploy()
    last = site.bucket.read("plain/a.css")
    assert last.startswith(b"changed")
    assert bodies.of("plain/a.css") == [last]
    assert bodies.of("plain/c.txt") == [b"changed"]
    assert site.collect(*arguments).put == []


def test_unhashed_name_keeps_its_content_after_a_failed_deploy(site: Site) -> None:
    """An unhashed name keeps its processed content if the next deploy fails.

    A failed deploy in the same process does not make the storage lose its knowledge of
    the previous release, so the file is not uploaded again.
    """
    site.backend = f"{__name__}.SomeUnhashed"
    site.write("i.png", "image")
    site.write("plain/a.css", "a { background: url(../i.png) }")
    with site.active():
        call_command("collectstatic", "--noinput", stdout=io.StringIO())
        processed = site.bucket.read("plain/a.css")
        site.proxy.fault = bodies = Bodies(site)
        site.write("broken.css", "a { background: url(none.png) }")
        with pytest.raises(ValueError, match=r"none\.png"):
            call_command(
                "collectstatic",
                "--noinput",
                stdout=io.StringIO(),
                stderr=io.StringIO(),
            )
        site.write("broken.css", "repaired")
        call_command("collectstatic", "--noinput", stdout=io.StringIO())
    assert HASH.search(processed.decode())
    assert site.bucket.read("plain/a.css") == processed
    assert bodies.of("plain/a.css") == []


# Bucket names and addresses.


def _collect(site: Site) -> None:
    site.collect()


def _save(site: Site) -> None:
    with site.storage() as storage:
        storage.save("a.txt", ContentFile(b"a"))


def _batch(site: Site) -> None:
    with site.storage() as storage, storage.batch() as batch:
        batch.save("a.txt", ContentFile(b"a"))


@pytest.mark.parametrize("do", [_collect, _save, _batch])
@pytest.mark.parametrize("bucket_name", [None, ""])
def test_missing_bucket_name_is_an_error(
    site: Site, do: Callable[[Site], None], bucket_name: str | None
) -> None:
    """A missing bucket name is an error that names the option and the setting.

    No request is sent.
    """
    site.options["bucket_name"] = bucket_name
    site.write("a.txt", "a")
    with pytest.raises(
        ImproperlyConfigured, match=r"bucket_name.*AWS_STORAGE_BUCKET_NAME"
    ):
        do(site)
    assert site.proxy.count() == {}


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("endpoint", ["http://[::1]", "http://[::1]:1"])
def test_ipv6_endpoint_that_does_not_respond(
    site: Site, endpoint: str, preload: bool
) -> None:
    """An unreachable IPv6 endpoint is one error that names the bucket.

    The address may or may not contain a port.
    """
    site.options |= {
        "endpoint_url": endpoint,
        "collectfast_preload": preload,
        "client_config": Config(connect_timeout=2, retries={"total_max_attempts": 1}),
    }
    site.write_many(5)
    with pytest.raises(CollectfastError, match=rf"bucket '{site.bucket.name}': "):
        site.collect()


# Responses without ETags.


class NoEtag:
    """A fault that removes or empties the ETags in responses to one kind of request."""

    def __init__(self, kind: str, *, empty: bool) -> None:
        self._kind = kind
        self._empty = empty

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind != self._kind:
            return False
        status, content, headers = handler.ask(body)
        headers = [(k, v) for k, v in headers if k.lower() != "etag"]
        if self._empty:
            headers.append(("ETag", ""))
        if self._kind == "LIST":
            instead = b"<ETag></ETag>" if self._empty else b""
            content = re.sub(rb"<ETag>.*?</ETag>", instead, content)
        handler.answer(status, content, headers)
        return True


@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize("kind", ["PUT", "HEAD", "LIST"])
@pytest.mark.parametrize("preload", [True, False])
@BACKENDS
def test_responses_without_etags_are_accepted_while_collecting(
    site: Site, backend: str, preload: bool, kind: str, empty: bool
) -> None:
    """All new, changed and deleted files are uploaded if responses lack ETags."""
    site.backend = backend
    site.options["collectfast_preload"] = preload
    site.proxy.fault = NoEtag(kind, empty=empty)
    files = site.write_many(8)
    site.collect()
    assert site.bucket.files().items() >= files.items()
    site.write("dir0/file0.css", "changed")
    site.bucket.delete("dir1/file1.js")
    if not preload:
        # The upload cache would hide the deletion, so this deploy starts without it.
        cold = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
        site.settings["CACHES"] = cold
    site.collect()
    assert site.bucket.read("dir0/file0.css") == b"changed"
    assert site.bucket.read("dir1/file1.js") == files["dir1/file1.js"]


@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize("kind", ["PUT", "HEAD", "LIST"])
def test_responses_without_etags_are_accepted_for_saves(
    site: Site, kind: str, empty: bool
) -> None:
    """Saved files are uploaded, in a batch and outside, if responses lack ETags."""
    site.proxy.fault = NoEtag(kind, empty=empty)
    with site.storage() as storage:
        for content in (b"one", b"two", b"two"):
            storage.save("alone.txt", ContentFile(content))
            with storage.batch() as batch:
                batch.save("batch.txt", ContentFile(content))
            assert site.bucket.read("alone.txt") == content
            assert site.bucket.read("batch.txt") == content


class Streamed(CollectfastS3StaticStorage):
    """A storage that streams files of more than eight bytes from their source."""

    def __init__(self, **settings: Any) -> None:
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(multipart_threshold=8, multipart_chunksize=5 << 20)
        super().__init__(transfer_config=config, **settings)


@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize("kind", ["HEAD", "LIST"])
def test_responses_without_etags_are_accepted_for_streams(
    site: Site, kind: str, empty: bool
) -> None:
    """Changed large files are uploaded again if responses lack ETags."""
    site.backend = f"{__name__}.Streamed"
    site.proxy.fault = NoEtag(kind, empty=empty)
    for release in (b"one", b"two"):
        site.write("large.bin", release * 1000)
        site.collect()
        assert site.bucket.read("large.bin") == release * 1000


# Custom finders: the package calls `list` with the same arguments as Django.


def test_finder_gets_the_patterns_that_django_gives_it(site: Site) -> None:
    """Each call of a finder's `list` gets the patterns of `--ignore` and Django."""
    site.write("a.css", "a")
    site.settings["STATICFILES_FINDERS"] = [f"{__name__}.RecordingFinder"]
    RecordingFinder.patterns.clear()
    site.collect("--ignore=*.map")
    first, *others = RecordingFinder.patterns
    assert "*.map" in first
    assert all(patterns == first for patterns in others)


class RecordingFinder(FileSystemFinder):
    """A finder that records the patterns with which it is called."""

    patterns: ClassVar[list[Any]] = []

    def list(self, ignore_patterns: Any) -> Any:
        self.patterns.append(list(ignore_patterns))
        return super().list(ignore_patterns)
