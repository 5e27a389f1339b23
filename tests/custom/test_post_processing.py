"""Custom code that runs during collectstatic.

Such code sees each file that was saved and each deletion immediately, although uploads
run in the background.
"""

from __future__ import annotations

import posixpath
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar

import pytest
from botocore.exceptions import ClientError
from django.contrib.staticfiles.management.commands.collectstatic import Command
from django.core.files.base import ContentFile
from django.core.management import call_command
from django.core.management.base import CommandError
from storages.backends.s3 import S3ManifestStaticStorage, S3StaticStorage

from collectfast_storage import (
    CollectfastS3ManifestStaticStorage,
    CollectfastS3StaticStorage,
)
from collectfast_storage.exceptions import UploadError
from tests.support.proxy import Handler, Request, refuse
from tests.support.site import Site
from tests.support.sources import finder_of

pytestmark = [pytest.mark.slow, pytest.mark.covering]

# Ways in which custom code reads one name in the bucket.


def _key(storage: Any, name: str) -> str:
    return f"{storage.location}/{name}"


def _where(storage: Any, name: str) -> dict[str, str]:
    return {"Bucket": storage.bucket_name, "Key": _key(storage, name)}


def _opened(mode: str) -> Callable[[Any, str], Any]:
    def look(storage: Any, name: str) -> Any:
        with storage.open(name, mode) as file:
            content = file.read()
        return content if isinstance(content, bytes) else content.encode()

    return look


def _object(storage: Any, name: str) -> Any:
    found = storage.bucket.Object(_key(storage, name))
    found.load()
    return found.content_length


def _listed(storage: Any, name: str) -> Any:
    folder, base = posixpath.split(name)
    return base in storage.listdir(folder)[1]


def _modified(storage: Any, name: str) -> Any:
    return storage.get_modified_time(name)


def _read_by_the_client(storage: Any, name: str) -> Any:
    client = storage.connection.meta.client
    return client.get_object(**_where(storage, name))["Body"].read()


def _head(storage: Any, name: str) -> Any:
    client = storage.connection.meta.client
    return client.head_object(**_where(storage, name))["ContentLength"]


def _filtered(storage: Any, name: str) -> Any:
    prefix = _key(storage, name)
    found = storage.bucket.objects.filter(Prefix=prefix)
    return [each.size for each in found if each.key == prefix]


Look = Callable[[Any, str], Any]
LOOKS: dict[str, Look] = {
    "open(name, 'rb')": _opened("rb"),
    "open(name, 'r')": _opened("r"),
    "exists": lambda storage, name: storage.exists(name),
    "size": lambda storage, name: storage.size(name),
    "listdir": _listed,
    "get_modified_time": _modified,
    "bucket.Object(key).load()": _object,
    "bucket.objects.filter()": _filtered,
    "client.head_object": _head,
    "client.get_object": _read_by_the_client,
}

FEW_LOOKS = [
    "open(name, 'r')",
    "open(name, 'rb')",
    "size",
    "get_modified_time",
    "client.get_object",
]


def _slow_puts(handler: Handler, request: Request, body: bytes) -> bool:
    """Delay each PUT, so that an upload in the background does not end by chance."""
    if request.kind == "PUT":
        time.sleep(0.1)
    return False


def _expected(site: Site, look: str, name: str, content: bytes) -> Any:
    """Return the result that `look` has if the object `name` contains `content`."""
    if look == "get_modified_time":
        return site.bucket.get(name)["LastModified"]
    if look == "bucket.objects.filter()":
        return [len(content)]
    if look in ("exists", "listdir"):
        return True
    sizes = ("size", "bucket.Object(key).load()", "client.head_object")
    return len(content) if look in sizes else content


class Notes:
    """The results of the function `look` that a test sets, by file name."""

    look: ClassVar[Look]
    seen: ClassVar[dict[str, Any]] = {}

    @classmethod
    def take(cls, storage: Any, name: str) -> None:
        try:
            cls.seen[name] = cls.look(storage, name)
        except (OSError, ClientError) as error:
            cls.seen[name] = type(error).__name__


class LooksBefore:
    """A storage that looks at each source before Django's post-processing, if any."""

    def post_process(self, paths: Any, **options: Any) -> Iterator[Any]:
        for name in paths:
            Notes.take(self, name)
        if hasattr(super(), "post_process"):
            yield from super().post_process(paths, **options)


class LooksAfter:
    """A storage that looks at each hashed file after Django's post-processing."""

    def post_process(self, paths: Any, **options: Any) -> Iterator[Any]:
        processed = [*super().post_process(paths, **options)]  # type: ignore[misc]
        for _, hashed_name, _ in processed:
            Notes.take(self, hashed_name)
        yield from processed


class LooksInSave:
    """A storage that looks at each file immediately after saving it."""

    def save(self, name: str, content: Any, *args: Any, **kwargs: Any) -> str:
        saved: str = super().save(name, content, *args, **kwargs)  # type: ignore[misc]
        Notes.take(self, saved)
        return saved


class StaticBefore(LooksBefore, CollectfastS3StaticStorage):
    pass


class PlainManifestBefore(LooksBefore, S3ManifestStaticStorage):
    pass


class ManifestAfter(LooksAfter, CollectfastS3ManifestStaticStorage):
    pass


class StaticInSave(LooksInSave, CollectfastS3StaticStorage):
    pass


class Static(CollectfastS3StaticStorage):
    pass


class PlainStatic(S3StaticStorage):
    pass


class Manifest(CollectfastS3ManifestStaticStorage):
    pass


class PlainManifest(S3ManifestStaticStorage):
    pass


class LooksInCopy(Command):
    """A command that looks at each file immediately after copying it."""

    def copy_file(self, path: str, prefixed_path: str, source_storage: Any) -> None:
        super().copy_file(path, prefixed_path, source_storage)
        Notes.take(self.storage, prefixed_path)


def _release(text: str) -> dict[str, bytes]:
    return {
        "css/a.css": b"a { background: url(../b.png) } /* %s */" % text.encode(),
        "b.png": f"image {text}".encode(),
        "c/d/e.txt": f"text of the release {text}".encode(),
    }


def _collect(site: Site, backend: str, command: Command, *arguments: str) -> None:
    site.backend = f"{__name__}.{backend}"
    site.touch()
    if site.proxy.fault is None and not backend.startswith("Plain"):
        site.proxy.fault = _slow_puts
    with site.active():
        call_command(command, "--noinput", "-v0", *arguments)


@pytest.mark.covering(every=True)
@pytest.mark.parametrize(
    ("look", "backend", "command"),
    [
        *((look, "ManifestAfter", Command) for look in LOOKS),
        *((look, "Static", LooksInCopy) for look in LOOKS),
        *((look, "StaticBefore", Command) for look in FEW_LOOKS),
        *((look, "StaticInSave", Command) for look in FEW_LOOKS),
        *((look, "Manifest", LooksInCopy) for look in FEW_LOOKS),
        # Control cases: django-storages alone behaves in the same way.
        ("size", "PlainManifestBefore", Command),
        ("get_modified_time", "PlainManifest", LooksInCopy),
    ],
)
def test_custom_code_sees_the_files_that_were_just_saved(
    site: Site, look: str, backend: str, command: type[Command]
) -> None:
    """Custom code sees a file that was just saved with every way to read the bucket.

    This holds for the first release and for a second one that overwrites it.
    """
    Notes.look = staticmethod(LOOKS[look])
    for text in ("one", "two, which is longer"):
        site.write_all(_release(text))
        Notes.seen.clear()
        _collect(site, backend, command())
        files = site.bucket.files()
        assert len(Notes.seen) == 3
        assert Notes.seen == {
            name: _expected(site, look, name, files[name]) for name in Notes.seen
        }


# boto3 objects that were created before the file was saved.


class KeepsObjects(Command):
    """A command that reads with boto3 objects that it created before the save."""

    def copy_file(self, path: str, prefixed_path: str, source_storage: Any) -> None:
        storage = self.storage
        bucket = storage.bucket
        client = storage.connection.meta.client
        found = bucket.Object(_key(storage, prefixed_path))
        waiter = client.get_waiter("object_exists")
        super().copy_file(path, prefixed_path, source_storage)
        waiter.wait(
            **_where(storage, prefixed_path),
            WaiterConfig={"Delay": 0, "MaxAttempts": 1},
        )
        where = _where(storage, prefixed_path)
        Notes.seen[prefixed_path] = [
            found.get()["Body"].read(),
            bucket.Object(_key(storage, prefixed_path)).get()["Body"].read(),
            client.get_object(**where)["Body"].read(),
        ]


class KeepsObjectsInSave:
    """A storage that reads with boto3 objects that it created before the save."""

    def save(self, name: str, content: Any, *args: Any, **kwargs: Any) -> str:
        storage: Any = self
        found = storage.bucket.Object(_key(storage, name))
        client = storage.connection.meta.client
        saved: str = super().save(name, content, *args, **kwargs)  # type: ignore[misc]
        Notes.seen[name] = [
            found.get()["Body"].read(),
            client.get_object(**_where(storage, name))["Body"].read(),
        ]
        return saved


class KeepsInPostProcess:
    """A storage that saves copies, and reads with boto3 objects created before."""

    def post_process(self, paths: Any, **options: Any) -> Iterator[Any]:
        storage: Any = self
        objects = {name: storage.bucket.Object(_key(storage, name)) for name in paths}
        client = storage.connection.meta.client
        for name, found in objects.items():
            with paths[name][0].open(paths[name][1]) as file:
                storage.save(f"copy/{name}", ContentFile(file.read()))
            Notes.seen[name] = [
                found.get()["Body"].read(),
                client.get_object(**_where(storage, f"copy/{name}"))["Body"].read(),
            ]
        if hasattr(super(), "post_process"):
            yield from super().post_process(paths, **options)


class StaticKeepsInSave(KeepsObjectsInSave, CollectfastS3StaticStorage):
    pass


class StaticKeepsInPostProcess(KeepsInPostProcess, CollectfastS3StaticStorage):
    pass


class ManifestKeepsInPostProcess(
    KeepsInPostProcess, CollectfastS3ManifestStaticStorage
):
    pass


class PlainKeepsInPostProcess(KeepsInPostProcess, S3ManifestStaticStorage):
    pass


@pytest.mark.parametrize(
    ("backend", "command"),
    [
        ("Static", KeepsObjects),
        ("Manifest", KeepsObjects),
        ("PlainManifest", KeepsObjects),
        ("StaticKeepsInSave", Command),
        ("StaticKeepsInPostProcess", Command),
        ("ManifestKeepsInPostProcess", Command),
        ("PlainKeepsInPostProcess", Command),
    ],
)
def test_objects_made_before_the_save_see_the_file(
    site: Site, backend: str, command: type[Command]
) -> None:
    """boto3 objects that were created before a save return the new content.

    These are objects, buckets, clients and waiters.
    """
    for text in ("one", "two"):
        site.write_all(_release(text))
        Notes.seen.clear()
        _collect(site, backend, command())
        assert {n: {*contents} for n, contents in Notes.seen.items()} == {
            name: {content} for name, content in _release(text).items()
        }


# Files that custom code writes.


class Minifies:
    """A storage that rewrites CSS and text files through `open`, and adds a file."""

    def post_process(self, paths: Any, **options: Any) -> Iterator[Any]:
        storage: Any = self
        names = [name for name in paths if name.endswith((".css", ".txt"))]
        for name in names:
            with storage.open(name, "r") as file:
                text = file.read()
            with storage.open(name, "w") as file:
                file.write(text.upper())
            Notes.take(storage, name)
        with storage.open("written.json", "w") as file:
            file.write("{}")
        Notes.take(storage, "written.json")
        if hasattr(super(), "post_process"):
            yield from super().post_process(paths, **options)


class StaticMinifies(Minifies, CollectfastS3StaticStorage):
    pass


class ManifestMinifies(Minifies, CollectfastS3ManifestStaticStorage):
    pass


class PlainManifestMinifies(Minifies, S3ManifestStaticStorage):
    pass


@pytest.mark.parametrize(
    "backend",
    [
        "StaticMinifies",
        "ManifestMinifies",
        "PlainManifestMinifies",
    ],
)
@pytest.mark.parametrize("look", FEW_LOOKS)
def test_file_that_custom_code_overwrites(site: Site, look: str, backend: str) -> None:
    """Contents that custom code writes over a saved file are seen, and are kept."""
    Notes.look = staticmethod(LOOKS[look])
    for text in ("one", "two"):
        files = _release(text)
        site.write_all(files)
        Notes.seen.clear()
        _collect(site, backend, Command())
        there = site.bucket.files()
        assert there["b.png"] == files["b.png"]
        assert there["css/a.css"] == files["css/a.css"].upper()
        assert there["c/d/e.txt"] == files["c/d/e.txt"].upper()
        assert there["written.json"] == b"{}"
        names = ("css/a.css", "c/d/e.txt", "written.json")
        assert Notes.seen == {n: _expected(site, look, n, there[n]) for n in names}


class WritesInCopy(Command):
    """A command that adds a licence next to each file, and overwrites b.png."""

    def copy_file(self, path: str, prefixed_path: str, source_storage: Any) -> None:
        super().copy_file(path, prefixed_path, source_storage)
        with self.storage.open(f"{prefixed_path}.licence", "w") as file:
            file.write("free")
        if prefixed_path == "b.png":
            with self.storage.open(prefixed_path, "wb") as file:
                file.write(b"smaller")
        for name in (f"{prefixed_path}.licence", prefixed_path):
            Notes.take(self.storage, name)


@pytest.mark.parametrize("backend", ["Static", "PlainStatic"])
@pytest.mark.parametrize("look", FEW_LOOKS)
def test_file_that_a_command_writes_after_the_copy(
    site: Site, look: str, backend: str
) -> None:
    """A file that a command writes in `copy_file` replaces the copy of the source.

    This holds although the upload of the copy may still be running.
    """
    Notes.look = staticmethod(LOOKS[look])
    for text in ("one", "two"):
        files = _release(text)
        site.write_all(files)
        Notes.seen.clear()
        _collect(site, backend, WritesInCopy())
        there = site.bucket.files()
        licences = {f"{name}.licence": b"free" for name in files}
        assert there == {**files, **licences, "b.png": b"smaller"}
        assert Notes.seen == {n: _expected(site, look, n, there[n]) for n in there}


# Files that custom code deletes.

MISSING: dict[str, Any] = {
    "open(name, 'rb')": "FileNotFoundError",
    "open(name, 'r')": "FileNotFoundError",
    "exists": False,
    "size": "FileNotFoundError",
    "listdir": False,
    "get_modified_time": "ClientError",
}


class Deletes:
    """A storage that deletes files that are not sources, and looks for them."""

    def post_process(self, paths: Any, **options: Any) -> Iterator[Any]:
        storage: Any = self
        for name in ("css/old.css", "old.txt"):
            storage.delete(name)
            Notes.take(storage, name)
        if hasattr(super(), "post_process"):
            yield from super().post_process(paths, **options)


class StaticDeletes(Deletes, CollectfastS3StaticStorage):
    pass


class ManifestDeletes(Deletes, CollectfastS3ManifestStaticStorage):
    pass


class PlainDeletes(Deletes, S3ManifestStaticStorage):
    pass


class DeletesInCopy(Command):
    """A command that deletes files that are not sources, and looks for them."""

    def copy_file(self, path: str, prefixed_path: str, source_storage: Any) -> None:
        super().copy_file(path, prefixed_path, source_storage)
        for name in ("css/old.css", "old.txt"):
            self.storage.delete(name)
            Notes.take(self.storage, name)


@pytest.mark.parametrize(
    ("backend", "command"),
    [
        ("StaticDeletes", Command),
        ("ManifestDeletes", Command),
        ("PlainDeletes", Command),
        ("Static", DeletesInCopy),
        ("Manifest", DeletesInCopy),
        ("PlainManifest", DeletesInCopy),
    ],
)
@pytest.mark.parametrize("look", MISSING)
def test_names_that_the_run_deleted_are_missing(
    site: Site, look: str, backend: str, command: type[Command]
) -> None:
    """Custom code no longer sees a file immediately after it was deleted.

    The file is also missing after the command.
    """
    Notes.look = staticmethod(LOOKS[look])
    site.write_all(_release("one"))
    site.bucket.put("css/old.css", b"old")
    site.bucket.put("old.txt", b"old")
    Notes.seen.clear()
    _collect(site, backend, command())
    assert Notes.seen == dict.fromkeys(["css/old.css", "old.txt"], MISSING[look])
    assert not {"css/old.css", "old.txt"} & {*site.bucket.names()}


class DeletesAndSaves(Command):
    """A command that deletes each copy, saves it again, and looks after both steps."""

    def copy_file(self, path: str, prefixed_path: str, source_storage: Any) -> None:
        super().copy_file(path, prefixed_path, source_storage)
        self.storage.delete(prefixed_path)
        Notes.take(self.storage, prefixed_path)
        missing = Notes.seen[prefixed_path]
        self.storage.save(prefixed_path, ContentFile(b"saved again"))
        Notes.take(self.storage, prefixed_path)
        Notes.seen[prefixed_path] = missing, Notes.seen[prefixed_path]


@pytest.mark.parametrize("backend", ["Static", "PlainStatic"])
@pytest.mark.parametrize("look", MISSING)
def test_name_that_is_saved_after_a_delete_is_there(
    site: Site, look: str, backend: str
) -> None:
    """A file that is saved after its deletion is seen, and is kept.

    Between the deletion and the save the file is missing.
    """
    Notes.look = staticmethod(LOOKS[look])
    for text in ("one", "two"):
        files = _release(text)
        site.write_all(files)
        Notes.seen.clear()
        _collect(site, backend, DeletesAndSaves())
        there = site.bucket.files()
        assert there == dict.fromkeys(files, b"saved again")
        for name, content in there.items():
            saved = _expected(site, look, name, content)
            assert Notes.seen[name] == (MISSING[look], saved)


def test_modification_time_of_a_saved_file_is_that_of_the_object(site: Site) -> None:
    """`get_modified_time` returns the object's time to custom code, not the source's.

    This holds for uploaded and for unchanged files.
    """
    Notes.look = staticmethod(_modified)
    site.settings["STATICFILES_FINDERS"] = [finder_of({"a.txt": b"a", "b.txt": b"b"})]
    for _ in range(2):
        Notes.seen.clear()
        _collect(site, "Static", LooksInCopy())
        times = {n: site.bucket.get(n)["LastModified"] for n in ("a.txt", "b.txt")}
        assert Notes.seen == times
        assert all(time > datetime(2021, 1, 1, tzinfo=UTC) for time in times.values())


# The manifest is published only after every file has been uploaded.


class Unhashed:
    """A storage that overrides `hashed_name` to leave names in "plain" unhashed."""

    def hashed_name(self, name: str, *args: Any, **kwargs: Any) -> str:
        if name.startswith("plain/"):
            return name
        hashed: str = super().hashed_name(name, *args, **kwargs)  # type: ignore[misc]
        return hashed


class UnhashedByFileHash:
    """A storage that overrides `file_hash` to leave names in "plain" unhashed."""

    def file_hash(self, name: str | None, content: Any = None) -> Any:
        if name and name.startswith("plain/"):
            return None
        return super().file_hash(name, content)  # type: ignore[misc]


class Tolerant:
    """A storage that drops the errors of files, and continues with the other files."""

    def post_process(self, *args: Any, **options: Any) -> Iterator[Any]:
        for name, hashed_name, outcome in super().post_process(*args, **options):  # type: ignore[misc]
            if not isinstance(outcome, Exception):
                yield name, hashed_name, outcome


class TolerantOfAll(Tolerant):
    """A storage that catches the exceptions that post-processing raises, too."""

    def post_process(self, *args: Any, **options: Any) -> Iterator[Any]:
        try:
            yield from super().post_process(*args, **options)
        except Exception as error:
            Notes.seen["raised"] = error


class Tolerates(Unhashed, Tolerant, CollectfastS3ManifestStaticStorage):
    pass


class ToleratesAll(Unhashed, TolerantOfAll, CollectfastS3ManifestStaticStorage):
    pass


class ToleratesByFileHash(
    UnhashedByFileHash, Tolerant, CollectfastS3ManifestStaticStorage
):
    pass


TOLERANT = pytest.mark.parametrize(
    "backend", ["Tolerates", "ToleratesAll", "ToleratesByFileHash"]
)


def _write_unhashed(site: Site, text: str) -> dict[str, bytes]:
    files = {
        "a.css": f"a {{ background: url(plain/i.png) }} /* {text} */".encode(),
        "b.png": f"image {text}".encode(),
        "plain/i.png": f"unhashed image {text}".encode(),
        "plain/j.txt": f"unhashed text {text}".encode(),
    }
    site.write_all(files)
    return files


class Order:
    """A fault that records the order of the PUTs, and delays some of them."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.names: list[str] = []

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        if request.kind == "PUT":
            name = self._site.name(request.key)
            time.sleep(0.1 if name.startswith("plain/") else 0)
            self.names.append(name)
        return False


@TOLERANT
@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("refused", ["plain/i.png", "plain/j.txt", "a.css", "b."])
def test_manifest_is_unchanged_if_a_file_failed(
    site: Site, backend: str, preload: bool, refused: str
) -> None:
    """The live manifest is not replaced if the upload of any file failed.

    The command fails even if the storage ignores errors of files. The next deploy
    uploads the missing file and the new manifest.
    """
    site.options["collectfast_preload"] = preload
    _write_unhashed(site, "one")
    _collect(site, backend, Command())
    before = site.bucket.files()
    files = _write_unhashed(site, "two")
    site.proxy.fault = refuse("PUT", f"/{refused}")
    with pytest.raises(CommandError, match="AccessDenied"):
        _collect(site, backend, Command())
    failed = site.bucket.files()
    assert failed["staticfiles.json"] == before["staticfiles.json"]
    assert failed.keys() >= before.keys()
    site.proxy.fault = None
    _collect(site, backend, Command())
    after = site.bucket.files()
    assert after.items() >= files.items()
    assert after["staticfiles.json"] != before["staticfiles.json"]


@TOLERANT
@pytest.mark.parametrize("preload", [True, False])
def test_manifest_is_written_after_all_other_files(
    site: Site, backend: str, preload: bool
) -> None:
    """The manifest is uploaded last, even if unhashed files take longer."""
    site.options["collectfast_preload"] = preload
    for text in ("one", "two"):
        files = _write_unhashed(site, text)
        site.proxy.fault = order = Order(site)
        _collect(site, backend, Command())
        assert site.bucket.files().items() >= files.items()
        assert {*files} <= {*order.names}
        assert order.names.index("staticfiles.json") == len(order.names) - 1


# Errors of custom code.


class Failing:
    """A storage that raises an error after Django's post-processing, if any."""

    error: ClassVar[Exception]

    def post_process(self, *args: Any, **options: Any) -> Iterator[Any]:
        if hasattr(super(), "post_process"):
            yield from super().post_process(*args, **options)
        raise self.error


class StaticFailing(Failing, CollectfastS3StaticStorage):
    pass


class ManifestFailing(Failing, CollectfastS3ManifestStaticStorage):
    pass


@pytest.mark.parametrize("error", [ValueError("own"), KeyError("own")], ids=repr)
@pytest.mark.parametrize("backend", ["StaticFailing", "ManifestFailing"])
def test_error_of_custom_code_is_raised_unchanged(
    site: Site, backend: str, error: Exception
) -> None:
    """An exception of a subclass's `post_process` is raised unchanged.

    It is not reported as an error of the bucket.
    """
    Failing.error = error
    site.write_all(_release("one"))
    with pytest.raises(type(error)) as caught:
        _collect(site, backend, Command())
    assert caught.value is error


class Suspended(CollectfastS3ManifestStaticStorage):
    """A storage that keeps the inherited generator suspended after its first result."""

    def post_process(self, *args: Any, **options: Any) -> Any:
        self.processed = super().post_process(*args, **options)
        return [next(self.processed)]


def test_run_ends_although_post_processing_is_suspended(site: Site) -> None:
    """A refused upload fails the command even if a generator is left suspended.

    The run ends with the command that copied the file, so the error is raised there.
    """
    site.write_all(_release("one"))
    name = next(iter(_release("one")))
    site.proxy.fault = refuse("PUT", name)
    with pytest.raises(UploadError, match=re.escape(name)):
        _collect(site, "Suspended", Command())
