"""Unusual subclasses and contents that django-storages supports."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from gzip import decompress
from typing import Any, ClassVar

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError
from django.contrib.staticfiles.management.commands.collectstatic import Command
from django.core.files import File
from django.core.files.base import ContentFile
from django.core.files.uploadedfile import InMemoryUploadedFile
from django.core.management import call_command
from django.core.management.base import CommandError
from storages.backends.s3 import S3ManifestStaticStorage, S3StaticStorage

from collectfast_storage import (
    CollectfastS3ManifestStaticStorage,
    CollectfastS3StaticStorage,
)
from collectfast_storage.exceptions import BucketError
from tests.support.site import MANIFEST, STATIC, Site
from tests.support.sources import Source, finder_of

pytestmark = [pytest.mark.slow, pytest.mark.covering]

PLAIN = "storages.backends.s3.S3StaticStorage"
BACKENDS = pytest.mark.parametrize("backend", [STATIC, MANIFEST])

# Arguments of `get_object_parameters`.


class NotesNames:
    """A storage that records the arguments of `get_object_parameters`."""

    names: ClassVar[list[str]] = []

    def get_object_parameters(self, name: str) -> dict[str, Any]:
        self.names.append(name)
        return dict(super().get_object_parameters(name))  # type: ignore[misc]


class StaticNotes(NotesNames, CollectfastS3StaticStorage):
    pass


class ManifestNotes(NotesNames, CollectfastS3ManifestStaticStorage):
    pass


class PlainStaticNotes(NotesNames, S3StaticStorage):
    pass


class PlainManifestNotes(NotesNames, S3ManifestStaticStorage):
    pass


PAIRS = pytest.mark.parametrize(
    ("backend", "plain"),
    [("StaticNotes", "PlainStaticNotes"), ("ManifestNotes", "PlainManifestNotes")],
)


def _save_new(storage: Any) -> None:
    storage.save("folder/a.txt", ContentFile(b"a"))


def _save_changed(storage: Any) -> None:
    for content in (b"one", b"two", b"two"):
        storage.save("folder/a.txt", ContentFile(content))


def _exists(storage: Any) -> None:
    storage.exists("folder/a.txt")


def _open(storage: Any) -> None:
    storage.save("folder/a.txt", ContentFile(b"a"))
    with storage.open("folder/a.txt") as file:
        file.read()


def _write(storage: Any) -> None:
    with storage.open("folder/a.txt", "wb") as file:
        file.write(b"a")


def _look(storage: Any) -> None:
    storage.save("folder/a.txt", ContentFile(b"a"))
    storage.size("folder/a.txt")
    storage.get_modified_time("folder/a.txt")
    storage.listdir("folder")
    storage.delete("folder/a.txt")


@PAIRS
@pytest.mark.parametrize(
    "use", [_save_new, _save_changed, _exists, _open, _write, _look]
)
def test_names_for_get_object_parameters_of_a_program(
    site: Site, backend: str, plain: str, use: Callable[[Any], None]
) -> None:
    """A program's calls pass the same names to `get_object_parameters`.

    They are compared with the names that django-storages passes.
    """
    names = []
    for each in (plain, backend):
        site.backend = f"{__name__}.{each}"
        site.bucket.clear()
        with site.storage() as storage:
            NotesNames.names.clear()
            use(storage)
        names.append({*NotesNames.names})
    assert names[1] == names[0]


@PAIRS
@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("arguments", [[], ["--no-post-process"]], ids=" ".join)
def test_names_for_get_object_parameters_in_a_collectstatic(
    site: Site, backend: str, plain: str, preload: bool, arguments: list[str]
) -> None:
    """Deploys pass no name to `get_object_parameters` that django-storages does not.

    The storage may list the bucket or not.
    """
    site.write("css/a.css", "a { background: url(../b.png) }")
    site.write("b.png", "image")
    dummy = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    site.settings["CACHES"] = dummy
    passed: list[set[str]] = []
    for each in (plain, backend):
        site.backend = f"{__name__}.{each}"
        site.bucket.clear()
        if each == backend:
            site.options["collectfast_preload"] = preload
        NotesNames.names.clear()
        for content in ("text", "text", "changed"):
            site.write("c/d.txt", content)
            site.touch()
            site.collect(*arguments)
        passed.append({*NotesNames.names})
    assert passed[1] <= passed[0]
    # Only `open` passes names that are relative to the location, here the manifest's.
    below = {n for n in passed[1] if not n.startswith(f"{site.bucket.location}/")}
    assert below <= {"staticfiles.json"}


class PaysByKey:
    """A storage that sets `RequestPayer` and `CacheControl` for full keys."""

    def get_object_parameters(self, name: str) -> dict[str, Any]:
        parameters = dict(super().get_object_parameters(name))  # type: ignore[misc]
        storage: Any = self
        if name.startswith(f"{storage.location}/"):
            parameters["RequestPayer"] = "requester"
            parameters["CacheControl"] = "max-age=60"
        return parameters


class Pays(PaysByKey, CollectfastS3StaticStorage):
    pass


class PlainPays(PaysByKey, S3StaticStorage):
    pass


@pytest.mark.parametrize("backend", ["Pays", "PlainPays"])
def test_parameters_by_key_are_sent_with_each_request_of_a_save(
    site: Site, backend: str
) -> None:
    """Parameters that depend on the key are sent with each HEAD and PUT of a save."""
    site.backend = f"{__name__}.{backend}"
    with site.storage() as storage:
        for content in (b"one", b"two", b"two"):
            storage.save("a.txt", ContentFile(content))
        storage.exists("a.txt")
    headers = [r.headers.get("x-amz-request-payer") for r in site.proxy.requests]
    assert {*headers} == {"requester"}
    assert site.bucket.get("a.txt")["CacheControl"] == "max-age=60"


@pytest.mark.parametrize("cold", [True, False])
def test_parameters_by_key_are_sent_with_each_head_of_a_collectstatic(
    site: Site, cold: bool
) -> None:
    """Parameters that depend on the key are sent with each HEAD request of a deploy.

    With `collectfast_preload=False` a deploy sends HEAD requests instead of a LIST.
    """
    site.backend = f"{__name__}.Pays"
    site.options["collectfast_preload"] = False
    dummy = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    if cold:
        site.settings["CACHES"] = dummy
    files = site.write_many(5)
    for _ in range(2):
        site.collect()
        headers = {r.headers.get("x-amz-request-payer") for r in site.proxy.requests}
        assert headers <= {"requester"}
    assert site.bucket.files() == files


# A `client_config` that cannot be assigned.


def _config() -> Config:
    return Config(max_pool_connections=1, retries={"total_max_attempts": 2})


class ReadOnly:
    """A storage with a property `client_config` that has no setter."""

    @property
    def client_config(self) -> Config:
        return _config()


class Descriptor:
    """A descriptor that raises TypeError when it is assigned."""

    def __get__(self, storage: Any, owner: type | None = None) -> Config:
        return _config()

    def __set__(self, storage: Any, value: Any) -> None:
        raise TypeError("client_config is not to be assigned")


class Fixed:
    """A storage with a descriptor `client_config` that refuses assignments."""

    client_config = Descriptor()


class Cached:
    """A storage that returns the same `client_config` object each time."""

    @cached_property
    def _own_config(self) -> Config:
        return _config()

    @property
    def client_config(self) -> Config:
        return self._own_config


class StaticReadOnly(ReadOnly, CollectfastS3StaticStorage):
    pass


class ManifestReadOnly(ReadOnly, CollectfastS3ManifestStaticStorage):
    pass


class StaticFixed(Fixed, CollectfastS3StaticStorage):
    pass


class StaticCached(Cached, CollectfastS3StaticStorage):
    pass


class PlainReadOnly(ReadOnly, S3StaticStorage):
    pass


class PlainFixed(Fixed, S3StaticStorage):
    pass


CONFIGURED = pytest.mark.parametrize(
    "backend",
    [
        "StaticReadOnly",
        "ManifestReadOnly",
        "StaticFixed",
        "StaticCached",
        "PlainReadOnly",
        "PlainFixed",
    ],
)


@CONFIGURED
def test_client_config_that_cannot_be_assigned(site: Site, backend: str) -> None:
    """A storage works in a program if its `client_config` cannot be assigned.

    The attribute keeps the value of the subclass.
    """
    site.backend = f"{__name__}.{backend}"
    with site.storage() as storage:
        storage.save("a.txt", ContentFile(b"one"))
        storage.save("a.txt", ContentFile(b"two"))
        assert storage.exists("a.txt")
        assert storage.size("a.txt") == 3
        assert storage.client_config.max_pool_connections == 1
        assert storage.client_config.retries["total_max_attempts"] == 2
        with storage.open("a.txt") as file:
            assert file.read() == b"two"
    assert site.bucket.read("a.txt") == b"two"


@CONFIGURED
def test_collectstatic_with_a_client_config_that_cannot_be_assigned(
    site: Site, backend: str
) -> None:
    """Collectstatic uploads all files if `client_config` cannot be assigned.

    The client uses the retries of the subclass's `client_config`.
    """
    site.backend = f"{__name__}.{backend}"
    files = site.write_many(8)
    site.collect()
    assert site.bucket.files().items() >= files.items()
    with site.storage() as storage:
        used = storage.connection.meta.client.meta.config
        assert used.retries["total_max_attempts"] == 2


# Contents that return None from `seek`.


class SilentBytes(io.BytesIO):
    """A file object that returns None from `seek`, as old libraries do."""

    def seek(self, *position: int) -> None:  # type: ignore[override]
        super().seek(*position)


class SilentFile:
    """A file object with only the methods that django-storages needs."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> None:
        self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


def _uploaded(content: bytes) -> Any:
    file = SilentBytes(content)
    return InMemoryUploadedFile(file, None, "a.css", "text/css", len(content), None)


CONTENTS: dict[str, Callable[[bytes], Any]] = {
    "bytes": lambda content: File(SilentBytes(content), "a.css"),
    "file": lambda content: File(SilentFile(content), "a.css"),
    "uploaded": _uploaded,
}


# Contents of more than eight bytes are streamed, in parts of 5 MiB.
IN_PARTS = TransferConfig(multipart_threshold=8, multipart_chunksize=5 << 20)


@pytest.mark.parametrize("backend", [STATIC, PLAIN])
@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("gzip", [True, False])
@pytest.mark.parametrize("config", [None, IN_PARTS], ids=["whole", "streamed"])
def test_content_whose_seek_returns_none(
    site: Site, backend: str, kind: str, gzip: bool, config: Any
) -> None:
    """A content that returns None from `seek` is saved completely, from its start.

    A changed content is saved again.
    """
    site.backend = backend
    site.options |= {"gzip": gzip, "transfer_config": config}
    with site.storage() as storage:
        for content in (b"a { color: red }", b"a { color: red }", b"b { }", b""):
            file = CONTENTS[kind](content)
            file.file.read(3)
            assert storage.save("a.css", file) == "a.css"
            there = site.bucket.read("a.css")
            assert (decompress(there) if gzip else there) == content


@BACKENDS
@pytest.mark.parametrize("config", [None, IN_PARTS], ids=["whole", "streamed"])
def test_sources_whose_seek_returns_none(site: Site, backend: str, config: Any) -> None:
    """Sources that return None from `seek` are uploaded in the first deploy only.

    The second deploy counts both files as unmodified.
    """
    site.backend = backend
    site.options["transfer_config"] = config
    contents = {"a.css": b"a { background: url(b.png) }", "b.png": b"larger image"}
    sources: dict[str, Source] = {
        name: partial(SilentFile, content) for name, content in contents.items()
    }
    site.settings["STATICFILES_FINDERS"] = [finder_of(sources)]
    site.collect()
    assert site.bucket.files().items() >= contents.items()
    again = site.collect()
    assert again.put == []
    assert again.summary.startswith("0 static files copied, 2 unmodified")


# Modification times of missing files.


class Times:
    """The exceptions that `get_modified_time` raised, by name."""

    raised: ClassVar[dict[str, BaseException | None]] = {}

    @classmethod
    def take(cls, storage: Any, name: str) -> None:
        try:
            storage.get_modified_time(name)
        except Exception as error:
            cls.raised[name] = error
        else:
            cls.raised[name] = None


NAMES = ("no/such.txt", "no.css", "a.txt.map", "no-such-folder")


class InPostProcess:
    """A storage that reads the times of missing files in `post_process`."""

    def post_process(self, paths: Any, **options: Any) -> Iterator[Any]:
        for name in NAMES:
            Times.take(self, name)
        if hasattr(super(), "post_process"):
            yield from super().post_process(paths, **options)


class InSave:
    """A storage that reads the times of missing files in `save`."""

    def save(self, name: str, *args: Any, **kwargs: Any) -> str:
        for missing in NAMES:
            Times.take(self, missing)
        saved: str = super().save(name, *args, **kwargs)  # type: ignore[misc]
        return saved


class InCopy(Command):
    """A command that reads the times of missing files in `copy_file`."""

    def copy_file(self, *args: Any) -> None:
        for name in NAMES:
            Times.take(self.storage, name)
        super().copy_file(*args)


class StaticInPostProcess(InPostProcess, CollectfastS3StaticStorage):
    pass


class ManifestInPostProcess(InPostProcess, CollectfastS3ManifestStaticStorage):
    pass


class PlainInPostProcess(InPostProcess, S3StaticStorage):
    pass


class StaticInSave(InSave, CollectfastS3StaticStorage):
    pass


class PlainInSave(InSave, S3StaticStorage):
    pass


@pytest.mark.parametrize(
    ("backend", "command"),
    [
        (f"{__name__}.StaticInPostProcess", Command),
        (f"{__name__}.ManifestInPostProcess", Command),
        (f"{__name__}.StaticInSave", Command),
        (STATIC, InCopy),
        (MANIFEST, InCopy),
        (f"{__name__}.PlainInPostProcess", Command),
        (f"{__name__}.PlainInSave", Command),
        (PLAIN, InCopy),
    ],
)
def test_modified_time_of_a_missing_name_in_a_collectstatic(
    site: Site, backend: str, command: type[Command]
) -> None:
    """`get_modified_time` of a missing file raises ClientError with status 404.

    django-storages raises the same error, and custom code may catch it during a run.
    """
    site.backend = backend
    site.write_all({"a.txt": b"a", "b.txt": b"b"})
    Times.raised.clear()
    with site.active():
        call_command(command(), "--noinput", stdout=io.StringIO())
    assert Times.raised.keys() == {*NAMES}
    for error in Times.raised.values():
        assert isinstance(error, ClientError)
        assert not isinstance(error, BucketError)
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 404
        assert error.operation_name == "HeadObject"


# Object parameters that do not exist.

WRONG: dict[str, dict[str, Any]] = {
    "unknown": {"CacheContrl": "max-age=60"},
    "unknown, of another request": {"Prefix": "a"},
    "unknown, with one that is known": {"CacheControl": "no-cache", "Expirse": 1},
    "of put_object only": {"Body": b"another"},
    "a wrong type": {"CacheControl": 60},
    "a wrong type of metadata": {"Metadata": "a=b"},
}


class ByMethod:
    """A storage that returns `parameters` from `get_object_parameters`."""

    parameters: ClassVar[dict[str, Any]] = {}

    def get_object_parameters(self, name: str) -> dict[str, Any]:
        return dict(self.parameters)


class StaticByMethod(ByMethod, CollectfastS3StaticStorage):
    pass


class PlainByMethod(ByMethod, S3StaticStorage):
    pass


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("place", ["option", "method"])
@pytest.mark.parametrize("there", [True, False])
def test_wrong_parameter_in_save(
    site: Site, wrong: str, place: str, there: bool
) -> None:
    """A wrong object parameter makes `save` raise the same error as django-storages.

    Both the type and the text of the exception are the same.
    """
    raised = []
    ByMethod.parameters = WRONG[wrong]
    backends = {
        "option": (PLAIN, STATIC),
        "method": (f"{__name__}.PlainByMethod", f"{__name__}.StaticByMethod"),
    }
    if there:
        site.bucket.put("a.txt", b"a", ContentType="text/plain")
    for backend in backends[place]:
        site.backend = backend
        if place == "option":
            site.options["object_parameters"] = WRONG[wrong]
        with site.storage() as storage, pytest.raises(Exception) as caught:
            storage.save("a.txt", ContentFile(b"changed"))
        raised.append((type(caught.value), str(caught.value)))
    assert raised[1] == raised[0]
    assert site.bucket.names() == ["a.txt"] * there


@pytest.mark.parametrize("wrong", ["unknown", "a wrong type"])
@BACKENDS
def test_wrong_parameter_in_a_collectstatic(
    site: Site, backend: str, wrong: str
) -> None:
    """A wrong object parameter ends collectstatic with an error that names it.

    No file is uploaded.
    """
    site.backend = backend
    site.options["object_parameters"] = WRONG[wrong]
    site.write_many(30)
    with pytest.raises(CommandError, match="CacheContr"):
        site.collect()
    assert site.put() == []
