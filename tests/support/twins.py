"""Pairs of this package's and django-storages' storages, which must behave alike."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from io import BytesIO, StringIO
from itertools import count
from typing import Any
from urllib.parse import parse_qs, urlsplit

from django.core.files.base import ContentFile
from django.core.files.uploadedfile import SimpleUploadedFile
from hypothesis import strategies as st
from storages.backends.s3 import S3ManifestStaticStorage, S3StaticStorage, S3Storage

from collectfast_storage import (
    CollectfastS3ManifestStaticStorage,
    CollectfastS3StaticStorage,
    CollectfastS3Storage,
)
from tests.support.bucket import BucketView
from tests.support.machine import SharedSession

FINGERPRINT = "collectfast-fingerprint"  # the package's own entry in the metadata
OURS, THEIRS = "ours", "theirs"


# The storages. The classes that are mixed in stand for a site's own code, and work with
# both packages.


class Numbered:
    """A storage that uses numbers in alternative names.

    Django uses random characters, which would be different for both storages.
    """

    alternatives: Iterator[int] = count(1)

    def get_alternative_name(self, file_root: str, file_ext: str) -> str:
        number = next(self.alternatives)
        assert number < 50, "every alternative name is taken"
        return f"{file_root}_{number}{file_ext}"


class Keyed:
    """A storage with parameters that depend on the name; it records the names."""

    asked: set[str] = set()  # noqa: RUF012 (replaced by `perform`)

    def get_object_parameters(self, name: str) -> dict[str, Any]:
        self.asked.add(_without_side(name))
        parameters: dict[str, Any] = super().get_object_parameters(name)  # type: ignore[misc]
        depth = {"depth": str(name.count("/"))}
        return parameters | {"Metadata": parameters.get("Metadata", {}) | depth}


class Media(Numbered, Keyed, SharedSession, CollectfastS3Storage):
    pass


class TheirMedia(Numbered, Keyed, SharedSession, S3Storage):
    pass


class Static(Numbered, Keyed, SharedSession, CollectfastS3StaticStorage):
    pass


class TheirStatic(Numbered, Keyed, SharedSession, S3StaticStorage):
    pass


class Manifest(Numbered, Keyed, SharedSession, CollectfastS3ManifestStaticStorage):
    pass


class TheirManifest(Numbered, Keyed, SharedSession, S3ManifestStaticStorage):
    pass


def plain(options: dict[str, Any]) -> dict[str, Any]:
    """Return the `options` that django-storages has too."""
    return {k: v for k, v in options.items() if not k.startswith("collectfast_")}


# Contents, in the forms in which programs pass them to `save`.


class QuietSeek(BytesIO):
    """A file that returns None from `seek`, like some file-like objects."""

    def seek(self, offset: int, whence: int = 0) -> int:
        super().seek(offset, whence)
        return None  # type: ignore[return-value]


class Unseekable(BytesIO):
    """A file that can be read only once, like a response or a pipe."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: Any) -> int:
        raise OSError("not seekable")


@dataclass(frozen=True)
class Content:
    """Contents of a file, text or binary, and the object that carries them."""

    data: str | bytes
    form: str = "ContentFile"

    def file(self, name: str) -> Any:
        """Return a new file-like object, because a save consumes one."""
        binary = self.data.encode() if isinstance(self.data, str) else self.data
        if self.form == "upload":
            name = posixpath.basename(name) or "x"
            return SimpleUploadedFile(name, binary, content_type="text/x-upload")
        if self.form == "stream":
            text = isinstance(self.data, str)
            stream: Any = StringIO(self.data) if text else BytesIO(binary)  # type: ignore[arg-type]
            stream.read(2)  # A save starts at the beginning nevertheless.
            return stream
        if self.form == "quiet seek":
            return QuietSeek(binary)
        if self.form == "unseekable":
            return Unseekable(binary)
        return ContentFile(self.data)


# Text contains only ASCII, because s3transfer counts its characters as bytes.
DATA: list[str | bytes] = [
    "",
    b"",
    "text\r\n",
    "text, ü and €\r\n".encode(),
    b"\x00binary\xff",
    "long, and it compresses well" * 9,
]
FORMS = ["ContentFile", "upload", "stream", "quiet seek", "unseekable"]
contents = st.builds(Content, st.sampled_from(DATA), st.sampled_from(FORMS))


# Operations, and their outcomes.


@dataclass(frozen=True)
class Outcome:
    """A result, or the type, status and code of an exception."""

    value: Any = None
    exception: str | None = None
    status: int | None = None
    code: str | None = None
    error: Exception | None = field(default=None, compare=False)


def outcome_of(act: Callable[[], Any]) -> Outcome:
    """Return the outcome of `act`."""
    try:
        return Outcome(act())
    except Exception as error:
        kind, response = type(error), getattr(error, "response", None) or {}
        return Outcome(
            exception=f"{kind.__module__}.{kind.__qualname__}",
            status=response.get("ResponseMetadata", {}).get("HTTPStatusCode"),
            code=response.get("Error", {}).get("Code"),
            error=error,
        )


@dataclass(frozen=True)
class Operation:
    """A call that a program makes. Each kind uses only some of the fields."""

    kind: str
    name: str
    content: Content = Content("")
    mode: str = "rb"
    length: int | None = None  # of a read, or the longest name of a save


def perform(storage: Any, operation: Operation) -> Outcome:
    """Perform `operation` with `storage`."""
    storage.alternatives = count(1)
    storage.asked = set()
    return outcome_of(lambda: _KINDS[operation.kind](storage, operation))


def _save(storage: Any, operation: Operation) -> Any:
    name, content = operation.name, operation.content.file(operation.name)
    saved = storage.save(name, content, max_length=operation.length)
    # A site's own methods have to be called with the same names too. Only those of this
    # file are compared, because a run that starts in this save also reads other sources
    # and requests their parameters.
    last = saved.rpartition("/")[2]
    return saved, sorted(each for each in storage.asked if each.endswith(last))


def _open(storage: Any, operation: Operation) -> Any:
    with storage.open(operation.name, operation.mode) as file:
        if "w" in operation.mode:
            write(file, operation.content)
            return file.name
        return file.name, file.size, file.read(operation.length or -1), file.read()


def write(file: Any, content: Content) -> None:
    """Write `content` to an open `file` in two pieces, if there are two."""
    for piece in (content.data[:3], content.data[3:]):
        if piece:
            file.write(piece)


def _modified(storage: Any, operation: Operation) -> Any:
    return isinstance(storage.get_modified_time(operation.name), datetime)


def _url(storage: Any, operation: Operation) -> Any:
    """Return the parts of a URL that do not depend on the time."""
    parts = urlsplit(storage.url(operation.name))
    return parts.netloc, _without_side(parts.path), sorted(parse_qs(parts.query))


def _key(storage: Any, name: str) -> str:
    return f"{storage.location}/{name}"


def _load(storage: Any, operation: Operation) -> Any:
    found = storage.bucket.Object(_key(storage, operation.name))
    found.load()
    return found.content_length


def _head(storage: Any, operation: Operation) -> Any:
    answer = storage.connection.meta.client.head_object(
        Bucket=storage.bucket_name, Key=_key(storage, operation.name)
    )
    return answer["ContentLength"]


_KINDS: dict[str, Callable[[Any, Operation], Any]] = {
    "save": _save,
    "open": _open,
    "delete": lambda storage, operation: storage.delete(operation.name),
    "exists": lambda storage, operation: storage.exists(operation.name),
    "size": lambda storage, operation: storage.size(operation.name),
    "listdir": lambda storage, operation: storage.listdir(operation.name),
    "modified": _modified,
    "url": _url,
    # Some programs use boto3 with the storage's connection.
    "load": _load,
    "head": _head,
}


def _without_side(key: str) -> str:
    """Return `key` without the part that names one of the two storages."""
    return re.sub(f"/({OURS}|{THEIRS})/", "/", key, count=1)


# The bucket.


@dataclass(frozen=True)
class Object:
    """The contents and headers of an object."""

    content: Any
    headers: tuple[Any, ...]


HEADERS = [
    "ContentType",
    "ContentEncoding",
    "ContentLanguage",
    "ContentDisposition",
    "CacheControl",
]


@dataclass
class Place:
    """The objects of both storages, read with few requests."""

    view: BucketView
    _known: dict[str, tuple[Any, Object]] = field(default_factory=dict)

    def objects(self, touched: Iterable[str] = ()) -> dict[str, dict[str, Object]]:
        """Return the objects of each storage, by key without the storage's own part.

        Objects with an unchanged ETag are not read again, unless their keys are in
        `touched`, because the headers may have changed without the contents.
        """
        for key in touched:
            for side in (OURS, THEIRS):
                self._known.pop(f"{side}/{key}", None)
        etags = self.view.etags()
        for key, etag in etags.items():
            if self._known.get(key, ("",))[0] != etag:
                self._known[key] = etag, self._get(key)
        found: dict[str, dict[str, Object]] = {OURS: {}, THEIRS: {}}
        for key in etags:
            side, _, rest = key.partition("/")
            found[side][rest] = self._known[key][1]
        return found

    def clear(self, prefix: str) -> None:
        """Delete all objects with keys that begin with `prefix`."""
        for key in self.view.names():
            if key.startswith(prefix):
                self.view.delete(key)

    def _get(self, key: str) -> Object:
        answer = self.view.get(key)
        content: Any = answer["Body"].read()
        if key.endswith("/staticfiles.json"):
            content = json.loads(content)  # The order of its entries has no meaning.
        metadata = {k.lower(): v for k, v in answer["Metadata"].items()}
        metadata.pop(FINGERPRINT, None)
        headers = (*map(answer.get, HEADERS), tuple(sorted(metadata.items())))
        return Object(content, headers)
