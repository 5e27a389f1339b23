"""Costs of an unchanged deploy besides requests, counted because times vary."""

from __future__ import annotations

import gzip
import io
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import boto3
import pytest
from botocore.handlers import BUILTIN_HANDLERS
from django.contrib.staticfiles.finders import FileSystemFinder
from django.contrib.staticfiles.management.commands.collectstatic import Command
from django.contrib.staticfiles.storage import staticfiles_storage
from django.core.files import File
from django.core.management import call_command

from collectfast_storage import CollectfastS3ManifestStaticStorage
from tests.support.site import MANIFEST, STATIC, Site
from tests.support.sources import Sources, SourcesFinder

COUNT = 60


class Name(str):
    """A name that counts how often names are compared."""

    compared: ClassVar[int] = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Name.compared += 1
        return str.__eq__(self, other)


class NamesFinder(SourcesFinder):
    sources: ClassVar[dict[str, Any]] = {
        Name(f"file{i:02}.txt"): f"content of {i}".encode() for i in range(COUNT)
    }


@pytest.mark.parametrize("is_there", [True, False])
def test_lists_of_the_command_are_not_searched_for_each_file(
    site: Site, is_there: bool
) -> None:
    """The lists of Django's command are not searched for each file.

    With 20,000 files, the searches would take a third of an unchanged deploy.
    """
    finders = [f"{__name__}.NamesFinder"]
    if is_there:
        site.collect(STATICFILES_FINDERS=finders)
    Name.compared = 0
    deploy = site.collect(STATICFILES_FINDERS=finders)
    assert len(deploy.put) == (0 if is_there else COUNT)
    # A search compares half of a list's names; there are two lists, and two finders.
    assert Name.compared < COUNT * COUNT / 4


class Forgetting(Command):
    """A command that keeps its list, and removes and adds each name again."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = self.copied_files

    def copy_file(self, path: str, prefixed_path: str, source_storage: Any) -> None:
        super().copy_file(path, prefixed_path, source_storage)
        assert prefixed_path in self.copied_files
        self.copied_files.remove(prefixed_path)
        assert prefixed_path not in self.copied_files
        self.copied_files.append("another")
        assert prefixed_path not in self.copied_files
        self.copied_files[-1] = prefixed_path
        assert "another" not in self.copied_files
        assert prefixed_path in self.copied_files


def test_lists_that_an_own_command_changes(site: Site) -> None:
    """The lists of a subclass of the command behave like lists."""
    files = site.write_many(5)
    output = io.StringIO()
    command = Forgetting()
    with site.active():
        call_command(command, "--noinput", stdout=output)
    assert command.copied_files is command.kept
    assert sorted(command.kept) == sorted(files)
    assert output.getvalue().strip() == "5 static files copied."
    assert site.bucket.files() == files


class CountingSources(Sources):
    """A storage of sources that counts how often each file is read to its end."""

    read: ClassVar[Counter[str]] = Counter()

    def _open(self, name: str, mode: str = "rb") -> File[bytes]:
        content, read = self.sources[name], self.read
        assert isinstance(content, bytes)

        class Counting(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                chunk = super().read(size)
                if chunk and self.tell() == len(content):
                    read[name] += 1
                return chunk

        return File(Counting(content), name)


class CountingFinder(SourcesFinder):
    sources: ClassVar[dict[str, Any]] = {
        "img/pixel.svg": b"<svg/>",
        "js/app.txt": b"no references here",
        "css/site.css": b"a { background: url(../img/pixel.svg) }",
    }

    def list(self, ignore_patterns: Any) -> Iterator[tuple[str, Any]]:
        storage = CountingSources(self.sources)
        for name in self.sources:
            yield name, storage


@pytest.mark.parametrize(("backend", "times"), [(STATIC, 1), (MANIFEST, 2)])
def test_unchanged_source_is_read_once_and_once_by_django(
    site: Site, backend: str, times: int
) -> None:
    """An unchanged source is read once, and once more if Django hashes it.

    The hash computed while collecting serves to compare the hashed copy, too.
    """
    site.backend = backend
    finders = [f"{__name__}.CountingFinder"]
    site.collect(STATICFILES_FINDERS=finders)
    CountingSources.read.clear()
    assert site.collect(STATICFILES_FINDERS=finders).put == []
    read = {n: k for n, k in CountingSources.read.items() if not n.endswith(".css")}
    assert read == {"img/pixel.svg": times, "js/app.txt": times}


def test_source_that_changes_after_it_was_collected(site: Site) -> None:
    """The hashed copy of a source that changed after collecting has the new content."""
    site.backend = MANIFEST
    site.write("a.txt", "new")
    site.collect()
    hashed = site.manifest()["a.txt"]
    site.write("a.txt", "old")
    site.collect()
    site.bucket.put(hashed, b"old")
    ChangingFinder.source = site.static / "a.txt"
    site.collect(STATICFILES_FINDERS=[f"{__name__}.ChangingFinder"])
    assert site.manifest()["a.txt"] == hashed
    assert site.bucket.read(hashed) == b"new"


def test_hashed_copy_that_lost_its_content(site: Site) -> None:
    """A compressed hashed copy that was emptied is uploaded again.

    A source that is not read must not be taken for an empty file.
    """
    site.backend = MANIFEST
    site.options["gzip"] = True
    site.write("a.svg", "<svg/>")
    site.collect()
    with site.storage() as storage:
        hashed = storage.hashed_files["a.svg"]
    emptied = gzip.compress(b"", mtime=0)
    site.bucket.put(hashed, emptied, ContentEncoding="gzip")
    assert site.collect().put == [hashed]
    assert gzip.decompress(site.bucket.get(hashed)["Body"].read()) == b"<svg/>"


class OfContent(CollectfastS3ManifestStaticStorage):
    """A storage with upload parameters that depend on the content."""

    def _get_write_parameters(self, name: str, content: Any = None) -> Any:
        parameters = super()._get_write_parameters(name, content)
        content.seek(0)
        return parameters | {"Metadata": {"first": chr(content.read(1)[0])}}


def test_parameters_that_depend_on_the_content(site: Site) -> None:
    """Parameters of a hashed copy are computed from the content of its source."""
    site.backend = f"{__name__}.OfContent"
    site.write("a.txt", "content")
    site.collect()
    deploy = site.collect()
    assert deploy.put == []
    metadata = site.bucket.get(site.manifest()["a.txt"])["Metadata"]
    assert {name.lower(): first for name, first in metadata.items()} == {"first": "c"}


class ChangingFinder(FileSystemFinder):
    """A finder that restores a source's old content after all are collected."""

    source: ClassVar[Path]

    def list(self, ignore_patterns: Any) -> Iterator[Any]:
        yield from super().list(ignore_patterns)
        if sys._getframe(1).f_code is Command.collect.__code__:
            self.source.write_text("new")


class OwnSession(CollectfastS3ManifestStaticStorage):
    """A storage that overrides the creation of its sessions."""

    made: ClassVar[list[Any]] = []

    def _create_session(self) -> Any:
        session = super()._create_session()
        assert session not in self.made
        self.made.append(session)
        return session


@pytest.mark.parametrize("backend", [MANIFEST, f"{__name__}.OwnSession"])
def test_unsigned_urls_need_no_other_session(
    site: Site, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """URLs without a signature do not need a session of their own.

    Django computes such URLs in post-processing.
    """
    sessions = []
    session_of = boto3.Session

    def make_session(**arguments: Any) -> Any:
        sessions.append(arguments)
        return session_of(**arguments)

    monkeypatch.setattr(boto3, "Session", make_session)
    site.backend = backend
    site.write("img/pixel.svg", "<svg/>")
    site.write("css/site.css", "a { background: url(../img/pixel.svg) }")
    OwnSession.made.clear()
    site.collect()
    # A subclass with its own sessions gets a new one each time, with obstore a third.
    assert len(sessions) == (1 if backend == MANIFEST else len(OwnSession.made))
    assert len(OwnSession.made) in (0, 2, 3)
    with site.storage() as storage:
        url = storage.url("css/site.css")
        assert "X-Amz" not in url
        assert storage.unsigned_connection is not storage.connection


@pytest.mark.skipif(
    not any(event.startswith("before-parse.s3") for event, *_ in BUILTIN_HANDLERS),
    reason="this botocore has no handler that parses a response",
)
def test_handlers_of_botocore_do_not_parse_the_listing(site: Site) -> None:
    """The listing is removed from the response before botocore's handlers get it.

    botocore's own handler searches the whole body for errors.
    """
    bodies: list[bytes] = []

    def record(response_dict: dict[str, Any], **_: Any) -> None:
        bodies.append(response_dict["body"])

    site.write_many(3)
    site.collect()
    with site.active():
        events = staticfiles_storage.connection.meta.client.meta.events
        events.register_first("before-parse.s3.*", record)
        call_command("collectstatic", "--noinput", verbosity=0)
    assert len(bodies) == 1
    assert b"IsTruncated" in bodies[0]
    assert b"file1" not in bodies[0]
